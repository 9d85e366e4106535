"""Common code of FT, GA, RL and l1-sparse: a few epochs of masked SGD from the original weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from expunge.core.errors import RequestError
from expunge.core.outcome import Cost, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.training import batchnorm
from expunge.training.loop import AfterStep, Objective, Penalty, Steps, cross_entropy, fit
from expunge.training.recipes import Recipe

from .base import Context, Method, identity_outcome, require_range

#: State that only pruning and un-pruning need; methods remove it from the unlearned model.
DROPPED_STATE = ("rewind_checkpoint", "pruning_scores", "pruning_weights", "optimiser_moments")


@dataclasses.dataclass(frozen=True)
class FineTuning(Method):
    """Base class of methods that train for a few epochs at a constant learning rate.

    Attributes:
        epochs: passes over the records that the method trains on.
        learning_rate: constant learning rate.
        batch_size: records per step.
        momentum, weight_decay: as in `torch.optim.SGD`; [Jia2023]: 0.9 and 5e-4.
        batch_norm: treatment of the BatchNorm buffers: `train`, `frozen` or `re-estimate` (on D_r).
        augment: `as-trained` (the original's), `none`, or the name of an augmentation.

    With `epochs=0` the method changes neither weights nor buffers (`re-estimate` still recomputes the buffers). With
    `learning_rate=0` it does not change the weights, but the buffers, unless they are `frozen`: in training mode every
    forward pass updates them.
    """

    epochs: int = 10
    learning_rate: float = 0.01
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_norm: str = "train"
    augment: str = "as-trained"

    def __post_init__(self) -> None:
        require_range(
            type(self).__name__,
            epochs=(self.epochs, self.epochs >= 0),
            learning_rate=(self.learning_rate, 0 <= self.learning_rate < math.inf),
            batch_size=(self.batch_size, self.batch_size >= 1),
            momentum=(self.momentum, 0 <= self.momentum < 1),
            weight_decay=(self.weight_decay, 0 <= self.weight_decay < math.inf),
        )
        batchnorm.check_mode(self.batch_norm)

    def make_recipe(self, trained: Trained) -> Recipe:
        """Return the recipe of this method for a model."""
        augment = self.augment
        if augment == "as-trained":
            augment = str(trained.provenance.recipe.get("augment", "none"))
        return Recipe(
            name="fine-tuning",
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            augment=augment,
        )


def fine_tune(
    method: Method,
    options: FineTuning,
    trained: Trained,
    request: ForgetRequest,
    context: Context,
    *,
    on: Literal["retain", "forget", "both"],
    records: Records | None = None,
    objective: Objective = cross_entropy,
    penalty: Penalty | None = None,
    after_step: AfterStep | None = None,
) -> Outcome:
    """Train a copy of the model with its mask fixed, and return the outcome.

    Args:
        method: the method that the outcome names.
        options: its options.
        trained: the original model.
        request: the records to forget; for an empty request the result is a copy of the model.
        context: records, runtime, seed, checkpoint, progress.
        on: train on D_r (`retain`), on D_f (`forget`), or on both in one order (`both`).
        records: records to train on instead of the context's (the same rows with other labels).
        objective: `(B x K logits, B labels) -> scalar`.
        penalty: `(model, epoch) -> scalar or None`, added to the objective.
        after_step: `(model, epoch, learning rate)`, called after each masked step.

    Raises:
        RequestError: a record is not in the retain set, or there are no records to train on.
    """
    option_values: dict[str, Any] = dataclasses.asdict(options)
    if len(request.record_ids) == 0:
        return identity_outcome(method, trained, request, context, option_values)
    split = request.apply(trained.split)
    records, runtime = context.records if records is None else records, context.runtime
    recipe = options.make_recipe(trained)
    parts = {"retain": (split.retain,), "forget": (request.record_ids,), "both": (split.retain, request.record_ids)}
    rows = np.concatenate([records.rows(ids) for ids in parts[on]])
    if len(rows) == 0:
        raise RequestError(f"there are no {on} records to train on")
    model = runtime.place(clone_model(trained.model))
    placement: dict[str, Any] = {"device": runtime.torch_device, "channels_last": runtime.channels_last}
    run = dataclasses.replace(context, records=records, seed=derive(context.seed, "method", method.name))
    result = fit(
        model,
        rows,
        recipe,
        run,
        mask=trained.mask,
        steps=Steps(objective, penalty, after_step, batch_norm=options.batch_norm),
        run_options=option_values,
        label=method.name,
    )
    forward_records, seconds = result.forward_records, result.seconds
    rewrote = {"weights"} if options.epochs > 0 and options.learning_rate > 0 else set()
    if options.epochs > 0 and options.batch_norm != "frozen":
        rewrote |= {"batch_norm", "buffers"}
    if options.batch_norm == "re-estimate":
        size = max(recipe.batch_size, batchnorm.ESTIMATION_BATCH)
        retain = Batches(records, records.rows(split.retain), batch_size=size, **placement)
        estimated_on, estimation_seconds = batchnorm.re_estimate_timed(model, retain.in_order(), runtime)
        forward_records, seconds = forward_records + estimated_on, seconds + estimation_seconds
        rewrote.add("batch_norm")
    provenance = trained.provenance.add_history(
        f"{method.name}: {len(request.record_ids)} records forgotten in {options.epochs} epochs on "
        + ("both sets" if on == "both" else f"the {on} set")
    )
    after = dataclasses.replace(
        trained,
        model=runtime.release(model),
        split=split,
        provenance=provenance,
        state={k: v for k, v in trained.state.items() if k not in DROPPED_STATE},
    )
    return Outcome(
        trained=after,
        request=request,
        method=method.name,
        options=option_values,
        guarantee=method.guarantee,
        cost=Cost(result.trained_records, forward_records, len(split.retain), seconds),
        rewrote=tuple(k for k in after.list_influence_state() if k in rewrote),
        dropped=tuple(k for k in DROPPED_STATE if k in trained.state),
        history=result.history,
        seed=context.seed,
    )
