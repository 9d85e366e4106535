"""What a model is made of, and what in it would stand in the way of forgetting, before anything runs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from expunge.core.hashing import plain_name
from expunge.core.seeds import global_rng, torch_generator
from expunge.core.trained import clone_model
from expunge.data.records import Records

#: Share of exact zeros among convolution and linear weights above which a model is said to have arrived pruned. Trained
#: float32 weights are zero by chance about never.
PRUNED_SHARE = 0.01

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        level: `ok`, `warning` (works, but read this) or `error` (would not work).
        subject: what it is about: `weights`, `batch norm`, `pruning`, `input`, `output`, `dropout`.
        message: what is so.
        hint: what to do about it, or empty.
    """

    level: str
    subject: str
    message: str
    hint: str = ""


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What `describe_model` found out.

    Attributes:
        parameters: number of parameters; `trainable`: those that training would change.
        layers: number of layers by type (modules without children).
        prunable: number of weights by kind, `conv` and `linear`; biases and BatchNorm are never pruned.
        zeros: exact zeros among the prunable weights.
        batch_norm: number of BatchNorm layers; `tracking`: those with running statistics.
        dropout: number of dropout layers with a positive share.
        non_finite: names of tensors that hold NaN or infinite values.
        reparametrised: names of parameters behind torch.nn.utils.prune or parametrize.
        input_shape: shape of one record that was tried.
        output_width: numbers that the model returns for a record, or None where it did not take the input.
        findings: the facts as messages, errors first.
    """

    parameters: int
    trainable: int
    layers: dict[str, int]
    prunable: dict[str, int]
    zeros: int
    batch_norm: int
    tracking: int
    dropout: int
    non_finite: tuple[str, ...]
    reparametrised: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_width: int | None
    findings: tuple[Finding, ...]

    @property
    def zero_share(self) -> float:
        """Share of exact zeros among the prunable weights, in [0, 1]."""
        total = sum(self.prunable.values())
        return self.zeros / total if total else 0.0

    @property
    def usable(self) -> bool:
        """Whether nothing was found that would not work."""
        return all(finding.level != "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """JSON values for `expunge check --json`."""
        return {**dataclasses.asdict(self), "zero_share": self.zero_share, "usable": self.usable}


def describe_model(
    model: nn.Module, data: Records | tuple[int, ...], classes: int | None = None, *, masked: bool = False
) -> ModelFacts:
    """Facts and findings about a model; the model is not touched (a copy is run, in eval mode, on 4 made-up records).

    Args:
        model: any network, on any device.
        data: the records that it should classify (their shape and number of classes), or the shape of one record.
        classes: number of classes K, where `data` is a shape; None leaves the output width unchecked.
        masked: the model's mask is known, so its zeros need no warning.
    """
    if isinstance(data, Records):
        shape, classes = data.input_shape, data.classes
    else:
        shape = tuple(data)
    prunable = {"conv": 0, "linear": 0}
    zeros = 0
    for module in model.modules():
        kind = "conv" if isinstance(module, _CONV) else "linear" if isinstance(module, nn.Linear) else None
        weight = getattr(module, "weight", None)
        if kind is not None and isinstance(weight, torch.Tensor):
            prunable[kind] += weight.numel()
            zeros += int((weight.detach() == 0).sum())
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORM)]
    state = {plain_name(name): t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    facts = ModelFacts(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=dict(sorted(Counter(type(m).__name__ for m in model.modules() if not list(m.children())).items())),
        prunable=prunable,
        zeros=zeros,
        batch_norm=len(norms),
        tracking=sum(m.track_running_stats for m in norms),
        dropout=sum(isinstance(m, _DROPOUT) and m.p > 0 for m in model.modules()),
        non_finite=tuple(n for n, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())),
        reparametrised=_reparametrised(model),
        input_shape=shape,
        output_width=None,
        findings=(),
    )
    width, run = _run_findings(model, shape, classes)
    found = [*_weight_findings(model, facts, masked), *_layer_findings(facts), *run]
    found.sort(key=lambda finding: ("error", "warning", "ok").index(finding.level))
    return dataclasses.replace(facts, output_width=width, findings=tuple(found))


def _reparametrised(model: nn.Module) -> tuple[str, ...]:
    names = []
    for prefix, module in model.named_modules():
        hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, BasePruningMethod)]
        held = [h._tensor_name for h in hooks]
        held += [
            name.removesuffix("_orig") for name, _ in module.named_parameters(recurse=False) if name.endswith("_orig")
        ]
        if parametrize.is_parametrized(module):
            held += list(module.parametrizations)
        names += [f"{prefix}.{name}" if prefix else name for name in dict.fromkeys(held)]
    return tuple(names)


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _first_line(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def _weight_findings(model: nn.Module, facts: ModelFacts, masked: bool) -> list[Finding]:
    found = [Finding("ok", "weights", f"{facts.parameters:,} parameters, {facts.trainable:,} of them trainable")]
    if facts.non_finite:
        message = f"NaN or infinite values in {_some(facts.non_finite)}"
        found.append(Finding("error", "weights", message, "the training that made them diverged; use other weights"))
    if not facts.trainable:
        message = "no parameter is trainable (requires_grad is off)"
        found.append(Finding("error", "weights", message, "turn requires_grad on for what may change"))
    elif facts.trainable < facts.parameters:
        message = f"{facts.parameters - facts.trainable:,} parameters are frozen; what they remember stays"
        found.append(Finding("warning", "weights", message, "turn requires_grad on for what may change"))
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()} - {"float32"})
    if kinds:
        message = f"parameters are {', '.join(kinds)}, not float32"
        found.append(Finding("warning", "weights", message, "call model.float(); precision is a matter of the runtime"))
    total = sum(facts.prunable.values())
    if facts.reparametrised:
        message = f"torch parametrisations stand before {_some(facts.reparametrised)}; a mask cannot name these weights"
        hint = "call torch.nn.utils.prune.remove (or parametrize.remove_parametrizations) on each, then save again"
        found.append(Finding("error", "pruning", message, hint))
    if not total:
        message = "there are no convolution or linear weights: nothing could be pruned"
        found.append(Finding("warning", "pruning", message))
    elif facts.zero_share > PRUNED_SHARE:
        message = f"{facts.zero_share:.1%} of {total:,} prunable weights are exactly zero: the model arrived pruned"
        if masked:
            found.append(Finding("ok", "pruning", f"{message}, and its mask keeps them so"))
        else:
            hint = (
                "give its mask, or zeros come alive when it is trained; model.mask=zeros takes the zeros for it. Where "
                "they lie may remember training records"
            )
            found.append(Finding("warning", "pruning", message, hint))
    else:
        count = facts.prunable
        message = f"dense; {count['conv']:,} convolution and {count['linear']:,} linear weights could be pruned"
        found.append(Finding("ok", "pruning", message))
    return found


def _layer_findings(facts: ModelFacts) -> list[Finding]:
    found = []
    silent = facts.batch_norm - facts.tracking
    if silent:
        message = f"{silent} of {facts.batch_norm} BatchNorm layers keep no running statistics"
        found.append(Finding("warning", "batch norm", f"{message}: scores depend on how records are batched"))
    elif facts.batch_norm:
        message = f"{facts.batch_norm} layers with running statistics, which remember training records"
        found.append(Finding("ok", "batch norm", message, "each method says what it does with them"))
    if facts.dropout:
        message = f"{facts.dropout} dropout layers; their noise is drawn from a seed of its own"
        found.append(Finding("ok", "dropout", message))
    return found


def _run_findings(model: nn.Module, shape: tuple[int, ...], classes: int | None) -> tuple[int | None, list[Finding]]:
    try:
        twin = clone_model(model).to(device="cpu", dtype=torch.float32).eval()
    except Exception as error:
        message = f"the model cannot be copied ({_first_line(error)}), and a caller's model is never changed"
        hint = "remove hooks and parametrisations, and whatever else deepcopy refuses"
        return None, [Finding("error", "weights", message, hint)]
    x = torch.rand(4, *shape, generator=torch_generator(0, "describe model"))
    try:
        with torch.no_grad(), global_rng(0, "describe model"):
            first = twin(x)
            second = twin(x)
    except Exception as error:
        message = f"records of shape {shape} are not accepted ({_first_line(error)})"
        hint = "the shape is that of one record: C x H x W, C x T or F"
        return None, [Finding("error", "input", message, hint)]
    if not isinstance(first, torch.Tensor) or first.dim() != 2 or first.shape[0] != 4:
        kind = f"a tensor of shape {tuple(first.shape)}" if isinstance(first, torch.Tensor) else type(first).__name__
        message = f"4 records give {kind}, not a tensor of 4 x K logits"
        return None, [Finding("error", "output", message, "return one row of logits a record")]
    found = [Finding("ok", "input", f"records of shape {shape} are accepted")]
    width = int(first.shape[1])
    if classes is not None and width != classes:
        message = f"wrong number of classes: {width} outputs for {classes} classes"
        found.append(Finding("error", "output", message, f"use a model with {classes} outputs"))
    else:
        found.append(Finding("ok", "output", f"{width} logits a record"))
    if not torch.equal(first, second):
        message = "the output is random in eval mode: two runs on the same records differ"
        found.append(Finding("warning", "output", message, "scores will not repeat; make eval mode deterministic"))
    if width > 1 and bool((first >= 0).all()) and torch.allclose(first.sum(dim=1), torch.ones(4), atol=1e-5):
        message = "the output looks like probabilities (rows sum to 1), not logits"
        found.append(
            Finding("warning", "output", message, "leave the softmax out; losses and scores apply it themselves")
        )
    return width, found
