"""The gate that every `package.module:name` goes through before anything is imported.

A file (a configuration, a plan, `trained.json`, a weights file) only names code. The code runs where the owner agreed:

* the module stands beside the configuration or plan that the owner started, and that file itself names it;
* its top-level package was named by `--trust`, by the user's trust file, or by `trust=` in Python;
* a Python caller gave the very same name as an argument earlier in this process.

Names of Python callers (`architecture("my_network:make", ...)`) are agreed to by being given, outside of a run that was
started from a file. For both, known libraries are never called, and what is called was defined in the package itself.
Nothing here imports torch.
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

from expunge.core.errors import ConfigError, ExpungeError, TrustError, unknown_name_hint

from .places import Found, find_module, load_module, same_place

#: Libraries that read files, run code or reach the system when they are called with chosen arguments: never called,
#: and so is nothing of Python's standard library.
_LIBRARIES = (
    "torch numpy scipy sklearn pandas joblib yaml ruamel safetensors pydantic pydantic_core cyclopts rich jinja2 "
    "matplotlib lightning lightning_fabric pytorch_lightning PIL dill cloudpickle h5py zarr msgpack numba cffi "
    "setuptools pkg_resources pip wheel distutils pytest hypothesis IPython ipykernel ray dask distributed fsspec "
    "requests urllib3 httpx aiohttp paramiko pexpect plumbum execnet psutil onnx onnxruntime sympy jsonpickle klepto "
    "expunge expunge_check"
)
#: Modules of these names are not called inside a trusted package either (copies that packages carry along).
_LOADERS = {"pickle", "dill", "cloudpickle", "joblib", "yaml", "marshal", "shelve", "subprocess", "runpy"}
#: What files of expunge name in its own package.
ENTRIES = frozenset({"expunge.patches.trained_state:build"})
_NEVER = frozenset(name.casefold() for name in {*_LIBRARIES.split(), *sys.stdlib_module_names})

_AGREED: dict[str, Found] = {}


@dataclasses.dataclass(frozen=True)
class Trust:
    """What the owner agreed to.

    Attributes:
        packages: top-level packages that files may name.
        here: those of them that are also looked for in the current directory: named on this very command line or call.
        folder: the directory of the configuration or plan that the owner started, or None.
        names: the names that this file contains; they may lie in `folder`.

    Raises:
        ConfigError: a package is not a plain top-level name, or is one that is never called.
    """

    packages: tuple[str, ...] = ()
    here: tuple[str, ...] = ()
    folder: str | None = None
    names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in (*self.packages, *self.here):
            if not isinstance(name, str) or not _plain(name):
                hint = "for example --trust my_package; it covers the modules inside"
                raise ConfigError(f"a package is trusted by its top-level name, not {name!r}", where="trust", hint=hint)
            if name.casefold() in _NEVER:
                raise ConfigError(f"{name} can read and run anything, so it is never called", where=f"trust {name}")

    @classmethod
    def of(cls, given: Trust | Sequence[str]) -> Trust:
        """What a caller gave as `trust=`: package names, or a `Trust`."""
        if isinstance(given, str):
            raise ConfigError("a sequence of package names is needed, not one string", where="trust")
        return given if isinstance(given, Trust) else cls(tuple(given), tuple(given))

    def started(self, path: str | os.PathLike[str], values: Iterable[Any]) -> Trust:
        """This, and that the owner started the file `path`, which holds `values`."""
        folder = os.path.dirname(os.path.abspath(path))
        return dataclasses.replace(self, folder=folder, names=frozenset(_names(list(values))))

    def joined(self, inner: Trust) -> Trust:
        """This and `inner`; the folder is the inner one where there is one."""
        packages, here = (tuple(dict.fromkeys(a + b)) for a, b in
                          ((self.packages, inner.packages), (self.here, inner.here)))  # fmt: skip
        last = self if inner.folder is None else inner
        return Trust(packages, here, last.folder, last.names)


_ACTIVE: contextvars.ContextVar[Trust | None] = contextvars.ContextVar("expunge trust", default=None)


@contextlib.contextmanager
def trusting(trust: Trust | Sequence[str]) -> Iterator[None]:
    """Inside the block names come from files: they are called only where `trust` (or an enclosing block) agrees."""
    outer = _ACTIVE.get() or Trust()
    token = _ACTIVE.set(outer.joined(Trust.of(trust)))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def permit(name: str, *, error: type[ExpungeError]) -> None:
    """Raise unless the owner agreed to this name, which a file contains. Nothing is imported.

    Raises:
        TrustError: nobody agreed to it, or it is never called; says what would have been imported from where.
        ExpungeError: of the class `error`: there is no such module, or the text is no such name.
    """
    _permitted(name, error, from_file=True)


def resolve(
    name: str, *, accepts: Callable[[type], bool], wanted: str, error: type[ExpungeError]
) -> Callable[..., Any]:
    """The function or class that `package.module:name` names, once it is known that it may be imported and called.

    Args:
        name: given by a Python caller, or, inside `trusting`, by a file.
        accepts: whether a class is of the wanted kind.
        wanted: the kind in words: "a torch.nn.Module".
        error: class of errors that are no refusal.

    Raises:
        TrustError: see `permit`; or what it names was defined elsewhere.
        ExpungeError: of the class `error`: no such module or attribute, it is neither a function nor a class as wanted,
            or importing failed.
    """
    found = _permitted(name, error, from_file=False)
    module_name, _, attribute = name.partition(":")
    try:
        module = load_module(found)
    except ModuleNotFoundError as failure:
        what = f"no module named {failure.name!r} can be imported"
        raise error(what, where=name, hint=f"{module_name} ({found.origin}) imports it: install it") from failure
    except ExpungeError:
        raise
    except Exception as failure:
        raise error(f"importing {module_name} failed ({type(failure).__name__}: {failure})", where=name) from failure
    made = _attribute(module, attribute, name, error)
    function = made.__func__ if inspect.ismethod(made) and inspect.isclass(made.__self__) else made
    if not inspect.isclass(function) and not inspect.isfunction(function):
        raise error(f"{attribute} is a {type(made).__name__}, not a function or class", where=name)
    home = str(getattr(function, "__module__", None))
    if not _inside(home, module_name):
        raise TrustError(
            f"{attribute} was defined in {home}, not in {module_name}: only what the package itself defines is called",
            where=name,
            hint=f"write a function in {module_name} that calls it",
        )
    if inspect.isclass(function) and not accepts(function):
        raise error(f"{attribute} is a class, but not {wanted}", where=name)
    result: Callable[..., Any] = made
    return result


@contextlib.contextmanager
def reachable(name: str) -> Iterator[None]:
    """Inside the block, the code of `name` can import what stands beside it; it never goes before installed modules."""
    found = _AGREED.get(name)
    with contextlib.nullcontext() if found is None else found.on_path():
        yield


def module_file(module: str) -> str | None:
    """The file of a module that a name may stand for, or None; reads directories and imports nothing."""
    if not all(part.isidentifier() for part in module.split(".")):
        return None
    found = _find(module, _ACTIVE.get())
    return None if found is None else found.origin


def _plain(name: str) -> bool:
    return name.isidentifier() and name.isascii()


def _inside(module: str, other: str) -> bool:
    return module.partition(".")[0] == other.partition(".")[0]


def _names(value: Any) -> Iterator[str]:
    """Every string among nested values that reads `package.module:name`."""
    if isinstance(value, str):
        module, colon, attribute = value.partition(":")
        if colon and all(map(_plain, (*module.split("."), *attribute.split(".")))):
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _names(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _names(item)


def _find(module: str, trust: Trust | None) -> Found | None:
    """Where a module lies: already loaded (for a Python caller), installed, beside the started file, or here."""
    top = module.partition(".")[0]
    if trust is None:
        loaded = sys.modules.get(module)
        if loaded is not None:
            return Found(module, str(getattr(loaded, "__file__", None) or "this process"), "loaded", None, None)
        return find_module(module, folder=None, here=os.getcwd())
    return find_module(module, folder=trust.folder, here=os.getcwd() if top in trust.here else None)


def _permitted(name: str, error: type[ExpungeError], *, from_file: bool) -> Found:
    module, colon, attribute = name.partition(":")
    parts = (*module.split("."), *attribute.split("."))
    if not colon or not all(map(_plain, parts)):
        raise error("a custom function or class is given as package.module:factory", where=name)
    trust = _ACTIVE.get()
    if from_file and trust is None:
        trust = Trust()
    if name in ENTRIES:
        return Found(module, "expunge", "loaded", None, None)
    _check_never(module, name)
    found = _find(module, trust)
    if trust is None and found is not None:
        _AGREED[name] = found
        return found
    if trust is not None and found is not None and _agrees(trust, name, found):
        _AGREED[name] = found
        return found
    if name in _AGREED:
        return _AGREED[name]
    top = module.partition(".")[0]
    if found is None:
        folder = None if trust is None else trust.folder
        missing = top if find_module(top, folder=folder, here=os.getcwd()) is None else module
        place = os.getcwd() if trust is None else folder or "the directory of the configuration"
        hint = f"install it, or put it into {place}; --trust {top} also looks in the current directory"
        raise error(f"no module named {missing!r} can be imported", where=name, hint=hint)
    assert trust is not None
    raise TrustError(
        f"names code that you have not agreed to run: {module} would be imported from {found.origin}",
        where=name,
        hint=_advice(top, found, trust),
    )


def _agrees(trust: Trust, name: str, found: Found) -> bool:
    top = found.module.partition(".")[0]
    if found.place == "beside":
        return name in trust.names or top in trust.packages
    return top in (trust.here if found.place == "here" else trust.packages)


def _advice(top: str, found: Found, trust: Trust) -> str:
    beside = None if trust.folder is None else find_module(top, folder=trust.folder, here=None, installed=False)
    if found.place == "installed" and beside is not None and not same_place(beside.origin, found.origin):
        return f"{beside.origin} has the name of an installed module, which goes first: rename the file"
    return f"if you trust it: --trust {top}; in Python trust=[{top!r}] (SECURITY.md says what that allows)"


def _check_never(module: str, name: str) -> None:
    """Raise TrustError for modules that are never called."""
    parts = [part.casefold() for part in module.split(".")]
    if parts[0] in _NEVER:
        top = module.partition(".")[0]
        spec = sys.modules[top].__spec__ if top in sys.modules else importlib.util.find_spec(top)
        origin = getattr(spec, "origin", None) or "this Python"
        standard = parts[0] in {known.casefold() for known in sys.stdlib_module_names}
        what = "a module of Python's standard library" if standard else f"{top}, a library that can run anything,"
        raise TrustError(
            f"{what} is never called for a name (it would be imported from {origin})",
            where=name,
            hint="write a custom function that makes what is needed and nothing else",
        )
    inner = [part for part in parts if part in _LOADERS]
    if inner:
        raise TrustError(f"a module named {inner[0]} is never called for a name", where=name)


def _attribute(module: types.ModuleType, attribute: str, name: str, error: type[ExpungeError]) -> Any:
    """The attribute of a module, through classes that the package defines and through nothing else."""
    found: Any = module
    for part in attribute.split("."):
        if part.startswith("__"):
            raise TrustError(f"{part} is internal to Python and is never called", where=name)
        if found is not module and not (inspect.isclass(found) and _inside(found.__module__, module.__name__)):
            through = f"a {type(found).__name__} that {module.__name__} did not define"
            raise TrustError(f"{attribute} is reached through {through}", where=name)
        if not hasattr(found, part):
            names = [key for key in dir(found) if not key.startswith("_")]
            raise error(f"{module.__name__} has no {attribute!r}", where=name, hint=unknown_name_hint(part, names))
        found = getattr(found, part)
    return found
