"""The section `model`: an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.core.split import Split
    from expunge.data import Records
    from expunge.models import Architecture


def check_model(section: Mapping[str, Any]) -> None:
    """Raise an ExpungeError unless the network exists and takes these options.

    A custom network is imported if the owner agreed to it, and is not called.
    """
    from expunge.core.errors import ConfigError, unknown_name_hint
    from expunge.models import model_options
    from expunge.models.architecture import find_network
    from expunge.models.factory import check_custom_options

    name, options = section["name"], section["options"]
    if find_network(name) is None:
        check_custom_options(name, options)
    else:
        known = model_options(name)
        for option in options:
            if option not in known:
                raise ConfigError(f"the model {name} has no option {option!r}", hint=unknown_name_hint(option, known))


def make_architecture(section: Mapping[str, Any], records: Records, split: Split) -> Architecture:
    """The architecture of the section `model` for these records.

    Raises:
        ModelError, ConfigError: see `expunge.models.architecture`.
    """
    from expunge.models.architecture import architecture

    statistics = None
    if split.retain_absent and section["weights"] is not None and section["normalise"] in ("auto", "training"):
        from expunge.models.normalise import read_statistics
        from expunge.models.weights.folders import find_weights

        statistics = read_statistics(find_weights(section["weights"]))
    return architecture(
        section["name"], records, split, normalise=section["normalise"], initial=section.get("initial"),
        statistics=statistics, **section["options"],
    )  # fmt: skip
