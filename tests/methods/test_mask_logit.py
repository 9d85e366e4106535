"""mask-logit: the class is never predicted, all other logits are unchanged, and the contract holds."""

from __future__ import annotations

import dataclasses

import method_contract as contract
import numpy as np
import pytest
import torch

from expunge.core.errors import RequestError
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.trained import clone_model
from expunge.data import forget_class
from expunge.methods import Context, get_method
from expunge.training.predict import predict_logits


@pytest.mark.parametrize("model", ["dense", "sparse", "mlp"])
def test_contract_and_effect(model, request, digits, cpu, tmp_path):
    trained = request.getfixturevalue(model)
    class_request = forget_class(digits, trained.split, 3)
    context, method = Context(digits, cpu, seed=1), get_method("mask-logit")
    contract.check(method, trained, class_request, context, tmp_path, seeded=False)
    outcome = method.forget(trained, class_request, context)
    rows = np.arange(len(digits))
    before, after = (predict_logits(m, digits, rows) for m in (trained.model, outcome.trained.model))
    others = [k for k in range(10) if k != 3]
    assert torch.equal(before[:, others], after[:, others])
    assert (after.argmax(1) != 3).all()
    assert (after.argmax(1) == before.argmax(1))[before.argmax(1) != 3].all()


def test_only_a_whole_class_can_be_masked(dense, digits, cpu):
    with pytest.raises(RequestError, match="whole class"):
        get_method("mask-logit").forget(dense, ForgetRequest(dense.split.retain[:5]), Context(digits, cpu))
    headless = dataclasses.replace(dense, model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)))
    with pytest.raises(RequestError, match="linear layer"):
        get_method("mask-logit").forget(headless, forget_class(digits, dense.split, 3), Context(digits, cpu))


def test_a_mask_that_prunes_the_bias_is_refused(sparse, digits, cpu):
    """Applying the mask would set the logit back, and the class would be answered again."""
    kept = torch.ones(10, dtype=torch.bool)
    kept[3] = False
    mask = Mask({**sparse.mask.kept, "classifier.bias": kept}, sparse.mask.provenance)
    model = clone_model(sparse.model)
    mask.apply_(model)
    pruned = dataclasses.replace(sparse, model=model, mask=mask)
    with pytest.raises(RequestError, match="sets the bias of the class to 0"):
        get_method("mask-logit").forget(pruned, forget_class(digits, sparse.split, 3), Context(digits, cpu))
    other = get_method("mask-logit").forget(pruned, forget_class(digits, sparse.split, 4), Context(digits, cpu))
    assert mask.count_violations(other.trained.model) == {}


def test_the_logit_of_the_class_is_the_same_for_every_input(dense, digits, cpu):
    outcome = get_method("mask-logit").forget(dense, forget_class(digits, dense.split, 3), Context(digits, cpu))
    logits = predict_logits(outcome.trained.model, digits, np.arange(len(digits)))
    assert (logits[:, 3] == -1e4).all()
    parameters = dict(outcome.trained.model.named_parameters())
    assert (parameters["classifier.weight"][3] == 0).all()
    assert (parameters["classifier.weight"][4] != 0).any()


def test_inputs_far_outside_the_data_do_not_bring_the_class_back(dense, digits, cpu):
    """A row that were left in place would outweigh the constant for large activations."""
    outcome = get_method("mask-logit").forget(dense, forget_class(digits, dense.split, 3), Context(digits, cpu))
    wide = dataclasses.replace(digits, features=np.asarray(digits.features, np.float32) * 1e5)
    logits = predict_logits(outcome.trained.model, wide, np.arange(len(wide)))
    assert (logits[:, 3] == -1e4).all()
    assert torch.isfinite(logits).all()
