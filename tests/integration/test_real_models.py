"""Models of transformers, trained by plain PyTorch, through everything that `expunge.adopt` offers.

ViT, BERT, ResNet, ConvNeXt and Swin: adopt, check, prune, forget, un-prune, retrain, report, and back into a folder
that `from_pretrained` reads. What they compute is compared with the user's own code, bit for bit.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_training import batches_of, method_seed
from small_transformers import LENGTH, make_model, make_records
from torch import nn

import expunge
from expunge.api import AdoptedModel
from expunge.core.errors import MaskError
from expunge.core.hashing import hash_tensors
from expunge.data.records import Records
from expunge.sparsity import shrink

pytest.importorskip("transformers")
KINDS = ("vit", "bert", "resnet", "convnext", "swin")
TRAIN, TEST, FORGET = range(32), range(32, 48), [2, 7, 11]
RECIPE = expunge.Recipe(epochs=2, batch_size=8, optimiser="adamw", learning_rate=3e-3, weight_decay=0.01)


def call(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The user's own call: named inputs, and tokens up to the longest of the batch."""
    if x.dtype != torch.int64:
        return model(pixel_values=x).logits
    ids, types, mask = x[:, :LENGTH], x[:, LENGTH : 2 * LENGTH], x[:, 2 * LENGTH :]
    longest = int(mask.sum(1).max())
    return model(ids[:, :longest], attention_mask=mask[:, :longest], token_type_ids=types[:, :longest]).logits


def inputs(records: Records, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    assert records.features is not None
    return torch.from_numpy(records.features[list(rows)]), torch.from_numpy(records.labels[list(rows)])


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model


def train_elsewhere(kind: str, records: Records) -> nn.Module:
    model = without_dropout(make_model(kind)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = inputs(records, TRAIN)
    for _ in range(2):
        for rows in torch.arange(len(x)).split(8):
            optimiser.zero_grad()
            nn.functional.cross_entropy(call(model, x[rows]), y[rows]).backward()
            optimiser.step()
    return model.eval()


def adopt(kind: str, model: nn.Module, records: Records) -> AdoptedModel:
    def make() -> nn.Module:
        return without_dropout(make_model(kind, seed=None))

    return expunge.adopt(model, records, train=TRAIN, test=TEST, factory=make, recipe=RECIPE)


@pytest.fixture(scope="module", params=KINDS)
def adopted(request: pytest.FixtureRequest) -> tuple[nn.Module, AdoptedModel]:
    """A model of the user, and the adopted one."""
    records = make_records(request.param)
    model = train_elsewhere(request.param, records)
    return model, adopt(request.param, model, records)


def read_again(model: nn.Module, folder: Path) -> nn.Module:
    """The model that the user's own library reads from what it wrote."""
    model.save_pretrained(folder)
    again: nn.Module = type(model).from_pretrained(folder, local_files_only=True)
    return again.eval()


@torch.no_grad()
def test_the_logits_are_the_users_own_and_survive_a_folder(
    adopted: tuple[nn.Module, AdoptedModel], tmp_path: Path
) -> None:
    own, model = adopted
    x, _ = inputs(model.data, range(48))
    assert torch.equal(model.trained.model(x), call(own, x))
    assert type(model.model) is type(own)
    result = model.forget(FORGET, "FT", epochs=1, batch_size=8, learning_rate=0.01)
    logits = call(result.model.eval(), x)
    assert torch.equal(result.trained.model.eval()(x), logits)
    assert not torch.equal(logits, call(own, x))
    assert torch.equal(call(read_again(result.model, tmp_path / "out"), x), logits)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_ft_is_the_users_own_loop(adopted: tuple[nn.Module, AdoptedModel], kind: str) -> None:
    own, model = adopted
    options = {"epochs": 2, "batch_size": 8, "learning_rate": 0.003, "weight_decay": 0.01}
    result = model.forget(FORGET, "FT", optimiser=kind, seed=4, **options)
    mine = copy.deepcopy(own).train()
    if kind == "sgd":
        optimiser: Any = torch.optim.SGD(mine.parameters(), lr=0.003, momentum=0.9, weight_decay=0.01)
    else:
        optimiser = torch.optim.AdamW(mine.parameters(), lr=0.003, weight_decay=0.01)
    retained = sorted(model.data.record_ids[row] for row in TRAIN if row not in FORGET)
    for epoch in range(2):
        for x, y in batches_of(model.data, retained, 8, method_seed(4, "FT"), epoch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(call(mine, x), y).backward()
            optimiser.step()
    assert hash_tensors(result.model.state_dict()) == hash_tensors(mine.state_dict())
    assert hash_tensors(mine.state_dict()) != hash_tensors(own.state_dict())


def test_pruned_forgotten_retrained_reported_and_exported(
    adopted: tuple[nn.Module, AdoptedModel], tmp_path: Path
) -> None:
    _, dense = adopted
    assert dense.check("FT", FORGET).usable
    usable = dense.methods(FORGET).usable
    assert set(usable) >= {"FT", "GA", "l1-sparse", "Retrain", "Un-prune"}
    truth = dense.forget(FORGET, "Retrain")
    assert truth.guarantee == "exact"
    x, _ = inputs(dense.data, range(48))
    short = {"epochs": 1, "batch_size": 8}
    for sparse in (dense.prune(0.6), dense.prune(granularity="2:4", layers=("linear",))):
        assert sparse.trained.mask is not None
        for method, options in (
            ("FT", short),
            ("GA", short),
            ("l1-sparse", short),
            ("Un-prune", {"method_options": short, "initial": "random"}),
        ):
            result = sparse.forget(FORGET, method, **options)
            assert result.trained.mask is not None
            assert abs(result.trained.mask.sparsity - sparse.trained.mask.sparsity) < 0.01
            for name, kept in result.trained.mask.kept.items():
                pruned = result.model.state_dict()[name][~kept]
                assert not pruned.any(), (method, name)
                assert not torch.signbit(pruned).any(), (method, name)
        again = read_again(result.model, tmp_path / str(sparse.trained.mask.provenance.granularity).replace(":", "of"))
        with torch.no_grad():
            assert torch.equal(call(again, x), result.trained.model.eval()(x))
    assert result.evaluate(reference=truth)["UA"].reference is not None
    page = result.report(tmp_path / "report.html", reference=truth).read_text()
    assert type(dense.model).__name__ in page
    loaded = expunge.load_trained(result.save(tmp_path / "saved"))
    assert loaded.hash == result.trained.hash


#: Of each kind: the layer that makes the hidden channels of an MLP, and the number of units of attention weights.
MLP = {"vit": ("mlp.fc1", 6), "bert": ("intermediate.dense", 6), "convnext": ("pwconv1", 0), "swin": ("mlp.fc1", 0)}


def test_mlp_channels_are_pruned_unpruned_and_removed(adopted: tuple[nn.Module, AdoptedModel]) -> None:
    """Whatever the model is called: Swin's heads have position biases of their own, so they are in no unit."""
    pytest.importorskip("torch_pruning")
    own, dense = adopted
    rule: dict[str, Any] = {"granularity": "filter", "layers": ("linear",), "scope": "layer", "criterion": "filter-l2"}
    kind = type(own).__name__.removesuffix("ForImageClassification").removesuffix("ForSequenceClassification").lower()
    if kind == "resnet":
        with pytest.raises(MaskError, match=r"couples no linear layers(.|\n)*prune single weights"):
            dense.prune(0.5, **rule)
        return
    layer, heads = MLP[kind]
    sparse = dense.prune(0.5, **rule)
    assert sparse.trained.mask is not None
    kept = sparse.trained.mask.kept
    hidden = [name for name in kept if name.endswith(f"{layer}.weight")]
    assert len(hidden) == 2
    assert sum("attention" in name and name.endswith("weight") for name in kept) == heads
    for name in hidden:
        rows = kept[name].flatten(1)
        assert torch.equal(rows.any(1), rows.all(1))
        assert 2 * int(rows.all(1).sum()) == len(rows)
    short = {"epochs": 1, "batch_size": 8}
    result = sparse.forget(FORGET, "Un-prune", method_options=short, initial="random")
    mask, model = result.trained.mask, result.trained.model.eval()
    assert mask is not None
    assert mask.count_violations(model) == {}
    small = shrink(model, mask, dense.data.input_shape)
    assert small.parameters_after < small.parameters_before
    x, _ = inputs(dense.data, range(16))
    with torch.no_grad():
        assert torch.allclose(small.model(x), model(x), atol=1e-5)
