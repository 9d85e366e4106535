"""Stacked training equals training one by one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError, DataError, TrainingError
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.split import Split, as_ids
from expunge.data.records import Records
from expunge.models import Architecture, architecture
from expunge.training import Context, Runtime, fit, get_recipe, train
from expunge.training.ensemble.member import Member
from expunge.training.ensemble.train import train_ensemble

CPU = Runtime("cpu")


def toy(shape: tuple[int, ...], count: int = 300, classes: int = 5) -> Records:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, count)
    features = rng.normal(size=(count, *shape)).astype(np.float32)
    features += labels.reshape(-1, *[1] * len(shape)).astype(np.float32) / 2
    ids = np.array([f"r{i:04d}" for i in range(count)])
    return Records("toy", ids, labels, tuple("abcdefgh"[:classes]), features=features)


def random_mask(model: torch.nn.Module, seed: int) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    kept = {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in model.named_parameters() if p.dim() > 1}
    return Mask(kept, MaskProvenance("random"))


CASES = [
    pytest.param("mlp", (20,), {}, "products", id="mlp-products"),
    pytest.param("mlp", (20,), {"normalise": "training"}, "products", id="mlp-products-normalised"),
    pytest.param("mlp", (20,), {}, "vmap", id="mlp-vmap"),
    pytest.param("mlp", (20,), {"batch_norm": True}, "vmap", id="mlp-batchnorm"),
    pytest.param("small-cnn", (1, 8, 8), {"widths": (4, 8)}, "vmap", id="cnn"),
    pytest.param("small-cnn", (1, 8, 8), {"widths": (4, 8)}, "single", id="cnn-single"),
]


@pytest.mark.parametrize(("name", "shape", "options", "engine"), CASES)
@pytest.mark.parametrize(("masked", "style"), [(False, "nesterov"), (True, "plain")])
def test_equals_one_by_one(name, shape, options, engine, masked, style):
    """Members with their own subset (of unequal sizes), order, initial weights and mask, in chunks of two."""
    records = toy(shape)
    split = Split(records.record_ids, *[as_ids(())] * 4) if "normalise" in options else None
    network = architecture(name, records, split, **{"normalise": "none", **options})
    how = get_recipe("one-cycle", epochs=2, batch_size=64, nesterov=style == "nesterov", weight_decay=1e-3)
    rng = np.random.default_rng(1)
    sizes = (200, 213, 129, 200, 193)  # 129 = 2 * 64 + 1: a last batch of one record
    members = [
        Member(rng.choice(300, size, replace=False), seed=i, mask=random_mask(network.build(0), i) if masked else None)
        for i, size in enumerate(sizes)
    ]
    ensemble = train_ensemble(records, network, members, recipe=how, runtime=CPU, engine=engine, chunk=2)
    for index, member in enumerate(members):
        alone = network.build(member.seed)
        done = fit(alone, member.rows, how, Context(records, CPU, member.seeds["order"]), mask=member.mask)
        state = ensemble.state(index)
        for key, value in alone.state_dict().items():
            assert torch.allclose(state[key], value, atol=1e-5, rtol=1e-5), key
        assert np.allclose(ensemble.losses[index], [entry["loss"] for entry in done.history], atol=1e-5)
        if member.mask is not None:
            assert member.mask.count_violations(ensemble.model(index)) == {}


def test_in_bf16_each_member_is_what_fit_trains_and_no_stacked_engine_is_chosen():
    """Stacked engines compute in float32: an ensemble of a bf16 study (its memorised records) is trained one by one."""
    records, half = toy((20,)), Runtime("cpu", precision="bf16")
    network = architecture("mlp", records, None, normalise="none", widths=(8,))
    how = get_recipe("one-cycle", epochs=2, batch_size=64)
    members = [Member(np.arange(200), seed=0), Member(np.arange(80, 300), seed=1)]
    ensemble = train_ensemble(records, network, members, recipe=how, runtime=half)
    assert ensemble.engine == "single"
    assert "bf16" in ensemble.obstacle
    for index, member in enumerate(members):
        alone = network.build(member.seed)
        fit(alone, member.rows, how, Context(records, half, member.seeds["order"]))
        full = network.build(member.seed)
        fit(full, member.rows, how, Context(records, CPU, member.seeds["order"]))
        state = ensemble.state(index)
        assert all(torch.equal(state[key], value) for key, value in alone.state_dict().items())
        assert not all(torch.equal(state[key], value) for key, value in full.state_dict().items())
    for engine in ("products", "vmap"):
        with pytest.raises(ConfigError, match="bf16"):
            train_ensemble(records, network, members, recipe=how, runtime=half, engine=engine)


def test_a_masked_layer_that_the_forward_does_not_use():
    """It has no gradient; both engines mask its weights and do not change them otherwise."""
    records = toy((6,))
    network = Architecture("small_networks:unused", {}, (6,), 5)
    members = [Member(np.arange(128), seed=seed, mask=random_mask(network.build(0), seed)) for seed in (1, 2)]
    how = get_recipe("one-cycle", epochs=1, batch_size=64, weight_decay=1e-2)
    single, stacked = (
        train_ensemble(records, network, members, recipe=how, runtime=CPU, engine=engine)
        for engine in ("single", "vmap")
    )
    for index, member in enumerate(members):
        begin, end = network.build(member.seed), stacked.model(index)
        member.mask.apply_(begin)
        assert torch.equal(end.unused.weight, begin.unused.weight)
        for key, value in single.state(index).items():
            assert torch.allclose(stacked.state(index)[key], value, atol=1e-6), key


def test_members_do_not_share_anything():
    """A member does not depend on the other members; another order changes it (negative control)."""
    records = toy((6,))
    network = architecture("mlp", records, normalise="none", widths=(8,))
    how = get_recipe("one-cycle", epochs=2, batch_size=32)
    rows = np.arange(100)
    single = train_ensemble(records, network, [Member(rows, seed=3)], recipe=how, runtime=CPU)
    group = train_ensemble(records, network, [Member(rows, seed=s) for s in (1, 3, 5)], recipe=how, runtime=CPU)
    other = train_ensemble(
        records, network, [Member(rows, seed=3), Member(rows, seed=3, order=9)], recipe=how, runtime=CPU
    )
    for key, value in single.state(0).items():
        assert torch.allclose(group.state(1)[key], value, atol=1e-6)
        assert torch.allclose(other.state(0)[key], value, atol=1e-6)
    assert not torch.allclose(other.state(1)["classifier.weight"], other.state(0)["classifier.weight"], atol=1e-4)


def test_one_member_as_trained():
    """`Ensemble.as_trained` equals the result of `train`, with the rewind checkpoint; another split is an error."""
    records = toy((6,))
    ids = records.record_ids
    split = Split(retain=ids[:200], forget=as_ids(()), validation=ids[200:250], test=ids[250:], non_members=as_ids(()))
    network = architecture("mlp", records, normalise="none", widths=(8,))
    how = get_recipe("one-cycle", epochs=4, batch_size=32, rewind=0.5)
    expected = train(records, split, network, recipe=how, seed=7, runtime=CPU)
    rows = records.rows(split.train)
    ensemble = train_ensemble(records, network, [Member(rows, seed=7), Member(rows, seed=8)], recipe=how, runtime=CPU)
    got = ensemble.as_trained(0, records, split)
    assert got.provenance.seeds == expected.provenance.seeds
    for key, value in expected.state["rewind_checkpoint"].items():
        assert torch.allclose(got.state["rewind_checkpoint"][key], value, atol=1e-5)
    for key, value in expected.model.state_dict().items():
        assert torch.allclose(got.model.state_dict()[key], value, atol=1e-5)
    with pytest.raises(DataError, match="not those"):
        ensemble.as_trained(0, records, dataclasses.replace(split, retain=ids[:150]))


def test_start_from_a_checkpoint():
    """Without momentum, 2 epochs and 2 more from the snapshot equal 4 epochs."""
    records = toy((6,))
    network = architecture("mlp", records, normalise="none", widths=(8,))
    how = get_recipe("one-cycle", epochs=4, batch_size=32, momentum=0.0)
    rows = np.arange(120)
    whole = train_ensemble(records, network, [Member(rows, seed=1)], recipe=how, runtime=CPU, snapshots={2})
    rest = train_ensemble(
        records, network, [Member(rows, seed=1, start_from=whole.state(0, 2))], recipe=how, runtime=CPU, start=2
    )
    for key, value in whole.state(0).items():
        assert torch.allclose(rest.state(0)[key], value, atol=1e-6)


def test_engines_agree_and_auto_trains_convolutions_one_by_one():
    """`single` against `vmap`, snapshots included, and `auto` on the CPU is bit-equal to the former."""
    records = toy((1, 8, 8))
    network = architecture("small-cnn", records, normalise="none", widths=(4, 8))
    how = get_recipe("one-cycle", epochs=3, batch_size=50, rewind=0.4)
    members = [Member(np.arange(i, 200 + i), seed=i) for i in range(3)]
    reported: list[int] = []

    def run(engine: str):
        return train_ensemble(
            records, network, members, recipe=how, runtime=CPU, engine=engine, snapshots={1, 2},
            progress=lambda label, done, total, info: reported.append(done),
        )  # fmt: skip

    single, stacked, auto = run("single"), run("vmap"), run("auto")
    assert reported[2] == 3 * 200 * 3
    for key, value in single.states.items():
        assert torch.equal(auto.states[key], value)
        assert torch.allclose(stacked.states[key], value, atol=1e-5)
        assert torch.allclose(stacked.snapshots[2][key], single.snapshots[2][key], atol=1e-5)
    assert not torch.allclose(single.snapshots[1]["classifier.weight"], single.states["classifier.weight"])


def test_the_error_of_a_loss_that_is_not_finite_contains_the_member():
    records = toy((1, 8, 8))
    network = architecture("small-cnn", records, normalise="none", widths=(4, 8))
    broken = {name: tensor * float("nan") for name, tensor in network.build(0).state_dict().items()}
    members = [Member(np.arange(50), seed=0), Member(np.arange(50), seed=1, start_from=broken)]
    with pytest.raises(TrainingError, match="member 1"):
        train_ensemble(records, network, members, recipe=get_recipe("one-cycle", epochs=1), runtime=CPU)


def test_invalid_arguments_are_errors():
    records = toy((6,))
    network = architecture("mlp", records, normalise="none", widths=(8,))
    rows = np.arange(20)
    how = get_recipe("one-cycle", epochs=1)
    with pytest.raises(ConfigError, match="did you mean 'vmap'"):
        train_ensemble(records, network, [Member(rows)], recipe=how, engine="vmaps")
    with pytest.raises(ConfigError, match="selects the best"):
        train_ensemble(records, network, [Member(rows)], recipe=dataclasses.replace(how, select="best"))
    with pytest.raises(DataError, match="no records"):
        train_ensemble(records, network, [Member(rows), Member(rows[:0])], recipe=how)
    mask = random_mask(network.build(0), 0)
    with pytest.raises(ConfigError, match="either all members or none"):
        train_ensemble(records, network, [Member(rows), Member(rows, mask=mask)], recipe=how)
    hot = dataclasses.replace(how, learning_rate=1e30, lr_schedule="constant", warmup=0.0, epochs=4)
    with pytest.raises(TrainingError, match="member 1"):
        train_ensemble(records, network, [Member(rows, seed=0), Member(np.arange(250), seed=1)], recipe=hot)
    images = toy((3, 32, 32), count=8)
    dropping = architecture("alexnet", images, normalise="none")
    with pytest.raises(TrainingError, match="random numbers"):
        train_ensemble(images, dropping, [Member(np.arange(8))], recipe=how, engine="vmap")


def test_the_state_of_a_member_is_a_copy():
    """Changing it, or the model of a member, changes neither the member nor another."""
    records = toy((6,))
    network = architecture("mlp", records, normalise="none", widths=(4,))
    members = [Member(np.arange(60), seed=number) for number in range(2)]
    ensemble = train_ensemble(
        records, network, members, recipe=get_recipe("one-cycle", epochs=1), runtime=CPU, snapshots={1}
    )
    for epoch in (None, 1):
        before = {name: tensor.clone() for name, tensor in ensemble.state(0, epoch).items()}
        for tensor in ensemble.state(0, epoch).values():
            tensor.add_(1)
        for parameter in ensemble.model(0).parameters():
            parameter.data.mul_(2)
        assert all(torch.equal(tensor, before[name]) for name, tensor in ensemble.state(0, epoch).items())
