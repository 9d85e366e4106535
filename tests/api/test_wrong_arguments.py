"""Wrong types and unknown keywords in the first example: an error that names the argument and what is allowed."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_networks import make_mlp
from torch import nn

import expunge
from expunge.api import AdoptedModel
from expunge.core.errors import ConfigError, ExpungeError, ExpungeWarning
from expunge.data.records import Records
from expunge.sparsity import PrunedBy

#: Values of types that hardly any argument has.
ODD: tuple[Any, ...] = (
    1, -1, 1.5, "x", True, object(), [], {}, [1], ["a"], ("a", None), {"a": 1}, [[1]], b"x", float("nan"),
    np.float32(0.5), torch.optim.SGD, torch.device("meta"), lambda: 1,
)  # fmt: skip
CLASSES = (expunge.Recipe, expunge.Pruning, expunge.Runtime, PrunedBy)


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda: expunge.Recipe(optimizer="adam"), "a recipe has no field 'optimizer'.*optimiser"),  # type: ignore[call-arg]
        (lambda: expunge.Pruning(sparsty=0.5), "a pruning has no field 'sparsty'.*sparsity"),  # type: ignore[call-arg]
        (lambda: expunge.Runtime(devise="cpu"), "a runtime has no field 'devise'.*device"),  # type: ignore[call-arg]
        (lambda: PrunedBy(criterium="magnitude"), "PrunedBy has no field 'criterium'.*criterion"),  # type: ignore[call-arg]
        (lambda: expunge.Context(record=None), "a context has no field 'record'.*records"),  # type: ignore[call-arg]
        (lambda: expunge.adopt(make_mlp(), None, trian=[1]), "adopt has no argument 'trian'.*train"),  # type: ignore[call-arg]
    ],
)
def test_an_unknown_keyword_is_answered_with_the_nearest_name(call: Any, nearest: str) -> None:
    what, name = nearest.split(".*")
    with pytest.raises(ConfigError, match=what) as refused:
        call()
    assert f"did you mean '{name}'?" in str(refused.value.hint)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_field_of_a_wrong_type_is_an_error_that_a_user_can_read(kind: Any) -> None:
    for field in dataclasses.fields(kind):
        for value in ODD:
            with contextless(field.name, value):
                made = kind(**{field.name: value})
                made.validate() if kind is PrunedBy else repr(made)


class contextless:  # noqa: N801 - reads as a statement
    """Lets errors of expunge pass, and says what was given for all others."""

    def __init__(self, name: str, value: object) -> None:
        self.given = f"{name}={value!r}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> bool:
        if error is None or isinstance(error, ExpungeError):
            return True
        pytest.fail(f"{self.given}: {type(error).__name__}: {error}")


@pytest.mark.filterwarnings("ignore")
def test_arguments_of_adopt_and_forget_of_a_wrong_type(adopted: AdoptedModel, digits: Records, workplace: Path) -> None:
    network = make_mlp()
    for name in inspect.signature(expunge.adopt).parameters:
        for value in ODD:
            with contextless(name, value):
                expunge.adopt(**{"model": network, "data": digits, "train": range(300), name: value})
    for name in ("rows", "method", "hold", "checkpoint", "options"):
        for value in ODD:
            with contextless(name, value):
                adopted.forget(**{"rows": [1, 2], "options": {"epochs": 0}, name: value})


def test_the_message_names_the_argument_and_what_to_write(adopted: AdoptedModel, digits: Records) -> None:
    network = make_mlp()
    with pytest.raises(ConfigError, match=r"runtime: is a str\n.*expunge.Runtime\('cpu'\)"):
        expunge.adopt(network, digits, runtime="cpu")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="recorded: is an int"):
        expunge.adopt(network, digits, recorded=3)
    with pytest.raises(ConfigError, match=r"call: is a str\n.*ModelCall"):
        expunge.adopt(network, digits, call="logits")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="checkpoint: is an int"):
        adopted.forget([1], "FT", checkpoint=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"runtime.device: is an int\n.*auto, cpu, cuda"):
        expunge.Runtime(0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown lr_update"):
        expunge.Recipe(lr_update=["step"])  # type: ignore[arg-type]


def test_an_argument_given_twice_is_answered_with_options(adopted: AdoptedModel) -> None:
    for call in (adopted.forget, adopted.correct):
        with pytest.raises(ExpungeError, match="method: is given twice") as caught:
            call([1, 2], "Un-prune", method="GA")
        assert "options={'method': 'GA'}" in str(caught.value)
    with pytest.raises(ExpungeError, match="method: is given twice"):
        adopted.check("Un-prune", [1, 2], method="GA")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        bare = expunge.adopt(make_mlp(), adopted.data, train=range(300), factory=make_mlp)
        bare.forget([1], expunge.get_method("Retrain", seeds="new"))
    assumed = [one for one in found if "recipe assumed" in str(one.message)]
    assert [one.filename for one in assumed] == [__file__]  # the line of the caller


def test_values_out_of_range_have_the_likely_one(adopted: AdoptedModel, digits: Records) -> None:
    with pytest.raises(ExpungeError, match=r"did you mean 0\.9\?"):
        adopted.prune(90)
    with pytest.raises(ConfigError, match="has 0 epochs, but the model is trained"):
        expunge.adopt(make_mlp(), digits, factory=make_mlp, recipe=expunge.Recipe(epochs=0))
    for last, hint in ((10, "labels start at 0: subtract 1"), (11, "numbers from 0 to 9")):
        labels = np.arange(20) % 10 + 1
        labels[9] = last
        names = [str(number) for number in range(1, 11)]
        with pytest.raises(ExpungeError, match=f"label {last} is not one of the 10 classes") as caught:
            Records.from_dataset((np.zeros((20, 2), dtype=np.float32), labels), classes=names)
        assert hint in str(caught.value)
        assert ("strings: the names of the classes" in str(caught.value)) == (last == 10)


def test_a_missing_label_is_named_with_its_row(workplace: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    for labels in ([0, 1, None, 1], [0.0, 1.0, float("nan"), 1.0]):
        frame = pandas.DataFrame({"x": [0.0, 1.0, 2.0, 3.0], "label": labels})
        with pytest.raises(ExpungeError, match="'label' is missing in row 2"):
            Records.from_dataset(frame, label="label")
        frame.to_parquet(workplace / "some.parquet")
        with pytest.raises(ExpungeError, match="'label' is missing in row 2"):
            expunge.load_records("parquet", path=str(workplace / "some.parquet"), label="label", numeric=["x"])


def test_missing_validation_records_have_the_option_to_switch_off(adopted: AdoptedModel) -> None:
    for method, options, off in (("SCRUB", {}, "rewind=False"), ("GA", {"stop": "validation"}, "stop='never'")):
        with pytest.raises(ExpungeError, match=r"10 classes of the forget set \(0, 1, 2, \.\.\.\)") as caught:
            adopted.forget(range(60), method, **options)
        assert off in str(caught.value.hint)


def test_missing_initial_weights_are_answered_with_what_an_adopted_model_can_have(adopted: AdoptedModel) -> None:
    pruned = adopted.prune(0.5)
    for rule, values in (("magnitude", ["random"]), ("gradient", ["random", "zero"])):
        with pytest.raises(ExpungeError, match="initial weights") as caught:
            pruned.forget([1], "Un-prune", rule=rule)
        assert f"use initial={' or '.join(values)}; or record" in str(caught.value.hint)
        assert "adopt(..., recorded=FOLDER)" in str(caught.value.hint)
        for value in values:  # what the hint recommends works
            options = {"method": "GA", "method_options": {"epochs": 1}, "rule": rule, "initial": value}
            assert pruned.forget([1], "Un-prune", options=options).outcome.method == "Un-prune"


def test_a_torch_device_is_a_device() -> None:
    assert expunge.Runtime(torch.device("cpu")) == expunge.Runtime("cpu")  # type: ignore[arg-type]


def test_signatures_and_warnings_are_those_of_the_function_itself(digits: Records) -> None:
    assert next(iter(inspect.signature(expunge.adopt).parameters)) == "model"
    assert next(iter(inspect.signature(expunge.Recipe).parameters)) == "name"
    half = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).bfloat16()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ExpungeWarning)
        expunge.adopt(half, digits, train=range(300))
    assert {warning.filename for warning in caught if warning.category is ExpungeWarning} == {__file__}


def test_paths_that_are_no_files_are_refused_before_anything_runs(adopted: AdoptedModel, workplace: Path) -> None:
    result = adopted.forget([1, 2], "FT", epochs=1)
    for path, said in ((".", "is a directory, not a file"), ("r.pdf", "written as HTML, not as .pdf")):
        with pytest.raises(ExpungeError, match=said):
            result.report(path)
    with pytest.raises(ExpungeError, match="is a directory, not a file"):
        adopted.forget([1, 2], "Retrain", checkpoint=Path("."))
    with pytest.raises(ExpungeError, match="cannot be replaced as a whole"):
        result.save(".")
    with pytest.raises(ExpungeError, match="written as JSON, not as"):
        result.evaluate().save("scores.csv")
    assert list(Path().iterdir()) == []
