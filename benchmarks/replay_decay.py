"""How the difference of training with and without the forgotten records changes along training.

    EXPUNGE_DATA=... OMP_NUM_THREADS=1 python benchmarks/replay_decay.py [--settings digits ...] [--seeds 3] [--again]
    python benchmarks/replay_decay.py --draw

For each network, learning-rate schedule, forget set and seed: two dense trainings, with a snapshot after every epoch
(`expunge.methods.replay.measure_decay`). With d_t = theta_t(D_r) - theta_t(D):

* cosine of d_t with d_T, and with d_k for k = 20 and 40 % of the epochs;
* relative norm ||d_t|| / ||theta_T(D) - theta_0||;
* error ||d_T - d_t|| / ||d_T||, the distance of theta_T(D) + d_t from the retrained weights relative to that of doing
  nothing.

Writes results/replay_decay.json after every setting (means over the seeds, by layer and in total; what is in it already
with the same configuration is not measured again) and ../docs/figures/replay-decay.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
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


def describe(key: str, run: Mapping[str, Any]) -> str:
    """The error and the cosine at 20, 40, 60 and 80 % of the epochs, as one line."""
    whole, last = run["layers"]["all"], run["epochs"][-1]
    places = [round(fraction * last) for fraction in (0.2, 0.4, 0.6, 0.8)]
    numbers = [f"t={t}: cos {whole['cosine'][t]:.2f}, error {whole['error'][t]:.2f}" for t in places]
    return f"{key}: {'; '.join(numbers)}; at the end {whole['relative'][last]:.2f} of the way"


def draw(body: Mapping[str, Any]) -> None:
    """Draw the traces of all parameters: a column for each network, a line for each schedule and forget set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = list(body["runs"].values())
    titles = list(dict.fromkeys(run["title"] for run in runs))
    rows = (("cosine", "cosine of $d_t$ with $d_T$"), ("error", "error, relative to doing nothing"),
            ("relative", "$|d_t|$ / distance travelled"), ("rates", "learning rate / peak"))  # fmt: skip
    colours = dict(zip(SCHEDULES, ("#2d7dbf", "#c05c22", "#288950"), strict=True))
    grey = "#767676"
    pyplot.rcParams.update(dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), grey))
    size = (3.4 * len(titles) + 1.6, 2.2 * len(rows))
    figure, grid = pyplot.subplots(len(rows), len(titles), figsize=size, squeeze=False, sharex=True, sharey="row")
    for column, title in enumerate(titles):
        for row, (trace, label) in enumerate(rows):
            axes = grid[row][column]
            axes.patch.set_visible(False)
            axes.grid(alpha=0.3)
            for side in axes.spines.values():
                side.set_color(grey)
            if column == 0:
                axes.set_ylabel(label)
            for run in (one for one in runs if one["title"] == title):
                if trace == "rates" and run["forget"] != FORGET[0]:
                    continue
                values = run["rates"] if trace == "rates" else run["layers"]["all"][trace]
                values = [value / max(values) for value in values] if trace == "rates" else values
                points = [(t, v) for t, v in zip(run["epochs"], values, strict=True) if v is not None]
                points = points[1:] if trace == "rates" else points
                across, up = zip(*((t / run["epochs"][-1], v) for t, v in points), strict=True)
                style = "-" if run["forget"] == FORGET[0] else "--"
                axes.plot(across, up, style, color=colours[run["schedule"]], linewidth=1.6)
                if (
                    len(run["seeds"]) > 2
                    and trace in run["intervals"]
                    and all(run["intervals"][trace][t] for t, _ in points)
                ):
                    low, high = zip(*(run["intervals"][trace][t] for t, _ in points), strict=True)
                    axes.fill_between(across, low, high, color=colours[run["schedule"]], alpha=0.12, linewidth=0)
            if trace == "error":
                axes.axhline(1, color=grey, linewidth=0.8)
                axes.set_ylim(0, 1.3)
            if trace == "cosine":
                axes.set_ylim(-0.1, 1.05)
        grid[0][column].set_title(title)
        grid[-1][column].set_xlabel("epoch t / T")
    handles = [pyplot.Line2D([], [], color=own, label=name) for name, own in colours.items()]
    handles += [
        pyplot.Line2D([], [], color=grey, linestyle=s, label=f) for f, s in zip(FORGET, ("-", "--"), strict=True)
    ]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles) if len(titles) > 1 else 3, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=110, transparent=True)
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
