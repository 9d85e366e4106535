"""A helper process of a training run: `python -m expunge.training.processes.helper NUMBER FOLDER`, started by `Team`.

It reads its job from standard input, writes `ready` or an error to standard output, and follows process 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.data.batches import Batch

    from .team import Job


class Follower:
    """Computes the gradients of one part of every batch.

    Args:
        job: what process 0 sent.
        number: of this process.
    """

    def __init__(self, job: Job, number: int) -> None:
        import torch.distributed as dist

        from .exchange import Exchange
        from .split_batch import SplitBatch

        self.job, self.number, self.runtime = job, number, job.runtime.for_process(number)
        self.model = self.runtime.place(job.model)
        self.exchange = Exchange(self.model, job.averaged, draws=job.draws)
        self.split = SplitBatch(dist.all_reduce, synchronise=job.runtime.sync_batchnorm)
        self._epoch = -1
        self._sizes: list[int] = []
        self._batches: Iterator[Batch] = iter(())

    def run(self) -> None:
        """Take steps until process 0 says that there are no more."""
        from .exchange import END

        while True:
            code, epoch, step = self.exchange.receive_step()
            if code == END:
                return
            self._take_step(epoch, step)

    def _start_epoch(self, epoch: int) -> None:
        from expunge.training.batchnorm import join_single_records
        from expunge.training.context import Context
        from expunge.training.epochs.batches import make_pass_batches

        job = self.job
        context = Context(job.records, self.runtime, job.seed)
        self._turn = job.steps.pass_of(epoch)
        batches = make_pass_batches(job.rows, job.recipe, context, job.steps, self._turn)
        batches = dataclasses.replace(join_single_records(self.model, batches), part=(self.number, job.runtime.devices))
        self._epoch, self._sizes = epoch, batches.sizes
        self._batches = batches.epoch(job.seed, epoch)
        self._loss = job.steps.make_loss(self._turn, job.recipe.label_smoothing)

    def _take_step(self, epoch: int, step: int) -> None:
        from expunge.data.batches import find_part

        from .team import must_synchronise

        if step == 0:
            self._start_epoch(epoch)
        size = self._sizes[step]
        self.split.choose(size, *find_part(size, self.number, self.job.runtime.devices))
        self.split.synchronise = must_synchronise(size, self.job.runtime.devices, self.job.runtime.sync_batchnorm)
        x, y = next(self._batches)
        weight = self.split.count / size
        for parameter in self.model.parameters():
            parameter.grad = None
        with self.split:
            with self.runtime.autocast():
                loss = self._loss(self.model, x, y) * weight
            self.runtime.backward(loss)
        self.exchange.sum_step(loss, weight, ())


def main(number: int, folder: Path, stream: BinaryIO, channel: Any) -> None:
    """Read the job, join the group and follow process 0.

    Args:
        number: of this process, from 1.
        folder: of the run.
        stream: where the job comes from; when it ends, so does this process.
        channel: where messages go to.
    """
    from .exchange import join_group
    from .sending import unpack
    from .team import loopback

    packed = stream.read(int.from_bytes(stream.read(8), "little"))
    threading.Thread(target=_end_with_parent, args=(stream,), daemon=True).start()
    import torch

    job: Job = unpack(packed)
    torch.set_num_threads(job.threads)
    follower = Follower(job, number)
    channel.write("ready\n")
    channel.flush()
    with loopback():
        join_group(folder, number, job.runtime.devices, follower.exchange.device)
    follower.run()


def _end_with_parent(stream: BinaryIO) -> None:
    """End this process when the one that started it closes the pipe, or has ended."""
    stream.read()
    os._exit(1)


def _describe(error: Exception) -> dict[str, Any]:
    if isinstance(error, ExpungeError):
        return {"kind": type(error).__name__, "what": error.what, "where": error.where, "hint": error.hint}
    return {"kind": "TrainingError", "what": f"{type(error).__name__}: {error}", "where": None, "hint": None}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; process 0 ends this one
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a user's code prints is no message
    try:
        main(int(sys.argv[1]), Path(sys.argv[2]), sys.stdin.buffer, messages)
    except Exception as error:
        with contextlib.suppress(OSError):
            messages.write(json.dumps(_describe(error)) + "\n")
            messages.flush()
        os._exit(1)
    os._exit(0)
