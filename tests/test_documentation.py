"""The documentation: its links, its pages of file formats, every command and snippet of README and tutorial."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from snippets import blocks, command, follow
from torch import nn

from expunge.cli.app import run
from expunge.core.registry import METHODS, REGISTRIES, SCORES
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained, clone_model
from expunge.data.records import Records
from expunge.evaluation import ScoreFacts
from expunge.evaluation.facts import built_in_facts
from expunge.evaluation.registry.docs_page import score_table_markdown
from expunge.experiments import read_results
from expunge.methods import Context, get_method, method_names
from expunge.methods.docs_page import method_table_markdown
from expunge.models import load_trained
from expunge.sparsity import Pruning, ScoringContext, compute_scores, prune
from expunge.sparsity.docs_page import update_page
from expunge.training import Runtime

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


# ---- links


def prose(text: str) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """What links to headings of a page end in, as GitHub makes them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), flags=re.M):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        count = sum(name == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", name) is not None for name in found)
        found.add(f"{slug}-{count}" if count else slug)
    return found


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    out = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        goal = (page.parent / name).resolve() if name else page
        if not goal.exists():
            out.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(goal):
            out.append(f"{target}: no such heading")
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    assert broken_links(page) == []


def test_the_link_checker_sees_broken_links(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page, of `mine`\n[1](page.md#a-page-of-mine) [2](no.md) [3](#nowhere) [4](https://x.y/z)\n")
    assert broken_links(page) == ["no.md: no such file", "#nowhere: no such heading"]


def test_every_page_is_on_the_map() -> None:
    named = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / "index.md").read_text())}
    assert {page for page in DOCS.rglob("*.md") if page.name != "index.md"} <= named


def test_pages_that_the_source_names_exist() -> None:
    named = {
        name for path in (ROOT / "src").rglob("*.py") for name in re.findall(r"docs/[\w./-]+\.md", path.read_text())
    }
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


# ---- code blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_import_what_is_there(page: Path) -> None:
    for _, text in (block for block in blocks(page) if block[0] == "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "expunge":
                home = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(home, alias.name)] == []


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory to work in, where Python finds modules; no data directory from outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    yield tmp_path
    sys.modules.pop("my_network", None)


def test_readme(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = blocks(ROOT / "README.md")
    configurations = [block for block in found if block[0] == "yaml"]
    commands = [line for kind, text in found if kind == "sh" for line in text.splitlines()]
    mine = [line for line in commands if line.startswith("expunge") and "bench" not in line]
    assert len(mine) > 3
    follow(configurations)
    for line in mine:
        command(line)
    assert "forget" in capfd.readouterr().out
    split = load_trained("runs/digits/trained").split
    Path("ids.txt").write_text("\n".join(split.retain[:9].tolist()))
    names = follow([block for block in found if block[0] == "python"])
    assert names["scores"]["UA"].reference is not None
    assert load_trained("runs/digits/unlearned-ft").split.counts()["forget"] == 9


def test_tutorial(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = follow(blocks(DOCS / "tutorial.md"))
    assert names["scores"]["UA"].reference is not None
    assert capfd.readouterr().out.count("Disparity average") >= 5
    written = {path.name for path in Path("runs/digits/unlearned").iterdir()}
    table = re.search(r"\| file in `runs/digits/unlearned/` .*?\n\n", (DOCS / "tutorial.md").read_text(), flags=re.S)
    assert table is not None
    assert set(re.findall(r"`([\w]+\.(?:json|html|safetensors))`", table[0])) == written
    second = load_trained("runs/own/second")
    assert second.split.counts()["forget"] == 25
    assert second.split.base_hash == load_trained("runs/own/unlearned").split.base_hash


def test_messages_of_the_tutorial_are_those_of_the_source() -> None:
    table = (DOCS / "tutorial.md").read_text().partition("## When something is wrong")[2]
    source = " ".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    messages = re.findall(r"^\| `(.*?)` \|", table, flags=re.M)
    assert len(messages) >= 7
    for message in messages:
        for part in re.split(r"\.\.\.|the test set|^N ", message):
            assert part.strip() in source, message


# ---- methods


def test_the_page_of_the_methods_is_up_to_date() -> None:
    hint = "expunge methods --style markdown > docs/methods.md"
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == method_table_markdown(), f"regenerate it: {hint}"


def first_table(text: str) -> list[list[str]]:
    """The cells of the first table of a page, without the row of dashes."""
    rows = re.search(r"(?:^\|.*\n)+", text, flags=re.M)
    assert rows is not None
    table = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in rows[0].splitlines()]
    return [row for row in table if not row[0].startswith("---")]


def test_the_methods_of_the_readme_are_those_of_the_page() -> None:
    """The README has the table of docs/methods.md without its column `citation`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- methods -->\n")[2]
    page = [row[:3] for row in first_table(method_table_markdown())]
    assert first_table(readme) == [[row[0].replace("](#", "](docs/methods.md#"), *row[1:]] for row in page]


def test_markdown_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "--style", "markdown"]) == 0
    assert capsys.readouterr().out == method_table_markdown()


EXAMPLES = {"noise": {"scale": 0.02}, "confusion": {"learning_rate": 0.02, "batch_size": 8}}


@pytest.fixture
def examples(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The code of adding-a-method.md by method; the methods are registered for the length of a test."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "methods")
    texts = dict(zip(EXAMPLES, (text for _, text in blocks(DOCS / "adding-a-method.md")), strict=False))
    for name, text in texts.items():
        Path(f"{name}_of_the_page.py").write_text(text)
        importlib.import_module(f"{name}_of_the_page")
    yield texts
    for name in EXAMPLES:
        sys.modules.pop(f"{name}_of_the_page", None)
        METHODS.remove(name)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_keep_the_contract(
    name: str, kind: str, examples: dict[str, str], request: pytest.FixtureRequest, request_20: ForgetRequest,
    digits: Records, cpu: Runtime, tmp_path: Path,
) -> None:  # fmt: skip
    contract = importlib.import_module("method_contract")
    method = get_method(name, **EXAMPLES[name])
    assert type(method).__module__ == f"{name}_of_the_page"
    assert name in method_names()
    contract.check(method, request.getfixturevalue(kind), request_20, Context(digits, cpu, seed=1), tmp_path)


def test_the_examples_are_short(examples: dict[str, str]) -> None:
    """A method with its options is about 30 lines, a gradient method about 20."""
    assert [text.count("\n") for text in examples.values()] <= [32, 20]
    assert max(len(line) for text in examples.values() for line in text.splitlines()) <= 120


@pytest.mark.parametrize(
    ("line", "instead"),
    [("task.model.parameters()", "task.trained.model.parameters()"), (", generator=generator", "")],
)
def test_the_example_needs_its_lines(
    line: str, instead: str, examples: dict[str, str], sparse: Trained, request_20: ForgetRequest, digits: Records,
    cpu: Runtime, tmp_path: Path,
) -> None:  # fmt: skip
    """Without what the page explains, the contract is broken, and seen to be."""
    contract = importlib.import_module("method_contract")
    mine = dataclasses.replace(sparse, model=clone_model(sparse.model))
    assert line in examples["noise"]
    METHODS.remove("noise")
    names: dict[str, Any] = {"__name__": "noise_of_the_page"}
    exec(examples["noise"].replace(line, instead), names)
    with pytest.raises(AssertionError, match=r"caller's model was changed|global generator was used"):
        contract.check(names["Noise"](), mine, request_20, Context(digits, cpu, seed=1), tmp_path)


# ---- criteria, granularities, scopes, schedules


def test_the_tables_of_the_sparsity_page_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_PLUGINS", "0")
    text = (DOCS / "sparsity.md").read_text(encoding="utf-8")
    assert text.count("<!-- generated: ") == 4
    assert update_page(text) == text, "regenerate it: python -m expunge.sparsity.docs_page docs/sparsity.md"
    assert update_page(text.replace("One threshold", "One limit")) == text


def test_the_complete_criterion(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The example by reference, in Python and in a configuration; then the other kinds of the page, by name."""
    found = [text for language, text in blocks(DOCS / "adding-a-criterion.md") if language == "python"]
    Path("my_criteria.py").write_text(found[0])
    with contextlib.ExitStack() as stack:
        for kind in ("criteria", "scopes", "granularities", "schedules"):
            stack.enter_context(REGISTRIES[kind].temporary())
        stack.callback(sys.modules.pop, "my_criteria", None)
        names = follow([("python", text) for text in found[1:]])
        assert "my_criteria:relative_magnitude" in capsys.readouterr().out
        scores = compute_scores(
            "relative-magnitude", ScoringContext(nn.Module(), {"w": torch.tensor([[1.0, -4], [0, 0]])})
        )
        assert scores["w"].tolist() == [[0.25, 1], [0, 0]]
        Path("digits.yaml").write_text(
            "{data: {source: digits}, model: {name: mlp}, training: {recipe: one-cycle}, sparsity: {layers: [linear]}}"
        )
        command("expunge check digits.yaml sparsity.criterion=my_criteria:relative_magnitude")
        for kind in ({"scope": "spare-the-first"}, {"granularity": "upper-half"}, {"schedule": "two-steps"}):
            pruning = Pruning(layers=("linear",), **{"schedule": "one-shot", **kind})  # type: ignore[arg-type]
            sparse = prune(names["dense"], pruning, Context(names["records"]))
            assert sparse.mask is not None
            assert sparse.mask.density == pytest.approx(
                {"scope": 0.9, "granularity": 0.5, "schedule": 0.05}[next(iter(kind))], abs=0.05
            )


# ---- scores


def test_the_table_of_the_scores_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    table = score_table_markdown()
    assert table in (DOCS / "scores.md").read_text(encoding="utf-8"), "expunge scores --style markdown prints it"
    assert run(["scores", "--style", "markdown"]) == 0
    assert capsys.readouterr().out == table
    listed = [row[0] for row in first_table(table)[1:]]
    assert len(listed) > 40
    assert {name.partition(", ...")[0] for name in listed} <= set(built_in_facts())


def test_every_fact_of_a_score_is_on_the_page() -> None:
    page = (DOCS / "adding-a-score.md").read_text(encoding="utf-8").partition("## The facts")[2]
    rows = {row[0].strip("`"): row[1] for row in first_table(page)[1:]}
    facts = {f.name: f.default for f in dataclasses.fields(ScoreFacts) if f.name not in ("name", "text")}
    assert set(rows) == set(facts)
    plain = {name: default for name, default in facts.items() if name != "heading"}
    assert {name: ast.literal_eval(rows[name].strip("`")) for name in plain} == plain


def test_the_score_of_the_page_is_in_reports_tables_and_claims(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "my_scores:mean_confidence"
    try:
        with SCORES.temporary():
            follow(blocks(DOCS / "adding-a-score.md"))
    finally:
        sys.modules.pop("my_scores", None)
    assert name in Path("runs/digits/unlearned/report.html").read_text()
    results = read_results("confidence.results.json")
    values = [cell["scores"][name] for cell in results["cells"]]
    assert len(values) == 4
    assert all(0 < value < 100 for value in values)
    assert results["claims"][0]["checks"][0]["pairs"] == 2
    assert "Mean confidence %" in capfd.readouterr().out


# ---- plug-ins


def test_the_page_of_the_plug_ins(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = DOCS / "plugins.md"
    rows = first_table(page.read_text(encoding="utf-8"))[1:]
    assert {row[1].strip("`") for row in rows} == {registry.group for registry in REGISTRIES.values()}
    for row in rows:
        registry = REGISTRIES[row[1].strip("`").removeprefix("expunge.")]
        module, _, decorator = row[2].strip("`").rpartition(".")
        assert decorator == registry.decorator
        assert callable(getattr(importlib.import_module(module), decorator)), "it is public"
    with REGISTRIES["sources"].temporary():
        follow([block for block in blocks(page) if block[0] != "toml"])
        sys.modules.pop("clouds", None)
    assert "120 records of shape (2,)" in capsys.readouterr().out
    assert Path("unlearned/report.html").exists()
