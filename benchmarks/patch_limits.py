"""The limits of certified patches, measured on the settings of the plans `plans/patches-*.yaml`.

    EXPUNGE_DATA=... OMP_NUM_THREADS=1 python benchmarks/patch_limits.py [--settings patches-adult ...] [--again]

For each plan: its data, split, network, training and seeds, the forget set of 100 records and the method `exact,
constant`, beside the retrained model. Measured are

* changes: how many small changes of a forgotten record the patched model still answers with the old label (only records
  that the base model answers right; intervals are percentile bootstraps over records, each the mean over its seeds);
* sharing: how many training records have the exact activation pattern of another one;
* regions: the size of the forgotten records' regions, and how many contain no tried change (the score `Point only`);
* executions: how many points get other activation bits, and other gates, from another execution of the same network
  than the reference (eager float32, batches of 256, one thread), for the forgotten records, for training records, and
  for points at the first face on the way from a forgotten record to another one.

Writes results/patch_limits.json after every setting; settings that are in it already, with the same configuration and
versions, are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _changes import changes_for
from _common import machine, write_result
from _executions import OUTSIDE, executions, reference, to_faces, within_rounding
from torch import Tensor

from expunge.core.hashing import hash_json
from expunge.core.seeds import derive, numpy_generator
from expunge.core.split import Ids
from expunge.core.trained import Trained
from expunge.data import Batches, Records, load_records, select_forget
from expunge.data.splitting import load_or_make_split
from expunge.evaluation.scores.accuracy import wilson
from expunge.experiments.config.plan import Cell, load_plan
from expunge.methods import Context, get_method
from expunge.models.architecture import architecture
from expunge.patches.model.patched_model import PatchedModel
from expunge.patches.network.regions import compute_patterns, measure_regions, pack
from expunge.patches.trained_state import from_state
from expunge.training.recipes import recipe
from expunge.training.runtime import Runtime
from expunge.training.train import train

PLANS = Path(__file__).parents[1] / "plans"
SETTINGS = ("patches-location30", "patches-adult", "patches-fashion-mlp", "patches-fashion-lenet5")
FORGET, METHOD = "100 records", "exact, constant"
#: Records whose regions are measured, as in the score `Point only`; training records tried in other executions;
#: faces tried a forgotten record; resamples of the bootstrap.
REGIONS, TRAINING, FACES, RESAMPLES = 50, 500, 5, 2000


def cells_of(plan: str) -> dict[int, tuple[Cell, Cell]]:
    """By seed: the cell of the patched model, and that of its retrained reference."""
    loaded = load_plan(PLANS / f"{plan}.yaml", ("runtime.device=cpu",))
    found = {}
    for cell in loaded.cells:
        if cell.labels["forget"] == FORGET and cell.labels["method"] == METHOD:
            found[cell.config.seed] = (cell, loaded.cells[cell.reference])
    return found


def inputs(records: Records, ids: Ids) -> tuple[Tensor, Tensor]:
    """Inputs and labels as the model sees them, in the order of the source."""
    parts = list(Batches(records, np.sort(records.rows(ids)), batch_size=1024).in_order())
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]).long()


def answers(model: torch.nn.Module, x: Tensor) -> Tensor:
    """Classes that a model answers."""
    with torch.no_grad():
        return torch.cat([torch.zeros(0, dtype=torch.int64), *(model(part).argmax(1) for part in x.split(256))])


def mean_and_interval(values: np.ndarray, seed: int) -> dict[str, Any]:
    """Mean of one number a record, in %, with a percentile bootstrap over records."""
    draws = numpy_generator(seed, "bootstrap").integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return {
        name: round(100 * float(value), 4) for name, value in (("percent", values.mean()), ("low", low), ("high", high))
    }


def fraction(count: int, total: int) -> dict[str, Any]:
    """A fraction in %, with Wilson's interval."""
    if not total:
        return {"count": 0, "of": 0}
    interval = wilson(count, total)
    percent = round(100 * count / total, 4)
    return {
        "count": count, "of": total, "percent": percent, "low": round(interval.low, 4), "high": round(interval.high, 4)
    }  # fmt: skip


def trained_models(records: Records, cell: Cell, reference_cell: Cell) -> tuple[Trained, Trained, Trained]:
    """The base, the patched and the retrained model of a seed, as the stages of the plan make them."""
    config = cell.config
    split = load_or_make_split(records, config.split.model_dump(mode="json"))
    runtime = Runtime(**config.runtime.model_dump(mode="json"))
    assert config.forget is not None
    assert config.method is not None
    assert reference_cell.config.method is not None
    request = select_forget(records, split, config.forget.model_dump(mode="json"))
    model = config.model
    blueprint = architecture(model.name, records, split, normalise=model.normalise, **model.options)
    training = config.training.model_dump(mode="json")
    learned = recipe(training.pop("recipe"), **training)
    base = train(records, split, blueprint, recipe=learned, seed=config.seed, runtime=runtime)
    context = Context(records=records, runtime=runtime, seed=derive(config.seed, "forget"))
    patched, retrained = (
        get_method(method.name, **method.options).forget(base, request, context).trained
        for method in (config.method, reference_cell.config.method)
    )
    return base, patched, retrained


class Seed:
    """One seed of a setting: its models, and what is measured on them."""

    def __init__(self, records: Records, cell: Cell, reference_cell: Cell) -> None:
        self.seed = cell.config.seed
        self.base, self.patched, self.retrained = trained_models(records, cell, reference_cell)
        model = self.patched.model
        assert isinstance(model, PatchedModel)
        self.model, self.network = model, model.current_network()
        self.patches, _, self.box = from_state(model, self.patched.state["patches"])
        split = self.patched.split
        self.training = inputs(records, np.concatenate([split.retain, split.forget]))
        self.retained, self.test = inputs(records, split.retain)[0], inputs(records, split.test)[0]
        points, labels = inputs(records, split.forget)
        self.known = (answers(model.module, points) == labels) & (answers(model, points) != labels)
        self.points, self.labels = points, labels
        self.changes = changes_for(cell.config.data.source, records, self.training[0])

    def changed(self) -> dict[str, dict[str, np.ndarray]]:
        """By kind of change and model, the fraction of each forgotten record's changes that keep its label; NaN where
        the record was not flipped. `gate`: the fraction that open a gate."""
        found = {}
        for kind, change in self.changes.items():
            rows = {name: np.full(len(self.points), np.nan) for name in ("patched", "base", "retrained", "gate")}
            for i in torch.nonzero(self.known)[:, 0].tolist():
                x = change(self.points[i], numpy_generator(0, "changes", kind, i))
                if not bool(self.box.contains(x).all()):
                    raise SystemExit(f"a change of record {i} leaves the input box")
                for name, model in (
                    ("patched", self.model), ("base", self.model.module), ("retrained", self.retrained.model)
                ):  # fmt: skip
                    rows[name][i] = float((answers(model, x) == self.labels[i]).double().mean())
                rows["gate"][i] = float(self.model.opens_gate(x).double().mean())
            found[kind] = rows
        return found

    def sharing(self) -> dict[str, Any]:
        """Training records whose pattern another one has; other records that open a gate."""
        x = self.training[0]
        keys = pack(compute_patterns(self.network, x)[1])
        _, group, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
        others = counts[group.reshape(-1)] - 1
        _, same, copies = np.unique(x.flatten(1).numpy(), axis=0, return_inverse=True, return_counts=True)
        return {
            "shared": int((others > 0).sum()), "records": len(x), "distinct_patterns": len(counts),
            "others_of_those": float(others[others > 0].mean()) if (others > 0).any() else 0.0,
            "others_of_all": float(others.mean()), "others_most": int(others.max()),
            "equal_inputs": int((copies[same.reshape(-1)] > 1).sum()),
            "gates_retained": int(self.model.opens_gate(self.retained).sum()), "retained": len(self.retained),
            "gates_test": int(self.model.opens_gate(self.test).sum()), "test": len(self.test),
        }  # fmt: skip

    def regions(self) -> list[dict[str, Any]]:
        """Sizes of the first forgotten records' regions."""
        return [size.to_json() for size in measure_regions(self.network, self.points[self.known][:REGIONS], self.box)]

    def executed(self) -> dict[str, Any]:
        """By population of points: how many are near a face, and what other executions make of them."""
        points, everyone = self.points[self.known], self.training[0]
        draws = numpy_generator(self.seed, "executions")
        some = everyone[draws.choice(len(everyone), min(TRAINING, len(everyone)), replace=False)]
        others = everyone[draws.integers(0, len(everyone), FACES * len(points))]
        faces, leaves = to_faces(self.network, points.repeat_interleave(FACES, 0), others)
        populations = {"forgotten": points, "training": some, "faces": faces}
        ways, missing = executions(self.network)
        stored = {key: i for i, key in enumerate(self.patches.keys())}
        found: dict[str, Any] = {"skipped": missing, "bits": self.network.atoms}
        for name, x in populations.items():
            bits = reference(self.network, x)
            gate = [stored.get(row.tobytes(), -1) for row in pack(bits)]
            kept = leaves if name == "faces" else torch.ones(len(x), dtype=torch.bool)
            near = within_rounding(self.network, x, bits) & kept
            rows = {}
            anywhere = torch.zeros(len(x), dtype=torch.bool)
            for way, execute in ways.items():
                other = execute(x)
                apart = (other != bits).sum(1) * kept
                anywhere |= (apart > 0) & (way not in OUTSIDE)
                turned = torch.tensor(
                    [stored.get(row.tobytes(), -1) != own for row, own in zip(pack(other), gate, strict=True)]
                )
                rows[way] = {
                    "points": int((apart > 0).sum()), "bits": int(apart.sum()), "gates": int((turned & kept).sum()),
                    "near_points": int(((apart > 0) & near).sum()),
                }  # fmt: skip
            found[name] = {
                "points": int(kept.sum()), "near": int(near.sum()), "any": int(anywhere.sum()),
                "near_any": int((anywhere & near).sum()), "executions": rows,
            }  # fmt: skip
        return found


def measure(plan: str) -> dict[str, Any]:
    """All seeds of a plan, put together."""
    start, cpu = time.perf_counter(), time.process_time()
    cells = cells_of(plan)
    config = next(iter(cells.values()))[0].config
    records = load_records(config.data.source, data_dir=config.data.dir, **config.data.options)
    changes: dict[str, dict[str, list[np.ndarray]]] = {}
    sharing, sizes, executed, points = [], [], [], []
    for seed, (cell, reference_cell) in cells.items():
        one = Seed(records, cell, reference_cell)
        print(f"{plan}, seed {seed}: models after {time.perf_counter() - start:.0f} s", flush=True)
        for kind, rows in one.changed().items():
            for name, values in rows.items():
                changes.setdefault(kind, {}).setdefault(name, []).append(values)
        sharing.append(one.sharing())
        sizes.append(one.regions())
        executed.append(one.executed())
        points.append({"forgotten": len(one.points), "flipped": int(one.known.sum())})
        print(f"{plan}, seed {seed}: done after {time.perf_counter() - start:.0f} s", flush=True)
    return {
        "key": key_of(plan),
        "seeds": list(cells),
        "points": points,
        "changes": {kind: _changes_summary(rows) for kind, rows in changes.items()},
        "sharing": _sharing_summary(sharing),
        "regions": _regions_summary(sizes),
        "executions": _executions_summary(executed),
        "machine": machine(),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }


def _changes_summary(rows: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Means over records and seeds of the fractions that keep the old label, in %."""
    table = {name: np.stack(values) for name, values in rows.items()}  # seeds x records
    kept = ~np.isnan(table["patched"]).all(0)
    found: dict[str, Any] = {"records": int(kept.sum())}
    for name, values in table.items():
        found[name] = mean_and_interval(np.nanmean(values[:, kept], axis=0), 0)
        found[name]["by_seed"] = [round(100 * float(np.nanmean(row)), 4) for row in values]
    return found


def _sharing_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds; `others_of_those`: how many others share the pattern of a record that shares it."""
    shared = sum(row["shared"] for row in rows)
    others = sum(row["shared"] * row["others_of_those"] for row in rows)
    return {
        "percent_shared": 100 * float(np.mean([row["shared"] / row["records"] for row in rows])),
        "others_of_those": others / shared if shared else None,
        "others_of_all": float(np.mean([row["others_of_all"] for row in rows])),
        "by_seed": rows,
    }


def _regions_summary(sizes: list[list[dict[str, Any]]]) -> dict[str, Any]:
    flat = [size for some in sizes for size in some]
    radii = [size["radius"] for size in flat if size["radius"] is not None and np.isfinite(size["radius"])]
    flips = [size["flips"] for size in flat if size["flips"] is not None]
    return {
        "point_only": fraction(sum(size["point_only"] for size in flat), len(flat)),
        "radius_quartiles": np.quantile(radii, [0.25, 0.5, 0.75]).tolist() if radii else None,
        "radii": len(radii),
        "radius_zero": sum(radius == 0 for radius in radii),
        "percent_nearby": 100 * float(np.mean([size["nearby"] for size in flat])),
        "percent_flips": 100 * float(np.mean(flips)) if flips else None,
        "reach": flat[0]["reach"],
    }


def _executions_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over seeds. `any_float32`: other bits in at least one other execution that the certificates cover."""
    found: dict[str, Any] = {"skipped": rows[0]["skipped"], "bits_a_point": rows[0]["bits"]}
    for name in ("forgotten", "training", "faces"):
        parts = [row[name] for row in rows]
        points, near = (sum(part[key] for part in parts) for key in ("points", "near"))
        ways = {}
        for way in parts[0]["executions"]:
            total = {k: sum(part["executions"][way][k] for part in parts) for k in parts[0]["executions"][way]}
            ways[way] = {
                **fraction(total["points"], points), "other_bits": total["bits"], "other_gates": total["gates"],
                "near_a_face": total["near_points"],
            }  # fmt: skip
        found[name] = {
            "points": points,
            "near_a_face": fraction(near, points),
            "any_float32": fraction(sum(part["any"] for part in parts), points),
            "any_float32_near_a_face": fraction(sum(part["near_any"] for part in parts), near),
            "points_with_other_bits": ways,
        }
    return found


def key_of(plan: str) -> str:
    """Hash of all that decides a setting's numbers, but the code."""
    bodies = [cell.config.model_dump(mode="json", exclude={"data": {"dir"}}) for cell, _ in cells_of(plan).values()]
    return hash_json({"cells": bodies, "torch": torch.__version__, "counts": [REGIONS, TRAINING, FACES, RESAMPLES]})


def versions() -> dict[str, str | None]:
    """Versions of the packages behind the executions; None where one is not installed."""
    import importlib.metadata

    found: dict[str, str | None] = {}
    for name in ("numpy", "onnx", "onnxruntime", "onnxscript"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    """Measure what is missing, write the result after every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--again", action="store_true", help="measure settings that are in the result file again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(__file__).parent / "results" / "patch_limits.json"
    held: dict[str, Any] = json.loads(path.read_text())["settings"] if path.exists() else {}
    for plan in options.settings:
        if not options.again and plan in held and held[plan]["key"] == key_of(plan):
            print(f"{plan}: in the result file", flush=True)
            continue
        held[plan] = {**measure(plan), "versions": versions()}
        body = {"forget": FORGET, "method": METHOD, "settings": {name: held[name] for name in SETTINGS if name in held}}
        write_result("patch_limits", {**body, "load_average": os.getloadavg()[0]})


if __name__ == "__main__":
    main()
