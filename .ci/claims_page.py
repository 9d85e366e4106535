"""The tables of docs/claims.md: the claims of the three papers (docs/claims.yaml), judged by committed results.

`update_claims` writes the tables of the page again. A row is decided by plans (`plans/NAME.results.json`, or
`plans/pending/NAME.yaml` if the plan has not been run) or by a benchmark's result file; the rules are on the page.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from expunge.evaluation.facts import score_facts
from expunge.evaluation.seeds import mean, noise_floors, t_interval
from expunge.experiments import load_plan, read_results
from expunge.experiments.config.plan_file import Claim
from expunge.experiments.config.selections import matches
from expunge.experiments.results.claims import FAILS, HOLDS, NOISE, UNTESTED, cell_score, check_claim
from expunge.experiments.results.groups import group_by_labels

ROWS = 6  #: A row with more cases than this has ranges over them.
PENDING = "not run yet"
TURNED = {HOLDS: FAILS, FAILS: HOLDS}
Results = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison: where, the two numbers with their names, and the verdict on the paper's claim."""

    at: str
    first: float | None
    second: float | None
    names: tuple[str, str]
    decimals: int
    verdict: str


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a plan or benchmark says: its checks (none: not run yet), and whether the rule is in docs/claims.yaml."""

    name: str
    link: str
    checks: tuple[Check, ...]
    later: bool = False


def read_claims(path: Path) -> dict[str, Any]:
    """The content of docs/claims.yaml."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def update_claims(text: str, root: Path) -> str:
    """Write the tables of the page again: each after its `<!-- claims: PAPER -->` or `<!-- main-table: CASE -->`."""
    body = read_claims(root / "docs" / "claims.yaml")
    text = re.sub(
        r"<!-- claims: (\S+) -->\n(?:\|.*\n)*",
        lambda found: f"<!-- claims: {found[1]} -->\n{render_claims(body['claims'][found[1]], root)}\n",
        text,
    )
    text = re.sub(
        r"<!-- summary of the claims -->\n(?:\|.*\n)*",
        lambda found: f"<!-- summary of the claims -->\n{render_summary(body['claims'], root)}\n",
        text,
    )
    return re.sub(
        r"<!-- main-table: (.+) -->\n(?:\|.*\n)*",
        lambda found: f"<!-- main-table: {found[1]} -->\n{render_main_table(body['main table'], found[1], root)}\n",
        text,
    )


def render_claims(rows: Sequence[Mapping[str, Any]], root: Path) -> str:
    """The table of one paper."""
    lines = ["| claim | its number | ours | verdict | decided by; what differs |", "|---|---|---|---|---|"]
    for row in rows:
        decisions = [decide(item, root) for item in row.get("decided by", ())]
        links = ", ".join(dict.fromkeys(decision.link for decision in decisions))
        notes = ". ".join(text for text in (links, row["differs"]) if text not in ("", "-")) or "no study"
        cells = [row["claim"], row["number"], describe(decisions), judge(decisions, row.get("unknown")), notes]
        lines.append("| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def render_summary(papers: Mapping[str, Sequence[Mapping[str, Any]]], root: Path) -> str:
    """How many claims of each paper hold, fail, cannot be said, or wait for a run."""
    heads = ["holds", "holds in part", "fails", "cannot be said", PENDING]
    lines = ["| paper | claims | " + " | ".join(heads) + " |", "|---|" + "---:|" * (1 + len(heads))]
    for paper, rows in papers.items():
        verdicts = [
            judge([decide(item, root) for item in row.get("decided by", ())], row.get("unknown")) for row in rows
        ]
        count = Counter(
            next(head for head in sorted(heads, key=len, reverse=True) if head in one) for one in map(_head, verdicts)
        )
        lines.append(f"| [{paper}](references.md) | {len(rows)} | " + " | ".join(str(count[h]) for h in heads) + " |")
    return "\n".join(lines)


def _head(verdict: str) -> str:
    return verdict.split("**")[1] if verdict.startswith("**") else PENDING


def judge(decisions: Sequence[Decision], unknown: str | None = None) -> str:
    """The verdict on a row; the rules are on the page."""
    checks = [check for decision in decisions for check in decision.checks]
    waiting = list(dict.fromkeys(f"`{decision.name}`" for decision in decisions if not decision.checks))
    count = Counter(check.verdict for check in checks)
    holds, fails, total = count[HOLDS], count[FAILS], len(checks)
    rest, of = total - holds - fails, "" if total == 1 else f" in {total} of {total}"
    if unknown is not None:
        return f"**cannot be said**: {unknown}"
    if not checks:
        return f"{PENDING}: {', '.join(waiting)}" if waiting else "**cannot be said**: no study"
    if not holds and not fails:
        verdict = f"**cannot be said**: within noise{of}"
    elif total in (holds, fails):
        verdict = ("**holds**" if holds else "**fails**") + of
    elif holds and fails:
        verdict = f"**holds in part**: in {holds} of {total}; fails in {fails}"
    else:
        verdict = f"**holds** in {holds} of {total}" if holds else f"**fails** in {fails} of {total}"
    verdict += f"; cannot be said in {rest}" if rest and rest != total else ""
    verdict += "†" if any(decision.later and decision.checks for decision in decisions) else ""
    return verdict + (f"; {PENDING}: {', '.join(waiting)}" if waiting else "")


def describe(decisions: Sequence[Decision]) -> str:
    """The numbers of a row, by plan; of many cases, the ranges."""
    total = sum(len(decision.checks) for decision in decisions)
    found: dict[str, list[str]] = {}
    for decision in decisions:
        checks = [check for check in decision.checks if check.first is not None and check.second is not None]
        if checks:
            texts = [_describe_check(one) for one in checks] if total <= ROWS else [_describe_range(checks)]
            found.setdefault(decision.name, []).extend(texts)
    texts = [(f"{name}: " if len(found) > 1 else "") + "; ".join(own) for name, own in found.items()]
    return "<br>".join(texts) or "-"


def _describe_range(checks: Sequence[Check]) -> str:
    decimals, parts = checks[0].decimals, []
    for name, values in zip(checks[0].names, ([c.first for c in checks], [c.second for c in checks]), strict=True):
        numbers = [value for value in values if value is not None]
        if name:
            low, high = (f"{end(numbers):,.{decimals}f}" for end in (min, max))
            parts.insert(0, f"{name} {low}" + (f" to {high}" if high != low else ""))
    return ", ".join(parts) + (f" ({len(checks)} cases)" if len(checks) > 1 else "")


def _describe_check(check: Check) -> str:
    at = f"{check.at}: " if check.at else ""
    first, second = (f"{value:,.{check.decimals}f}" for value in (check.first, check.second))
    return at + (f"{check.names[1]} {second}, " if check.names[1] else "") + f"{check.names[0]} {first}"


def decide(item: Mapping[str, Any], root: Path) -> Decision:
    """What one entry of `decided by` says."""
    if "benchmark" in item:
        return _decide_by_benchmark(item, root)
    name = item["plan"]
    results_path = root / "plans" / f"{name}.results.json"
    if not results_path.is_file():
        path = find_plan(name, root)
        return Decision(name, f"[{name}](../{path.relative_to(root)})", (), "check" in item)
    results = _read(results_path)
    link = f"[{name}](../plans/{name}.md)"
    if "check" in item:
        return Decision(name, link, tuple(_later_checks(item["check"], results, item)), later=True)
    claim = next((claim for claim in results["claims"] if claim["name"] == item["claim"]), None)
    if claim is None:
        raise ValueError(f"docs/claims.yaml: the results of {name} have no claim {item['claim']!r}")
    return Decision(name, link, tuple(_make_checks(claim, results, item)))


@functools.lru_cache
def _read(path: Path) -> Results:
    return read_results(path)


def find_plan(name: str, root: Path) -> Path:
    """The file of a plan, run or not."""
    for folder in (root / "plans", root / "plans" / "pending"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise FileNotFoundError(f"docs/claims.yaml names the plan {name!r}, which is not in plans")


def _make_checks(claim: Mapping[str, Any], results: Results, item: Mapping[str, Any]) -> Iterable[Check]:
    """The checks of a claim at the chosen labels, with the noise floor and, if stated, the verdict turned round."""
    decimals = _find_decimals(claim["score"], results)
    names = tuple(", ".join(str(label) for label in group.values()) for group in claim["compare"])
    checks = [check for check in claim["checks"] if matches(check["at"], item.get("at", {}))]
    if not checks:
        raise ValueError(f"docs/claims.yaml: {claim['name']!r} has no check at {item.get('at')}")
    for check in checks:
        verdict = check["verdict"]
        if verdict in TURNED:
            excess = check["gain"] - (claim["by"] if verdict == FAILS else 0)
            if abs(excess) <= _find_floor(claim, check["at"], results):
                verdict = NOISE
        if item.get("opposite"):
            verdict = TURNED.get(verdict, verdict)
        at = ", ".join(label for axis, label in check["at"].items() if axis not in item.get("at", {}) or
                       isinstance(item["at"][axis], list))  # fmt: skip
        yield Check(at, check["first"], check["second"], (names[0], names[1]), decimals, verdict)


def _find_floor(claim: Mapping[str, Any], at: Mapping[str, str], results: Results) -> float:
    """The larger noise floor of the score among the retrained models that the two groups are compared with; 0: none."""
    cells, score = results["cells"], claim["score"].removeprefix("gap:")
    facts = score_facts(score)
    if not (facts.gap or facts.averages):
        return 0.0
    seeds = {axis["name"] for axis in results["axes"] if axis["role"] == "replicate"}
    floors = [0.0]
    for group in claim["compare"]:
        own = [c for c in cells if all(matches(c["labels"], part) for part in (claim["where"], group, at))]
        wanted = {_without(cells[cell["reference"]]["labels"], seeds) for cell in own}
        for labels in wanted:
            members = [c for c in cells if c["is_reference"] and _without(c["labels"], seeds) == labels]
            found = noise_floors([c["scores"] for c in members], [c.get("hashes", {}).get("weights") for c in members])
            floors.append(found.get(score, 0.0))
    return max(floors)


def _without(labels: Mapping[str, str], axes: set[str]) -> tuple[tuple[str, str], ...]:
    return tuple((axis, label) for axis, label in labels.items() if axis not in axes)


def _later_checks(body: Mapping[str, Any], results: Results, item: Mapping[str, Any]) -> Iterable[Check]:
    """The checks of a rule that docs/claims.yaml states: a comparison as in a plan, or with the constant `than`."""
    if "than" not in body:
        claim = check_claim(make_claim(body), results["cells"], results["axes"])
        yield from _make_checks(claim, results, item)
        return
    axes = [axis for axis in results["axes"] if axis["name"] in body.get("each", ())]
    decimals, sign = _find_decimals(body["score"], results), 1 if body["expect"] == "lower" else -1
    for choice, members in group_by_labels(results["cells"], axes):
        own = [cell for cell in members if matches(cell["labels"], body.get("where", {}))]
        values = [v for cell in own if (v := cell_score(cell, results["cells"], body["score"])) is not None]
        if values:
            verdict = _judge_gains([sign * (body["than"] - value) for value in values])
            at = ", ".join(choice)
            names = (f"{body['name']} ({'below' if sign == 1 else 'above'} {body['than']:,}?)", "")
            yield Check(at, mean(values), float(body["than"]), names, decimals, verdict)


def _find_decimals(score: str, results: Results) -> int:
    name = score.removeprefix("gap:")
    unit = results["scores"].get(name, {}).get("unit")
    return {"%": 2, "bytes": 0}.get(str(unit), score_facts(name).decimals)


def _judge_gains(gains: Sequence[float]) -> str:
    interval = t_interval(gains)
    if interval is None:
        return UNTESTED
    return HOLDS if interval[0] > 0 else FAILS if interval[1] < 0 else NOISE


def make_claim(body: Mapping[str, Any]) -> Claim:
    """The claim that a rule of docs/claims.yaml states."""
    return Claim(**{"name": "rule", "statement": "", **body})


def _decide_by_benchmark(item: Mapping[str, Any], root: Path) -> Decision:
    """Paired differences over seeds in benchmarks/results/NAME.json; a path's steps are separated by `/`."""
    name = item["benchmark"]
    path = root / "benchmarks" / "results" / f"{name}.json"
    if not path.is_file():
        script = root / "benchmarks" / f"{name}.py"
        if not script.is_file():
            raise FileNotFoundError(f"docs/claims.yaml names the benchmark {name!r}, which is not in benchmarks")
        return Decision(name, f"[benchmarks/{name}.py](../benchmarks/{name}.py)", ())
    body, sign = json.loads(path.read_text(encoding="utf-8")), 1 if item["expect"] == "lower" else -1
    link, checks = f"[benchmarks/results/{name}.json](../benchmarks/results/{name}.json)", []
    for setting in item.get("settings", [""]):
        pairs = []
        for seed in item["seeds"]:
            values = [_follow(body, item[key], setting, seed) for key in ("first", "second")]
            if None not in values:
                pairs.append(values)
        if pairs:
            first, second = (mean([pair[i] for pair in pairs]) for i in (0, 1))
            verdict = _judge_gains([sign * (item.get("factor", 1) * b - a) for a, b in pairs])
            checks.append(Check(setting, first, second, tuple(item["names"]), item.get("decimals", 2), verdict))
    return Decision(name, link, tuple(checks))


def _follow(body: Any, path: str, setting: str, seed: int) -> float | None:
    for step in path.replace("{setting}", setting).replace("{seed}", str(seed)).split("/"):
        if not isinstance(body, Mapping) or step not in body:
            return None
        body = body[step]
    return float(body)


def render_main_table(body: Mapping[str, Any], case: str, root: Path) -> str:
    """The paper's main table beside ours: `paper / ResNet-20, CPU / ResNet-18, GPU`, means over seeds."""
    columns = body["columns"]
    found = {name: _read_means(root / "plans" / f"{name}.results.json", case) for name in body["plans"]}
    lines = ["| method | sparsity | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]
    for method, sparsities in body["cases"][case].items():
        for sparsity, numbers in sparsities.items():
            cells = []
            for place, column in enumerate(columns):
                printed = "-" if numbers is None else f"{numbers[place]:.2f}"
                ours = [means.get((method, sparsity, column)) for means in found.values()]
                cells.append(" / ".join([printed, *("-" if one is None else f"{one:.2f}" for one in ours)]))
            lines.append(f"| {method} | {sparsity} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _read_means(path: Path, case: str) -> dict[tuple[str, str, str], float]:
    if not path.is_file():
        return {}
    results = _read(path)
    values: dict[tuple[str, str, str], list[float]] = {}
    for cell in results["cells"]:
        labels = cell["labels"]
        if labels["forget"] == case and cell["state"] == "finished":
            for score in cell["scores"]:
                value = cell_score(cell, results["cells"], score)
                if value is not None:
                    values.setdefault((labels["method"], labels["sparsity"], score), []).append(value)
    return {key: value for key, one in values.items() if (value := mean(one)) is not None}


def list_faults(body: Mapping[str, Any], root: Path) -> list[str]:
    """What docs/claims.yaml names that does not exist: plans, claims, labels, benchmarks."""
    faults = []
    for paper, rows in body["claims"].items():
        for row in rows:
            for item in row.get("decided by", ()):
                if "plan" in item:
                    faults += [f"{paper}, {row['id']}: {fault}" for fault in _plan_faults(item, root)]
                elif not (root / "benchmarks" / f"{item['benchmark']}.py").is_file():
                    faults.append(f"{paper}, {row['id']}: no benchmark {item['benchmark']!r}")
    return faults


@functools.lru_cache
def _read_plan(path: Path) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The axes `each` of a plan's claims, and the labels of its axes; from its results, which are read faster."""
    results = path.with_name(f"{path.stem}.results.json")
    if results.is_file():
        body = _read(results)
        claims, axes = body["claims"], body["axes"]
    else:
        plan = load_plan(path)
        claims = [claim.to_json() for claim in plan.claims]
        axes = [{"name": axis.name, "labels": axis.labels} for axis in plan.axes]
    each = {claim["name"]: set(claim["each"]) for claim in claims}
    return each, {axis["name"]: set(axis["labels"]) for axis in axes}


def _plan_faults(item: Mapping[str, Any], root: Path) -> list[str]:
    try:
        claims, labels = _read_plan(find_plan(item["plan"], root))
    except FileNotFoundError as error:
        return [str(error)]
    if "claim" in item:
        if item["claim"] not in claims:
            return [f"{item['plan']} has no claim {item['claim']!r}"]
        chosen, unknown = [item.get("at", {})], set(item.get("at", {})) - claims[item["claim"]]
        if unknown:
            return [f"{item['plan']}, {item['claim']!r}: not separate for {sorted(unknown)}"]
    else:
        chosen = [item["check"].get("where", {}), *item["check"].get("compare", ())]
        chosen.append({axis: [] for axis in item["check"].get("each", ())})
    return [
        f"{item['plan']}: {axis} has no label {label!r}"
        for selection in chosen
        for axis, wanted in selection.items()
        for label in (wanted if isinstance(wanted, list) else [wanted])
        if label not in labels.get(axis, set())
    ] + [f"{item['plan']} has no axis {axis!r}" for selection in chosen for axis in selection if axis not in labels]
