"""What a user declares about a model that was trained elsewhere: its architecture, its mask, and its recipe."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.core.errors import ConfigError, MaskError, ModelError, with_article
from expunge.core.files import PathLike, write_tensors
from expunge.core.mask import Mask, MaskProvenance
from expunge.core.split import Split
from expunge.core.trained import plain_state
from expunge.data.records import Normalisation, Records
from expunge.models import Architecture, architecture
from expunge.models.call import ModelCall, adapt
from expunge.models.live import register_factory, register_model_object
from expunge.models.normalise import Normalised, make_normalise, measure_normalisation
from expunge.sparsity import PrunedBy, import_model
from expunge.training import Recipe, Runtime, get_recipe, predict_logits
from expunge.training.recipes import from_training_arguments

from .rows import keep_present

Factory = Callable[..., nn.Module] | str | Architecture
#: The recipe of a training from scratch that nobody declared.
DEFAULT_RECIPE = "one-cycle"
#: Records on which a factory is compared with the model.
_COMPARED = 8
_ZEROS = "zeros"


def declare_architecture(
    model: nn.Module, records: Records, split: Split, factory: Factory | None, normalise: Any, call: ModelCall
) -> Architecture:
    """Make the architecture of a model: by its factory, or by the model itself, which cannot be drawn again.

    Args:
        model: the float32 copy.
        records: determine the input shape and the number of classes.
        split: its training records are those of which statistics are computed.
        factory: makes a new network; the name of one; or an `Architecture`.
        normalise: see `adopt`.
        call: how the model is called.

    Raises:
        ModelError: the factory is a model, or cannot be called; or the statistics do not fit.
        ConfigError: `normalise` is unknown.
    """
    if isinstance(factory, nn.Module):
        raise ModelError(
            "is a model, not a factory: each retraining would start from its weights",
            where="factory",
            hint="give a function that makes a new one: factory=lambda: MyNetwork(...)",
        )
    statistics = _find_normalisation(records, split, normalise)
    if isinstance(factory, Architecture):
        if statistics is not None:
            raise ConfigError("an Architecture has its own normalisation", where="normalise", hint="leave it out")
        return factory
    if isinstance(factory, str):
        if ":" not in factory:
            hint = f"expunge.architecture({factory!r}, data) makes an Architecture of a registered network"
            raise ConfigError("names a network without its options", where="factory", hint=hint)
        made = architecture(factory, records, split, normalise="none")
        return dataclasses.replace(made, normalisation=statistics, call=made.call if call.is_plain else call)
    name = register_model_object(model) if factory is None else register_factory(factory)
    plain = None if call.is_plain else call
    return Architecture(name, {}, records.input_shape, records.classes, statistics, call=plain)


def _find_normalisation(records: Records, split: Split, normalise: Any) -> Normalisation | None:
    if isinstance(normalise, Normalisation):
        return normalise
    if normalise is None or normalise == "none":
        return None
    if normalise == "published":
        if records.normalisation is None:
            raise ModelError("these records have no published normalisation statistics", where="normalise")
        return records.normalisation
    if normalise == "training":
        if split.retain_absent:
            what = "the training records are gone, so their mean and standard deviation cannot be measured"
            raise ConfigError(what, where="normalise", hint="give the pair: normalise=(means, standard deviations)")
        return measure_normalisation(records, split.train)
    try:
        mean, std = ([float(value) for value in np.atleast_1d(part)] for part in normalise)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"is {str(normalise)[:60]!r}",
            where="normalise",
            hint="none, published, training, or a pair of means and standard deviations, one number a channel",
        ) from error
    return Normalisation(tuple(mean), tuple(std))


def build_network(model: nn.Module, built: Architecture, call: ModelCall) -> nn.Module:
    """The network of the adopted `Trained`: the copy of the user's model, called as records need it.

    Args:
        model: the float32 copy, of the user's class.
        built: its architecture.
        call: how it is called.
    """
    adapted = adapt(model, call)
    statistics = built.normalisation
    if statistics is None or ":" not in built.name or isinstance(model, Normalised):  # it has them inside
        return adapted.eval()
    return Normalised(make_normalise(statistics, built.input_shape), adapted).eval()


def check_factory(built: Architecture, network: nn.Module, records: Records, split: Split, runtime: Runtime) -> None:
    """Check that a factory makes the network of the model: equal tensors by name and shape, and equal outputs.

    Args:
        built: the architecture with the factory.
        network: the network of the model.
        records: the records.
        split: some of its training records are run.
        runtime: device.

    Raises:
        ModelError: the factory makes another network; the message names the first tensor that differs.
    """
    try:
        made = built.build(0).eval()
    except ModelError as error:
        raise ModelError(error.what, where=f"factory ({built.name})", hint=error.hint) from error
    old, new = plain_state(network), plain_state(made)
    hint = "give the factory that made this model, with the same options"
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new or name not in old:
            lacking = "the factory makes no" if name not in new else "the model has no"
            raise ModelError(f"the factory makes another network: {lacking} {name}", where="factory", hint=hint)
        shapes = [tuple(state[name].shape) for state in (new, old)]
        if shapes[0] != shapes[1]:
            what = f"the factory makes another network: {name} is {shapes[0]}, that of the model {shapes[1]}"
            raise ModelError(what, where="factory", hint=hint)
    with torch.no_grad():
        for name, tensor in old.items():
            new[name].copy_(tensor)
    rows = np.sort(records.rows(keep_present(records, split.train)))[:_COMPARED]
    mine, theirs = (predict_logits(m, records, rows, runtime=runtime) for m in (network, made))
    if not torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4):
        difference = float((mine - theirs).abs().max())
        raise ModelError(
            f"with the weights of the model, the network of the factory has other outputs (logits differ by up to "
            f"{difference:.3g})",
            where="factory",
            hint=f"{hint}; a layer without weights may differ, such as an activation or a pooling",
        )


def declare_mask(
    built: Architecture,
    network: nn.Module,
    mask: Any,
    hooked: Mapping[str, torch.Tensor],
    pruned: PrunedBy | Mapping[str, Any] | None,
) -> Mask | None:
    """Read the mask of a sparse model, and check that its weights are zero where it prunes them.

    Args:
        built: the architecture.
        network: the network of the model.
        mask: a `Mask`, its file, bool tensors by name (True where a weight is kept), the string `zeros`, or None.
        hooked: the masks of `torch.nn.utils.prune` hooks, by name; they are masks already.
        pruned: how the model was pruned, if known: a `PrunedBy`, or a mapping of its fields.

    Raises:
        MaskError: the mask does not fit, or there are two.
        ConfigError: `pruned` does not say how a model was pruned.
        ModelError: masked weights are not zero.
    """
    pruned = None if pruned is None else PrunedBy.from_value(pruned)
    if mask is None and not hooked:
        if pruned is not None:
            raise MaskError("says how a dense model was pruned", where="pruned", hint="give its mask too: mask='zeros'")
        return None
    if mask is not None and hooked:
        raise MaskError("the model has masks of torch.nn.utils.prune already", where="mask", hint="leave it out")
    tensors = plain_state(network)
    if hooked:
        prefix = "network." if isinstance(network, Normalised) else ""
        for name, kept in hooked.items():
            tensors[f"{prefix}{name}_orig"] = tensors.pop(f"{prefix}{name}")
            tensors[f"{prefix}{name}_mask"] = kept.float()
    if isinstance(mask, Mapping):
        mask = Mask({name: torch.as_tensor(t).bool() for name, t in mask.items()}, MaskProvenance("unknown"))
    if mask is not None and not isinstance(mask, (str, os.PathLike, Mask)):
        what = f"is {with_article(type(mask).__name__)}"
        raise MaskError(what, where="mask", hint="a Mask, its file, bool tensors by name, or the string zeros")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        write_tensors(weights, tensors)
        file: PathLike | None = None if mask is None or isinstance(mask, Mask) else mask
        if isinstance(mask, Mask):
            mask.check_fits(network)
            file = Path(folder) / "mask.safetensors"
            mask.save(file)
        found = import_model(built, weights, mask=file, pruned=pruned).mask
    assert found is not None
    wrong = found.count_violations(network)
    if wrong:
        name = max(wrong, key=lambda key: wrong[key])
        count = sum(wrong.values())
        if mask is not None and not _are_zero(network, found):
            raise ModelError(
                f"{count:,} weights that the mask prunes are not zero (most: {name})",
                where="mask",
                hint="give the mask of this model: True where a weight is kept",
            )
        found.apply_(network)  # -0.0, or the values that a torch.nn.utils.prune hook hides
    return found


def _are_zero(network: nn.Module, mask: Mask) -> bool:
    state = plain_state(network)
    return all(not bool((state[name][~kept] != 0).any()) for name, kept in mask.kept.items())


def declare_recipe(recipe: Any, records: int) -> Recipe | None:
    """Make the recipe that a retraining follows; None if there is none.

    Args:
        recipe: see `adopt`.
        records: number of training records.

    Raises:
        ConfigError: the recipe is unknown, cannot be repeated, or has no epochs.
    """
    found = _read_recipe(recipe, records)
    if found is not None and found.epochs == 0:
        raise ConfigError("has 0 epochs, but the model is trained", where="recipe", hint="its number of epochs")
    return found


def _read_recipe(recipe: Any, records: int) -> Recipe | None:
    if recipe is None:
        return None
    if isinstance(recipe, Recipe) or (isinstance(recipe, str) and not recipe.endswith(".json")):
        return get_recipe(recipe)
    fields = {field.name for field in dataclasses.fields(Recipe)}
    if isinstance(recipe, Mapping) and (set(recipe) <= fields or "num_train_epochs" not in recipe):
        return get_recipe(recipe)
    if isinstance(recipe, (Mapping, os.PathLike, str)) or hasattr(recipe, "num_train_epochs"):
        return from_training_arguments(recipe, records=records)
    if isinstance(recipe, torch.optim.Optimizer):
        raise ConfigError(
            "an optimiser does not say how many epochs were trained, nor the batch size",
            where="recipe",
            hint="recipe=expunge.training.recipes.from_torch(optimiser, epochs=..., batch_size=..., model=model)",
        )
    raise ConfigError(
        f"is {with_article(type(recipe).__name__)}",
        where="recipe",
        hint="a Recipe, the name of one, a dictionary of its fields, or TrainingArguments (also as a JSON file)",
    )
