"""Hostile files: how each is made, what reads it, and what it must be answered with. SECURITY.md lists them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Hostile:
    """One hostile input.

    Attributes:
        format: the kind of file.
        name: what is hostile.
        make: writes it into a directory.
        read: reads it from there, as a user's command would.
        error: class of the error that must come.
        says: what its message must hold (a regular expression).
    """

    format: str
    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    error: str
    says: str


CASES: list[Hostile] = []


def hostile(format: str, name: str, read: Callable[[Path], object], error: str, says: str) -> Callable[..., Any]:
    """Register what a function writes."""

    def register(make: Callable[[Path], object]) -> Callable[[Path], object]:
        CASES.append(Hostile(format, name, make, read, error, says))
        return make

    return register


# ---- what reads


def config(at: Path) -> object:
    from expunge.experiments.config.run_config import load_config

    return load_config(at / "a.yaml")


def plan(at: Path) -> object:
    from expunge.experiments.config.plan import load_plan

    return load_plan(at / "a.yaml")


def check(at: Path) -> object:
    """`expunge check`; the first error among its findings is raised, so that all cases are judged alike."""
    from expunge.core import errors
    from expunge.workflow.check import check_run

    found = check_run(config(at))  # type: ignore[arg-type]
    for finding in found.findings:
        if finding.level == "error":
            raise errors.ModelError(finding.message, hint=finding.hint or None)
    return found


def trained(at: Path) -> object:
    from expunge.models import load_trained

    return load_trained(at / "made")


def blueprint(at: Path) -> object:
    """The architecture of a sent `trained.json`, built."""
    from expunge.models import Architecture

    body = json.loads((at / "architecture.json").read_text())
    return Architecture.from_json(body).build()


def split(at: Path) -> object:
    from expunge.core.split import Split

    return Split.load(at / "split.json")


def records(source: str, **options: Any) -> Callable[[Path], object]:
    def read(at: Path) -> object:
        from expunge.data import load_records

        return load_records(source, data_dir=at, **options)

    return read


def ids(at: Path) -> object:
    from expunge.data import read_ids

    return read_ids(at / "ids.txt")


def tensors(at: Path) -> object:
    from expunge.core.files import read_tensors

    return read_tensors(at / "a.safetensors")


npz = records("npz", path="a.npz")
table = records("table", path="a.csv", label="label", id="who", numeric=["x"])
idx = records("idx")
cifar = records("cifar10-binary")
mosaic = records("mnist")


# ---- YAML

CONFIG = "data: {source: digits}\nmodel: {name: mlp, options: %s}\ntraining: {recipe: quick}\n"


def yaml(text: str) -> Callable[[Path], object]:
    return lambda at: (at / "a.yaml").write_text(text)


def _laughs() -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


hostile("YAML", "aliases of aliases (billion laughs), 9^12 values", config, "ConfigError", "nodes; the limit is")(
    yaml(_laughs())
)
hostile("YAML", "one list of 5,000 items, 4,000 aliases of it", config, "ConfigError", "nodes; the limit is")(
    yaml(f"a: &a [{'1,' * 5000}]\nb: [{'*a,' * 4000}]")
)
hostile("YAML", "5,000 nested brackets", config, "ConfigError", "nested deeper than 40")(yaml("[" * 5000))
hostile("YAML", "2,000 nested mappings", config, "ConfigError", "nested deeper than 40")(
    yaml("".join(f"{' ' * i}a:\n" for i in range(900)))
)
hostile("YAML", "an alias inside of what it stands for", config, "ConfigError", "a node that contains it")(
    yaml("a: &x [*x]")
)
hostile("YAML", "a duplicate key", config, "ConfigError", "'seed' is a duplicate")(yaml("seed: 1\nseed: 2"))
hostile("YAML", "a file of 2 MiB", config, "ConfigError", "bytes; the limit is 1,048,576")(yaml("# " + "a" * 2**21))
hostile("YAML", "100,000 items in 200 kB", config, "ConfigError", "nodes; the limit is 50,000")(
    yaml(f"a: [{'1,' * 100_000}]")
)
hostile("YAML", "an integer of 5,000 digits", config, "ConfigError", "outside the 64-bit integers")(
    yaml("seed: " + "9" * 5000)
)
hostile("YAML", "a scalar of 900 kB where a number is due", config, "ConfigError", "seed: ")(
    yaml(CONFIG % "{}" + "seed: " + "x" * 900_000)
)
hostile("YAML", "a tag that names a function (`!!python/object/apply`)", config, "ConfigError", "seed: ")(
    yaml(CONFIG % "{}" + "seed: !!python/object/apply:os.mkdir [made]")
)
hostile("YAML", "half of a character (`\\ud800`)", config, "ConfigError", "half of a surrogate pair")(
    yaml('data: "\\ud800"')
)
hostile("YAML", "bytes that are not UTF-8", config, "ConfigError", "UTF-8")(
    lambda at: (at / "a.yaml").write_bytes(b"a: \xff\xfe")
)
hostile("YAML", "a pipe in the place of the file", config, "ConfigError", "it is a pipe")(
    lambda at: os.mkfifo(at / "a.yaml")
)
hostile("YAML", "a directory in the place of the file", config, "ConfigError", "it is a directory")(
    lambda at: (at / "a.yaml").mkdir()
)
hostile("YAML", "a link to a device that never ends (`/dev/zero`)", config, "ConfigError", "it is a device")(
    lambda at: (at / "a.yaml").symlink_to("/dev/zero")
)
PLAN = "name: a\nbase:\n  data: {source: digits}\n  model: {name: mlp}\n  training: {recipe: quick}\n" \
    "  forget: {by: class, index: 0}\n  method: {name: Retrain}\ngrid:\n"  # fmt: skip
hostile("YAML plan", "nine axes of ten values: 10^9 cells", plan, "ConfigError", "1,000,000,000 cells; the limit is")(
    yaml(PLAN + "".join(f"  model.options.a{i}: [0,1,2,3,4,5,6,7,8,9]\n" for i in range(9)))
)
hostile("YAML plan", "3,000 axes of one value", plan, "ConfigError", "the limit is 64")(
    yaml(PLAN + "".join(f"  model.options.a{i}: [0]\n" for i in range(3_000)))
)
hostile("YAML plan", "a base file that is a pipe", plan, "ConfigError", "it is a pipe")(
    lambda at: (os.mkfifo(at / "b.yaml"), (at / "a.yaml").write_text("name: a\nbase: b.yaml\ngrid: {seed: [0, 1]}\n"))
)

# ---- options of networks, in a configuration and in a sent model

hostile("YAML", "`widths: [1000000000]`", check, "ModelError", "parameters; the limit is")(
    yaml(CONFIG % "{widths: [1000000000]}")
)
hostile("YAML", "`widths` of 30,000 layers", check, "ModelError", "at most 2,000 are built")(
    yaml(CONFIG % ("{widths: [" + "1," * 30_000 + "]}"))
)


def architecture(name: str, options: Any, shape: Any, classes: Any) -> Callable[[Path], object]:
    text = json.dumps({"name": name, "options": options, "input_shape": shape, "classes": classes})
    return lambda at: (at / "architecture.json").write_text(text)


GIGA = 10**9
for _name, _options, _shape, _classes, _error, _says in (
    ("mlp", {"widths": [GIGA]}, [64], 10, "ModelError", "75,000,000,010 parameters"),
    ("mlp", {"widths": [2**31 - 1] * 9}, [64], 10, "ModelError", "cannot be built"),
    ("mlp", {"widths": [10**400]}, [64], 10, "ConfigError", "widths"),
    ("mlp", {}, [10**6, 10**6], 10, "ModelError", "parameters"),
    ("mlp", {}, [64], 10**12, "ModelError", "classes"),
    ("mlp", {}, [64], float("inf"), "ModelError", "cannot be read"),
    ("small-cnn", {"widths": [1] * 10**5}, [1, 8, 8], 10, "ConfigError", "at most 2,000"),
    ("small-cnn", {}, [1, GIGA, GIGA], 10, "ModelError", "a layer returns"),
    ("resnet20", {"depth": 6 * GIGA + 2}, [3, 32, 32], 10, "ConfigError", "depth"),
    ("resnet20", {"width": 10**6}, [3, 32, 32], 10, "ModelError", "parameters"),
    ("resnet18", {"width": GIGA}, [3, 32, 32], 10, "ModelError", "cannot be built|parameters"),
    ("alexnet", {"hidden": GIGA}, [3, 32, 32], 10, "ModelError", "parameters"),
    ("cnn1d", {"kernel": GIGA + 1}, [9, 128], 10, "ModelError", "parameters"),
    ("vgg16-bn", {}, [GIGA, 32, 32], 10, "ModelError", "parameters"),
    ("lenet5", {}, [GIGA, 32, 32], 10, "ModelError", "parameters"),
):
    _text = {key: "..." if len(str(value)) > 40 else value for key, value in _options.items()}
    _what = f"{_name} {_text or ''} for {_shape}, {_classes} classes".replace("  ", " ")
    hostile("trained.json", _what, blueprint, _error, _says)(architecture(_name, _options, _shape, _classes))

# ---- JSON


def text_file(name: str, text: str) -> Callable[[Path], object]:
    def write(at: Path) -> None:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(text)

    return write


def sparse(name: str, size: int, head: bytes = b"") -> Callable[[Path], object]:
    """A file with a hole: it takes no room on the disk and reads as zeros."""

    def write(at: Path) -> None:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        with open(at / name, "wb") as file:
            file.write(head)
            file.truncate(size)

    return write


def pipe(name: str) -> Callable[[Path], object]:
    def write(at: Path) -> None:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(at / name)

    return write


HEAD = '{"kind": "expunge.split", "schema_version": 2, '
hostile("JSON", "nested 100,000 deep", trained, "FileError", "nested deeper than 100")(
    text_file("made/trained.json", '{"a":' * 100_000 + "1" + "}" * 100_000)
)
hostile("JSON", "nested 500 deep", split, "FileError", "nested deeper than 100")(
    text_file("split.json", HEAD + '"origin": ' + "[" * 500 + "]" * 500 + "}")
)
hostile("JSON", "a duplicate key", split, "FileError", "duplicate key 'retain'")(
    text_file("split.json", HEAD + '"retain": ["a"], "retain": ["b"]}')
)
hostile("JSON", "an integer of 4,000 digits", split, "FileError", "integer of 4000 digits")(
    text_file("split.json", HEAD + f'"seed": {"9" * 4000}}}')
)
hostile("JSON", "half of a character (`\\ud800`)", split, "FileError", "complete characters")(
    text_file("split.json", HEAD + '"retain": ["\\ud800"]}')
)
hostile("JSON", "a file of 1 TB", split, "FileError", "bytes; the limit is 67,108,864")(sparse("split.json", 10**12))
hostile("JSON", "a record id of 1 MB", split, "DataError", "1,000,000 characters")(
    text_file(
        "split.json",
        HEAD
        + ", ".join(f'"{p}": ["{"a" * 10**6}"]' for p in ("retain", "forget", "validation", "test", "non_members"))
        + "}",
    )
)
hostile("JSON", "a pipe in the place of the file", trained, "FileError", "it is a pipe")(pipe("made/trained.json"))

# ---- lists of record ids

hostile("record ids", "a pipe in the place of the file", ids, "RequestError", "it is a pipe")(pipe("ids.txt"))
hostile("record ids", "a file of 1 TB", ids, "RequestError", "bytes; the limit is 67,108,864")(
    sparse("ids.txt", 10**12)
)
