"""The configuration of one run: a YAML file, validated key by key; `dotted.key=value` overrides any key.

Nothing here imports torch. Options of models, methods and recipes are not validated here but by their registries.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic

from expunge.core.errors import ConfigError
from expunge.core.files import PathLike
from expunge.core.reading.limits import YAML_DEPTH
from expunge.core.registry import GRANULARITIES, SCHEDULES, is_reference
from expunge.core.show import Summary, repr_html, repr_text, shorten_mapping
from expunge.core.split import PLANTINGS
from expunge.core.trust import Trust
from expunge.evaluation.facts import list_ratios

from .sections.forget import ForgetConfig, LeakageConfig
from .sections.runtime import RuntimeConfig
from .sections.split import SplitConfig
from .sections.training import TrainingConfig
from .validation import Origin, Origins, Section, leave_out_unset, locate, validate_values
from .yaml_source import parse_value, read_yaml


def _reject(*names: str) -> pydantic.AfterValidator:
    """Reject options with the name of an argument that is set elsewhere in the section."""

    def check(options: dict[str, Any]) -> dict[str, Any]:
        for name in names:
            if name in options:
                raise ValueError(f"{name!r} is not an option")
        return options

    return pydantic.AfterValidator(check)


def _check_ratio(ratio: str) -> str:
    if ratio not in list_ratios():
        raise ValueError(f"unknown ratio; known: {', '.join(list_ratios())}")
    return ratio


def _check_svc_records(value: Any) -> Any:
    if value is None or value == "all":
        return value
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 2:
        raise ValueError("not an integer greater than or equal to 2, or all")
    return value


class DataConfig(Section):
    """The records: name of a data source, directory of its files, options of the source."""

    source: str
    dir: str | None = None
    options: Annotated[dict[str, Any], _reject("source", "data_dir")] = pydantic.Field(default_factory=dict)


class PrunedConfig(Section):
    """How an imported model was pruned, as declared by the user; un-pruning needs it, the file may not record it."""

    criterion: str = "unknown"
    scope: str = "global"
    layers: tuple[str, ...] = ()


class InitialConfig(Section):
    """A declared pretrained start: a safetensors file, and the SHA-256 of its bytes (computed if left out)."""

    file: str
    hash: str | None = pydantic.Field(default=None, pattern="^[0-9a-fA-F]{64}$")


class ModelConfig(Section):
    """The architecture: a registered name or `package.module:factory`, and its options.

    Attributes:
        initial: pretrained weights, of the whole network or of a part, that training and retraining start from.
        weights: a safetensors file of a model that was trained elsewhere; it is imported instead of trained.
        mask: the mask file of an imported sparse model; or `zeros`: a weight is pruned if it is exactly 0.
        pruned: how the imported model was pruned, if its file does not record it.
    """

    name: str
    normalise: Literal["auto", "none", "published", "training"] = "auto"
    options: Annotated[dict[str, Any], _reject("name", "records", "split", "normalise", "initial")] = pydantic.Field(
        default_factory=dict
    )
    initial: InitialConfig | None = None
    weights: str | None = None
    mask: str | None = None
    pruned: PrunedConfig | None = None

    @pydantic.model_validator(mode="after")
    def _check_weights_are_set(self) -> ModelConfig:
        if self.mask is not None and self.weights is None:
            raise ValueError("a mask file needs a weights file; to prune a model, use the section `sparsity`")
        if self.pruned is not None and self.weights is None:
            raise ValueError("`pruned` describes a weights file; to prune a model, use the section `sparsity`")
        return self


class SparsityConfig(Section):
    """How to prune: the fraction of weights to remove, the layer types, the criterion and the schedule.

    Attributes:
        sparsity: fraction of the weights, or of the coupled channels, to remove; default: 0.95, or 1 - n / m for an n:m
            pattern.
    """

    sparsity: float = pydantic.Field(default=0.95, gt=0, lt=1)
    layers: tuple[str, ...] = ("conv",)
    criterion: str = "magnitude"
    granularity: str = "weight"
    scope: str = "global"
    schedule: str = "omp"
    options: dict[str, Any] = pydantic.Field(default_factory=dict)
    epochs: Literal["remaining", "full"] = "remaining"
    score_records: int = pydantic.Field(default=1024, ge=1)
    keep_weights: bool = False

    @pydantic.model_validator(mode="before")
    @classmethod
    def _set_sparsity_from_pattern(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("sparsity") is not None:
            return values
        rest = {key: value for key, value in values.items() if key != "sparsity"}
        granularity = str(values.get("granularity", ""))
        pattern = re.fullmatch(r"(\d{1,6}):(\d{1,6})", granularity)
        if pattern is not None and 0 < int(pattern[1]) < int(pattern[2]):
            return {**rest, "sparsity": 1 - int(pattern[1]) / int(pattern[2])}
        known = not is_reference(granularity) and granularity in GRANULARITIES
        own = GRANULARITIES.describe(granularity).facts.get("fixed_sparsity") if known else None
        return rest if own is None else {**rest, "sparsity": own}


class MethodConfig(Section):
    """The unlearning method and its options.

    Attributes:
        tuned: in plans, a file of `expunge bench tune`, which has the other options.
    """

    name: str
    options: Annotated[dict[str, Any], _reject("name")] = pydantic.Field(default_factory=dict)
    tuned: str | None = None

    @pydantic.model_serializer(mode="wrap")
    def _leave_out_tuned(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return leave_out_unset(handler(self), "tuned")


class EvaluationConfig(Section):
    """Options of the evaluation.

    Attributes:
        svc_records: maximum number of members, and of non-members, that the legacy attack is fitted on; `all`: no
            maximum, as in [Jia2023]. Default: 10,000, which no setting with at most so many test records exceeds.
        svc_ratios: ratios of members to non-members, such as `2:1`, with which the attack is fitted as well.
        bound: measure the factors of the error bound of [Jia2023], and the distance to the retrained weights.
        scores: further scores: names of plug-ins, or `package.module:name` (docs/adding-a-score.md).
    """

    svc_records: Annotated[int | Literal["all"] | None, pydantic.BeforeValidator(_check_svc_records)] = None
    svc_ratios: tuple[Annotated[str, pydantic.AfterValidator(_check_ratio)], ...] = ()
    bound: bool = False
    scores: tuple[str, ...] = ()


class ReportConfig(Section):
    """The page of one run (`expunge forget`); it changes no result.

    Attributes:
        title: heading of the page.
        ids: print the ids of the forgotten records, and the names and values that `forget` lists, which are personal
            data.
    """

    title: str | None = None
    ids: bool = False


def _may_rank_trained_weights(schedule: str) -> bool:
    """Whether a schedule ranks the trained dense weights, as its source says; unknown ones are refused later."""
    if is_reference(schedule) or schedule not in SCHEDULES:
        return True
    facts = SCHEDULES.describe(schedule).facts
    return facts.get("starts_from", "trained") == "trained" and facts.get("scores", "dense") == "dense"


class RunConfig(Section):
    """The configuration of one run: data, split, model and training; optionally sparsity, forget set and method.

    Attributes:
        leakage: instead of a method, in plans.
        seed: seeds initial weights, order of records and the method's draws; never the split (see `split.seed`).
        output: the directory for results.
    """

    data: DataConfig
    split: SplitConfig = SplitConfig()
    model: ModelConfig
    training: TrainingConfig
    sparsity: SparsityConfig | None = None
    forget: ForgetConfig | None = None
    method: MethodConfig | None = None
    leakage: LeakageConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    report: ReportConfig = ReportConfig()
    seed: int = 0
    output: str | None = None
    _trust: Trust = pydantic.PrivateAttr(default_factory=Trust)

    @property
    def trust(self) -> Trust:
        """The code that the configuration may name; no key of a file changes it (`expunge.core.trust`)."""
        return self._trust

    def _summarise(self) -> Summary:
        """The sections that differ from their defaults."""
        values = self.model_dump(exclude_defaults=True)
        sections = {name: value for name, value in values.items() if isinstance(value, dict)}
        facts = {name: lambda value=value: shorten_mapping(value) or "defaults" for name, value in sections.items()}
        method = "no method" if self.method is None else f"method {self.method.name:.40}"
        return Summary(
            lambda: f"{self.model.name:.40} on {self.data.source:.40}, {method}, seed {self.seed}", facts, lines=True
        )

    __repr__ = repr_text
    __str__ = repr_text
    _repr_html_ = repr_html

    @pydantic.model_validator(mode="after")
    def _check_retain(self) -> RunConfig:
        absent = self.split.retain is not None
        if absent and self.model.weights is None:
            raise ValueError("without the records of D_r nothing can be trained: `split.retain` needs `model.weights`")
        if self.forget is not None and self.forget.stand_in is not None and not absent:
            raise ValueError("`forget.stand_in` takes the place of absent records: it needs `split.retain: absent`")
        return self

    @pydantic.model_validator(mode="after")
    def _check_bound(self) -> RunConfig:
        if self.evaluation.bound and self.forget is not None and self.forget.by == "correct":
            raise ValueError("evaluation.bound is about removed records, and `forget.by: correct` removes none")
        return self

    @pydantic.model_validator(mode="after")
    def _check_planting(self) -> RunConfig:
        if self.forget is not None and self.forget.by in PLANTINGS and self.model.weights is not None:
            raise ValueError(f"forget.by {self.forget.by} changes the training data: model.weights must not be set")
        return self

    @pydantic.model_validator(mode="after")
    def _check_leakage(self) -> RunConfig:
        if self.leakage is not None:
            if self.method is not None:
                raise ValueError("a run has either `leakage` or `method`, not both")
            if self.sparsity is None or self.forget is None:
                raise ValueError("topology leakage needs the sections `sparsity` and `forget`")
            if "correct" in (self.forget.by, None if self.leakage.other is None else self.leakage.other.by):
                raise ValueError(
                    "topology leakage compares models with and without records: a correction removes no record"
                )
            if not _may_rank_trained_weights(self.sparsity.schedule):
                raise ValueError(
                    "topology leakage needs masks of trained dense weights: sparsity.schedule must be omp or one-shot"
                )
            if self.model.weights is not None:
                raise ValueError("topology leakage trains its own shadow models: model.weights must not be set")
            self.leakage.check_other(self.forget)
        return self


def load_config(path: PathLike, overrides: Iterable[str] = (), *, trust: Sequence[str] | Trust = ()) -> RunConfig:
    """Read and validate a configuration. Does not import torch.

    Args:
        path: a YAML file (docs/formats/config.md). Loading it is the agreement to run the modules in its directory that
            it names.
        overrides: strings `dotted.key=value`; the value is YAML. Later ones win; missing sections are created.
        trust: top-level packages that the configuration, and models that it is used with, may name.

    Raises:
        ConfigError: not YAML, an unknown key (with the nearest known one) or a wrong value; with file, line and key.

    >>> from pathlib import Path
    >>> from expunge.experiments import load_config
    >>> _ = Path("run.yaml").write_text('''
    ... data: {source: digits}
    ... model: {name: mlp, options: {widths: [32]}}
    ... training: {recipe: one-cycle}
    ... ''')
    >>> config = load_config("run.yaml", ["training.epochs=3", "sparsity.sparsity=0.9"])
    >>> config.training.extra_keys, config.sparsity.sparsity, config.sparsity.criterion
    ({'epochs': 3}, 0.9, 'magnitude')
    >>> load_config("run.yaml", ["model.nam=cnn"])
    Traceback (most recent call last):
        ...
    expunge.core.errors.ConfigError: override model.nam=cnn: unknown key 'model.nam'
      hint: did you mean 'model.name'? ...
    """
    text = read_yaml(path)
    if not isinstance(text.value, dict):
        raise ConfigError("a configuration is a mapping of keys to values", where=text.name)
    values = copy.deepcopy(text.value)
    origins = Origins((text, ()))
    apply_overrides(values, overrides, origins)
    config = check_config(values, origins, trust=Trust.from_value(trust).for_file(path, [values]))
    if config.method is not None and config.method.tuned is not None:
        where = locate(origins, ("method", "tuned"))
        raise ConfigError("tuned options are read in plans only", where=where, hint="copy them to method.options")
    return config


def check_config(
    values: Mapping[str, Any], origins: Origins | None = None, *, trust: Sequence[str] | Trust = ()
) -> RunConfig:
    """Validate plain values as a `RunConfig`; see `validate_values`. Without `trust` they may name no custom code."""
    config = validate_values(RunConfig, values, origins or Origins(), what="the configuration")
    config._trust = Trust.from_value(trust)
    return config


def apply_overrides(values: dict[str, Any], overrides: Iterable[str], origins: Origins) -> None:
    """Apply `dotted.key=value` strings to `values`, in place, and record in `origins` where each value came from."""
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError(
                "an override has the form dotted.key=value", where=item, hint="for example training.epochs=3"
            )
        origin = f"override {item}"
        set_key(values, key.strip(), parse_value(text, origin), origins, origin)


def set_key(values: dict[str, Any], key: str, value: Any, origins: Origins, origin: Origin) -> None:
    """Set a dotted key in nested dictionaries, in place; missing sections are created."""
    parts = key.split(".")
    if len(parts) > YAML_DEPTH:
        where = origin if isinstance(origin, str) else origin[0].where(origin[1])
        raise ConfigError(f"a key of {len(parts):,} parts; the limit is {YAML_DEPTH}", where=where)
    at = values
    for depth, part in enumerate(parts[:-1]):
        below = at.get(part)
        if below is None:
            below = at[part] = {}
            origins.set(tuple(parts[: depth + 1]), origin)
        if not isinstance(below, dict):
            above = ".".join(parts[: depth + 1])
            origins.set(tuple(parts), origin)
            where = locate(origins, tuple(parts))
            raise ConfigError(f"{above} is a value, so it has no key {parts[depth + 1]!r}", where=where)
        at = below
    at[parts[-1]] = copy.deepcopy(value)
    origins.set(tuple(parts), origin)


def canonical_config(config: RunConfig) -> dict[str, Any]:
    """A configuration as plain values, without data directory, output and the section `report`.

    Keys with their default values are left out too, so that a release that adds a key changes no hash of a plan.
    """
    body = config.model_dump(mode="json", exclude_defaults=True)
    body["data"].pop("dir", None)
    body.pop("output", None)
    body.pop("report", None)
    return body
