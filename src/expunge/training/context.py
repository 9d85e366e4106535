"""The inputs that every run has besides its model: records, device, seed, checkpoint, progress."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from expunge.core.errors import name_fields
from expunge.core.reading.file_names import add_to_name, check_file_name
from expunge.core.seeds import RecordedOrder, check_seed
from expunge.core.show import repr_fields
from expunge.core.split import Split
from expunge.data.corrections.values import correct_records
from expunge.data.records import Records

from .progress import Progress
from .runtime import Runtime


@name_fields("a context")
@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """The inputs of training, pruning and unlearning besides the model.

    Attributes:
        records: features and labels of all parts of the split.
        runtime: device and precision.
        seed: seeds everything that is drawn (order of records, augmentation, noise).
        checkpoint: file for resuming, or None.
        progress: callback for progress, or None.
        order: the order of records of a training that happened elsewhere (`expunge.bridges`), which Retrain, Replay,
            Rewind and MSA repeat; None: by the seed of the order.
    """

    records: Records
    runtime: Runtime = dataclasses.field(default_factory=Runtime)
    seed: int = 0
    checkpoint: Path | None = None
    progress: Progress | None = None
    order: RecordedOrder | None = None

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.checkpoint is not None:
            check_file_name(self.checkpoint)

    def for_split(self, split: Split) -> Context:
        """The context with the records as a model of the split has seen them: with the corrections of the split."""
        records = correct_records(self.records, split.corrections)
        return self if records is self.records else dataclasses.replace(self, records=records)

    def for_part(self, name: str, *, seed: int | None = None) -> Context:
        """The context of a part of the run: it has a checkpoint file of its own, `<checkpoint>.<name>`.

        Args:
            name: of the part, part of a file name.
            seed: its seed; None: that of the run.
        """
        path = None if self.checkpoint is None else add_to_name(self.checkpoint, f".{name}")
        return dataclasses.replace(self, seed=self.seed if seed is None else seed, checkpoint=path)
