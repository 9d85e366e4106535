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
