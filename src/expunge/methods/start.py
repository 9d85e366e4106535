"""Where retraining starts: initial weights, with the frozen parameters of the original, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from expunge.core.errors import MethodError
from expunge.core.hashing import plain_parameters
from expunge.core.seeds import derive
from expunge.core.show import plural
from expunge.core.trained import Trained
from expunge.core.trust import ENTRIES
from expunge.models import Architecture
from expunge.models.architecture import find_network

from .frozen import differ_where_kept, find_equal, find_frozen, find_frozen_parameters, is_constant

#: A seed that no run draws: what is equal under it does not come from a seed.
_FEW_VALUES = 16
_OTHER_SEED = derive(0, "methods", "start", "another seed")
_HINT = "declare a pretrained start that does not depend on the records: model.initial={file, hash}"


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """The start of one retraining.

    Attributes:
        values: frozen parameters that are kept from the original, by name.
        frozen: names of all frozen parameters.
        thawed: parameters of the original that are frozen now, and were trained when it was trained.
        independent: whether all parameters come from a seed, a few constants, or a declared start.
        note: what the history of the retrained model says about the others, or empty.
    """

    values: Mapping[str, torch.Tensor]
    frozen: frozenset[str]
    thawed: frozenset[str]
    independent: bool
    note: str

    def build(self, architecture: Architecture, seed: int) -> nn.Module:
        """Build the network with its initial weights, and with the frozen parameters of the original."""
        model = architecture.build(seed)
        parameters = plain_parameters(model)
        with torch.no_grad():
            for name in self.frozen:
                parameters[name].requires_grad_(False)
            for name, value in self.values.items():
                parameters[name].copy_(value)
        return model


def strip_patches(trained: Trained) -> Trained:
    """The model without its patches, which retraining drops; any other model unchanged."""
    architecture = trained.provenance.architecture
    if ENTRIES.isdisjoint((architecture.get("name"), architecture.get("factory"))):
        return trained
    from expunge.patches.trained_state import get_base_architecture

    provenance = dataclasses.replace(trained.provenance, architecture=get_base_architecture(architecture))
    state = {name: tensors for name, tensors in trained.state.items() if name != "patches"}
    base = getattr(trained.model, "module", trained.model)
    return dataclasses.replace(trained, model=base, provenance=provenance, state=state)


def find_start(trained: Trained, seed: int) -> Start:
    """Find the frozen parameters of a model, and where they come from.

    Parameters that are equal under every seed and not declared are a pretrained start of unknown origin. A parameter is
    frozen if the built network freezes it, or if the original freezes it and training has left it at its
    initial value. It keeps the original's value: a value drawn from another seed would be another backbone.

    Args:
        trained: the original.
        seed: of the initial weights of the retraining.

    Raises:
        MethodError: the frozen parameters of the original are not those of the declared start.
    """
    provenance, mask = trained.provenance, trained.mask
    architecture = Architecture.from_json(provenance.architecture)
    built = architecture.build(seed)
    old, new = plain_parameters(trained.model), plain_parameters(built)
    frozen = find_frozen_parameters(built, trained) & set(old)
    flagged = (find_frozen(trained) - frozen) & set(new)
    declared = set() if architecture.initial is None else _names_of(architecture, built)
    drawn_here = _is_drawn_here(architecture.name) and architecture.initial is None
    other = new if drawn_here else plain_parameters(architecture.build(_OTHER_SEED))
    fixed = set() if drawn_here else {n for n in new if n not in declared and _is_fixed(new[n], other[n])}
    if not frozen and not flagged and not fixed:
        return Start({}, frozenset(), frozenset(), True, "")
    first: Mapping[str, torch.Tensor] = {}
    if provenance.weights_from == "training" and "initial" in provenance.seeds:
        first = plain_parameters(architecture.build(provenance.seeds["initial"]))
    untrained = {n for n in flagged if n in first and not differ_where_kept(n, first[n], old[n], mask)}
    values: dict[str, torch.Tensor] = {}
    unknown = sorted(fixed - frozen - untrained)
    for name in sorted(frozen | untrained):
        value = new[name].detach()
        if differ_where_kept(name, value, old[name], mask):
            if name in declared:
                raise MethodError(
                    "the frozen parameter differs from that of the declared start",
                    where=name,
                    hint="declare the file from which this model started",
                )
            drawn = name in first and not differ_where_kept(name, first[name], old[name], mask)
            values[name] = (first if drawn else old)[name].detach().cpu().clone()
            if not drawn:
                unknown.append(name)
        elif name in fixed:
            unknown.append(name)
    note = f"; {len(frozen | untrained)} frozen tensors kept" if frozen | untrained else ""
    if unknown:
        count = plural(len(unknown), "tensor")
        note += f"; it starts from {count} of an origin that is not declared ({unknown[0]}): {_HINT}"
    return Start(values, frozenset(frozen | untrained), frozenset(flagged - untrained), not unknown, note)


def _is_drawn_here(name: str) -> bool:
    """Whether a network is one of this package: all of them draw their weights from the seed, and freeze none."""
    network = find_network(name)
    return network is not None and network.__module__.startswith("expunge.")


def _is_fixed(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether a tensor is equal under two seeds, and has more values than a scale, an identity or a filter."""
    return torch.equal(a.detach(), b.detach()) and len(a.detach().unique()) > _FEW_VALUES


def _names_of(architecture: Architecture, built: nn.Module) -> set[str]:
    """Names of the parameters of a network that its declared start determines."""
    assert architecture.initial is not None
    from expunge.models.weights import match_names

    return set(match_names(architecture.initial.read(), built))


def check_buildable(trained: Trained, where: str, purpose: str) -> None:
    """Raise an error if the network of a model cannot be built with new initial weights.

    The networks of this package always can, and are not built; nor is that of a stand-in for a model without training.

    Args:
        trained: the original.
        where: the method, for messages.
        purpose: what the initial weights would then not do.

    Raises:
        ModelError: the network cannot be built.
        MethodError: it is built with the trained weights.
    """
    plain = strip_patches(trained)
    provenance = plain.provenance
    if provenance.history and provenance.architecture and not _is_drawn_here(str(provenance.architecture["name"])):
        names = _find_trained_start(plain, _OTHER_SEED)
        if names:
            raise _refuse_start(names, where, purpose)


def _find_trained_start(trained: Trained, seed: int) -> list[str]:
    """The parameters that are drawn, if the network is built with the trained values of all of them; else none."""
    new = plain_parameters(Architecture.from_json(trained.provenance.architecture).build(seed))
    names = [n for n, p in new.items() if p.requires_grad and not is_constant(p.detach())]
    kept = find_equal(names, new, plain_parameters(trained.model), trained.mask) if names else []
    return names if len(kept) == len(names) else []


def check_start(trained: Trained) -> None:
    """Raise MethodError if the initial weights of any seed are those of the trained model: retraining could not forget.

    A factory that loads the trained weights is found in this way. Biases of 0 and scales of 1 are not compared.
    """
    trained = strip_patches(trained)
    provenance = trained.provenance
    if not provenance.history or not provenance.architecture:  # a stand-in for a model that is not trained yet
        return
    for seed in (provenance.seeds.get("initial", 0), _OTHER_SEED):  # the first is mostly at hand
        names = _find_trained_start(trained, seed)
        if not names:
            return
    raise _refuse_start(names)


def check_retrained(trained: Trained, start: nn.Module, after: Trained) -> None:
    """Raise MethodError if a retraining changed nothing, or started from weights of the trained model.

    Args:
        trained: the original.
        start: the network before retraining.
        after: the retrained model.
    """
    first, old, new = (plain_parameters(model) for model in (start, trained.model, after.model))
    names = [name for name, parameter in first.items() if parameter.requires_grad and name in new]
    changed = [name for name in names if differ_where_kept(name, first[name], new[name], after.mask)]
    if not changed:
        raise MethodError(
            "retraining changed no weight",
            where="Retrain",
            hint="check the recipe that the original records: epochs and learning rate",
        )
    kept = find_equal(changed, first, old, trained.mask, after.mask)
    if kept:  # drawn from the seed, they are those of an original that was not trained
        other = plain_parameters(Architecture.from_json(trained.provenance.architecture).build(_OTHER_SEED))
        kept = find_equal(kept, first, other)
    if kept:
        raise _refuse_start(kept)


def _refuse_start(
    names: list[str], where: str = "Retrain", purpose: str = "retraining would not forget"
) -> MethodError:
    found = f"{plural(len(names), 'tensor')}, {names[0]}"
    return MethodError(
        f"the network starts from the weights of the trained model ({found}), so {purpose}",
        where=where,
        hint=f"build the network with other initial weights. {_HINT[0].upper()}{_HINT[1:]}",
    )
