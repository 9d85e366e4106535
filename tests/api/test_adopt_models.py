"""Models as users have them: types, wrappers, masks, factories, named outputs; and what is refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from own_networks import SmallNet, inputs, make_mlp
from torch import nn

import expunge
from expunge.core.errors import ConfigError, ExpungeError, ExpungeWarning, FileError, Interrupted, ModelError
from expunge.data.records import Records
from expunge.training import loop

TRAIN = range(300)


# ---- types, wrappers, flags


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_converted_and_said(own_cnn, digits, dtype):
    model = copy.deepcopy(own_cnn).to(dtype).train()
    with pytest.warns(ExpungeWarning, match=f"tensors of {str(dtype).removeprefix('torch.')}.*float32 copy"):
        adopted = expunge.adopt(model, digits, train=TRAIN)
    result = adopted.forget([1, 2], "FT", epochs=1)
    assert {p.dtype for p in result.trained.model.parameters()} == {torch.float32}
    found = result.model
    assert {name: t.dtype for name, t in found.state_dict().items()} == {
        name: t.dtype for name, t in model.state_dict().items()
    }
    assert found.training
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, result.trained.model.state_dict()[name].to(tensor.dtype))
    x, _ = inputs(digits, range(4))
    assert found.eval()(x.to(dtype)).dtype == dtype
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_mixed_types_are_kept_by_tensor(own_cnn, digits):
    model = copy.deepcopy(own_cnn)
    model.head.bfloat16()
    with pytest.warns(ExpungeWarning, match="bfloat16"):
        adopted = expunge.adopt(model, digits, train=TRAIN)
    types = {name: tensor.dtype for name, tensor in adopted.model.state_dict().items()}
    assert types["head.weight"] == torch.bfloat16
    assert types["features.0.weight"] == torch.float32


def test_the_network_of_a_result_is_one_object_that_does_not_change_the_result(own_cnn, digits):
    result = expunge.adopt(copy.deepcopy(own_cnn).train(), digits, train=TRAIN).forget([1, 2], "FT", epochs=1)
    result.model.eval()
    assert result.model is result.model
    assert not result.model.training
    before = result.evaluate()
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.zero_()
    assert result.evaluate().text() == before.text()
    assert any(parameter.any() for parameter in result.trained.model.parameters())


def test_what_is_printed_of_the_origin_has_names(own_mlp, digits):
    adopted = expunge.adopt(own_mlp, digits, train=TRAIN)
    assert f"elsewhere, hash {adopted.trained.hash[:8]}\n" in repr(adopted)
    assert "1 stage (provenance.history)" in repr(adopted)


def test_an_interrupted_request_resumes_from_its_file(adopted, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)

    def stop(label, done, total, info):
        if info["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        adopted.forget([1, 2], "Retrain", progress=stop)
    assert "checkpoint=FILE" in str(caught.value.hint)
    path = str(tmp_path / "retrain.ckpt")
    with pytest.raises(Interrupted) as caught:
        adopted.forget([1, 2], "Retrain", checkpoint=path, progress=stop)
    assert "resumes after epoch 1" in str(caught.value.hint)
    resumed = adopted.forget([1, 2], "Retrain", checkpoint=path)
    assert resumed.trained.hash == adopted.forget([1, 2], "Retrain").trained.hash
    assert not list(tmp_path.iterdir())


def test_wrappers_are_taken_off(own_cnn, digits):
    plain = expunge.adopt(own_cnn, digits, train=TRAIN)
    for wrapped in (torch.compile(copy.deepcopy(own_cnn)), nn.DataParallel(copy.deepcopy(own_cnn))):
        adopted = expunge.adopt(wrapped, digits, train=TRAIN)
        assert adopted.trained.hash == plain.trained.hash
        assert type(adopted.model) is SmallNet


def test_distributed_wrapper_is_taken_off(own_cnn, digits):
    class DistributedDataParallel(nn.Module):  # the real one needs a process group
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    adopted = expunge.adopt(DistributedDataParallel(copy.deepcopy(own_cnn)), digits, train=TRAIN)
    assert list(adopted.model.state_dict()) == list(own_cnn.state_dict())


def _scripted() -> nn.Module:
    return torch.jit.trace(make_mlp(), torch.zeros(2, 1, 8, 8))


class _Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


REFUSED = {
    "list": (lambda: [make_mlp()], "a list with 1 entries, not a model", "one at a time"),
    "dict": (lambda: {"model": make_mlp()}, "a dict with 1 entries", "the torch.nn.Module itself"),
    "class": (lambda: SmallNet, "SmallNet is not a torch.nn.Module", "call it first"),
    "function": (lambda: make_mlp, "make_mlp is not a torch.nn.Module", "call it first"),
    "array": (lambda: np.zeros(3), "ndarray is not a torch.nn.Module", ""),
    "state dict": (lambda: make_mlp().state_dict(), "OrderedDict with 4 entries|dict with 4 entries", ""),
    "script": (_scripted, "TorchScript", "scripted or traced from"),
    "meta": (lambda: make_mlp().to("meta"), "has no values: it is on the meta device", "load the weights"),
    "lazy": (_Lazy, "is a lazy parameter without values", "run the model once"),
    "classes": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 7)),
        "7 outputs, the data 10 classes",
        "counted from 0",
    ),
    "shape": (lambda: nn.Linear(64, 10), "does not accept records|shape of logits|no output", ""),
    "width": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(65, 10)), "does not accept records", "the same columns"),
    "path": (lambda: "model.safetensors", "str is not a torch.nn.Module", "read it first"),
    "nan": (lambda: _fill(make_mlp(), float("nan")), "NaN or infinite values", ""),
}


def _fill(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        next(model.parameters()).fill_(value)
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_of_the_data_is_refused(digits, name):
    make, message, hint = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        expunge.adopt(make(), digits, train=TRAIN)
    assert hint in (caught.value.hint or "")


def test_a_model_that_was_never_trained_warns(digits):
    torch.manual_seed(0)
    with pytest.warns(ExpungeWarning, match="near the .* it learned nothing"):
        expunge.adopt(make_mlp(), digits, train=TRAIN)


def test_outputs_with_names_are_found(own_mlp, digits):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(own_mlp)

        def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
            return OrderedDict(hidden=x.flatten(1), logits=self.inner(x))

    adopted = expunge.adopt(Named(), digits, train=TRAIN, factory=Named)
    x, _ = inputs(digits, range(4))
    assert torch.equal(adopted.trained.model(x), own_mlp(x))
    result = adopted.forget([1, 2], "FT", epochs=1)
    assert type(result.model) is Named
    assert set(result.model(x)) == {"hidden", "logits"}


def test_normalisation_before_the_model(own_cnn, digits):
    class Raw(nn.Module):
        """The same function of inputs that are normalised."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(own_cnn)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x * 0.5 + 0.25)

    model = Raw().eval()
    x, _ = inputs(digits, range(20))
    for normalise in (((0.25,), (0.5,)), expunge.data.Normalisation((0.25,), (0.5,))):
        adopted = expunge.adopt(model, digits, train=TRAIN, factory=Raw, normalise=normalise)
        assert torch.equal(adopted.trained.model(x), model((x - 0.25) / 0.5))
        result = adopted.forget([1, 2], "FT", epochs=1)
        assert type(result.model) is Raw
        assert list(result.model.state_dict()) == list(model.state_dict())
    with pytest.raises(ExpungeError, match="normalise"):
        expunge.adopt(model, digits, train=TRAIN, normalise="imagenet")
    with pytest.raises(ModelError, match="no published normalisation"):
        expunge.adopt(model, digits, train=TRAIN, normalise="published")


# ---- factories


def test_retraining_without_a_factory_is_refused_with_the_line_to_write(own_mlp, digits):
    adopted = expunge.adopt(own_mlp, digits, train=TRAIN)
    with pytest.raises(ModelError, match="cannot be drawn") as caught:
        adopted.forget([1, 2], "Retrain")
    assert "expunge.adopt(..., factory=make)" in (caught.value.hint or "")
    assert adopted.forget([1, 2], "FT", epochs=1).guarantee == "empirical"


def _other_width() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 25), nn.ReLU(), nn.Linear(25, 10))


def _other_activation() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))


def _deeper() -> nn.Module:
    return nn.Sequential(*make_mlp(), nn.Linear(10, 10))


def _needs_argument(width: int) -> nn.Module:
    return nn.Linear(width, 10)


FACTORIES = {
    "width": (_other_width, r"1.weight is \(25, 64\), that of the model \(24, 64\)"),
    "activation": (_other_activation, "has other outputs"),
    "deeper": (_deeper, "the model has no 4.weight"),
    "shallower": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "1.weight is|the factory makes no"),
    "argument": (_needs_argument, r"the factory failed(.|\n)*with no arguments: lambda: MyNetwork"),
    "no module": (lambda: 3, "returned an object of type int"),
    "fails": (lambda: 1 / 0, "the factory failed"),
    "string": ("mlp", "without its options"),
    "unknown": ("no_such_package_here:make", "no module named"),
    "number": (3, "a factory is a callable"),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_factories_that_do_not_fit_are_refused(own_mlp, digits, name):
    factory, message = FACTORIES[name]
    with pytest.raises(ExpungeError, match=message):
        expunge.adopt(own_mlp, digits, train=TRAIN, factory=factory)


def test_a_model_is_no_factory(own_mlp, digits):
    with pytest.raises(ModelError, match="is a model, not a factory"):
        expunge.adopt(own_mlp, digits, train=TRAIN, factory=own_mlp)
    adopted = expunge.adopt(
        own_mlp, digits, train=TRAIN, factory=lambda: copy.deepcopy(own_mlp), recipe={"epochs": 1}
    )  # fmt: skip
    with pytest.raises(ExpungeError, match="starts from the weights of the trained model"):
        adopted.forget([1, 2], "Retrain")


def test_what_needs_a_factory_needs_one_with_other_weights(own_mlp, digits):
    def list_refused(**options):
        adopted = expunge.adopt(own_mlp, digits, train=TRAIN, recipe={"epochs": 1}, **options)
        return {row.name for row in adopted.methods([1, 2]) if not row.usable}

    trained, fresh = list_refused(factory=lambda: copy.deepcopy(own_mlp)), list_refused(factory=make_mlp)
    assert trained == list_refused()
    assert {"Retrain", "EU-k", "Bad Teacher"} <= trained - fresh


def test_an_architecture_is_a_factory(digits, mlp):
    built = expunge.Architecture.from_json(mlp.provenance.architecture)
    own = built.build(0)
    own.load_state_dict(mlp.model.state_dict())
    adopted = expunge.adopt(own, digits, train=mlp.split.retain, factory=built, recipe={"epochs": 1})
    assert adopted.trained.hash == mlp.hash
    assert adopted.forget([*mlp.split.retain[:3]], "Retrain").guarantee == "exact"


# ---- recipes


def test_recipes_are_read_as_users_have_them(own_mlp, digits, tmp_path):
    arguments = {"num_train_epochs": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 16, "weight_decay": 0.01}
    (tmp_path / "training_args.json").write_text(json.dumps(arguments))
    fields = {"epochs": 4, "batch_size": 16, "optimiser": "adamw"}
    for given, epochs, optimiser in (
        (expunge.Recipe(epochs=5), 5, "sgd"),
        ("one-cycle", 20, "sgd"),
        (fields, 4, "adamw"),
        (arguments, 3, "adamw"),
        (tmp_path / "training_args.json", 3, "adamw"),
        (str(tmp_path / "training_args.json"), 3, "adamw"),
    ):
        recipe = expunge.get_recipe(
            expunge.adopt(own_mlp, digits, train=TRAIN, recipe=given).trained.provenance.recipe
        )  # fmt: skip
        assert (recipe.epochs, recipe.optimiser) == (epochs, optimiser)
    for given, message in (
        ("one-cyle", "unknown recipe"),
        ({"epoch": 3}, "no field 'epoch'"),
        (torch.optim.SGD(own_mlp.parameters(), lr=0.1), "how many epochs"),
        (3, "is an int"),
        ({**arguments, "gradient_accumulation_steps": 7}, "accumulat"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            expunge.adopt(own_mlp, digits, train=TRAIN, recipe=given)
        assert message != "how many epochs" or "from_torch(optimiser, epochs=" in (caught.value.hint or "")


def test_data_are_records_or_what_becomes_records(own_mlp, digits):
    x, y = inputs(digits, range(480))
    adopted = expunge.adopt(own_mlp, torch.utils.data.TensorDataset(x, y), train=TRAIN, test=range(300, 400))
    assert adopted.forget([1, 2], "FT", epochs=0).split.forget.tolist() == ["row-000001", "row-000002"]
    with pytest.raises(ExpungeError):
        expunge.adopt(own_mlp, 3, train=TRAIN)


# ---- saving and loading


def test_a_saved_result_is_loaded_where_the_factory_can_be_imported(own_mlp, digits, workplace):
    (workplace / "factory_of_a_user.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))\n"
    )
    import factory_of_a_user

    adopted = expunge.adopt(own_mlp, digits, train=TRAIN, factory=factory_of_a_user.make)
    assert adopted.trained.provenance.architecture["name"] == "factory_of_a_user:make"
    result = adopted.forget([1, 2], "FT", epochs=1)
    result.evaluate()
    result.save("out")
    assert sorted(path.name for path in (workplace / "out").iterdir()) == [
        "model.safetensors", "outcome.json", "scores.json", "split.json", "state", "trained.json",
    ] or not (workplace / "out" / "state").exists()  # fmt: skip
    code = (
        "import expunge; t = expunge.load_trained('out', trust=['factory_of_a_user'])\n"
        "print(t.hash, len(t.split.forget))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [result.trained.hash, "2"]
    code = "import expunge, factory_of_a_user; expunge.load_trained('out')"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "trust=['factory_of_a_user']" in refused.stderr
    assert "is imported already" in refused.stderr
    assert "--trust" not in refused.stderr
    again = expunge.adopt(expunge.load_trained("out"), digits)
    assert again.forget([4], "FT", epochs=0).split.counts()["forget"] == 3
    with pytest.raises(ConfigError, match="has it already"):
        expunge.adopt(expunge.load_trained("out"), digits, train=TRAIN)
    other = Records("other", digits.record_ids, digits.labels, digits.class_names, 255 - digits.features)
    with pytest.raises(ModelError, match="trained on other data"):
        expunge.adopt(expunge.load_trained("out"), other)


def test_a_result_of_a_notebook_says_what_loading_needs(own_mlp, digits, workplace):
    width = 24

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    for factory, text in ((make, "register_factory"), (None, "adopted without a factory")):
        result = expunge.adopt(own_mlp, digits, train=TRAIN, factory=factory).forget([1, 2], "FT", epochs=1)
        with pytest.warns(ExpungeWarning, match=text):
            result.save("out")
        assert expunge.load_trained("out").hash == result.trained.hash  # in this process
        done = subprocess.run(
            [sys.executable, "-c", "import expunge; expunge.load_trained('out')"], capture_output=True, text=True
        )
        assert "not registered in this one" in done.stderr
        assert "register_factory(make" in done.stderr
    (workplace / "mine").mkdir()
    (workplace / "mine" / "notes.txt").write_text("x")
    with pytest.raises(FileError, match="nothing was written"):
        result.save("mine")
    assert (workplace / "mine" / "notes.txt").read_text() == "x"
