"""What the processes of one run tell each other in a step: weights, flags and draws before, gradients after it.

Process 0 runs the training loop, with optimiser, masks and hooks. Before each step, it sends the weights; after the
backward passes, gradients and losses are summed in it. So every process computes with the weights of process 0.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from expunge.core.hashing import plain_name

#: A helper waits for the next step as long as the process that started it lives.
PATIENCE = datetime.timedelta(days=7)
STEP, END = 1, 0


def join_group(folder: Path, number: int, count: int, device: torch.device) -> None:
    """Join the process group of a run: gloo for tensors on the CPU, NCCL for those on GPUs.

    Args:
        folder: where the processes find each other; only this user can read it.
        number: of this process, from 0.
        count: number of processes.
        device: of this process.
    """
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    store = dist.FileStore(str(folder / "group"), count)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)


class Exchange:
    """The tensors of a model that are exchanged, in the same order in every process.

    Args:
        model: the model on its device.
        averaged: plain names of buffers that are averaged over the records of a batch (running statistics other than
            those of the synchronised BatchNorm layers).
        draws: whether to send the states of the global generators.
    """

    def __init__(self, model: nn.Module, averaged: Sequence[str], *, draws: bool) -> None:
        self.modules, self.draws = list(model.modules()), draws
        self.parameters, self.buffers = list(model.parameters()), list(model.buffers())
        named = {plain_name(name): buffer for name, buffer in model.named_buffers()}
        self.averaged = [named[name] for name in averaged]
        self.device = next((t.device for t in (*self.parameters, *self.buffers)), torch.device("cpu"))

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters with a gradient."""
        return [parameter for parameter in self.parameters if parameter.requires_grad]

    # ---- before a step

    def send_step(self, epoch: int, step: int, *, code: int = STEP) -> None:
        """Tell the helpers to take a step, or to end (`END`)."""
        flags = [p.requires_grad for p in self.parameters] + [m.training for m in self.modules]
        dist.broadcast(torch.tensor([code, epoch, step, *map(int, flags)]), 0)
        if code == END:
            return
        if self.draws:
            for state in self._generator_states():
                dist.broadcast(state, 0)
        self._broadcast(first=step == 0)

    def receive_step(self) -> tuple[int, int, int]:
        """Wait for the next step; returns code, epoch and step. Flags, generators and weights are set."""
        header = torch.zeros(3 + len(self.parameters) + len(self.modules), dtype=torch.int64)
        dist.broadcast(header, 0)
        code, epoch, step, *flags = header.tolist()
        if code == END:
            return code, epoch, step
        for parameter, flag in zip(self.parameters, flags, strict=False):
            if parameter.requires_grad != bool(flag):
                parameter.requires_grad_(bool(flag))
        for module, flag in zip(self.modules, flags[len(self.parameters) :], strict=True):
            module.training = bool(flag)
        if self.draws:
            states = self._generator_states()
            for state in states:
                dist.broadcast(state, 0)
            torch.set_rng_state(states[0])
            if len(states) > 1:
                torch.cuda.set_rng_state(states[1], self.device)
        self._broadcast(first=step == 0)
        return code, epoch, step

    def _generator_states(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        return states if self.device.type == "cpu" else [*states, torch.cuda.get_rng_state(self.device)]

    @torch.no_grad()
    def _broadcast(self, *, first: bool) -> None:
        """Send the weights; those without a gradient change between epochs at most."""
        chosen = self.parameters if first else self.trained
        for group in _by_dtype([*chosen, *self.buffers]):
            joined = torch.cat([tensor.detach().reshape(-1) for tensor in group])
            dist.broadcast(joined.view(torch.uint8), 0)  # as bytes, whatever their type
            if dist.get_rank() != 0:
                _scatter(joined, group)

    # ---- after a backward pass

    @torch.no_grad()
    def sum_step(self, loss: torch.Tensor, weight: float, before: Sequence[torch.Tensor]) -> torch.Tensor:
        """Sum the gradients in process 0, and the losses; average buffers.

        A parameter that no process has a gradient of keeps none.

        Args:
            loss: of the part, weighted.
            weight: records of the part, divided by those of the batch.
            before: copies of the averaged buffers from before the step; an unchanged one stays as it is.

        Returns:
            The loss of the batch; in other processes, that of the part.
        """
        dist.all_reduce(torch.zeros(1))  # a helper that has failed is noticed here, and not in NCCL, which would wait
        trained = self.trained
        present = [float(parameter.grad is not None) for parameter in trained]
        small = torch.tensor([0.0, *present], dtype=torch.float64, device=self.device)
        small[0] = loss.detach()
        dist.reduce(small, 0)
        for group in _by_dtype(trained):
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            joined = torch.cat([part.reshape(-1) for part in parts])
            dist.reduce(joined, 0)
            if dist.get_rank() == 0:
                _scatter(joined, parts)
                for parameter, part in zip(group, parts, strict=True):
                    parameter.grad = part
        for group in _by_dtype(self.averaged):
            joined = torch.cat([buffer.reshape(-1) for buffer in group]) * weight
            dist.reduce(joined, 0)
            if dist.get_rank() == 0:
                old = [buffer.clone() for buffer in group]
                _scatter(joined, group)
                for buffer, own in zip(group, old, strict=True):
                    place = next(i for i, other in enumerate(self.averaged) if other is buffer)
                    if torch.equal(own, before[place]):
                        buffer.copy_(own)
        if dist.get_rank() != 0:
            return loss.detach()
        for parameter, count in zip(trained, small[1:].tolist(), strict=True):
            if count == 0:
                parameter.grad = None
        return small[0].to(loss.dtype)


def _by_dtype(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Groups of tensors of one type, in the order of their first one."""
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def _scatter(joined: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Copy the pieces of a vector into tensors."""
    for piece, tensor in zip(joined.split([t.numel() for t in tensors]), tensors, strict=True):
        tensor.copy_(piece.view(tensor.shape))


def leave_group() -> None:
    """Leave the process group; other processes may have ended."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()
