"""What a method works on: a copy of the model, the records of both sets, and the counters of its cost."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.hashing import hash_training_set
from expunge.core.mask import Mask
from expunge.core.outcome import GUARANTEES, Cost, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive
from expunge.core.show import plural
from expunge.core.split import Split
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batch, Batches
from expunge.data.records import Records
from expunge.training import batchnorm
from expunge.training.context import Context
from expunge.training.loop import Fit, Steps, fit
from expunge.training.recipes import Recipe

from .changes import DROPPED_STATE, compare_masks, compare_models, find_dropped, find_rewritten
from .frozen import check_frozen


class _Forgets(Protocol):
    def forget(self, trained: Trained, request: ForgetRequest, context: Context) -> Outcome: ...


@dataclasses.dataclass(eq=False)
class Task:
    """One request for one model: what `Method.unlearn` reads, and the result, which it changes.

    Attributes:
        trained: the original; not to be changed.
        request: the records to forget.
        context: records, runtime, seed, checkpoint, progress. Its records have the values after the request: a record
            that it corrects, or an earlier one, has the new label and features.
        old_records: the records with the values before the request; those of the context, unless it is a correction.
        name: the method's registered name.
        options: its hyper-parameters.
        guarantee: the guarantee of the outcome (`Method.find_guarantee`); a method may set a weaker one, if it is known
            only when it runs.
        split: the split after the request.
        mask: the mask of the result; it is applied at the end.
        state: the state of the result: that of the original without `DROPPED_STATE`.
        line: the line that is added to the history of the model.
        history: one dictionary for each epoch.
        trained_records: records that went forward and backward, counted by `fit`, `read` and `run`.
        forward_records: records that only went forward.
        optimiser_steps: steps of the optimisers of training runs, counted by `fit`, `count` and `run`.
        recomputed: names of state that the method computed from D_r alone, whether or not a bit changed. State that
            changed is found by comparison and need not be named.
        retrained: the weights come from a training on D_r alone. It need not be set if the guarantee is `exact`, if
            `weights` are in `recomputed`, or if the model comes from another method that retrained it (`run`).
        thawed: frozen parameters of the original that may change, because they were trained before they were frozen.
        bound: `Outcome.bound`.
        followed: `Outcome.followed`, counted by `fit` and `run`; reset by `re_estimate`.
    """

    trained: Trained
    request: ForgetRequest
    context: Context
    name: str
    options: Mapping[str, Any]
    guarantee: str
    old_records: Records = dataclasses.field(init=False, repr=False)
    split: Split = dataclasses.field(init=False)
    mask: Mask | None = dataclasses.field(init=False)
    state: dict[str, Mapping[str, torch.Tensor]] = dataclasses.field(init=False)
    line: str = dataclasses.field(init=False)
    history: list[Mapping[str, Any]] = dataclasses.field(default_factory=list, init=False)
    trained_records: int = dataclasses.field(default=0, init=False)
    forward_records: int = dataclasses.field(default=0, init=False)
    optimiser_steps: int = dataclasses.field(default=0, init=False)
    recomputed: set[str] = dataclasses.field(default_factory=set, init=False)
    retrained: bool = dataclasses.field(default=False, init=False)
    thawed: set[str] = dataclasses.field(default_factory=set, init=False)
    bound: dict[str, Any] = dataclasses.field(default_factory=dict, init=False)
    followed: dict[str, int] = dataclasses.field(default_factory=dict, init=False)
    _model: nn.Module | None = dataclasses.field(default=None, init=False, repr=False)
    _part_seconds: float = dataclasses.field(default=0.0, init=False, repr=False)
    _started_at: float = dataclasses.field(default_factory=time.perf_counter, init=False, repr=False)

    def __post_init__(self) -> None:
        empty = len(self.request.record_ids) == 0
        self.split = self.trained.split if empty else self.request.apply(self.trained.split)
        self.old_records = self.context.for_split(self.trained.split).records
        self.context = self.context.for_split(self.split)
        self.mask = self.trained.mask
        self.state = {name: value for name, value in self.trained.state.items() if name not in DROPPED_STATE}
        self.line = f"{self.name}: {plural(len(self.request.record_ids), 'record')} {self.request.verb}"

    # ---- inputs

    @property
    def model(self) -> nn.Module:
        """A copy of the original on the runtime's device, made at the first use. A method changes or replaces it."""
        if self._model is None:
            self._model = self.context.runtime.place(clone_model(self.trained.model))
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._model = model

    @property
    def forget_rows(self) -> NDArray[np.int64]:
        """Row numbers of the records of D_f: those of this request."""
        return self.context.records.rows(self.request.record_ids)

    @property
    def retain_rows(self) -> NDArray[np.int64]:
        """Row numbers of the records of D_r; corrected records are among them, with their new values."""
        return self.context.records.rows(self.split.retain)

    @property
    def seed(self) -> int:
        """The seed of the method's training: derived from the context's seed and the method's name."""
        return derive(self.context.seed, "method", self.name)

    # ---- work, counted

    def fit(
        self,
        rows: NDArray[np.int64],
        recipe: Recipe,
        *,
        steps: Steps | None = None,
        records: Records | None = None,
        snapshots: Collection[int] = (),
    ) -> Fit:
        """Train `model` in place with its mask (`expunge.training.fit`): resumable, with progress; the cost is counted.

        Args:
            rows: row numbers of the records to train on.
            recipe: epochs, batch size, learning rates, augmentation.
            steps: objective, penalty and hooks; None: plain cross-entropy.
            records: records to train on instead of the context's (the same rows with other labels).
            snapshots: epochs after which to copy the state dict.
        """
        records = self.context.records if records is None else records
        run = dataclasses.replace(self.context, records=records, seed=self.seed)
        result = fit(
            self.model, rows, recipe, run, mask=self.mask, steps=steps, snapshots=snapshots, run_options=self.options,
            label=self.name,
        )  # fmt: skip
        self.count(result)
        self._count_followed(rows, recipe.epochs, steps or Steps(), records)
        return result

    def _count_followed(self, rows: NDArray[np.int64], epochs: int, steps: Steps, records: Records) -> None:
        """Count the records of D_f, and others, that went through the network in training mode."""
        if steps.batch_norm == "frozen" or self.request.correction is not None:
            return
        forget_rows = self.forget_rows
        found: dict[int, tuple[int, NDArray[np.int64]]] = {}  # by the identity of the rows, which most passes share
        for turn in map(steps.pass_of, range(epochs)):
            read, of = (rows, records) if turn is None else (turn.rows, turn.records or records)
            known = len(of) == len(self.context.records)  # other records are noise, or the like
            if known and id(read) not in found:
                found[id(read)] = (int(np.isin(read, forget_rows).sum()), read)
            of_forget = found[id(read)][0] if known else 0
            self._add_followed({"forget": of_forget, "others": len(read) - of_forget})

    def _add_followed(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self.followed[name] = self.followed.get(name, 0) + count

    def count(self, result: Fit) -> None:
        """Add the cost and the epochs of a training run."""
        self.trained_records += result.trained_records
        self.forward_records += result.forward_records
        self.optimiser_steps += result.optimiser_steps
        self._part_seconds += result.seconds
        self.history.extend(result.history)

    def read(
        self,
        rows: NDArray[np.int64],
        batch_size: int = 256,
        *,
        forward_only: bool = False,
        records: Records | None = None,
    ) -> Iterator[Batch]:
        """Yield batches `(x, y)` on the runtime's device, in order; their records are counted.

        Args:
            rows: row numbers of the records.
            batch_size: records in a batch.
            forward_only: count them as `forward_records`, not as `trained_records`.
            records: read these instead of the context's: `old_records`, for example.
        """
        for x, y in self.make_batches(rows, batch_size, records=records).in_order():
            if forward_only:
                self.forward_records += len(x)
            else:
                self.trained_records += len(x)
            yield x, y

    def make_batches(self, rows: NDArray[np.int64], batch_size: int, *, records: Records | None = None) -> Batches:
        """The batches of some records (of the context, or of `records`), on the runtime's device; not counted."""
        runtime = self.context.runtime
        return Batches(
            self.context.records if records is None else records,
            rows,
            batch_size=batch_size,
            device=runtime.torch_device,
            channels_last=runtime.channels_last,
            workers=runtime.workers,
        )

    def re_estimate(self, rows: NDArray[np.int64], batch_size: int) -> None:
        """Recompute the BatchNorm buffers of `model` from some records (`expunge.training.batchnorm.re_estimate`)."""
        batches = self.make_batches(rows, batch_size).in_order()
        count = batchnorm.re_estimate(self.model, batches, self.context.runtime)
        self.forward_records += count
        if count:
            self.recomputed.add("batch_norm")
            self.followed.clear()

    def run(self, method: _Forgets, trained: Trained, context: Context | None = None) -> Outcome:
        """Run another method for the same request; its cost is counted, its history is not added.

        Args:
            method: the other method.
            trained: the model to run it on.
            context: its context; None: that of this task.
        """
        outcome = method.forget(trained, self.request, context or self.context)
        self.trained_records += outcome.cost.trained_records
        self.forward_records += outcome.cost.forward_records
        self.optimiser_steps += outcome.cost.optimiser_steps or 0
        self._part_seconds += outcome.cost.seconds
        if "batch_norm" in outcome.recomputed:
            self.followed.clear()
        self._add_followed(outcome.followed)
        return outcome

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """The time in the block is not part of the cost (importing a library, for example)."""
        started_at = time.perf_counter()
        yield
        self._started_at += time.perf_counter() - started_at

    # ---- the result

    def start(self) -> None:
        """Start the clock, after the first step of this process: what torch sets up once is not the method's cost."""
        self.context.runtime.warm_up()
        self._started_at = time.perf_counter()

    def result(self) -> Trained:
        """The result so far, on the CPU."""
        model = self.model if self._model is None else self._model
        return dataclasses.replace(
            self.trained,
            model=self.context.runtime.release(model),
            mask=self.mask,
            split=self.split,
            state=self.state,
        )

    def identity(self) -> Outcome:
        """The outcome of an empty request: a copy of the model; no state is rewritten."""
        after = dataclasses.replace(self.trained, model=clone_model(self.trained.model))
        return self._make_outcome(after, 0.0)

    def finish(self, after: Trained) -> Outcome:
        """Make the outcome: apply the mask, move the records in the split, compare with the original.

        Args:
            after: the unlearned model.

        Raises:
            MethodError: a frozen parameter changed.
            MaskError: the mask does not fit the model.
        """
        self.context.runtime.synchronise()
        seconds = max(time.perf_counter() - self._started_at, self._part_seconds)
        provenance = after.provenance
        if len(provenance.history) == len(self.trained.provenance.history):
            provenance = provenance.add_history(self.line)
        if provenance.checkpoints and "early_checkpoints" not in after.state:
            provenance = dataclasses.replace(provenance, checkpoints={})
        provenance = dataclasses.replace(provenance, trained_on=self._find_training_set(provenance.trained_on))
        model = clone_model(after.model) if _share_memory(after.model, self.trained.model) else after.model
        if after.mask is not None:
            after.mask.check_fits(model)
            if after.mask.count_violations(model):
                after.mask.apply_(model)
        for parameter in model.parameters():
            parameter.grad = None
        after = dataclasses.replace(after, model=model, split=self.split, provenance=provenance)
        check_frozen(self.trained, after, self.thawed)
        changes = compare_models(self.trained, after)
        rewritten = find_rewritten(self.trained, after, changes) | self.recomputed
        present = after.list_influence_state()
        outcome = self._make_outcome(after, seconds)
        return dataclasses.replace(
            outcome,
            rewrote=tuple(name for name in present if name in rewritten),
            dropped=find_dropped(self.trained, after, present),
            history=tuple(self.history),
            bound=self.bound,
            changes=changes,
            recomputed=tuple(name for name in present if name in self.recomputed),
            followed=dict(self.followed),
            mask_changes=compare_masks(self.trained.mask, after.mask),
        )

    def _find_training_set(self, known: str) -> str:
        """The hash of the records that the weights were trained on; `known`: that of the model, if it has one."""
        if self.retrained or self.guarantee == "exact" or "weights" in self.recomputed:
            split = self.split
            return hash_training_set(split.retain, (c.hash for c in split.corrections))
        split = self.trained.split
        return known or hash_training_set(split.train, (c.hash for c in split.corrections))

    def _make_outcome(self, after: Trained, seconds: float) -> Outcome:
        return Outcome(
            trained=after,
            request=self.request,
            method=self.name,
            options=self.options,
            guarantee=self.guarantee,
            cost=Cost(
                self.trained_records, self.forward_records, len(self.split.retain), seconds, self.optimiser_steps
            ),
            rewrote=(),
            seed=self.context.seed,
        )


def _share_memory(a: nn.Module, b: nn.Module) -> bool:
    pointers = [{tensor.data_ptr() for tensor in m.state_dict().values() if tensor.numel()} for m in (a, b)]
    return bool(pointers[0] & pointers[1])


def check_guarantee(claimed: str, allowed: str, where: str) -> None:
    """Raise MethodError if an outcome claims a guarantee that is unknown or stronger than the method's."""
    order = list(GUARANTEES)
    if claimed not in order or order.index(claimed) < order.index(allowed):
        raise MethodError(
            f"the outcome claims the guarantee {claimed!r}, but the method has at most {allowed!r}",
            where=where,
            hint=f"from strong to weak: {', '.join(order)}",
        )
