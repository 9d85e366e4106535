"""The registry of methods: read from source without torch, plug-ins, references, and what cannot be registered."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ConfigError, MethodError, TrustError
from expunge.core.registry import METHODS, plugins
from expunge.core.registry.definitions import read_class
from expunge.core.trust import trusting
from expunge.methods import FineTuning, Method, get_method, method_class, method_names, method_table, register_method
from expunge.methods.docs_page import method_table_markdown
from expunge.methods.registry import options_of, read_options

CODE = '''
"""A method of another package."""

import dataclasses

from expunge.methods import FineTuning, register_method

EPOCHS = 3


@register_method("Plugged", guarantee="empirical", citation="a test")
@dataclasses.dataclass(frozen=True)
class Plugged(FineTuning):
    """Fine-tune, as FT does.

    Attributes:
        {attribute}
    """

    epochs: int = {epochs}
    strength: float = 0.5

    def unlearn(self, task):
        """See `Method.unlearn`."""
        self.fine_tune(task, on="retain")
'''


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with METHODS.temporary():
        yield
    for name in [name for name in sys.modules if name.startswith("plugged_")]:
        del sys.modules[name]


def install(
    monkeypatch: pytest.MonkeyPatch, site: Path, package: str, epochs: str = "3", name: str = "Plugged"
) -> None:
    """Install a distribution with one module that registers a method, and an entry point."""
    site.mkdir(exist_ok=True)
    text = CODE.replace("{epochs}", epochs).replace("{attribute}", "strength: how much.")
    (site / f"{package}.py").write_text(text.replace('"Plugged"', f'"{name}"'))
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[expunge.methods]\n{name} = {package}:Plugged\n")
    monkeypatch.syspath_prepend(site)
    cached: Any = plugins._read_entry_points  # without its cache
    monkeypatch.setattr(plugins, "_read_entry_points", getattr(cached, "__wrapped__", cached))


# ---- facts without imports


def test_names_and_table_import_neither_torch_nor_methods() -> None:
    code = (
        "import sys, json; import expunge.methods; from expunge.methods import method_names, method_table, get_method\n"
        "from expunge.methods.docs_page import method_table_markdown\n"
        "rows = method_table(); method_table_markdown(); method_names()\n"
        "early = sorted(m for m in sys.modules if m == 'torch' or m.startswith('expunge.methods.'))\n"
        "get_method('ga')\n"
        "late = sorted(m for m in sys.modules if m.startswith('expunge.methods.'))\n"
        "print(json.dumps([early, late, rows[0]['name']]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    early, late, first = json.loads(done.stdout)
    assert first == "Retrain"
    assert early == [f"expunge.methods.{name}" for name in ("docs_page", "options", "registry", "space")]
    assert {"expunge.methods.ga", "expunge.methods.finetuning"} <= set(late)
    assert not {f"expunge.methods.{name}" for name in ("ft", "retrain", "patch", "unprune")} & set(late)


@pytest.mark.parametrize("style", ["text", "markdown"])
def test_the_command_imports_no_torch(style: str) -> None:
    code = (
        "import sys; from expunge.cli.app import run\n"
        f"assert run(['methods', '--style', '{style}']) == 0\n"
        "assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Fine-tune the original model on D_r" in done.stdout


@pytest.mark.parametrize("name", method_names())
def test_what_the_source_says_is_what_the_class_says(name: str) -> None:
    cls: Any = method_class(name)
    found = METHODS.describe_class(name)
    assert found is not None, "a field has no literal default"
    assert {field.name: field.default for field in found.fields} == {
        field.name: field.default for field in dataclasses.fields(cls)
    }
    assert [field.name for field in found.fields] == [field.name for field in options_of(cls)]
    facts = METHODS.describe(name).facts
    assert (facts["guarantee"], facts["citation"]) == (cls.guarantee, cls.citation)
    assert facts.get("trains", False) is cls.trains


def test_links_of_the_table_lead_to_the_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names with characters that no anchor has, and names whose anchors would be the same."""
    with METHODS.temporary():
        for name in ("Example+", "Example", "a b (c)"):

            @register_method(name, guarantee="empirical", citation="tests")
            @dataclasses.dataclass(frozen=True)
            class Named(FineTuning):
                """A method with a name."""

        page = method_table_markdown()
    anchors: list[str] = []
    for heading in re.findall("^#+ (.*)$", page, flags=re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = sum(re.sub(r"-\d+$", "", other) == slug for other in anchors)
        anchors.append(f"{slug}-{number}" if number else slug)
    links = dict(re.findall(r"^\| \[([^]]+)\]\(#([^)]*)\)", page, flags=re.M))
    assert {"Example+", "Example", "a b (c)", "FT"} <= set(links)
    assert set(links.values()) <= set(anchors)
    assert len(set(links.values())) == len(links)


# ---- plug-ins and references


def test_a_method_of_an_installed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path / "site", "plugged_a")
    row = next(row for row in method_table() if row["name"] == "Plugged")
    assert "plugged_a" not in sys.modules, "it was imported for the table"
    assert row["options"]["strength"] == 0.5
    assert row["options"]["momentum"] == 0.9  # of the base class in expunge
    assert row["summary"] == "Fine-tune, as FT does."
    assert "| `strength` | `0.5` | how much |" in method_table_markdown()
    assert "plugged_a" not in sys.modules
    method = get_method("plugged", strength=1)
    assert isinstance(method, FineTuning)
    assert (method.name, method.epochs) == ("Plugged", 3)
    assert "Plugged" in method_names()
    monkeypatch.setenv("EXPUNGE_PLUGINS", "0")
    METHODS.remove("Plugged")
    assert "Plugged" not in method_names()
    with pytest.raises(MethodError, match="unknown method 'Plugged'"):
        get_method("Plugged")


def test_a_default_that_is_no_literal_is_read_from_the_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path / "site", "plugged_b", epochs="EPOCHS + 1")
    assert METHODS.describe_class("Plugged") is None
    assert next(row for row in method_table() if row["name"] == "Plugged")["options"]["epochs"] == 4
    assert read_options("Plugged").docs[-1].startswith("Fine-tune, as FT does.")


def test_names_have_one_meaning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path / "site", "plugged_c", name="ft")
    with pytest.raises(ConfigError, match="a method named 'ft' is registered already, by expunge"):
        method_names()


def test_two_packages_with_one_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path / "one", "plugged_d")
    install(monkeypatch, tmp_path / "two", "plugged_e", name="PLUGGED")
    with pytest.raises(ConfigError, match=r"registered already, by plugged_"):
        get_method("Plugged")


def test_a_reference_is_imported_only_with_trust(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "plugged_f.py").write_text(CODE.replace("{epochs}", "2").replace("{attribute}", "x: y."))
    monkeypatch.chdir(tmp_path)
    with trusting(()), pytest.raises((TrustError, MethodError)):
        get_method("plugged_f:Plugged")
    assert "plugged_f" not in sys.modules
    with trusting(("plugged_f",)):
        method = get_method("plugged_f:Plugged", strength=0.25)
    assert method.name == "Plugged"
    assert method == get_method("plugged", strength=0.25)
    (tmp_path / "plugged_g.py").write_text("class Other:\n    pass\n")
    with trusting(("plugged_g",)), pytest.raises(MethodError, match=r"is not a registered method.*\n.*register_method"):
        get_method("plugged_g:Other")


# ---- what cannot be registered


def test_what_cannot_be_registered() -> None:
    with pytest.raises(MethodError, match="did you mean 'empirical'"):
        register_method("x", guarantee="emprical", citation="")

    class Plain(FineTuning):
        pass

    @dataclasses.dataclass
    class Thawed:
        a: int = 0

    @dataclasses.dataclass(frozen=True)
    class Stranger:
        a: int = 0

    for cls in (Plain, Thawed, Stranger):
        with pytest.raises(MethodError, match="is not a frozen dataclass that derives from Method"):
            register_method("x", guarantee="empirical", citation="")(cls)

    @dataclasses.dataclass(frozen=True)
    class Good(Method):
        def unlearn(self, task: Any) -> None: ...

    with pytest.raises(
        ConfigError, match=r"a method named 'RETRAIN' is registered already, by expunge.methods.retrain"
    ):
        register_method("RETRAIN", guarantee="empirical", citation="")(Good)
    with pytest.raises(MethodError, match="trains=True, but no fit"):
        register_method("x", guarantee="empirical", citation="", trains=True)(Good)


def test_a_source_that_cannot_be_followed(tmp_path: Path) -> None:
    def read(**files: str) -> Any:
        found = {name: tmp_path / f"{name}.py" for name in files}
        for name, text in files.items():
            found[name].write_text(text)
        return read_class(found.get, "a", "A")

    a = "from b import B\n@dataclass\nclass A(B):\n    x: int = 1\n"
    assert read(a=a, b="class B(unknown.Base): pass\n") is None
    assert read(a=a, b="from a import A\nclass B(A):\n    pass  # a circle\n") is None
    assert read(a=a) is None
    assert read(a=a.replace("= 1", "= len('x')"), b="class B: pass\n") is None
    assert read(a="class Nothing: pass\n") is None
    found = read(a=a, b='class B:\n    """Base."""\n\n    y: ClassVar[int] = 2\n')
    assert ([field.name for field in found.fields], found.docs) == (["x"], ("Base.", ""))


def test_an_integer_for_a_float_is_a_float() -> None:
    """So that both are recorded alike, and the store has one entry for them."""
    method = get_method("FT", learning_rate=1)
    assert type(method.learning_rate) is float
    assert json.dumps(dataclasses.asdict(method)) == json.dumps(dataclasses.asdict(get_method("FT", learning_rate=1.0)))
