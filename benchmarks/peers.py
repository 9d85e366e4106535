"""expunge against the released code that a user would pick instead: seconds and peak memory of the same work.

    python benchmarks/peers.py --unlearn-sparse DIR --torchunlearn DIR [--tasks ...] [--rounds 5] [--records 1024]

DIR are a checkout of OPTML-Group/Unlearn-Sparse (the code of [Jia2023]) and the folder `torchunlearn` of the released
wheel; nothing of them is part of this repository. benchmarks/results/peers.json gets each work as soon as it is
measured, beside earlier ones of the same number of records; with another number it is replaced at the end, if all works
were measured. What is absent is skipped and named in the result, which then needs a file of its own (`--result FILE`).
`--quick` takes 64 records and one round, and writes only a file that was named. Every program
runs in one process with one thread, on the same network (ResNet-20), the same records (of CIFAR-10 if
EXPUNGE_DATA has it, else random images of its shape) and batches of 128, once a round, in turn. The work:

- FT: one epoch over D_r. GA: one epoch over D_f, an eighth of it. OMP: the mask of the 5 % largest weights of the
  convolutions, and its application. Legacy scores: predictions of D_r, D_f and as many test records, and the attack
  by a support vector machine.

expunge does more in the same time: it checks the request, copies the model, orders the records by their ids, hashes,
and records cost, provenance and what changed; and its attack reads one feature, where that of [Jia2023] fits five. The
peers get ready tensors, without the transforms that their own loaders apply. `.cuda()`, which they call on every batch,
does nothing here. Of their modules, those that read data or build other networks are replaced by empty ones.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import machine, ratio, write_result

BATCH = 128
SPARSITY = 0.95
RESULT = Path(__file__).parent / "results" / "peers.json"
TASKS = ("FT", "GA", "OMP", "legacy scores")


def write_records(path: Path, count: int) -> str:
    """Write `count` records of D_r, an eighth as many of D_f, and `count` test records; returns where they are from."""
    from expunge.core.errors import ExpungeError

    rng, forget = np.random.default_rng(0), count // 8
    need = 2 * count + forget
    try:
        from expunge.data import load_records

        records = load_records("cifar10")
        rows = rng.choice(len(records), need, replace=False)
        assert records.features is not None
        images, labels, source = records.features[rows], records.labels[rows], "CIFAR-10"
    except ExpungeError:
        images = rng.integers(0, 256, (need, 3, 32, 32), dtype=np.uint8)
        labels, source = rng.integers(0, 10, need), "random images"
    np.savez(path, images=images, labels=labels, forget=forget, retain=count)
    return source


def prepare_expunge(file: Any) -> dict[str, Callable[[], Any]]:
    import expunge
    from expunge.core.split import Split
    from expunge.data import Records, forget_ids

    images, labels, forget, retain = file["images"], file["labels"], int(file["forget"]), int(file["retain"])
    ids = np.array([f"{number:06d}" for number in range(len(images))])
    records = Records("images", ids, labels, tuple("0123456789"), images)
    nobody = ids[:0]
    split = Split(ids[: forget + retain], nobody, nobody, ids[forget + retain :], nobody)
    blueprint = expunge.architecture("resnet20", records, split)
    recipe = expunge.get_recipe("one-cycle", epochs=1, batch_size=BATCH)
    provenance = expunge.Provenance(blueprint.to_json(), recipe=recipe.to_json(), seeds={"initial": 0})
    trained = expunge.Trained(blueprint.build(0), None, split, provenance)
    context = expunge.Context(records, runtime=expunge.Runtime("cpu"))
    request = forget_ids(records, split, ids[:forget])
    options = {"epochs": 1, "learning_rate": 0.01, "batch_size": BATCH}
    methods = {name: expunge.get_method(name, **options) for name in ("FT", "GA")}
    pruning = expunge.Pruning(sparsity=SPARSITY, schedule="one-shot", layers=("conv",))
    return {
        "FT": lambda: methods["FT"].forget(trained, request, context),
        "GA": lambda: methods["GA"].forget(trained, request, context),
        "OMP": lambda: expunge.prune(trained, pruning, context),
        "legacy scores": lambda: expunge.evaluate(
            trained, request, records, runtime=context.runtime, svc_records="all"
        ),
    }


def load_torch(file: Any) -> Any:
    """The network as a plain module, and loaders of D_r, D_f and test records."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign, assignment, misc]
    import expunge
    from expunge.data import Records

    images, labels, forget, retain = file["images"], file["labels"], int(file["forget"]), int(file["retain"])
    ids = np.array([f"{number:06d}" for number in range(len(images))])
    records = Records("images", ids, labels, tuple("0123456789"), images)
    network = expunge.architecture("resnet20", records).build(0)
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)

    def loader(start: int, end: int, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(TensorDataset(x[start:end], y[start:end]), batch_size=BATCH, shuffle=shuffle)

    parts = {"forget": (0, forget), "retain": (forget, forget + retain), "test": (forget + retain, len(x))}
    return network, {name: loader(*part) for name, part in parts.items()}, loader, parts


def prepare_unlearn_sparse(file: Any, folder: str) -> dict[str, Callable[[], Any]]:
    import copy

    import torch

    network, loaders, loader, parts = load_torch(file)
    sys.path.insert(0, folder)

    def unused(*args: Any) -> None:
        raise AssertionError("not measured")

    for name, values in {
        "torchvision": {}, "torchvision.transforms": {}, "dataset": {"TinyImageNet": None}, "models": {},
        "imagenet": {"prepare_data": unused, "get_x_y_from_data_dict": unused},
    }.items():  # fmt: skip
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(values)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
    from evaluation.SVC_MIA import SVC_MIA  # type: ignore[import-not-found]
    from pruner import check_sparsity, extract_mask, pruning_model, remove_prune  # type: ignore[import-not-found]
    from unlearn.FT import FT  # type: ignore[import-not-found]
    from unlearn.GA import GA  # type: ignore[import-not-found]

    args = types.SimpleNamespace(
        decreasing_lr="91,136", rewind_epoch=0, unlearn_lr=0.01, momentum=0.9, weight_decay=5e-4, imagenet_arch=False,
        unlearn="FT", arch="resnet20s", unlearn_epochs=1, warmup=0, no_l1_epochs=0, alpha=0.2, print_freq=50,
    )  # fmt: skip
    criterion = torch.nn.CrossEntropyLoss()
    shuffled = {name: loader(*part, shuffle=True) for name, part in parts.items()}

    def prune() -> Any:
        model = copy.deepcopy(network)
        pruning_model(model, SPARSITY)
        mask = extract_mask(model.state_dict())
        remove_prune(model)
        return check_sparsity(model), mask

    return {
        "FT": lambda: FT(shuffled, copy.deepcopy(network), criterion, args),
        "GA": lambda: GA(shuffled, copy.deepcopy(network), criterion, args),
        "OMP": prune,
        "legacy scores": lambda: SVC_MIA(loaders["retain"], None, loaders["forget"], loaders["test"], network),
    }


def prepare_torchunlearn(file: Any, folder: str) -> dict[str, Callable[[], Any]]:
    """Its wheel 0.1.0 has no file of a method, so only its attack runs."""
    import torch

    network, loaders, _, _ = load_torch(file)
    spec = importlib.util.spec_from_file_location("peer_mia", Path(folder) / "utils" / "mia.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def attack() -> Any:
        network.eval()
        with torch.no_grad():
            logits = {
                name: (torch.cat([network(x) for x, _ in loaders[part]]), torch.cat([y for _, y in loaders[part]]))
                for name, part in (("(R)", "retain"), ("(Te)", "test"), ("(F)", "forget"))
            }
        return module.MIA_SVC(logits)

    return {"legacy scores": attack}


def serve(program: str, path: str, folder: str) -> None:
    """Do the work that each line of input names; print seconds of the clock and of the processor, and the peak memory.

    The first answer lists the work that the program has.
    """
    import torch

    from expunge.experiments.store.memory import PeakMemory

    torch.set_num_threads(1)
    file, printed = np.load(path), sys.stdout
    with contextlib.redirect_stdout(io.StringIO()):
        if program == "expunge":
            work = prepare_expunge(file)
        elif program == "Unlearn-Sparse":
            work = prepare_unlearn_sparse(file, folder)
        else:
            work = prepare_torchunlearn(file, folder)
        print(json.dumps(list(work)), file=printed, flush=True)
        for line in sys.stdin:
            with PeakMemory() as peak:
                start, cpu = time.perf_counter(), time.process_time()
                work[line.strip()]()
                found = [time.perf_counter() - start, time.process_time() - cpu]
            print(json.dumps([*found, peak.to_json()["resident"]]), file=printed, flush=True)


class Program:
    """A process that does one program's work."""

    def __init__(self, name: str, folder: str, path: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "_serve", name, str(path), folder]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=path.parent
        )

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: see above")
        return json.loads(line)

    def run(self, task: str) -> list[float]:
        """Seconds of the clock, of the processor, and peak resident bytes."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{task}\n")
        self.process.stdin.flush()
        return list(self.read())


def compare(task: str, programs: list[Program], rounds: int) -> dict[str, Any]:
    """Seconds and memory of each program, round by round in turn after one that loads libraries, and ratios."""
    found: dict[str, list[list[float]]] = {program.name: [] for program in programs}
    for turn in range(rounds + 1):
        for program in programs if turn % 2 == 0 else programs[::-1]:
            row = program.run(task)
            if turn:
                found[program.name].append(row)
    body: dict[str, Any] = {}
    for name, rows in found.items():
        body[name] = {
            "seconds": float(np.median([row[0] for row in rows])),
            "cpu_seconds": float(np.median([row[1] for row in rows])),
            "peak_memory_mib": max(row[2] for row in rows) / 2**20,
        }
        if name != "expunge":
            for place, key in ((0, "seconds_over_expunge"), (1, "cpu_seconds_over_expunge")):
                body[name][key] = ratio([row[place] for row in rows], [row[place] for row in found["expunge"]])
    print(json.dumps({task: body}), file=sys.stderr, flush=True)
    return body


def read_earlier(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The result in a file if it was measured with these settings; else an empty one."""
    found = json.loads(path.read_text()) if path.exists() else {}
    if any(found.get(key) != value for key, value in settings.items()):
        return {"work": {}, "rounds": {}}
    return {"work": found["work"], "rounds": found["rounds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unlearn-sparse", default="")
    parser.add_argument("--torchunlearn", default="")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--records", type=int)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--result", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds, count = (
        arguments.rounds or (1 if arguments.quick else 5),
        arguments.records or (64 if arguments.quick else 1024),
    )
    given = {"Unlearn-Sparse": arguments.unlearn_sparse, "torchunlearn": arguments.torchunlearn}
    folders = {"expunge": "", **{name: str(Path(folder).resolve()) for name, folder in given.items() if folder}}
    skipped = sorted(given.keys() - folders.keys())
    for name in skipped:
        print(f"skipped: no checkout of {name} was given", file=sys.stderr)
    target = arguments.result or (None if arguments.quick else RESULT)
    if target == RESULT and skipped:
        raise SystemExit(f"{RESULT.name} compares all programs: give their folders, or another file with --result")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "records.npz"
        source = write_records(path, count)
        settings = {
            "records": {"source": source, "retain": count, "forget": count // 8}, "network": "resnet20", "batch": BATCH,
        }  # fmt: skip
        found = read_earlier(target, settings) if target is not None else {"work": {}, "rounds": {}}
        replaces = target is not None and target.exists() and not found["work"]
        if replaces and set(arguments.tasks) != set(TASKS):
            raise SystemExit(f"{target} has other records: measure all works, or give another file with --result")
        programs = [Program(program, folder, path) for program, folder in folders.items()]
        has = {program.name: program.read() for program in programs}
        for task in arguments.tasks:
            found["work"][task] = compare(task, [one for one in programs if task in has[one.name]], rounds)
            found["rounds"][task] = rounds
            work = {each: found["work"][each] for each in TASKS if each in found["work"]}
            body = {
                "machine_of_the_programs": {**machine(), "threads": 1},
                **settings,
                "rounds": found["rounds"],
                "work": work,
                "skipped": skipped,
                "not_measured": [each for each in TASKS if each not in work],
            }
            if target is not None and not (replaces and body["not_measured"]):
                write_result("peers", body, target)
        for program in programs:
            program.process.communicate()


if __name__ == "__main__":
    if sys.argv[1:2] == ["_serve"]:
        serve(*sys.argv[2:5])
    else:
        main()
