"""From a model in a directory to one file for use elsewhere: dense with zeros, hooks of torch, or smaller tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ConfigError, FileError, ModelError, unknown_name_hint
from expunge.core.files import PathLike, read_tensors
from expunge.core.trained import plain_state
from expunge.core.trust import Trust

from .output import check_writable

if TYPE_CHECKING:
    from expunge.core.trained import Trained

#: What a model can leave as.
FORMS: dict[str, str] = {
    "dense": "plain weights, masked ones +0.0: any PyTorch code loads them",
    "torch-prune": "`weight_orig` and `weight_mask`, as torch.nn.utils.prune names them",
    "small": "smaller tensors, masked channels removed: docs/formats/small.md",
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that a model left as.

    Attributes:
        path: the file.
        form: a key of `FORMS`.
        parameters_before, parameters_after: numbers of parameters of the model and of the file's.
        difference: largest absolute difference of logits from the masked network (form `small`), or None: the others
            hold the same weights.
    """

    path: Path
    form: str
    parameters_before: int
    parameters_after: int
    difference: float | None = None

    def text(self) -> str:
        """What was written."""
        checked = "" if self.difference is None else f"; logits within {self.difference:.2g} of the masked network's"
        return f"{self.path}: {self.parameters_after:,} of {self.parameters_before:,} parameters{checked}"

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "path": str(self.path)}


def export_model(
    directory: PathLike,
    output: PathLike,
    *,
    form: str = "dense",
    backend: str = "slots",
    trust: Sequence[str] | Trust = (),
) -> Exported:
    """Write the model of a directory as one safetensors file. (2:4 tensors are made in memory: `to_semi_structured`.)

    Args:
        directory: what `train`, `prune` or `forget` wrote.
        output: the file, outside of every model's directory; an earlier export is replaced, no other file is.
        form: a key of `FORMS`.
        backend: what removes channels, for the form `small`: a key of `expunge.sparsity.compression.shrink.BACKENDS`.
        trust: top-level packages that the directory may name for a custom architecture; nothing beside it is trusted.

    Raises:
        TrustError: the directory names code that nobody agreed to run; nothing was imported.
        ConfigError: unknown form, or a backend for a form that removes nothing.
        ModelError: the model is dense where a mask is needed, or patched.
        MaskError: no whole channel is masked, or the backend cannot remove them.
        FileError: a file is missing or damaged, or the output would take the place of something else.
    """
    from expunge.models import load_trained

    if form not in FORMS:
        raise ConfigError(f"unknown form {form!r}", where="export.form", hint=unknown_name_hint(form, FORMS))
    if backend != "slots" and form != "small":
        raise ConfigError("a backend removes channels, which only the form `small` does", where="export.backend")
    at, place = Path(directory), Path(output)
    _check_place(place, at)
    trained = load_trained(at, trust=trust)
    if "patches" in trained.state:
        raise ModelError(
            "the model is patched: gates and shifts are no weights of its layers",
            where=at,
            hint="certify it (expunge certify), or export its module with torch.export or ONNX (docs/patches.md)",
        )
    if form != "dense" and trained.mask is None:
        raise ModelError("the model is dense: it has no mask", where=at, hint="form=dense; or prune it first")
    count = sum(parameter.numel() for parameter in trained.model.parameters())
    if form == "small":
        return _small(trained, place, backend, count)
    _weights(trained, place, form)
    return Exported(place, form, count, count)


def _check_place(place: Path, model: Path) -> None:
    """Raise FileError unless the output is a new file, or an earlier export, outside of every model's directory."""
    whole = place.resolve()
    if place.is_dir():
        raise FileError("is a directory; the output is a file", where=place)
    if model.resolve() in whole.parents or any((above / "trained.json").exists() for above in whole.parents):
        raise FileError("lies in the directory of a model", where=place, hint="name a file somewhere else")
    if place.exists():
        from expunge.sparsity.compression import small_model
        from expunge.sparsity.interop import formats

        try:
            kind = read_tensors(place)[1].get("kind")
        except FileError:
            kind = None
        if kind not in (formats.KIND, small_model.KIND):
            raise FileError(
                "is there already, and this command did not write it", where=place, hint="name another file"
            )
    check_writable(place)


def _small(trained: Trained, place: Path, backend: str, count: int) -> Exported:
    from expunge.sparsity import save_small_model, shrink

    assert trained.mask is not None
    shape = tuple(trained.provenance.architecture["input_shape"])
    small = shrink(trained.model, trained.mask, shape, backend=backend)
    save_small_model(small, trained, place)
    return Exported(place, "small", count, small.parameters_after, small.difference)


def _weights(trained: Trained, place: Path, form: str) -> None:
    from expunge.sparsity.interop.formats import export_dense, to_torch_prune, write_weights

    if form == "dense":
        export_dense(trained.model, trained.mask, place)
        return
    assert trained.mask is not None
    write_weights(place, to_torch_prune(plain_state(trained.model), trained.mask))
