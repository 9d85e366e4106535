"""The section `data`: records."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expunge.core.hashing import hash_array, hash_json
from expunge.core.split import PLANTINGS

if TYPE_CHECKING:
    from expunge.data import Records

#: The last records that were read, with the fingerprint of their source; and with what was planted in them.
_last: dict[str, Records] = {}
_planted: dict[str, Records] = {}


def _data(module: str = "registry") -> Any:
    # By name, not by an import statement: the reader's code is part of the key of the data stage alone, whose output is
    # a hash of the records. A changed reader that reads the same records therefore recomputes no other stage.
    return importlib.import_module(f"expunge.data.{module}")


def check_source(section: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the source exists and takes these options; reads no data."""
    _data().get_source(section["source"]).check_options(section["options"])


def add_planting(
    section: Mapping[str, Any], forget: Mapping[str, Any] | None, split: Mapping[str, Any]
) -> dict[str, Any]:
    """The section `data` with the key `planted`, if the section `forget` changes the training data.

    Records are planted for a split. So the key has both sections.

    Args:
        section: the section `data`.
        forget: the section `forget`, or None.
        split: the section `split`.
    """
    if forget is None or forget["by"] not in PLANTINGS:
        return dict(section)
    return {**section, "planted": {"forget": dict(forget), "split": dict(split)}}


def read_records(section: Mapping[str, Any], directory: str | None) -> Records:
    """Read the records of the section `data`, and plant what its key `planted` describes (`add_planting`).

    The last records stay in memory: the next stage reads the same. They are read again if the options or the files of
    the source changed (see `expunge.data.source_fingerprint`).

    Args:
        section: the keys `source` and `options`, and `planted` if something is planted.
        directory: the data directory, or None.

    Raises:
        ConfigError, DataError: see `expunge.data.load_records`.
        RequestError: it cannot be planted; see `expunge.data.planting.kinds`.
    """
    data = _data()
    name = hash_json([data.source_fingerprint(section["source"], directory, **section["options"]), directory])
    if name not in _last:
        drop_records()
        _last[name] = data.load_records(section["source"], data_dir=directory, **section["options"])
    planted = section.get("planted")
    return _last[name] if planted is None else _plant(_last[name], planted)


def _plant(records: Records, planted: Mapping[str, Any]) -> Records:
    """The records with what is planted; the last ones stay in memory."""
    from .split import make_split

    split = make_split(planted["split"], records)
    name = hash_json([planted["forget"], split.hash, records.hash])
    if name not in _planted:
        _planted.clear()
        _planted[name] = _data("planting.kinds").plant(records, split, planted["forget"])
    return _planted[name]


def drop_records() -> None:
    """Forget the records in memory, so that the next call of `read_records` reads them again."""
    _last.clear()
    _planted.clear()


def hash_records(records: Records, section: Mapping[str, Any] | None = None, directory: str | None = None) -> str:
    """Hash of everything that a stage may use: features, labels, ids, subjects, partition, columns, normalisation.

    The features of a stream are hashed if it knows their hash, or that of its files. Otherwise the hash covers the
    fingerprint of the source, so that an edited file, or edited code of the dataset, is other data.

    Args:
        records: the records.
        section: the keys `source` and `options` that the records were read by; None for records of no source.
        directory: the data directory, or None.
    """
    body: dict[str, Any] = {"records": records.hash, "name": records.name}
    known = (getattr(records.stream, name, None) for name in ("features_hash", "content_hash"))
    if section is not None and records.stream is not None and not any(known):
        body["source"] = _data().source_fingerprint(section["source"], directory, **section["options"])
    body["columns"] = {name: hash_array(values) for name, values in records.columns.items()}
    if records.partition is not None:
        body["partition"] = hash_array(records.partition)
    if records.normalisation is not None:
        statistics = records.normalisation
        body["normalisation"] = [list(statistics.mean), list(statistics.std), statistics.origin]
    return hash_json(body)
