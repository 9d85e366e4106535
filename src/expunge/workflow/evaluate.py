"""Scoring an unlearned model that lies in a directory once more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import FileError
from expunge.core.files import PathLike, read_json
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
    """Score an unlearned model that lies in a directory again, against its own request.

    Args:
        directory: what `forget` wrote (or a trained model with an outcome.json beside it).
        config: data, evaluation, seed and runtime are read from it. The model may name the code that this file names,
            and packages that it was loaded with as `trust`.
        reference: directory of the retrained model, or a scores.json of it; None: no gaps.

    Raises:
        FileError: a file is missing or damaged, or the model was made from other data than these.
        ExpungeError: see `expunge.evaluation.evaluate`.
    """
    from expunge.evaluation import evaluate
    from expunge.models import load_trained
    from expunge.training import Runtime

    with trusting(config.trust):
        at = Path(directory)
        request, cost = read_outcome(at / "outcome.json")
        trained = load_trained(at)
        records = read_records(config)
        check_data(trained, records, at)
        return evaluate(
            trained,
            request,
            records,
            reference=None if reference is None else _read_reference(Path(reference)),
            cost=cost,
            runtime=Runtime(**config.runtime.model_dump()),
            seed=config.seed,
            **config.evaluation.model_dump(exclude={"bound"}),  # the bound wants the retrained model itself, in plans
        )


def read_outcome(path: Path) -> tuple[ForgetRequest, Cost]:
    from expunge.core.outcome import Cost
    from expunge.core.request import ForgetRequest

    body = read_json(path, "expunge.outcome", 2)
    try:
        cost: dict[str, Any] = {key: value for key, value in body["cost"].items() if key != "passes"}
        return ForgetRequest.from_json(body["request"]), Cost(**cost)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(
            f"is not a whole outcome ({error!r})", where=path, hint="see docs/formats/outcome.md"
        ) from error


def _read_reference(path: Path) -> Trained | Scores:
    from expunge.evaluation import Scores
    from expunge.models import load_trained

    if path.is_dir():
        return load_trained(path)
    return Scores.load(path)


def check_data(trained: Trained, records: Records, where: Path) -> None:
    known = trained.provenance.data.get("hash")
    if known is not None and known != records.hash:
        raise FileError(
            f"the model was trained on other data than {records.name} as it is configured here",
            where=where,
            hint="use the configuration that the model was made with",
        )
