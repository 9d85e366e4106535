"""mask-logit writes one constant into the logit of the class: no input may move it."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from expunge.data import forget_class
from expunge.methods import Context, get_method
from expunge.training.predict import predict_logits


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
