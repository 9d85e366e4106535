"""Write the configuration that was inferred: a YAML file with comments, which `expunge check` reads."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from expunge.core.errors import ConfigError, FileError
from expunge.core.files import PathLike
from expunge.core.show import repr_fields
from expunge.experiments.config.run_config import check_config

from .data import FoundData, infer_data, looks_like_data, read_json_file
from .lists import KINDS, find_list_kind, infer_list
from .model import FoundModel, find_channels, has_tokenizer, infer_model, looks_like_model

_HEADER = (
    "# Written by `expunge init`. `expunge check {name}` says what would work; docs/formats/config.md has all keys.\n"
)


@dataclasses.dataclass(frozen=True)
class Question:
    """Something that the user has to fill in, or to look at.

    Attributes:
        key: the key of the configuration.
        text: what it is about.
        line: the line to write; empty if it is only to be looked at.
    """

    key: str
    text: str
    line: str = ""

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class Draft:
    """A configuration that was inferred from files.

    Attributes:
        values: the configuration as plain values.
        questions: what is missing, and what to look at.
        path: the file that it was written to; empty before.
    """

    values: Mapping[str, Any]
    questions: tuple[Question, ...]
    path: str = ""

    __repr__ = repr_fields

    @property
    def is_complete(self) -> bool:
        """Whether nothing has to be filled in."""
        return not any(question.line for question in self.questions)

    def to_json(self) -> dict[str, Any]:
        """The draft as JSON values."""
        questions = [dataclasses.asdict(question) for question in self.questions]
        values = {"configuration": dict(self.values), "complete": self.is_complete, "questions": questions}
        return {"path": self.path, **values}

    def text(self) -> str:
        """What was written, and what to do next."""
        lines = [f"written: {self.path}" if self.path else self.render()]
        for question in self.questions:
            lines.append(f"{'fill in' if question.line else 'look at'} {question.key}: {question.text}")
            if question.line:
                lines.append(f"    {question.line}")
        lines.append(f"next: expunge check {self.path or 'run.yaml'}")
        return "\n".join(lines)

    def render(self, name: str = "run.yaml") -> str:
        """The YAML text, with a comment for each question above the section that it is about."""
        text = _HEADER.format(name=name)
        for section, value in self.values.items():
            asked = [question for question in self.questions if question.key.partition(".")[0] == section]
            text += "".join(map(_render_question, asked))
            dumped = yaml.safe_dump({section: value}, sort_keys=False, allow_unicode=True, width=110)
            for question in asked:
                if question.line:
                    dumped = _mark(dumped, question.key)
            text += dumped
        left = [question for question in self.questions if question.key.partition(".")[0] not in self.values]
        return text + "".join(map(_render_question, left))


def _render_question(question: Question) -> str:
    """A question as lines of comment."""
    text = f"# {'fill in' if question.line else 'look at'} {question.key}: {question.text}\n"
    return text + (f"#   {question.line}\n" if question.line else "")


def _mark(dumped: str, key: str) -> str:
    """The YAML text of a section, with a comment in the line of a key whose value is to be replaced."""
    section, _, name = key.partition(".")
    lines = dumped.splitlines()
    start = f"  {name}: " if name else f"{section}:"
    for at, line in enumerate(lines):
        if line.startswith(start):
            lines[at] += "  # fill in"
            break
    return "\n".join(lines) + "\n"


def draft_configuration(paths: Sequence[PathLike]) -> Draft:
    """Infer a configuration from data, weights, a split file and a list of ids.

    Data are a csv, npz, Parquet or Arrow file, a folder with one folder of images a class, or a saved HF dataset;
    weights a safetensors file, a folder that `save_pretrained` or expunge wrote. Nothing is downloaded or run.

    Args:
        paths: the files and folders, in any order.

    Raises:
        ConfigError: a path is of no known kind, there are no data, or two of a kind.
        FileError, DataError: a file is missing or cannot be read.

    >>> from pathlib import Path
    >>> from expunge.workflow import draft_configuration
    >>> _ = Path("people.csv").write_text("id,age,label\\na,31,yes\\nb,45,no\\n")
    >>> _ = Path("ids.txt").write_text("b\\n")
    >>> draft = draft_configuration(["people.csv", "ids.txt"])
    >>> draft.values["data"]["options"], draft.values["forget"]["file"]
    ({'path': 'people.csv', 'label': 'label', 'id': 'id', 'numeric': ['age']}, 'ids.txt')
    """
    sorted_paths = _sort_paths([Path(path) for path in paths])
    model = None if "model" not in sorted_paths else infer_model(sorted_paths["model"])
    tokenizer = sorted_paths.get("model") if model is not None and has_tokenizer(sorted_paths["model"]) else None
    if "data" not in sorted_paths:
        raise ConfigError("no data among the paths", where="init", hint="name a csv, npz or Parquet file, or a folder")
    channels = None if "model" not in sorted_paths else find_channels(sorted_paths["model"])
    data = infer_data(sorted_paths["data"], tokenizer=tokenizer, channels=channels)
    model = model or _choose_network(data)
    questions = [Question("data.options", doubt) for doubt in data.doubts]
    questions += [Question(key, "it could not be inferred", line) for key, line in data.missing.items()]
    questions += [Question(f"model.{key}", text, line) for key, text, line in model.questions]
    values: dict[str, Any] = {"data": {"source": data.source, "options": dict(data.options)}}
    split = sorted_paths.get("split") or model.split
    has_weights = bool(model.section.get("weights"))
    if (section := _choose_split(split, data, questions, has_weights=has_weights)) is not None:
        values["split"] = section
    values["model"] = dict(model.section)
    values["training"] = dict(model.training)
    if has_weights and not model.knows_recipe:
        questions.append(
            Question("training", "declared, not known: Retrain repeats it; set it to that of the training")
        )
    values["forget"] = _make_request(sorted_paths, data, questions, skips=split is None and not has_weights)
    values["method"] = {"name": "FT"}
    check_config(values)
    return Draft(values, tuple(questions))


def write_configuration(paths: Sequence[PathLike], output: PathLike = "run.yaml") -> Draft:
    """Infer a configuration and write it; an existing file is never replaced.

    Args:
        paths: see `draft_configuration`.
        output: the YAML file.

    Raises:
        FileError: the file exists, or cannot be written.
        ExpungeError: see `draft_configuration`.

    >>> from pathlib import Path
    >>> from expunge.workflow import check_run, write_configuration
    >>> from expunge.experiments import load_config
    >>> rows = "".join(f"p{n},{n % 7},{n % 3},{'yes' if n % 2 else 'no'}\\n" for n in range(200))
    >>> _ = Path("people.csv").write_text("id,age,visits,label\\n" + rows)
    >>> draft = write_configuration(["people.csv"])
    >>> draft.path, check_run(load_config("run.yaml")).usable
    ('run.yaml', True)
    """
    target = Path(output)
    if os.path.lexists(target):
        raise FileError("exists already, and is not replaced", where=target, hint="name another file with --output")
    draft = draft_configuration(paths)
    _write_new(target, draft.render(target.name))
    return dataclasses.replace(draft, path=str(target))


def _write_new(target: Path, text: str) -> None:
    """Write a file whole; it is an error if it exists by now."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=".init-", delete=False
        ) as file:
            file.write(text)
        try:
            os.chmod(file.name, 0o644)
            os.link(file.name, target)
        finally:
            os.unlink(file.name)
    except FileExistsError as error:
        raise FileError("exists already, and is not replaced", where=target, hint="name another file") from error
    except OSError as error:
        raise FileError(f"cannot be written ({error.strerror or error})", where=target) from error


def _sort_paths(paths: Sequence[Path]) -> dict[str, Path]:
    """The paths by what they are: `data`, `model`, `split`, and one of `ids`, `subjects` and `list` (of either)."""
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: path.suffix in (".csv", ".tsv")):  # a csv may be a list of ids
        if not path.exists():
            raise FileError("no such file or directory", where=path)
        kind = _find_kind(path, found)
        if kind is None:
            hint = "a checkpoint of torch.save: load it and write it with safetensors.torch.save_file"
            if path.suffix == ".py":
                hint = "code is not read: leave the file out, and write the function that makes the network into the "
                hint += f"configuration, model.name: {path.stem}:make"
            raise ConfigError("is neither data, weights, a split nor a list of ids", where=path, hint=hint)
        second = next((other for other in (KINDS if kind in KINDS else (kind,)) if other in found), None)
        if second is not None:
            raise ConfigError(
                f"a second path of this kind ({kind}): {found[second]}", where=path, hint="name one of them"
            )
        found[kind] = path
    return found


def _find_kind(path: Path, found: Mapping[str, Path]) -> str | None:
    if (
        path.suffix == ".json"
        and isinstance(body := read_json_file(path), dict)
        and body.get("kind") == "expunge.split"
    ):
        return "split"
    if path.suffix == ".txt":
        return "list"
    if path.suffix in (".csv", ".tsv") and (header := _read_header(path)) is not None:
        kind = find_list_kind(header, beside_data="data" in found)
        if kind is not None:
            return kind
    if looks_like_model(path):
        return "model"
    return "data" if looks_like_data(path) else None


def _read_header(path: Path) -> list[str] | None:
    try:
        with open(path, encoding="utf-8-sig") as file:
            line = file.readline().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return line.split(max((",", ";", "\t", "|"), key=line.count))


def _choose_network(data: FoundData) -> FoundModel:
    """A network to train, if there are no weights."""
    if data.form == "text":
        text = "a network that reads tokens is needed"
        line = "name: hf:FOLDER   # a folder with config.json"
        return FoundModel({"name": "mlp"}, {"recipe": "one-cycle"}, questions=(("name", text, line),))
    name = "small-cnn" if data.form == "image" else "mlp"
    note = "no weights were named, so this network is trained; name your own: package.module:factory, timm:NAME"
    return FoundModel({"name": name}, {"recipe": "one-cycle"}, questions=(("name", note, ""),))


def _choose_split(
    split: Path | None, data: FoundData, questions: list[Question], *, has_weights: bool
) -> dict[str, Any] | None:
    """The section `split`; None: the default, for data without subjects and a network that is trained.

    For weights without a saved split, it names a file that is still to be written, so that nothing runs before.
    """
    if split is not None:
        return {"file": str(split)}
    subjects = data.options.get("subject", data.options.get("subjects"))
    if has_weights:
        text = (
            "not known: which records the weights were trained on. A drawn split would leave records that they know in "
            "other parts, and these would not be forgotten. For weights that were trained on all records (or on the "
            "whole train part of the data), write split: {validation: 0, non_members: 0, test: 0}"
        )
        line = "file: split.json   # the split of the training; docs/tutorial.md writes one, under The split"
        questions.append(Question("split.file", text, line))
        return {"file": "split.json"}
    section: dict[str, Any] = {"seed": 0}
    if subjects is not None and "partition" not in data.options:
        section["group"] = "subject"
    elif subjects is not None:
        text = "group: subject keeps the records of a subject together; then no subject may be in both official parts"
        questions.append(Question("split", text))
    return section if "group" in section else None


def _make_request(
    paths: Mapping[str, Path], data: FoundData, questions: list[Question], *, skips: bool
) -> dict[str, Any]:
    """The section `forget`; `skips`: the split is drawn for a network that is trained, so no name has to be in D_r."""
    for kind in KINDS:
        if kind not in paths:
            continue
        found = infer_list(paths[kind], kind, data)
        if found.doubt:
            line = "by: ids   # or by: subjects; and a file with names of the data" if found.is_open else ""
            questions.append(Question("forget.by", found.doubt, line))
        request = {"by": found.by, "file": str(paths[kind])}
        if found.by == "subjects":
            text = "records of these subjects that are not in training are not forgotten; `check` counts them"
            questions.append(Question("forget", text))
        if not skips:
            return request
        listed = (
            "subjects without a record in training" if found.by == "subjects" else "records that are not in training"
        )
        questions.append(Question("forget.on_missing", f"listed {listed} are skipped; `check` names them"))
        return {**request, "on_missing": "skip"}
    text = "no list of ids was named: ten random records, as a trial"
    questions.append(Question("forget", text, "{by: ids, file: ids.txt}"))
    return {"by": "random", "count": 10}
