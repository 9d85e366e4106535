"""False statements about executed numbers: overflow, underflow, constants; each shown false by executing the patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checker_case import written
from expunge.patches.bounds.solve import solve
from expunge.patches.network.regions import Box, compute_patterns
from expunge.patches.network.rounding import count_evaluation_steps
from expunge.patches.network.trace import trace
from forged import Forged, executed, library_spares, linear, operation
from patch_networks import NETWORKS, build
from torch import nn

from expunge_check.arithmetic.network import Network
from expunge_check.errors import BadCertificate
from expunge_check.folder.files import read_folder
from expunge_check.verify import CERTIFIED, FAILED, Checker

INPUT1, INPUT2 = operation("input", [], (1,)), operation("input", [], (2,))


def scaled(before: int, name: str, shape: tuple[int, ...] = (2,)):
    return operation("multiply_constant", [before], shape, {"value": name})


def relu(before: int, shape: tuple[int, ...] = (2,), slope: float = 0.0):
    return operation("relu", [before], shape, slope=slope)


def overflowing_weights() -> Forged:
    """Logit 0 is 6 e 38 x 1e-38 in real numbers, and infinite in float32."""
    tensors = {"w": [[3e38, 3e38], [1, 0]], "s": [1e-38, 1]}
    steps = [INPUT2, linear("w", 0, (2,)), scaled(1, "s"), relu(2)]
    return Forged(steps, tensors, [[1, 1]], [1], [8.0], low=1.0)


def overflowing_sum_of_a_mean() -> Forged:
    """The mean of four numbers of 2^126 is one of them; their sum is not in float32."""
    steps = [
        operation("input", [], (4,)), relu(0, (4,)), operation("mean", [1], (1,), axes=[0], keep=True),
        operation("pad", [2], (2,), pairs=[0, 1], value=0.0), scaled(3, "s"),
    ]  # fmt: skip
    return Forged(steps, {"s": 2.0**-126}, [[1] * 4], [1], [5.0], low=2.0**126, high=2.0**126)


def overflowing_shift() -> Forged:
    """Logit and shift are in float32; their sum is not, and infinity minus a logit is no margin of 1."""
    return Forged([INPUT2, relu(0)], {}, [[1, 1]], [1], [3e38], low=1.5e38, high=1.5e38)


def underflowing_slope() -> Forged:
    """-2^-60 x 2^-100 x 2^170 is -1,024, which the bias makes up for; in float32 the first product is 0."""
    tensors = {
        "w": [[-(2.0**-60), 0], [0, 2.0**-100]],
        "k": 2.0**120,
        "l": 2.0**50,
        "m": [[1, 0], [0, 0]],
        "b": [1024, 0],
    }
    steps = [INPUT2, linear("w", 0, (2,)), relu(1, slope=2.0**-100), scaled(2, "k"), scaled(3, "l")]
    steps.append(linear("m", 4, (2,), "b"))
    return Forged(steps, tensors, [[0, 1]], [1], [5.0], low=1.0)


def underflowing_batch_norm() -> Forged:
    """The scale 1.4 x 2^-149 is 2^-149 in float32, times inputs of 2^100 and a factor of 2^60."""
    tensors = {
        "mean": [0, 0], "variance": [2.0**80] * 2, "weight": [1.4 * 2.0**-109, 0], "bias": [0, 0],
        "k": 2.0**60, "m": [[-1, 0], [0, 0]], "b": [1.4 * 2.0**11, 0],
    }  # fmt: skip
    norm = operation("batch_norm", [1], (2,), {n: n for n in ("mean", "variance", "weight", "bias")}, epsilon=1e-5)
    steps = [INPUT2, relu(0), norm, scaled(2, "k"), linear("m", 3, (2,), "b")]
    return Forged(steps, tensors, [[1, 1]], [1], [5.0], low=2.0**100, high=2.0**100)


@pytest.mark.parametrize(
    "case",
    [overflowing_weights, overflowing_sum_of_a_mean, overflowing_shift, underflowing_slope, underflowing_batch_norm],
)
def test_statements_that_float32_violates_are_certified_by_neither_program(case, tmp_path):
    forged = case()
    folder = forged.write(tmp_path / "c")
    logits = executed(folder, np.full((1, *forged.operations[0]["shape"]), forged.low))[0]
    assert not logits[1] - logits[0] >= forged.epsilon or not np.isfinite(logits).all(), "the statement is false"
    for exact in (False, True):
        assert Checker(read_folder(folder), exact=exact)._compute_spare(np.arange(1))[0] < 0
    assert library_spares(folder)[0] < 0


def test_an_honest_box_as_wide_as_float32_is_not_certified(tmp_path):
    from expunge.patches.bounds.verify import verify_patches
    from expunge.patches.certificate import write_certificate
    from expunge.patches.model.patched_model import PatchedModel

    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
        model[2].weight.copy_(torch.tensor([[0.2, 0.0], [0.0, 0.1]]))
    network, x = trace(model, (2,)), torch.ones(1, 2)
    bits = compute_patterns(network, x)[1]
    for end, verdict in ((3e38, FAILED), (1e30, CERTIFIED)):
        box = Box.of((2,), -end, end)
        patches, proof = solve(network, bits, torch.tensor([0]), torch.tensor([1]), box)
        patched = PatchedModel(model, network, patches)
        far = torch.full((1, 2), end)
        assert (compute_patterns(network, far)[1] == bits).all(), "an input of the region"
        with torch.no_grad():
            kept = bool(patched(far)[0, 1] >= patched(far)[0, 0] + 1e-3)
        assert kept == (verdict == CERTIFIED)
        spare = verify_patches(network, patches, proof, box, claim="float32", epsilon=1e-3)
        assert (spare[0] >= 0) == (verdict == CERTIFIED)
        folder = tmp_path / verdict
        write_certificate(folder, patched, patches, proof, box, claim="float32", epsilon=1e-3, replay=x)
        assert Checker(read_folder(folder)).check().verdicts == [verdict]


@pytest.mark.parametrize("slope", [1e-46, 0.1, 1e-50])
def test_a_slope_that_is_not_float32_is_refused(slope, tmp_path):
    forged = Forged([INPUT2, relu(0, slope=slope)], {}, [[1, 1]], [1], [5.0], logits=[[0, 5]])
    with pytest.raises(BadCertificate, match="is not a float32 number"):
        Checker(read_folder(forged.write(tmp_path / "c")))
    forged.operations[1]["attributes"]["slope"] = float(np.float32(slope))
    assert Checker(read_folder(forged.write(tmp_path / "d")))._compute_spare(np.arange(1))[0] > 0


@pytest.mark.parametrize("value", [-1e-50, 0.1, 1e39, float("1e300")])
def test_a_padding_value_that_is_not_float32_is_refused(value, tmp_path):
    padded = operation("pad", [0], (2,), pairs=[0, 1], value=value)
    forged = Forged([INPUT1, padded, relu(1)], {}, [[1, 1]], [1], [5.0], logits=[[0, 5]])
    with pytest.raises(BadCertificate, match="is not a float32 number"):
        Checker(read_folder(forged.write(tmp_path / "c")))


@pytest.mark.parametrize("epsilon", [-1e-5, 1e-45, float("1e39")])
def test_an_epsilon_that_is_not_rounded_relatively_is_refused(epsilon, tmp_path):
    norm = operation("batch_norm", [0], (2,), {"mean": "m", "variance": "v"}, epsilon=epsilon)
    tensors = {"m": [0, 0], "v": [1, 1]}
    forged = Forged([INPUT2, norm, relu(1)], tensors, [[1, 1]], [1], [5.0], logits=[[0, 5]])
    with pytest.raises(BadCertificate, match="epsilon"):
        Checker(read_folder(forged.write(tmp_path / "c")))


def varying(case: str):
    """Networks that give the first record of a batch another answer than the second; and ones like them."""
    two = {"c": [[0, -9.0], [0, 9.0]], "w": [[1.0, 0], [0, 1]]}
    if case == "bias":
        return [INPUT2, relu(0), linear("w", 1, (2,), "c")], two
    if case == "scale":
        return [INPUT2, relu(0), scaled(1, "c")], two
    if case == "weight":
        return [INPUT2, relu(0), linear("c", 1, (2,), "c")], {"c": [9.0, 1]}
    if case == "mean":
        return [INPUT2, relu(0), operation("mean", [1], (2,), axes=[-1], keep=True)], {}
    if case == "slice":
        return [INPUT2, relu(0), operation("slice", [1], (2,), axis=-1, start=0, stop=1, step=1)], {}
    if case == "concat":
        return [INPUT2, relu(0), operation("concat", [1, 1], (2,), axis=-1)], {}
    if case == "permute":
        return [INPUT2, relu(0), operation("permute", [1], (2,), axes=[-1])], {}
    if case == "pad":
        return [INPUT2, relu(0), operation("pad", [1], (2,), pairs=[0, 0, 1, 0], value=0.0)], {}
    return [INPUT2, relu(0), operation("add_constant", [1], (2,), {"value": "c"}, sign=1)], two


@pytest.mark.parametrize("case", ["add", "scale", "bias", "weight", "mean", "slice", "concat", "permute", "pad"])
def test_what_varies_along_the_batch_is_refused(case, tmp_path):
    steps, tensors = varying(case)
    forged = Forged(steps, tensors, [[1, 1], [1, 0]], [0, 1], [1.0, 1.0], logits=[[0, 0]])
    with pytest.raises(BadCertificate):
        Checker(read_folder(forged.write(tmp_path / "c")))


def test_underflow_of_the_float64_evaluation_proves_nothing(tmp_path):
    """1 x (1e-45)^8 x (1e38)^10 is 1.5e21, and 0 on the way there: both programs detect this for the claim `real`."""
    names = [*(f"a{i}" for i in range(8)), *(f"b{i}" for i in range(10))]
    tensors = {name: 1e-45 if name[0] == "a" else 1e38 for name in names} | {"zero": 0.0, "one": 1.0}
    steps = [INPUT1, scaled(0, "zero", (1,)), operation("add_constant", [1], (1,), {"value": "one"}, sign=1)]
    for name in names:
        steps.append(scaled(len(steps) - 1, name, (1,)))
    last = len(steps)
    steps += [operation("concat", [last - 1, 0], (2,), axis=0), relu(last)]
    folder = Forged(steps, tensors, [[1, 1]], [1], [1.0], claim="real", logits=[[0, 0]]).write(tmp_path / "c")
    assert Checker(read_folder(folder), exact=True)._compute_spare(np.arange(1))[0] < -1e21, "the statement is false"
    assert Checker(read_folder(folder))._compute_spare(np.arange(1))[0] < 0
    assert library_spares(folder)[0] < 0


def test_underflow_of_the_reverse_pass_proves_nothing(tmp_path):
    """1e306 x 2e-324 is 2e-18, more than the shift; from the logits back the second factor comes first and is 0."""
    large, small = [*[1e38] * 8, 100.0], [*[1e-45] * 7, 2e-10]
    tensors = {f"c{i}": value for i, value in enumerate([*large, *small])}
    steps = [INPUT1]
    steps += [scaled(i, name, (1,)) for i, name in enumerate(tensors)]
    last = len(steps)
    steps += [operation("pad", [last - 1], (2,), pairs=[0, 1], value=0.0), relu(last)]
    forged = Forged(steps, tensors, [[1, 1]], [1], [1e-19], low=1.0, claim="real", epsilon=0.0, logits=[[0, 0]])
    folder = forged.write(tmp_path / "c")
    assert Checker(read_folder(folder), exact=True)._compute_spare(np.arange(1))[0] < -1e-18, "the statement is false"
    assert Checker(read_folder(folder))._compute_spare(np.arange(1))[0] < 0
    assert library_spares(folder)[0] < 0


def test_both_programs_allow_as_many_steps_as_the_sums_of_the_reverse_pass_take():
    wide = nn.Sequential(nn.Linear(2, 3000), nn.Unflatten(1, (1, 3000)), nn.AvgPool1d(30), nn.AvgPool1d(50))
    models = [*(build(name) for name in NETWORKS), (nn.Sequential(*wide, nn.Flatten()).eval(), (2,))]
    for model, shape in models:
        network = trace(model, shape)
        tensors = {name: tensor.numpy() for name, tensor in network.tensors.items()}
        theirs = Network(network.to_json(), tensors).evaluation_steps
        assert 0 <= count_evaluation_steps(network) - theirs <= 2, "what is solved here must pass there"
    assert 3 * theirs >= 3000


def test_the_error_of_the_evaluation_is_part_of_every_bound(tmp_path, monkeypatch):
    """2^60 + 1 - 2^60 is 1, which float64 may lose: a shift of 0.5 looks enough, and is not."""
    from expunge.patches.bounds import verify as library

    three = operation("input", [], (3,))
    tensors = {"w": [[2.0**60, 1, -(2.0**60)], [0, 0, 0]]}
    steps = [three, relu(0, (3,)), linear("w", 1, (2,))]
    forged = Forged(steps, tensors, [[1, 1, 1]], [1], [0.5], low=1.0, claim="real", logits=[[0, 0]])
    folder = forged.write(tmp_path / "c")
    assert Checker(read_folder(folder), exact=True)._compute_spare(np.arange(1))[0] < -0.5, "the statement is false"
    assert Checker(read_folder(folder))._compute_spare(np.arange(1))[0] < 0
    assert library_spares(folder)[0] < 0
    monkeypatch.setattr(Checker, "_evaluation_error", lambda *a: 0.0)
    monkeypatch.setattr(library, "evaluation_error", lambda *a: 0.0)
    assert Checker(read_folder(folder))._compute_spare(np.arange(1))[0] > 0, "nothing else refuses it"
    assert library_spares(folder)[0] > 0


def test_a_margin_that_only_the_error_term_breaks_is_refused_and_true_in_fractions(tmp_path):
    written(tmp_path / "c", "mlp", count=1, claim="real")
    folder = read_folder(tmp_path / "c")
    checker = Checker(folder)
    spare, (errors, _) = checker._compute_spare(np.arange(1))[0], checker._errors(np.arange(1))
    multipliers = checker.proofs.dense(np.arange(1), checker.network.atoms)
    term = checker._evaluation_error(multipliers, checker.patches.target, errors)[0]
    folder.header["epsilon"] += float(spare + np.delete(term, checker.patches.target[0]).min() / 2)
    assert Checker(folder)._compute_spare(np.arange(1))[0] < 0
    assert Checker(folder, exact=True)._compute_spare(np.arange(1))[0] > 0


def test_soft_gates_of_another_target_are_counted_as_interference(tmp_path):
    """Beyond a face of region A lies B; close to it B's gate is almost open and lifts the class that A gives up."""
    tensors = {"w": [[1.0, 0], [0, 1]], "b": [-0.5, -0.5]}
    steps = [INPUT2, linear("w", 0, (2,), "b"), relu(1)]
    bits, target, shift = [[1, 0], [1, 1]], [1, 0], [0.52, 3.0]
    alone = Forged(steps, tensors, bits, target, shift).write(tmp_path / "exact")
    folder = Forged(steps, tensors, bits, target, shift, gate="soft").write(tmp_path / "soft")
    x = np.asarray([[0.9, 0.499]], np.float32)
    base = executed(folder, x, patched=False)[0]
    assert base[0] > 0 == base[1], "the input lies in region A"
    plain, patched = executed(alone, x)[0], executed(folder, x)[0]
    assert plain[1] > plain[0] + 1e-3, "A's own patch turns it to class 1"
    assert patched[0] > patched[1] + 2, "and B's gate turns it back: a counterexample"
    assert Checker(read_folder(alone)).check().verdicts == [CERTIFIED] * 2
    assert (library_spares(alone) >= 0).all()
    assert Checker(read_folder(folder)).check().verdicts == [FAILED, CERTIFIED]
    assert ((library_spares(folder) >= 0) == [False, True]).all()


def test_soft_gates_may_round_any_logit(tmp_path):
    """A class whose logits are large loses more by an addition than the target does."""
    tensors = {"w": [[0.0, 1e6], [1, 0]], "b": [-1e6, 0]}
    steps = [INPUT2, relu(0), linear("w", 1, (2,), "b")]
    spares = []
    for gate in ("exact", "soft"):
        forged = Forged(steps, tensors, [[1, 1]], [1], [2.0], gate=gate, logits=[[0, 0]])
        folder = forged.write(tmp_path / gate)
        spares.append((Checker(read_folder(folder))._compute_spare(np.arange(1))[0], library_spares(folder)[0]))
    lost = np.asarray(spares[0]) - np.asarray(spares[1])
    assert (lost > 2e6 * 2.0**-24).all()
