"""Which methods work for one model and its data, and what each would cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ExpungeError
from expunge.core.registry.custom_code import find_custom_code
from expunge.core.show import repr_fields

from .guarantee import announce_guarantee
from .probe import Probe

if TYPE_CHECKING:
    from expunge.core.trained import Trained
    from expunge.methods import Method
    from expunge.methods.reads import Sizes


@dataclasses.dataclass(frozen=True)
class MethodCost:
    """One method for one model and its data.

    Attributes:
        name: of the method.
        guarantee: that of its outcome on this model; of a method that cannot run, the strongest that it can have.
        works: whether it can run, as far as this is known before it runs.
        reason: why not; empty if it works.
        hint: what to do about it, or empty.
        reads: which records it reads, in passes over each set; empty: not known before it runs.
        passes: passes over D_r, as the cost of an outcome counts them; None: not known.
        at_most: the passes are an upper bound.
        seconds: an estimate; None: not known, or nothing was timed.
        recomputes: what it recomputes because the model does not store it, or empty.
    """

    name: str
    guarantee: str
    works: bool
    reason: str = ""
    hint: str = ""
    reads: str = ""
    passes: float | None = None
    at_most: bool = False
    seconds: float | None = None
    recomputes: str = ""

    __repr__ = repr_fields


def estimate_methods(
    methods: Sequence[tuple[str, Callable[[], Method]]],
    check: Callable[[Method], None],
    trained: Trained | None,
    sizes: Sizes | None,
    probe: Probe | None = None,
    *,
    stand_in: bool = False,
) -> tuple[MethodCost, ...]:
    """Decide which methods work, and estimate what each costs.

    Args:
        methods: the name of each method, and a function that makes it with its options.
        check: raises the error with which a run would refuse a method.
        trained: the original, or a stand-in for it before it is trained; None: no cost is estimated.
        sizes: the numbers of records; None: no cost is estimated.
        probe: timed batches of the model; None: no seconds.
        stand_in: a stand-in is read in place of D_r, which lowers guarantees.

    >>> import expunge
    >>> from expunge.methods import check_usable, get_method
    >>> from expunge.methods.reads import Sizes
    >>> from expunge.workflow import estimate_methods
    >>> records = expunge.load_records("digits")
    >>> split = expunge.make_split(records)
    >>> network = expunge.architecture("mlp", records, split, widths=(8,))
    >>> trained = expunge.Trained(network.build(0), None, split, expunge.Provenance(network.to_json()))
    >>> found = estimate_methods(
    ...     [("FT", lambda: get_method("FT", epochs=3)), ("mixed-privacy", lambda: get_method("mixed-privacy"))],
    ...     lambda method: check_usable(method, trained, records), trained, Sizes(1000, 50, 100, 10),
    ... )
    >>> [(row.name, row.works, row.reads or row.reason) for row in found]
    [('FT', True, '3 passes over D_r'), ('mixed-privacy', False, 'the model was not trained by this method')]
    """
    return tuple(_estimate(name, make, check, trained, sizes, probe, stand_in) for name, make in methods)


def _estimate(
    name: str,
    make: Callable[[], Method],
    check: Callable[[Method], None],
    trained: Trained | None,
    sizes: Sizes | None,
    probe: Probe | None,
    stand_in: bool,
) -> MethodCost:
    guarantee = ""
    try:
        method = make()
        guarantee = method.guarantee
        check(method)
        if trained is not None:
            guarantee = announce_guarantee(method, trained, stand_in=stand_in)
        return _cost(name, guarantee, method, trained, sizes, probe)
    except ExpungeError as error:
        return MethodCost(name, guarantee, works=False, reason=error.what, hint=error.hint or "")
    except Exception as error:
        place = find_custom_code(error)
        if place is None:
            raise
        reason = f"{place}: custom code raised {type(error).__name__}: {error}"
        return MethodCost(name, guarantee, works=False, reason=reason)


def _cost(
    name: str, guarantee: str, method: Method, trained: Trained | None, sizes: Sizes | None, probe: Probe | None
) -> MethodCost:
    found = MethodCost(name, guarantee, works=True)
    if trained is None or sizes is None:
        return found
    recomputed = method.describe_cost(trained)
    if recomputed is not None:
        found = dataclasses.replace(found, recomputes=recomputed[0])
    reads = method.estimate_reads(trained, sizes)
    if reads is None:
        return found
    seconds = None if probe is None else probe.estimate(reads.trained, reads.forward)
    return dataclasses.replace(
        found,
        reads=reads.describe(sizes),
        passes=reads.passes(sizes.retain),
        at_most=reads.at_most,
        seconds=seconds,
    )


def render_costs(rows: Sequence[MethodCost], probe: Probe | None) -> str:
    """The table as text: the methods that work with their costs, then the others with their reasons.

    Args:
        rows: of `estimate_methods`.
        probe: what was timed.

    >>> from expunge.workflow import MethodCost, render_costs
    >>> row = MethodCost("FT", "empirical", True, reads="3 passes over D_r", passes=3.0)
    >>> print(render_costs([row], None))
    method  guarantee  passes  reads
    FT      empirical  3       3 passes over D_r
    """
    cells = [["method", "guarantee", "passes", *(["seconds"] if probe is not None else []), "reads"]]
    for row in rows:
        if row.works:
            passes = "?" if row.passes is None else ("<= " if row.at_most else "") + f"{row.passes:.3g}"
            reads = row.reads or row.recomputes or "not known before it runs"
            seconds = [] if probe is None else ["?" if row.seconds is None else format_seconds(row.seconds)]
            cells.append([row.name, row.guarantee, passes, *seconds, reads])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    if probe is not None:
        lines.append(f"seconds are an estimate: {probe.describe()}")
        lines.append(
            "they are too low where batches are smaller than those timed (a small D_f): a record takes longer there"
        )
    refused = [row for row in rows if not row.works]
    if refused:
        lines.append("these cannot run here:")
        width = max(len(row.name) for row in refused)
        lines += [f"  {row.name:<{width}}  {row.reason}" for row in refused]
    return "\n".join(lines)


def format_seconds(seconds: float) -> str:
    """Seconds in words, to two digits.

    Example:
        >>> format_seconds(0.0123), format_seconds(75), format_seconds(7300)
        ('0.012 s', '75 s', '2 h')
    """
    for limit, factor, unit in ((90, 1, "s"), (5400, 60, "min"), (float("inf"), 3600, "h")):
        if seconds < limit:
            return f"{seconds / factor:.2g} {unit}"
    raise AssertionError("unreachable")


def as_json(rows: Sequence[MethodCost]) -> list[dict[str, Any]]:
    """The JSON values of the rows."""
    return [dataclasses.asdict(row) for row in rows]
