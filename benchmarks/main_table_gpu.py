"""The main table of [Jia2023] on a GPU: plans/pending/main-table-gpu.yaml, where files and time come in parts.

    python benchmarks/main_table_gpu.py pack --data data --parts build/parts       # where the data are
    python benchmarks/main_table_gpu.py join --parts build/parts --data build/data  # there, after each part
    python benchmarks/main_table_gpu.py run --data build/data --store build/store --output results --minutes 9

`pack` writes the files of CIFAR-10 in parts of at most 40 MiB, each in a folder of its own, for machines that take only
so much at once. `join` keeps the parts that have come, and writes the files once all are there; each must have the
SHA-256 that it was packed with. `run` is `run_plan` of the plan with one seed, then with two, then with three, on one
store: after each the plan as run and its result file, with the name of the card, are written to the output. It stops
after `--minutes`; completed stages and the training in progress are kept in the store, and the same command goes on.
When all seeds are there, plan and result file go to plans.

What follows the options overrides keys of all cells, to try it without a GPU (the result is then not the study's):

    python benchmarks/main_table_gpu.py run --data data --store /tmp/store --output /tmp/results --seeds 1 \\
        runtime.device=cpu split.limit=200 model.name=small-cnn training.epochs=2
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from expunge.core.errors import Interrupted
from expunge.experiments import PlanBar, load_plan, run_plan

PLANS = Path(__file__).resolve().parents[1] / "plans"
NAME = "main-table-gpu"
FOLDER = "cifar10"
MANIFEST = "manifest.json"


def pack(data: Path, parts: Path, mebibytes: int) -> int:
    """Write the files of the folder `cifar10` as one stream, cut into parts; each part has the list of the files.

    Returns:
        The number of parts.
    """
    paths = sorted(path for path in (data / FOLDER).iterdir() if path.is_file())
    if not paths:
        raise SystemExit(f"{data / FOLDER}: no files")
    files = [{"name": p.name, "bytes": p.stat().st_size, "sha256": _hash(p)} for p in paths]
    stream, size = b"".join(path.read_bytes() for path in paths), mebibytes * 2**20
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    for index, piece in enumerate(pieces):
        folder = parts / str(index)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "piece").write_bytes(piece)
        manifest = {"parts": len(pieces), "sha256": hashlib.sha256(piece).hexdigest(), "files": files}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return len(pieces)


def join(parts: Path, data: Path) -> list[int]:
    """Keep the parts that are there in `data`, and write the files once all are.

    Returns:
        The parts that are still missing.

    Raises:
        SystemExit: a part, or a file, is not what was packed.
    """
    kept = data / "parts"
    for folder in sorted(parts.iterdir()) if parts.is_dir() else []:
        manifest = json.loads((folder / MANIFEST).read_text())
        if _hash(folder / "piece") != manifest["sha256"]:
            raise SystemExit(f"{folder / 'piece'}: not what was packed; copy it again")
        (kept / folder.name).mkdir(parents=True, exist_ok=True)
        for name in ("piece", MANIFEST):
            shutil.copyfile(folder / name, kept / folder.name / name)
    manifests = {int(path.parent.name): json.loads(path.read_text()) for path in kept.glob(f"*/{MANIFEST}")}
    if not manifests:
        raise SystemExit(f"{parts}: no parts")
    first = next(iter(manifests.values()))
    if any((one["parts"], one["files"]) != (first["parts"], first["files"]) for one in manifests.values()):
        raise SystemExit(f"{kept}: parts of different packs; remove the folder")
    missing = [index for index in range(first["parts"]) if index not in manifests]
    if missing:
        return missing
    stream, start = b"".join((kept / str(index) / "piece").read_bytes() for index in range(first["parts"])), 0
    (data / FOLDER).mkdir(exist_ok=True)
    for file in first["files"]:
        path = data / FOLDER / Path(file["name"]).name
        path.write_bytes(stream[start : start + file["bytes"]])
        start += file["bytes"]
        if _hash(path) != file["sha256"]:
            path.unlink()
            raise SystemExit(f"{path}: not what was packed; pack again")
    return []


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_plan() -> Path:
    """The plan, which is in plans/pending until its results are committed."""
    run = PLANS / f"{NAME}.yaml"
    return run if run.is_file() else PLANS / "pending" / f"{NAME}.yaml"


def run(
    plan_path: Path, data: Path, store: Path, output: Path, seeds: int, minutes: float, overrides: Sequence[str]
) -> int:
    """Run the plan with one seed, with two, ..., until the time is over; write plan and results of each to `output`.

    Returns:
        The number of seeds that are finished.
    """
    output.mkdir(parents=True, exist_ok=True)
    text = plan_path.read_text(encoding="utf-8")
    listed = yaml.safe_load(text)["grid"]["seed"]
    for count in range(1, min(seeds, len(listed)) + 1):
        path = output / f"{NAME}.yaml" if count == len(listed) else output / f"{NAME}-{count}.yaml"
        path.write_text(text.replace(f"seed: {listed}", f"seed: {listed[:count]}"), encoding="utf-8")
        plan = load_plan(path, [f"data.dir={data}", *overrides])
        clock = Clock(60 * minutes)
        try:
            with clock, PlanBar(plan.name) as bar:
                found = run_plan(plan, store=store, reporter=bar)
        except (Interrupted, KeyboardInterrupt) as error:
            path.unlink()
            if not clock.is_over:
                raise  # Ctrl-C
            print(f"the time is over: {error or 'nothing was run'}", flush=True)
            return count - 1
        minutes = clock.left / 60
        print(f"{count} seeds: {found.computed} of {found.total} stages computed; {found.path}", flush=True)
        for label, message in found.failures:
            print(f"failed: {label}: {message}", flush=True)
        if found.failures:
            return count - 1
    return min(seeds, len(listed))


class Clock:
    """Stops the block like Ctrl-C after so many seconds. `left`: seconds left at its end; `is_over`: it was stopped."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.left, self.is_over = max(seconds, 1e-3), 0.0, False

    def __enter__(self) -> Clock:
        self.before = signal.signal(signal.SIGALRM, self._stop)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        return self

    def __exit__(self, *error: object) -> None:
        self.left = signal.setitimer(signal.ITIMER_REAL, 0)[0]
        signal.signal(signal.SIGALRM, self.before)

    def _stop(self, signum: int, frame: object) -> None:
        self.is_over = True
        raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack, join or run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("pack", "join", "run"):
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, required=True, help="the directory of the data sets")
        if name != "run":
            command.add_argument("--parts", type=Path, required=True, help="the folder of the parts")
        if name == "pack":
            command.add_argument("--mebibytes", type=int, default=40, help="the size of a part, at most")
        if name == "run":
            command.add_argument("--store", type=Path, required=True, help="finished stages; keep it between calls")
            command.add_argument("--output", type=Path, required=True, help="where plan and results go")
            command.add_argument("--seeds", type=int, default=3)
            command.add_argument("--minutes", type=float, default=9.0)
            command.add_argument("overrides", nargs="*", metavar="key=value", help="set in every cell")
    given = parser.parse_args(arguments)
    if given.command == "pack":
        print(f"{pack(given.data, given.parts, given.mebibytes)} parts in {given.parts}")
    elif given.command == "join":
        missing = join(given.parts, given.data)
        print(f"parts still missing: {missing}" if missing else f"all files are in {given.data / FOLDER}")
    else:
        done = run(find_plan(), given.data, given.store, given.output, given.seeds, given.minutes, given.overrides)
        sys.exit(0 if done >= given.seeds else 3)


if __name__ == "__main__":
    main()
