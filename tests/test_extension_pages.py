"""The pages on methods, criteria and scores: what is generated is up to date, and their examples work."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import itertools
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import DOCS, ROOT, blocks, command, first_table, follow
from torch import nn

from expunge.cli.app import run
from expunge.core.errors import Interrupted
from expunge.core.registry import METHODS, REGISTRIES, SCORES, SOURCES
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained, clone_model
from expunge.data import load_records, source_fingerprint
from expunge.data.records import Records
from expunge.evaluation import ScoreFacts
from expunge.evaluation.facts import built_in_facts
from expunge.evaluation.registry.docs_page import score_table_markdown
from expunge.experiments import read_results
from expunge.methods import Context, get_method, method_names
from expunge.methods.docs_page import method_table_markdown
from expunge.sparsity import Pruning, ScoringContext, compute_scores, prune
from expunge.sparsity.docs_page import update_page
from expunge.training import Runtime

# ---- methods


def test_make_pages_writes_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every generated part, from pages in which it is emptied; between each pair of comments, and these once."""
    monkeypatch.setenv("EXPUNGE_PLUGINS", "0")
    generated = re.compile(r"(<!-- generated: \w+ -->\n).*?(<!-- end -->)", re.DOTALL)
    pages = sorted(page for page in DOCS.glob("*.md") if "<!-- generated: " in page.read_text(encoding="utf-8"))
    assert {"scores.md", "sparsity.md"} <= {page.name for page in pages}
    (tmp_path / "docs").mkdir()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        kinds = re.findall(r"<!-- generated: (\w+) -->", text)
        assert len(set(kinds)) == len(kinds) == text.count("<!-- end -->") == len(generated.findall(text)), page.name
        (tmp_path / "docs" / page.name).write_text(generated.sub(r"\1\2", text), encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    emptied = re.sub(r"(?<=<!-- methods -->\n)(?:\|.*\n)+", "| method |\n", readme)
    assert emptied != readme
    (tmp_path / "README.md").write_text(emptied, encoding="utf-8")
    runpy.run_path(str(ROOT / ".ci" / "pages.py"))["main"](tmp_path)
    written = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*.md")}
    assert Path("docs/methods.md") in written
    for name, path in written.items():
        assert path.read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8"), f"{name}: make pages"


def test_the_page_of_the_methods_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_PLUGINS", "0")
    hint = "make pages"
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == method_table_markdown(), f"regenerate it: {hint}"


def test_the_methods_of_the_readme_are_those_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README has the table of docs/methods.md without its column `citation`."""
    monkeypatch.setenv("EXPUNGE_PLUGINS", "0")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- methods -->\n")[2]
    page = [row[:3] for row in first_table(method_table_markdown())]
    assert first_table(readme) == [[row[0].replace("](#", "](docs/methods.md#"), *row[1:]] for row in page]


def test_markdown_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "--style", "markdown"]) == 0
    assert capsys.readouterr().out == method_table_markdown()


EXAMPLES = {
    "noise-of-page": {"scale": 0.02},
    "confusion-of-page": {"learning_rate": 0.02, "batch_size": 8},
    "alternate-of-page": {"batch_size": 16, "learning_rate": 0.002},
    "two-sided-of-page": {"batch_size": 16, "learning_rate": 0.02},
}


@pytest.fixture
def examples(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The code of adding-a-method.md by method; the methods are registered for the length of a test.

    They have other names, so that a reader may save the example in the package.
    """
    monkeypatch.syspath_prepend(ROOT / "tests" / "methods")
    found = [text for language, text in blocks(DOCS / "adding-a-method.md") if language == "python"]
    texts = {
        name: text.replace(f'@register_method("{name.removesuffix("-of-page")}"', f'@register_method("{name}"')
        for name, text in zip(EXAMPLES, found, strict=False)
    }
    for name, text in texts.items():
        Path(f"{name.removesuffix('-of-page')}_of_the_page.py").write_text(text)
        importlib.import_module(f"{name.removesuffix('-of-page')}_of_the_page")
    yield texts
    for name in EXAMPLES:
        sys.modules.pop(f"{name.removesuffix('-of-page')}_of_the_page", None)
        METHODS.remove(name)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_keep_the_contract(
    name: str, kind: str, examples: dict[str, str], request: pytest.FixtureRequest, request_20: ForgetRequest,
    digits: Records, cpu: Runtime, tmp_path: Path,
) -> None:  # fmt: skip
    contract = importlib.import_module("method_contract")
    method = get_method(name, **EXAMPLES[name])
    assert type(method).__module__ == f"{name.removesuffix('-of-page')}_of_the_page"
    assert name in method_names()
    contract.check(method, request.getfixturevalue(kind), request_20, Context(digits, cpu, seed=1), tmp_path)


def test_the_examples_are_short(examples: dict[str, str]) -> None:
    """A method with its options is about 30 lines, a gradient method about 20, one with passes 25, a long one 50."""
    lines = [text.count("\n") for text in examples.values()]
    assert all(count <= most for count, most in zip(lines, [32, 20, 26, 48], strict=True)), lines
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
    assert line in examples["noise-of-page"]
    METHODS.remove("noise-of-page")
    names: dict[str, Any] = {"__name__": "noise_of_the_page"}
    exec(examples["noise-of-page"].replace(line, instead), names)
    with pytest.raises(AssertionError, match=r"caller's model was changed|global generator was used"):
        contract.check(names["Noise"](), mine, request_20, Context(digits, cpu, seed=1), tmp_path)


def test_the_identity_of_the_page(
    examples: dict[str, str], sparse: Trained, request_20: ForgetRequest, digits: Records, cpu: Runtime
) -> None:
    """alpha=0 is FT bit for bit if FT runs under the same name, and only then; another alpha is not."""
    text = next(text for _, text in blocks(DOCS / "adding-a-method.md") if "class Plain" in text)
    names: dict[str, Any] = {"__name__": "identity_of_the_page"}
    exec(text.replace("two-sided", "two-sided-of-page"), names)
    options = {"epochs": 2, "batch_norm": "frozen", "batch_size": 16}
    context = Context(digits, cpu, seed=1)
    hashes = [
        method.forget(sparse, request_20, context).trained.hash
        for method in (
            names["Plain"](**options), get_method("two-sided-of-page", alpha=0.0, **options),
            get_method("FT", **options), get_method("two-sided-of-page", alpha=0.5, **options),
        )
    ]  # fmt: skip
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_the_method_with_two_objectives_resumes_and_counts(
    examples: dict[str, str], sparse: Trained, request_20: ForgetRequest, digits: Records, cpu: Runtime,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("expunge.training.loop.CHECKPOINT_SECONDS", -1.0)
    method, context = get_method("two-sided-of-page", epochs=3, batch_size=16, alpha=0.2), Context(digits, cpu, seed=1)
    expected = method.forget(sparse, request_20, context)

    def stop(label: str, done: int, total: int, info: dict[str, Any]) -> None:
        if info["epoch"] == 3:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint"
    with pytest.raises(Interrupted, match="epoch 3"):
        method.forget(sparse, request_20, dataclasses.replace(context, checkpoint=path, progress=stop))
    resumed = method.forget(sparse, request_20, dataclasses.replace(context, checkpoint=path))
    assert resumed.trained.hash == expected.trained.hash
    retain = len(expected.trained.split.retain)
    read = itertools.islice(itertools.cycle([16, 4]), -(-retain // 16))  # 20 records to forget are two batches
    assert resumed.cost.trained_records == expected.cost.trained_records == 3 * (retain + sum(read))


# ---- data sources


def test_the_source_of_the_page(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = blocks(DOCS / "data.md")
    files = [
        (kind, text.replace('@register_source("flowers"', '@register_source("flowers-of-page"'))  # as for the methods
        for kind, text in found
        if re.match(r"# flowers\.(?:py|yaml)\n", text)
    ]
    assert len(files) == 2
    rows = np.random.default_rng(0).normal(size=(60, 3))
    rows[:, 0] = np.arange(60) % 2
    np.savetxt("flowers.csv", rows, delimiter=",")
    try:
        with SOURCES.temporary():
            follow(files)
            command("expunge check flowers.yaml")
            records = load_records("flowers:flowers", data_dir=".")
            before = source_fingerprint("flowers:flowers", data_dir=".")
            np.savetxt("flowers.csv", rows[:59], delimiter=",")
            assert source_fingerprint("flowers:flowers", data_dir=".") != before
    finally:
        sys.modules.pop("flowers", None)
    assert "60 records of shape (2,)" in capsys.readouterr().out
    assert records.features is not None
    assert np.array_equal(records.features, rows[:, 1:].astype(np.float32))
    assert records.record_ids[7] == "flower-00007"


# ---- criteria, granularities, scopes, schedules


def test_the_tables_of_the_sparsity_page_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_PLUGINS", "0")
    text = (DOCS / "sparsity.md").read_text(encoding="utf-8")
    assert text.count("<!-- generated: ") == 4
    assert update_page(text) == text, "regenerate it: make pages"
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
    page = (DOCS / "scores.md").read_text(encoding="utf-8")
    between = page.partition("<!-- generated: scores -->\n")[2].partition("<!-- end -->")[0]
    assert between == f"\n{table}\n", "make pages"
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
