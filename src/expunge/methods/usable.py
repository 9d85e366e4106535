"""Whether a method can run on a trained model: everything that is known before it runs, in one place."""

from __future__ import annotations

from expunge.core.errors import ModelError
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.batches import Batches
from expunge.data.corrections.values import check_correction
from expunge.data.records import Records
from expunge.sparsity import recorded_schedule
from expunge.training.batchnorm import join_single_records
from expunge.training.curvature import check_second_derivatives
from expunge.training.recipes import get_recipe

from .base import Method
from .composition.stopping import find_validation_rows


def check_usable(method: Method, trained: Trained, records: Records, request: ForgetRequest | None = None) -> None:
    """Raise the error with which a method would refuse a model or a request; nothing is trained.

    Args:
        method: with its options.
        trained: the original model.
        records: the records of its split, with their values before the request.
        request: the request; None: what does not depend on it is checked.

    Raises:
        ModelError: the method does not support the network, or cannot train it on D_f alone.
        MethodError, MaskError: state or validation records that the method needs are missing, or the network starts
            from the trained weights.
        RequestError: the method cannot forget this request, or does not support corrections.
        TrainingError: the method needs second derivatives that the network does not have.
        ConfigError: the recipe is too short for its options.

    >>> import expunge
    >>> from expunge.methods import check_usable
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records, seed=0)
    >>> network = expunge.architecture("mlp", records, split, widths=(8,))
    >>> trained = expunge.train(records, split, network, recipe=expunge.get_recipe("one-cycle", epochs=1))
    >>> request = expunge.forget_ids(records, split, split.retain[:3])
    >>> check_usable(expunge.get_method("FT"), trained, records, request)
    >>> check_usable(expunge.get_method("mask-logit"), trained, records, request)
    Traceback (most recent call last):
        ...
    expunge.core.errors.RequestError: mask-logit: this method can only forget a whole class...
    """
    reason = method.unsupported_reason(trained.model, records)
    if reason is not None:
        raise ModelError(reason[0], where=f"method {method.name}", hint=reason[1] or None)
    if request is not None and request.correction is not None:
        method.check_corrects()
        check_correction(records, trained.split, request.correction)
    method.check_retained(trained.split)
    method.check_state(trained)
    if trained.provenance.recipe:
        method.check_recipe(get_recipe(trained.provenance.recipe))
    if request is not None:
        request.apply(trained.split)
        method.check_request(trained.model, trained.mask, request, records)
    matrix = (method.for_dense_model() if trained.mask is None else method).needed_curvature(
        None if trained.mask is None else recorded_schedule(trained.mask)
    )
    if matrix is not None:
        check_second_derivatives(trained.model, records.input_shape, records.classes, matrix_type=matrix)
    if request is None:
        return
    if method.trains_on == "forget":
        rows = records.rows(request.record_ids)
        join_single_records(trained.model, Batches(records, rows, batch_size=max(2, len(rows) - 1)))
    if method.needs_validation is not None:
        where = f"{method.name}.{method.needs_validation}"
        find_validation_rows(records, trained.split, records.rows(request.record_ids), where)
