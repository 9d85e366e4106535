"""`hf:FOLDER`: built from config.json alone, weights read from the folder, exported for `from_pretrained`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_transformers import CLASSES, make_model, make_records

import expunge
from expunge.core.errors import ConfigError, FileError, ModelError
from expunge.core.files import read_tensors
from expunge.models.call import find_call, unadapt
from expunge.models.named import save_pretrained
from expunge.models.named.hugging_face import offline
from expunge.workflow import export_model

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=["bert", "vit"])
def saved(request, tmp_path_factory):
    """A folder as the user has it, the model in it, its records and a split."""
    folder = tmp_path_factory.mktemp("users") / request.param
    model = make_model(request.param).eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    records = make_records(request.param)
    return folder, model, records, expunge.make_split(records, seed=0)


def own_logits(model, architecture, x):
    _, named = architecture.call.arguments(x)
    with torch.no_grad():
        return model(**named).logits


def test_the_users_weights_give_the_users_logits_and_come_back_in_its_format(saved, tmp_path):
    folder, model, records, split = saved
    network = expunge.architecture(f"hf:{folder}", records, split)
    assert network.call.output == "logits"
    trained = expunge.adopt_weights(network, folder, records, split)
    x = torch.from_numpy(records.features[:5])
    own = own_logits(model, network, x)
    with torch.no_grad():
        assert torch.equal(trained.model(x), own)
    assert list(trained.model.state_dict()) == list(model.state_dict())

    expunge.save_trained(trained, tmp_path / "trained")
    kept = shutil.move(folder, folder.with_name("moved"))  # a saved model does not need the folder
    try:
        loaded = expunge.load_trained(tmp_path / "trained")
    finally:
        shutil.move(kept, folder)
    assert loaded.hash == trained.hash

    exported = export_model(tmp_path / "trained", tmp_path / "out", format="hf")
    assert exported.difference == 0.0
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    auto = "AutoModelForSequenceClassification" if "bert" in folder.name else "AutoModelForImageClassification"
    with offline():
        again = getattr(transformers, auto).from_pretrained(tmp_path / "out", local_files_only=True).eval()
    assert type(again) is type(model)
    assert torch.equal(own_logits(again, network, x), own)
    with pytest.raises(FileError, match="not an empty folder"):
        export_model(tmp_path / "trained", tmp_path / "out", format="hf")


def test_weights_in_shards_are_those_in_one_file(saved, tmp_path):
    folder, model, records, split = saved
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    network = expunge.architecture(f"hf:{folder}", records, split)
    one = expunge.adopt_weights(network, folder, records, split)
    many = expunge.adopt_weights(network, tmp_path / "shards", records, split)
    assert many.hash == one.hash

    shard = next(iter(sorted((tmp_path / "shards").glob("*.safetensors"))))
    index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text())
    index["weight_map"]["classifier.bias"] = "../evil.safetensors"
    (tmp_path / "shards/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match="no safetensors file beside it"):
        expunge.adopt_weights(network, tmp_path / "shards", records, split)
    index["weight_map"]["classifier.bias"] = shard.name
    index["weight_map"]["no.such"] = shard.name
    (tmp_path / "shards/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match=r"which the index has in|is missing in"):
        expunge.adopt_weights(network, tmp_path / "shards", records, split)


@pytest.mark.parametrize("prefix", ["model.", "net.inner.", "module."])
def test_a_prefix_of_all_names_is_left_out_and_written_again(saved, prefix, tmp_path):
    folder, model, records, split = saved
    tensors = {f"{prefix}{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "lightning.safetensors")
    network = expunge.architecture(f"hf:{folder}", records, split)
    trained = expunge.adopt_weights(network, tmp_path / "lightning.safetensors", records, split)
    assert list(trained.model.state_dict()) == list(model.state_dict())
    assert trained.provenance.weight_prefix == prefix
    expunge.save_trained(trained, tmp_path / "trained")
    export_model(tmp_path / "trained", tmp_path / "back.safetensors")
    back = read_tensors(tmp_path / "back.safetensors")[0]
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    export_model(tmp_path / "trained", tmp_path / "plain.safetensors", prefix="")
    assert set(load_file(tmp_path / "plain.safetensors")) == set(model.state_dict())
    with pytest.raises(ConfigError, match="no prefix before its names"):
        export_model(tmp_path / "trained", tmp_path / "folder", format="hf", prefix="model.")


def test_the_same_seed_draws_the_same_network_and_a_base_model_gets_a_head(saved, tmp_path):
    folder, _, records, _ = saved
    network = expunge.architecture(f"hf:{folder}", records)
    one, two, other = (network.build(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    body = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**body, "architectures": ["BertModel"], "num_labels": 2}))
    base = expunge.architecture(f"hf:{tmp_path}", records)
    assert base.build(0)(torch.from_numpy(records.features[:2])).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, ModelError, "'auto_map'.*never run"),
        ({"text_config": {"auto_map": {"AutoModel": "code.Model"}}}, ModelError, "'auto_map'"),
        ({"quantization_config": {"bits": 4}}, ModelError, "quantised"),
        ({"model_type": "no-such"}, ModelError, "model type 'no-such'"),
        ({"architectures": ["ResNetForImageClassification"]}, ModelError, "does not have for a"),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}, ModelError, "has 2 labels, the data 3"),
        ({"hidden_act": "no-such"}, ModelError, "gives no model"),
        ({"hidden_size": "wide"}, ModelError, "config.json"),
    ],
)
def test_a_config_that_cannot_be_used(saved, change, error, message, tmp_path):
    folder, _, records, _ = saved
    body = {**json.loads((folder / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps(body))
    with pytest.raises(error, match=message):
        expunge.architecture(f"hf:{tmp_path}", records)


def test_other_bad_folders(saved, tmp_path):
    folder, model, records, split = saved
    with pytest.raises(FileError, match=r"no config.json: hf: names a folder"):
        expunge.architecture("hf:bert-base-uncased", records)
    with pytest.raises(ConfigError, match="has no 'no_such'"):
        expunge.architecture(f"hf:{folder}", records, no_such=1)
    network = expunge.architecture(f"hf:{folder}", records, split)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileError, match="only a pickle"):
        expunge.adopt_weights(network, tmp_path, records, split)
    with pytest.raises(FileError, match="pickle"):
        expunge.adopt_weights(network, tmp_path / "pytorch_model.bin", records, split)
    make_model("resnet").save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"(is|are) missing in the file"):
        expunge.adopt_weights(network, tmp_path / "other", records, split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=r"has no model.safetensors"):
        expunge.adopt_weights(network, tmp_path / "empty", records, split)


def test_an_adapted_model_of_python_is_saved_in_its_own_class(saved, tmp_path):
    folder, model, records, _ = saved
    network = expunge.architecture(f"hf:{folder}", records)
    adapted = network.build(0)
    assert find_call(adapted) == network.call
    assert save_pretrained(adapted, tmp_path / "out", input_shape=records.input_shape) == 0.0
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [type(model).__name__]
    assert type(unadapt(adapted)) is type(model)
