"""timm and torchvision by name: adopt the user's weights, forget, export, and read them back with equal logits.

They need a torch that torchvision fits: `make test-vision` runs them in an environment of their own, and
`tests/vision/result.json` says when it last did and with which versions. Elsewhere they are skipped.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import expunge
from expunge.core.errors import ConfigError, ModelError
from expunge.models.call import adapt, detect_call
from expunge.workflow import export_model

LIBRARIES = ("timm", "torchvision")


@pytest.fixture(scope="module", params=LIBRARIES)
def library(request):
    name = request.param
    try:
        __import__(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name} cannot be imported here ({error}): make test-vision")
    return name


def make_own(library: str) -> torch.nn.Module:
    """The model as the user makes it."""
    torch.manual_seed(0)
    if library == "timm":
        import timm

        return timm.create_model("resnet18", num_classes=3)
    import torchvision

    return torchvision.models.resnet18(num_classes=3)


def make_records() -> expunge.Records:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = generator.integers(0, 90, (60, 3, 32, 32)) + labels[:, None, None, None] * 80
    names = ("low", "middle", "high")
    return expunge.Records("images", [f"r{i}" for i in range(60)], labels, names, images.astype(np.uint8))


def test_adopt_forget_export_and_read_back(library, tmp_path):
    own, records = make_own(library).eval(), make_records()
    split = expunge.make_split(records, seed=0)
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    network = expunge.architecture(f"{library}:resnet18", records, split)
    assert network.call is None
    trained = expunge.adopt_weights(network, tmp_path / "own.safetensors", records, split)
    x = torch.from_numpy(records.features[:8]).float().div_(255)
    with torch.no_grad():
        assert torch.equal(trained.model(x), own(x))
    assert list(trained.model.state_dict()) == list(own.state_dict())

    request = expunge.forget_random(records, split, count=4, seed=1)
    context = expunge.Context(records)
    unlearned = expunge.get_method("FT", epochs=1, batch_size=16).forget(trained, request, context).trained
    assert any(not torch.equal(a, b) for a, b in zip(own.parameters(), unlearned.model.parameters(), strict=True))
    expunge.save_trained(unlearned, tmp_path / "unlearned")
    export_model(tmp_path / "unlearned", tmp_path / "out.safetensors")
    again = make_own(library).eval()
    again.load_state_dict(load_file(tmp_path / "out.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(x), expunge.load_trained(tmp_path / "unlearned").model(x))


def test_retraining_draws_from_the_seed(library):
    records = make_records()
    network = expunge.architecture(f"{library}:resnet18", records)
    one, two = network.build(1), network.build(1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    recipe = dataclasses.replace(expunge.get_recipe("one-cycle", epochs=1), batch_size=16)
    trained = expunge.train(records, expunge.make_split(records, seed=0), network, recipe=recipe)
    assert all(torch.isfinite(p).all() for p in trained.model.parameters())


def test_filters_are_pruned_and_removed(library):
    records = make_records()
    split = expunge.make_split(records, seed=0)
    network = expunge.architecture(f"{library}:resnet18", records, split)
    provenance = expunge.Provenance(network.to_json())
    trained = expunge.Trained(network.build(0).eval(), None, split, provenance)
    pruning = expunge.Pruning(
        0.5, layers=("conv",), granularity="filter", criterion="filter-l2", scope="layer", schedule="one-shot"
    )
    sparse = expunge.prune(trained, pruning, expunge.Context(records))
    small = expunge.sparsity.shrink(sparse.model, sparse.mask, records.input_shape)
    assert small.parameters_after < 0.6 * small.parameters_before


@pytest.mark.parametrize("name", ["vit_b_16", "googlenet", "convnext_tiny"])
def test_other_models_of_torchvision_take_training_batches(name):
    models = pytest.importorskip("torchvision.models", exc_type=Exception)
    assert name in models.list_models()
    shape = (3, 224, 224) if name == "vit_b_16" else (3, 64, 64)
    model = expunge.models.Architecture(f"torchvision:{name}", {}, shape, 3).build(0)
    expunge.models.check_trainable(model, shape, 3)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "swin_s3_tiny_224"])
def test_other_models_of_timm_give_their_own_logits(name):
    timm = pytest.importorskip("timm", exc_type=Exception)
    torch.manual_seed(0)
    own = timm.create_model(name, num_classes=3).eval()
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(adapt(own, detect_call(own, x, 3))(x), own(x))
    assert expunge.models.Architecture(f"timm:{name}", {}, (3, 224, 224), 3).build(0)(x).shape == (2, 3)


def test_bad_names_and_options(library):
    records = make_records()
    with pytest.raises(ConfigError, match="no such"):
        expunge.architecture(f"{library}:resnet19", records)
    with pytest.raises(ConfigError, match="would load weights"):
        expunge.architecture(f"{library}:resnet18", records, pretrained=True)
    with pytest.raises(ConfigError, match="would load weights"):
        expunge.architecture(f"{library}:resnet18", records, weights="DEFAULT")
    with pytest.raises(ConfigError, match="cannot be made"):
        expunge.architecture(f"{library}:resnet18", records, no_such_option=1)
    table = expunge.Records("table", ["a", "b"], [0, 1], ("no", "yes"), np.zeros((2, 4), dtype=np.float32))
    with pytest.raises(ModelError, match="takes images"):
        expunge.architecture(f"{library}:resnet18", table)
