"""Transfer: forget the source classes that harm a target task, and transfer what is left.

    EXPUNGE_DATA=... OMP_NUM_THREADS=1 python benchmarks/transfer.py [--settings fashion-to-mnist ...] [--seeds 3]
    python benchmarks/transfer.py --small          # seconds; checks that it runs, and writes nothing

For each setting and seed:

* source classes are ranked by their influence on the target (`expunge.training.transfer.measure_class_influence`):
  models trained on halves of the classes, probed on the target's validation records;
* the original is trained on all source classes; then the most harmful classes are forgotten by each method, and, as the
  control, equally many drawn at random from the other classes;
* each model is transferred to the target: a linear probe on its features, and fine-tuning of the whole network.

Printed and written to results/transfer.json after every model: accuracy on the target's test records, seconds of the
method, of the probe and of the fine-tuning. What is in the file already with the same configuration is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import machine

import expunge
from expunge.core.hashing import hash_json
from expunge.core.seeds import numpy_generator
from expunge.data import Records, forget_column
from expunge.evaluation.seeds import mean, t_interval
from expunge.methods import get_method
from expunge.training.transfer import fine_tune, linear_probe, measure_class_influence, take_classes

RESULT = Path(__file__).parent / "results" / "transfer.json"
#: Source and target; records of each outside the test set; classes to forget; network and recipe.
SETTINGS: dict[str, dict[str, Any]] = {
    "fashion-to-mnist": {
        "title": "Fashion-MNIST to MNIST", "source": "fashion-mnist", "target": "mnist", "classes": None,
        "limit": 10_000, "target_limit": 1_200, "forget": 3, "model": "lenet5", "epochs": 12, "rate": 0.05,
        "augment": "none", "models": 32,
    },
    "cifar10-7-to-3": {
        "title": "CIFAR-10, 7 classes to 3", "source": "cifar10", "target": "cifar10",
        "classes": (["airplane", "automobile", "bird", "deer", "frog", "ship", "truck"], ["cat", "dog", "horse"]),
        "limit": 7_000, "target_limit": 1_200, "forget": 2, "model": "small-cnn", "epochs": 12, "rate": 0.1,
        "augment": "crop-flip", "models": 24,
    },
    "small": {
        "title": "digits, 7 classes to 3", "source": "digits", "target": "digits",
        "classes": (list("0123456"), list("789")), "limit": 300, "target_limit": 100, "forget": 2, "model": "small-cnn",
        "epochs": 3, "rate": 0.1, "augment": "none", "models": 4,
    },
}  # fmt: skip
#: Methods with a tenth of the passes of retraining; `none`: the original.
METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "Retrain": {"name": "Retrain"},
    "FT": {"name": "FT", "epochs": 1, "learning_rate": 0.01, "batch_size": 64},
    "GA": {"name": "GA", "epochs": 1, "learning_rate": 0.00003, "batch_size": 64},
    "l1-sparse": {"name": "l1-sparse", "epochs": 1, "learning_rate": 0.01, "gamma": 0.001, "batch_size": 64},
    "Replay": {"name": "Replay", "epochs": 1, "learning_rate": 0.01, "batch_size": 64, "prefix_epochs": 0.2},
}
BATCH = 64
CPU = expunge.Runtime("cpu")


def load(setting: Mapping[str, Any]) -> tuple[Records, Records]:
    """The records of the source and of the target."""
    source, target = (expunge.load_records(setting[name]) for name in ("source", "target"))
    if setting["classes"] is not None:
        source, target = (
            take_classes(one, names) for one, names in zip((source, target), setting["classes"], strict=True)
        )
    return source, target


def measure(setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Rank the classes, forget, and transfer."""
    source, target = load(setting)
    split = expunge.make_split(source, seed=0, limit=setting["limit"])
    target_split = expunge.make_split(target, seed=0, limit=setting["target_limit"], validation=0.3, non_members=0)
    network = expunge.architecture(setting["model"], source, split)
    recipe = expunge.Recipe(
        epochs=setting["epochs"], batch_size=BATCH, learning_rate=setting["rate"], nesterov=True,
        lr_schedule="one-cycle", warmup=0.25, augment=setting["augment"],
    )  # fmt: skip
    ranked = measure_class_influence(
        source, split, target, target_split, network, recipe=recipe, models=setting["models"], seed=seed, runtime=CPU
    )
    harmful = list(ranked.most_harmful_first()[: setting["forget"]])
    others = [name for name in source.class_names if name not in harmful]
    random = numpy_generator(seed, "random classes").permutation(len(others))[: setting["forget"]]
    choices = {"most harmful": harmful, "random": [others[index] for index in sorted(random)]}
    original = expunge.train(source, split, network, recipe=recipe, seed=seed, runtime=CPU)
    tuned = expunge.Recipe(
        epochs=setting["epochs"], batch_size=BATCH, learning_rate=setting["rate"] / 5, nesterov=True,
        lr_schedule="one-cycle", warmup=0.25,
    )  # fmt: skip
    found: dict[str, Any] = {
        "influence": {
            name: [round(float(value), 5), round(float(error), 5)]
            for name, value, error in zip(ranked.class_names, ranked.influence, ranked.standard_errors, strict=True)
        },
        "classes": choices,
        "models": {},
    }
    for choice, classes in choices.items():
        marked = {"chosen": [source.class_names[label] in classes for label in source.labels.tolist()]}
        records = _with_columns(source, marked)
        request = forget_column(records, split, "chosen")
        for name, options in METHODS.items():
            if options is None and choice != "most harmful":
                continue
            model, seconds = original, 0.0
            if options is not None:
                method = get_method(**options)
                outcome = method.forget(original, request, expunge.Context(records, CPU, seed=seed))
                model, seconds = outcome.trained, outcome.cost.seconds
            probe = linear_probe(model.model, source, target, target_split, runtime=CPU)
            whole = fine_tune(model.model, source, target, target_split, recipe=tuned, seed=seed, runtime=CPU)
            key = "all classes" if options is None else f"{choice}, {name}"
            found["models"][key] = {
                "probe": probe.accuracy, "fine-tuned": whole.accuracy, "seconds": seconds,
                "probe_seconds": probe.seconds, "fine_tune_seconds": whole.seconds,
            }  # fmt: skip
            print(f"  seed {seed}, {key}: probe {probe.accuracy:.2f} %, fine-tuned {whole.accuracy:.2f} %, "
                  f"{seconds:.1f} s", flush=True)  # fmt: skip
    return found


def _with_columns(records: Records, columns: Mapping[str, Sequence[bool]]) -> Records:
    return dataclasses.replace(records, columns={name: np.asarray(values) for name, values in columns.items()})


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and t intervals over the seeds, of each model's accuracies."""
    body: dict[str, Any] = {}
    for key in runs[0]["models"]:
        body[key] = {}
        for score in runs[0]["models"][key]:
            values = [run["models"][key][score] for run in runs]
            ends = t_interval(values)
            body[key][score] = {
                "mean": round(mean(values), 3),
                "interval": None if ends is None else [round(end, 3) for end in ends],
            }
    return body


def main() -> None:
    """Run the settings, and write the result after each seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [name for name in SETTINGS if name != "small"]
    parser.add_argument("--settings", nargs="*", default=names, choices=names)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a few records and epochs; writes nothing")
    given = parser.parse_args()
    body = (
        json.loads(RESULT.read_text()) if RESULT.exists() and not given.small else {"benchmark": "transfer", "runs": {}}
    )
    for name in ["small"] if given.small else given.settings:
        setting = SETTINGS[name]
        identity = hash_json([setting, METHODS, BATCH])
        known = body["runs"].get(name, {})
        if known.get("identity") != identity:
            known = {"identity": identity, "title": setting["title"], "seeds": {}}
        print(setting["title"], flush=True)
        for seed in range(1 if given.small else given.seeds):
            if str(seed) not in known["seeds"]:
                known["seeds"][str(seed)] = measure(setting, seed)
            known |= {"machine": machine(), "summary": summarise(list(known["seeds"].values()))}
            body["runs"][name] = known
            if not given.small:
                RESULT.parent.mkdir(exist_ok=True)
                RESULT.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
