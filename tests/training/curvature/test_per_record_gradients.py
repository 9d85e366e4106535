"""Gradients of single records and the diagonal Fisher against one backward pass for each record and label."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge.core.errors import ConfigError, TrainingError
from expunge.core.mask import Mask, MaskProvenance
from expunge.training.curvature import (
    diagonal_fisher,
    find_rule,
    gradient,
    mean_squared_gradients,
    parameters_of,
    per_record_gradients,
    softmax_root,
)
from expunge.training.curvature.plan import make_plan

CLASSES = 4


class Reshape(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), *self.shape)


def conv2d(**options: object) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, **options), nn.Tanh(), nn.Flatten(), nn.LazyLinear(CLASSES))


def conv1d(**options: object) -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 6, **options), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(CLASSES))


class Tied(nn.Module):
    """One weight in two layers, and one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(self.first(x))))))


class Functional(nn.Module):
    """The weight of a layer is also used outside the layer: its rule sees only one of the uses."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.inside(x))
        return self.outside(functional.linear(x, self.inside.weight) * self.scale)


class Transposed(nn.Module):
    """The first dimension of a layer's input is time, not records."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.last = nn.Linear(3, 5), nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.step(x.transpose(0, 1))).mean(0))


class Residual(nn.Module):
    """In-place operations on the output of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.first(x))
        y += x
        return self.last(torch.relu_(y).mean((2, 3)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 5, padding_idx=0)
        self.last = nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.table(x).mean(1)))


class Loops(nn.Module):
    """A decision by a value, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = [functional.linear(r, self.weight) * (2.0 if float(r.detach().sum()) > 0 else 1.0) for r in x]
        return torch.stack(rows)


IMAGE, SERIES, TABLE = (4, 7, 6), (4, 9), (5,)
NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES, bias=False)), TABLE),
    "linear over time": (
        lambda: nn.Sequential(nn.Linear(9, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)), SERIES
    ),
    "conv2d": (lambda: conv2d(kernel_size=3), IMAGE),
    "conv2d stride and padding": (lambda: conv2d(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0)), IMAGE),
    "conv2d groups": (lambda: conv2d(kernel_size=3, groups=2, padding=1, bias=False), IMAGE),
    "conv2d dilation": (lambda: conv2d(kernel_size=2, dilation=(2, 3), groups=2), IMAGE),
    "conv2d same": (lambda: conv2d(kernel_size=(2, 3), padding="same"), IMAGE),
    "conv2d valid": (lambda: conv2d(kernel_size=2, padding="valid"), IMAGE),
    "conv2d circular": (lambda: conv2d(kernel_size=3, padding=(1, 2), padding_mode="circular"), IMAGE),
    "conv1d": (lambda: conv1d(kernel_size=3, stride=2, padding=2, dilation=2, groups=2), SERIES),
    "conv1d reflect": (lambda: conv1d(kernel_size=3, padding=1, padding_mode="reflect"), SERIES),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Flatten(), nn.LazyLinear(CLASSES)), IMAGE
    ),
    "batch norm": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(6),
            nn.BatchNorm1d(6), nn.Linear(6, CLASSES),
        ),
        IMAGE,
    ),
    "batch norm 3d": (
        lambda: nn.Sequential(Reshape(2, 2, 7, 6), nn.BatchNorm3d(2), nn.Flatten(), nn.LazyLinear(CLASSES)), IMAGE
    ),
    "tied": (Tied, TABLE),
    "functional": (Functional, TABLE),
    "transposed": (Transposed, (5, 3)),
    "residual": (Residual, IMAGE),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.LazyLinear(CLASSES)), IMAGE
    ),
    "attention": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(9, 3, 8, batch_first=True), nn.Flatten(), nn.LazyLinear(CLASSES)
        ),
        SERIES,
    ),
    "loops": (Loops, TABLE),
}  # fmt: skip
#: Networks of which some parameters are differentiated by `torch.func`, with these parameters.
GENERIC = {
    "functional": {"inside.weight", "inside.bias", "scale"},
    "transposed": {"step.weight", "step.bias"},
    "group norm": {"1.weight", "1.bias"},
    "loops": {"weight"},
}


def make(name: str, count: int = 7) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network in float64 with buffers that are not the initial ones, inputs and labels."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    x = torch.randn(count, *shape)
    model = build()
    model(x)  # lazy layers, and running statistics of BatchNorm
    model = model.double()
    return model, x.double(), torch.randint(0, CLASSES, (count,))


def by_loop(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of each record's loss, one backward pass each."""
    model.eval()
    parameters = dict(model.named_parameters())
    rows = []
    for record, label in zip(x, y, strict=True):
        loss = functional.cross_entropy(model(record[None]), label[None])
        rows.append(torch.autograd.grad(loss, list(parameters.values())))
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(parameters)}


def fisher_by_loop(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """sum_k p_k (grad log p_k)^2, averaged over records."""
    with torch.no_grad():
        p = model.eval()(x).softmax(1)
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for label in range(CLASSES):
        for name, rows in by_loop(model, x, torch.full((len(x),), label)).items():
            total[name] += (p[:, label].view(-1, *[1] * (rows.dim() - 1)) * rows.square()).sum(0) / len(x)
    return total


def batches(x: torch.Tensor, y: torch.Tensor, size: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_fisher_equal_loops_over_records(name: str) -> None:
    model, x, y = make(name)
    expected, fisher = by_loop(model, x, y), fisher_by_loop(model, x)
    model.train()
    found = per_record_gradients(model, x, y, objective=functional.cross_entropy)
    exact = diagonal_fisher(model, batches(x, y))
    empirical = diagonal_fisher(model, batches(x, y, 2), kind="empirical")
    assert model.training
    assert found.keys() == expected.keys() == exact.keys()
    for parameter, rows in expected.items():
        torch.testing.assert_close(found[parameter], rows, rtol=1e-9, atol=1e-12, msg=parameter)
        torch.testing.assert_close(exact[parameter], fisher[parameter], rtol=1e-9, atol=1e-14, msg=parameter)
        torch.testing.assert_close(empirical[parameter], rows.square().mean(0), rtol=1e-9, atol=1e-14, msg=parameter)
    rest = set(make_plan(model, x, parameters_of(model)).rest)
    if name in GENERIC:
        assert rest == GENERIC[name]
    elif name != "attention":
        assert rest == set(), "a rule was not used"


def test_embedding_with_padding() -> None:
    torch.manual_seed(1)
    model, x, y = Words().double(), torch.randint(0, 7, (6, 3)), torch.randint(0, CLASSES, (6,))
    x[::2, 1] = 0  # the padding
    expected, fisher = by_loop(model, x, y), fisher_by_loop(model, x)
    found, exact = (
        per_record_gradients(model, x, y, objective=functional.cross_entropy),
        diagonal_fisher(model, [(x, y)]),
    )
    for name, rows in expected.items():
        torch.testing.assert_close(found[name], rows, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(exact[name], fisher[name], rtol=1e-9, atol=1e-14)
    assert make_plan(model, x, parameters_of(model)).rest == ()


def test_a_mask_names_and_one_record() -> None:
    model, x, y = make("conv2d groups")
    expected = per_record_gradients(model, x, y)
    kept = torch.rand(model[0].weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    mask = Mask({"0.weight": kept}, MaskProvenance("random"))
    found = per_record_gradients(model, x, y, mask=mask, names=["0.weight"])
    assert list(found) == ["0.weight"]
    assert torch.equal(found["0.weight"], torch.where(kept, expected["0.weight"], 0.0))
    exact, masked = diagonal_fisher(model, batches(x, y)), diagonal_fisher(model, batches(x, y), mask=mask)
    assert torch.equal(masked["0.weight"], torch.where(kept, exact["0.weight"], 0.0))
    assert torch.equal(masked["3.weight"], exact["3.weight"])
    one = per_record_gradients(model, x[:1], y[:1])
    torch.testing.assert_close(one["0.weight"][0], expected["0.weight"][0])


def test_the_mean_of_the_gradients_is_the_gradient() -> None:
    model, x, y = make("batch norm")
    mean = gradient(model, [(x, y)])
    for name, rows in per_record_gradients(model, x, y).items():
        torch.testing.assert_close(rows.mean(0), mean[name], rtol=1e-4, atol=1e-6)


def test_the_root_of_the_softmax_hessian() -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 6, dtype=torch.float64) * torch.logspace(-2, 2.5, 50, dtype=torch.float64)[:, None]
    p, root = logits.softmax(1), softmax_root(logits)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    assert root.shape == (50, 5, 6)
    assert torch.isfinite(root).all()
    torch.testing.assert_close(torch.einsum("bck,bcl->bkl", root, root), expected, rtol=0, atol=1e-14)
    confident = torch.tensor([[30.0, 0.0, -5.0]])  # 1 - p is 1e-13: lost in float32, but not in the root
    variance = softmax_root(confident).square().sum(1)[0]
    exact = confident.double().softmax(1)[0]
    torch.testing.assert_close(variance.double(), exact * torch.stack([exact[1:].sum(), 1 - exact[1], 1 - exact[2]]),
                               rtol=1e-4, atol=0)  # fmt: skip


def test_sampled_labels_have_the_exact_fisher_as_their_mean_and_do_not_depend_on_the_batches() -> None:
    model, x, y = make("linear", count=40)
    exact = diagonal_fisher(model, [(x, y)])
    many = diagonal_fisher(model, batches(x, y, 7), kind="sampled", samples=2000, seed=3)
    few = [diagonal_fisher(model, batches(x, y, size), kind="sampled", samples=3, seed=3) for size in (40, 7)]
    other = diagonal_fisher(model, [(x, y)], kind="sampled", samples=3, seed=4)
    for name, tensor in exact.items():
        torch.testing.assert_close(many[name], tensor, rtol=0.1, atol=0.02 * float(tensor.max()))
        torch.testing.assert_close(few[0][name], few[1][name], rtol=1e-12, atol=0)
        assert not torch.allclose(few[0][name], other[name], rtol=1e-3)


def test_parts_of_a_batch_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.training.curvature import layer_rules, records

    model, x, y = make("batch norm")
    expected = diagonal_fisher(model, [(x, y)])
    monkeypatch.setattr(records, "AT_ONCE", 6)
    monkeypatch.setattr(layer_rules, "ENTRIES", 1)
    for name, tensor in diagonal_fisher(model, [(x, y)]).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=0)


def test_squares_of_another_objective() -> None:
    """The importance of MAS: the squared gradient of |f|^2."""
    model, x, y = make("conv1d")

    def energy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.square().sum(1).mean()

    found = mean_squared_gradients(model, batches(x, y), objective=energy)
    rows = [torch.autograd.grad(energy(model.eval()(r[None]), y[:1]), list(model.parameters())) for r in x]
    for i, tensor in enumerate(found.values()):
        torch.testing.assert_close(tensor, torch.stack([r[i] for r in rows]).square().mean(0), rtol=1e-9, atol=1e-14)


def test_flags_of_the_model_are_restored() -> None:
    model, x, y = make("batch norm")
    model.train()
    model[0].bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    fisher = diagonal_fisher(model, [(x, y)])
    assert "0.bias" not in fisher
    assert "0.weight" in fisher
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(m.training for m in model.modules())
    assert all(not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


class Mixes(nn.Module):
    """Records of a batch interact: no single record has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x - x.mean(0))


def test_refusals() -> None:
    x, y = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    with pytest.raises(TrainingError, match="depend on the other records"):
        diagonal_fisher(Mixes(), [(x, y)])
    untracked = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(TrainingError, match="statistics of the batch"):
        per_record_gradients(untracked, x, y)
    model = nn.Linear(5, CLASSES)
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        diagonal_fisher(model, [(x, y)], kind="exakt")
    with pytest.raises(ConfigError, match="at least 1 label"):
        diagonal_fisher(model, [(x, y)], kind="sampled", samples=0)
    with pytest.raises(TrainingError, match="no records"):
        diagonal_fisher(model, [])
    with pytest.raises(TrainingError, match="weight: the Fisher information is not finite"):
        diagonal_fisher(model, [(x * float("inf"), y)])
    with pytest.raises(TrainingError, match="frozen or missing"):
        diagonal_fisher(model, [(x, y)], names=["weights"])


def test_only_the_class_itself_follows_a_rule() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    assert find_rule(Doubled(2, 2)) is None
    assert find_rule(nn.Linear(2, 2)) is not None
