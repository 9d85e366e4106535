"""Write the certificate of a patched model, in the folder that `expunge-check` reads."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import FileError, ModelError
from expunge.core.files import PathLike, staged_directory, write_tensors
from expunge.core.trust import trusting
from expunge.experiments.config.run_config import RunConfig

from .evaluate import check_data, check_outcome, read_outcome
from .inputs import read_records

if TYPE_CHECKING:
    import torch

    from expunge.core.trained import Trained
    from expunge.data import Records


INPUT_FILES = ("forgotten.safetensors", "retained.safetensors", "test.safetensors")


@dataclasses.dataclass(frozen=True)
class CertificateFiles:
    """The files of a certificate.

    Attributes:
        certificate: the folder for `expunge-check`; it has no records, but the activation patterns of forgotten ones.
        inputs: folder of the records to check it on, or None.
        patches: number of patches in the certificate.
        forgotten: number of records of the request.
    """

    certificate: Path
    inputs: Path | None
    patches: int
    forgotten: int

    def command(self) -> str:
        """The command that checks it."""
        arguments = ["expunge-check", str(self.certificate), "--random", "10000"]
        if self.inputs is not None:
            arguments += ["--points", str(self.inputs / "forgotten.safetensors")]
            for name in ("retained", "test"):
                arguments += ["--inputs", str(self.inputs / f"{name}.safetensors")]
        return shlex.join(arguments)

    def text(self) -> str:
        """The written folder, and the command that checks it."""
        count = f"{self.patches:,} patch{'' if self.patches == 1 else 'es'}"
        return f"certificate of {count}: {self.certificate}\ncheck it with: {self.command()}"

    def to_json(self) -> dict[str, Any]:
        inputs = None if self.inputs is None else str(self.inputs)
        return {**dataclasses.asdict(self), "certificate": str(self.certificate), "inputs": inputs}


def certify(
    directory: PathLike, config: RunConfig, output: PathLike, *, inputs: PathLike | None = None
) -> CertificateFiles:
    """Write the certificate of a patched model [Li2025], and optionally the records to check it on.

    Args:
        directory: the output directory of `forget` with the method `patch`.
        config: its section `data` names the records.
        output: the certificate folder; an earlier certificate in it is replaced.
        inputs: folder for `forgotten.safetensors` (the record of each patch, `N x C x H x W`, in the order of the
            patches), `retained.safetensors` and `test.safetensors`, which are personal data; None: not written.

    Raises:
        ModelError: the model has no patches, or a patch belongs to a record that is not in the request.
        FileError: a file is missing or damaged, the model was trained on other data, or a folder has other files.

    >>> from pathlib import Path
    >>> import expunge
    >>> from expunge.core.files import write_json
    >>> from expunge.workflow import certify
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records, limit=100)
    >>> network = expunge.architecture("mlp", records, split, widths=(6,))
    >>> recipe = expunge.get_recipe("one-cycle", epochs=10, batch_size=16)
    >>> trained = expunge.train(records, split, network, recipe=recipe)
    >>> request = expunge.forget_random(records, split, count=2)
    >>> outcome = expunge.get_method("patch").forget(trained, request, expunge.Context(records))
    >>> expunge.save_trained(outcome.trained, "unlearned")
    >>> write_json("unlearned/outcome.json", "expunge.outcome", 2, outcome.to_json())
    >>> _ = Path("run.yaml").write_text("{data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}}")
    >>> written = certify("unlearned", expunge.load_config("run.yaml"), "certificate")
    >>> written.patches <= written.forgotten, (written.certificate / "certificate.json").exists()
    (True, True)
    """
    from expunge.data import correct_records
    from expunge.models import load_trained
    from expunge.patches.certificate import FILES
    from expunge.patches.trained_state import certify as write_certificate

    model_path, folder = Path(directory), Path(output)
    request, _ = read_outcome(model_path / "outcome.json")
    with trusting(config.trust):
        trained = load_trained(model_path)
    check_outcome(trained, model_path)
    _check_folder(folder, FILES)
    if "patches" not in trained.state:
        raise ModelError(
            "the model has no patches, so there is nothing to certify",
            where=model_path,
            hint="forget with the method `patch`: method.name=patch",
        )
    inputs_folder = None if inputs is None else Path(inputs)
    if inputs_folder is not None:
        _check_folder(inputs_folder, INPUT_FILES)
        one, other = folder.resolve(), inputs_folder.resolve()
        if one == other or one in other.parents or other in one.parents:
            raise FileError(
                "the records must not be in the certificate's folder, nor the certificate in theirs",
                where=inputs_folder,
                hint="give --inputs another directory: the certificate is published, records are not",
            )
        with trusting(config.trust):
            records = read_records(config)
        check_data(trained, records, model_path)
        records = correct_records(records, trained.split.corrections)
        forgotten = _load_inputs(records, request.record_ids)
        with staged_directory(inputs_folder) as staged:
            points = _select_points(trained, forgotten, model_path)
            write_tensors(staged / "forgotten.safetensors", {"inputs": points})
            for name, ids in (("retained", trained.split.retain), ("test", trained.split.test)):
                write_tensors(staged / f"{name}.safetensors", {"inputs": _load_inputs(records, ids)})
    write_certificate(trained.model, trained.state["patches"], folder)
    return CertificateFiles(folder, inputs_folder, len(trained.state["patches"]["target"]), len(request.record_ids))


def _check_folder(path: Path, names: tuple[str, ...]) -> None:
    """Raise FileError unless a folder is new, empty, or contains only files of an earlier run."""
    others = [path.name] if path.exists() and not path.is_dir() else []
    if path.is_dir():
        others = sorted(entry.name for entry in path.iterdir() if entry.name not in names)
    if others:
        raise FileError(
            f"exists and contains a file that this command did not write: {others[0]}",
            where=path,
            hint="choose another directory, or move the file away",
        )


def _load_inputs(records: Records, ids: Any) -> torch.Tensor:
    import torch

    from expunge.data import Batches

    batches = Batches(records, records.rows(ids), batch_size=1024)
    return torch.cat([torch.zeros(0, *records.input_shape), *(x for x, _ in batches.in_order())])


def _select_points(trained: Trained, forgotten: torch.Tensor, where: Path) -> torch.Tensor:
    """Select the forgotten record of each patch, in the order of the proof.

    It is the first record with the activation pattern of the patch to which the base network assigns the label of the
    patch. The base network may assign another label to another record of the same region, which was then not patched.
    """
    from expunge.patches.network.regions import compute_patterns, pack

    model: Any = trained.model
    state = trained.state["patches"]
    logits, bits = compute_patterns(model.current_network(), forgotten)
    first: dict[tuple[bytes, int], int] = {}
    for number, (row, predicted) in enumerate(zip(pack(bits), logits.argmax(1).tolist(), strict=True)):
        first.setdefault((row.tobytes(), predicted), number)
    patches = zip(state["pattern"].numpy(), state["label"].tolist(), strict=True)
    wanted = [(row.tobytes(), label) for row, label in patches]
    unknown = [number for number, key in enumerate(wanted) if key not in first]
    if unknown:
        raise ModelError(
            f"no record of the request has the pattern and the label of patch {unknown[0]}",
            where=where,
            hint="the model has patches of earlier requests: write the certificate without --inputs",
        )
    return forgotten[[first[key] for key in wanted]]
