"""A declared start of training: weights in a file, of the whole network or of a part of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from expunge.core.errors import ConfigError, FileError, ModelError
from expunge.core.files import PathLike, read_bytes, read_tensors
from expunge.core.reading.limits import BYTES
from expunge.core.show import repr_fields
from expunge.core.trained import plain_state

from .weights import match_names


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Pretrained weights that training starts from, as the user declares: they do not depend on the records.

    Attributes:
        file: a safetensors file with parameters and buffers of the network; the others are drawn from the seed.
        hash: SHA-256 of the bytes of the file, in hexadecimal.

    Example:
        >>> from safetensors.torch import save_file
        >>> save_file({"weight": torch.ones(1, 2)}, "start.safetensors")
        >>> start = InitialWeights.declare("start.safetensors")
        >>> len(start.hash), start.names()
        (64, ('weight',))
        >>> start.load_into(torch.nn.Linear(2, 1)).weight.tolist()
        [[1.0, 1.0]]
    """

    file: str
    hash: str

    __repr__ = repr_fields

    @classmethod
    def declare(cls, value: InitialWeights | PathLike | Mapping[str, Any]) -> InitialWeights:
        """Make it from a file, or from `{"file", "hash"}`; a hash that is left out is computed.

        Raises:
            FileError: the file cannot be read, or has another hash.
            ConfigError: there is no file.
        """
        if isinstance(value, InitialWeights):
            return value
        given = value if isinstance(value, Mapping) else {"file": value}
        if not given.get("file"):
            raise ConfigError("a declared start needs a file", where="initial", hint="initial={file, hash}")
        found = cls(str(given["file"]), str(given.get("hash") or ""))
        return found if found.hash else dataclasses.replace(found, hash=_hash_file(found.file))

    def read(self) -> dict[str, torch.Tensor]:
        """Read the tensors.

        Raises:
            FileError: the file is missing, or is another one than was declared.
        """
        found = _hash_file(self.file)
        if found != self.hash.lower():
            raise FileError(
                f"is not the declared start: its SHA-256 is {found}, not {self.hash}",
                where=self.file,
                hint="restore the file, or declare the hash of this one",
            )
        return read_tensors(self.file)[0]

    def names(self) -> tuple[str, ...]:
        """Names of the tensors in the file."""
        return tuple(self.read())

    def load_into(self, model: nn.Module) -> nn.Module:
        """Copy the tensors into a model, in place, and return it.

        Raises:
            FileError: see `read`.
            ModelError: a tensor is unknown to the model, has another shape or type, or is not finite.
        """
        target = plain_state(model)
        with torch.no_grad():
            for name, tensor in match_names(self.read(), model).items():
                known = target.get(name)
                if (
                    known is None
                    or known.shape != tensor.shape
                    or known.is_floating_point() != tensor.dtype.is_floating_point
                ):
                    shape = "no such tensor" if known is None else f"{known.dtype} {tuple(known.shape)}"
                    raise ModelError(
                        f"the declared start does not fit: {name} is {tensor.dtype} {tuple(tensor.shape)} in the file, "
                        f"and the network has {shape}",
                        where=self.file,
                        hint="leave the tensor out of the file (a head of other classes, for example)",
                    )
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise ModelError("the declared start has NaN or infinite values", where=f"{self.file}: {name}")
                known.copy_(tensor)
        return model

    def to_json(self) -> dict[str, str]:
        """The value of `initial` in an architecture (docs/formats/trained.md)."""
        return {"file": self.file, "hash": self.hash}


def _hash_file(path: PathLike) -> str:
    return hashlib.sha256(read_bytes(path, BYTES)).hexdigest()
