"""Trained models on disk: one directory, written whole, checked by hash when it is read.

`model.safetensors` (weights and buffers), `mask.safetensors` (if there is a mask), `split.json`, `trained.json`
(provenance and hashes) and `state/<kind>.safetensors`; see docs/formats/trained.md.
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
from expunge.core.files import PathLike, read_json, read_tensors, staged_directory, write_json, write_tensors
from expunge.core.hashing import hash_tensors
from expunge.core.mask import Mask
from expunge.core.outcome import versions
from expunge.core.split import Split
from expunge.core.trained import Provenance, Trained, plain_state
from expunge.core.trust import Trust, trusting
from expunge.data.records import Normalisation, Records

from .architecture import Architecture
from .normalise import Normalise
from .weights import load_tensors

SCHEMA = "expunge.trained"
SCHEMA_VERSION = 1
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def save_trained(trained: Trained, directory: PathLike) -> None:
    """Write a trained model; the directory is there whole or not at all.

    A directory that holds a trained model is replaced, with all that is in it; any other that is not empty is refused.

    Raises:
        FileError: the directory holds something else, or cannot be written.
        ModelError: the model cannot be rebuilt from its provenance, or a masked weight is not +0.0.
    """
    path = Path(directory)
    if path.exists() and not (path / "trained.json").is_file() and (not path.is_dir() or any(path.iterdir())):
        raise FileError(
            "is there already and holds no trained model; nothing was written",
            where=path,
            hint="choose a directory that is new or empty",
        )
    with staged_directory(path) as temporary:
        write_trained(trained, temporary)


def write_trained(trained: Trained, directory: PathLike) -> None:
    """Write the files of a trained model into a directory that the caller stages (beside scores or a report, say).

    Raises:
        FileError: a file cannot be written.
        ModelError: the model cannot be rebuilt from its provenance, or a masked weight is not +0.0.
    """
    check_savable(trained)
    path = Path(directory)
    weights = plain_state(trained.model)
    write_tensors(path / "model.safetensors", weights)
    if trained.mask is not None:
        trained.mask.save(path / "mask.safetensors")
    trained.split.save(path / "split.json")
    for kind, tensors in trained.state.items():
        write_tensors(path / "state" / f"{kind}.safetensors", tensors)
    hashes = {
        "weights": hash_tensors(weights),
        "mask": None if trained.mask is None else trained.mask.hash(),
        "split": trained.split.hash,
        "base_split": trained.split.base_hash,
        "state": {kind: hash_tensors(tensors) for kind, tensors in trained.state.items()},
    }
    body = {
        "hashes": hashes,
        "provenance": trained.provenance.to_json(),
        "influence_state": list(trained.influence_state()),
        "versions": versions(),
    }
    write_json(path / "trained.json", SCHEMA, SCHEMA_VERSION, body)


def adopt_weights(
    architecture: Architecture,
    weights: PathLike,
    records: Records,
    split: Split,
    *,
    tensors: Mapping[str, torch.Tensor] | None = None,
    mask: PathLike | Mask | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Trained:
    """A trained model from weights that came from elsewhere, in eval mode.

    Weights in other forms than plain tensors (`torch.nn.utils.prune`, baked zeros, physically smaller files) are read
    by `expunge.sparsity.adopt_weights`, which ends here.

    Args:
        architecture: the network that the weights belong to.
        weights: a safetensors file.
        records: the records that the model classifies.
        split: which of them the weights were trained on (`split.train`) and which they never saw; taken on trust.
        tensors: what the file holds, where it was read already.
        mask: an expunge mask, or its file, for a sparse model.
        recipe: the recipe that retraining should follow, if it is known.

    Input constants in the file that are not the architecture's are counted as measured on training records, because
    nothing says otherwise.

    Raises:
        FileError: a file is missing, damaged, a pickle, or of another format.
        ModelError: the weights do not fit, hold NaN, or give life to masked weights.
        MaskError: the mask was made for another architecture.
    """
    held_tensors = read_tensors(weights)[0] if tensors is None else tensors
    model = load_tensors(architecture.build(), held_tensors, weights).eval()
    constants, first = architecture.normalisation, getattr(model, "normalise", None)
    if constants is not None and isinstance(first, Normalise):
        held = (tuple(first.mean.tolist()), tuple(first.deviation.tolist()))
        known = Normalise(constants, len(held[0]))
        if not (torch.equal(first.mean, known.mean) and torch.equal(first.deviation, known.deviation)):
            architecture = dataclasses.replace(architecture, normalisation=Normalisation(*held, "training records"))
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
    )
    return Trained(model, loaded, split, provenance)


def check_savable(trained: Trained) -> None:
    """Raise ModelError unless `load_trained` could make this model again.

    The architecture in the provenance is built and compared: names, shapes and types of every tensor.
    """
    bad = [kind for kind in trained.state if not _KIND.fullmatch(kind)]
    if bad:
        raise ModelError(f"a kind of state cannot be called {bad[0]!r}", hint="letters, digits, underscores, hyphens")
    if trained.mask is not None:
        _check_mask(trained.mask, trained.model, "the trained model")
    rebuilt = plain_state(Architecture.from_json(trained.provenance.architecture).build())
    own = plain_state(trained.model)
    _check_same_tensors(own, rebuilt, "the model is not what its provenance says")


def load_trained(directory: PathLike, *, trust: Sequence[str] | Trust = ()) -> Trained:
    """Read a trained model, on the CPU and in eval mode; bits and hashes are those that were saved.

    Args:
        directory: what `save_trained` or a command wrote. Nothing in it or beside it is run.
        trust: top-level packages whose functions a custom architecture may name (`package.module:factory`); not needed
            where this process gave that name itself, or where a configuration that it started does.

    Raises:
        TrustError: `trained.json` names code that nobody agreed to run; nothing was imported.
        FileError: a file is missing, damaged, or was changed after it was written.
        ModelError: the architecture cannot be built here, or a masked weight is not +0.0.
        DataError: the split is damaged.
    """
    path = Path(directory)
    body = read_json(path / "trained.json", SCHEMA, SCHEMA_VERSION)
    try:
        hashes: Mapping[str, Any] = dict(body["hashes"])
        state_hashes = dict(hashes["state"])
        recorded_mask, recorded_split = hashes["mask"], hashes["split"]
        provenance = Provenance.from_json(body["provenance"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"lacks what a trained model needs ({error!r})", where=path / "trained.json") from error
    tensors = _read_hashed(path / "model.safetensors", hashes.get("weights"))
    mask = None
    if recorded_mask is not None:
        mask = Mask.load(path / "mask.safetensors")
        _check_hash(mask.hash(), recorded_mask, path / "mask.safetensors")
    elif (path / "mask.safetensors").exists():
        raise FileError("is there, but trained.json records no mask", where=path / "mask.safetensors")
    split = Split.load(path / "split.json")
    _check_hash(split.hash, recorded_split, path / "split.json")
    state = {}
    for kind, recorded in state_hashes.items():
        if not _KIND.fullmatch(kind):
            raise FileError(f"a kind of state cannot be called {kind!r}", where=path / "trained.json")
        state[kind] = _read_hashed(path / "state" / f"{kind}.safetensors", recorded)
    with trusting(trust):
        model = Architecture.from_json(provenance.architecture).build().eval()
    target = plain_state(model)
    _check_same_tensors(tensors, target, f"{path / 'model.safetensors'}: the weights do not fit the architecture")
    with torch.no_grad():
        for name, tensor in tensors.items():
            target[name].copy_(tensor)
    if mask is not None:
        _check_mask(mask, model, path / "model.safetensors")
    return Trained(model, mask, split, provenance, state)


def _read_hashed(path: Path, recorded: object) -> dict[str, torch.Tensor]:
    tensors, _ = read_tensors(path)
    _check_hash(hash_tensors(tensors), recorded, path)
    return tensors


def _check_hash(found: str, recorded: object, path: Path) -> None:
    if found != recorded:
        raise FileError(
            "does not have the hash that trained.json records: it was changed, or belongs to another model",
            where=path,
            hint="restore the file, or make the model again",
        )


def _check_same_tensors(found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], what: str) -> None:
    for name in [*target, *found]:
        if name not in found or name not in target:
            place = "is missing" if name not in found else "is unknown to the architecture"
            raise ModelError(f"{what}: {name} {place}")
        have, want = found[name], target[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            kinds = [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in (have, want)]
            raise ModelError(f"{what}: {name} is {kinds[0]}, the architecture has {kinds[1]}")


def _check_mask(mask: Mask, model: nn.Module, where: object) -> None:
    """Raise ModelError if masked weights are not exactly +0.0, saying how many."""
    try:
        mask.check_fits(model)
    except MaskError as error:
        raise MaskError(error.what, where=f"{where}: {error.where}", hint=error.hint) from error
    wrong = mask.violations(model)
    if wrong:
        name = max(wrong, key=lambda key: wrong[key])
        raise ModelError(
            f"{sum(wrong.values())} masked weights in {len(wrong)} tensors are not +0.0 (most: {name}, {wrong[name]})",
            where=where,
            hint="something changed dead weights; apply the mask again, or make the model again",
        )
