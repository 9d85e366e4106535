"""The legacy membership attacks: a support vector machine on the confidence in the true label.

The attack maximises accuracy, so its predictions are a step function of the ratio of members to non-members that it is
fitted on. Compare only its gap to the retrained model, and read the AUC (`auc.py`) as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from expunge.core.errors import ConfigError, DataError
from expunge.evaluation.predictions import Bools, Floats
from expunge.evaluation.registry.definition import Measurement, Missing, register_score, without_retained, without_test
from expunge.evaluation.registry.inputs import ScoreInputs

if TYPE_CHECKING:
    from sklearn.svm import SVC

_NODES = 48

#: By default the attack is fitted on at most so many members and as many non-members; [Jia2023]'s CIFAR
#: settings have at most 10,000. The time of a fit grows with more than the square of this number.
DEFAULT_SVC_RECORDS = 10_000


def choose_svc_records(svc_records: int | Literal["all"] | None, non_members: int) -> int | None:
    """Decide how many members, and how many non-members, the attack is fitted on at most; None: all.

    Args:
        svc_records: the option: a number, `all`, or None for the default (at most `DEFAULT_SVC_RECORDS`).
        non_members: the number of test records (without a forgotten class); there are never more members.

    Raises:
        ConfigError: `svc_records` is below 2 or another string.

    Examples:
        >>> choose_svc_records(None, 10_000), choose_svc_records(None, 26_032), choose_svc_records("all", 26_032)
        (None, 10000, None)
    """
    if svc_records is None:
        return DEFAULT_SVC_RECORDS if non_members > DEFAULT_SVC_RECORDS else None
    if svc_records == "all":
        return None
    if isinstance(svc_records, str) or svc_records < 2:
        raise ConfigError(
            f"the attack cannot be fitted on {svc_records} records", where="svc_records",
            hint="use a number of at least 2, or all",
        )  # fmt: skip
    return svc_records


def estimate_svc_seconds(members: int, non_members: int) -> float:
    """Estimate the seconds of one fit of the attack on one core.

    Measured: 0.5 s for 2,000 + 2,000 records, 2.5 s for 4,000, 9 s for 8,000, 44 s for 16,000.
    """
    return 0.5 * float(((members + non_members) / 4000) ** 2.15)


def run_svc_attack(members: Floats, non_members: Floats, targets: Floats) -> Bools:
    """Fit the confidence attack of [Jia2023] and predict which targets are members.

    The attack is `sklearn.svm.SVC(C=3, gamma="auto", kernel="rbf")` on one feature a record, members with label 1,
    non-members with label 0. scikit-learn fits it. If all features are in [0, 1], the decision function is evaluated by
    Chebyshev interpolation (`_predict_members`), which gives the predictions of `SVC.predict` in a fraction of its
    time.

    Args:
        members: `M` confidences of known members.
        non_members: `U` confidences of known non-members.
        targets: `T` confidences to predict.

    Returns:
        `T` booleans, True for a predicted member.

    Raises:
        DataError: members or non-members are empty.

    Examples:
        >>> import numpy as np
        >>> from expunge.evaluation import run_svc_attack
        >>> members, non_members = np.linspace(0.8, 1.0, 20), np.linspace(0.0, 0.4, 20)
        >>> run_svc_attack(members, non_members, np.array([0.95, 0.1])).tolist()
        [True, False]
    """
    from sklearn.svm import SVC

    if len(members) == 0 or len(non_members) == 0:
        raise DataError(
            f"the membership attack has {len(members)} members and {len(non_members)} non-members to be fitted on",
            hint="it needs retain and test records",
        )
    if len(targets) == 0:
        return np.empty(0, dtype=np.bool_)
    features = np.concatenate([members, non_members])[:, None]
    labels = np.concatenate([np.ones(len(members)), np.zeros(len(non_members))])
    attack = SVC(C=3, gamma="auto", kernel="rbf").fit(features, labels)
    inside = min(features.min(), targets.min()) >= 0.0 and max(features.max(), targets.max()) <= 1.0
    return _predict_members(attack, targets) if inside else np.asarray(attack.predict(targets[:, None]) == 1)


def _predict_members(attack: SVC, targets: Floats) -> Bools:
    """`attack.predict(targets) == 1` for features in [0, 1] and kernel exp(-(x - s)^2), gamma 1.

    f(x) = sum_i a_i exp(-(x - s_i)^2) + b is entire. With t = 2x - 1, a kernel term is at most exp(3.94^2 / 4) < 49 in
    absolute value on the Bernstein ellipse of parameter 8, so the error of interpolation at n Chebyshev nodes is below
    28 * 8^(1 - n) * sum|a_i|, far below float64 rounding for n = 48. The sign is therefore proved wherever |f| exceeds
    the rounding bound; the other targets, if any, are predicted by `SVC.predict`.
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


def space_evenly(values: Floats, limit: int | None) -> Floats:
    """Take `limit` values evenly spaced over `values`, or all of them."""
    if limit is None or len(values) <= limit:
        return values
    return values[(np.arange(limit) * len(values)) // limit]


def get_confidences(inputs: ScoreInputs) -> tuple[Floats, Floats, int | None]:
    """Confidences of D_r and of the test records (without a forgotten class), in source order, and the limit of both.

    Raises:
        ConfigError: see `choose_svc_records`.
    """
    retain, test = inputs.parts.retain.legacy_confidence, inputs.parts.legacy_test.legacy_confidence
    return retain, test, choose_svc_records(inputs.svc_records, len(test))


@register_score(
    "MIA-Efficacy", unit="%", direction="reference", needs=("predictions",),
    citation="[Jia2023], section 5 and the released evaluation/SVC_MIA.py",
    position=140, column=2, heading="MIA-Efficacy %", decimals=2, gap=True, table="main",
)  # fmt: skip
def measure_efficacy(inputs: ScoreInputs) -> Measurement | Missing:
    """Fraction of D_f that the confidence attack predicts to be non-members.

    The attack is fitted on the first len(test) records of D_r in source order (members) and all test records
    (non-members; without a forgotten class). If D_r is smaller than the test set, len(D_r) replaces len(test).
    `svc_records` limits both sets to so many records, evenly spaced. The paper uses all, and so does `all`; the default
    is at most 10,000.

    Raises:
        ConfigError: `svc_records` is below 2.
        DataError: there are no retain records to fit on.
    """
    if not inputs.parts.has_test:
        return without_test("MIA-Efficacy")
    if not len(inputs.parts.retain):
        return without_retained("MIA-Efficacy")
    retain, test, limit = get_confidences(inputs)
    size = min(len(test), len(retain))
    members, non_members = space_evenly(retain[:size], limit), space_evenly(test, limit)
    predicted = run_svc_attack(members, non_members, inputs.parts.forget.legacy_confidence)
    shadow = _describe_shadow_sets(members, non_members, limit, inputs.svc_records)
    return Measurement(
        100.0 * float((~predicted).mean()),
        f"Fraction of D_f that the confidence attack predicts to be non-members; {shadow}.",
    )


@register_score(
    "MIA-Privacy", unit="%", direction="lower", needs=("predictions",),
    citation="[Jia2023], section 5 and the released evaluation/SVC_MIA.py", position=160, decimals=2, table="main",
)  # fmt: skip
def measure_privacy(inputs: ScoreInputs) -> Measurement | Missing:
    """Balanced accuracy of the confidence attack on held-out members and non-members; 50 is guessing.

    With h = floor(len(test) / 2), the attack is fitted on the first h records of D_r and of the test set. The score is
    the mean of two fractions: of the remaining D_r predicted member, and of the remaining test records predicted
    non-member. If D_r is smaller than the test set, len(D_r) replaces len(test).
    """
    if not inputs.parts.has_test:
        return without_test("MIA-Privacy")
    if not len(inputs.parts.retain):
        return without_retained("MIA-Privacy")
    retain, test, limit = get_confidences(inputs)
    half = min(len(test) // 2, len(retain) // 2)
    if not half:
        return Missing("too few retain or test records: MIA-Privacy was not computed")
    members, non_members = space_evenly(retain[:half], limit), space_evenly(test[:half], limit)
    predicted = run_svc_attack(members, non_members, np.concatenate([retain[half:], test[half:]]))
    rest = len(retain) - half
    return Measurement(
        50.0 * float(predicted[:rest].mean()) + 50.0 * float((~predicted[rest:]).mean()),
        "Balanced accuracy of the confidence attack on the other retain and test records; "
        f"50 is guessing; {_describe_shadow_sets(members, non_members, limit, inputs.svc_records)}.",
    )


def _describe_shadow_sets(
    members: Floats, non_members: Floats, limit: int | None, svc_records: int | Literal["all"] | None
) -> str:
    text = f"fitted on {len(members)} retain and {len(non_members)} test records"
    if limit is not None and (svc_records is not None or len(non_members) == limit):
        default = ", the default" if svc_records is None else ""
        text += f" (at most {limit} of each{default}, evenly spaced, instead of the paper's full sets)"
    if len(members) != len(non_members):
        text += "; the sets are of unequal size, which alone changes this score"
    return text
