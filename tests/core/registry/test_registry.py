"""The registry: names, duplicates, references, plug-ins, and facts that are read without importing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.core.errors import ConfigError, MethodError, TrustError
from expunge.core.registry import (
    CRITERIA,
    MODELS,
    REGISTRIES,
    SOURCES,
    Registry,
    find_named_modules,
    is_reference,
    plugins,
)
from expunge.core.registry.definitions import read_definitions, stamp
from expunge.core.trust import Trust, trusting


@pytest.fixture
def colours() -> Registry[str]:
    """A registry without entries in the package."""
    return Registry("colour", "colours", package="expunge.core", decorator="register_colour", error=MethodError)


def red() -> None:
    """Like a tomato.

    More.
    """


def blue() -> None:
    """Like the sky."""


# ---- names


def test_case_is_ignored_and_the_spelling_is_kept(colours: Registry[str]) -> None:
    colours.add("Red", "r", red)
    assert (colours.get("RED"), colours.get("red"), colours.names(), "rEd" in colours) == ("r", "r", ["Red"], True)
    assert (colours.canonical("red"), colours.canonical("green")) == ("Red", "green")


def test_a_duplicate_is_refused_whatever_its_case(colours: Registry[str]) -> None:
    colours.add("Red", "r", red)
    with pytest.raises(ConfigError, match=r"named 'RED' is registered already, by .*\.red"):
        colours.add("RED", "b", blue)
    assert colours.get("red") == "r"
    colours.add("Red", "r2", red)  # the same function again: a module that is reloaded
    assert colours.get("red") == "r2"


def test_a_built_in_name_is_a_duplicate_before_its_module_is_imported() -> None:
    for registry in REGISTRIES.values():
        for name in registry.names():
            article = r"(a [^aeiou]|an [aeiou])[a-z -]* named .* is registered already"  # an un-pruning rule
            with pytest.raises(ConfigError, match=article):
                registry.add(name.upper(), object(), red)


@pytest.mark.parametrize("name", ["", " red", "red ", "re\nd", "\x1b[31m", "my_package.module:red", 3])
def test_names_that_cannot_be_names(colours: Registry[str], name: object) -> None:
    with pytest.raises(ConfigError):
        colours.add(name, "r", red)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rde", "", None, 3, ["red"]])
def test_unknown_names_have_the_registry_s_error_and_the_nearest_name(colours: Registry[str], name: object) -> None:
    colours.add("red", "r", red)
    with pytest.raises(MethodError, match="unknown colour") as caught:
        colours.get(name)  # type: ignore[arg-type]
    assert "known: red" in str(caught.value.hint)
    assert ("did you mean 'red'" in str(caught.value.hint)) == (name == "rde")


def test_references() -> None:
    for name in ("a:b", "a.b:c", "a.b_2:C.d"):
        assert is_reference(name)
    for other in ("2:4", "MIA-Efficacy 1:2", "a", "a:", ":b", "a b:c", "a:b:c", "a..b:c", 3, None):
        assert not is_reference(other)


def test_entries_of_a_block_are_removed(colours: Registry[str]) -> None:
    colours.add("Red", "r", red)
    with colours.temporary():
        colours.add("Blue", "b", blue)
        assert colours.names() == ["Blue", "Red"]
    assert colours.names() == ["Red"]
    colours.remove("RED")
    colours.remove("red")
    assert colours.names() == []


# ---- facts from source


def test_facts_are_read_and_nothing_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "entries.py"
    path.write_text(
        textwrap.dedent('''
        raise SystemExit("imported")

        @register_colour("Red", wave=700, mixed=("a", 1), computed=len("x"))
        @other
        class Red:
            """Like a
            tomato.

            More.
            """

        @registry.register_colour("blue")
        def blue(): ...

        @register_colour(NAME)
        def hidden(): ...

        @register_shape("square")
        def square(): ...

        def factory():
            @register_colour("inner")
            def inner(): ...
        ''')
    )
    found = read_definitions(path, stamp(path), "entries", "register_colour")
    assert [(one.name, one.qualname, one.module) for one in found] == [
        ("Red", "Red", "entries"),
        ("blue", "blue", "entries"),
    ]
    assert found[0].facts == {"wave": 700, "mixed": ("a", 1)}, "what is not a literal is left out"
    assert (found[0].summary, found[0].doc.splitlines()[-1]) == ("Like a tomato.", "More.")
    path.write_text("def (")
    assert read_definitions(path, stamp(path), "entries", "register_colour") == ()
    path.write_text("register_colour (")
    with pytest.raises(ConfigError, match="is not Python source"):
        read_definitions(path, stamp(path), "entries", "register_colour")


def test_the_index_agrees_with_what_the_modules_register() -> None:
    """Names that are read from source are exactly those that importing registers."""
    import importlib

    for registry in REGISTRIES.values():
        for module in registry.list_modules():
            importlib.import_module(module)
        imported = {found.name for found in registry._entries.values() if found.home[0].startswith("expunge.")}
        assert imported == {definition.name for definition in registry._index().values()}, registry.plural
        assert registry.names(), f"{registry.plural}: no entries"


def test_no_registry_imports_torch_to_list_its_entries() -> None:
    code = """
        import sys
        from expunge.core.registry import REGISTRIES, find_named_modules
        for registry in REGISTRIES.values():
            assert len(registry.definitions()) == len(registry.names()) > 0, registry.plural
            assert all(definition.doc for definition in registry.definitions()), registry.plural
        assert find_named_modules({"a": ["Retrain", "SNIP"]})
        print(sorted({"torch", "sklearn", "scipy"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_find_module() -> None:
    assert SOURCES.find_module("DIGITS") == "expunge.data.sources.digits"
    assert SOURCES.find_module("nothing") is None
    assert MODELS.find_module("beside.the_plan:make") == "beside.the_plan"
    named = {"method": {"name": "ft", "options": {"x": [1, "digits", "own.code:f"]}}, "n": 2}
    assert find_named_modules(named) >= {"expunge.methods.ft", "expunge.data.sources.digits", "own.code"}
    assert find_named_modules({"x": "no such name"}) == set()


# ---- references: package.module:name

OWN = '''
    from expunge.data import register_source

    @register_source("own-{name}")
    def load(directory):
        """Own records."""
        raise NotImplementedError

    def plain(directory):
        raise NotImplementedError
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current directory that registers a source."""
    name = f"own_module_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(OWN.format(name=name)))
    monkeypatch.chdir(tmp_path)
    with SOURCES.temporary():
        yield name
    sys.modules.pop(name, None)


def test_a_reference_names_what_the_module_registers(own: str) -> None:
    found = SOURCES.get(f"{own}:load")
    assert (found.name, found.summary) == (f"{own}:load", "Own records.")
    with pytest.raises(ConfigError, match="is not a registered data source") as caught:
        SOURCES.get(f"{own}:plain")
    assert "@register_source" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="has no 'nothing'"):
        SOURCES.get(f"{own}:nothing")
    with pytest.raises(ConfigError, match="has no 'laod'") as caught:
        SOURCES.get(f"{own}:laod")
    assert caught.value.hint == "did you mean 'load'? (known: load, plain)", "imports are not what could be meant"
    with pytest.raises(ConfigError, match="no module named"):
        SOURCES.get(f"{own}_other:load")
    assert SOURCES.describe(f"{own}:load").doc == "Own records."


def test_a_reference_from_a_file_needs_trust(own: str) -> None:
    with trusting(()), pytest.raises((TrustError, ConfigError)):
        SOURCES.get(f"{own}:load")
    assert own not in sys.modules, "it was imported"
    with trusting([own]):
        assert SOURCES.get(f"{own}:load").name == f"{own}:load"


def test_the_name_of_a_module_is_not_that_of_its_entry(own: str, tmp_path: Path) -> None:
    """A file beside the configuration: its name alone is unknown, and the hint is the reference."""
    config = tmp_path / "config.yaml"
    with pytest.raises(ConfigError, match="unknown data source") as caught, trusting(Trust().for_file(config, [])):
        SOURCES.get(own)
    assert caught.value.hint == f"did you mean '{own}:load'?"
    assert own not in sys.modules, "it was imported"
    (tmp_path / "torn.py").write_text("register_source(\n")
    for name in ("torn", "no_such_file"):
        with pytest.raises(ConfigError, match="unknown data source") as caught, trusting(Trust().for_file(config, [])):
            SOURCES.get(name)
        assert "known: " in str(caught.value.hint)


# ---- plug-ins


def install(root: Path, module: str, source: str, points: str, name: str = "colour-plug") -> None:
    """Write an installed package: its module and the directory of its metadata."""
    (root / f"{module}.py").write_text(textwrap.dedent(source))
    folder = root / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(textwrap.dedent(points))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of installed packages; the entry points are read again before and after."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    plugins._read_entry_points.cache_clear()
    before = set(sys.modules)
    with SOURCES.temporary(), CRITERIA.temporary():
        yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
    monkeypatch.undo()
    plugins._read_entry_points.cache_clear()


def test_a_plug_in_is_listed_without_and_loaded_with_an_import(site: Path) -> None:
    install(site, "plug_a", OWN.format(name="a"), "[expunge.sources]\nOwn-A = plug_a:load\n")
    assert "Own-A" in SOURCES.names()
    assert ("own-a" in SOURCES, SOURCES.find_module("OWN-a")) == (True, "plug_a")
    assert SOURCES.describe("own-a").doc == "Own records."
    assert "plug_a" not in sys.modules
    assert SOURCES.get("OWN-A").name == "own-a"


def test_plug_ins_can_be_ignored(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "plug_b", OWN.format(name="b"), "[expunge.sources]\nown-b = plug_b:load\n")
    monkeypatch.setenv("EXPUNGE_PLUGINS", "0")
    assert "own-b" not in SOURCES
    with pytest.raises(ConfigError, match="unknown data source"):
        SOURCES.get("own-b")


@pytest.mark.parametrize("lookup", ["digits", "mnist", "nothing"])
def test_a_plug_in_with_a_built_in_name_is_refused(site: Path, lookup: str) -> None:
    install(site, "plug_c", OWN.format(name="c"), "[expunge.sources]\nDigits = plug_c:load\n")
    with pytest.raises(ConfigError, match="named 'Digits' is registered already, by expunge") as caught:
        SOURCES.get(lookup)
    assert "colour-plug 1.0 (plug_c:load)" in str(caught.value.where)


def test_two_plug_ins_with_one_name_are_refused(site: Path) -> None:
    points = "[expunge.sources]\nown-d = plug_d:load\n"
    install(site, "plug_d", OWN.format(name="d"), points)
    install(site, "plug_e", OWN.format(name="d"), points.replace("plug_d", "plug_e"), name="other-plug")
    with pytest.raises(ConfigError, match=r"is registered already, by colour-plug 1\.0"):
        SOURCES.names()


@pytest.mark.parametrize(
    ("source", "point", "message"),
    [
        ("raise ValueError('broken')", "own-f = plug_f:load", r"cannot be imported \(ValueError: broken\)"),
        (OWN, "own-f = plug_f:nothing", "cannot be imported"),
        (OWN, "own-f = plug_f:plain", "is not a registered data source"),
        (OWN, "other = plug_f:load", "is registered as 'own-f', but its entry point is named 'other'"),
        (OWN, "own-f = no_such_module:load", "cannot be found"),
    ],
)
def test_a_plug_in_that_does_not_work_is_named(site: Path, source: str, point: str, message: str) -> None:
    install(site, "plug_f", source.format(name="f") if "{name}" in source else source, f"[expunge.sources]\n{point}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        SOURCES.get(point.partition(" ")[0])
    assert "colour-plug 1.0" in str(caught.value.where)
    assert len(SOURCES.get("digits").name) == 6, "others still work"


def test_the_current_directory_cannot_stand_in_for_a_plug_in(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "plug_g", OWN.format(name="g"), "[expunge.sources]\nown-g = plug_g:load\n")
    (site / "plug_g.py").unlink()
    (tmp_path / "plug_g.py").write_text(textwrap.dedent(OWN.format(name="g")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with pytest.raises(ConfigError, match="cannot be found"):
        SOURCES.get("own-g")
