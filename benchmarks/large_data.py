"""Large data: memory and time to index images and tables, and the rate at which images are streamed.

    python benchmarks/large_data.py images --folder DIR [--count 50000] [--workers 0]
    python benchmarks/large_data.py table --folder DIR [--rows 1000000]

`images` writes JPEG images (kept in DIR for the next run), indexes them in a fresh process, and reads one epoch through
`Batches` and through a bare `DataLoader` of a plain dataset (Pillow, then `torch.stack`) of the same images in the same
order, some of them in turn, so that both share the noise. `table` writes a Parquet file and adopts it in a fresh
process, in memory and streamed. Memory is the peak resident memory of that process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import peak_memory_mib, ratio, write_result
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from expunge.core.seeds import epoch_order
from expunge.data import Batches, Records, load_records
from expunge.data.reading.index_cache import use_index_directory

SEED = 0
CLASSES = 10
SIDE = 64
BATCH = 128
#: Images of one timed turn; the turns of an epoch alternate.
TURN = 1_000


def peak_mib() -> float:
    """Peak resident memory of this process, in MiB; `ru_maxrss` would include that of the process that started it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return peak_memory_mib()
    found = next((line for line in lines if line.startswith("VmHWM")), "")
    return int(found.split()[1]) / 1024 if found else peak_memory_mib()


def write_images(folder: Path, count: int) -> None:
    """Smooth random images, so that they decode like photographs and not like noise."""
    done = folder / "done.json"
    if done.exists() and json.loads(done.read_text()) == [count, SIDE, SEED]:
        return
    rng = np.random.default_rng(SEED)
    for number in range(count):
        place = folder / "images" / f"class{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(place / f"{number:06d}.jpg", quality=90)
    done.write_text(json.dumps([count, SIDE, SEED]))


class Plain(Dataset[tuple[torch.Tensor, int]]):
    """What a user writes: an image file becomes a tensor, and its folder the label."""

    def __init__(self, root: Path, paths: list[str], labels: list[int]) -> None:
        self.root, self.paths, self.labels = root, paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.root / self.paths[row]) as image:
            array = np.array(image.convert("RGB"))
        return torch.from_numpy(array).permute(2, 0, 1).float().div(255), self.labels[row]


def time_streams(records: Records, root: Path, workers: int) -> dict[str, Any]:
    """Seconds for all records, in turns of `TURN` records, of the two ways; and that both read the same."""
    order = epoch_order(records.keys, SEED, 0)
    plain = Plain(root, records.record_ids.tolist(), records.labels.tolist())
    seconds: dict[str, list[float]] = {"expunge": [], "bare": []}
    torch.set_num_threads(1)

    def run(name: str, rows: np.ndarray) -> tuple[float, float]:
        start, total = time.perf_counter(), 0.0
        if name == "expunge":
            batches = Batches(records, rows, batch_size=BATCH, workers=workers).in_order()
        else:
            sampler = [rows[at : at + BATCH].tolist() for at in range(0, len(rows), BATCH)]
            batches = iter(DataLoader(plain, batch_sampler=sampler, num_workers=workers))
        for x, y in batches:
            total += float(x[:, 0, 0, 0].double().sum()) + float(y.sum())
        return time.perf_counter() - start, total

    turn = TURN if workers == 0 else 10 * TURN  # processes start in each turn
    for number, at in enumerate(range(0, len(order), turn)):
        rows = order[at : at + turn]
        sums = {}
        for name in ("expunge", "bare") if number % 2 == 0 else ("bare", "expunge"):
            spent, sums[name] = run(name, rows)
            seconds[name].append(spent)
        assert abs(sums["expunge"] - sums["bare"]) < 1e-6 * abs(sums["bare"]), "the two ways read other values"
    total = {name: sum(values) for name, values in seconds.items()}
    return {
        "workers": workers,
        "seconds": total,
        "images_per_second": {name: len(order) / value for name, value in total.items()},
        "rate_of_expunge_to_bare": total["bare"] / total["expunge"],
        "turns": ratio(seconds["bare"], seconds["expunge"]),
    }


def measure(task: str, *arguments: str) -> dict[str, Any]:
    """Run one measurement in a fresh process."""
    command = [sys.executable, __file__, f"_{task}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def index(root: Path, kept: Path) -> None:
    start = peak_mib()
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        with use_index_directory(kept):
            records = load_records("folder", path=str(root))
            _ = records.hash
        seconds.append(time.perf_counter() - began)
    print(json.dumps({
        "records": len(records), "first_seconds": seconds[0], "again_seconds": seconds[1],
        "peak_mib": peak_mib(), "imports_mib": start,
    }))  # fmt: skip


def stream(root: Path, kept: Path, workers: int) -> None:
    with use_index_directory(kept):
        records = load_records("folder", path=str(root))
    found = time_streams(records, root, workers)
    print(json.dumps({**found, "peak_mib": peak_mib()}))


def write_table(path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.exists() and pq.ParquetFile(path).metadata.num_rows == rows:
        return
    rng = np.random.default_rng(SEED)
    columns: dict[str, Any] = {f"x{i}": rng.standard_normal(rows) for i in range(30)}
    columns["ward"] = rng.choice([f"ward {i}" for i in range(20)], rows)
    columns["subject"] = [f"s{i}" for i in rng.integers(0, rows // 5, rows)]
    columns["label"] = rng.choice(["no", "yes"], rows)
    pq.write_table(pa.table(columns), path)


def adopt(path: Path, streamed: bool) -> None:
    start = peak_mib()
    began = time.perf_counter()
    records = load_records(
        "parquet", path=str(path), label="label", subject="subject", categorical=["ward"],
        numeric=[f"x{i}" for i in range(30)], stream=streamed,
    )  # fmt: skip
    loaded = time.perf_counter() - began
    _, _ = records.hash, records.keys
    hashed = time.perf_counter() - began
    total = 0.0
    if streamed:
        for x, _ in Batches(records, np.arange(0, len(records), 5), batch_size=BATCH).epoch(SEED, 0):
            total += float(x.sum())
    print(json.dumps({
        "records": len(records), "streamed": streamed, "features": records.input_shape, "load_seconds": loaded,
        "with_hash_seconds": hashed, "peak_mib": peak_mib(), "imports_mib": start, "hash": records.hash,
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=("images", "table", "_index", "_stream", "_adopt"))
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    options = parser.parse_args()
    rest = options.rest
    if options.task == "_index":
        index(Path(rest[0]), Path(rest[1]))
    elif options.task == "_stream":
        stream(Path(rest[0]), Path(rest[1]), int(rest[2]))
    elif options.task == "_adopt":
        adopt(Path(rest[0]), rest[1] == "streamed")
    elif options.task == "images":
        options.folder.mkdir(parents=True, exist_ok=True)
        write_images(options.folder, options.count)
        root, kept = options.folder / "images", options.folder / "index"
        for path in kept.glob("*"):
            path.unlink()
        body: dict[str, Any] = {"seed": SEED, "images": options.count, "pixels": [SIDE, SIDE], "batch": BATCH}
        body["index"] = measure("index", str(root), str(kept))
        body["streams"] = [measure("stream", str(root), str(kept), str(w)) for w in options.workers]
        body["targets"] = {"index_peak_mib": 1024, "rate_of_expunge_to_bare": 0.9}
        body["load_average"] = os.getloadavg()
        write_result("large_images", body)
    else:
        options.folder.mkdir(parents=True, exist_ok=True)
        path = options.folder / "table.parquet"
        write_table(path, options.rows)
        body = {"seed": SEED, "rows": options.rows, "file_mib": path.stat().st_size / 2**20}
        body["adopted"] = [measure("adopt", str(path), how) for how in ("memory", "streamed")]
        body["targets"] = {"peak_mib": 2048}
        body["load_average"] = os.getloadavg()
        assert len({found["hash"] for found in body["adopted"]}) == 1, "memory and stream have one hash"
        write_result("large_table", body)


if __name__ == "__main__":
    main()
