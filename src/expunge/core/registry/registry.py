"""A registry: entries of one kind by name, from this package, from installed plug-ins, and from custom code."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from expunge.core.errors import ConfigError, ExpungeError, unknown_name_hint, with_article
from expunge.core.show import repr_fields
from expunge.core.trust import find_module_file, is_beside, resolve

from .definitions import ClassDefinition, Definition, read_class, read_definitions, stamp
from .plugins import PlugIn, find_plug_ins, import_plug_in

#: The directory of the package `expunge`.
_ROOT = Path(__file__).resolve().parents[2]
Entry = TypeVar("Entry")


def is_reference(name: object) -> bool:
    """Whether a name has the form `package.module:name`.

    >>> is_reference("my_package.scores:flips"), is_reference("2:4"), is_reference("FT")
    (True, False, False)
    """
    if not isinstance(name, str):
        return False
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


@dataclasses.dataclass(frozen=True)
class _Registered(Generic[Entry]):
    """An entry with the function or class that was registered, and the facts that its decorator was given."""

    name: str
    entry: Entry
    definition: Any
    facts: Mapping[str, Any]

    @property
    def home(self) -> tuple[str, str]:
        return self.definition.__module__, self.definition.__qualname__


class Registry(Generic[Entry]):
    """Entries of one kind by name. Upper and lower case are not distinguished, and a name has one meaning.

    A name is looked up in this order: entries that were registered in this process; the modules of the package, of
    which only the one that defines the name is imported; and plug-ins: entry points of installed packages, in the group
    `expunge.<kinds>`. `package.module:name` names a registered function or class by its place, if the owner agreed to
    run that code (`expunge.core.trust`).

    Args:
        kind: what the entries are, in the singular, for messages.
        plural: the plural; also the group of entry points, `expunge.<plural>`.
        package: the package whose modules register entries.
        decorator: the name of the decorator that registers them.
        error: class of the errors of unknown names.
        hint: added to the hint of such errors.
        also: usual names of entries that have another one here, in lower case without spaces and signs, for such hints.

    Example:
        >>> registry = Registry("colour", "colours", package="expunge.core", decorator="register_colour")
        >>> def red():
        ...     return "red"
        >>> registry.add("Red", red(), red)
        >>> registry.get("red"), registry.names()
        ('red', ['Red'])
    """

    def __init__(
        self,
        kind: str,
        plural: str,
        *,
        package: str,
        decorator: str,
        error: type[ExpungeError] = ConfigError,
        hint: str = "",
        also: Mapping[str, str] | None = None,
    ) -> None:
        self.kind, self.plural, self.package, self.decorator = kind, plural, package, decorator
        self.error, self._hint, self._also = error, hint, dict(also or {})
        self.group = f"expunge.{plural}"
        self._entries: dict[str, _Registered[Entry]] = {}

    # ---- registering

    def add(self, name: str, entry: Entry, definition: Any, facts: Mapping[str, Any] | None = None) -> None:
        """Register an entry. The same function or class may be registered again (a module that is reloaded).

        Args:
            name: its name; printable, without a colon between identifiers.
            entry: what `get` returns.
            definition: the function or class that was registered.
            facts: what `describe` says of an entry whose source cannot be read.

        Raises:
            ConfigError: the name is registered by other code already, or cannot be a name.
        """
        where = f"{definition.__module__}.{definition.__qualname__}"
        if not isinstance(name, str) or not name or name != name.strip() or not name.isprintable():
            raise ConfigError(f"{name!r} cannot be the name of {with_article(self.kind)}", where=where)
        if is_reference(name):
            raise ConfigError(f"{name!r} is not a name: it has the form package.module:name", where=where)
        new = _Registered(name, entry, definition, dict(facts or {}))
        owner = self._find_owner(name.casefold())
        if owner is not None and owner != new.home:
            other = ".".join(owner)
            text = f"{with_article(self.kind)} named {name!r} is registered already, by {other}"
            raise ConfigError(text, where=where)
        self._entries[name.casefold()] = new

    def _find_owner(self, key: str) -> tuple[str, str] | None:
        """Module and qualified name of the code that has a name, if it is not a plug-in."""
        if key in self._entries:
            return self._entries[key].home
        built_in = self._index().get(key)
        return None if built_in is None else (built_in.module, built_in.qualname)

    def remove(self, name: str) -> None:
        """Remove an entry that was registered in this process; there is no error if there is none."""
        self._entries.pop(name.casefold(), None)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[None]:
        """Entries that are registered within the block are removed after it."""
        before = dict(self._entries)
        try:
            yield
        finally:
            for key in self._entries.keys() - before.keys() - self._index().keys():
                del self._entries[key]

    def find_registered(self, name: str) -> Entry | None:
        """The entry of a name or reference if it was registered in this process; None otherwise. Imports nothing."""
        if not is_reference(name):
            found = self._entries.get(name.casefold())
            return None if found is None else found.entry
        home = tuple(name.split(":"))
        return next((_rename(found.entry, name) for found in self._entries.values() if found.home == home), None)

    def list_homes(self) -> list[tuple[str, str]]:
        """Module and qualified name of everything that was registered in this process."""
        return [found.home for found in self._entries.values()]

    def is_registered(self, definition: object) -> bool:
        """Whether a function or class was registered in this process."""
        return any(found.definition is definition for found in self._entries.values())

    # ---- looking up

    def get(self, name: str) -> Entry:
        """Return an entry by name; case is ignored.

        Raises:
            TrustError: `package.module:name`, and the owner did not agree to run it; nothing was imported.
            ExpungeError: (of class `error`) the name is unknown (the hint has the nearest one), the code cannot be
                imported, or does not register what was named.
        """
        return self._find(name).entry

    def _find(self, name: str) -> _Registered[Entry]:
        if is_reference(name):
            return self._get_reference(name)
        key = name.casefold() if isinstance(name, str) else ""
        plug_in = self._plug_ins().get(key)
        if key in self._entries:
            return self._entries[key]
        built_in = self._index().get(key)
        if built_in is not None:
            importlib.import_module(built_in.module)
            if key in self._entries:
                return self._entries[key]
        if plug_in is not None:
            return self._load_plug_in(plug_in)
        found = self._find_beside(name) or self._also.get("".join(filter(str.isalnum, key)))
        hint = f"did you mean {found!r}?" if found else unknown_name_hint(name, self.names())
        raise self.error(f"unknown {self.kind} {name!r}", hint="; ".join(filter(None, (hint, self._hint))))

    def _find_beside(self, name: object) -> str | None:
        """`module:function`, if the name is that of an entry, or of the module, in a file that is not installed."""
        if not isinstance(name, str) or not is_beside(name):
            return None
        file = _find_file(name)
        own: tuple[Definition, ...] = ()
        with contextlib.suppress(ConfigError):  # not Python source
            own = () if file is None else read_definitions(file, stamp(file), name, self.decorator)
        return f"{name}:{own[0].qualname}" if own else None

    def __contains__(self, name: object) -> bool:
        """Whether a name is known, without importing anything; not for references."""
        key = name.casefold() if isinstance(name, str) else ""
        return key in self._entries or key in self._index() or key in self._plug_ins()

    def canonical(self, name: str) -> str:
        """The registered spelling of a known name; a reference and an unknown name are returned unchanged."""
        key = name.casefold()
        if key in self._entries:
            return self._entries[key].name
        if key in self._index():
            return self._index()[key].name
        return self._plug_ins()[key].name if key in self._plug_ins() else name

    def names(self) -> list[str]:
        """The known names, sorted without regard to case, of which upper case comes first.

        Raises:
            ConfigError: two installed packages, or a package and expunge, have the same name.
        """
        found = {key: plug_in.name for key, plug_in in self._plug_ins().items()}
        found |= {key: definition.name for key, definition in self._index().items()}
        found |= {key: registered.name for key, registered in self._entries.items()}
        return sorted(found.values())

    def _get_reference(self, name: str) -> _Registered[Entry]:
        definition = resolve(
            name, accepts=lambda found: True, wanted=f"a registered {self.kind}", error=self.error, entries=False
        )
        for found in self._entries.values():
            if found.definition is definition:
                return dataclasses.replace(found, entry=_rename(found.entry, name))
        raise self.error(
            f"is not a registered {self.kind}", where=name, hint=f"decorate it with @{self.decorator}(...)"
        )

    def _load_plug_in(self, plug_in: PlugIn) -> _Registered[Entry]:
        definition = import_plug_in(plug_in, self.error)
        for key, found in self._entries.items():
            if found.definition is definition:
                if key != plug_in.name.casefold():
                    raise self.error(
                        f"the plug-in is registered as {found.name!r}, but its entry point is named {plug_in.name!r}",
                        where=plug_in.where,
                    )
                return found
        raise self.error(
            f"the plug-in is not a registered {self.kind}", where=plug_in.where,
            hint=f"decorate it with @{self.decorator}(...)",
        )  # fmt: skip

    # ---- facts without imports

    def find_module(self, name: str) -> str | None:
        """The module that defines an entry, without importing it; None if it is not known."""
        if is_reference(name):
            return name.partition(":")[0]
        key = name.casefold() if isinstance(name, str) else ""
        if key in self._entries:
            return self._entries[key].home[0]
        built_in = self._index().get(key)
        if built_in is not None:
            return built_in.module
        plug_in = self._plug_ins().get(key)
        return None if plug_in is None else plug_in.module

    def list_modules(self) -> list[str]:
        """The modules of the package that register entries, without importing them."""
        return sorted({definition.module for definition in self._index().values()})

    def describe(self, name: str) -> Definition:
        """The definition of an entry as its source says, without importing it.

        An entry whose source cannot be read (defined in a notebook, for example) is described by its object.

        Raises:
            ExpungeError: (of class `error`) the name is unknown.
        """
        if (read := self.read_definition(name)) is not None:
            return read
        found = self._find(name)
        return Definition(found.name, *found.home, found.facts, inspect.getdoc(found.definition) or "")

    def describe_class(self, name: str) -> ClassDefinition | None:
        """The fields of a registered dataclass and the docstrings of its base classes, without importing it.

        Returns:
            None if the source does not say them: see `read_class`.

        Raises:
            ExpungeError: (of class `error`) the name is unknown.
        """
        definition = self.describe(name)
        return read_class(_find_file, definition.module, definition.qualname)

    def read_definition(self, name: str) -> Definition | None:
        """The definition of an entry as its source says; None if it is unknown or has no source. Imports nothing."""
        module = self.find_module(name)
        file = None if module is None or module == "__main__" else _find_file(module)
        if module is None or file is None:
            return None
        key, wanted = name.casefold(), name.partition(":")[2] if is_reference(name) else None
        for definition in read_definitions(file, stamp(file), module, self.decorator):
            if definition.qualname == wanted or (wanted is None and definition.name.casefold() == key):
                return definition
        return None

    def read_defaults(self, name: str) -> list[Any]:
        """The defaults of the fields of a registered dataclass, as far as its source says them. Imports nothing.

        They may name other entries, such as the inner method of a method around another.
        """
        definition = self.read_definition(name)
        found = None if definition is None else read_class(_find_file, definition.module, definition.qualname)
        return [] if found is None else [field.default for field in found.fields]

    def definitions(self) -> list[Definition]:
        """The definitions of all known names, in the order of `names`; plug-ins are read, not imported."""
        return [self.describe(name) for name in self.names()]

    def _index(self) -> Mapping[str, _BuiltIn]:
        """The entries of the package, by folded name."""
        return _read_package(self.package, self.decorator)

    def _plug_ins(self) -> dict[str, PlugIn]:
        """The plug-ins of this kind, by folded name.

        Raises:
            ConfigError: a name is that of a built-in entry, or of another package's.
        """
        index = self._index()
        found: dict[str, PlugIn] = {}
        for plug_in in find_plug_ins(self.group):
            key = plug_in.name.casefold()
            other = found[key].where if key in found else "expunge" if key in index else None
            if other is not None:
                raise ConfigError(
                    f"{with_article(self.kind)} named {plug_in.name!r} is registered already, by {other}",
                    where=plug_in.where,
                    hint="uninstall one of them, or set EXPUNGE_PLUGINS=0 to ignore all plug-ins",
                )
            found[key] = plug_in
        return found


@dataclasses.dataclass(frozen=True)
class _BuiltIn:
    """An entry of this package: its registered name, its module and the file, which is parsed when it is needed."""

    name: str
    module: str
    path: Path
    decorator: str

    __repr__ = repr_fields

    @property
    def qualname(self) -> str:
        """The name of the function or class."""
        found = read_definitions(self.path, stamp(self.path), self.module, self.decorator)
        return next((one.qualname for one in found if one.name == self.name), "")


@functools.cache
def _read_package(package: str, decorator: str) -> Mapping[str, _BuiltIn]:
    """Find what the modules of a package of expunge register, by folded name; once in a process.

    The files are searched for decorators at the start of a line and not parsed: that would take most of the time of
    commands that only need a few names.
    """
    call = re.compile(rf"""^@(?:\w+\.)*{decorator}\(\s*["']([^"'\n]+)["']""", re.MULTILINE)
    found: dict[str, _BuiltIn] = {}
    for path in sorted(_ROOT.joinpath(*package.split(".")[1:]).rglob("*.py")):
        parts = ["expunge", *path.relative_to(_ROOT).with_suffix("").parts]
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for match in call.finditer(path.read_text(encoding="utf-8")):
            new = _BuiltIn(match[1], module, path, decorator)
            other = found.setdefault(new.name.casefold(), new)
            if other is not new:
                raise ConfigError(f"{new.name!r} is registered twice, also by {other.module}", where=module)
    return found


def _rename(entry: Entry, name: str) -> Entry:
    """An entry that has its name as a field gets the reference, so that a file that records it can be read again."""
    if not dataclasses.is_dataclass(entry) or isinstance(entry, type):
        return entry
    if all(field.name != "name" for field in dataclasses.fields(entry)):
        return entry
    renamed: Any = dataclasses.replace(entry, name=name)
    return renamed


def _find_file(module: str) -> Path | None:
    """The source file of a module, or None; imports nothing."""
    if module.partition(".")[0] == "expunge":
        path = _ROOT.joinpath(*module.split(".")[1:])
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None) if loaded is not None else find_module_file(module)
    return Path(origin) if origin and origin.endswith(".py") and Path(origin).is_file() else None
