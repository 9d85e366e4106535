"""Findings of `check` about records that a request does not forget: names that were skipped, and a drawn split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.experiments.config.run_config import RunConfig
    from expunge.models import Finding


def inspect_left_out(selection: Mapping[str, Any]) -> list[Finding]:
    """Warn of names that were skipped, and of records of named subjects outside the retain set.

    Args:
        selection: of the request.
    """
    from expunge.data.requests import describe_outside, describe_skipped
    from expunge.models import Finding

    skipped = (
        "they are listed in outcome.json and the report. If the model was trained on them, they stay in it: then the "
        "split is not that of the training"
    )
    outside = "if the model was trained on them, the split is not that of the training: split.file reads a saved one"
    found = [Finding("warning", "forget", line, skipped) for line in describe_skipped(selection)]
    return [*found, *(Finding("warning", "forget", line, outside) for line in describe_outside(selection))]


def inspect_drawn_split(config: RunConfig, retained: int) -> list[Finding]:
    """Warn of imported weights with a split that the configuration draws: no file says what they were trained on.

    Args:
        config: the configuration.
        retained: number of records that the split has in training.
    """
    from expunge.models import Finding

    weights = config.model.weights
    if weights is None or config.split.file is not None or (Path(weights).parent / "trained.json").is_file():
        return []  # trained.json records the split, and is compared with it
    message = (
        f"drawn by the section `split`: nothing says that the weights were trained on these {retained:,} records. A "
        "record of the request in another part is not forgotten, although they may have been trained on it"
    )
    hint = "split.file: the split of the training (docs/tutorial.md, under The split)"
    return [Finding("warning", "split", message, hint)]
