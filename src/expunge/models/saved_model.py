"""Trained models on disk: one directory, written atomically and checked by hash when it is read.

`model.safetensors` (weights and buffers), `mask.safetensors` (if there is a mask), `split.json`, `trained.json`
(provenance and hashes) and `state/<name>.safetensors`; see docs/formats/trained.md.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.core.errors import FileError, MaskError, ModelError
from expunge.core.files import PathLike, read_run_file, read_tensors, staged_directory, write_json, write_tensors
from expunge.core.hashing import hash_tensors, plain_parameters
from expunge.core.mask import Mask
from expunge.core.outcome import versions
from expunge.core.show import plural
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained, plain_state
from expunge.core.trust import ENTRIES, Trust, remember, trusting
from expunge.data.records import Normalisation, Records

from .architecture import Architecture
from .normalise import Normalise
from .recorded_pair import check_recorded_pair
from .weights import find_weight_prefix, find_weights, load_tensors, read_weights

SCHEMA = "expunge.trained"
SCHEMA_VERSION = 2
_STATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def save_trained(trained: Trained, directory: PathLike) -> None:
    """Write a trained model into a directory, which appears complete or not at all.

    A directory with a trained model is replaced with all its contents; any other directory that is not empty is
    refused.

    Args:
        trained: the model.
        directory: the directory to write.

    Raises:
        FileError: the directory has other contents, or cannot be written.
        ModelError: the model cannot be rebuilt from its provenance, or a masked weight is not +0.0.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(8,))
        >>> recipe = expunge.get_recipe("one-cycle", epochs=1, batch_size=512)
        >>> trained = expunge.train(records, split, network, recipe=recipe)
        >>> save_trained(trained, "model")
        >>> sorted(path.name for path in Path("model").iterdir())
        ['model.safetensors', 'split.json', 'state', 'trained.json']
    """
    path = Path(directory)
    check_target(path)
    with staged_directory(path) as temporary:
        write_trained(trained, temporary)


def check_target(path: Path) -> None:
    """Raise FileError unless a directory is new, empty, or that of a trained model, which may be replaced."""
    if path.exists() and not (path / "trained.json").is_file() and (not path.is_dir() or any(path.iterdir())):
        raise FileError(
            "exists and is not a trained model; nothing was written",
            where=path,
            hint="choose a new or empty directory",
        )


def write_trained(trained: Trained, directory: PathLike) -> None:
    """Write the files of a trained model into a directory of the caller, for example beside scores or a report.

    Not atomic: the caller stages the directory (`expunge.core.staged_directory`).

    Args:
        trained: the model.
        directory: an existing directory.

    Raises:
        FileError: a file cannot be written.
        ModelError: the model cannot be rebuilt from its provenance, or a masked weight is not +0.0.

    Example:
        >>> import expunge
        >>> from expunge.core import staged_directory
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(8,))
        >>> trained = Trained(network.build(seed=0), None, split, Provenance(network.to_json()))
        >>> with staged_directory("run") as temporary:
        ...     write_trained(trained, temporary)
        ...     _ = (temporary / "notes.txt").write_text("initial weights")
        >>> load_trained("run").hash == trained.hash
        True
    """
    check_savable(trained)
    path = Path(directory)
    weights = plain_state(trained.model)
    write_tensors(path / "model.safetensors", weights)
    if trained.mask is not None:
        trained.mask.save(path / "mask.safetensors")
    trained.split.save(path / "split.json")
    for name, tensors in trained.state.items():
        write_tensors(path / "state" / f"{name}.safetensors", tensors)
    hashes = {
        "weights": hash_tensors(weights),
        "mask": None if trained.mask is None else trained.mask.hash(),
        "split": trained.split.hash,
        "base_split": trained.split.base_hash,
        "state": {name: hash_tensors(tensors) for name, tensors in trained.state.items()},
    }
    body = {
        "hashes": hashes,
        "provenance": trained.provenance.to_json(),
        "influence_state": list(trained.list_influence_state()),
        "frozen": [n for n, p in plain_parameters(trained.model).items() if not p.requires_grad],
        "versions": versions(),
    }
    write_json(path / "trained.json", SCHEMA, SCHEMA_VERSION, body)


def adopt_plain_weights(
    architecture: Architecture,
    weights: PathLike,
    records: Records,
    split: Split,
    *,
    tensors: Mapping[str, torch.Tensor] | None = None,
    mask: PathLike | Mask | None = None,
    recipe: Mapping[str, Any] | None = None,
    split_file: PathLike | None = None,
    prefix: str | None = None,
) -> Trained:
    """Make a trained model, in eval mode, from imported weights that are plain tensors.

    `expunge.adopt_weights` also reads other formats (`torch.nn.utils.prune`, baked zeros, physically smaller networks)
    and then calls this function.

    If the normalisation statistics in the file differ from those of the architecture, their origin is recorded as
    `training records`, because the file does not record it.

    Args:
        architecture: the network that the weights belong to.
        weights: a safetensors file, or a folder of `save_pretrained`.
        records: the records that the model classifies.
        split: which of them the weights were trained on (`split.train`) and which not. It is compared with a
            trained.json beside the weights or the split; nothing else verifies it.
        tensors: the tensors of the file, if it was already read.
        mask: an expunge mask, or its file, for a sparse model.
        recipe: the training recipe, if known; retraining uses it.
        split_file: the file that the split was read from.
        prefix: what the names in the file begin with; None: it is found.

    Raises:
        FileError: a file is missing, damaged, a pickle, or of another format; or weights and split do not belong
            together (`recorded_pair`).
        ModelError: the weights do not fit, have NaN, or have masked weights that are not +0.0.
        MaskError: the mask was made for another architecture.

    Example:
        >>> import expunge
        >>> from safetensors.torch import save_file
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(8,))
        >>> save_file(network.build(seed=0).state_dict(), "weights.safetensors")
        >>> trained = adopt_plain_weights(network, "weights.safetensors", records, split)
        >>> trained.provenance.weights_from == trained.hash, trained.provenance.history
        (True, ('weights read from weights.safetensors',))
    """
    weights = find_weights(weights)
    check_recorded_pair(weights, split, split_file=split_file)
    file_tensors = read_weights(weights)[0] if tensors is None else tensors
    blank = architecture.build_blank()
    prefix = find_weight_prefix(file_tensors, blank) if prefix is None else prefix
    model = load_tensors(blank, file_tensors, weights).eval()
    statistics, first = architecture.normalisation, getattr(model, "normalise", None)
    if statistics is not None and isinstance(first, Normalise):
        found = (tuple(first.mean.tolist()), tuple(first.deviation.tolist()))
        known = Normalise(statistics, len(found[0]))
        if not (torch.equal(first.mean, known.mean) and torch.equal(first.deviation, known.deviation)):
            architecture = dataclasses.replace(architecture, normalisation=Normalisation(*found, "training records"))
    loaded = mask if mask is None or isinstance(mask, Mask) else Mask.load(mask)
    if loaded is not None:
        _check_mask(loaded, model, weights)
    digest = hash_tensors(plain_state(model))
    provenance = Provenance(
        architecture=architecture.to_json(),
        data={"name": records.name, "hash": records.hash},
        recipe=dict(recipe or {}),
        weights_from=digest,
        history=(f"weights read from {Path(weights).name}",),
        weight_prefix=prefix,
    )
    return Trained(model, loaded, split, provenance)


def check_savable(trained: Trained) -> None:
    """Raise ModelError unless `load_trained` could rebuild this model.

    The architecture in the provenance is built, and the names, shapes and types of all tensors are compared.
    """
    bad = [name for name in trained.state if not _STATE_NAME.fullmatch(name)]
    if bad:
        raise ModelError(f"a state cannot be named {bad[0]!r}", hint="letters, digits, underscores, hyphens")
    if trained.mask is not None:
        _check_mask(trained.mask, trained.model, "the trained model")
    rebuilt = plain_state(Architecture.from_json(trained.provenance.architecture).build_blank())
    _check_same_tensors(plain_state(trained.model), rebuilt, "the model does not match its provenance")


def load_trained(directory: PathLike, *, trust: Sequence[str] | Trust = ()) -> Trained:
    """Read a trained model, on the CPU and in eval mode, bit for bit as it was saved.

    Args:
        directory: a directory written by `save_trained` or by a command. No code in it or beside it is run.
        trust: top-level packages whose code the directory may name: a custom architecture (`package.module:factory`),
            and the criterion, granularity, scope and schedule of its mask, which un-pruning repeats. Not needed if this
            process gave that name itself, or a configuration that it started.

    Raises:
        TrustError: `trained.json` names code that the owner did not agree to run; nothing was imported.
        FileError: a file is missing or damaged, or was changed after it was written.
        ModelError: the architecture cannot be built, or a masked weight is not +0.0.
        DataError: the split is damaged.

    Example:
        >>> import expunge
        >>> records = expunge.load_records("digits")
        >>> split = expunge.make_split(records, seed=0)
        >>> network = expunge.architecture("mlp", records, split, widths=(8,))
        >>> trained = Trained(network.build(seed=0), None, split, Provenance(network.to_json()))
        >>> save_trained(trained, "model")
        >>> loaded = load_trained("model")
        >>> loaded.hash == trained.hash, loaded.split.hash == split.hash
        (True, True)
    """
    path = Path(directory)
    body = read_run_file(path / "trained.json", SCHEMA, SCHEMA_VERSION)
    try:
        hashes: Mapping[str, Any] = dict(body["hashes"])
        state_hashes = dict(hashes["state"])
        recorded_mask, recorded_split = hashes["mask"], hashes["split"]
        provenance = Provenance.from_json(body["provenance"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"has no value that a trained model needs ({error!r})", where=path / "trained.json") from error
    tensors = _read_checked(path / "model.safetensors", hashes.get("weights"))
    mask = None
    if recorded_mask is not None:
        mask = Mask.load(path / "mask.safetensors")
        _check_hash(mask.hash(), recorded_mask, path / "mask.safetensors")
    elif (path / "mask.safetensors").exists():
        raise FileError("exists, but trained.json records no mask", where=path / "mask.safetensors")
    split = Split.load(path / "split.json")
    _check_hash(split.hash, recorded_split, path / "split.json")
    state = {}
    for name, recorded in state_hashes.items():
        if not _STATE_NAME.fullmatch(name):
            raise FileError(f"a state cannot be named {name!r}", where=path / "trained.json")
        state[name] = _read_checked(path / "state" / f"{name}.safetensors", recorded)
    _check_patches(provenance.architecture, tensors, path / "trained.json")
    with trusting(trust):
        model = Architecture.from_json(provenance.architecture).build_blank().eval()
        if mask is not None:
            made_by = mask.provenance
            remember((made_by.criterion, made_by.granularity, made_by.scope, made_by.schedule))
    target = plain_state(model)
    _check_same_tensors(tensors, target, f"{path / 'model.safetensors'}: the weights do not fit the architecture")
    with torch.no_grad():
        for name, tensor in tensors.items():
            target[name].copy_(tensor)
    if "frozen" in body:  # files of earlier versions do not have it: the flags are those of the built network
        for name, parameter in plain_parameters(model).items():
            parameter.requires_grad_(name not in body["frozen"])
    if mask is not None:
        _check_mask(mask, model, path / "model.safetensors")
    return Trained(model, mask, split, provenance, state)


def _check_patches(architecture: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], where: Path) -> None:
    """Raise ModelError unless the declared numbers of patches are those of the tensors; nothing is built before."""
    if ENTRIES.isdisjoint((architecture.get("name"), architecture.get("factory"))):
        return
    options = architecture.get("options")
    for option, name in (("count", "patches.pattern"), ("groups", "patches.first")):
        declared = options.get(option) if isinstance(options, Mapping) else None
        tensor = tensors.get(name)
        found = 0 if tensor is None or not tensor.dim() else len(tensor)
        if type(declared) is not int or declared != found:
            raise ModelError(
                f"records {option} {str(declared)[:60]}, but model.safetensors has {found} ({name})", where=where
            )


def _read_checked(path: Path, recorded: object) -> dict[str, torch.Tensor]:
    tensors, _ = read_tensors(path)
    _check_hash(hash_tensors(tensors), recorded, path)
    return tensors


def _check_hash(found: str, recorded: object, path: Path) -> None:
    if found != recorded:
        raise FileError(
            "does not have the hash recorded in trained.json: it was changed, or belongs to another model",
            where=path,
            hint="restore the file, or train the model again",
        )


def _check_same_tensors(found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], what: str) -> None:
    for name in [*target, *found]:
        if name not in found or name not in target:
            fault = "is missing" if name not in found else "is unknown to the architecture"
            raise ModelError(f"{what}: {name} {fault}")
        have, want = found[name], target[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            texts = [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (have, want)]
            raise ModelError(f"{what}: {name} is {texts[0]}, the architecture has {texts[1]}")


def _check_mask(mask: Mask, model: nn.Module, where: object) -> None:
    """Raise ModelError if masked weights are not exactly +0.0; the message counts them."""
    try:
        mask.check_fits(model)
    except MaskError as error:
        raise MaskError(error.what, where=f"{where}: {error.where}", hint=error.hint) from error
    wrong = mask.count_violations(model)
    if wrong:
        name = max(wrong, key=lambda key: wrong[key])
        raise ModelError(
            f"masked weights in {plural(len(wrong), 'tensor')} are not +0.0: {plural(sum(wrong.values()), 'weight')} "
            f"(most: {name}, {wrong[name]})",
            where=where,
            hint="pruned weights were changed; apply the mask again, or train the model again",
        )
