"""Export a saved model as one safetensors file: dense with zeros, torch.nn.utils.prune names, or smaller tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ConfigError, FileError, ModelError, unknown_name_hint
from expunge.core.files import PathLike, read_tensors
from expunge.core.reading.file_names import check_file_name, check_format
from expunge.core.trust import Trust

from .output import check_writable

if TYPE_CHECKING:
    from expunge.core.trained import Trained

#: Export formats and what they contain.
FORMATS: dict[str, str] = {
    "dense": "plain weights, pruned ones +0.0: any PyTorch code loads them",
    "torch-prune": "`weight_orig` and `weight_mask`, the names of torch.nn.utils.prune",
    "small": "smaller tensors, pruned channels removed: docs/formats/small.md",
    "hf": "a folder with config.json, model.safetensors and the tokenizer: `from_pretrained` reads it",
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        path: the file.
        format: a key of `FORMATS`.
        parameters_before, parameters_after: numbers of parameters of the saved and of the exported model.
        difference: largest absolute difference between the logits of the saved and the exported network (formats
            `small` and `hf`); None for the other formats, which contain the same weights.
    """

    path: Path
    format: str
    parameters_before: int
    parameters_after: int
    difference: float | None = None

    def text(self) -> str:
        """The file, its number of parameters, and the difference of the logits."""
        checked = "" if self.difference is None else f"; logits within {self.difference:.2g} of the masked network's"
        return f"{self.path}: {self.parameters_after:,} of {self.parameters_before:,} parameters{checked}"

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "path": str(self.path)}


def export_model(
    directory: PathLike,
    output: PathLike,
    *,
    format: str = "dense",
    backend: str = "slots",
    prefix: str | None = None,
    trust: Sequence[str] | Trust = (),
) -> Exported:
    """Export a saved model as one safetensors file, or as a Hugging Face folder.

    Semi-structured 2:4 tensors exist only in memory; `expunge.sparsity.to_semi_structured` makes them.

    Args:
        directory: the output directory of `train`, `prune` or `forget`.
        output: the file, outside of every model's directory; an earlier export is replaced, no other file is.
        format: a key of `FORMATS`.
        prefix: what the names of the weights begin with, in the formats `dense` and `torch-prune`: `model.` for a
            Lightning module with the attribute `model`. None: that of the file that was imported.
        backend: removes channels in the format `small`: a key of `expunge.sparsity.compression.shrink.BACKENDS`.
        trust: top-level packages that the directory may name for a custom architecture; modules in the directory are
            never trusted.

    Raises:
        TrustError: the directory names custom code that the user has not agreed to run; nothing was imported.
        ConfigError: unknown format, a prefix for a format without one, or a backend for one that removes no channels.
        ModelError: the format needs a mask but the model is dense, or the model is patched.
        MaskError: no channel is pruned completely, or the backend cannot remove the pruned ones.
        FileError: a file is missing or damaged, or the output would replace another file.

    >>> import expunge
    >>> from safetensors.torch import load_file
    >>> from expunge.workflow import export_model
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records, limit=100)
    >>> network = expunge.architecture("mlp", records, split, widths=(4,))
    >>> recipe = expunge.get_recipe("one-cycle", epochs=1)
    >>> dense = expunge.train(records, split, network, recipe=recipe)
    >>> pruning = expunge.Pruning(sparsity=0.75, layers=("linear",), schedule="one-shot")
    >>> sparse = expunge.prune(dense, pruning, expunge.Context(records))
    >>> expunge.save_trained(sparse, "pruned")
    >>> exported = export_model("pruned", "weights.safetensors", format="dense")
    >>> exported.parameters_after
    310
    >>> tensors = load_file("weights.safetensors")
    >>> sum(int((tensor == 0).sum()) for tensor in tensors.values() if tensor.dim() == 2)  # 75 % of 296 weights
    222
    """
    from expunge.models import load_trained

    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}", where="export.format", hint=unknown_name_hint(format, FORMATS))
    if backend != "slots" and format != "small":
        raise ConfigError("a backend removes channels: only the format `small` has one", where="export.backend")
    if prefix and format in ("small", "hf"):
        raise ConfigError(f"the format {format} has no prefix before its names", where="export.prefix")
    model_path, path = Path(directory), Path(output)
    _check_path(path, model_path, is_folder=format == "hf")
    trained = load_trained(model_path, trust=trust)
    if "patches" in trained.state:
        raise ModelError(
            "the model is patched: gates and shifts are not weights of its layers",
            where=model_path,
            hint="certify it (expunge certify), or export its module with torch.export or ONNX (docs/patches.md)",
        )
    if format not in ("dense", "hf") and trained.mask is None:
        raise ModelError("the model is dense: it has no mask", where=model_path, hint="format=dense; or prune it first")
    count = sum(parameter.numel() for parameter in trained.model.parameters())
    if format == "small":
        return _export_small(trained, path, backend, count)
    if format == "hf":
        return Exported(path, format, count, count, _export_folder(trained, path))
    _export_weights(trained, path, format, trained.provenance.weight_prefix if prefix is None else prefix)
    return Exported(path, format, count, count)


def _check_path(path: Path, model: Path, *, is_folder: bool) -> None:
    """Raise FileError unless the output is a new file, or an earlier export, outside of every model's directory."""
    parents = path.resolve().parents
    if not is_folder:
        check_file_name(path)
    if model.resolve() in parents or any((parent / "trained.json").exists() for parent in parents):
        raise FileError("is in the directory of a model", where=path, hint="choose a file in another directory")
    if path.exists() and not is_folder:
        from expunge.sparsity.compression import small_model
        from expunge.sparsity.interop import formats

        try:
            kind = read_tensors(path)[1].get("kind")
        except FileError:
            kind = None
        if kind not in (formats.KIND, small_model.KIND):
            raise FileError("exists, and this command did not write it", where=path, hint="choose another file name")
    if not is_folder:
        check_format(path, "safetensors")
    check_writable(path)


def _export_small(trained: Trained, path: Path, backend: str, count: int) -> Exported:
    from expunge.sparsity import save_small_model, shrink

    assert trained.mask is not None
    shape = tuple(trained.provenance.architecture["input_shape"])
    small = shrink(trained.model, trained.mask, shape, backend=backend)
    save_small_model(small, trained, path)
    return Exported(path, "small", count, small.parameters_after, small.difference)


def _export_folder(trained: Trained, path: Path) -> float:
    from expunge.models.named import save_pretrained

    architecture = trained.provenance.architecture
    name = str(architecture["name"])
    folder = name.removeprefix("hf:") if name.startswith("hf:") else None
    return save_pretrained(trained.model, path, input_shape=tuple(architecture["input_shape"]), files_from=folder)


def _export_weights(trained: Trained, path: Path, format: str, prefix: str) -> None:
    from expunge.core.trained import plain_state
    from expunge.sparsity.interop.formats import export_dense, to_torch_prune, write_weights

    if format == "dense":
        export_dense(trained.model, trained.mask, path, prefix=prefix)
        return
    assert trained.mask is not None
    tensors = to_torch_prune(plain_state(trained.model), trained.mask)
    write_weights(path, {f"{prefix}{name}": tensor for name, tensor in tensors.items()})
