import dataclasses
import itertools
import math
import re
from html.parser import HTMLParser

import pytest
from sample_report import sample

from expunge.core.errors import FileError
from expunge.core.outcome import Extent
from expunge.report import (
    Comparison,
    ModelResult,
    ReportContent,
    ReportScore,
    ReportWarning,
    RequestSummary,
    Scenario,
    render_report,
    write_report,
)
from expunge.report.formatting import format_number

VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = '<script>alert("1")</script>\'"&{{ 7*7 }}'
EXTENTS = {HOSTILE: Extent("partly rewritten", 2, 1, 9, 3, names=(HOSTILE,))}


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and checks that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(sample())


@pytest.fixture(scope="module")
def one_seed() -> str:
    return render_report(sample(1))


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_nothing_is_loaded_and_nothing_runs(html, page):
    assert not re.search(r"https?:|//\w|@import|url\(|javascript:", html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "img", "form", "base", "use", "image"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert "src" not in attributes
        if "href" in attributes:
            assert attributes["href"][0] == "#" or (tag, attributes["href"]) == ("link", "data:,")
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_every_reference_resolves(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for t, a in page.tags if t == "a"]
    for _, attributes in page.tags:
        targets += (attributes.get("aria-labelledby") or "").split()
    assert len(targets) > 40
    assert set(targets) <= set(ids)


def test_headings_step_down_one_level_at_a_time(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_tables_have_scopes_and_scroll_in_their_own_region(html, page):
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert html.count("<table") == len(
        re.findall(r'class="scroll" role="region" aria-labelledby="[^"]+" tabindex="0">\s*<table', html)
    )


def test_all_sections_are_there(page):
    for heading in ("The requests", "Summary", "Glossary", "Gaps to Retrain", "Scores", "Accuracy by class",
                    "Confidence before and after unlearning",
                    "Mask density by layer", "State that depends on the forgotten records", "What this does not show",
                    "Provenance", "Noise floor"):  # fmt: skip
        assert heading in page.words
    assert "What this does not show" in Page(render_report(_bare())).words


def test_every_score_gap_and_definition_appears(html, one_seed):
    for seeds, text in ((1, one_seed), (3, html)):
        content, words = sample(seeds), Page(text).words
        for scenario in content.scenarios:
            for model in scenario.models():
                for score in model.scores.values():
                    assert format_number(score.value, score.unit) in words
                    assert score.definition in words
                    if score.interval:
                        assert f"{format_number(score.interval[0])} to {format_number(score.interval[1])}" in words
    assert words.count("± ") > 100


def test_an_interval_stands_directly_under_its_value():
    score = ReportScore("UA", 6.0, unit="%", reference=5.0, interval=(4.0, 9.0))
    further = ReportScore("Overlap", 0.5, unit="", reference=0.25, interval=(0.25, 0.75))
    models = (
        ModelResult("Retrain", "retrained", {"UA": ReportScore("UA", 5.0, unit="%")}),
        ModelResult("FT", "unlearned", {"UA": score, "Overlap": further}),
    )
    scenario = Scenario("s", RequestSummary(20), (Comparison("dense", models),))
    words = Page(render_report(ReportContent("t", (scenario,)))).words
    assert "6.00 4.0 to 9.0 +1.00" in words
    assert "0.500 0.250 to 0.750 +0.250" in words
    assert "Under a value: its confidence interval, its signed gap to Retrain" in words


def test_a_gap_is_marked_when_it_is_within_the_noise():
    def cell(value):
        reference = ModelResult(
            "Retrain", "retrained", {"UA": ReportScore("UA", 5.0, "%", spread=0.9, noise_floor=0.5, seeds=3)}
        )
        model = ModelResult("FT", "unlearned", {"UA": ReportScore("UA", value, "%")})
        html = render_report(
            ReportContent("t", (Scenario("s", RequestSummary(1), (Comparison("dense", (reference, model)),)),))
        )
        return re.search(rf"<td>{value:.2f}.*?</td>", html, re.S).group(0)

    assert "≈ </span>+0.50" in cell(5.5)
    assert "≈" not in cell(5.51)
    assert "+0.51" in cell(5.51)
    assert "−1.00" in cell(4.0)


def test_one_seed_has_a_note_instead_of_a_noise_floor(one_seed):
    words = Page(one_seed).words
    assert "the reference was trained with one seed" in words
    assert "Noise floor" not in words


def test_cost_comes_from_the_scores_before_the_method_and_notes_are_shown_once():
    reference = ModelResult("Retrain", "retrained", passes=50.0, seconds=8.0, notes=("no non-member pool",))
    scores = {"Passes": ReportScore("Passes", 2.0, "passes"), "RTE": ReportScore("RTE", 1.0, "s")}
    model = ModelResult("FT", "unlearned", scores, passes=3.0, seconds=3.0, notes=("no non-member pool",))
    comparison = Comparison("dense", (reference, model), {"UA": 0.1})
    html = render_report(ReportContent("t", (Scenario("s", RequestSummary(1), (comparison,)),)))
    assert '<td>2.0<span class="gap">4 %</span></td>' in html
    assert '<td>1.0<span class="gap">12 %</span></td>' in html
    assert html.count("o non-member pool") == 1


def _bare() -> ReportContent:
    return ReportContent(
        "Bare", (Scenario("s", RequestSummary(0), (Comparison("dense", (ModelResult("FT", "unlearned"),)),)),)
    )


def test_missing_values_are_an_en_dash_with_a_reason():
    scores = {"UA": ReportScore("UA", math.nan), "AUC": ReportScore("AUC", None, missing="no pool")}
    options = {"rate": math.nan, "mask": None}
    model = ModelResult("FT", "unlearned", scores, passes=math.nan, options=options, class_accuracy=(math.nan,))
    other = ModelResult("GA", "unlearned", {"TA": ReportScore("TA", 1.0)})
    scenario = Scenario("s", RequestSummary(1), (Comparison("dense", (model, other)),), ("a",))
    for content in (ReportContent("t", (scenario,), provenance={"x": math.inf}), _bare()):
        words = Page(render_report(content)).words
        assert not re.search(r"\b(nan|NaN|inf|None|undefined)\b", words)
    words = Page(render_report(ReportContent("t", (scenario,)))).words
    for reason in ("– not a finite number", "– no pool", "– not measured"):
        assert reason in words


def test_everything_is_escaped():
    request = RequestSummary(1, {"by": "ids", "file": HOSTILE}, HOSTILE, (HOSTILE,))
    score = ReportScore(HOSTILE, 1.0, HOSTILE, definition=HOSTILE, missing=HOSTILE)
    model = sample().scenarios[0].comparisons[1].models[2]
    model = dataclasses.replace(
        model, label=HOSTILE, scores={HOSTILE: score}, class_accuracy=(1.0,), density={HOSTILE: 0.5},
        guarantee=HOSTILE, options={HOSTILE: HOSTILE}, history=(HOSTILE,), facts={HOSTILE: HOSTILE},
        state=dataclasses.replace(model.state, rewrote=("x",), meaning={"x": HOSTILE}, extents=EXTENTS),
        relative_to={"file": HOSTILE, "hash": HOSTILE},
        warnings=(ReportWarning(HOSTILE, HOSTILE, HOSTILE),), file=HOSTILE, file_hash=HOSTILE,
        hashes={"weights": HOSTILE, "mask": HOSTILE},
        confidence={HOSTILE: model.confidence["forget"]},
    )  # fmt: skip
    scenario = Scenario(HOSTILE, request, (Comparison(HOSTILE, (model,)),), (HOSTILE,), HOSTILE)
    html = render_report(ReportContent(HOSTILE, (scenario,), HOSTILE, HOSTILE, limits=(HOSTILE,), created=HOSTILE,
                                       provenance={HOSTILE: [HOSTILE]}, versions={HOSTILE: HOSTILE}))  # fmt: skip
    assert "<script" not in html
    assert "{{ 7*7 }}" in html
    page = Page(html)
    assert page.words.count('<script>alert("1")</script>') > 20
    assert not any(tag == "script" for tag, _ in page.tags)


def test_the_same_content_gives_the_same_bytes(tmp_path, html, one_seed):
    """`html` was rendered before, from another object of equal content."""
    write_report(tmp_path / "a" / "report.html", sample())
    assert (tmp_path / "a" / "report.html").read_bytes() == html.encode()
    assert one_seed != html
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "report.html"]


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError):
        write_report(tmp_path / "file" / "report.html", _bare())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _palettes(html: str) -> dict[str, dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", html, re.S)
    return {
        name: dict(re.findall(r"--([a-z_]+): ([^;]+);", block))
        for name, block in zip(("light", "dark", "print"), blocks, strict=True)
    }


def _luminance(rgb: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(text: str) -> tuple[float, ...]:
    if text.startswith("#"):
        return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))
    return tuple(float(part) for part in text.split())


def _contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_formula_is_that_of_wcag():
    assert _contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    assert _contrast(_rgb("#767676"), _rgb("#ffffff")) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("name", ["light", "dark", "print"])
def test_text_and_figures_have_enough_contrast_in_every_palette(html, name):
    palette = _palettes(html)[name]
    assert len(palette) == (16 if name == "light" else 14)
    for ground in ("bg", "panel"):
        for text in ("ink", "muted", "accent", "dependent"):
            assert _contrast(_rgb(palette[text]), _rgb(palette[ground])) >= 4.5, (text, ground)
    assert _contrast(_rgb(palette["alarm"]), _rgb(palette["alarmbg"])) >= 4.5
    background, ink = _rgb(palette["bg"]), _rgb(palette["ink"])
    for heat in ("below", "above"):
        full = tuple(0.5 * a + 0.5 * b for a, b in zip(_rgb(palette[heat]), background, strict=True))
        assert _contrast(ink, full) >= 4.5, heat
    for part in ("forget", "retain", "non_members"):
        drawn = tuple(0.85 * a + 0.15 * b for a, b in zip(_rgb(palette[part]), background, strict=True))
        assert _contrast(drawn, background) >= 3.0, part


def test_figures_take_their_colours_from_the_palette(html):
    assert "prefers-color-scheme: dark" in html
    body = html[html.index("<body") :]
    assert not re.search(r"#[0-9a-f]{6}\b|rgb\(|fill=|stroke=", re.sub(r"<code>.*?</code>|<dd>.*?</dd>", "", body))
    for css in set(re.findall(r'class="([^"]*f-[^"]*)"', body)):
        for name in css.split():
            assert f".{name}" in html


def test_scores_that_few_models_have_are_in_a_separate_table() -> None:
    """The columns of the score table do not change; a score of patches is a row of the table below."""
    content = sample()
    scenario = content.scenarios[0]
    first = scenario.comparisons[0]
    unusual = ReportScore("Region radius", 0.25, "", "higher", "size of a certified region")
    changed = dataclasses.replace(first.unlearned[0], scores={**first.unlearned[0].scores, "Region radius": unusual})
    others = tuple(changed if model is first.unlearned[0] else model for model in first.models)
    with_it = dataclasses.replace(first, models=others)

    def rendered(comparison: Comparison) -> str:
        one = dataclasses.replace(scenario, comparisons=(comparison,))
        return render_report(dataclasses.replace(content, scenarios=(one,)))

    text = rendered(with_it)
    assert "Region radius" not in rendered(first)
    assert text.count('<table class="scores further">') == 1
    head, below = text.split('<table class="scores further">')
    assert "Region radius" not in head[head.index('<table class="scores">') :]
    rows = below.split("</table>")[0]
    assert "Region radius" in rows
    assert "0.250" in rows
