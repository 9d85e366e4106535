"""Models with their data, and unlearned ones: thin objects around a `Trained`, with the user's device and class."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from expunge.core.errors import ConfigError, ExpungeWarning, check_type, with_article
from expunge.core.files import PathLike, staged_directory, write_json
from expunge.core.outcome import Outcome
from expunge.core.reading.file_names import check_format
from expunge.core.request import ForgetRequest
from expunge.core.seeds import RecordedOrder
from expunge.core.show import Summary, repr_fields, repr_html, repr_text, shorten_names
from expunge.core.split import Split
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.data.retain_set.stand_in import StandIn
from expunge.evaluation import Scores
from expunge.methods import Method
from expunge.models.live import is_live
from expunge.models.saved_model import check_target, write_trained
from expunge.report import write_report
from expunge.training import Context, Runtime
from expunge.training.progress import Progress
from expunge.workflow.check import Check

from .check import check_method
from .network import Own, describe_live
from .prepare import join_options, prepare, read_stand_in, refuse_repeated
from .requests import request_correction, request_rows
from .rows import Rows
from .scoring.measure import Scored, ScoreOptions, warn_of_reference
from .scoring.named import check_result, list_results
from .scoring.references import add_floors, list_references
from .scoring.report import Shown, report_results
from .table import MethodTable, list_methods

#: Stack level of warnings: the line of the user that called `forget` or `correct`, past `refuse_repeated`.
_CALLER = 4
_REFERENCE = "reference=model.forget(rows, method='Retrain')"
#: Facts of an outcome in `text()` and in `repr`.
_SHORT = ("warning", "cost", "carried", "partly", "changed", "towards D_f", "guarantee")
_LONG = (
    *("warning", "guarantee", "bound", "options", "cost", "rewrote", "towards D_f", "partly", "mask", "changed"),
    *("dropped", "carried", "model"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelWithData:
    """What adopted and unlearned models share: rows of the data can be forgotten or corrected.

    Attributes:
        data: the records. Rows of requests mean its rows, after earlier requests too.
        trained: network, mask, split, provenance and state: what every other function of expunge takes.
        runtime: device and precision of training and predictions.
        own: how the user's model was: device, types, train/eval flags.
        order: the recorded order of records of its training (`expunge.bridges`); None: it is not known.
    """

    data: Records
    trained: Trained
    runtime: Runtime
    own: Own
    order: RecordedOrder | None
    _scored: Scored = dataclasses.field(init=False, repr=False)

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "_scored", Scored(self.trained, self.data, self.runtime))

    @functools.cached_property
    def model(self) -> nn.Module:
        """The network, of the user's own class, on the user's device, with its types and train/eval flags.

        It is made once, and is the user's: `result.model.eval()` stays in force. What is done to it does not change the
        result: `evaluate`, `report`, `save` and further requests use `trained.model`.
        """
        return self.own.dress(self.trained.model)

    @property
    def split(self) -> Split:
        """Which records the model was trained on, has forgotten, and never saw."""
        return self.trained.split

    def request(self, rows: Rows | ForgetRequest, *, hold: Rows = ()) -> ForgetRequest:
        """Make the request to forget some rows of the data.

        Args:
            rows: row numbers of `data`, a mask of booleans, record ids, a file of ids; or a request, for example of
                `expunge.forget_class(data, model.split, "cat")`.
            hold: rows that must stay.

        Raises:
            RequestError: a row does not exist, was forgotten before or was never trained on; or the request is empty.
        """
        return request_rows(self.data, self.split, rows, hold)

    @refuse_repeated
    def forget(
        self,
        rows: Rows | ForgetRequest,
        method: str | Method = "FT",
        *,
        hold: Rows = (),
        seed: int = 0,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
        options: Mapping[str, Any] | None = None,
        stand_in: Any = None,
        **further: Any,
    ) -> Unlearned:
        """Forget rows of the data; this model does not change.

        Args:
            rows: see `request`.
            method: name of a method (`expunge.method_names`), or a method with its options.
            hold: rows that must stay.
            seed: of everything that the method draws.
            checkpoint: file for resuming after an interruption.
            progress: callback for progress.
            options: of the method, by name; needed for those called as an argument here (`method` of Un-prune).
            stand_in: records, or a data set, that stand in for a retain set that is gone (`adopt(..., gone=...)`).
            further: options as keywords.

        Raises:
            ExpungeError: the request is wrong, or the method cannot run on this model (`methods` lists which can).
        """
        request, context = self.request(rows, hold=hold), self._context(seed, checkpoint, progress)
        found = read_stand_in(stand_in, self.data, request, self.split)
        return self._run(request, method, join_options(options, further), context, found)

    @refuse_repeated
    def correct(
        self,
        labels: Mapping[Any, str | int] | None = None,
        method: str | Method = "FT",
        *,
        rows: Rows | None = None,
        blank: list[str | int] | None = None,
        fill: float = 0.0,
        seed: int = 0,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
        options: Mapping[str, Any] | None = None,
        **further: Any,
    ) -> Unlearned:
        """Correct records, which stay in training: the model has to forget their old values and learn the new ones.

        Args:
            labels: new labels (names or indices of classes) by row number or record id.
            method: see `forget`; `expunge.method_table` says which methods support corrections.
            rows: the rows of which columns are blanked.
            blank: names of these columns, or numbers of features.
            fill: the value of blanked features.
            seed: see `forget`.
            checkpoint: see `forget`.
            progress: see `forget`.
            options: see `forget`.
            further: options as keywords.

        Raises:
            ConfigError: neither labels nor columns are given, or both.
            RequestError: a record is not in the retain set, or nothing would change.
        """
        request = request_correction(self.data, self.split, labels, rows, blank, fill)
        return self._run(request, method, join_options(options, further), self._context(seed, checkpoint, progress))

    def _context(self, seed: int, checkpoint: Path | None, progress: Progress | None) -> Context:
        if checkpoint is not None:
            check_type(checkpoint, (str, os.PathLike), "checkpoint", "the path of a file")
        return Context(self.data, self.runtime, seed, checkpoint, progress, self.order)

    def _run(
        self, request: ForgetRequest, method: str | Method, options: Mapping[str, Any], context: Context,
        stand_in: StandIn | None = None,
    ) -> Unlearned:  # fmt: skip
        ready = prepare(self.trained, method, options, self.data, request, stand_in)
        for text in ready.cautions:
            warnings.warn(text, ExpungeWarning, stacklevel=_CALLER)
        outcome = ready.forget(request, context)
        if outcome.changed_nothing and not ready.idle:
            warnings.warn(outcome.describe_warning(), ExpungeWarning, stacklevel=_CALLER)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        return Unlearned(self.data, outcome.trained, self.runtime, self.own, self.order, outcome, self, today)

    def methods(self, rows: Rows | ForgetRequest | None = None) -> MethodTable:
        """List the methods: which work on this model with their default options, why the others do not, and the cost.

        Args:
            rows: the rows to forget; None: what does not depend on them.
        """
        return list_methods(self.trained, self.data, None if rows is None else self.request(rows))

    @refuse_repeated
    def check(
        self,
        method: str | Method | None = None,
        rows: Rows | ForgetRequest | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        **further: Any,
    ) -> Check:
        """Check the model, and whether a method could run, without training.

        Args:
            method: name of a method, or a method with its options; None: the model alone.
            rows: the rows to forget.
            options: see `forget`.
            further: options as keywords.
        """
        found = join_options(options, further)
        return check_method(self.trained, self.data, self.runtime, method, found, rows, self.request)

    def _score(
        self,
        request: ForgetRequest,
        reference: ModelWithData | Trained | Scores | Sequence[ModelWithData | Trained | Scores] | None,
        options: ScoreOptions,
        outcome: Outcome | None,
        original: ModelWithData,
    ) -> Scores:
        """Score this model; `original` is the one before the request, which the reference is compared with."""
        found: list[Scores] = []
        models: list[Scored | None] = []
        for one in list_references(reference):
            if isinstance(one, Scores):
                found, models = [*found, one], [*models, None]
                continue
            model = one._scored if isinstance(one, ModelWithData) else self._wrap(one)
            made = one.outcome if isinstance(one, Unlearned) else None
            found.append(self._scored.score_reference(model, request, options, original._scored, made))
            models.append(model)
        first, retrained = (found[0], models[0]) if found else (None, None)
        scores = self._scored.score(request, options, outcome=outcome, reference=first, retrained=retrained)
        return add_floors(scores, found)

    def _wrap(self, trained: Trained) -> Scored:
        if not isinstance(trained, Trained):
            raise ConfigError(
                f"is {with_article(type(trained).__name__)}",
                where="reference",
                hint=f"a result of forget, a Trained, or scores: {_REFERENCE}",
            )
        return Scored(trained, self.data, self.runtime)


@dataclasses.dataclass(frozen=True, eq=False)
class Unlearned(ModelWithData):
    """A model after a request: the result of `forget` and `correct`. Further requests chain from it.

    Attributes:
        outcome: what the method did: cost, guarantee, which state it rewrote (`expunge.Outcome`).
        before: the model before the request.
        created: the day of the request (UTC).
    """

    outcome: Outcome
    before: ModelWithData
    created: str = ""
    _latest: dict[str, Scores] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def guarantee(self) -> str:
        """A key of `expunge.core.outcome.GUARANTEES`, for this outcome."""
        return self.outcome.guarantee

    @property
    def carried(self) -> tuple[str, ...]:
        """The state that is, as a whole, unchanged since training on the forgotten records."""
        return self.outcome.carried

    def evaluate(
        self,
        reference: Unlearned | Trained | Scores | Sequence[Unlearned | Trained | Scores] | None = None,
        **options: Any,
    ) -> Scores:
        """Score the model for its request, next to a retrained reference.

        Scores of test records or non-members are not measured if `adopt` was given none (`Scores.missing`).

        Args:
            reference: a model retrained without the records of all requests so far, or its scores; None: no gaps. A
                result of a method that does not retrain gets a warning. Of a list of them, retrained with different
                seeds, the first is the reference, and all give the noise floors (`about["noise_floors"]`).
            options: of the scores (`expunge.evaluate`): `seed`, `svc_records`, `svc_ratios`, `scores`.

        Raises:
            RequestError: the reference was trained on the records, or on another retain set.
        """
        chosen = ScoreOptions.from_options(options)
        self._latest["scores"] = self._score(self.outcome.request, reference, chosen, self.outcome, self.before)
        return warn_of_reference(self._latest["scores"])

    def report(
        self,
        path: PathLike,
        reference: Unlearned | Sequence[Unlearned] | None = None,
        *,
        others: Sequence[Unlearned] | Mapping[str, Unlearned] = (),
        title: str = "",
        ids: bool = False,
        **options: Any,
    ) -> Path:
        """Write the report: one HTML file with the request, the scores of all models, figures, limits, provenance.

        Args:
            path: the file.
            reference: a result of retraining for the same retain set, or a list of them, as in `evaluate`; None: no
                gaps.
            others: further results for the same request and retain set, also of another original (a sparse one), in a
                list or by their names in the report. Results of one method in a list are named by their options.
            title: of the page.
            ids: whether it prints the ids of the forgotten records, which are personal data.
            options: of the scores, as in `evaluate`.

        Raises:
            ConfigError: the reference, or one of the others, is no result of `forget`.
            RequestError: see `evaluate`; or one of the others is the result of another request or retain set.
            FileError: the path is a directory or ends like another format (.pdf), or cannot be written.
        """
        target, references = check_format(path, "HTML"), list_references(reference)
        for one in references:
            check_result(one, Unlearned, "reference", _REFERENCE)
        chosen = ScoreOptions.from_options(options)
        results = list_results(self, references, others)
        self._latest["scores"], content = report_results(
            [result._show(name) for name, result in results],
            [one._show() for one in references],
            chosen,
            network=type(self.model).__name__,
            title=title,
            provenance={"adopted": self.own.describe(self.before.trained, self.split, self.runtime)},
            ids=ids,
        )
        write_report(target, content)
        warn_of_reference(self._latest["scores"])
        return target

    def _show(self, name: str = "") -> Shown:
        return Shown(self._scored, self.outcome, self.before._scored, self.created, name)

    def save(self, directory: PathLike) -> Path:
        """Write the model and its outcome into a directory, which appears complete or not at all.

        `expunge.load_trained` reads it where the factory can be imported (`adopt(..., factory=...)` of a module).

        Args:
            directory: a new or empty directory, or one of a trained model, which is replaced without a question.

        Raises:
            FileError: the directory has other contents, or cannot be written.
        """
        path = Path(directory)
        check_target(path)
        with staged_directory(path) as temporary:
            write_trained(self.trained, temporary)
            write_json(temporary / "outcome.json", "expunge.outcome", 2, self.outcome.to_json())
            if "scores" in self._latest:
                self._latest["scores"].save(temporary / "scores.json")
        if is_live(name := str(self.trained.provenance.architecture.get("name", ""))):
            warnings.warn(describe_live(name, path), ExpungeWarning, stacklevel=2)
        return path

    def text(self) -> str:
        """Scores if measured, what was done, its cost, the state unchanged since training on D_f, and the guarantee."""
        lines = [self._latest["scores"].text(), ""] if "scores" in self._latest else []
        facts = self._summarise().facts
        lines += [f"done: {line}" for line in self.trained.provenance.history[-1:]]
        return "\n".join([*lines, *(f"{name}: {facts[name]()}" for name in _SHORT if name in facts)])

    def _summarise(self) -> Summary:
        outcome = self.outcome._summarise()
        assumed = self.trained.provenance.assumed
        facts = {name: outcome.facts[name] for name in _LONG if name in outcome.facts} | {
            **({"assumed": lambda: shorten_names(assumed)} if assumed else {}),
            "split": self.split._describe_counts,
            "scores": lambda: "see below" if self._latest else "not measured yet: evaluate(reference=...)",
        }
        return Summary(outcome.title, facts, lines=True, table=self._rows, bars=outcome.bars)

    def _rows(self) -> list[dict[str, str]]:
        return self._latest["scores"].table() if self._latest else []

    __repr__ = repr_text
    _repr_html_ = repr_html
