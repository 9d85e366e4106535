"""From an unlearned model in a directory to a certificate folder that `expunge-check` reads."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import FileError, ModelError
from expunge.core.files import PathLike, staged_directory, write_tensors
from expunge.core.trust import trusting
from expunge.experiments.config.run_config import RunConfig

from .evaluate import check_data, read_outcome
from .inputs import read_records

if TYPE_CHECKING:
    import torch

    from expunge.core.trained import Trained
    from expunge.data import Records


INPUT_FILES = ("forgotten.safetensors", "retained.safetensors", "test.safetensors")


@dataclasses.dataclass(frozen=True)
class Certified:
    """Where a certificate lies.

    Attributes:
        certificate: the folder that `expunge-check` takes; no record is in it, but the patterns of forgotten ones are.
        inputs: folder of the records to check it on, or None.
        patches: how many patches it speaks of.
        forgotten: records of the request.
    """

    certificate: Path
    inputs: Path | None
    patches: int
    forgotten: int

    def command(self) -> str:
        """The command that checks it."""
        words = ["expunge-check", str(self.certificate), "--random", "10000"]
        if self.inputs is not None:
            words += ["--points", str(self.inputs / "forgotten.safetensors")]
            for name in ("retained", "test"):
                words += ["--inputs", str(self.inputs / f"{name}.safetensors")]
        return shlex.join(words)

    def text(self) -> str:
        """What was written, and how to check it."""
        return f"certificate of {self.patches} patches: {self.certificate}\ncheck it with: {self.command()}"

    def to_json(self) -> dict[str, Any]:
        inputs = None if self.inputs is None else str(self.inputs)
        return {**dataclasses.asdict(self), "certificate": str(self.certificate), "inputs": inputs}


def certify(directory: PathLike, config: RunConfig, output: PathLike, *, inputs: PathLike | None = None) -> Certified:
    """Write the certificate of a patched model that lies in a directory, and the records to check it on.

    Args:
        directory: what `forget` wrote with the method `patch`.
        config: the data are read from it.
        output: the certificate folder; one of an earlier certificate is replaced.
        inputs: folder for `forgotten.safetensors` (the point of each patch, in the order of the patches),
            `retained.safetensors` and `test.safetensors`: personal data, written only where wanted.

    Raises:
        ModelError: the model has no patches, or the patch of a point that is not in the request.
        FileError: a file is missing or damaged, the model was made from other data, or a folder holds something else.
    """
    from expunge.models import load_trained
    from expunge.patches.certificate import FILES
    from expunge.patches.trained_state import certify as write

    at, place = Path(directory), Path(output)
    request, _ = read_outcome(at / "outcome.json")
    with trusting(config.trust):
        trained = load_trained(at)
    _check_place(place, FILES)
    if "patches" not in trained.state:
        raise ModelError(
            "the model has no patches, so there is nothing to certify",
            where=at,
            hint="forget with the method `patch`: method.name=patch",
        )
    wanted = None if inputs is None else Path(inputs)
    if wanted is not None:
        _check_place(wanted, INPUT_FILES)
        one, other = place.resolve(), wanted.resolve()
        if one == other or one in other.parents or other in one.parents:
            raise FileError(
                "the records must not lie in the certificate's folder, nor the other way round",
                where=wanted,
                hint="give --inputs another directory: the certificate is handed out, records are not",
            )
        with trusting(config.trust):
            records = read_records(config)
        check_data(trained, records, at)
        forgotten = _inputs(records, request.record_ids)
        with staged_directory(wanted) as folder:
            write_tensors(folder / "forgotten.safetensors", {"inputs": _points(trained, forgotten, at)})
            for name, ids in (("retained", trained.split.retain), ("test", trained.split.test)):
                write_tensors(folder / f"{name}.safetensors", {"inputs": _inputs(records, ids)})
    write(trained.model, trained.state["patches"], place)
    return Certified(place, wanted, len(trained.state["patches"]["target"]), len(request.record_ids))


def _check_place(path: Path, names: tuple[str, ...]) -> None:
    """Raise unless a folder is new, empty, or holds what an earlier run wrote and nothing else."""
    others = [path.name] if path.exists() and not path.is_dir() else []
    if path.is_dir():
        others = sorted(entry.name for entry in path.iterdir() if entry.name not in names)
    if others:
        raise FileError(
            f"is there already, with something that this command did not write: {others[0]}",
            where=path,
            hint="choose another directory, or move that away",
        )


def _inputs(records: Records, ids: Any) -> torch.Tensor:
    import torch

    from expunge.data import Batches

    batches = Batches(records, records.rows(ids), batch_size=1024)
    return torch.cat([torch.zeros(0, *records.input_shape), *(x for x, _ in batches.in_order())])


def _points(trained: Trained, forgotten: torch.Tensor, where: Path) -> torch.Tensor:
    """The forgotten record that each patch was made for, in the order of the proof.

    It is the first with the patch's pattern that the base network answers with the patch's label: another record of
    the same region may be answered otherwise, and was then left alone.
    """
    from expunge.patches.network.regions import pack, patterns

    model: Any = trained.model
    state = trained.state["patches"]
    logits, bits = patterns(model.current_network(), forgotten)
    first: dict[tuple[bytes, int], int] = {}
    for number, (row, answer) in enumerate(zip(pack(bits), logits.argmax(1).tolist(), strict=True)):
        first.setdefault((row.tobytes(), answer), number)
    patches = zip(state["pattern"].numpy(), state["label"].tolist(), strict=True)
    wanted = [(row.tobytes(), label) for row, label in patches]
    strange = [number for number, key in enumerate(wanted) if key not in first]
    if strange:
        raise ModelError(
            f"no record of the request has the pattern and the label of patch {strange[0]}",
            where=where,
            hint="patches of earlier requests: write the certificate without --inputs",
        )
    return forgotten[[first[key] for key in wanted]]
