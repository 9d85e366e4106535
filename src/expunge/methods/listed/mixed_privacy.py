"""mixed-privacy: a network trained on core records, and a last layer by ridge regression on the other records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import MethodError, RequestError, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.probe import make_probe
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, mix
from expunge.core.split import Split, as_ids
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.methods.base import Method
from expunge.methods.options import require_range
from expunge.methods.reads import Reads, Sizes
from expunge.methods.registry import register_method
from expunge.methods.task import Task
from expunge.models import Architecture
from expunge.training import Context, Recipe, train
from expunge.training.curvature import evaluation_mode

STATE = "mixed_privacy"
SUMS = ("recomputed", "subtracted")
_BATCH = 256
_REFUSED = "the last layer of the network is not a linear layer that returns the logits"


@register_method(
    "mixed-privacy",
    guarantee="exact",
    citation="[Golatkar2021]; the hyper-parameters are this project's",
    trains=True,
    corrects=True,
)
@dataclasses.dataclass(frozen=True)
class MixedPrivacy(Method):
    """Mixed-privacy linear forgetting: core records train the network; the others only a part in which it is linear.

    `fit` trains the network on the core records, which are never forgotten. All other training records (the user
    records) train a change V of the last layer: it minimises mean |f(x) + V phi(x) - s e_y|^2 / 2 + mu / 2 |V|^2, where
    f are the core network's logits and phi the inputs of its last layer and 1. This is solved exactly, in float64. To
    forget user records, it is solved without them: the result is the model that `fit` would have made, bit for bit.
    Needs a dense model that was trained by `fit`, the user records and their labels. Cost: a forward pass over the user
    records; with `sums="subtracted"`, over D_f alone.

    The paper linearises the whole network, or more of its last layers, around the core weights, solves by SGD, forgets
    by a Newton step and adds noise. With the last layer alone the network is linear, so that the step is exact and no
    noise is added. Which records are core is decided by a hash of the record id. All hyper-parameters are this
    project's, but for s = 5, which is that of the port of UCR-Vision-and-Learning-Group.

    Attributes:
        core_fraction: expected fraction of the training records that are core.
        regularisation: mu.
        target: s, the logit that the true class should have.
        sums: `recomputed` from the retained user records, or `subtracted`: the sums over D_f are subtracted from the
            stored ones, D_r is not read, and the result is equal but for rounding (guarantee: empirical).
    """

    core_fraction: float = 0.5
    regularisation: float = 1e-3
    target: float = 5.0
    sums: str = "recomputed"

    def __post_init__(self) -> None:
        require_range(
            "mixed-privacy",
            core_fraction=(self.core_fraction, 0 < self.core_fraction < 1),
            regularisation=(self.regularisation, 0 < self.regularisation < math.inf),
            target=(self.target, 0 < self.target < math.inf),
        )
        if self.sums not in SUMS:
            hint = unknown_name_hint(self.sums, SUMS)
            raise MethodError(f"unknown sums {self.sums!r}", where="mixed-privacy.sums", hint=hint)

    # ---- before

    def unsupported_reason(self, model: nn.Module, records: Records) -> tuple[str, str] | None:
        """See `Method.unsupported_reason`: the last layer is not linear."""
        return None if _find_last_layer(model, records) is not None else (_REFUSED, "use a network with such a layer")

    def check_pruning(self, schedule: str, keep_weights: bool) -> None:
        """See `Method.check_pruning`.

        Raises:
            MethodError: always: the solution of the last layer is dense.
        """
        raise MethodError(
            "the last layer is a dense least-squares solution, so the model cannot be pruned", where="mixed-privacy"
        )

    def check_state(self, trained: Trained) -> None:
        """See `Method.check_state`.

        Raises:
            MethodError: the model was not trained by `fit`, or with other options; or it is pruned.
        """
        if trained.mask is not None:
            self.check_pruning("", False)
        state = trained.state.get(STATE)
        if state is None:
            raise MethodError(
                "the model was not trained by this method",
                where="mixed-privacy",
                hint="train it with method.name=mixed-privacy, or MixedPrivacy().fit(...)",
            )
        if not torch.equal(state["options"], self._list_options()):
            raise MethodError(
                f"the model was trained with core_fraction, regularisation, target = {state['options'].tolist()}",
                where="mixed-privacy",
                hint="forget with the options that it was trained with",
            )

    def check_request(self, model: nn.Module, mask: Mask | None, request: ForgetRequest, records: Records) -> None:
        """See `Method.check_request`.

        Raises:
            RequestError: a record is core.
        """
        core = request.record_ids[self._is_core(records, request.record_ids.tolist())]
        if len(core):
            more = f" (and {len(core) - 1} more)" if len(core) > 1 else ""
            raise RequestError(
                f"the record is core: it trained the network itself, and is never forgotten{more}",
                where=core[0],
                hint="retrain, with records that may have to be forgotten outside of the core",
            )

    # ---- training and forgetting

    def fit(
        self, records: Records, split: Split, architecture: Architecture, *, recipe: str | Recipe, context: Context
    ) -> Trained:
        """Train the network on the core records, and its last layer on the others; see `Method.fit`.

        Raises:
            MethodError: there are no core records, or no others; or the last layer is not linear.
        """
        core = self._is_core(records, split.retain.tolist())
        if core.all() or not core.any():
            raise MethodError(
                f"{int(core.sum())} of {len(core)} training records are core", where="mixed-privacy.core_fraction"
            )
        core_split = dataclasses.replace(split, retain=split.retain[core], forget=as_ids(()))
        start = train(
            records, core_split, architecture.remeasure_normalisation(records, core_split.retain), recipe=recipe,
            seed=context.seed, runtime=context.runtime, checkpoint=context.checkpoint, progress=context.progress,
        )  # fmt: skip
        model = context.runtime.place(clone_model(start.model))
        layer = _find_last_layer(model, records)
        if layer is None:
            raise MethodError(_REFUSED, where="mixed-privacy")
        rows = records.rows(split.retain[~core])
        sums = _sum(model, layer, self._make_batches(records, rows, context), self.target)
        first = {name: value.detach().cpu().clone() for name, value in layer.named_parameters()}
        _solve(layer, first, sums, self.regularisation)
        state = {**sums, **{f"core {name}": value for name, value in first.items()}, "options": self._list_options()}
        line = f"mixed-privacy: the last layer was solved on {len(rows)} user records"
        return Trained(context.runtime.release(model), None, split, start.provenance.add_history(line), {STATE: state})

    @property
    def reads_retained(self) -> bool:
        """See `Method.reads_retained`."""
        return self.sums == "recomputed"

    def find_guarantee(self, trained: Trained) -> str:
        """See `Method.find_guarantee`: a difference of sums is that of retraining but for rounding."""
        return "exact" if self.sums == "recomputed" else "empirical"

    def estimate_reads(self, trained: Trained, sizes: Sizes) -> Reads | None:
        """See `Method.estimate_reads`."""
        if self.sums == "recomputed":
            return Reads(retain_forward=sizes.retain, at_most=True)
        return Reads(forget_forward=sizes.forget)

    def unlearn(self, task: Task) -> None:
        """See `Method.unlearn`."""
        state, records = task.trained.state[STATE], task.context.records
        layer = _find_last_layer(task.model, records)
        assert layer is not None
        first = {n.removeprefix("core "): value for n, value in state.items() if n.startswith("core ")}
        with torch.no_grad():
            for name, weight in layer.named_parameters():
                weight.copy_(first[name])
        if self.sums == "recomputed":
            user = task.retain_rows[~self._is_core(records, task.split.retain.tolist())]
            sums = self._read_sums(task, layer, user, records)
        else:
            sums = _combine({name: state[name] for name in ("gram", "moment", "count")}, -1.0,
                            self._read_sums(task, layer, task.forget_rows, task.old_records))  # fmt: skip
            if task.request.correction is not None:
                sums = _combine(sums, 1.0, self._read_sums(task, layer, task.forget_rows, records))
        if int(sums["count"]) == 0:
            raise RequestError("no user record would be retained", where="mixed-privacy")
        _solve(layer, first, sums, self.regularisation)
        task.state[STATE] = {**state, **sums}
        if self.sums == "recomputed":
            task.recomputed |= {*task.trained.list_influence_state(), STATE}
        task.line += f"; the last layer was solved again on {int(sums['count'])} user records"

    def _read_sums(
        self, task: Task, layer: nn.Linear, rows: NDArray[np.int64], records: Records
    ) -> dict[str, torch.Tensor]:
        task.forward_records += len(rows)
        return _sum(task.model, layer, self._make_batches(records, rows, task.context), self.target)

    def _make_batches(self, records: Records, rows: NDArray[np.int64], context: Context) -> Batches:
        runtime = context.runtime
        return Batches(
            records,
            np.sort(rows),
            batch_size=_BATCH,
            device=runtime.torch_device,
            channels_last=runtime.channels_last,
            workers=runtime.workers,
        )

    def _is_core(self, records: Records, ids: list[str]) -> NDArray[np.bool_]:
        keys = mix(records.keys[records.rows(ids)], derive(0, "method", "mixed-privacy", "core"))
        return keys < np.uint64(min(int(self.core_fraction * 2**64), 2**64 - 1))

    def _list_options(self) -> torch.Tensor:
        return torch.tensor([self.core_fraction, self.regularisation, self.target], dtype=torch.float64)


def _find_last_layer(model: nn.Module, records: Records) -> nn.Linear | None:
    """The linear layer whose output is that of the network, on two random inputs; None if there is none."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        return None
    seen: list[torch.Tensor] = []
    device = next(model.parameters()).device
    x = make_probe(model, records.input_shape, 2, torch.Generator().manual_seed(0)).to(device)
    handle = linear[-1].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    try:
        with evaluation_mode(model), torch.no_grad():
            logits = model(x)
    finally:
        handle.remove()
    return linear[-1] if len(seen) == 1 and torch.equal(seen[0], logits) else None


def _sum(model: nn.Module, layer: nn.Linear, batches: Batches, target: float) -> dict[str, torch.Tensor]:
    """Sums over records: phi phi^T (`gram`), phi (s e_y - f)^T (`moment`), and their number (`count`); float64."""
    size = layer.in_features + (layer.bias is not None)
    gram = torch.zeros(size, size, dtype=torch.float64)
    moment = torch.zeros(size, layer.out_features, dtype=torch.float64)
    count = 0
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    try:
        with evaluation_mode(model), torch.no_grad():
            for x, y in batches.in_order():
                logits = model(x).double().cpu()
                phi = inputs.pop().double().cpu()
                if layer.bias is not None:
                    phi = torch.cat([phi, phi.new_ones(len(phi), 1)], dim=1)
                hot = nn.functional.one_hot(y.cpu(), layer.out_features).double()
                gram += phi.T @ phi
                moment += phi.T @ (target * hot - logits)
                count += len(x)
    finally:
        handle.remove()
    return {"gram": gram, "moment": moment, "count": torch.tensor(count, dtype=torch.int64)}


def _combine(a: Mapping[str, torch.Tensor], sign: float, b: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: a[name] + int(sign) * b[name] for name in b}


@torch.no_grad()
def _solve(
    layer: nn.Linear, first: Mapping[str, torch.Tensor], sums: Mapping[str, torch.Tensor], regularisation: float
) -> None:
    """Set the layer to its core weights and V, the minimum of mean |R - phi V|^2 / 2 + mu / 2 |V|^2."""
    count = int(sums["count"])
    matrix = sums["gram"] / count + regularisation * torch.eye(len(sums["gram"]), dtype=torch.float64)
    change = torch.linalg.solve(matrix, sums["moment"] / count)
    layer.weight.copy_((first["weight"].double() + change[: layer.in_features].T).to(layer.weight.dtype))
    if layer.bias is not None:
        layer.bias.copy_((first["bias"].double() + change[-1]).to(layer.bias.dtype))
