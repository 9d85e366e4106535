"""The legacy membership attacks: a support vector machine on the confidence of the true label.

The attack maximises accuracy, so its verdict is a step function of the ratio of members to non-members it was fitted
on: read only the gap to the retrained model, and read the AUC (`auc.py`) beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.svm import SVC

from expunge.core.errors import ConfigError, DataError
from expunge.evaluation.predictions import Bools, Floats, Parts
from expunge.evaluation.score import RATIOS, Score

SOURCE = "Jia et al., NeurIPS 2023, section 5 and the released evaluation/SVC_MIA.py"

_NODES = 48


def svc_attack(members: Floats, non_members: Floats, targets: Floats) -> Bools:
    """Which targets the attack takes for members: `True` = predicted member.

    `sklearn.svm.SVC(C=3, gamma="auto", kernel="rbf")` on the one-dimensional features, members labelled 1 and listed
    first, non-members labelled 0. The fit is scikit-learn's own. For features in [0, 1] the decision function is
    evaluated by Chebyshev interpolation (`_decide`), with the same predictions as `SVC.predict` in a small part of
    its time.

    Args:
        members: `M` confidences of shadow members.
        non_members: `U` confidences of shadow non-members.
        targets: `T` confidences to decide on.

    Raises:
        DataError: members or non-members are empty.
    """
    if len(members) == 0 or len(non_members) == 0:
        raise DataError(
            f"the membership attack has {len(members)} members and {len(non_members)} non-members to learn from",
            hint="it needs retain and test records",
        )
    if len(targets) == 0:
        return np.empty(0, dtype=np.bool_)
    features = np.concatenate([members, non_members])[:, None]
    labels = np.concatenate([np.ones(len(members)), np.zeros(len(non_members))])
    attack = SVC(C=3, gamma="auto", kernel="rbf").fit(features, labels)
    inside = min(features.min(), targets.min()) >= 0.0 and max(features.max(), targets.max()) <= 1.0
    return _decide(attack, targets) if inside else np.asarray(attack.predict(targets[:, None]) == 1)


def _decide(attack: SVC, targets: Floats) -> Bools:
    """`attack.predict(targets) == 1` for features in [0, 1] and kernel exp(-(x - s)^2), gamma 1.

    f(x) = sum_i a_i exp(-(x - s_i)^2) + b is entire. With t = 2x - 1, a kernel term is at most exp(3.94^2 / 4) < 49 in
    size on the Bernstein ellipse of parameter 8, so interpolation at n Chebyshev nodes is wrong by less than
    28 * 8^(1 - n) * sum|a_i|, far below float64 rounding for n = 48. The sign is therefore proved wherever |f| exceeds
    the rounding bound; the rest, if any, goes through `SVC.predict` itself.
    """
    weights, vectors = attack.dual_coef_[0], attack.support_vectors_[:, 0]
    nodes = np.cos((np.arange(_NODES) + 0.5) * np.pi / _NODES)
    at_nodes = np.exp(-((((nodes + 1) / 2)[:, None] - vectors) ** 2)) @ weights + attack.intercept_[0]
    coefficients = np.polynomial.chebyshev.chebfit(nodes, at_nodes, _NODES - 1)
    decision = np.polynomial.chebyshev.chebval(2 * targets - 1, coefficients)
    scale = float(np.abs(weights).sum()) + abs(float(attack.intercept_[0])) + 1.0
    unsure = np.abs(decision) <= 4 * np.finfo(np.float64).eps * (len(weights) + 10 * _NODES) * scale
    member = decision > 0
    if unsure.any():
        member[unsure] = attack.predict(targets[unsure][:, None]) == 1
    return member


def _spread(values: Floats, limit: int | None) -> Floats:
    """`limit` values evenly spaced over `values`, or all of them."""
    if limit is None or len(values) <= limit:
        return values
    return values[(np.arange(limit) * len(values)) // limit]


def membership_scores(parts: Parts, *, svc_records: int | None = None) -> tuple[Score, ...]:
    """MIA-Efficacy and MIA-Privacy.

    MIA-Efficacy: members are the first len(test) records of D_r in source order, non-members the whole test set (for
    class-wise forgetting without the forgotten class); the score is the share of D_f predicted non-member, in %.
    MIA-Privacy: with h = floor(len(test) / 2), the attack learns from the first h records of D_r and of test; the score
    is the mean of two shares, in %: of the remaining D_r predicted member, of the remaining test predicted non-member.
    Where D_r is smaller than the test set, len(D_r) takes the place of len(test) in both.

    Args:
        parts: predictions of the model.
        svc_records: at most so many shadow records a side, evenly spaced over the shadow sets; None as in the paper.

    Raises:
        ConfigError: `svc_records` is below 2.
        DataError: there are too few retain or test records to learn from.
    """
    if svc_records is not None and svc_records < 2:
        raise ConfigError(f"the attack cannot learn from {svc_records} records", where="svc_records")
    retain, test = parts.retain.confidence, parts.legacy_test.confidence
    size = min(len(test), len(retain))
    members, non_members = _spread(retain[:size], svc_records), _spread(test, svc_records)
    predicted = svc_attack(members, non_members, parts.forget.confidence)
    shadow = _shadow(members, non_members, svc_records)
    scores = [
        Score(
            "MIA-Efficacy",
            100.0 * float((~predicted).mean()),
            "%",
            "reference",
            f"Share of D_f that the confidence attack predicts non-member; {shadow}.",
            SOURCE,
        )
    ]
    half = min(len(test) // 2, len(retain) // 2)
    if half:
        members, non_members = _spread(retain[:half], svc_records), _spread(test[:half], svc_records)
        targets = np.concatenate([retain[half:], test[half:]])
        predicted = svc_attack(members, non_members, targets)
        kept = len(retain) - half
        value = 50.0 * float(predicted[:kept].mean()) + 50.0 * float((~predicted[kept:]).mean())
        definition = (
            "Accuracy of the confidence attack on the remaining retain and test records, each half counting the same; "
            f"50 is guessing; {_shadow(members, non_members, svc_records)}."
        )
        scores.append(Score("MIA-Privacy", value, "%", "lower", definition, SOURCE))
    return tuple(scores)


def ratio_scores(parts: Parts, ratios: Sequence[str], *, svc_records: int | None = None) -> tuple[Score, ...]:
    """MIA-Efficacy with the attack fitted on other shares of members and non-members: paper B's critique, measured.

    With n the records a side of MIA-Efficacy (after `svc_records`), a ratio a:b above 1 takes n members and n b / a
    non-members, one below 1 takes n a / b members and n non-members; both evenly spaced over the same shadow sets.
    1:1 is MIA-Efficacy where the two sides are equal there.

    Args:
        parts: predictions of the model.
        ratios: members to non-members, of `RATIOS`.
        svc_records: as in `membership_scores`.

    Raises:
        ConfigError: a ratio is not one of `RATIOS`.
        DataError: there are too few retain or test records to learn from.
    """
    retain, test = parts.retain.confidence, parts.legacy_test.confidence
    size = min(len(test), len(retain))
    limit = size if svc_records is None else min(size, svc_records)
    scores = []
    for ratio in ratios:
        if ratio not in RATIOS:
            raise ConfigError(f"unknown ratio {ratio!r}", where="svc_ratios", hint=f"known: {', '.join(RATIOS)}")
        a, b = (int(part) for part in ratio.split(":"))
        members = _spread(_spread(retain[:size], limit), max(1, round(limit * min(1.0, a / b))))
        non_members = _spread(_spread(test, limit), max(1, round(limit * min(1.0, b / a))))
        predicted = svc_attack(members, non_members, parts.forget.confidence)
        definition = (
            f"Share of D_f that the confidence attack predicts non-member when it is fitted on {len(members)} retain "
            f"and {len(non_members)} test records, evenly spaced over the shadow sets of MIA-Efficacy."
        )
        value = 100.0 * float((~predicted).mean())
        scores.append(
            Score(f"MIA-Efficacy {ratio}", value, "%", "reference", definition, "paper B [Xiao2025], section 5")
        )
    return tuple(scores)


def _shadow(members: Floats, non_members: Floats, svc_records: int | None) -> str:
    text = f"fitted on {len(members)} retain and {len(non_members)} test records"
    if svc_records is not None:
        text += f" (at most {svc_records} a side, evenly spaced, instead of the paper's full shadow sets)"
    if len(members) != len(non_members):
        text += "; the sets are unequal, which alone moves this score"
    return text
