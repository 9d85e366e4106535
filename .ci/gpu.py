"""`make test-gpu`: what only a GPU can show, within ten minutes; writes one JSON object with the name of the card.

    python .ci/gpu.py OUTPUT [--device cuda|cpu] [--data DIR] [--small]

Parts, each with its own time limit; the file is written again after each, so that a run that is cut off leaves what it
has found:

* `device`: tests/device/checks.py on the device, each check beside the CPU; with them, 2:4 tensors of torch's own.
* `tests`: the export of 2:4 networks and `torch.compile` with its compiler (pytest).
* `processes`: one GPU beside all of them (`Runtime(devices=...)`), if there are several.
* `speed`: images per second of ResNet-18 (bf16, channels-last, batches of 512) beside a bare loop; target 0.95.
* `cifar10`: ResNet-18 on CIFAR-10 for as many epochs as fit into 60 s; target 94 % of the test records.

With `--small --device cpu` every part runs in small, to show that the script runs; speed and accuracy are not judged.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import expunge
from expunge.data import Records
from expunge.models import architecture
from expunge.training import Context, Recipe, Runtime, accuracy, fit

ROOT = Path(__file__).parents[1]
#: Largest absolute difference of weights, logits or eigenvalues from the CPU, on CUDA without TF32.
FAR_FROM_CPU = 0.05
#: Seconds that a part in a process of its own may take; in small, on a slow machine, more.
LIMIT, LIMIT_SMALL = 200, 3000
TARGETS = {"speed over a bare loop": 0.95, "accuracy on CIFAR-10 (%)": 94.0, "seconds": 60.0}


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_images(count: int) -> Records:
    """Random images of the shape of CIFAR-10, with random labels."""
    draw = np.random.default_rng(0)
    features = draw.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = draw.integers(0, 10, count)
    return Records("random images", [f"i{i:06d}" for i in range(count)], labels, tuple("0123456789"), features)


def check_device(device: torch.device, small: bool) -> dict[str, Any]:
    """The checks of tests/device on a device; passed if none failed and none is far from the CPU."""
    command = [sys.executable, str(ROOT / "tests" / "device" / "checks.py"), device.type]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SMALL if small else LIMIT)
    if done.returncode != 0:
        return {"passed": False, "error": done.stderr[-2000:]}
    found = json.loads(done.stdout.splitlines()[-1])["checks"]
    # a tie of scores can fall differently in another order of sums: then the masks differ, which is no fault
    failed = {
        n: c["error"] for n, c in found.items() if c["error"] is not None and "the masks differ" not in c["error"]
    }
    differences = {n: c["difference"] for n, c in found.items() if c["error"] is None}
    return {
        "passed": not failed and all(d <= FAR_FROM_CPU for d in differences.values()),
        "differences": differences,
        "masks differ": [n for n, c in found.items() if c["error"] is not None and n not in failed],
        "failed": failed,
    }


def run_tests(device: torch.device, small: bool) -> dict[str, Any]:
    """Tests of the export of 2:4 networks, and of `torch.compile` with its compiler."""
    chosen = ["tests/sparsity/compression/test_semi_structured.py", "tests/training/test_numerics.py"]
    environment = {**os.environ, **({} if small else {"EXPUNGE_COMPILE": "1"})}
    chosen += ["-k", "not aot_eager"] if small else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    limit = LIMIT_SMALL if small else LIMIT
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    lines = done.stdout.strip().splitlines()
    return {"passed": done.returncode == 0, "last lines": lines[-5:]}


def check_processes(device: torch.device, small: bool) -> dict[str, Any]:
    """Training on all GPUs beside training on one."""
    count = 2 if device.type == "cpu" else torch.cuda.device_count()
    if count < 2:
        return {"passed": None, "not run": "there is one GPU"}
    records = random_images(64)
    models = []
    for devices in (1, count):
        model = architecture("resnet20", records).build(0)
        runtime = Runtime(device.type, devices=devices)
        recipe = Recipe(epochs=2, batch_size=32, learning_rate=0.01)
        fit(runtime.place(model), np.arange(64), recipe, Context(records, runtime))
        models.append(runtime.release(model).state_dict())
    apart = max(float((models[0][n].double() - models[1][n].double()).abs().max()) for n in models[0])
    return {"passed": apart < 1e-3, "processes": count, "largest difference": apart}


def run_bare(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int) -> float:
    """Images per second of the plainest loop in bf16."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    synchronise(x.device)
    begun = time.perf_counter()
    for index in torch.randperm(len(x), device=x.device).split(batch):
        inputs = x[index].to(torch.float32, memory_format=torch.channels_last).div_(255)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(inputs), y[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    synchronise(x.device)
    return len(x) / (time.perf_counter() - begun)


def run_ours(model: nn.Module, records: Records, runtime: Runtime, batch: int) -> float:
    """Images per second of the library's loop, everything included."""
    synchronise(runtime.torch_device)
    begun = time.perf_counter()
    fit(model, np.arange(len(records)), Recipe(epochs=1, batch_size=batch), Context(records, runtime))
    synchronise(runtime.torch_device)
    return len(records) / (time.perf_counter() - begun)


def measure_speed(device: torch.device, small: bool) -> dict[str, Any]:
    """Both loops in turn, several times; the first round is not counted."""
    records, batch = (random_images(64), 32) if small else (random_images(51_200), 512)
    runtime = Runtime(device.type, precision="bf16", channels_last=True)
    network = architecture("resnet18", records)
    models = [runtime.place(network.build(0)) for _ in range(2)]
    x = torch.from_numpy(records.features).to(device)  # type: ignore[arg-type]
    y = torch.from_numpy(records.labels).to(device)
    rates: dict[str, list[float]] = {"bare": [], "expunge": []}
    for _ in range(2 if small else 6):
        rates["bare"].append(run_bare(models[0], x, y, batch))
        rates["expunge"].append(run_ours(models[1], records, runtime, batch))
    ratios = [a / b for a, b in zip(rates["expunge"][1:], rates["bare"][1:], strict=True)]
    ratio = float(np.median(ratios))
    return {
        "passed": None if small else ratio >= TARGETS["speed over a bare loop"],
        "ratio": ratio,
        "images a second": {name: float(np.median(found[1:])) for name, found in rates.items()},
        "batch": batch,
    }


def train_cifar10(device: torch.device, small: bool, data: str | None, rate: float) -> dict[str, Any]:
    """ResNet-18 with one-cycle, label smoothing, crop and flip; the epochs are those that fit into 60 s at a rate."""
    if small:
        records = random_images(96)
        train, test, epochs, batch = np.arange(64), np.arange(64, 96), 1, 32
    else:
        try:
            records = expunge.load_records("cifar10", data)
        except expunge.core.errors.ExpungeError as error:
            return {"passed": None, "not run": str(error)}
        assert records.partition is not None
        train, test = (np.flatnonzero(records.partition == part) for part in ("train", "test"))
        batch, epochs = 512, int(np.clip(0.8 * TARGETS["seconds"] * rate / len(train), 8, 40))
    runtime = Runtime(device.type, precision="bf16", channels_last=True)
    model = runtime.place(architecture("resnet18", records).build(0))
    recipe = Recipe(
        epochs=epochs, batch_size=batch, learning_rate=0.4, momentum=0.9, nesterov=True, weight_decay=5e-4,
        lr_schedule="one-cycle", warmup=0.25, label_smoothing=0.1, augment="crop-flip",
    )  # fmt: skip
    runtime.warm_up()
    synchronise(device)
    begun = time.perf_counter()
    fit(model, train, recipe, Context(records, runtime))
    synchronise(device)
    seconds = time.perf_counter() - begun
    found = accuracy(model, records, test, runtime=runtime)
    return {
        "passed": None if small else found >= TARGETS["accuracy on CIFAR-10 (%)"] and seconds <= TARGETS["seconds"],
        "accuracy": found,
        "seconds": seconds,
        "epochs": epochs,
        "recipe": recipe.to_json(),
    }


def main() -> int:
    """Run all parts; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--data", help="the folder of data sets (EXPUNGE_DATA)")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("there is no CUDA device here; --device cpu --small shows that the script runs\n")
        return 2
    device = torch.device(given.device)
    body: dict[str, Any] = {
        "card": torch.cuda.get_device_name(0) if device.type == "cuda" else f"none: {platform.machine()} CPU",
        "small": given.small,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()},
        "targets": TARGETS,
    }
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: measure_speed(device, given.small),
        "cifar10": lambda: train_cifar10(device, given.small, given.data, _rate(body)),
        "device": lambda: check_device(device, given.small),
        "processes": lambda: check_processes(device, given.small),
        "tests": lambda: run_tests(device, given.small),
    }
    for name, part in parts.items():
        begun = time.perf_counter()
        try:
            body[name] = part()
        except Exception:
            body[name] = {"passed": False, "error": traceback.format_exc()[-2000:]}
        body[name]["wall seconds"] = round(time.perf_counter() - begun, 1)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        print(name, json.dumps(body[name]), flush=True)
    return int(any(body[name]["passed"] is False for name in parts))


def _rate(body: dict[str, Any]) -> float:
    return float(body.get("speed", {}).get("images a second", {}).get("expunge", 0.0))


if __name__ == "__main__":
    sys.exit(main())
