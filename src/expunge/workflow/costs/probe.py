"""A short probe: how long a batch takes in this model on this machine, forward alone, and forward and backward."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from expunge.core.show import repr_fields
from expunge.experiments.store.memory import PeakMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from expunge.data import Records
    from expunge.training import Runtime

#: Batches that are timed of each kind, at most, and seconds after which no further batch begins.
_BATCHES, _SECONDS = 3, 1.0
#: Records of the first batch, which only shows how large a timed batch may be; and seconds of one such batch, at most.
_FIRST, _MOST_SECONDS = 2, 0.7


@dataclasses.dataclass(frozen=True)
class Probe:
    """Timed batches of one model.

    Attributes:
        forward: seconds for a record that goes forward.
        train: seconds for a record that goes forward and backward, with the step of the optimiser.
        batch_size: records in a timed batch.
        batches: number of timed batches, of both kinds together.
        device: where.
        threads: threads of torch.
        seconds: what the probe took.
        memory: of a GPU, the most memory that a training batch took, in bytes; None elsewhere.
        resident: peak resident memory of the process with its training batches, in bytes; None: not known.
    """

    forward: float
    train: float
    batch_size: int
    batches: int
    device: str
    threads: int
    seconds: float
    memory: int | None = None
    resident: int | None = None

    __repr__ = repr_fields

    def estimate(self, trained: float, forward: float) -> float:
        """Seconds for so many records.

        Args:
            trained: records that go forward and backward.
            forward: records that only go forward.

        Example:
            >>> Probe(0.001, 0.01, 64, 4, "cpu", 1, 0.5).estimate(100, 1000)
            2.0
        """
        return trained * self.train + forward * self.forward

    def describe(self) -> str:
        """What was measured, in words."""
        memory = "" if self.memory is None else f", {self.memory / 2**20:,.0f} MiB for a training batch"
        return (
            f"{self.batches} batches of {self.batch_size} records were timed on {self.device} with {self.threads} "
            f"threads: {1e3 * self.forward:.3g} ms a record forward, {1e3 * self.train:.3g} ms forward and backward"
            f"{memory}"
        )


def measure_speed(
    model: nn.Module,
    records: Records,
    rows: NDArray[np.int64],
    *,
    runtime: Runtime,
    batch_size: int = 64,
    clock: Callable[[], float] = time.perf_counter,
) -> Probe:
    """Time a few batches of a copy of a model; takes a few seconds at most, unless two records take longer.

    The training batches are in training mode, with cross-entropy and a step of SGD with rate 0. Reading the records
    is part of the time. What a method computes besides (a mask, a penalty, second derivatives) is not.

    Args:
        model: the network; not modified.
        records: the records.
        rows: rows to read; they are repeated if there are few.
        runtime: device and precision.
        batch_size: records in a batch, at most: a large network gets smaller ones.
        clock: returns seconds.

    >>> import expunge
    >>> from expunge.workflow import measure_speed
    >>> records = expunge.load_records("digits")
    >>> network = expunge.architecture("mlp", records, widths=(8,)).build(0)
    >>> probe = measure_speed(network, records, records.rows(records.record_ids[:64]), runtime=expunge.Runtime("cpu"))
    >>> 0 < probe.forward and 0 < probe.train, probe.batch_size
    (True, 64)
    """
    import numpy as np
    import torch

    from expunge.core.seeds import global_rng
    from expunge.core.trained import clone_model
    from expunge.data.batches import Batches
    from expunge.training.batchnorm import find_layers

    began = clock()
    runtime.warm_up()
    device = runtime.torch_device
    copied = runtime.place(clone_model(model))
    parameters = [parameter for parameter in copied.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.0, momentum=0.9) if parameters else None

    def time_batch(size: int, *, training: bool) -> float:
        batches = Batches(
            records, np.resize(rows, size), batch_size=size, device=device, channels_last=runtime.channels_last
        )
        start = clock()
        (x, y), *_ = batches.in_order()
        copied.train(training)
        with torch.set_grad_enabled(training), runtime.autocast():
            logits = copied(x)
            loss = torch.nn.functional.cross_entropy(logits.float(), y)
        if training and optimiser is not None and loss.requires_grad:
            optimiser.zero_grad(set_to_none=True)
            runtime.backward(loss)
            optimiser.step()
        runtime.synchronise()
        return clock() - start

    def time_batches(size: int, *, training: bool) -> list[float]:
        found: list[float] = []
        start = clock()
        while len(found) < _BATCHES and (not found or clock() - start < _SECONDS):
            found.append(time_batch(size, training=training))
        return found

    with global_rng(0, "probe"):
        first = time_batch(_FIRST, training=bool(parameters))  # the first batch sets things up
        if first < _MOST_SECONDS:
            first = time_batch(_FIRST, training=bool(parameters))
        size = int(max(_FIRST, min(batch_size, _FIRST * _MOST_SECONDS / max(first, 1e-9))))
        if find_layers(copied):
            size = max(2, size)
        forward = time_batches(size, training=False)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with PeakMemory() as peak:
            trained = time_batches(size, training=True)
    memory = int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None
    return Probe(
        forward=min(forward) / size,
        train=min(trained) / size,
        batch_size=size,
        batches=len(forward) + len(trained),
        device=str(device),
        threads=torch.get_num_threads(),
        seconds=clock() - began,
        memory=memory,
        resident=peak.to_json()["resident"],
    )


def as_json(probe: Probe | None) -> dict[str, Any] | None:
    """The JSON values of a probe."""
    return None if probe is None else dataclasses.asdict(probe)
