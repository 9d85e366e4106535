"""Process 0 of a training run on several processes: it starts the helpers, leads their steps and ends them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from expunge.core import errors
from expunge.core.errors import ConfigError, ExpungeError, TrainingError
from expunge.core.hashing import plain_name
from expunge.core.show import plural, repr_fields
from expunge.core.trained import clone_model, find_running_tensors
from expunge.core.trust import worker_path
from expunge.data.batches import find_part
from expunge.data.records import Records
from expunge.training.epochs.steps import Steps, explain_unsplit
from expunge.training.recipes import Recipe
from expunge.training.runtime import Runtime

from .exchange import END, Exchange, join_group, leave_group
from .sending import pack
from .split_batch import SplitBatch, inspect_splitting

#: Set in helpers. A helper that imports the script of the user must not train there.
HELPER = "EXPUNGE_HELPER"
#: Seconds that a helper has to end, and to leave its message after it failed.
GRACE = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What a helper needs to compute the gradients of its part of every batch.

    Attributes:
        model: a copy of the model, on the CPU.
        records, rows, recipe, seed: as in `fit`.
        runtime: that of process 0.
        steps: objective, passes and order of the run; the hooks run in process 0 only.
        averaged: names of the buffers that are averaged over a batch.
        draws: whether the states of the generators are sent with each step.
        threads: for computations on the CPU.
    """

    model: nn.Module
    records: Records
    rows: NDArray[np.int64]
    recipe: Recipe
    seed: int
    runtime: Runtime
    steps: Steps
    averaged: tuple[str, ...]
    draws: bool
    threads: int

    __repr__ = repr_fields


def check_split(model: nn.Module, input_shape: tuple[int, ...], batch_size: int, runtime: Runtime) -> None:
    """Raise an error if several processes cannot share the batches of a network. Also called by `expunge check`.

    Args:
        model: the network.
        input_shape: shape of one record.
        batch_size: records in a step.
        runtime: number of processes.

    Raises:
        ConfigError: there are more processes than records in a batch.
        TrainingError: a record's output depends on others, other than through BatchNorm.
    """
    if runtime.devices == 1:
        return
    if batch_size < runtime.devices:
        raise ConfigError(
            f"{runtime.devices} processes for batches of {plural(batch_size, 'record')}: some would have nothing to do",
            where="runtime.devices",
            hint=f"use at most {batch_size}, or larger batches",
        )
    obstacle = inspect_splitting(model, input_shape).obstacle
    if obstacle:
        raise TrainingError(
            f"several processes cannot share a batch of this network: {obstacle}",
            where=type(model).__name__,
            hint="use one process (runtime.devices=1)",
        )


class Team:
    """Helper processes and process 0, which share the batches of one training run.

    Args:
        model: the model on the device of process 0.
        records, rows, recipe, seed, runtime: as in `fit`.
        steps: objective, passes and hooks.
        label: name of the run, for errors.

    Raises:
        ConfigError: a loss is not a mean over records, or something cannot be sent to other processes.
        TrainingError: a helper did not start.
    """

    def __init__(
        self, model: nn.Module, records: Records, rows: NDArray[np.int64], recipe: Recipe, seed: int,
        runtime: Runtime, steps: Steps, label: str,
    ) -> None:  # fmt: skip
        self.count, self.label = runtime.devices, label
        if HELPER in os.environ:
            raise ConfigError(
                "the script trains while another process imports it, for a class or a function in it",
                where=label,
                hint='put the call under `if __name__ == "__main__":`, or define the class in a module',
            )
        check_split(model, records.input_shape, recipe.batch_size, runtime)
        unsplit = explain_unsplit(steps)
        if unsplit:
            hint = "declare it with expunge.training.mean_over_records if it is one, or use one process"
            raise ConfigError(unsplit, where="runtime.devices", hint=hint)
        if dist.is_available() and dist.is_initialized():
            raise ConfigError(
                "this process belongs to a group of torch.distributed already",
                where="runtime.devices",
                hint="start one process; expunge starts the others",
            )
        self.split = SplitBatch(dist.all_reduce, synchronise=runtime.sync_batchnorm)
        self._synchronise = runtime.sync_batchnorm
        draws = inspect_splitting(model, records.input_shape).draws
        averaged = _find_averaged(model, records.input_shape, synchronised=runtime.sync_batchnorm)
        self.exchange = Exchange(model, averaged, draws=draws)
        self._before: list[torch.Tensor] = []
        self._threads = torch.get_num_threads()
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._folder = Path(tempfile.mkdtemp(prefix="expunge-"))
        threads = max(1, self._threads // self.count)
        passes = None if steps.passes is None else tuple(dataclasses.replace(p, rate=None) for p in steps.passes)
        sent = Steps(objective=steps.objective, passes=passes, order=steps.order)
        job = Job(
            clone_model(model).to("cpu"), records, rows, recipe, seed, runtime, sent, averaged, draws, threads,
        )  # fmt: skip
        try:
            self._start(pack(job, self._folder), threads)
            with loopback():
                join_group(self._folder, 0, self.count, self.exchange.device)
            torch.set_num_threads(threads)
        except BaseException:
            self.close(wait=False)
            raise

    def _start(self, packed: bytes, threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": worker_path(), HELPER: "1"}
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[variable] = str(threads)
        for number in range(1, self.count):
            command = [sys.executable, "-P", "-m", "expunge.training.processes.helper", str(number), str(self._folder)]
            with open(self._folder / f"{number}.log", "wb") as log:
                helper = subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
                )
            self._helpers.append(helper)
        for helper in self._helpers:
            assert helper.stdin is not None
            assert helper.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                helper.stdin.write(len(packed).to_bytes(8, "little") + packed)
                helper.stdin.flush()
        for number, helper in enumerate(self._helpers, 1):
            assert helper.stdout is not None
            line = helper.stdout.readline()
            if line != b"ready\n":
                raise self._read_error(number, helper, line)

    # ---- steps

    def start_step(self, epoch: int, step: int, size: int) -> None:
        """Have all processes start a step on their parts of a batch.

        Args:
            epoch: number of the epoch.
            step: number of the batch in it.
            size: records in the whole batch.
        """
        self.split.choose(size, *find_part(size, 0, self.count))
        self.split.synchronise = must_synchronise(size, self.count, self._synchronise)
        self._before = [buffer.clone() for buffer in self.exchange.averaged]
        with self.explain():
            self.exchange.send_step(epoch, step)

    def weigh(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of this process's part, times its share of the batch."""
        return loss * (self.split.count / self.split.size)

    def finish_step(self, loss: torch.Tensor) -> torch.Tensor:
        """Add the gradients of the helpers to those of the model; return the loss of the whole batch.

        Args:
            loss: of the part, weighed.
        """
        with self.explain():
            return self.exchange.sum_step(loss, self.split.count / self.split.size, self._before)

    @contextlib.contextmanager
    def explain(self) -> Iterator[None]:
        """Turn a failed exchange inside the block into an error that says which process ended, and why."""
        try:
            yield
        except RuntimeError as error:
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline:
                for number, helper in enumerate(self._helpers, 1):
                    if helper.poll() is not None:
                        assert helper.stdout is not None
                        raise self._read_error(number, helper, helper.stdout.readline()) from error
                time.sleep(0.05)
            raise

    def _read_error(self, number: int, helper: subprocess.Popen[bytes], line: bytes) -> ExpungeError:
        """The error of a helper that ended: its own, or how it ended."""
        what = f"process {number + 1} of {self.count}"
        with contextlib.suppress(ValueError):
            body = json.loads(line)
            found = getattr(errors, body["kind"], TrainingError)
            return found(body["what"], where=body["where"] or f"{self.label}, {what}", hint=body["hint"])
        with contextlib.suppress(subprocess.TimeoutExpired):
            helper.wait(GRACE)
        code = helper.returncode
        text = (self._folder / f"{number}.log").read_text(errors="replace").strip().splitlines()
        ended = f"ended with status {code}"
        if code is not None and code < 0:
            ended = f"was killed by signal {-code} ({signal.Signals(-code).name})"
        hint = "the same command resumes from the last checkpoint, if there is one"
        if code == -signal.SIGKILL:
            hint = f"usually, memory ran out: use fewer processes; {hint}"
        return TrainingError(f"{what} {ended}" + (f": {text[-1]}" if text else ""), where=self.label, hint=hint)

    # ---- the end

    def close(self, *, wait: bool) -> None:
        """End the helpers, and free what the run has taken.

        Args:
            wait: they wait for a step, and end on a message; otherwise they are killed.
        """
        torch.set_num_threads(self._threads)
        if wait:
            with contextlib.suppress(RuntimeError):
                self.exchange.send_step(0, 0, code=END)
        for helper in self._helpers:
            if not wait:
                helper.terminate()
        deadline = time.monotonic() + GRACE
        for helper in self._helpers:
            try:
                helper.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                helper.kill()
                helper.wait()
            for stream in (helper.stdin, helper.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):
                    stream.close()
        leave_group()
        shutil.rmtree(self._folder, ignore_errors=True)


def must_synchronise(size: int, count: int, wanted: bool) -> bool:
    """Whether BatchNorm uses the statistics of the whole batch: also if a part may have a single record, or none."""
    return wanted or size < 2 * count


def _find_averaged(model: nn.Module, input_shape: tuple[int, ...], *, synchronised: bool) -> tuple[str, ...]:
    """Plain names of the float buffers that a training pass changes, without those of synchronised BatchNorm."""
    copied = clone_model(model).to("cpu").train()
    try:
        running = set(find_running_tensors(copied, input_shape))
    except Exception:  # training reports what is wrong with the network
        running = set()
    norms = nn.modules.batchnorm._BatchNorm
    skipped = {
        plain_name(f"{path}.{name}" if path else name)
        for path, module in model.named_modules()
        if synchronised and isinstance(module, norms)
        for name, _ in module.named_buffers(recurse=False)
    }
    named = {plain_name(name): buffer for name, buffer in model.named_buffers()}
    return tuple(name for name, t in named.items() if name in running - skipped and t.is_floating_point())


@contextlib.contextmanager
def loopback() -> Iterator[None]:
    """Let gloo use the loopback device, so that no other machine can connect; a user's choice stays."""
    name = "GLOO_SOCKET_IFNAME"
    if name in os.environ:
        yield
        return
    os.environ[name] = "lo0" if sys.platform == "darwin" else "lo"
    try:
        yield
    finally:
        del os.environ[name]
