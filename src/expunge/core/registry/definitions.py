"""Read what a module registers from its source, without importing it: names, literal facts, docstrings, fields."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
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


@dataclasses.dataclass(frozen=True)
class FieldDefinition:
    """A field of a dataclass, as its source says.

    Attributes:
        name: its name.
        type: its annotation, as written.
        default: its default.
    """

    name: str
    type: str
    default: Any

    __repr__ = repr_fields


@dataclasses.dataclass(frozen=True)
class ClassDefinition:
    """A dataclass with its base classes, as their sources say.

    Attributes:
        fields: all fields, those of base classes first, in the order of `dataclasses.fields`.
        docs: the docstrings of the base classes and of the class itself, the class last.
    """

    fields: tuple[FieldDefinition, ...]
    docs: tuple[str, ...]

    __repr__ = repr_fields


#: Base classes that have no fields and no source to read.
_PLAIN_BASES = {"abc.ABC", "object", "typing.Protocol", "typing.Generic"}
#: How many imports and base classes are followed.
_DEEPEST = 20


def read_class(
    find_file: Callable[[str], Path | None], module: str, qualname: str, depth: int = 0
) -> ClassDefinition | None:
    """Read the fields of a dataclass and the docstrings of its bases from source; nothing is imported.

    Args:
        find_file: finds the source file of a module.
        module: the module that defines or imports the class.
        qualname: the name of the class in it.
        depth: how many imports and base classes were followed so far.

    Returns:
        None if the source does not say it: a default that is no literal, a base class whose source is not found, or
        several base classes with fields.
    """
    file = find_file(module)
    if file is None or depth > _DEEPEST:
        return None
    tree = parse_file(file, stamp(file))
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == qualname), None)
    if node is None:
        place = _find_import(tree, module, file, qualname)
        return None if place is None else read_class(find_file, *place, depth + 1)
    docs: list[str] = []
    fields: dict[str, FieldDefinition] = {}
    for base in node.bases:
        found = _read_base(find_file, tree, module, file, base, depth)
        if found is None or (fields and found.fields):
            return None
        fields |= {field.name: field for field in found.fields}
        docs.extend(found.docs)
    if any(_is_dataclass(decorator) for decorator in node.decorator_list):
        own = _read_own_fields(node)
        if own is None:
            return None
        fields |= own
    docs.append(inspect.cleandoc(ast.get_docstring(node, clean=False) or ""))
    return ClassDefinition(tuple(fields.values()), tuple(docs))


def _is_dataclass(decorator: ast.expr) -> bool:
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(function) in ("dataclass", "dataclasses.dataclass")


def _read_own_fields(node: ast.ClassDef) -> dict[str, FieldDefinition] | None:
    found = {}
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        annotation = ast.unparse(line.annotation)
        if annotation.startswith(("ClassVar", "typing.ClassVar")):
            continue
        value = NOT_LITERAL if line.value is None else _literal(line.value)
        if value is NOT_LITERAL or "InitVar" in annotation:
            return None
        found[line.target.id] = FieldDefinition(line.target.id, annotation, value)
    return found


def _read_base(
    find_file: Callable[[str], Path | None], tree: ast.Module, module: str, file: Path, base: ast.expr, depth: int
) -> ClassDefinition | None:
    name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
    first, _, rest = name.partition(".")
    if name in _PLAIN_BASES:
        return ClassDefinition((), ())
    if rest:  # module.Class
        place = _find_import(tree, module, file, first)
        if place is None:
            return None
        return read_class(find_file, ".".join(place), rest, depth + 1)
    place = _find_import(tree, module, file, name)
    if place is not None and ".".join(place) in _PLAIN_BASES:
        return ClassDefinition((), ())
    return read_class(find_file, *(place or (module, name)), depth + 1)


def _find_import(tree: ast.Module, module: str, file: Path, name: str) -> tuple[str, str] | None:
    """The module and the name that `from module import name` took a name from; also those for type checkers."""
    is_package = file.name == "__init__.py"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    parts = module.split(".")
                    above = parts[: len(parts) - node.level + is_package] if node.level else []
                    return ".".join([*above, *([node.module] if node.module else [])]), alias.name
    return None
