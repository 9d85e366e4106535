"""What the hash of a source file is made of: the file is parsed once, and its facts can be kept in a file of the store.

Facts are kept by the SHA-256 of the file's bytes, so an edited file is parsed again. The kept facts are valid for one
version of Python (syntax trees differ) and for one text of this module; otherwise they are not used.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError, ExpungeError
from expunge.core.files import read_json, write_json
from expunge.core.hashing import hash_bytes
from expunge.core.show import repr_fields

KIND, SCHEMA_VERSION = "expunge.module_facts", 1
#: Files whose facts are kept; those used last stay.
MOST_FILES = 2000
#: Fields with lists of statements, in the order of the syntax tree's fields.
_BLOCKS = ("body", "cases", "handlers", "orelse", "finalbody")
Stamp = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ModuleFacts:
    """Facts of one source file.

    Attributes:
        digest: hash of the syntax tree without docstrings and without imports for type checkers.
        imports: module and name of every import in that tree; the name of `import x` is empty. A relative module starts
            with one dot a level, as in the source.
        origins: name to module and name of its first `from module import name`, those for type checkers included.
        lazy: whether the module defines `__getattr__`.
    """

    digest: str
    imports: tuple[tuple[str, str], ...]
    origins: dict[str, tuple[str, str]]
    lazy: bool

    __repr__ = repr_fields

    def to_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "imports": " ".join(f"{module}:{name}" for module, name in self.imports),
            "origins": " ".join(f"{key}:{module}:{name}" for key, (module, name) in self.origins.items()),
            "lazy": self.lazy,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> ModuleFacts:
        imports = [item.split(":") for item in body["imports"].split()]
        origins = [item.split(":") for item in body["origins"].split()]
        return cls(
            body["digest"],
            tuple((module, name) for module, name in imports),
            {key: (module, name) for key, module, name in origins},
            body["lazy"],
        )


#: Facts by the SHA-256 of the file: read from a store, or found by this process.
_known: dict[str, ModuleFacts] = {}
#: Stores whose facts were read, and the hashes of the files in them.
_read: dict[Path, set[str]] = {}


@functools.lru_cache(maxsize=4096)
def read_module_facts(path: str, stamp: Stamp) -> ModuleFacts:
    """Read the facts of a source file.

    Args:
        path: the file.
        stamp: its time of modification in nanoseconds and its size (`get_stamp`).

    Raises:
        ConfigError: the file is not Python source.
    """
    data = Path(path).read_bytes()
    content = hashlib.sha256(data).hexdigest()
    facts = _known.get(content)
    if facts is None:
        try:
            facts = find_module_facts(data.decode("utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(f"is not Python source ({error})", where=path) from error
    else:
        del _known[content]
    _known[content] = facts  # the last in order is the one used last
    return facts


def find_module_facts(text: str) -> ModuleFacts:
    """Parse the text of a module and find its facts."""
    tree = ast.parse(text)
    origins: dict[str, tuple[str, str]] = {}
    for node in _list_statements(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                origins.setdefault(alias.asname or alias.name, (_get_module(node), alias.name))
    lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
    imports: dict[tuple[str, str], None] = {}
    for node in _list_statements(tree):  # blocks are changed before their statements are visited
        _remove_documentation(node)
        if isinstance(node, ast.Import):
            imports.update(((alias.name, ""), None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.update(((_get_module(node), alias.name), None) for alias in node.names)
    digest = hash_bytes(ast.dump(tree, annotate_fields=False).encode())
    return ModuleFacts(digest, tuple(imports), origins, lazy)


def _get_module(node: ast.ImportFrom) -> str:
    return "." * node.level + (node.module or "")


def _list_statements(tree: ast.AST) -> Iterator[ast.AST]:
    """The module and its statements, breadth first; expressions contain none."""
    todo = deque([tree])
    while todo:
        node = todo.popleft()
        yield node
        for field in node._fields:
            if field in _BLOCKS:
                block = getattr(node, field)
                if isinstance(block, list):
                    todo.extend(block)


def _remove_documentation(node: ast.AST) -> None:
    """Remove the docstring of a module, class or function, and the body of `if TYPE_CHECKING`."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
            node.body = node.body[1:] or [ast.Pass()]
    elif isinstance(node, ast.If) and isinstance(node.test, (ast.Name, ast.Attribute)):
        name = node.test.id if isinstance(node.test, ast.Name) else node.test.attr
        if name == "TYPE_CHECKING":
            node.body = [ast.Pass()]


@functools.cache
def _version() -> str:
    """Of Python and of this module; facts of another version are not used."""
    own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return f"{sys.implementation.cache_tag} {own}"


def load_module_facts(path: Path) -> None:
    """Use the facts that `save_module_facts` wrote; a missing or damaged file, or another version, is ignored."""
    if path in _read:
        return
    _read[path] = set()
    try:
        body = read_json(path, KIND, SCHEMA_VERSION)
        found = {key: ModuleFacts.from_json(facts) for key, facts in body["files"].items()}
        if body["version"] != _version():
            return
    except (ExpungeError, KeyError, TypeError, ValueError, AttributeError):
        return
    _read[path] = set(found)
    for key, facts in found.items():
        _known.setdefault(key, facts)


def save_module_facts(path: Path) -> None:
    """Write the facts of this process, if the file has not all of them; errors are ignored, since the file only helps.

    Args:
        path: the file; its directory exists, or nothing is written.
    """
    if not path.parent.is_dir() or set(_known) <= _read.get(path, set()):
        return
    kept = dict(list(_known.items())[-MOST_FILES:])
    files = {key: facts.to_json() for key, facts in kept.items()}
    with contextlib.suppress(ExpungeError):
        write_json(path, KIND, SCHEMA_VERSION, {"version": _version(), "files": files})
        _read[path] = set(_known)
