"""Mutated files for every reader: `python tests/helpers/reader_fuzz.py --count 2000` runs all of them.

Each reader gets whole files, of which one is mutated: bytes flipped, cut, doubled, put in; numbers made huge; and, in
formats with lengths and checksums, what is inside them. A case is good where the reader returns or raises an
`expunge.core.errors` class, within 10 s. The process runs under a memory cap that it declares. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz_mutations import Mutate, flip, inside_gzip, inside_npz, inside_tensors, text

#: Seconds that one file may take; bytes that a file may expand to; bytes that the process may grow by (declared cap).
SECONDS, READ, CAP = 10, 256 * 2**20, 1536 * 2**20


class Reader:
    """A reader with the files that it reads.

    Args:
        files: whole files, by name, and how each is mutated.
        read: reads them in a directory.
    """

    def __init__(self, files: dict[str, tuple[bytes, Mutate | None]], read: Callable[[Path], object]) -> None:
        self.files, self.read = files, read

    def case(self, at: Path, rng: random.Random) -> None:
        chosen = rng.choice([name for name, (_, mutate) in self.files.items() if mutate])
        for name, (data, mutate) in self.files.items():
            path = at / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(mutate(data, rng) if mutate and name == chosen else data)


CONFIG = """\
data: {source: digits, dir: null, options: {}}
split: {seed: 0, validation: 0.1, non_members: 0.1, test: 0.2, stratify: true}
model:
  name: mlp
  options: &o {widths: [64, 32], batch_norm: false}
training: {recipe: quick, epochs: 3, learning_rate: 1e-2}
sparsity: {sparsity: 0.9, layers: [linear], options: {}}
forget: {by: random, fraction: 0.05, seed: 1}
method: {name: Retrain}
seed: 3
"""
PLAN = (
    "name: fuzz\nbase:\n" + "".join(f"  {line}\n" for line in CONFIG.splitlines()) + "grid:\n  seed: [0, 1, 2]\n"
    "  sparsity.sparsity: [0.5, 0.9]\n"
    "variants:\n  method:\n    Retrain: {method: {name: Retrain}}\n    FT: {method: {name: FT}}\n"
    "adjust:\n  - when: {seed: 1}\n    set: {training.epochs: 4}\n"
    "claims:\n  - {name: a, statement: b, score: UA, compare: [{method: FT}, {method: Retrain}], expect: lower}\n"
)
TABLE = "who,age,colour,ok,label\n" + "".join(
    f"p{i},{i / 3},{'red' if i % 2 else 'blue'},{i % 2},{i % 3}\n" for i in range(30)
)


def npz_bytes(**arrays: Any) -> bytes:
    import numpy as np

    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def directory_bytes(save: Callable[[Path], object]) -> dict[str, bytes]:
    """The files that `save` writes."""
    with tempfile.TemporaryDirectory() as name:
        at = Path(name) / "made"
        save(at)
        found = [at] if at.is_file() else sorted(p for p in at.rglob("*") if p.is_file())
        return {str(path.relative_to(at.parent)): path.read_bytes() for path in found}


def trained_files() -> dict[str, bytes]:
    import numpy as np
    import torch

    from expunge.core.mask import Mask, MaskProvenance
    from expunge.core.split import Split
    from expunge.core.trained import Provenance, Trained
    from expunge.models import Architecture, save_trained

    blueprint = Architecture("mlp", {"widths": [6]}, (4,), 3)
    model = blueprint.build(0).eval()
    weight = model.hidden[0].weight  # type: ignore[union-attr,index]
    alive = torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0  # type: ignore[union-attr,operator]
    mask = Mask({"hidden.0.weight": alive}, MaskProvenance("magnitude", layers=("linear",)))
    mask.apply_(model)
    split = Split(*(np.asarray([f"{part}{i}" for i in range(5)]) for part in "rfvtu"), origin={"seed": 0})
    trained = Trained(model, mask, split, Provenance(blueprint.to_json(), seeds={"initial": 0}))
    return directory_bytes(lambda at: save_trained(trained, at))


def readers() -> Iterator[tuple[str, Reader]]:
    """Every reader by name."""
    import numpy as np
    from PIL import Image

    from expunge.core.files import read_tensors
    from expunge.core.mask import Mask
    from expunge.core.split import Split
    from expunge.data import load_records, read_ids
    from expunge.experiments.config.plan import load_plan
    from expunge.experiments.config.run_config import load_config
    from expunge.models import load_trained
    from expunge.sparsity.compression.small_model import load_small_model

    rng = np.random.default_rng(0)
    yield "yaml (configuration)", Reader({"a.yaml": (CONFIG.encode(), text)}, lambda at: load_config(at / "a.yaml"))
    yield "yaml (plan)", Reader({"a.yaml": (PLAN.encode(), text)}, lambda at: load_plan(at / "a.yaml"))

    model = trained_files()
    jsons = {name: (data, text if name.endswith("trained.json") else None) for name, data in model.items()}
    yield "json (trained.json)", Reader(jsons, lambda at: load_trained(at / "made"))
    split = {"made/split.json": (model["made/split.json"], text)}
    yield "json (split)", Reader(split, lambda at: Split.load(at / "made/split.json"))

    arrays = {"features": rng.random((20, 3), dtype=np.float32), "labels": np.arange(20) % 3}
    more = {"ids": np.asarray([f"r{i}" for i in range(20)]), "names": np.asarray(["a", "b", "c"])}
    options = {"path": "a.npz", "ids": "ids", "class_names": "names"}
    yield (
        "npz",
        Reader(
            {"a.npz": (npz_bytes(**arrays, **more), inside_npz)}, lambda at: load_records("npz", data_dir=at, **options)
        ),
    )
    yield (
        "npz (without ids)",
        Reader({"a.npz": (npz_bytes(**arrays), inside_npz)}, lambda at: load_records("npz", data_dir=at, path="a.npz")),
    )
    windows = {"halves": rng.random((8, 576), dtype=np.float32), "class_names": np.asarray(["a", "b"])}
    for part in ("train", "test"):
        windows[f"{part}_idx"] = np.asarray([[0, 1], [2, 3], [4, 5]])
        windows[f"{part}_labels"], windows[f"{part}_subject"] = np.asarray([0, 1, 0]), np.asarray([1, 1, 2])
    yield (
        "npz (har)",
        Reader({"har.npz": (npz_bytes(**windows), inside_npz)}, lambda at: load_records("har", data_dir=at)),
    )
    census = {
        "num_columns": np.asarray(["age"]),
        "cat_columns": np.asarray(["sex"]),
        "names_sex": np.asarray(["f", "m"]),
    }
    for part in ("train", "test"):
        census[f"{part}_num"] = rng.random((4, 1), dtype=np.float32)
        census[f"{part}_cat"], census[f"{part}_labels"] = np.asarray([[0], [1], [1], [0]]), np.asarray([0, 1, 1, 0])
    yield (
        "npz (adult)",
        Reader({"adult.npz": (npz_bytes(**census), inside_npz)}, lambda at: load_records("adult", data_dir=at)),
    )

    roles = {"id": "who", "numeric": ["age"], "categorical": ["colour"], "boolean": ["ok"], "label": "label"}
    yield (
        "csv (table)",
        Reader({"a.csv": (TABLE.encode(), text)}, lambda at: load_records("table", data_dir=at, path="a.csv", **roles)),
    )
    ids = {"a.csv": (b"record_id,why\n" + b"".join(b"r%d,x\n" % i for i in range(9)), text)}
    yield "csv (record ids)", Reader(ids, lambda at: read_ids(at / "a.csv"))

    images = struct.pack(">HBB3I", 0, 8, 3, 12, 5, 5) + bytes(rng.integers(0, 256, 300, dtype=np.uint8))
    labels = struct.pack(">HBBI", 0, 8, 1, 12) + bytes(i % 3 for i in range(12))
    plain = {f"{p}-images-idx3-ubyte": (images, flip) for p in ("train", "t10k")}
    plain |= {f"{p}-labels-idx1-ubyte": (labels, flip) for p in ("train", "t10k")}
    yield "idx", Reader(plain, lambda at: load_records("idx", data_dir=at))
    packed: dict[str, tuple[bytes, Mutate | None]] = {
        f"{n}.gz": (gzip.compress(d), inside_gzip) for n, (d, _) in plain.items()
    }
    yield "idx (gzip)", Reader(packed, lambda at: load_records("idx", data_dir=at))

    batch = b"".join(bytes([i % 10]) + bytes(rng.integers(0, 256, 3072, dtype=np.uint8)) for i in range(3))
    cifar: dict[str, tuple[bytes, Mutate | None]] = {f"data_batch_{i}.bin": (batch, flip) for i in range(1, 6)}
    cifar |= {"test_batch.bin": (batch, flip), "batches.meta.txt": (b"\n".join(b"c%d" % i for i in range(10)), text)}
    yield "cifar binary", Reader(cifar, lambda at: load_records("cifar10-binary", data_dir=at))

    sheet = io.BytesIO()
    small = np.kron(rng.integers(0, 256, (7, 700), dtype=np.uint8), np.ones((4, 4), np.uint8))
    Image.fromarray(small).convert("RGB").save(sheet, "WEBP", lossless=True)
    mosaic: dict[str, tuple[bytes, Mutate | None]] = {
        f"{part}-0.webp": (sheet.getvalue(), flip) for part in ("train", "test")
    }
    answers = {"train_labels": np.arange(100) % 10, "test_labels": np.arange(100) % 10}
    mosaic["labels.npz"] = (npz_bytes(**answers, class_names=np.asarray(list("0123456789"))), inside_npz)
    yield "webp mosaic", Reader(mosaic, lambda at: load_records("mnist", data_dir=at))

    tensors = {n: (d, inside_tensors if n.endswith("model.safetensors") else None) for n, d in model.items()}
    yield "safetensors (model)", Reader(tensors, lambda at: load_trained(at / "made"))
    masks = {"made/mask.safetensors": (model["made/mask.safetensors"], inside_tensors)}
    yield "safetensors (mask)", Reader(masks, lambda at: Mask.load(at / "made/mask.safetensors"))
    yield "safetensors (tensors)", Reader(masks, lambda at: read_tensors(at / "made/mask.safetensors"))
    cut = {"made": (small_network(), inside_tensors)}
    yield "safetensors (smaller network)", Reader(cut, lambda at: load_small_model(at / "made"))


def small_network() -> bytes:
    """A file of `save_small_model`."""
    import numpy as np
    import torch

    from expunge.core.mask import Mask, MaskProvenance
    from expunge.core.split import Split
    from expunge.core.trained import Provenance, Trained
    from expunge.models import Architecture
    from expunge.sparsity.compression.shrink import shrink
    from expunge.sparsity.compression.small_model import save_small_model

    blueprint = Architecture("mlp", {"widths": [6]}, (4,), 3)
    model = blueprint.build(0).eval()
    alive = torch.ones(6, 4, dtype=torch.bool)
    alive[2:4] = False
    rows = {"hidden.0.weight": alive, "hidden.0.bias": alive[:, 0].clone()}
    mask = Mask(rows, MaskProvenance("magnitude", layers=("linear",), granularity="filter"))
    mask.apply_(model)
    split = Split(*(np.asarray([f"{part}{i}"]) for part in "rfvtu" for i in (0,)), origin={})
    trained = Trained(model, mask, split, Provenance(blueprint.to_json(), seeds={"initial": 0}))
    return next(iter(directory_bytes(lambda at: save_small_model(shrink(model, mask, (4,)), trained, at)).values()))


class Hang(BaseException):
    """A reader took longer than `SECONDS`."""


def _stop(*_: object) -> None:
    raise Hang


def run(name: str, reader: Reader, count: int, seed: int) -> dict[str, Any]:
    """Read `count` mutated files.

    Returns:
        How often each outcome was, the slowest case in seconds, and the cases that broke the promise.
    """
    from expunge.core.errors import ExpungeError

    outcomes: Counter[str] = Counter()
    bad, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as directory:
        at = Path(directory)
        reader.case(at, random.Random(0))
        for path, (data, _) in reader.files.items():
            (at / path).write_bytes(data)
        reader.read(at)  # the whole files are read, else the cases say nothing
        for number in range(count):
            reader.case(at, random.Random(f"{name}/{seed}/{number}"))
            start = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor: the machine may be busy
            signal.alarm(6 * SECONDS)  # for what waits
            try:
                reader.read(at)
                outcome = "read"
            except ExpungeError as error:
                outcome = type(error).__name__
                if len(str(error)) > 7000:
                    bad.append(f"case {number}: a message of {len(str(error))} characters")
            except BaseException as error:
                outcome = "BROKEN"
                bad.append(f"case {number}: {''.join(traceback.format_exception(error)[-3:])[-900:]}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
            slowest = max(slowest, time.process_time() - start)
            outcomes[outcome] += 1
    return {"outcomes": dict(outcomes), "slowest": round(slowest, 2), "bad": bad}


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="mutated files for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name holds this")
    options = parser.parse_args()
    os.environ["EXPUNGE_MAX_BYTES"] = str(READ)
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _stop)
    chosen = [(name, reader) for name, reader in readers() if options.only in name]
    for _, reader in chosen:  # what is imported on first use is no growth
        with tempfile.TemporaryDirectory() as directory:
            for path, (data, _) in reader.files.items():
                (Path(directory) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(directory) / path).write_bytes(data)
            reader.read(Path(directory))
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + CAP, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {}
    for name, reader in chosen:
        found[name] = run(name, reader, options.count, options.seed)
        sys.stderr.write(f"{name} {found[name]['outcomes']} slowest {found[name]['slowest']} s\n")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    sys.stdout.write(json.dumps({"readers": found, "grown": grown, "cap": CAP}) + "\n")
    return int(any(result["bad"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
