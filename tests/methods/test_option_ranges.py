"""The range of every option of every method: the ends that belong to it are accepted, the next values are refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from expunge.core.errors import ExpungeError
from expunge.methods import FineTuning, get_method, method_class, method_names

#: Of every method that trains in epochs, and has the option.
TRAINING = """
    epochs [0, inf)           learning_rate [0, inf)    batch_size [1, inf)    momentum [0, 1)
    weight_decay [0, inf)     saliency (0, 1]           clip_norm [0, inf)     label_smoothing [0, 1)
"""
#: The ranges that the documentation states, written down by hand.
RANGES = {
    "Bad Teacher": "retain_fraction (0, 1]  temperature (0, inf)",
    "Boundary Shrink": "radius (0, inf)",
    "CF-k": "layers [1, inf)",
    "EU-k": "layers [1, inf)",
    "DELETE": "temperature (0, inf)",
    "Fanchuan": "uniform_learning_rate [0, inf)  contrast_learning_rate [0, inf)  temperature (0, inf)",
    "FF": "batch_size [1, inf)  alpha [0, inf)  exponent [0, inf)  damping (0, inf)  records [0, inf)",
    "IU": """batch_size [1, inf)  alpha (-inf, inf)  damping (0, inf)  steps [1, inf)  tolerance [0, inf)
        records [0, inf)  lissa_steps [1, inf)  lissa_scale [0, inf)""",
    "JiT": "draws [1, inf)  sigma (0, inf)",
    "l1-sparse": "gamma [0, inf)  no_l1_epochs [0, 10]",
    "L2UL": """examples [1, inf)  attack_radius (0, inf)  attack_step (0, inf)  attack_steps [1, inf)
        importance_weight [0, inf)  example_batch_size [1, inf)""",
    "mixed-privacy": "core_fraction (0, 1)  regularisation (0, inf)  target (0, inf)",
    "MSA": "prefix_epochs [0, inf)  alpha [0, inf)  beta [0, inf)  retain_sample [0, inf)  re_estimate [2, inf)",
    "MSG": "fraction [0, 1]  slow [0, 1]",
    "NegGrad+": "alpha [0, 1]",
    "NTK": "scale [0, inf)  steps [1, inf)  tolerance (0, 1)  weight_decay (0, inf)  batch_size [1, inf)",
    "PBU": "alpha [0, inf)  beta [0, inf)  gamma [0, inf)",
    "PGU": """kept (0, 1]  learning_rate (0, inf)  last_rate (0, inf)  entropy_weight [0, inf)  offset (0, 1)
        epochs [0, inf)  batch_size [1, inf)""",
    "Replay": "prefix_epochs (0, inf)  scale (-inf, inf)  re_estimate [2, inf)",
    "Rewind": """prefix_epochs [0, inf)  rest [0, inf)  noise [0, inf)  smoothness [0, inf)  gradient_bound [0, inf)
        delta (0, 1)""",
    "SCRUB": """max_epochs [0, inf)  alpha [0, inf)  gamma [0, inf)  temperature (0, inf)
        forget_batch_size [1, inf)""",
    "SSD": "alpha [0, inf)  dampening [0, inf)  batch_size [1, inf)",
    "Un-prune": """growth [0, 1]  rounds [1, 10000]  final_epochs [0, inf)  final_learning_rate [0, inf)
        re_estimate [2, inf)  score_records [1, inf)  curvature_steps [1, inf)  prefix_epochs (0, inf)
        scale (-inf, inf)""",
    "UNSIR": """repair_learning_rate [0, inf)  noise_steps [0, inf)  noise_learning_rate [0, inf)  penalty [0, inf)
        copies [1, inf)  samples_per_class [1, inf)""",
    "Warnecke-1": "tau [0, inf)  last_tensors [0, inf)  weight_decay [0, inf)  batch_size [1, inf)",
    "Warnecke-2": """steps [1, inf)  tolerance (0, 1)  damping [0, inf)  last_tensors [0, inf)  weight_decay [0, inf)
        batch_size [1, inf)""",
}
#: Options that another has to allow.
WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("Bad Teacher", "momentum"): {"optimiser": "sgd"},
    ("PBU", "momentum"): {"optimiser": "sgd"},
    ("UNSIR", "momentum"): {"optimiser": "sgd"},
    ("IU", "lissa_steps"): {"inverse": "lissa"},
    ("IU", "lissa_scale"): {"inverse": "lissa"},
    ("Rewind", "smoothness"): {"noise": 1.0, "gradient_bound": 1.0},
    ("Rewind", "gradient_bound"): {"noise": 1.0, "smoothness": 1.0},
    ("Un-prune", "score_records"): {"rule": "gradient"},
    ("Un-prune", "curvature_steps"): {"rule": "influence"},
    ("Un-prune", "prefix_epochs"): {"rule": "replay"},
    ("Un-prune", "scale"): {"rule": "replay"},
    ("Un-prune", "prefix"): {"rule": "replay"},
    ("IU", "fisher"): {"inverse": "kfac"},
}
#: Options that are one of some names, with those that all methods with such an option know.
CHOICES = {
    "batch_norm": "frozen re-estimate",
    "saliency_source": "gradient random",
    "stop": "never validation",
    "optimiser": "sgd adam",
    "fisher": "exact sampled empirical",
    "prefix": "recorded recomputed",
    "residual": "softmax squared",
    "point": "trained initial",
    "sums": "recomputed subtracted",
    "solver": "cg lissa",
    "inverse": "cg lissa kfac block-diagonal",
    "dirty": "label refuse",
    "step": "subgradient proximal",
}
#: 0 says something else than an end of the range: "not stated", or "not at all". It is accepted alone.
ZERO = {("Rewind", "smoothness"), ("Rewind", "gradient_bound"), ("MSA", "re_estimate"), ("Replay", "re_estimate"),
        ("Un-prune", "re_estimate")}  # fmt: skip
#: Options whose other checks are in tests/patches; `scale` of Warnecke-2 goes with the solver.
APART = {("Warnecke-2", "scale")}


def parse(text: str) -> list[tuple[str, bool, float, float, bool]]:
    """`name [low, high)` as (name, whether low belongs to it, low, high, whether high belongs to it)."""
    words = text.split()
    found = []
    for name, low, high in zip(words[::3], words[1::3], words[2::3], strict=True):
        found.append((name, low[0] == "[", float(low[1:-1]), float(high[:-1]), high[-1] == "]"))
    return found


def ranges_of(method: str) -> dict[str, Any]:
    text = RANGES.get(method, "")
    own, known = parse(text), {field.name for field in dataclasses.fields(method_class(method))}
    assert {name for name, *_ in own} <= known
    shared = parse(TRAINING) if issubclass(method_class(method), FineTuning) else []
    return {name: ends for name, *ends in [*shared, *own] if name in known}


NUMERIC = [n for n in method_names() if n != "patch"]


@pytest.mark.parametrize("method", NUMERIC)
def test_every_numeric_option_has_a_range(method: str) -> None:
    numeric = {
        field.name
        for field in dataclasses.fields(method_class(method))
        if str(field.type).startswith(("int", "float")) and (method, field.name) not in APART
    }
    assert numeric == set(ranges_of(method))


@pytest.mark.parametrize("method", NUMERIC)
def test_the_ends_of_the_range_of_an_option(method: str) -> None:
    types = {field.name: str(field.type) for field in dataclasses.fields(method_class(method))}
    for option, (closed_low, low, high, closed_high) in ranges_of(method).items():
        whole = types[option].startswith("int")
        step = 1 if whole else 1e-6
        inside = [low if closed_low else low + step] if low > -math.inf else [-1e30]
        inside += [high if closed_high else high - step] if high < math.inf else [10**9 if whole else 1e30]
        outside = [] if whole else [math.nan]
        if low > -math.inf or not whole:
            outside.append(low - step if closed_low else low)
        if high < math.inf or not whole:
            outside.append(high + step if closed_high else high)
        if (method, option) in ZERO:
            get_method(method, **{option: 0 if whole else 0.0})
            inside = [value for value in inside if value]
        for value in inside:
            given = {**WITH.get((method, option), {}), option: int(value) if whole else value}
            if option == "epochs" and method == "l1-sparse":
                given["no_l1_epochs"] = 0
            assert getattr(get_method(method, **given), option) == value
        for value in outside:
            given = {**WITH.get((method, option), {}), option: int(value) if whole else value}
            with pytest.raises(ExpungeError) as caught:
                get_method(method, **given)
            assert option in caught.value.where, f"{option} = {value}"
            assert f"{option} = " in caught.value.what, f"{option} = {value}: {caught.value}"


@pytest.mark.parametrize("method", NUMERIC)
def test_a_misspelt_choice_is_answered_with_the_nearest_name(method: str) -> None:
    options = {field.name for field in dataclasses.fields(method_class(method))} & set(CHOICES)
    for option, name in [(each, name) for each in sorted(options) for name in CHOICES[each].split()]:
        with pytest.raises(ExpungeError) as caught:
            get_method(method, **{**WITH.get((method, option), {}), option: f"{name}x"})
        assert option in caught.value.where
        assert f"did you mean {name!r}?" in caught.value.hint
