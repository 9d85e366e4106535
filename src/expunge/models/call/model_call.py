"""The description of a call: the named inputs, and the output that holds the logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from expunge.core.errors import DataError, ModelError, with_article
from expunge.core.show import repr_fields
from expunge.data.fields import InputFields


@dataclasses.dataclass(frozen=True)
class ModelCall:
    """How a packed batch becomes a call of a model, and which output holds the logits.

    Attributes:
        fields: the keyword arguments; None: the batch is the only, positional argument.
        output: "": the model returns the logits; `logits`: the attribute or key of that name; `0`: an item of a tuple.

    Raises:
        ModelError: the output is neither a name nor a number.

    Example:
        >>> ModelCall(output="logits").is_plain, ModelCall().is_plain
        (False, True)
    """

    fields: InputFields | None = None
    output: str = ""

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        if self.output and not (self.output.isidentifier() or self.output.isdecimal()):
            raise ModelError(f"an output is a name or the number of an item, not {self.output[:60]!r}", where="output")

    @property
    def is_plain(self) -> bool:
        """Whether it is that of an ordinary network: one positional tensor, and the logits come back."""
        return self.fields is None and not self.output

    def arguments(self, batch: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """The positional and keyword arguments of the call for a batch `B x ...`.

        Raises:
            DataError: the batch is not one of these fields.
        """
        if self.fields is None:
            return (batch,), {}
        found = self.fields.unpack(batch)
        return ((found.pop(""),) if "" in found else ()), found

    def select(self, output: Any) -> Any:
        """Take the logits out of what the model returned.

        Raises:
            ModelError: there is no such output.
        """
        if not self.output:
            return output
        try:
            if self.output.isdecimal():
                return output[int(self.output)]
            return output[self.output] if isinstance(output, Mapping) else getattr(output, self.output)
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise ModelError(
                f"the model returned no output {self.output!r} but {describe_outputs(output)}", where="output"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values (docs/formats/trained.md)."""
        return {"fields": None if self.fields is None else self.fields.to_json(), "output": self.output}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> ModelCall:
        """Read what `to_json` wrote.

        Raises:
            ModelError: a value is missing or has the wrong type.
        """
        try:
            fields = body["fields"]
            return cls(None if fields is None else InputFields.from_json(fields), str(body["output"]))
        except (KeyError, TypeError, DataError) as error:
            raise ModelError(f"the call of the model cannot be read ({str(error)[:200]})", where="call") from error


def name_outputs(output: Any) -> dict[str, Any]:
    """The outputs of a model by name: keys, attributes of an object, or numbers of the items of a tuple; "" if one."""
    if isinstance(output, torch.Tensor):
        return {"": output}
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return {name: getattr(output, name) for name in output._fields}
    if isinstance(output, (tuple, list)):
        return {str(index): value for index, value in enumerate(output)}
    return dict(vars(output)) if hasattr(output, "__dict__") else {}


def describe_outputs(output: Any) -> str:
    """The outputs and their shapes, for messages."""
    if isinstance(output, torch.Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    found = [
        f"{name} {tuple(value.shape) if isinstance(value, torch.Tensor) else f'({type(value).__name__})'}"
        for name, value in name_outputs(output).items()
        if value is not None
    ]
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f"{with_article(type(output).__name__)}" + (f" with {', '.join(found[:8])}{more}" if found else "")
