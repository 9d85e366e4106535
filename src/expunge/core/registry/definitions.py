"""Read what a module registers from its source, without importing it: names, literal facts, docstrings."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError
from expunge.core.show import repr_fields

#: Modification time and size: a changed file is read again.
Stamp = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Definition:
    """A registered function or class, as its source says.

    Attributes:
        name: the registered name.
        module: the module that defines it.
        qualname: name of the function or class in its module.
        facts: the keyword arguments of the decorator that are literals (`guarantee="empirical"`).
        doc: the docstring, without indentation; empty if there is none.
    """

    name: str
    module: str
    qualname: str
    facts: Mapping[str, Any]
    doc: str

    __repr__ = repr_fields

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, in one line."""
        return " ".join(self.doc.partition("\n\n")[0].split())


def stamp(path: Path) -> Stamp:
    """The modification time and the size of a file."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=1024)
def parse_file(path: Path, stamp: Stamp) -> ast.Module:
    """Parse a Python file, once for each stamp.

    Raises:
        ConfigError: it is not Python source.
    """
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"is not Python source ({error})", where=path) from error


@functools.lru_cache(maxsize=1024)
def read_definitions(path: Path, stamp: Stamp, module: str, decorator: str) -> tuple[Definition, ...]:
    """Read the definitions that a file registers with `@decorator("name", ...)`, at module level, in order."""
    if decorator not in path.read_text(encoding="utf-8", errors="replace"):
        return ()
    found = []
    for node in parse_file(path, stamp).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and _called_name(call) == decorator and call.args:
                name = _literal(call.args[0])
                if isinstance(name, str):
                    pairs = ((keyword.arg, _literal(keyword.value)) for keyword in call.keywords)
                    facts = {key: value for key, value in pairs if key is not None and value is not NOT_LITERAL}
                    doc = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
                    found.append(Definition(name, module, node.name, facts, doc))
    return tuple(found)


def _called_name(call: ast.Call) -> str:
    function = call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


#: The value of an expression that is not a literal.
NOT_LITERAL: Any = object()


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return NOT_LITERAL
