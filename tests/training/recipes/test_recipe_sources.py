"""Recipes from training arguments, from objects of torch, and in configurations; the JSON of older recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from expunge.core.errors import ConfigError, FileError
from expunge.core.hashing import hash_json
from expunge.experiments import check_names, load_config
from expunge.experiments.objects.training import make_recipe
from expunge.training import RECIPES, Recipe, get_recipe
from expunge.training.recipes import from_torch, from_training_arguments

ARGUMENTS: dict[str, Any] = {
    "output_dir": "out", "per_device_train_batch_size": 16, "num_train_epochs": 3.0, "learning_rate": 5e-5,
    "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "weight_decay": 0.01, "optim": "adamw_torch", "seed": 42,
    "adam_beta2": 0.98, "max_grad_norm": 0.5, "label_smoothing_factor": 0.1, "fp16": False, "logging_steps": 500,
    "report_to": ["tensorboard"], "fsdp": [], "deepspeed": None, "gradient_checkpointing": True, "push_to_hub": False,
}  # fmt: skip


def test_the_json_of_older_recipes_stays() -> None:
    """Hashes of files and keys of stores contain it; the hashes are those of the release before the new fields."""
    assert hash_json(RECIPES["jia2023"].to_json())[:16] == "6a9feb653837458b"
    assert hash_json(RECIPES["one-cycle"].to_json())[:16] == "7afd9cfd5cbec836"
    assert set(Recipe(keep_epochs=(2,)).to_json()) - set(Recipe().to_json()) == {"keep_epochs"}


def test_every_field_survives_json() -> None:
    recipe = Recipe(
        optimiser="adamw", betas=(0.8, 0.9), eps=1e-6, lr_schedule="linear", lr_update="step", warmup_steps=7,
        clip_norm=1.0, label_smoothing=0.1, no_decay=("*.bias",), keep_epochs=(0.5, 3),
    )  # fmt: skip
    assert get_recipe(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": "adamW"}, "did you mean 'adamw'"),
        ({"lr_update": "steps"}, "did you mean 'step'"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"betas": (0.9, 1.0)}, "betas = (0.9, 1.0)"),
        ({"eps": 0.0}, "eps = 0.0"),
        ({"warmup_steps": -1}, "warmup_steps = -1"),
        ({"warmup_steps": 1.5}, "warmup_steps must be int"),
        ({"warmup_steps": 3, "warmup": 0.1}, "given twice"),
        ({"warmup_steps": 3, "lr_update": "epoch"}, "at every step"),
        ({"clip_norm": 0.0}, "clip_norm = 0.0"),
        ({"clip_norm": "1"}, "clip_norm must be a finite number"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1.0"),
        ({"no_decay": "norms"}, "unknown no_decay"),
        ({"no_decay": []}, "no_decay must be a rule or a list"),
    ],
)
def test_wrong_fields(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(**changes)
    assert message in str(caught.value)


def test_a_rate_that_counts_steps_needs_their_number() -> None:
    with pytest.raises(ConfigError, match="number of steps in an epoch"):
        Recipe(warmup_steps=2).rate(0.5)


def test_training_arguments(tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text(json.dumps(ARGUMENTS))
    recipe = from_training_arguments(tmp_path / "args.json")
    assert recipe == from_training_arguments(ARGUMENTS)
    assert (recipe.epochs, recipe.batch_size, recipe.optimiser, recipe.betas) == (3, 16, "adamw", (0.9, 0.98))
    assert (recipe.warmup, recipe.lr_schedule, recipe.clip_norm, recipe.label_smoothing) == (0.1, "cosine", 0.5, 0.1)
    assert from_training_arguments({"warmup_ratio": 0.1, "warmup_steps": 5}).warmup_steps == 5
    assert from_training_arguments({"warmup_steps": 0.2}).warmup == 0.2
    assert from_training_arguments({"max_grad_norm": 0}).clip_norm is None
    assert from_training_arguments({"max_steps": 20}, records=40).epochs == 4
    assert from_training_arguments({"gradient_accumulation_steps": 2}, records=80).batch_size == 16
    sgd = from_training_arguments({"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true"})
    assert (sgd.optimiser, sgd.momentum, sgd.nesterov) == ("sgd", 0.9, True)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "eval_strategy": "epoch"}
    assert from_training_arguments(best).select == "best"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mixup": 0.8}, "mixup"),
        ({"cutmix_alpha": 1.0}, "cutmix_alpha"),
        ({"fp16": True}, "fp16"),
        ({"optim": "adafactor"}, "optim"),
        ({"optim": "adamw_bnb_8bit"}, "optim"),
        ({"optim_args": "rank=4"}, "optim_args"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_kwargs"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps"),
        ({"max_steps": 100}, "max_steps"),
        ({"num_train_epochs": 2.5}, "num_train_epochs"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last"),
        ({"neftune_noise_alpha": 5}, "neftune_noise_alpha"),
        ({"group_by_length": True}, "group_by_length"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end"),
        ({"deepspeed": "ds.json"}, "deepspeed"),
        ({"fsdp": "full_shard"}, "fsdp"),
        ({"stochastic_depth": 0.1}, "stochastic_depth"),
        ({"learning_rate": "fast"}, "learning_rate"),
    ],
)
def test_arguments_that_cannot_be_repeated_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_training_arguments({**ARGUMENTS, **changes})
    assert str(caught.value.where) == named


def test_a_pickle_of_arguments_is_refused(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(FileError, match="pickle"):
        from_training_arguments(tmp_path / "training_args.bin")
    with pytest.raises(ConfigError, match="not int"):
        from_training_arguments(3)


def test_the_object_of_transformers_is_read_as_its_json() -> None:
    transformers = pytest.importorskip("transformers")
    arguments = transformers.TrainingArguments(
        output_dir="out", learning_rate=1e-3, warmup_steps=0.1, use_cpu=True, report_to="none", weight_decay=0.01
    )
    recipe = from_training_arguments(arguments)
    assert recipe == from_training_arguments(json.loads(arguments.to_json_string()))
    assert (recipe.learning_rate, recipe.warmup, recipe.batch_size, recipe.epochs) == (1e-3, 0.1, 8, 3)


Make = Any
STEPS = 10
SCHEDULERS: dict[str, tuple[Make, dict[str, Any], bool]] = {
    "constant": (lambda o: lr_scheduler.ConstantLR(o, 1.0), {"lr_schedule": "constant"}, True),
    "multistep": (lambda o: lr_scheduler.MultiStepLR(o, [2, 3], 0.2), {"lr_schedule": "multistep"}, True),
    "step": (lambda o: lr_scheduler.StepLR(o, 2, 0.5), {"lr_schedule": "multistep", "lr_decay": 0.5}, True),
    "exponential": (lambda o: lr_scheduler.ExponentialLR(o, 0.9), {"lr_schedule": "multistep", "lr_decay": 0.9}, True),
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, 4), {"lr_schedule": "cosine", "lr_update": "epoch"}, True),
    "cosine, steps": (lambda o: lr_scheduler.CosineAnnealingLR(o, 40), {"lr_schedule": "cosine"}, False),
    "linear": (lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 40), {"lr_schedule": "linear"}, False),
    "warm-up": (
        lambda o: lr_scheduler.LambdaLR(o, lambda t: t / 5 if t < 5 else (40 - t) / 35),
        {"lr_schedule": "linear", "warmup_steps": 5}, False,
    ),
    "one-cycle": (
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.1, 40, pct_start=0.25, div_factor=25, final_div_factor=400, cycle_momentum=False
        ),
        {"lr_schedule": "one-cycle"}, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SCHEDULERS)
def test_schedulers_are_read_by_their_rates(case: str) -> None:
    make, expected, each_epoch = SCHEDULERS[case]
    model = nn.Linear(2, 2)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = make(optimiser)
    before = optimiser.param_groups[0]["lr"]
    recipe = from_torch(optimiser, scheduler, epochs=4, batch_size=8, steps_per_epoch=None if each_epoch else STEPS)
    assert {name: getattr(recipe, name) for name in expected} == pytest.approx(expected)
    assert (optimiser.param_groups[0]["lr"], scheduler.last_epoch) == (before, 0), "the caller's objects stay"
    count = 4 if each_epoch else 4 * STEPS
    for at in range(count):
        position = float(at) if each_epoch else at / STEPS
        rate = optimiser.param_groups[0]["lr"]
        assert recipe.rate(position, STEPS) == pytest.approx(rate, rel=1e-9, abs=1e-14), at
        optimiser.step()
        scheduler.step()


def test_optimisers_are_read() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    recipe = from_torch(torch.optim.Adam(model.parameters(), 0.3, (0.7, 0.8), 1e-5, 0.2), epochs=2, batch_size=4)
    assert (recipe.optimiser, recipe.betas, recipe.eps, recipe.weight_decay) == ("adam", (0.7, 0.8), 1e-5, 0.2)
    assert (recipe.learning_rate, recipe.lr_schedule, recipe.no_decay) == (0.3, "constant", "none")
    groups = [{"params": [model[0].weight]}, {"params": [model[0].bias, *model[1].parameters()], "weight_decay": 0.0}]
    grouped = torch.optim.AdamW(groups, 0.3, weight_decay=0.1)
    assert from_torch(grouped, epochs=2, batch_size=4, model=model).no_decay == "bias-and-norm"
    odd = torch.optim.AdamW(
        [{"params": [model[0].weight], "weight_decay": 0.0}, {"params": [model[0].bias, *model[1].parameters()]}], 0.3
    )
    assert from_torch(odd, epochs=2, batch_size=4, model=model).no_decay == ("0.weight",)
    smoothed = from_torch(grouped, epochs=2, batch_size=4, model=model, label_smoothing=0.1, clip_norm=2.0)
    assert (smoothed.label_smoothing, smoothed.clip_norm) == (0.1, 2.0)


def test_what_torch_has_and_a_recipe_has_not() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    other = nn.Parameter(torch.zeros(2))
    sizes: dict[str, Any] = {"epochs": 4, "batch_size": 8}
    sgd = torch.optim.SGD([weight], 0.1)
    cases: list[tuple[Any, Any, str]] = [
        (torch.optim.RMSprop([weight]), None, "RMSprop"),
        (torch.optim.SGD([weight], 0.1, momentum=0.5, dampening=0.1), None, "dampening"),
        (torch.optim.AdamW([weight], amsgrad=True), None, "amsgrad"),
        (torch.optim.SGD([weight], 0.1, maximize=True), None, "maximize"),
        (torch.optim.SGD([{"params": [weight]}, {"params": [other], "lr": 1.0}], 0.1), None, "lr"),
        (torch.optim.SGD([{"params": [weight], "weight_decay": 0.1}, {"params": [other]}], 0.1), None, "give model="),
        (torch.optim.SGD([{"params": [weight], "weight_decay": 0.1}, {"params": [other], "weight_decay": 0.2}], 0.1),
         None, "weight_decay"),
        (sgd, lr_scheduler.PolynomialLR(sgd, 4, power=2.0), "PolynomialLR"),
        (sgd, lr_scheduler.CosineAnnealingLR(sgd, 4, eta_min=0.01), "CosineAnnealingLR"),
        (sgd, lr_scheduler.ReduceLROnPlateau(sgd), "measured during training"),
    ]  # fmt: skip
    for optimiser, scheduler, named in cases:
        with pytest.raises(ConfigError, match=named):
            from_torch(optimiser, scheduler, **sizes)
    used = lr_scheduler.CosineAnnealingLR(sgd, 4)
    sgd.step()
    used.step()
    with pytest.raises(ConfigError, match="has been stepped") as caught:
        from_torch(sgd, used, **sizes)
    assert "new optimiser" in str(caught.value.hint)  # what the hint says works, on other parameters
    assert "new scheduler" in str(caught.value.hint)
    fresh = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    assert from_torch(fresh, lr_scheduler.CosineAnnealingLR(fresh, 4), **sizes).lr_schedule == "cosine"
    with pytest.raises(ConfigError, match="no field 'clip'"):
        from_torch(torch.optim.SGD([weight], 0.1), clip=1.0, **sizes)


def test_configurations_take_the_fields_and_the_file(workplace: Path) -> None:
    base = "data: {source: digits}\nmodel: {name: mlp}\n"
    Path("args.json").write_text(json.dumps(ARGUMENTS))
    Path("run.yaml").write_text(base + "training: {from: args.json, epochs: 2}\n")
    config = load_config("run.yaml")
    check_names(config)
    recipe = make_recipe(config.training.model_dump(mode="json"))
    expected = from_training_arguments(ARGUMENTS)
    assert recipe == Recipe(**{**vars(expected), "name": "custom", "epochs": 2})
    Path("fields.yaml").write_text(
        base + "training: {recipe: custom, optimiser: adamw, betas: [0.8, 0.9], clip_norm: 1, no_decay: ['*.bias'],\n"
        "  lr_schedule: linear, lr_update: step, warmup_steps: 10, label_smoothing: 0.1, eps: 1e-6}\n"
    )
    fields = make_recipe(load_config("fields.yaml").training.model_dump(mode="json"))
    assert (fields.betas, fields.no_decay, fields.warmup_steps) == ((0.8, 0.9), ("*.bias",), 10)
    Path("both.yaml").write_text(base + "training: {from: args.json, recipe: jia2023}\n")
    with pytest.raises(ConfigError, match="not both"):
        load_config("both.yaml")
    Path("args.json").write_text(json.dumps({**ARGUMENTS, "mixup": 0.5}))
    with pytest.raises(ConfigError, match="cannot be repeated: it mixes records"):
        load_config("run.yaml")
