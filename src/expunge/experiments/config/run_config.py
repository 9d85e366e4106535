"""The configuration of one run: a YAML file, checked key by key; any key can be overridden by `dotted.key=value`.

Nothing here imports torch. Options of models, methods and recipes are free mappings here; their registries check them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic

from expunge.core.errors import ConfigError
from expunge.core.files import PathLike
from expunge.core.trust import Trust
from expunge.evaluation.score import RATIOS

from .validation import OpenSection, Origin, Origins, Section, check, place
from .yaml_source import KeyPath, parse_value, read_yaml


def _without(*names: str) -> pydantic.AfterValidator:
    """Refuse options that have the name of something which is given beside the options."""

    def checked(options: dict[str, Any]) -> dict[str, Any]:
        for name in names:
            if name in options:
                raise ValueError(f"{name!r} is no option")
        return options

    return pydantic.AfterValidator(checked)


class DataConfig(Section):
    """Which records: a source by name, where its files lie, its own options."""

    source: str
    dir: str | None = None
    options: Annotated[dict[str, Any], _without("source", "data_dir")] = pydantic.Field(default_factory=dict)


class SplitConfig(Section):
    """How records are divided, once: fractions of the records that each part takes; or a saved split.json (`file`).

    Attributes:
        limit: use only so many records outside the official test set.
    """

    file: str | None = None
    seed: int = 0
    validation: float = pydantic.Field(default=0.1, ge=0, lt=1)
    non_members: float = pydantic.Field(default=0.1, ge=0, lt=1)
    test: float = pydantic.Field(default=0.2, ge=0, lt=1)
    group: Literal["subject"] | None = None
    stratify: bool = True
    limit: int | None = pydantic.Field(default=None, ge=1)


class PrunedConfig(Section):
    """What is known of how a model from elsewhere was pruned; un-pruning needs it, and its file may not say."""

    criterion: str = "unknown"
    scope: str = "global"
    layers: tuple[str, ...] = ()


class ModelConfig(Section):
    """Which architecture: a registered name or `package.module:factory`, and its options.

    Attributes:
        weights: a safetensors file of a model that was trained elsewhere; it takes the place of training.
        mask: the mask file of such a model, where it is sparse; or `zeros`: a weight is dead where it is exactly 0.
        pruned: what is known of its pruning, where the file does not say.
    """

    name: str
    normalise: Literal["auto", "none", "published", "training"] = "auto"
    options: Annotated[dict[str, Any], _without("name", "records", "split", "normalise")] = pydantic.Field(
        default_factory=dict
    )
    weights: str | None = None
    mask: str | None = None
    pruned: PrunedConfig | None = None

    @pydantic.model_validator(mode="after")
    def _mask_wants_weights(self) -> ModelConfig:
        if self.mask is not None and self.weights is None:
            raise ValueError("a mask file belongs to a weights file; to prune a model, use the section `sparsity`")
        if self.pruned is not None and self.weights is None:
            raise ValueError("`pruned` tells of a weights file; to prune a model, use the section `sparsity`")
        return self


class TrainingConfig(OpenSection):
    """A recipe by name; every further key overrides that field of the recipe (epochs, learning_rate, ...)."""

    recipe: str

    @pydantic.model_validator(mode="after")
    def _no_name(self) -> TrainingConfig:
        if "name" in self.further:
            raise ValueError("a recipe has no field 'name'; training.recipe says which one it is")
        return self


class SparsityConfig(Section):
    """What is pruned: the share of weights removed, among which kinds of layers, ranked how, by which schedule.

    Attributes:
        sparsity: of weights, or coupled channels; left out (or null): 0.95, or 1 - n / m of a pattern n:m.
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
    def _sparsity_of_the_pattern(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("sparsity") is not None:
            return values
        rest = {key: value for key, value in values.items() if key != "sparsity"}
        pattern = re.fullmatch(r"(\d+):(\d+)", str(values.get("granularity", "")))
        if pattern is None or not 0 < int(pattern[1]) < int(pattern[2]):
            return rest
        return {**rest, "sparsity": 1 - int(pattern[1]) / int(pattern[2])}


class ForgetConfig(OpenSection):
    """Which records are to be forgotten; the further keys depend on `by`."""

    by: str


class LeakageConfig(Section):
    """Topology leakage in the place of a method: many models with D_f and many without, told apart by their masks.

    Attributes:
        models: on each side.
        initial: `shared` initial weights, or every model's `own`.
        known: whether the attacker is given the initial weights.
        permutations: shufflings for the null spread.
    """

    models: int = pydantic.Field(default=64, ge=4)
    initial: Literal["shared", "own"] = "shared"
    known: bool = False
    permutations: int = pydantic.Field(default=200, ge=1)


class MethodConfig(Section):
    """Which method, and its options."""

    name: str
    options: Annotated[dict[str, Any], _without("name")] = pydantic.Field(default_factory=dict)


class EvaluationConfig(Section):
    """Options of the evaluation.

    Attributes:
        svc_records: a cap on the shadow records of the legacy attack (none: as in paper A).
        svc_ratios: members to non-members that the attack is fitted on once more, such as `2:1`.
        bound: measure the factors of paper A's error bound beside the distance to the retrained weights.
    """

    svc_records: int | None = pydantic.Field(default=None, ge=2)
    svc_ratios: tuple[Literal[RATIOS], ...] = ()  # type: ignore[valid-type]
    bound: bool = False


class RuntimeConfig(Section):
    """Where and in which precision."""

    device: str = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False


class RunConfig(Section):
    """One run: data, split, model, training, and where wanted sparsity, forget set, method and evaluation.

    Attributes:
        leakage: in the place of a method, in plans.
        seed: sets initial weights, order of records and the method's draws; never the split (`split.seed` does).
        output: the directory that results go to.
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
    seed: int = 0
    output: str | None = None
    _trust: Trust = pydantic.PrivateAttr(default_factory=Trust)

    @property
    def trust(self) -> Trust:
        """Which code the configuration may name; no key of a file changes it (`expunge.core.trust`)."""
        return self._trust

    @pydantic.model_validator(mode="after")
    def _leakage_stands_alone(self) -> RunConfig:
        if self.leakage is not None:
            if self.method is not None:
                raise ValueError("`leakage` takes the place of a method: a run has one of the two")
            if self.sparsity is None or self.forget is None:
                raise ValueError("topology leakage needs the sections `sparsity` and `forget`")
            if self.sparsity.schedule not in ("one-shot", "omp"):
                raise ValueError(
                    "topology leakage attacks masks made of trained dense weights: sparsity.schedule is omp or one-shot"
                )
            if self.model.weights is not None:
                raise ValueError("topology leakage trains its models: model.weights cannot stand in for them")
        return self


def load_config(path: PathLike, overrides: Iterable[str] = (), *, trust: Sequence[str] | Trust = ()) -> RunConfig:
    """Read and check a configuration.

    Args:
        path: a YAML file. Whoever starts it agrees to the modules in its directory that it names.
        overrides: texts `dotted.key=value`; the value is YAML. Later ones win; a missing section is made.
        trust: top-level packages that the configuration, and models that it is used with, may name.

    Raises:
        ConfigError: no YAML, an unknown key (with the nearest known one) or a wrong value; with file, line and key.
    """
    text = read_yaml(path)
    if not isinstance(text.value, dict):
        raise ConfigError("a configuration is a mapping of keys to values", where=text.name)
    values = copy.deepcopy(text.value)
    origins: Origins = {(): (text, ())}
    apply_overrides(values, overrides, origins)
    return check_config(values, origins, trust=Trust.from_value(trust).for_file(path, [values]))


def check_config(
    values: Mapping[str, Any], origins: Origins | None = None, *, trust: Sequence[str] | Trust = ()
) -> RunConfig:
    """Turn plain values into a `RunConfig`; see `checking.check`. Without `trust` they may name no code."""
    config = check(RunConfig, values, origins or {}, what="the configuration")
    config._trust = Trust.from_value(trust)
    return config


def apply_overrides(values: dict[str, Any], overrides: Iterable[str], origins: Origins) -> None:
    """Set `dotted.key=value` texts in `values`, in place, and note in `origins` where each came from."""
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError("an override reads dotted.key=value", where=item, hint="for example training.epochs=3")
        origin = f"override {item}"
        set_dotted(values, key.strip(), parse_value(text, origin), origins, origin)


def set_dotted(values: dict[str, Any], key: str, value: Any, origins: Origins, origin: Origin) -> None:
    """Set a dotted key in nested dictionaries, in place; sections on the way are made."""
    parts = key.split(".")
    at = values
    for depth, part in enumerate(parts[:-1]):
        below = at.get(part)
        if below is None:
            below = at[part] = {}
            origins[tuple(parts[: depth + 1])] = origin
        if not isinstance(below, dict):
            above = ".".join(parts[: depth + 1])
            origins[tuple(parts)] = origin
            where = place(origins, tuple(parts))
            raise ConfigError(f"{above} is a value, so it has no key {parts[depth + 1]!r}", where=where)
        at = below
    at[parts[-1]] = copy.deepcopy(value)
    path: KeyPath = tuple(parts)
    for stale in [known for known in origins if known[: len(path)] == path]:
        del origins[stale]
    origins[path] = origin
