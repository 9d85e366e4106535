"""The check of every `package.module:name` before it is imported.

A file (a configuration, a plan, `trained.json`, a weights file) only names code. The code runs if the owner agreed:

* the module is in the directory of the configuration or plan that the owner started, and that file itself names it;
* its top-level package was named by `--trust`, by the user's trust file, or by `trust=` in Python;
* a Python caller gave the same name as an argument earlier in this process.

A Python caller agrees to a name by giving it (`architecture("my_network:make", ...)`), outside of a run that was
started from a file. In both cases known libraries are never called, and neither is what the named package does not
define itself. Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import importlib
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from expunge.core.errors import ConfigError, ExpungeError, TrustError, unknown_name_hint, with_article
from expunge.core.show import repr_fields

from .never import find_loader, is_never_called, is_standard
from .places import FoundModule, find_module, is_in_python, is_same_file, load_module

#: Functions of expunge itself that its model directories name; a configuration has no reason to.
ENTRIES = frozenset({"expunge.patches.trained_state:build"})
#: Modules whose classes may give a custom class its constructor.
_PLAIN_BASES = (
    "torch.nn", "torch.utils.data", "builtins", "typing", "abc", "collections", "expunge.models",
    "expunge.sparsity.masks.granularity",
)  # fmt: skip

_AGREED: dict[str, FoundModule] = {}
_WRITE_OWN = "write a custom function that makes what is needed and nothing else"


@dataclasses.dataclass(frozen=True)
class Trust:
    """What the owner agreed to run.

    Attributes:
        packages: top-level packages that files may name.
        here: those of them that are also searched in the current directory: named on this command line or in this call.
        folder: the directory of the configuration or plan that the owner started, or None.
        names: the names in that file; their modules may be in `folder`.
        command_line: whether it was given on a command line: hints then name `--trust`, and else `trust=[...]`.

    Raises:
        ConfigError: a package is not a plain top-level name, or is one that is never called.
    """

    packages: tuple[str, ...] = ()
    here: tuple[str, ...] = ()
    folder: str | None = None
    names: frozenset[str] = frozenset()
    command_line: bool = False

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        for name in (*self.packages, *self.here):
            if not isinstance(name, str) or not _is_plain(name):
                hint = f"for example {self.describe('my_package')}; it covers the modules inside"
                raise ConfigError(f"a package is trusted by its top-level name, not {name!r}", where="trust", hint=hint)
            if is_never_called(name):
                raise ConfigError(f"{name} can read and run anything, so it is never called", where=f"trust {name}")

    @classmethod
    def from_value(cls, given: Trust | Sequence[str]) -> Trust:
        """Convert the argument `trust=`: package names, or a `Trust`.

        Raises:
            ConfigError: a single string, or a name that cannot be trusted.
        """
        if isinstance(given, str):
            raise ConfigError("a sequence of package names is needed, not one string", where="trust")
        return given if isinstance(given, Trust) else cls(tuple(given), tuple(given))

    def describe(self, package: str) -> str:
        """How a package is trusted: the flag of a command, or the argument of a Python function."""
        return f"--trust {package}" if self.command_line else f"trust=[{package!r}]"

    def for_file(self, path: str | os.PathLike[str], values: Iterable[Any]) -> Trust:
        """Return this trust, extended by the file `path` that the owner started and that contains `values`."""
        folder = os.path.dirname(os.path.abspath(path))
        return dataclasses.replace(
            self, folder=folder, names=frozenset(name for value in values for name in _find_names(value))
        )

    def merge(self, inner: Trust) -> Trust:
        """Merge with the trust of an inner block; the folder is the inner one if there is one."""
        packages, here = (tuple(dict.fromkeys(a + b)) for a, b in
                          ((self.packages, inner.packages), (self.here, inner.here)))  # fmt: skip
        last = self if inner.folder is None else inner
        return Trust(packages, here, last.folder, last.names, self.command_line or inner.command_line)


_ACTIVE: contextvars.ContextVar[Trust | None] = contextvars.ContextVar("expunge trust", default=None)


@contextlib.contextmanager
def trusting(trust: Trust | Sequence[str]) -> Iterator[None]:
    """Within the block, names come from files: they are called only if `trust` or an enclosing block allows it."""
    outer = _ACTIVE.get() or Trust()
    token = _ACTIVE.set(outer.merge(Trust.from_value(trust)))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def permit(name: str, *, error: type[ExpungeError], entries: bool = False) -> None:
    """Raise unless the owner agreed to this name from a file. Nothing is imported.

    Args:
        name: of the form `package.module:name`.
        error: class of errors other than a refusal.
        entries: whether the file is one of a model directory, which may name `ENTRIES`.

    Raises:
        TrustError: the owner did not agree to it, or it is never called; the message names the module and its file.
        ExpungeError: (of class `error`) there is no such module, or the string is not such a name.
    """
    _check_permitted(name, error, from_file=True, entries=entries)


def remember(names: Iterable[str]) -> None:
    """Record those of the names that the owner agreed to within `trusting`, for later calls in this process.

    For names that are not needed yet, such as the criterion that a loaded mask records. The others are left out.
    """
    for name in names:
        with contextlib.suppress(ExpungeError):
            permit(name, error=ConfigError)


def resolve(
    name: str, *, accepts: Callable[[type], bool], wanted: str, error: type[ExpungeError], entries: bool = False
) -> Callable[..., Any]:
    """Import the function or class that `package.module:name` names, after checking that it may be called.

    Args:
        name: given by a Python caller, or, within `trusting`, by a file.
        accepts: whether a class has the expected type.
        wanted: the expected type in words: "a torch.nn.Module".
        error: class of errors other than a refusal.
        entries: whether the name may be one of `ENTRIES`.

    Raises:
        TrustError: see `permit`; or the object was defined in another package.
        ExpungeError: (of class `error`) there is no such module or attribute, it is not a function or accepted class,
            or importing failed.
    """
    found = _check_permitted(name, error, from_file=False, entries=entries)
    module_name, _, attribute = name.partition(":")
    try:
        module = load_module(found)
    except ModuleNotFoundError as failure:
        what = f"no module named {failure.name!r} can be imported"
        raise error(what, where=name, hint=f"{module_name} ({found.origin}) imports it: install it") from failure
    except ExpungeError:
        raise
    except (Exception, SystemExit, GeneratorExit) as failure:
        raise error(f"importing {module_name} failed ({type(failure).__name__}: {failure})", where=name) from failure
    made = _get_attribute(module, attribute, name, error)
    function = made.__func__ if inspect.ismethod(made) and inspect.isclass(made.__self__) else made
    if not inspect.isclass(function) and not inspect.isfunction(function):
        raise error(f"{attribute} is {with_article(type(made).__name__)}, not a function or class", where=name)
    home = str(getattr(function, "__module__", None))
    if not _in_same_package(home, module_name):
        raise TrustError(
            f"{attribute} was defined in {home}, not in {module_name}: only what the package itself defines is called",
            where=name,
            hint=f"write a function in {module_name} that calls it",
        )
    _check_origin(function, attribute, name)
    if inspect.isclass(function) and not accepts(function):
        raise error(f"{attribute} is a class, but not {wanted}", where=name)
    result: Callable[..., Any] = made
    return result


@contextlib.contextmanager
def make_importable(name: str) -> Iterator[None]:
    """Within the block, the code of `name` can import modules from its own directory, after all installed modules."""
    found = _AGREED.get(name)
    with contextlib.nullcontext() if found is None else found.on_path():
        yield


def find_module_file(module: str) -> str | None:
    """Find the file of a module, or None; reads directories and imports nothing."""
    if not all(part.isidentifier() for part in module.split(".")):
        return None
    found = _find(module, _ACTIVE.get())
    return None if found is None else found.origin


def is_beside(module: str) -> bool:
    """Whether a module is found beside the started file or in the current directory, and is not installed."""
    found = _find(module, _ACTIVE.get()) if all(part.isidentifier() for part in module.split(".")) else None
    return found is not None and found.place in ("beside", "here")


def list_agreed_modules() -> list[str]:
    """The modules that the owner agreed to run and that were named so far in this process."""
    return [found.module for found in _AGREED.values()]


def _is_plain(name: str) -> bool:
    return name.isidentifier() and name.isascii()


def _in_same_package(module: str, other: str) -> bool:
    return module.partition(".")[0] == other.partition(".")[0]


def _find_names(value: Any) -> Iterator[str]:
    """Find every string of the form `package.module:name` in nested values."""
    if isinstance(value, str):
        module, colon, attribute = value.partition(":")
        if colon and all(map(_is_plain, (*module.split("."), *attribute.split(".")))):
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _find_names(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _find_names(item)


def _find(module: str, trust: Trust | None) -> FoundModule | None:
    """Find a module: already loaded (for a Python caller), installed, beside the started file, or in this directory."""
    top = module.partition(".")[0]
    if trust is None:
        loaded = sys.modules.get(module)
        if loaded is not None:
            return FoundModule(module, str(getattr(loaded, "__file__", None) or "this process"), "loaded", None, None)
        return find_module(module, folder=None, here=os.getcwd())
    return find_module(module, folder=trust.folder, here=os.getcwd() if top in trust.here else None)


def _check_permitted(name: str, error: type[ExpungeError], *, from_file: bool, entries: bool) -> FoundModule:
    module, colon, attribute = name.partition(":")
    parts = (*module.split("."), *attribute.split("."))
    if not colon or not all(map(_is_plain, parts)):
        raise error("a custom function or class is given as package.module:factory", where=name)
    trust = _ACTIVE.get()
    if from_file and trust is None:
        trust = Trust()
    if name in ENTRIES and entries:
        return FoundModule(module, "expunge", "loaded", None, None)
    _check_never(module, name)
    found = _find(module, trust)
    if found is not None and is_in_python(found):
        what = "a module of Python's standard library is never called for a name"
        raise TrustError(f"{what} (it would be imported from {found.origin})", where=name, hint=_WRITE_OWN)
    if trust is None and found is not None:
        _AGREED[name] = found
        return found
    if trust is not None and found is not None and _is_agreed(trust, name, found):
        _AGREED[name] = found
        return found
    if name in _AGREED:
        return _AGREED[name]
    top = module.partition(".")[0]
    if found is None:
        folder = None if trust is None else trust.folder
        missing = top if find_module(top, folder=folder, here=os.getcwd()) is None else module
        raise error(f"no module named {missing!r} can be imported", where=name, hint=_describe_search(top, trust))
    assert trust is not None
    raise TrustError(
        f"names code that you have not agreed to run: {module} would be imported from {found.origin}",
        where=name,
        hint=_describe_remedy(top, found, trust),
    )


def _is_agreed(trust: Trust, name: str, found: FoundModule) -> bool:
    top = found.module.partition(".")[0]
    if found.place == "beside":
        return name in trust.names or top in trust.packages
    return top in (trust.here if found.place == "here" else trust.packages)


def _describe_search(top: str, trust: Trust | None) -> str:
    """Where a module was looked for, and how to extend that."""
    here, folder = os.getcwd(), None if trust is None else trust.folder
    if trust is None or (top in trust.here and folder is None):
        return f"looked for among the installed modules and in {here}: install it, or put it there"
    more = f"{trust.describe(top)} also searches the current directory, {here}"
    if folder is None:
        known = _describe_loaded(top)
        return f"looked for among the installed modules only: {more}{known}"
    if top in trust.here:
        return f"looked for among the installed modules, in {folder} and in {here}: install it, or put it there"
    return f"looked for among the installed modules and in {folder}: install it, or put it there; {more}"


def _describe_loaded(top: str) -> str:
    """Where a module that was not searched for is imported from already; empty: it is not imported."""
    file = getattr(sys.modules.get(top), "__file__", None)
    return f" ({top} is imported already, from {file}, but a file may only name it if you say so)" if file else ""


def _describe_remedy(top: str, found: FoundModule, trust: Trust) -> str:
    beside = None if trust.folder is None else find_module(top, folder=trust.folder, here=None, installed=False)
    if found.place == "installed" and beside is not None and not is_same_file(beside.origin, found.origin):
        return f"{beside.origin} has the name of an installed module, which takes precedence: rename the file"
    return f"if you trust it: {trust.describe(top)} (SECURITY.md explains what that allows)"


def _check_never(module: str, name: str) -> None:
    """Raise TrustError for a module that is never called."""
    top = module.partition(".")[0]
    if is_never_called(top):
        spec = sys.modules[top].__spec__ if top in sys.modules else importlib.util.find_spec(top)
        origin = getattr(spec, "origin", None) or "this Python"
        what = (
            "a module of Python's standard library" if is_standard(top) else f"{top}, a library that can run anything,"
        )
        raise TrustError(
            f"{what} is never called for a name (it would be imported from {origin})",
            where=name,
            hint=_WRITE_OWN,
        )
    loader = find_loader(module)
    if loader is not None:
        raise TrustError(f"a module named {loader} is never called for a name", where=name, hint=_WRITE_OWN)


def _check_origin(function: Any, attribute: str, name: str) -> None:
    """Raise TrustError if what would be called is code of a known loader or library, whatever name exports it.

    The modules checked are where the function was defined, where its code and that of functions it wraps is, and, for
    a class, those of its bases and of the bases that construct it.
    """
    homes: list[str] = []
    made = function
    for _ in range(16):  # a chain of decorators
        homes += [str(getattr(made, "__module__", None)), str(getattr(made, "__globals__", {}).get("__name__", ""))]
        made = getattr(made, "__wrapped__", None)
        if made is None:
            break
    if inspect.isclass(function):
        classes = (*function.__mro__, *type(function).__mro__)
        homes += [base.__module__ for base in classes]
        makers = [next(base for base in function.__mro__ if key in vars(base)) for key in ("__new__", "__init__")]
        makers.append(next(base for base in type(function).__mro__ if "__call__" in vars(base)))
        for base in makers:
            plain = any(base.__module__ == known or base.__module__.startswith(f"{known}.") for known in _PLAIN_BASES)
            if not plain and is_never_called(base.__module__.partition(".")[0]):
                raise TrustError(
                    f"{attribute} is constructed by {base.__module__}.{base.__qualname__}, "
                    "which is never called for a name",
                    where=name,
                    hint=f"give {attribute} a constructor of its own that makes what is needed and nothing else",
                )
    loader = next(filter(None, map(find_loader, homes)), None)
    if loader is not None:
        home = next(home for home in homes if find_loader(home))
        raise TrustError(
            f"{attribute} comes from {home}: what a module named {loader} defines is never called for a name",
            where=name,
            hint=_WRITE_OWN,
        )


def _is_own(name: str, value: Any, module: str) -> bool:
    """Whether a name of a module could be meant: a function or class that the module's package defines."""
    if name.startswith("_") or not (inspect.isfunction(value) or inspect.isclass(value)):
        return False
    return _in_same_package(str(getattr(value, "__module__", None)), module)


def _get_attribute(module: types.ModuleType, attribute: str, name: str, error: type[ExpungeError]) -> Any:
    """Get an attribute of a module, directly or through classes that the package itself defines."""
    found: Any = module
    for part in attribute.split("."):
        if part.startswith("__"):
            raise TrustError(f"{part} is internal to Python and is never called", where=name)
        if found is not module and not (inspect.isclass(found) and _in_same_package(found.__module__, module.__name__)):
            through = f"{with_article(type(found).__name__)} that {module.__name__} did not define"
            raise TrustError(f"{attribute} is reached through {through}", where=name)
        if not hasattr(found, part):
            names = [key for key, value in vars(found).items() if _is_own(key, value, module.__name__)]
            raise error(f"{module.__name__} has no {attribute!r}", where=name, hint=unknown_name_hint(part, names))
        found = getattr(found, part)
    return found
