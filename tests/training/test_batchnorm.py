"""Re-estimated BatchNorm statistics against their closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ModelError, TrainingError
from expunge.core.hashing import hash_tensors
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.training import Context, Recipe, Runtime, predict_logits
from expunge.training.batchnorm import join_single_records, re_estimate, set_training_mode
from expunge.training.loop import fit


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(1, momentum=0.3), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.ReLU()
    )


def batches(digits: Records, count: int, size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(Batches(digits, np.arange(count), batch_size=size).in_order())


@pytest.mark.parametrize("count", [16, 50, 65])
def test_closed_form(digits: Records, cpu: Runtime, count: int) -> None:
    """First layer: means and unbiased variances of the batches, weighted by their records."""
    model = network()
    for layer in (model[0], model[2]):
        layer.running_mean.fill_(7.0)
        layer.running_var.fill_(9.0)
    weights = hash_tensors(dict(model.named_parameters()))
    given = batches(digits, count)
    used = [x for x, _ in given if len(x) > 1]
    total = sum(map(len, used))
    assert re_estimate(model, given, cpu) == total == count - (count % 16 == 1)
    mean = sum(len(x) * x.double().mean() for x in used) / total
    variance = sum(len(x) * x.double().var() for x in used) / total
    torch.testing.assert_close(model[0].running_mean.double(), mean.reshape(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(model[0].running_var.double(), variance.reshape(1), rtol=1e-5, atol=0)
    # second layer: its inputs were normalised with each batch's own (biased) statistics
    means, variances = torch.zeros(3).double(), torch.zeros(3).double()
    for x in used:
        z = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + model[0].eps)
        hidden = model[1](z).detach().double().transpose(0, 1).reshape(3, -1)
        means += len(x) * hidden.mean(1)
        variances += len(x) * hidden.var(1)
    torch.testing.assert_close(model[2].running_mean.double(), means / total, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model[2].running_var.double(), variances / total, rtol=1e-4, atol=1e-6)
    assert hash_tensors(dict(model.named_parameters())) == weights
    assert (model[0].momentum, model[2].momentum) == (0.3, 0.1)


def test_the_result_does_not_depend_on_old_buffers(digits: Records, cpu: Runtime) -> None:
    hashes = []
    for value in (0.0, 5.0):
        model = network()
        model[2].running_mean.fill_(value)
        re_estimate(model, batches(digits, 40), cpu)
        hashes.append(hash_tensors(dict(model.named_buffers())))
    assert hashes[0] == hashes[1]


def test_flags_are_restored(digits: Records, cpu: Runtime) -> None:
    model = network().train()
    model[2].eval()
    re_estimate(model, batches(digits, 20), cpu)
    assert [m.training for m in model] == [True, True, False, True, True]
    assert model.training


def test_models_without_running_statistics(digits: Records, cpu: Runtime) -> None:
    assert re_estimate(nn.Sequential(nn.Conv2d(1, 2, 3)), batches(digits, 20), cpu) == 0
    assert re_estimate(nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)), batches(digits, 20), cpu) == 0


@pytest.mark.parametrize(("count", "size"), [(1, 16), (5, 1), (0, 16)])
def test_no_batch_of_two_is_an_error(digits: Records, cpu: Runtime, count: int, size: int) -> None:
    with pytest.raises(TrainingError, match="no batch has two records"):
        re_estimate(network(), batches(digits, count, size), cpu)


def test_set_training() -> None:
    model = network().eval()
    set_training_mode(model, frozen=True, input_shape=(1, 8, 8))
    assert [m.training for m in model] == [False, True, False, True, True]
    set_training_mode(model, frozen=False, input_shape=(1, 8, 8))
    assert all(m.training for m in model)


def with_norm(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), norm, nn.ReLU(), nn.Linear(5, 10))


def test_a_last_batch_of_one_record_without_running_statistics(digits: Records, cpu: Runtime) -> None:
    """It is joined to the batch before; a model that has statistics trains on the same batches as ever."""
    rows, recipe = np.arange(17), Recipe(epochs=2, batch_size=8)
    for norm, least in ((nn.BatchNorm1d(5, track_running_stats=False), 2), (nn.BatchNorm1d(5), 1), (nn.Identity(), 1)):
        model, batches = with_norm(norm), Batches(digits, rows, batch_size=8)
        assert join_single_records(model, batches).least == least
        fit(model, rows, recipe, Context(digits, cpu))
        expected = predict_logits(model, digits, rows, runtime=cpu)
        with torch.no_grad():
            truth = model.eval()(torch.cat([x for x, _ in Batches(digits, rows, batch_size=17).in_order()]))
        assert torch.allclose(expected, truth, atol=1e-5)
    model = with_norm(nn.BatchNorm1d(5, track_running_stats=False))
    assert len(predict_logits(model, digits, rows, runtime=cpu, batch_size=16)) == 17


def test_one_record_alone_without_running_statistics(digits: Records, cpu: Runtime) -> None:
    model = with_norm(nn.BatchNorm1d(5, track_running_stats=False))
    for rows, size in (([3], 8), (range(4), 1)):
        with pytest.raises(ModelError, match="a batch of one record has no statistics"):
            fit(model, np.asarray(rows), Recipe(epochs=1, batch_size=size), Context(digits, cpu))
    with pytest.raises(ModelError, match="a batch of one record has no statistics"):
        predict_logits(model, digits, np.asarray([3]), runtime=cpu)


def test_images_of_several_pixels_have_statistics_alone(digits: Records) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)).eval()
    assert join_single_records(model, Batches(digits, range(9), batch_size=8)).least == 1
    assert not any(module.training for module in model.modules())
