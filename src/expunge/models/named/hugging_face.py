"""Classifiers of transformers from a config.json: the class that it names, without any code or download of its own."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from expunge.core.errors import ConfigError, FileError, ModelError, with_article
from expunge.core.files import read_bytes
from expunge.core.reading.limits import BYTES
from expunge.core.reading.strict_json import parse_json

#: Endings of the classes that classify a record as a whole.
_HEADS = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForAudioClassification",
    "ForVideoClassification",
)
#: Keys that name code of somebody else, or weights that would be fetched.
_REFUSED = {
    "auto_map": "code of a repository (trust_remote_code), which is never run",
    "custom_pipelines": "code of a repository, which is never run",
    "quantization_config": "quantised weights, which cannot be trained",
    "use_pretrained_backbone": "a backbone that would be downloaded",
}
#: Keys that choose a kernel of the machine; a name with a slash would be downloaded.
_DROPPED = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
#: The option that holds the contents of config.json, so that a saved model does not need the folder.
CONFIG = "config"


def embed_config(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `hf:FOLDER` with the contents of its config.json, unless they have them.

    Raises:
        FileError: there is no config.json, or it is damaged.
        ModelError: it names code of a repository.
    """
    if options.get(CONFIG) is not None:
        return dict(options)
    folder = Path(name.partition(":")[2])
    path = folder if folder.name == "config.json" else folder / "config.json"
    if not path.is_file():
        raise FileError(
            "there is no config.json: hf: names a folder on this machine, as save_pretrained writes it",
            where=path,
            hint="download the model first; nothing is downloaded here",
        )
    body = parse_json(read_bytes(path, BYTES).decode("utf-8", "replace"), where=path)
    if not isinstance(body, dict):
        raise FileError("is not a mapping", where=path)
    _check_config(body, str(path))
    return {**options, CONFIG: {key: value for key, value in body.items() if key not in _DROPPED}}


def build_hugging_face(
    folder: str, input_shape: tuple[int, ...], classes: int, options: Mapping[str, Any]
) -> nn.Module:
    """Make the classifier of a config.json, with initial weights drawn here.

    The class is the first of `architectures`, if it is a classifier; else the one that transformers has for the type of
    the model (a text classifier before an image classifier).

    Args:
        folder: the folder of config.json, for messages.
        input_shape: not used: the names and shapes of the inputs are those of the records.
        classes: number of classes K. The head of a classifier must have as many.
        options: `config`: the contents of config.json (`embed_config`); others replace values of it.

    Raises:
        ConfigError: transformers is not installed, or config.json has no such value.
        ModelError: the type of the model is unknown, or has no classifier, or another number of classes.
    """
    where = f"hf:{folder}"
    body = _thaw(embed_config(where, options)[CONFIG])
    changed = {key: _thaw(value) for key, value in options.items() if key != CONFIG}
    _check_config({**body, **changed}, where)
    with offline():
        transformers = _import_transformers()
        config = _make_config(transformers, body, where)
        unknown = [key for key in changed if not hasattr(config, key)]
        if unknown:
            raise ConfigError(f"config.json of {with_article(config.model_type)} has no {unknown[0]!r}", where=where)
        config = _make_config(transformers, {**body, **changed}, where) if changed else config
        own, named = _find_class(transformers, config, body, where)
        if not named:
            config.num_labels = classes
        elif config.num_labels != classes:
            raise ModelError(
                f"wrong number of classes: config.json has {config.num_labels} labels, the data {classes} classes",
                where=where,
                hint="use the data that it was trained on; for another head, train it with num_labels first",
            )
        try:
            made: nn.Module = own(config)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, ImportError, OSError) as error:
            text = str(error).strip().partition("\n")[0][:200]
            raise ModelError(f"config.json gives no model ({type(error).__name__}: {text})", where=where) from error
    return made


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Within the block, libraries of Hugging Face do not reach for their servers."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    hub = sys.modules.get("huggingface_hub.constants")
    flag = getattr(hub, "HF_HUB_OFFLINE", None)
    if hub is not None:
        vars(hub)["HF_HUB_OFFLINE"] = True
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if hub is not None:
            vars(hub)["HF_HUB_OFFLINE"] = flag


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block, transformers writes no progress bars and no warnings."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"transformers cannot be imported ({error})", where="hf:", hint='pip install "expunge[hf]"'
        ) from error
    return transformers


def _check_config(body: Any, where: str) -> None:
    """Raise ModelError for keys that name code or weights of somebody else, at any depth."""
    if isinstance(body, Mapping):
        for key, what in _REFUSED.items():
            if body.get(key):
                raise ModelError(f"config.json has {key!r}: it names {what}", where=where,
                                 hint="save the model again as a class of transformers itself")  # fmt: skip
        for value in body.values():
            _check_config(value, where)
    elif isinstance(body, (list, tuple)):
        for value in body:
            _check_config(value, where)


def _make_config(transformers: Any, body: dict[str, Any], where: str) -> Any:
    kind = body.get("model_type")
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in mapping:
        raise ModelError(
            f"config.json has the model type {str(kind)[:60]!r}, which transformers {transformers.__version__} "
            "does not know",
            where=where,
        )
    try:
        return mapping[kind].from_dict({key: value for key, value in body.items() if key not in _DROPPED})
    except Exception as error:
        text = str(error).strip().partition("\n")[0][:200]
        raise ModelError(f"config.json cannot be used ({type(error).__name__}: {text})", where=where) from error


def _find_class(transformers: Any, config: Any, body: Mapping[str, Any], where: str) -> tuple[Any, bool]:
    """The class of the classifier, and whether config.json names it."""
    named = [name for name in body.get("architectures") or () if isinstance(name, str)]
    if named and named[0].endswith(_HEADS):
        found = getattr(transformers, named[0], None)
        if found is None or getattr(found, "config_class", None) is not type(config):
            raise ModelError(f"config.json names the class {named[0][:80]}, which transformers does not have for "
                             f"{with_article(config.model_type)}", where=where)  # fmt: skip
        return found, True
    for task in _HEADS:
        mapping = getattr(transformers, f"MODEL_FOR_{_snake(task)}_MAPPING", {})
        if type(config) in mapping:
            own = mapping[type(config)]
            return (own[0] if isinstance(own, (list, tuple)) else own), False
    raise ModelError(
        f"transformers has no classifier for {with_article(config.model_type)} "
        f"({', '.join(named) or 'no class is named'})",
        where=where,
        hint="use a model with a classification head",
    )


def _snake(task: str) -> str:
    """`ForSequenceClassification` as `SEQUENCE_CLASSIFICATION`."""
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in task.removeprefix("For"))
    return words.strip("_").upper()


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thaw(v) for key, v in value.items()}
    return [_thaw(v) for v in value] if isinstance(value, (list, tuple)) else value
