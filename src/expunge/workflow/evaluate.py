"""Score a saved unlearned model again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from expunge.core.errors import FileError
from expunge.core.files import PathLike, read_run_file
from expunge.core.trust import trusting
from expunge.experiments.config.run_config import RunConfig

from .inputs import read_records

if TYPE_CHECKING:
    from expunge.core.outcome import Cost
    from expunge.core.request import ForgetRequest
    from expunge.core.trained import Trained
    from expunge.data import Records
    from expunge.evaluation import Scores


def rescore(directory: PathLike, config: RunConfig, *, reference: PathLike | None = None) -> Scores:
    """Score a saved unlearned model again, for the request in its outcome.json.

    Args:
        directory: the output directory of `forget` (or a trained model with an outcome.json).
        config: its sections `data`, `evaluation`, `runtime` and `seed` are used. The model may name the code that the
            configuration names, and packages that `load_config` got as `trust`.
        reference: directory of the retrained model, or its scores.json; None: no gaps.

    Raises:
        FileError: a file is missing or damaged, or the model was trained on other data.
        ExpungeError: see `expunge.evaluation.evaluate`.

    >>> from pathlib import Path
    >>> from expunge.experiments import load_config
    >>> from expunge.workflow import forget, rescore
    >>> _ = Path("run.yaml").write_text('''
    ... data: {source: digits}
    ... split: {limit: 100}
    ... model: {name: mlp, options: {widths: [4]}}
    ... training: {recipe: one-cycle, epochs: 1}
    ... forget: {by: random, count: 5}
    ... method: {name: FT, options: {epochs: 1}}
    ... runtime: {device: cpu}
    ... ''')
    >>> config = load_config("run.yaml")
    >>> result = forget(config, "unlearned", store="cache")
    >>> scores = rescore("unlearned", config)
    >>> first = {score["name"]: score["value"] for score in result.scores["scores"]}
    >>> all(first[score.name] == score.value for score in scores)
    True
    """
    from expunge.evaluation import evaluate
    from expunge.models import load_trained
    from expunge.training import Runtime

    with trusting(config.trust):
        path = Path(directory)
        request, cost = read_outcome(path / "outcome.json")
        trained = load_trained(path)
        check_outcome(trained, path)
        records = read_records(config)
        check_data(trained, records, path)
        return evaluate(
            trained,
            request,
            records,
            reference=None if reference is None else _read_reference(Path(reference)),
            cost=cost,
            runtime=Runtime(**config.runtime.model_dump()),
            seed=config.seed,
            **config.evaluation.model_dump(exclude={"bound"}),  # only stages have the retrained model for the bound
        )


def read_outcome(path: Path) -> tuple[ForgetRequest, Cost]:
    """Read the request and the cost from an outcome.json.

    Raises:
        FileError: missing, damaged or incomplete.
    """
    from expunge.core.outcome import Cost
    from expunge.core.request import ForgetRequest

    body = read_run_file(path, "expunge.outcome", 2)
    try:
        return ForgetRequest.from_json(body["request"]), Cost.from_json(body["cost"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(
            f"is not a complete outcome ({error!r})", where=path, hint="see docs/formats/outcome.md"
        ) from error


def check_outcome(trained: Trained, directory: Path) -> None:
    """Raise FileError unless the outcome.json of a directory is that of the model in it.

    Args:
        trained: the model.
        directory: the directory that it was read from.
    """
    path = directory / "outcome.json"
    recorded = read_run_file(path, "expunge.outcome", 2).get("hashes", {})
    mask = None if trained.mask is None else trained.mask.hash()
    for name, found in (("weights", trained.hash), ("split", trained.split.hash), ("mask", mask)):
        if name in recorded and recorded[name] != found:
            raise FileError(
                f"is the outcome of another model or request: its hash of the {name} is not that of this directory",
                where=path,
                hint="restore the files of one run, or run `expunge forget` again",
            )


def _read_reference(path: Path) -> Trained | Scores:
    from expunge.evaluation import Scores
    from expunge.models import load_trained

    if path.is_dir():
        return load_trained(path)
    return Scores.load(path)


def check_data(trained: Trained, records: Records, where: Path) -> None:
    """Raise FileError if the model was trained on other records than these."""
    known = trained.provenance.data.get("hash")
    if known is not None and known != records.hash:
        raise FileError(
            f"the model was trained on other data than {records.name} as configured here",
            where=where,
            hint="use the configuration with which the model was trained",
        )
