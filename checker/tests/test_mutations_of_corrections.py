"""Mutations of a two-layer network's certificates: every correction, soft gates in groups, real arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checker_case import written
from truth import true_spares

from expunge_check.errors import BadCertificate
from expunge_check.folder.files import Folder, read_folder
from expunge_check.verify import CERTIFIED, Checker
from test_mutations import copied, mutate, rehashed

MUTATIONS = 160

#: Kind, gate, claim, and how often at least some patch must stay certified, fail, and the folder be refused.
CASES = {
    "constant": ("constant", "exact", "float32"),
    "minimal": ("minimal", "exact", "float32"),
    "li2025": ("li2025", "exact", "float32"),
    "soft": ("constant", "soft", "float32"),
    "soft minimal": ("minimal", "soft", "float32"),
    "real": ("constant", "exact", "real"),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Folder]:
    """Four patches on a network of 3 inputs, 5 and 4 units, 4 classes; with soft gates two of them form a group."""

    def made(name: str) -> Folder:
        correction, gate, claim = CASES[name]
        place = tmp_path_factory.mktemp("corrections") / "c"
        written(place, "mlp-two", correction=correction, gate=gate, claim=claim, count=4)
        folder = copied(read_folder(place))
        if gate == "soft":
            folder.patches["group"][:] = [0, 0, 1, 2]
            folder.patches["shift"][:2] = folder.patches["shift"][:2].max()
        if correction == "li2025":  # half of the scaled logits, with the shift that this needs
            folder.patches["alpha"][:2] *= np.float32(0.5)
            folder.patches["beta"][:2] = np.where(folder.patches["beta"][:2], folder.patches["beta"][:2] / 2 - 1e-3, 0)
        return rehashed(folder)

    return made


def mutate_more(folder: Folder, draws: np.random.Generator) -> str:
    """Change one entry: in half of the cases by `mutate`, else an entry of corrections and gates."""
    p, settings = folder.patches, folder.settings
    point = int(draws.integers(len(p["target"])))
    own = ["label", "group", "gate", "twice", "correction"] + ["alpha", "beta"] * (
        settings["correction"] == "li2025"
    ) * 2
    if draws.random() < 0.5:
        return mutate(folder, draws)
    what = str(draws.choice(own))
    if what == "label":
        p["label"][point] = draws.integers(4)
    elif what == "group":
        p["group"][point] = draws.integers(4)
    elif what == "gate":
        settings["gate"] = "soft" if settings["gate"] == "exact" else "exact"
    elif what == "twice":
        p["pattern"][point] = p["pattern"][draws.integers(len(p["pattern"]))]
    elif what == "correction" and settings["correction"] != "li2025":
        settings["correction"] = "minimal" if settings["correction"] == "constant" else "constant"
    elif what in ("alpha", "beta"):
        at = (point, int(draws.integers(4)))
        p[what][at] = p[what][at] * np.float32(draws.choice([0.5, 0.99, 1.01, -1])) + np.float32(draws.choice([0, 0.1]))
    return what


def verdicts(folder: Folder) -> Any:
    """Return the verdicts of a forged folder whose recorded logits match."""
    checker = Checker(rehashed(folder))
    checker.check_replay = lambda: 0.0  # type: ignore[method-assign]
    return checker.check()


@pytest.mark.parametrize("name", CASES)
def test_certified_only_if_rational_arithmetic_agrees(name, original):
    start, draws = original(name), np.random.default_rng(len(name))
    assert verdicts(copied(start)).verdicts == [CERTIFIED] * 4
    exact = true_spares(start)
    close = 1e-5 if name == "soft" else 1e-9
    assert np.allclose(verdicts(copied(start)).spare, [float(v) for v in exact], rtol=0, atol=close)
    accepted = refused = malformed = 0
    for _ in range(MUTATIONS):
        folder = copied(start)
        change = mutate_more(folder, draws)
        try:
            found = verdicts(folder).verdicts
        except BadCertificate:
            malformed += 1
            continue
        truth = true_spares(folder)
        for point, verdict in enumerate(found):
            if verdict == CERTIFIED:
                assert truth is not None, f"a malformed folder was accepted after {change}"
                assert truth[point] >= 0, f"a false statement was accepted after {change}"
                accepted += 1
            else:
                refused += 1
                assert truth is None or truth[point] < 1e-5, f"a valid proof was refused after {change}"
    assert accepted > MUTATIONS
    assert refused > 10
    assert malformed > 5
