"""How the difference of training with and without the forgotten records changes along training.

    EXPUNGE_DATA=... OMP_NUM_THREADS=1 python benchmarks/replay_decay.py [--settings digits ...] [--seeds 3] [--again]
    python benchmarks/replay_decay.py --draw

For each network, learning-rate schedule, forget set and seed: two dense trainings, with a snapshot after every epoch
(`expunge.methods.replay.measure_decay`). With d_t = theta_t(D_r) - theta_t(D):

* cosine of d_t with d_T, and with d_k for k = 20 and 40 % of the epochs;
* the same error against the fraction of the sum of all learning rates that the first t epochs have;
* relative norm ||d_t|| / ||theta_T(D) - theta_0||;
* error ||d_T - d_t|| / ||d_T||, the distance of theta_T(D) + d_t from the retrained weights relative to that of doing
  nothing; against the epoch, and against the fraction of the sum of all learning rates that the first t epochs have
  (dotted: what a flat quadratic loss has, docs/replay-theory.md).

Writes results/replay_decay.json after every setting (means over the seeds, by layer and in total; what is in it already
with the same configuration is not measured again) and ../docs/figures/replay-decay.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import machine

import expunge
from expunge.core.hashing import hash_json
from expunge.evaluation.seeds import mean, t_interval
from expunge.methods.replay import Decay, measure_decay

RESULT = Path(__file__).parent / "results" / "replay_decay.json"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "replay-decay.png"
#: Network, data, records of the split, options of the network, epochs, class that is forgotten.
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"title": "MLP, digits", "model": "mlp", "options": {"widths": [64]}, "data": "digits", "limit": None,
               "epochs": 20, "rate": 0.1, "class": 3},
    "lenet5": {"title": "LeNet-5, Fashion-MNIST", "model": "lenet5", "options": {}, "data": "fashion-mnist",
               "limit": 12_000, "epochs": 12, "rate": 0.05, "class": 0},
    "small-cnn": {"title": "small CNN, Fashion-MNIST", "model": "small-cnn", "options": {}, "data": "fashion-mnist",
                  "limit": 12_000, "epochs": 12, "rate": 0.1, "class": 0},
}  # fmt: skip
SCHEDULES: dict[str, dict[str, Any]] = {
    "one-cycle": {"lr_schedule": "one-cycle", "warmup": 0.25},
    "multistep": {"lr_schedule": "multistep", "milestones": (0.5, 0.75)},
    "cosine": {"lr_schedule": "cosine"},
}
FORGET = ("class", "random 10 %")
BATCH = 64


def train_and_measure(setting: Mapping[str, Any], schedule: str, forget: str, seed: int) -> Decay:
    """Train with and without the forget set, and compare."""
    records = expunge.load_records(setting["data"])
    split = expunge.make_split(records, seed=0, limit=setting["limit"])
    if forget == "class":
        request = expunge.forget_class(records, split, setting["class"])
    else:
        request = expunge.forget_random(records, split, fraction=0.1)
    network = expunge.architecture(setting["model"], records, split, **setting["options"])
    recipe = expunge.Recipe(
        epochs=setting["epochs"], batch_size=BATCH, learning_rate=setting["rate"], nesterov=True, **SCHEDULES[schedule]
    )
    runtime = expunge.Runtime("cpu")
    # the weights of the original are not needed: what is measured is trained again
    untrained = expunge.train(
        records, split, network, recipe=dataclasses.replace(recipe, epochs=0), seed=seed, runtime=runtime
    )
    provenance = dataclasses.replace(untrained.provenance, recipe=recipe.to_json())
    original = dataclasses.replace(untrained, provenance=provenance)
    at = sorted({max(1, round(fraction * recipe.epochs)) for fraction in (0.2, 0.4)})
    return measure_decay(original, request, expunge.Context(records, runtime), at=at)


def average(runs: Sequence[Decay]) -> dict[str, Any]:
    """Means over the seeds, and the t intervals of the traces of all parameters."""
    bodies = [run.to_json() for run in runs]

    def join(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: join([value[key] for value in values]) for key in values[0]}
        if isinstance(values[0], (list, tuple)):
            return [join(column) for column in zip(*values, strict=True)]
        known = [value for value in values if value is not None]
        return None if len(known) < len(values) else float(f"{mean(known):.6g}")

    def ends(name: str) -> list[Any]:
        columns = zip(*(body["layers"]["all"][name] for body in bodies), strict=True)
        found = [None if None in column else t_interval(column) for column in columns]
        return [None if pair is None else [float(f"{end:.6g}") for end in pair] for pair in found]

    return {
        "epochs": list(bodies[0]["epochs"]),
        "rates": join([list(body["rates"]) for body in bodies]),
        "layers": join([body["layers"] for body in bodies]),
        "intervals": {name: ends(name) for name in ("cosine", "relative", "error")},
    }


def measure(names: Sequence[str], seeds: Sequence[int], epochs: int | None, *, again: bool) -> dict[str, Any]:
    """Measure settings that are not in the result file, and write it after each."""
    body = json.loads(RESULT.read_text()) if RESULT.exists() else {"benchmark": "replay_decay", "runs": {}}
    for name in names:
        setting = {**SETTINGS[name], **({} if epochs is None else {"epochs": epochs})}
        for schedule in SCHEDULES:
            for forget in FORGET:
                key = f"{name}, {schedule}, {forget}"
                identity = hash_json([setting, SCHEDULES[schedule], forget, list(seeds), BATCH])
                if not again and body["runs"].get(key, {}).get("identity") == identity:
                    continue
                found = average([train_and_measure(setting, schedule, forget, seed) for seed in seeds])
                about = {"title": setting["title"], "schedule": schedule, "forget": forget, "seeds": list(seeds)}
                body["runs"][key] = {"identity": identity, **about, "machine": machine(), **found}
                write(body)
                print(describe(key, body["runs"][key]), flush=True)
    return body


def write(body: Mapping[str, Any]) -> None:
    """Write the result file, one run a line."""
    runs = ",\n".join(f"{json.dumps(key)}: {json.dumps(run)}" for key, run in body["runs"].items())
    RESULT.write_text(f'{{"benchmark": "replay_decay",\n"runs": {{\n{runs}\n}}}}\n')


def fractions(run: Mapping[str, Any]) -> list[float]:
    """The sum of the learning rates up to each epoch, as a fraction of the whole."""
    total = math.fsum(run["rates"])
    return [math.fsum(run["rates"][: t + 1]) / total for t in run["epochs"]]


def describe(key: str, run: Mapping[str, Any]) -> str:
    """Fraction of the learning rates, cosine and error at 10, 20, 40 and 60 % of the epochs, as one line."""
    whole, last, spent = run["layers"]["all"], run["epochs"][-1], fractions(run)
    numbers = [
        f"t={t}: rates {spent[t]:.2f}, cos {whole['cosine'][t]:.2f}, error {whole['error'][t]:.2f}"
        for t in (round(part * last) for part in (0.1, 0.2, 0.4, 0.6))
    ]
    return f"{key}: {'; '.join(numbers)}; the end is {whole['relative'][last]:.2f} of the way apart"


#: Trace, axis it is drawn against, label, limits.
ROWS = (
    ("cosine", "epoch t / T", "cosine of $d_t$ with $d_T$", (-0.1, 1.05)),
    ("relative", "epoch t / T", "$|d_t|$ / distance travelled", (0, None)),
    ("rates", "epoch t / T", "learning rate / peak", (0, 1.05)),
    ("error", "epoch t / T", "error", (0, 1.3)),
    ("error", "fraction of the sum of learning rates", "error", (0, 1.3)),
)


def draw(body: Mapping[str, Any]) -> None:
    """Draw the traces of all parameters: a column for each network, a line for each schedule and forget set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = list(body["runs"].values())
    titles = list(dict.fromkeys(run["title"] for run in runs))
    colours = dict(zip(SCHEDULES, ("#2d7dbf", "#c05c22", "#288950"), strict=True))
    lines = dict(zip(FORGET, ("-", "--"), strict=True))
    grey = "#767676"
    pyplot.rcParams.update(dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), grey))
    size = (3.4 * len(titles) + 1.6, 2.3 * len(ROWS))
    figure, grid = pyplot.subplots(len(ROWS), len(titles), figsize=size, squeeze=False, sharey="row")
    for column, title in enumerate(titles):
        for row, (trace, against, label, _) in enumerate(ROWS):
            axes = grid[row][column]
            axes.patch.set_visible(False)
            axes.grid(alpha=0.3)
            for side in axes.spines.values():
                side.set_color(grey)
            axes.set(ylabel=label if column == 0 else "", xlabel=against, xlim=(-0.02, 1.02))
            for run in (one for one in runs if one["title"] == title):
                own = {"color": colours[run["schedule"]]}
                whole = [t / run["epochs"][-1] for t in run["epochs"]] if against == ROWS[0][1] else fractions(run)
                if trace == "rates":
                    axes.plot(whole[1:], [rate / max(run["rates"]) for rate in run["rates"][1:]], linewidth=1.2, **own)
                    continue
                values, ends = run["layers"]["all"][trace], run["intervals"][trace]
                known = [t for t in run["epochs"] if values[t] is not None]
                across = [whole[t] for t in known]
                axes.plot(across, [values[t] for t in known], lines[run["forget"]], linewidth=1.6, **own)
                if len(run["seeds"]) > 2:
                    low, high = ([ends[t][side] for t in known] for side in (0, 1))
                    axes.fill_between(across, low, high, alpha=0.12, linewidth=0, **own)
            if trace == "error":
                axes.axhline(1, color=grey, linewidth=0.8)
            if against != ROWS[0][1]:
                axes.plot([0, 1], [1, 0], ":", color=grey, linewidth=1.2)
        grid[0][column].set_title(title)
    for row, (_, _, _, limits) in enumerate(ROWS):  # a row shares its limits: when all of it is drawn
        grid[row][0].set_ylim(*limits)
    handles = [pyplot.Line2D([], [], color=own, label=name) for name, own in colours.items()]
    handles += [pyplot.Line2D([], [], color=grey, linestyle=style, label=name) for name, style in lines.items()]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles) if len(titles) > 1 else 3, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=100, transparent=True)
    print(FIGURE)


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--epochs", type=int, help="instead of those of the setting")
    parser.add_argument("--again", action="store_true", help="measure also what is in the result file")
    parser.add_argument("--draw", action="store_true", help="draw the figure from the result file only")
    chosen = parser.parse_args()
    if chosen.draw:
        draw(json.loads(RESULT.read_text()))
    else:
        draw(measure(chosen.settings, range(chosen.seeds), chosen.epochs, again=chosen.again))


if __name__ == "__main__":
    main()
