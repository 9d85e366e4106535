"""The `TrainingArguments` of `transformers`, as fields of a recipe. Imports neither torch nor transformers."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from expunge.core.errors import ConfigError

_LOG = logging.getLogger(__name__)
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
_OPTIMISERS = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "sgd": "sgd"}
#: Arguments that `_Reader` reads.
_READ = frozenset((
    "per_device_train_batch_size", "train_batch_size", "n_gpu", "world_size", "num_train_epochs", "max_steps",
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "optim",
    "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "gradient_accumulation_steps",
    "max_grad_norm", "label_smoothing_factor", "bf16", "dataloader_drop_last", "load_best_model_at_end",
    "metric_for_best_model", "eval_strategy", "evaluation_strategy",
))  # fmt: skip
#: Arguments that change what is trained, why they cannot be repeated, and values that change nothing.
_REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "fp16": ("float16 scales the loss and skips steps", (False,)),
    "auto_find_batch_size": ("the batch size is known only after the training", (False,)),
    "neftune_noise_alpha": ("it adds noise to the embeddings", (0,)),
    "train_sampling_strategy": ("expunge draws a new order for every epoch", ("random",)),
    "group_by_length": ("expunge draws a new order for every epoch", (False,)),
    "deepspeed": ("DeepSpeed has an optimiser of its own", ()),
    "adafactor": ("the optimiser is Adafactor", (False,)),
    "optim_target_modules": ("it changes the optimiser of some layers", ()),
    "label_smoother": ("it changes the loss", ()),
    "max_train_samples": ("it changes the records", ()),
    "mixup": ("it mixes records, so a record's part in a step is not its own", (0,)),
    "mixup_alpha": ("it mixes records, so a record's part in a step is not its own", (0,)),
    "cutmix": ("it mixes records, so a record's part in a step is not its own", (0,)),
    "cutmix_alpha": ("it mixes records, so a record's part in a step is not its own", (0,)),
    "model_ema": ("it averages the weights of all steps", (False,)),
}
#: Arguments about speed, memory, evaluation, logs and files, which do not change what is trained.
_WITHOUT_EFFECT = re.compile(
    r"(logging|log|save|eval|hub|push_to_hub|dataloader|ddp|fsdp|torch|tf32|bf16|fp16|half|jit|gradient_checkpointing|"
    r"activation_checkpointing|report_to|include|per_device_eval|per_gpu|use|do|debug|deepspeed|tpu|xla|mp|no_cuda|"
    r"parallelism|trackio|liger|batch_eval|restore|enable)_?.*|"
    r"output_dir|overwrite_output_dir|run_name|project|seed|data_seed|full_determinism|disable_tqdm|prediction_loss_only|"
    r"remove_unused_columns|label_names|length_column_name|greater_is_better|ignore_data_skip|accelerator_config|"
    r"average_tokens_across_devices|skip_memory_metrics|resume_from_checkpoint|local_rank|past_index|ray_scope|"
    r"auto_resume|split_batches|dispatch_batches|distributed_state|deepspeed_plugin|predict_with_generate|sortish_sampler|"
    r"generation_.*|_.*"
)  # fmt: skip


def read_training_arguments(values: object, *, where: str = "", records: int | None = None) -> dict[str, Any]:
    """Return the fields of a recipe that repeats a training by `transformers.Trainer`.

    Args:
        values: arguments by name; those that are missing have the defaults of `transformers`.
        where: the file, for errors.
        records: number of training records, if known: it decides whether `max_steps`, accumulated gradients and a
            dropped last batch can be repeated.

    Raises:
        ConfigError: an argument cannot be repeated, or is unknown; the message names it.

    >>> from expunge.core.reading.training_arguments import read_training_arguments
    >>> fields = read_training_arguments({"num_train_epochs": 3, "learning_rate": 5e-5, "warmup_steps": 0.1})
    >>> fields["optimiser"], fields["lr_schedule"], fields["clip_norm"], fields["batch_size"], fields["warmup"]
    ('adamw', 'linear', 1.0, 8, 0.1)
    >>> read_training_arguments({"mixup_alpha": 0.2})
    Traceback (most recent call last):
        ...
    expunge.core.errors.ConfigError: mixup_alpha: cannot be repeated: it mixes records, so a record's part in ...
    """
    if not isinstance(values, Mapping):
        raise ConfigError("training arguments are a mapping of names to values", where=where or None)
    return _Reader(values, f"{where}: " if where else "", records).read()


class _Reader:
    """The arguments, with the defaults of `transformers`."""

    def __init__(self, values: Mapping[str, Any], where: str, records: int | None) -> None:
        self.values, self.where, self.records = values, where, records

    def refuse(self, name: str, why: str, hint: str | None = None) -> NoReturn:
        raise ConfigError(f"cannot be repeated: {why}", where=f"{self.where}{name}", hint=hint)

    def get(self, name: str, default: Any) -> Any:
        """A value; the default if it is missing or None."""
        value = self.values.get(name)
        return default if value is None else getattr(value, "value", value)  # the value of an enumeration

    def number(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{value!r} is not a number", where=f"{self.where}{name}")
        return float(value)

    def integer(self, name: str, default: int) -> int:
        value = self.number(name, default)
        if value != int(value):
            raise ConfigError(f"{value!r} is not an integer", where=f"{self.where}{name}")
        return int(value)

    def check_others(self) -> None:
        """Refuse what changes the training and is not read, and what is unknown."""
        for name, value in self.values.items():
            if name in _READ or value is None or value == "" or value == [] or value == {}:
                continue
            if name in _REFUSED:
                why, harmless = _REFUSED[name]
                if not any(value == one for one in harmless):
                    self.refuse(name, why)
            elif value is not False and not _WITHOUT_EFFECT.fullmatch(str(name)):
                self.refuse(name, "the argument is unknown", "remove it if it does not change what is trained")
        if self.values.get("fsdp") or (self.values.get("deepspeed")):
            self.refuse("fsdp", "the optimiser is distributed")
        if self.get("bf16", False):
            _LOG.warning("the model was trained in bf16: use runtime.precision=bf16 (Runtime(precision='bf16'))")

    def read(self) -> dict[str, Any]:
        self.check_others()
        batch_size, epochs = self.read_sizes()
        schedule = self.get("lr_scheduler_type", "linear")
        if schedule not in _SCHEDULES:
            self.refuse("lr_scheduler_type", f"expunge has no schedule {schedule!r}", f"known: {', '.join(_SCHEDULES)}")
        more = self.get("lr_scheduler_kwargs", {})
        if more and more != {"num_cycles": 0.5}:
            self.refuse("lr_scheduler_kwargs", "only the defaults of the schedule are known")
        clip_norm, smoothing = self.number("max_grad_norm", 1.0), self.number("label_smoothing_factor", 0.0)
        steps, ratio = self.number("warmup_steps", 0), self.number("warmup_ratio", 0)
        if 0 < steps < 1:
            steps, ratio = 0, steps
        if schedule == "constant":
            steps = ratio = 0
        return {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": self.number("learning_rate", 5e-5),
            "weight_decay": self.number("weight_decay", 0.0),
            "lr_schedule": _SCHEDULES[schedule],
            "lr_update": "step",
            "warmup": 0.0 if steps else ratio,
            "warmup_steps": int(steps),
            "clip_norm": clip_norm or None,
            "label_smoothing": smoothing,
            "no_decay": "transformers",
            "select": self.read_selection(),
            **self.read_optimiser(),
        }

    def read_optimiser(self) -> dict[str, Any]:
        name, given = str(self.get("optim", "adamw_torch")), str(self.get("optim_args", ""))
        if name not in _OPTIMISERS:
            self.refuse("optim", f"expunge has no optimiser {name!r}", f"known: {', '.join(_OPTIMISERS)}")
        options = dict(part.split("=", 1) for part in given.replace(" ", "").split(",") if "=" in part)
        if _OPTIMISERS[name] == "sgd":
            momentum, nesterov = options.pop("momentum", "0"), options.pop("nesterov", "false")
            if float(options.pop("dampening", "0")) or options:
                self.refuse("optim_args", f"{given!r} has options other than momentum and nesterov")
            is_nesterov = nesterov.lower() in ("true", "1", "yes")
            return {"optimiser": "sgd", "momentum": float(momentum), "nesterov": is_nesterov}
        if options:
            self.refuse("optim_args", f"{given!r} are options of an optimiser that expunge does not have")
        betas = (self.number("adam_beta1", 0.9), self.number("adam_beta2", 0.999))
        return {"optimiser": "adamw", "betas": betas, "eps": self.number("adam_epsilon", 1e-8), "momentum": 0.0}

    def read_sizes(self) -> tuple[int, int]:
        """Records in an optimiser step, and epochs."""
        devices = max(1, self.integer("n_gpu", 1)) * max(1, self.integer("world_size", 1))
        micro = self.integer("per_device_train_batch_size", 8) * devices
        accumulated = self.integer("gradient_accumulation_steps", 1)
        if accumulated > 1 and (self.records is None or self.records % micro):
            self.refuse(
                "gradient_accumulation_steps",
                f"{accumulated} batches of {micro} are one batch of {accumulated * micro} only if all of them are full",
                "give the number of records: it has to be a multiple of the batch size",
            )
        size = micro * accumulated
        if self.get("dataloader_drop_last", False) and (self.records is None or self.records % micro):
            self.refuse(
                "dataloader_drop_last", "expunge drops no record", "give the number of records, if none is dropped"
            )
        epochs, most = self.number("num_train_epochs", 3.0), self.integer("max_steps", -1)
        if most > 0:
            steps = None if self.records is None else -(-self.records // size)
            if steps is None or most % steps:
                self.refuse(
                    "max_steps", "training stops inside an epoch",
                    "give the number of records, if max_steps is an integer number of epochs",
                )  # fmt: skip
            return size, most // steps
        if epochs != int(epochs):
            self.refuse("num_train_epochs", f"{epochs} is not an integer, so training stops inside an epoch")
        return size, int(epochs)

    def read_selection(self) -> str:
        if not self.get("load_best_model_at_end", False):
            return "last"
        metric = self.get("metric_for_best_model", "loss")
        each = self.get("eval_strategy", self.get("evaluation_strategy", "no"))
        if metric not in ("accuracy", "eval_accuracy") or each != "epoch":
            self.refuse(
                "load_best_model_at_end", "expunge selects the best epoch by its validation accuracy only",
                "use metric_for_best_model=accuracy and eval_strategy=epoch, or the last epoch",
            )  # fmt: skip
        return "best"
