"""What a method changed and what forward passes change, by comparing tensors; and models that cannot be copied."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

from expunge.core.errors import ModelError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained, clone_model, compare_states, find_running_tensors


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def changes(before: nn.Module, after: nn.Module, mask: Mask | None = None) -> dict[str, tuple[str, int, int, str]]:
    return {c.name: (c.kind, c.changed, c.total, c.status) for c in compare_states(before, after, mask)}


def test_equal_models_are_unchanged() -> None:
    model = network()
    found = compare_states(model, copy.deepcopy(model))
    assert [c.name for c in found] == list(model.state_dict())
    assert {(c.changed, c.status, c.fraction) for c in found} == {(0, "unchanged", 0.0)}
    assert [c.kind for c in found if c.name.startswith("1.")] == ["parameter"] * 2 + ["buffer"] * 3


def test_each_entry_counts() -> None:
    before = network()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after[0].weight[0] += 1  # 4 of 12
        after[2].bias += 1
        after[1].running_mean[2] = 5
        after[1].num_batches_tracked += 1
    found = {name: change for name, change in changes(before, after).items() if change[3] != "unchanged"}
    assert found == {
        "0.weight": ("parameter", 4, 12, "partly"),
        "1.running_mean": ("buffer", 1, 3, "partly"),
        "1.num_batches_tracked": ("buffer", 1, 1, "changed"),
        "2.bias": ("parameter", 2, 2, "changed"),
    }


def test_bits_are_compared() -> None:
    before = network()
    with torch.no_grad():
        before[0].weight[0, 0], before[0].weight[0, 1] = 0.0, float("nan")
    after = copy.deepcopy(before)
    assert changes(before, after)["0.weight"][1] == 0  # NaN equals itself
    with torch.no_grad():
        after[0].weight[0, 0] = -0.0
    assert changes(before, after)["0.weight"][1] == 1


def test_pruned_weights_do_not_count() -> None:
    kept = torch.tensor([[True, False, False, False]] * 3)
    mask = Mask({"0.weight": kept}, MaskProvenance("magnitude"))
    before = network()
    mask.apply_(before)
    after = copy.deepcopy(before)
    with torch.no_grad():
        after[0].weight += 1
    mask.apply_(after)
    assert changes(before, after)["0.weight"] == ("parameter", 3, 12, "partly")
    assert changes(before, after, mask)["0.weight"] == ("parameter", 3, 3, "changed")


def test_other_tensors_are_named() -> None:
    before, after = network(), network()
    after[0] = nn.Linear(4, 3, bias=False)
    after[2] = nn.Linear(3, 5)
    after.register_buffer("extra", torch.zeros(2))
    found = changes(before, after)
    assert found["0.bias"][3] == "removed"
    assert found["extra"] == ("buffer", 2, 2, "added")
    assert found["2.weight"] == ("parameter", 15, 15, "replaced")


def test_wrappers_and_tied_tensors() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.b = nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    before = Tied()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.a.weight[0] += 1
    expected = {"a.weight": ("parameter", 2, 4, "partly"), "b.weight": ("parameter", 2, 4, "partly")}
    assert changes(before, nn.DataParallel(after)) == expected


class Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("positions", torch.arange(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean


class ByLength(Statistics):
    """Cannot be run on 4 records."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).reshape(5, 4)


def influence(
    model: nn.Module, shape: tuple[int, ...] | None = (4,)
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    architecture = {"name": "x", **({} if shape is None else {"input_shape": list(shape)})}
    split = Split(retain=["a"], forget=[], validation=[], test=[], non_members=[])
    trained = Trained(model, None, split, Provenance(architecture))
    return trained.list_influence_state(), trained.find_running_state()


def test_running_state_is_found_by_what_changes() -> None:
    kinds, tensors = influence(nn.Sequential(Statistics(), nn.BatchNorm1d(4)))
    assert kinds == ("weights", "batch_norm", "buffers")
    assert tensors["buffers"] == ("0.mean",)
    assert len(tensors["batch_norm"]) == 3


def test_instance_norm_is_named() -> None:
    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    assert influence(nn.Sequential(norm), (2, 4))[0] == ("weights", "batch_norm")
    assert influence(nn.Sequential(nn.InstanceNorm1d(2)), (2, 4))[0] == ("weights",)


def test_constant_buffers_are_not_named() -> None:
    class Constant(Statistics):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - self.mean

    assert influence(nn.Sequential(Constant()))[0] == ("weights",)
    assert influence(nn.Sequential(Constant()), None)[0] == ("weights", "buffers")  # it cannot be run: any may change


def test_a_network_that_cannot_be_run_names_all_its_buffers() -> None:
    assert influence(nn.Sequential(ByLength()))[1]["buffers"] == ("0.mean", "0.positions")


def test_finding_them_changes_nothing() -> None:
    model = nn.Sequential(Statistics(), nn.Dropout(0.5)).eval()
    before, state = copy.deepcopy(model), torch.get_rng_state()
    assert find_running_tensors(model, (4,)) == ("0.mean",)
    assert all(c.status == "unchanged" for c in compare_states(before, model))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden = self.layer(x)
        return self.hidden


def after_forward(model: nn.Module) -> nn.Module:
    model(torch.ones(3, 4))
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "where", "hint"),
    [
        (lambda: nn.Sequential(weight_norm(nn.Linear(4, 2))), r"0\.weight", "remove_weight_norm"),
        (lambda: nn.Sequential(prune.l1_unstructured(nn.Linear(4, 2), "weight", 3)), r"0\.weight", r"prune\.remove"),
        (lambda: after_forward(nn.Sequential(spectral_norm(nn.Linear(4, 2)))), r"0\.weight", "remove_spectral_norm"),
        (lambda: after_forward(Keeps()), "hidden", "detach"),
        (lambda: nn.Sequential(nn.LazyBatchNorm1d()), r"0\.\w+", "lazy|batch of zeros"),
    ],
)
def test_what_prevents_a_copy_is_named(make: Callable[[], nn.Module], where: str, hint: str) -> None:
    with pytest.raises(ModelError, match=rf"^{where}: the model cannot be copied") as caught:
        clone_model(make())
    assert caught.value.hint is not None
    assert re.search(hint, caught.value.hint)


def test_any_other_refusal_of_deepcopy_is_an_error_of_the_model() -> None:
    model = nn.Linear(2, 2)
    model.lock = (x for x in ())  # a generator cannot be copied
    with pytest.raises(ModelError, match="Linear: the model cannot be copied"):
        clone_model(model)
