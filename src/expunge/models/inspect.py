"""Facts about a model, and findings about what would prevent unlearning, before a run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from expunge.core.errors import ModelError
from expunge.core.hashing import plain_name, plain_parameters
from expunge.core.mask import Mask
from expunge.core.probe import make_probe
from expunge.core.seeds import global_rng, torch_generator
from expunge.core.show import plural, repr_fields
from expunge.core.trained import clone_model, find_running_tensors, list_normalisation_buffers
from expunge.data.records import Records

from .trainable import check_trainable

#: Fraction of exact zeros among convolution and linear weights above which a model counts as already pruned. A trained
#: float32 weight is almost never zero by chance.
PRUNED_FRACTION = 0.01

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_SHOWN = 3
_ZEROS_HINT = (
    "give its mask, otherwise training makes the zeros nonzero; the zeros can be read as a mask (model.mask=zeros; in "
    'Python adopt(..., mask="zeros")). Their positions can leak training data'
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A finding of a check.

    Attributes:
        level: `ok`, `warning` (works, with a caveat) or `error` (would not work).
        subject: the topic: `weights`, `batch norm`, `pruning`, `input`, `output`, `dropout`, `training`.
        message: the finding.
        hint: how to fix it, or empty.
    """

    level: str
    subject: str
    message: str
    hint: str = ""

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """The result of `describe_model`.

    Attributes:
        parameters: number of parameters; `trainable`: those with `requires_grad`.
        layers: number of layers by type (modules without children).
        prunable: number of weights by layer type, `conv` and `linear`; biases and BatchNorm are never pruned.
        zeros: exact zeros among the prunable weights.
        sparse: fraction of exact zeros by parameter, of any layer, in which at least a hundredth of the entries, but
            not all, are zeros that no mask prunes.
        batch_norm: number of BatchNorm layers; `tracking`: those with running statistics.
        dropout: number of dropout layers with a positive probability.
        non_finite: names of tensors with NaN or infinite values.
        reparametrised: names of parameters that torch.nn.utils.prune or parametrize computes.
        input_shape: shape of one record, as tested.
        output_width: numbers that the model returns for each record, or None if it did not accept the input.
        findings: the facts as messages, errors first.
    """

    parameters: int
    trainable: int
    layers: dict[str, int]
    prunable: dict[str, int]
    zeros: int
    sparse: dict[str, float]
    batch_norm: int
    tracking: int
    dropout: int
    non_finite: tuple[str, ...]
    reparametrised: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_width: int | None
    findings: tuple[Finding, ...]

    __repr__ = repr_fields

    @property
    def zero_fraction(self) -> float:
        """Fraction of exact zeros among the prunable weights, in [0, 1]."""
        total = sum(self.prunable.values())
        return self.zeros / total if total else 0.0

    @property
    def usable(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values for `expunge check --json`."""
        return {**dataclasses.asdict(self), "zero_share": self.zero_fraction, "usable": self.usable}


def describe_model(
    model: nn.Module, data: Records | tuple[int, ...], classes: int | None = None, *, mask: Mask | None = None
) -> ModelFacts:
    """Describe a model and list findings; the model is not modified.

    Copies are run on 4 random inputs, in evaluation mode, and in training mode with a backward pass
    (`check_trainable`).

    Args:
        model: any network, on any device.
        data: the records that it should classify (their shape and number of classes), or the shape of one record.
        classes: number of classes K, if `data` is a shape; with None the output width is not checked.
        mask: the mask of the model, if it is pruned; zeros that it prunes need no warning.

    Example:
        >>> facts = describe_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (1, 8, 8), classes=10)
        >>> facts.parameters, facts.prunable, facts.output_width, facts.usable
        (650, {'conv': 0, 'linear': 640}, 10, True)
    """
    if isinstance(data, Records):
        shape, classes = data.input_shape, data.classes
    else:
        shape = tuple(data)
    prunable = {"conv": 0, "linear": 0}
    zeros = 0
    for module in model.modules():
        layer_type = "conv" if isinstance(module, _CONV) else "linear" if isinstance(module, nn.Linear) else None
        weight = getattr(module, "weight", None)
        if layer_type is not None and isinstance(weight, torch.Tensor):
            prunable[layer_type] += weight.numel()
            zeros += int((weight.detach() == 0).sum())
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORM)]
    state = {plain_name(name): t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    facts = ModelFacts(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=dict(sorted(Counter(type(m).__name__ for m in model.modules() if not list(m.children())).items())),
        prunable=prunable,
        zeros=zeros,
        sparse=_find_sparse(model, mask),
        batch_norm=len(norms),
        tracking=sum(m.track_running_stats for m in norms),
        dropout=sum(isinstance(m, _DROPOUT) and m.p > 0 for m in model.modules()),
        non_finite=tuple(n for n, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())),
        reparametrised=_find_reparametrised(model),
        input_shape=shape,
        output_width=None,
        findings=(),
    )
    width, run = _check_output(model, shape, classes)
    found = [*_check_weights(model, facts, mask), *_check_layers(facts), *run]
    if not any(finding.level == "error" for finding in found):
        found += _check_training(model, shape, width)
    found.sort(key=lambda finding: ("error", "warning", "ok").index(finding.level))
    return dataclasses.replace(facts, output_width=width, findings=tuple(found))


def _find_reparametrised(model: nn.Module) -> tuple[str, ...]:
    names = []
    for prefix, module in model.named_modules():
        hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, BasePruningMethod)]
        tensors = [h._tensor_name for h in hooks]
        tensors += [
            name.removesuffix("_orig") for name, _ in module.named_parameters(recurse=False) if name.endswith("_orig")
        ]
        names += [f"{prefix}.{name}" if prefix else name for name in dict.fromkeys(tensors)]
    return tuple(dict.fromkeys([*names, *_find_parametrised(model)]))


def _find_parametrised(model: nn.Module) -> list[str]:
    """Names of the tensors that torch.nn.utils.parametrize computes."""
    modules = [(p, m) for p, m in model.named_modules() if parametrize.is_parametrized(m)]
    return [f"{path}.{name}" if path else name for path, module in modules for name in module.parametrizations]


def _list_some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _read_first_line(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def _find_sparse(model: nn.Module, mask: Mask | None) -> dict[str, float]:
    """Fractions of exact zeros outside the mask, of parameters that are partly zero.

    The row of an embedding for padding is zero by definition, and does not count.
    """
    found = {}
    embeddings = {name: m.padding_idx for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    padding = {f"{name}.weight".lstrip("."): row for name, row in embeddings.items() if row is not None}
    for name, parameter in plain_parameters(model).items():
        zero = (parameter.detach() == 0).cpu()
        if mask is not None and name in mask.kept:
            zero &= mask.kept[name]
        if name in padding:
            zero[padding[name]] = False
        fraction = float(zero.float().mean()) if zero.numel() else 0.0
        if fraction >= PRUNED_FRACTION and bool((parameter.detach() != 0).any()):
            found[name] = fraction
    return found


def _check_weights(model: nn.Module, facts: ModelFacts, mask: Mask | None) -> list[Finding]:
    found = [Finding("ok", "weights", f"{facts.parameters:,} parameters, {facts.trainable:,} of them trainable")]
    if facts.non_finite:
        message = f"NaN or infinite values in {_list_some(facts.non_finite)}"
        found.append(Finding("error", "weights", message, "their training diverged; use other weights"))
    if not facts.trainable:
        message = "no parameter is trainable (requires_grad is off)"
        found.append(Finding("error", "weights", message, "turn requires_grad on for the parameters that may change"))
    elif facts.trainable < facts.parameters:
        message = (
            f"{facts.parameters - facts.trainable:,} parameters are frozen; training data in them cannot be forgotten"
        )
        found.append(Finding("warning", "weights", message, "turn requires_grad on for the parameters that may change"))
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()} - {"float32"})
    if dtypes:
        message = f"parameters are {', '.join(dtypes)}, not float32"
        found.append(Finding("warning", "weights", message, "call model.float(); the runtime sets the precision"))
    total = sum(facts.prunable.values())
    hooked = tuple(name for name in facts.reparametrised if name not in _find_parametrised(model))
    if hooked:
        message = f"a hook computes {_list_some(hooked)} (torch.nn.utils.prune, or legacy spectral_norm)"
        hint = "call prune.remove or remove_spectral_norm on each, then save again; no mask can name these weights"
        found.append(Finding("error", "pruning", message, hint))
    if len(hooked) < len(facts.reparametrised):
        names = tuple(name for name in facts.reparametrised if name not in hooked)
        message = f"parametrisations compute {_list_some(names)}: the model can be used dense, but not pruned"
        hint = "call torch.nn.utils.parametrize.remove_parametrizations on each to prune them"
        found.append(Finding("warning", "pruning", message, hint))
    if not total:
        message = "there are no convolution or linear weights, so nothing can be pruned"
        found.append(Finding("warning", "pruning", message))
    elif facts.zero_fraction > PRUNED_FRACTION:
        message = (
            f"{facts.zero_fraction:.1%} of {total:,} prunable weights are exactly zero: the model is already pruned"
        )
        if mask is not None:
            found.append(Finding("ok", "pruning", f"{message}, and its mask keeps them zero"))
        else:
            found.append(Finding("warning", "pruning", message, _ZEROS_HINT))
    elif mask is not None:
        message = f"already pruned: the mask keeps {mask.density:.1%} of {mask.total:,} weights"
        found.append(Finding("ok", "pruning", message))
    else:
        count = facts.prunable
        message = f"dense; {count['conv']:,} convolution and {count['linear']:,} linear weights can be pruned"
        if not facts.sparse:
            found.append(Finding("ok", "pruning", message))
    if facts.sparse and (mask is not None or facts.zero_fraction <= PRUNED_FRACTION):
        shares = tuple(f"{name} ({fraction:.1%})" for name, fraction in facts.sparse.items())
        outside = "" if mask is None else " that the mask does not prune"
        message = f"exact zeros{outside} in {_list_some(shares)}: these parameters look pruned"
        found.append(Finding("warning", "pruning", message, _ZEROS_HINT))
    return found


def _check_layers(facts: ModelFacts) -> list[Finding]:
    found = []
    untracked = facts.batch_norm - facts.tracking
    if untracked:
        message = f"{untracked} of {facts.batch_norm} BatchNorm layers have no running statistics"
        found.append(Finding("warning", "batch norm", f"{message}: scores depend on the batches"))
    elif facts.batch_norm:
        message = f"{plural(facts.batch_norm, 'layer')} with running statistics, which can leak training data"
        found.append(Finding("ok", "batch norm", message, "each method documents how it treats them"))
    if facts.dropout:
        message = f"{facts.dropout} dropout layers; their noise has a seed of its own"
        found.append(Finding("ok", "dropout", message))
    return found


def _report(error: ModelError, subject: str) -> Finding:
    where = "" if error.where is None else f"{error.where}: "
    return Finding("error", subject, f"{where}{error.what}", error.hint or "")


def _check_training(model: nn.Module, shape: tuple[int, ...], width: int | None) -> list[Finding]:
    """The error of `check_trainable`, and the running statistics that cannot be re-estimated."""
    try:
        check_trainable(model, shape, width or 1)
    except ModelError as error:
        return [_report(error, "training")]
    known = list_normalisation_buffers(model)
    others = tuple(name for name in find_running_tensors(model, shape) if name not in known)
    if not others:
        return []
    message = f"forward passes in training change {_list_some(others)}, which can leak training data"
    hint = "batch_norm=frozen does not change them; re-estimate recomputes BatchNorm and InstanceNorm only"
    return [Finding("warning", "batch norm", message, hint)]


def _check_output(model: nn.Module, shape: tuple[int, ...], classes: int | None) -> tuple[int | None, list[Finding]]:
    try:
        copied = clone_model(model).to(device="cpu", dtype=torch.float32).eval()
    except ModelError as error:
        return None, [_report(error, "weights")]
    x = make_probe(copied, shape, 4, torch_generator(0, "describe model"))
    try:
        with torch.no_grad(), global_rng(0, "describe model"):
            first = copied(x)
            second = copied(x)
    except Exception as error:
        message = f"records of shape {shape} are not accepted ({_read_first_line(error)})"
        hint = "the shape is that of one record: C x H x W, C x T or F"
        return None, [Finding("error", "input", message, hint)]
    if not isinstance(first, torch.Tensor) or first.dim() != 2 or first.shape[0] != 4:
        result = f"a tensor of shape {tuple(first.shape)}" if isinstance(first, torch.Tensor) else type(first).__name__
        message = f"for 4 records the model returns {result}, not a tensor of 4 x K logits"
        return None, [Finding("error", "output", message, "return one row of logits for each record")]
    found = [Finding("ok", "input", f"records of shape {shape} are accepted")]
    width = int(first.shape[1])
    if classes is not None and width != classes:
        message = f"wrong number of classes: {width} outputs for {classes} classes"
        found.append(Finding("error", "output", message, f"use a model with {classes} outputs"))
    else:
        found.append(Finding("ok", "output", f"{width} logits a record"))
    if not torch.equal(first, second):
        message = "the output is random in eval mode: two runs on the same records differ"
        found.append(
            Finding("warning", "output", message, "scores will not be reproducible; make eval mode deterministic")
        )
    if width > 1 and bool((first >= 0).all()) and torch.allclose(first.sum(dim=1), torch.ones(4), atol=1e-5):
        message = "the output looks like probabilities (rows sum to 1), not logits"
        found.append(Finding("warning", "output", message, "remove the softmax; losses and scores apply it"))
    return width, found
