"""The adopted model: a model of the user, with the data that it was trained on."""

from __future__ import annotations

import warnings
from typing import Any

from expunge.core.errors import ExpungeWarning
from expunge.core.request import ForgetRequest
from expunge.core.show import Summary, repr_html, repr_text
from expunge.core.trained import Trained
from expunge.evaluation import Scores
from expunge.sparsity import get_schedule, prune
from expunge.training.progress import Progress

from .model import ModelWithData, Unlearned
from .prepare import assume_recipe, make_pruning
from .rows import Rows
from .scoring.measure import ScoreOptions, warn_of_reference


class AdoptedModel(ModelWithData):
    """A model of the user with the data that it was trained on: the result of `expunge.adopt`."""

    def prune(
        self, sparsity: float | None = None, *, seed: int = 0, progress: Progress | None = None, **options: Any
    ) -> AdoptedModel:
        """Prune the model and return the sparse one; this model does not change.

        Args:
            sparsity: fraction of the prunable weights to prune; None: 0.95, or that of an N:M pattern.
            seed: see `expunge.prune`.
            progress: callback for progress.
            options: further fields of `expunge.Pruning`. Unless given, `schedule` is `one-shot` (no training), since
                other schedules need what was stored during training, and `layers` are convolutions and linear layers.

        Raises:
            MaskError, ConfigError: the sparsity cannot be reached, state is missing, or an option is unknown.
        """
        pruning = make_pruning(sparsity, options)
        trained, text = self.trained, ""
        if get_schedule(pruning.schedule).trains and not trained.provenance.recipe:
            trained, text = assume_recipe(trained)
        pruned = prune(trained, pruning, self._context(seed, None, progress))
        if text:
            warnings.warn(text, ExpungeWarning, stacklevel=2)
        return AdoptedModel(self.data, pruned, self.runtime, self.own, self.order)

    def evaluate(
        self, rows: Rows | ForgetRequest, reference: Unlearned | Trained | Scores | None = None, **options: Any
    ) -> Scores:
        """Score this model for a request that it has not forgotten yet.

        Args:
            rows: see `request`.
            reference: a model retrained without these rows (and without those of earlier requests), or its scores.
            options: of the scores (`expunge.evaluate`): `seed`, `svc_records`, `svc_ratios`, `scores`.
        """
        chosen = ScoreOptions.from_options(options)
        return warn_of_reference(self._score(self.request(rows), reference, chosen, None, self))

    def _summarise(self) -> Summary:
        facts = {**self.trained._summarise().facts, "data": lambda: self.data._describe()}
        return Summary(self.trained._describe, facts, lines=True, bars=self.trained._density_bars)

    __repr__ = repr_text
    _repr_html_ = repr_html
