"""mask-logit in networks in which the last registered layer is not the one that answers: right, or refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import RequestError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained, clone_model
from expunge.data import forget_class
from expunge.data.records import Records
from expunge.experiments import load_config
from expunge.methods import Context, get_method
from expunge.methods.mask_logit import LOGIT
from expunge.training import Runtime
from expunge.workflow import check_run

K, CLASS = 10, 3


class Net(nn.Module):
    """Two layers; the variants below change how it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 24)
        self.head = nn.Linear(24, K)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.hidden(x.flatten(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class AuxiliaryLater(Net):
    """An auxiliary head of K outputs that answers nothing is registered after the head."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(24, K)


class HeadFirst(Net):
    """A hidden layer of K units is registered after the head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(K, K)
        self.narrow = nn.Linear(24, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.narrow(self.features(x))))


class InContainers(Net):
    """The mean of three heads in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(24, K) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([head(self.features(x)) for head in self.heads]).mean(0)


class Twice(Net):
    """The head is used twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x)) + self.head(self.features(x.flip(-1)))


class Cooled(Net):
    """The logits are divided by a temperature."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x)) / 30.0


class Pointwise(nn.Module):
    """The head is a convolution with a 1 x 1 kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.head = nn.Conv2d(6, K, 1)
        self.other = nn.Linear(4, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.first(x))).mean((2, 3))


class OwnTensors(Net):
    """The head has weights of inputs x classes, with other names."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Identity()
        self.w = nn.Parameter(torch.randn(24, K))
        self.b = nn.Parameter(torch.zeros(1, K))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x) @ self.w + self.b


class NormalisedLogits(Net):
    """BatchNorm after the head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.head(self.features(x)))


class WeightNormed(Net):
    """The head's weight is computed from a direction and a length."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(24, K))


class TwoHeadsInTraining(Net):
    """The auxiliary head is added in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(24, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        main = self.head(self.features(x))
        return main + self.auxiliary(self.features(x)) if self.training else main


class Softmaxed(Net):
    """Probabilities: hiding one class changes all others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).log_softmax(1)


class Centred(Net):
    """The mean logit is subtracted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return logits - logits.mean(1, keepdim=True)


class Biasless(Net):
    """The head has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, K, bias=False)


class Tied(Net):
    """The head's weight is used by an earlier layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, K)
        self.narrow = nn.Linear(24, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.sigmoid(self.narrow(self.features(x))) @ self.head.weight)


class DroppedLogits(Net):
    """Dropout on the logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class FrozenHead(Net):
    """The head is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.head.requires_grad_(False)


RIGHT = (
    AuxiliaryLater, HeadFirst, InContainers, Twice, Cooled, Pointwise, OwnTensors, NormalisedLogits, WeightNormed,
    TwoHeadsInTraining,
)  # fmt: skip
REFUSED = {
    Softmaxed: "can be masked", Centred: "can be masked", Biasless: "no bias", Tied: "can be masked",
    DroppedLogits: "training mode", FrozenHead: "head.bias is frozen",
}  # fmt: skip


def make(kind: type[nn.Module], mlp: Trained) -> Trained:
    torch.manual_seed(1)
    net = kind()
    net(torch.rand(64, 1, 8, 8))  # running statistics
    return dataclasses.replace(mlp, model=net.eval(), mask=None, state={})


def run(model: nn.Module, x: torch.Tensor, training: bool) -> torch.Tensor:
    copied = clone_model(model).train(training)
    torch.manual_seed(0)
    with torch.no_grad():
        return copied(x)


def all_inputs(digits: Records) -> torch.Tensor:
    return torch.from_numpy(np.asarray(digits.features)).float() / 255


@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.__name__)
def test_the_class_is_never_predicted_and_other_logits_stay(
    kind: type[nn.Module], mlp: Trained, digits: Records, cpu: Runtime
) -> None:
    original = make(kind, mlp)
    before = original.hash
    outcome = get_method("mask-logit").forget(
        original, forget_class(digits, original.split, CLASS), Context(digits, cpu)
    )
    assert original.hash == before
    others = [k for k in range(K) if k != CLASS]
    x = torch.cat([all_inputs(digits), torch.rand(200, 1, 8, 8) * 5 - 2])
    for training in (False, True):
        old, new = (run(model, x, training) for model in (original.model, outcome.trained.model))
        assert torch.equal(old[:, others], new[:, others])
        assert (new[:, CLASS] - LOGIT).abs().max() <= 10
        assert (new.argmax(1) != CLASS).all()


def test_an_auxiliary_head_is_not_changed(mlp: Trained, digits: Records, cpu: Runtime) -> None:
    original = make(AuxiliaryLater, mlp)
    outcome = get_method("mask-logit").forget(
        original, forget_class(digits, original.split, CLASS), Context(digits, cpu)
    )
    assert {change.name for change in outcome.changes if change.changed} == {"head.weight", "head.bias"}
    assert "head.weight, head.bias" in outcome.trained.provenance.history[-1]


@pytest.mark.parametrize(("kind", "message"), REFUSED.items(), ids=[kind.__name__ for kind in REFUSED])
def test_a_network_in_which_no_logit_can_be_masked_is_refused(
    kind: type[nn.Module], message: str, mlp: Trained, digits: Records, cpu: Runtime
) -> None:
    original, method = make(kind, mlp), get_method("mask-logit")
    request = forget_class(digits, original.split, CLASS)
    with pytest.raises(RequestError, match=message):
        method.forget(original, request, Context(digits, cpu))
    with pytest.raises(RequestError, match=message):  # as in `check`
        method.check_request(original.model, None, request, digits)
    assert method.unsupported_reason(original.model, digits) is not None


@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: kind.__name__)
def test_the_right_ones_are_supported(kind: type[nn.Module], mlp: Trained, digits: Records) -> None:
    assert get_method("mask-logit").unsupported_reason(make(kind, mlp).model, digits) is None


class Gated(Net):
    """A second head answers for few inputs, none of which are among the probes."""

    def __init__(self) -> None:
        super().__init__()
        self.rare = nn.Linear(24, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rare = (x.flatten(1).sum(1) == self.sum).unsqueeze(1)
        return torch.where(rare, self.rare(self.features(x)), super().forward(x))


def test_outputs_of_all_records_are_checked(mlp: Trained, digits: Records, cpu: Runtime) -> None:
    original = make(AuxiliaryLater, mlp)
    net = Gated.__new__(Gated)
    nn.Module.__init__(net)
    torch.manual_seed(0)
    net.hidden, net.head, net.rare = nn.Linear(64, 24), nn.Linear(24, K), nn.Linear(24, K)
    row = digits.rows(original.split.test[:1])[0]
    net.sum = float(all_inputs(digits)[row].sum())
    trained = dataclasses.replace(original, model=net.eval())
    with pytest.raises(RequestError, match="in evaluation mode, the logit of class 3"):
        get_method("mask-logit").forget(trained, forget_class(digits, trained.split, CLASS), Context(digits, cpu))


def test_a_mask_that_prunes_the_bias_is_refused(mlp: Trained, digits: Records, cpu: Runtime) -> None:
    """Its result would break the mask, or the mask would make the logit 0."""
    original = make(Net, mlp)
    kept = torch.ones(K, dtype=torch.bool)
    kept[CLASS] = False
    mask = Mask({"head.bias": kept}, MaskProvenance("imported"))
    mask.apply_(original.model)
    sparse = dataclasses.replace(original, mask=mask)
    method, context = get_method("mask-logit"), Context(digits, cpu)
    request = forget_class(digits, sparse.split, CLASS)
    with pytest.raises(RequestError, match=r"sets the bias of the class to 0 \(head.bias\)"):
        method.forget(sparse, request, context)
    with pytest.raises(RequestError, match="sets the bias of the class to 0"):
        method.check_request(sparse.model, mask, request, digits)
    other = method.forget(sparse, forget_class(digits, sparse.split, CLASS + 1), context)  # its bias is kept
    assert other.trained.mask is mask
    assert mask.count_violations(other.trained.model) == {}
    assert other.trained.model.head.bias[CLASS + 1].item() == LOGIT


def test_check_reports_what_the_run_refuses(tmp_path: Path) -> None:
    text = (
        "{data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, method: {name: mask-logit},"
        " forget: {by: %s}}"
    )
    errors = []
    for by in ("random, count: 5", "class, index: 3"):
        path = tmp_path / "run.yaml"
        path.write_text(text % by)
        errors.append([(f.subject, f.message) for f in check_run(load_config(path)).findings if f.level == "error"])
    assert errors == [[("method", "mask-logit: this method can only forget a whole class")], []]


def test_single_records_are_refused_before_anything_is_made(mlp: Trained, digits: Records, cpu: Runtime) -> None:
    request = ForgetRequest(mlp.split.retain[:5])
    with pytest.raises(RequestError, match="whole class"):
        get_method("mask-logit").check_request(mlp.model, None, request, digits)
