"""The documentation: its links, its pages of file formats, every command and snippet of README and tutorial."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from own_networks import SmallNet
from pages import DOCS, ROOT, blocks, command, follow

import expunge
from expunge.core.files import read_tensors, write_tensors
from expunge.core.mask import Mask
from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained
from expunge.data.records import Records
from expunge.evaluation import compute_confidence_histogram, predict_parts, tabulate_classes
from expunge.methods import Context, get_method
from expunge.models import load_trained, save_trained
from expunge.training import Runtime

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


def test_tests_and_scripts_that_pages_name_exist() -> None:
    text = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = {name.rstrip(".") for name in re.findall(r"(?<![\w/])(?:tests|benchmarks|\.ci)/[\w./-]+", text)}
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


# ---- code blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_import_what_is_there(page: Path) -> None:
    for _, text in (block for block in blocks(page) if block[0] == "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "expunge":
                home = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(home, alias.name)] == []


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
    names = follow([block for block in found if block[0] == "python"], _own_objects())
    assert names["scores"]["UA"].reference is not None
    assert load_trained("unlearned").split.counts()["forget"] == 3
    assert Path("report.html").stat().st_size > 10_000
    assert type(names["network"]) is SmallNet


def _own_objects() -> dict[str, Any]:
    """What the README assumes: a network of the reader, trained on a data set of the reader."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    x = torch.tensor(inputs / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)[:400]
    dataset = torch.utils.data.TensorDataset(x, torch.tensor(labels[:400]))
    torch.manual_seed(0)
    network = SmallNet()
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(20):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(x[:300]), dataset.tensors[1][:300]).backward()
        optimiser.step()
    rows = {"train_rows": range(300), "test_rows": range(300, 400), "rows": [3, 14, 15]}
    return {"network": network, "dataset": dataset, "make": SmallNet, **rows}


def test_adopt_page(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = follow(blocks(DOCS / "adopt.md"))
    assert names["third"].split.counts()["forget"] == 6
    assert names["second"].split.counts()["forget"] == 7
    assert capfd.readouterr().out.count("Disparity average") == 3
    assert names["truth"].guarantee == "exact"


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
        for part in re.split(r"\.\.\.|the test set|^N (?:tensors have)?", message):
            assert part.strip() in source, message


# ---- file formats


def keys(body: Mapping[str, Any], *deep: str) -> set[str]:
    """Keys of an object, those of the objects under `deep` as `above.key`."""
    found = set()
    for key, value in body.items():
        found |= {f"{key}.{name}" for name in value} if key in deep else {key}
    return found


def documented(page: str) -> set[str]:
    return set(re.findall(r"`([\w.]+)`", (DOCS / "formats" / page).read_text()))


@pytest.fixture(scope="module")
def saved(sparse: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("documented") / "model"
    save_trained(sparse, place)
    return place


def test_outcome_page(sparse: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime) -> None:
    outcome = get_method("FT", epochs=1).forget(sparse, request_20, Context(digits, cpu))
    body = outcome.to_json()
    assert keys(body, "request", "method", "cost", "state", "hashes") <= documented("outcome.md")
    assert keys(body["seeds"]) | keys(body["history"][0]) <= documented("outcome.md")


def test_details_page(sparse: Trained, digits: Records, request_20: ForgetRequest, cpu: Runtime) -> None:
    parts = predict_parts(sparse, request_20, digits, runtime=cpu)
    body = {"confidence": compute_confidence_histogram(parts), "classes": tabulate_classes(parts), "density": {}}
    named = documented("details.md")
    assert keys(body, "confidence") <= named
    assert keys(body["confidence"]["parts"]) | keys(body["confidence"]["parts"]["forget"]) <= named
    assert keys(body["classes"][0]) | keys(body["classes"][0]["retain"]) <= named


def test_mask_page(saved: Path) -> None:
    _, metadata = read_tensors(saved / "mask.safetensors")
    assert keys(metadata, "provenance") <= documented("mask.md")


def test_hashes_can_be_checked_as_the_page_says(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    (snippet,) = [text for language, text in blocks(DOCS / "formats/hashes.md") if language == "python"]
    exec(snippet, {})
    monkeypatch.setattr("json.load", lambda file: {"hashes": {"weights": "0" * 64}})
    with pytest.raises(AssertionError):
        exec(snippet, {})


def test_zeros_become_a_mask_as_the_page_says(saved: Path, workplace: Path, sparse: Trained) -> None:
    assert sparse.mask is not None
    tensors, _ = read_tensors(saved / "model.safetensors")
    for name, alive in sparse.mask.kept.items():
        tensors[name] = torch.where(alive, tensors[name], -0.0)
    write_tensors("model.safetensors", tensors)
    follow(blocks(DOCS / "formats/mask.md"))
    mask = Mask.load("mask.safetensors")
    made, _ = read_tensors("model.safetensors")
    for name, alive in sparse.mask.kept.items():
        assert torch.equal(mask.kept[name], alive)
        dead = made[name][~alive]
        assert not (dead != 0).any()
        assert not torch.signbit(dead).any()


def test_names_in_the_pages_are_there_after_import_expunge() -> None:
    """As a user types them: `import expunge`, then the whole name. A new interpreter has nothing imported yet."""
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    found = {name for page in pages for name in re.findall(r"(?<![\w./-])expunge(?:\.[A-Za-z_]\w*)+", page.read_text())}
    top = {path.parent.name for path in (ROOT / "src/expunge").glob("*/__init__.py")} | set(expunge.__all__)
    names = sorted(name for name in found if name.split(".")[1] in top)  # the others are kinds of files
    assert len(names) > 50
    code = (
        "import expunge, functools, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: functools.reduce(getattr, name.split('.')[1:], expunge)\n"
        "    except AttributeError as error: print(name, error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert result.stdout == ""
