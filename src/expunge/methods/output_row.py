"""The parameters that determine one logit alone, found by changing them and comparing outputs, not by layer types."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.core.hashing import plain_parameters
from expunge.core.mask import Mask
from expunge.core.seeds import global_rng, torch_generator
from expunge.core.trained import clone_model
from expunge.data.batches import Batches
from expunge.data.records import Records

_PROBES = 32
#: Relative error of a masked logit: the bias is divided by a factor (a temperature) and rounded.
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Slice:
    """The entries of a parameter at one index of one axis: those of one class.

    Attributes:
        name: plain name of the parameter.
        axis: the axis.
        index: the index of the class.
    """

    name: str
    axis: int
    index: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view of the entries."""
        return tensor.select(self.axis, self.index)


@dataclasses.dataclass(frozen=True)
class OutputRow:
    """A change of parameters that makes one logit a constant, and leaves all other logits unchanged.

    Attributes:
        cleared: entries to set to 0.
        biases: entries to set to `value`.
        value: the value that gives the wanted logit.
    """

    cleared: tuple[Slice, ...]
    biases: tuple[Slice, ...]
    value: float

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Change the parameters of a model."""
        parameters = plain_parameters(model)
        for part in self.cleared:
            part.of(parameters[part.name]).fill_(0.0)
        for part in self.biases:
            part.of(parameters[part.name]).fill_(self.value)


def find_output_row(
    model: nn.Module, records: Records, index: int, logit: float, mask: Mask | None = None
) -> OutputRow | str:
    """Find the parameters to change so that one logit is `logit` for every input, in training and evaluation mode.

    Each parameter with an axis of K entries is changed at the entries of the class, in a copy. Those that change no
    other logit are candidates. The change is tried on up to 32 records, first in one module, the last one first, then
    in all candidates.

    Args:
        model: the network; not modified.
        records: the records that it classifies.
        index: the class.
        logit: the wanted logit.
        mask: its mask; entries that it prunes stay 0.

    Returns:
        The change; or, in words, why there is none.
    """
    try:
        probe = _Probe(clone_model(model).cpu(), records, index)
    except Exception as error:  # whatever the network raises
        return f"it cannot be run on records ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]})"
    wrong = probe.find_wrong_shape(records.classes)
    if wrong:
        return wrong
    candidates = list(probe.find_candidates(records.classes))
    frozen = [s.name for s in candidates if not probe.parameters[s.name].requires_grad and probe.changes(s)]
    candidates = [s for s in candidates if probe.parameters[s.name].requires_grad]
    additive = [s for s in candidates if probe.adds(s)]
    biases = [s for s in additive if mask is None or s.name not in mask.kept or bool(s.of(mask.kept[s.name]).all())]
    for cleared, changed in _list_attempts(candidates, biases, probe.modules):
        row = probe.solve(cleared, changed, logit)
        if row is not None:
            return row
    if frozen:
        return f"{frozen[-1]} is frozen (requires_grad is off), and no method changes a frozen parameter"
    if not additive:
        return "no bias is added to this logit alone"
    if not biases:
        return f"the pruning mask sets the bias of the class to 0 ({additive[-1].name})"
    return "no change of its weights makes this logit a constant without changing other logits or the training mode"


def _list_attempts(
    candidates: list[Slice], biases: list[Slice], modules: Mapping[str, str]
) -> Iterator[tuple[tuple[Slice, ...], tuple[Slice, ...]]]:
    """Yield entries to clear and biases to set, from the smallest change to the largest."""
    groups = [
        [[s for s in part if modules[s.name] == module] for part in (candidates, biases)]
        for module in dict.fromkeys(modules[s.name] for s in reversed(biases))
    ]
    for inside, own in [*groups, [candidates, biases]]:
        others = [s for s in inside if s not in own]
        for single in reversed(others):
            yield (single,), tuple(own)
        if own:
            yield tuple(others), tuple(own)


class _Probe:
    """A copy of a network, a few records, and the outputs of the unchanged copy."""

    def __init__(self, model: nn.Module, records: Records, index: int) -> None:
        self.model, self.index = model, index
        self.parameters = plain_parameters(model)
        self.modules = {name: name.rpartition(".")[0] for name in self.parameters}
        rows = np.unique(np.linspace(0, len(records) - 1, _PROBES).astype(np.int64))
        read = torch.cat([x for x, _ in Batches(records, rows, batch_size=_PROBES).in_order()])
        generator = torch_generator(0, "output row")
        self.x = torch.cat([read, read[torch.randperm(len(read), generator=generator)].flip(-1)])
        self.outputs = {training: run_in_mode(model, self.x, training=training) for training in (False, True)}

    def find_wrong_shape(self, classes: int) -> str | None:
        for training, found in self.outputs.items():
            if not isinstance(found, torch.Tensor) or tuple(found.shape) != (len(self.x), classes):
                mode = "training" if training else "evaluation"
                return f"its output in {mode} mode is not one tensor of {classes} logits a record"
        return None

    def find_candidates(self, classes: int) -> Iterator[Slice]:
        """Yield the entries of the class, of every parameter, that change no other logit."""
        for name, parameter in self.parameters.items():
            for axis, size in enumerate(parameter.shape):
                found = Slice(name, axis, self.index)
                if size == classes and parameter.is_floating_point() and not self._changed_others(found):
                    yield found

    def changes(self, part: Slice) -> bool:
        """Whether the entries change the logit of the class."""
        return bool(differ(self._shift(part), self.outputs[False])[:, self.index].any())

    def adds(self, part: Slice) -> bool:
        """Whether an entry is added to the logit: its change changes the logit alike for all records."""
        if part.of(self.parameters[part.name]).numel() != 1:
            return False
        after, before = (t[:, self.index].double() for t in (self._shift(part), self.outputs[False]))
        change = after - before
        size = float(change.abs().max())
        return size > 0 and float(change.max() - change.min()) < 0.01 * size + 1e-6 * float(before.abs().max())

    def _changed_others(self, part: Slice) -> bool:
        changed = differ(self._shift(part), self.outputs[False]).any(0)
        changed[self.index] = False
        return bool(changed.any())

    def _shift(self, part: Slice) -> torch.Tensor:
        """The outputs after a change of the entries by a random number each; the change is undone."""
        view = part.of(self.parameters[part.name])
        with torch.no_grad():
            kept = view.clone()
            view.add_(torch.rand(view.shape, generator=torch_generator(0, "output row shift")) + 0.5)
            found: torch.Tensor = run_in_mode(self.model, self.x, training=False)
            view.copy_(kept)
        return found

    def solve(self, cleared: tuple[Slice, ...], biases: tuple[Slice, ...], logit: float) -> OutputRow | None:
        """The value of the biases that gives the logit, if the change does what it should."""
        value = logit
        for _ in range(2):
            row = OutputRow(cleared, biases, value)
            changed = clone_model(self.model)
            row.apply_(changed)
            found = run_in_mode(changed, self.x, training=False)[:, self.index].double()
            if not bool((found == found[0]).all()):
                return None
            if float(found[0]) == logit:
                break
            OutputRow(cleared, biases, 0.0).apply_(changed)
            start = float(run_in_mode(changed, self.x, training=False)[0, self.index])
            slope = (float(found[0]) - start) / value
            if not np.isfinite(slope) or abs(slope) < 1e-6:
                return None
            value = (logit - start) / slope
        row = OutputRow(cleared, biases, value)
        changed = clone_model(self.model)
        row.apply_(changed)
        for training, before in self.outputs.items():
            after = run_in_mode(changed, self.x, training=training)
            if describe_masking_error(before, after, self.index, logit):
                return None
        return row


@torch.no_grad()
def run_in_mode(model: nn.Module, x: torch.Tensor, *, training: bool) -> Any:
    """The output of a copy of a model in training or evaluation mode, with random numbers from a fixed seed."""
    copied = clone_model(model).train(training)
    with global_rng(0, "output row"):
        return copied(x)


def differ(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Which entries of two outputs differ; NaN is equal to NaN."""
    return ~((a == b) | (a.isnan() & b.isnan()))


def describe_masking_error(before: torch.Tensor, after: torch.Tensor, index: int, logit: float) -> str | None:
    """Say what is wrong with outputs in which one logit should be masked, or return None.

    Args:
        before: the outputs of the original.
        after: those of the changed model, for the same records.
        index: the class of the masked logit.
        logit: the value that it should have.
    """
    found = after[:, index].double()
    wrong = ~((found - logit).abs() <= _TOLERANCE * abs(logit))
    if bool(wrong.any()):
        return f"the logit of class {index} is {float(found[wrong][0]):g} for a record, not {logit:g}"
    others = differ(before, after)
    others[:, index] = False
    if bool(others.any()):
        return f"the logit of class {int(others.any(0).nonzero()[0])} changes"
    return None
