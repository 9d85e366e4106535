"""Pruning options that are wrong or have no effect are refused before any training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, MaskError
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.experiments.config.run_config import SparsityConfig
from expunge.models import Architecture
from expunge.sparsity import PrunedBy, Pruning, Rule, get_schedule, make_mask, prune, schedule_names
from expunge.sparsity.channels.groups import find_channels, find_kept_units
from expunge.sparsity.masks.dry_run import dry_run_rule
from expunge.training import Context, Runtime

WRONG_TYPES: list[dict[str, Any]] = [
    *({"layers": layers} for layers in (None, 5, [1], [["conv"]], [None])),
    *({"schedule": schedule} for schedule in (None, 5, ["omp"])),
    *({"scope": scope} for scope in (None, 5, ["layer"])),
    *({"criterion": criterion} for criterion in (None, 5, ["magnitude"])),
    *({"score_records": count} for count in (0, -1, True, 2.0, "64", None)),
]


@pytest.mark.parametrize("wrong", WRONG_TYPES, ids=str)
def test_values_of_wrong_types_are_named(wrong: dict[str, Any]) -> None:
    (key,) = wrong
    with pytest.raises(ConfigError, match=key):
        Pruning(**{"layers": ["linear"], "schedule": "one-shot", **wrong})


def test_prune_also_accepts_a_single_layer_type_and_numpy_numbers(mlp: Trained, digits: Records, cpu: Runtime) -> None:
    how: dict[str, Any] = {"criterion": "SNIP", "schedule": "one-shot", "sparsity": 0.5}
    plain = prune(mlp, Pruning(layers=["linear"], score_records=64, **how), Context(digits, cpu)).mask
    other = prune(mlp, Pruning(layers="linear", score_records=np.int64(64), **how), Context(digits, cpu)).mask
    assert plain is not None
    assert other is not None
    assert plain.hash() == other.hash()
    assert plain.provenance.to_json() == other.provenance.to_json()
    assert type(other.provenance.details["score_records"]) is int


@pytest.mark.parametrize(
    "declared",
    [{"criterion": 3}, {"scope": ["layer"]}, {"layers": None}, {"layers": (1,)}, {"layers": "conv"}],
    ids=str,
)
def test_wrong_types_in_a_declaration_are_refused(declared: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"pruned\.criterion|scope|pruned\.layers"):
        PrunedBy(**declared).validate()


def test_every_schedule_accepts_its_own_defaults() -> None:
    for name in schedule_names():
        assert Pruning(schedule=name).options == get_schedule(name).options
        assert Pruning(schedule=name, options=dict(get_schedule(name).options)) == Pruning(schedule=name)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("imp", {"rounds": 3}, "the schedule imp has no option 'rounds'"),
        ("omp", {"rate": 0.2}, "the schedule omp has no option 'rate'"),
        ("imp", {"rate": "abc"}, "rate = 'abc' is not a fraction"),
        ("imp", {"rate": 1.5}, "rate = 1.5 is not a fraction"),
        ("imp", {"rate": float("nan")}, "rate = nan is not a fraction"),
        ("at-init", {"rounds": 2.7}, "rounds = 2.7 is not an integer"),
        ("at-init", {"rounds": -3}, "rounds = -3 is not an integer"),
        ("at-init", {"rounds": True}, "rounds = True is not an integer"),
        ("gradual", {"begin": 0.5, "end": 0.5}, "begin must be less than end"),
        ("gradual", {"begin": 0.9}, "begin must be less than end"),
        ("gradual", {"end": 1.5}, "end = 1.5 is not a fraction"),
        ("imp", [0.2], "options of a schedule must be a mapping"),
        ("impp", {}, "unknown schedule 'impp'"),
    ],
)
def test_wrong_options_are_named(schedule: str, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pruning(schedule=schedule, options=options)


def test_the_section_of_a_configuration_is_a_pruning() -> None:
    section, empty = SparsityConfig(), Pruning()
    assert set(SparsityConfig.model_fields) == {field.name for field in dataclasses.fields(Pruning)}
    assert Pruning(**section.model_dump()) == empty
    assert Pruning(**SparsityConfig(granularity="1:4").model_dump()) == Pruning(granularity="1:4")


def test_options_without_effect_are_refused() -> None:
    for schedule in schedule_names():
        if schedule in ("omp", "imp"):
            Pruning(schedule=schedule, epochs="full")
        else:
            with pytest.raises(ConfigError, match="epochs = full has no effect"):
                Pruning(schedule=schedule, epochs="full")
        if schedule == "gradual":
            with pytest.raises(ConfigError, match="keep_weights has no effect"):
                Pruning(schedule=schedule, keep_weights=True)
        else:
            Pruning(schedule=schedule, keep_weights=True)
    for rule, message in (
        (Rule(sparsity="0.5"), "sparsity must be a fraction in"),  # type: ignore[arg-type]
        (Rule(sparsity=True), "sparsity must be a fraction in"),
        (Rule(granularity=24), "granularity must be a name, not 24"),  # type: ignore[arg-type]
        (Rule(scope=None), "scope must be a name, not None"),  # type: ignore[arg-type]
        (Rule(layers="conv"), "layers must be a list of layer types"),  # type: ignore[arg-type]
        (Rule(layers=(1,)), "layers must be a list of layer types"),  # type: ignore[arg-type]
        (Rule(layers=None), "layers must be a list of layer types"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=message):
            rule.validate()
    with pytest.raises(ConfigError, match="not 'half'"):
        Pruning(schedule="omp", epochs="half")
    for schedule in ("imp", "gradual"):
        with pytest.raises(ConfigError, match="prunes step by step"):
            Pruning(granularity="2:4", schedule=schedule)
    with pytest.raises(ConfigError, match="rounds has no effect"):
        Pruning(granularity="2:4", schedule="at-init", options={"rounds": 5})
    Pruning(granularity="2:4", schedule="soft-filter")
    Pruning(schedule="at-init", options={"rounds": 5})


@pytest.mark.parametrize(
    "rule",
    [
        Rule("magnitude", "weight", "global", ("conv", "linear"), 0.8),
        Rule("SNIP", "weight", "layer", ("conv",), 0.37),
        Rule("random", "weight", "erk", ("conv", "linear"), 0.61),
        Rule("magnitude", "1:2", "global", ("conv", "linear"), None),
        Rule("filter-l2", "filter", "layer", ("conv",), 0.5),
        Rule("batchnorm", "filter", "global", ("conv",), 0.3),
    ],
)
def test_the_dry_run_counts_what_the_mask_keeps(rule: Rule) -> None:
    """The counts of the dry run, without any score, are those of a mask of the rule."""
    net = Architecture("small-cnn", {"widths": (6, 10)}, (2, 8, 8), 5)
    model = net.build(1)
    found = dry_run_rule(rule, model, net.input_shape)

    def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.rand(8, *net.input_shape, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5)]

    mask, _ = make_mask(model, rule, input_shape=net.input_shape, batches=batches)
    if rule.granularity == "filter":
        channels = find_channels(model, net.input_shape)
        assert (found.kept, found.total) == (int(find_kept_units(channels, dict(mask.kept)).sum()), channels.units)
        assert found.unit == "coupled channels"
    else:
        assert (found.kept, found.total, found.layers) == (mask.kept_count, mask.total, len(mask.kept))
        assert found.unit == "weights"


def test_the_dry_run_refuses_impossible_rules() -> None:
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for rule, message in (
        (Rule("FPGM", "weight", layers=("linear",)), "scores channels, not single weights"),
        (Rule("FPGM", "2:4", layers=("linear",)), "scores channels, not single weights"),
        (Rule("batchnorm", "filter", layers=("linear",), sparsity=0.5), "batchnorm"),
        (Rule("magnitude", "5:7", layers=("linear",)), "no layer has an input axis that is a multiple of 7"),
        (Rule("magnitude", "weight", "layer", ("linear",), 0.99), "loses every weight"),
        (Rule("magnitude", "weight", "layer", ("conv",), 0.5), "conv"),
    ):
        with pytest.raises(MaskError, match=message):
            dry_run_rule(rule, plain, (6,))


@pytest.mark.parametrize("kind", [list, tuple, iter, dict.fromkeys])
def test_layer_types_of_any_iterable_are_a_tuple(kind: Any) -> None:
    """It is hashed, compared and recorded, and an iterator can be read once only."""
    rule = Rule(layers=kind(["conv", "linear"]), sparsity=0.5).validate()
    assert rule == Rule(layers=("conv", "linear"), sparsity=0.5).validate()
    assert type(rule.layers) is tuple
