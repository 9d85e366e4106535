"""Which parameters a recipe trains without weight decay."""

from __future__ import annotations

import fnmatch
import re

from torch import nn

from expunge.core.errors import ConfigError
from expunge.core.hashing import plain_name

#: Names of parameters that `transformers` trains without weight decay (`Trainer.get_decay_parameter_names`).
_BIAS_OR_NORM = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
_NORMS = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip


def find_undecayed(model: nn.Module, rule: str | tuple[str, ...]) -> frozenset[str]:
    """Return the plain names of the parameters that a recipe trains without weight decay (`Recipe.no_decay`).

    Raises:
        ConfigError: a pattern matches no parameter.

    >>> from torch import nn
    >>> from expunge.training.recipes.decay_rules import find_undecayed
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    >>> sorted(find_undecayed(model, "bias-and-norm")), sorted(find_undecayed(model, ("0.*",)))
    (['0.bias', '1.bias', '1.weight'], ['0.bias', '0.weight'])
    """
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    if rule == "none":
        return frozenset()
    if rule == "one-dimensional":
        return frozenset(name for name, p in parameters.items() if p.ndim < 2 or name.endswith(".bias"))
    if rule in ("bias-and-norm", "transformers"):
        layers = _NORMS if rule == "bias-and-norm" else nn.LayerNorm
        norms = [plain_name(path) for path, module in model.named_modules() if isinstance(module, layers)]
        of_norms = tuple(f"{path}." if path else "" for path in norms)
        return frozenset(
            name for name in parameters if _BIAS_OR_NORM.search(name.lower()) or (norms and name.startswith(of_norms))
        )
    found: set[str] = set()
    for pattern in rule:
        matched = {name for name in parameters if name == pattern or fnmatch.fnmatchcase(name, pattern)}
        if not matched:
            raise ConfigError(
                "the pattern matches no parameter of the network", where=f"no_decay: {pattern}",
                hint=f"its parameters are named like {next(iter(parameters), '')!r}",
            )  # fmt: skip
        found |= matched
    return frozenset(found)
