"""The diagonal of the Fisher information matrix.

F = E_x sum_k p_k (grad log p_k) (grad log p_k)^T, where p = softmax(f_theta(x)) and the gradient is by theta.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from expunge.core.errors import ConfigError, TrainingError, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.seeds import numpy_generator
from expunge.data.batches import Batch
from expunge.training.loop import Objective, cross_entropy

from .plan import Columns, Plan, make_plan
from .records import loss_columns, sum_squares
from .vectors import Vector, check_finite, parameters_of, project

#: Where the labels of the gradients come from.
FISHERS: dict[str, str] = {
    "exact": "all K labels, weighted with the probabilities that the model gives them",
    "sampled": "labels drawn from the probabilities that the model gives them",
    "empirical": "the labels of the records",
}


def softmax_root(logits: torch.Tensor) -> torch.Tensor:
    """Return S with K - 1 columns and S S^T = diag(p) - p p^T, the Hessian of the cross-entropy, p = softmax(logits).

    The Cholesky factor of the matrix in closed form [Tanabe1992]_: with the tail sums q_k = p_k + ... + p_K,
    S_kk = sqrt(p_k q_{k+1} / q_k) and S_jk = -p_j sqrt(p_k / (q_k q_{k+1})) for j > k. No close numbers are
    subtracted, so that it is accurate for confident predictions.

    Args:
        logits: `B x K`.

    Returns:
        `B x (K - 1) x K`.

    .. [Tanabe1992] Tanabe, Sagae: An exact Cholesky decomposition and the generalized inverse of the
       variance-covariance matrix of the multinomial distribution, J. R. Statist. Soc. B 54, 1992.

    >>> import torch
    >>> from expunge.training.curvature import softmax_root
    >>> logits = torch.tensor([[0.0, 1.0, 3.0]])
    >>> p, root = logits.softmax(1)[0], softmax_root(logits)[0]
    >>> torch.allclose(root.T @ root, torch.diag(p) - torch.outer(p, p), atol=1e-6)
    True
    """
    p = logits.softmax(1)
    tails = p.flip(1).cumsum(1).flip(1)
    tiny = torch.finfo(p.dtype).tiny
    head, tail, after = p[:, :-1], tails[:, :-1].clamp_min(tiny), tails[:, 1:]
    diagonal = (head * after / tail).sqrt()
    ratio = (head / tail).sqrt() / after.clamp_min(tiny).sqrt()
    above = torch.ones(p.shape[1], p.shape[1], dtype=torch.bool, device=p.device).tril()[:-1]  # j <= k
    root = -(ratio[:, :, None] * p[:, None]).masked_fill(above, 0.0)
    root.diagonal(dim1=1, dim2=2).copy_(diagonal)
    return root


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    kind: str = "exact",
    mask: Mask | None = None,
    names: Sequence[str] | None = None,
    samples: int = 1,
    seed: int = 0,
) -> Vector:
    """Compute the diagonal of the Fisher information, averaged over the records; each record has its own gradients.

    In evaluation mode. For `exact`, the K gradients of a record are replaced by the K - 1 columns of J^T S, with
    S S^T = diag(p) - p p^T (`softmax_root`), which have the same sum of squares. The result does not depend on how the
    records are divided into batches.

    Cost: one forward pass, and K - 1 (`exact`), `samples` (`sampled`) or one (`empirical`) backward passes by the
    activations, with as many products of the rules of the layers. Memory: the activations of at most
    `records.AT_ONCE` records times columns, and a sum in the shape of the parameters.

    Args:
        model: the network; it does not change.
        batches: pairs of inputs `B x ...` and labels `B`; `exact` and `sampled` do not use the labels.
        kind: a key of `FISHERS`.
        mask: the entries of pruned weights are 0.
        names: parameters, or None for all.
        samples: labels that are drawn for each record, for `sampled`.
        seed: of the draws.

    Raises:
        ConfigError: the kind is unknown.
        TrainingError: there are no records; the Fisher information is not finite; the outputs of a record depend on
            the other records of its batch; or a parameter in `names` is frozen or missing.

    >>> import torch
    >>> from torch import nn
    >>> from expunge.training.curvature import diagonal_fisher
    >>> batches = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]
    >>> fisher = diagonal_fisher(nn.Linear(4, 3), batches)
    >>> fisher["weight"].shape, bool((fisher["weight"] >= 0).all())
    (torch.Size([3, 4]), True)
    """
    columns, count = make_columns(kind, samples, seed)
    return _mean_squares(model, batches, columns, count, mask, names)


def mean_squared_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    objective: Objective = cross_entropy,
    mask: Mask | None = None,
    names: Sequence[str] | None = None,
) -> Vector:
    """Compute the mean over records of the squared gradient of each record's loss; for cross-entropy: `empirical`.

    Cost: one forward and one backward pass. Memory: as `diagonal_fisher`.

    Args:
        model: the network; it does not change.
        batches: pairs of inputs `B x ...` and labels `B`.
        objective: a mean over records, `(B x K logits, B labels) -> scalar`.
        mask: the entries of pruned weights are 0.
        names: parameters, or None for all.

    Raises:
        TrainingError: as `diagonal_fisher`.

    >>> import torch
    >>> from torch import nn
    >>> from expunge.training.curvature import mean_squared_gradients
    >>> batches = [(torch.ones(1, 1), torch.zeros(1, dtype=torch.long))]
    >>> squares = mean_squared_gradients(nn.Linear(1, 2), batches, objective=lambda logits, labels: logits.sum())
    >>> squares["weight"].tolist(), squares["bias"].tolist()
    ([[1.0], [1.0]], [1.0, 1.0])
    """
    return _mean_squares(model, batches, loss_columns(objective), 1, mask, names)


def make_columns(kind: str, samples: int = 1, seed: int = 0) -> tuple[Columns, int | None]:
    """Return the columns of a kind of Fisher information, and their number; None: K - 1.

    Raises:
        ConfigError: the kind is unknown, or no label is drawn.

    >>> from expunge.training.curvature.fisher import make_columns
    >>> make_columns("sampled", samples=3)[1]
    3
    """
    if kind not in FISHERS:
        raise ConfigError(f"unknown Fisher {kind!r}", where="kind", hint=unknown_name_hint(kind, FISHERS))
    if samples < 1:
        raise ConfigError(f"at least 1 label is drawn for each record, not {samples}", where="samples")
    found: dict[str, tuple[Columns, int | None]] = {
        "exact": (_exact, None),
        "sampled": (_Sampled(samples, seed), samples),
        "empirical": (_empirical, 1),
    }
    return found[kind]


def fisher_passes(kind: str, classes: int, samples: int = 1) -> int:
    """Return the cost of a kind of Fisher information, in passes over its records, rounded up.

    One pass is a forward and a backward pass of training. With the products of the rules, `exact` costs K (K - 1
    backward passes by the activations), `sampled` 2 for the first label and 1 for each further one, and `empirical` 2:
    benchmarks/curvature.py measures 9.4 (K = 10), 1.7 and 1.8 for ResNet-20.

    >>> from expunge.training.curvature import fisher_passes
    >>> fisher_passes("exact", 10), fisher_passes("sampled", 10), fisher_passes("empirical", 10)
    (10, 2, 2)
    """
    count = make_columns(kind, samples)[1]
    return classes if count is None else count + 1


def _exact(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return softmax_root(logits.float() if logits.dtype != torch.float64 else logits)


def _empirical(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.softmax(1) - nn.functional.one_hot(labels, logits.shape[1]))[:, None]


class _Sampled:
    """Columns (p - e_y) / sqrt(m) for m labels y drawn from p; the draws do not depend on the batches."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.generator = samples, numpy_generator(seed, "fisher labels")

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        p = logits.double().softmax(1)
        drawn = torch.from_numpy(self.generator.random((len(logits), self.samples))).to(logits.device)
        edges = p.cumsum(1)[:, :-1].contiguous()
        chosen = torch.searchsorted(edges, drawn, right=True)  # B x m
        hot = nn.functional.one_hot(chosen, p.shape[1])
        return ((p[:, None] - hot) / self.samples**0.5).to(logits.dtype)


def _mean_squares(
    model: nn.Module,
    batches: Iterable[Batch],
    columns: Columns,
    count: int | None,
    mask: Mask | None,
    names: Sequence[str] | None,
) -> Vector:
    parameters = parameters_of(model, names)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    plan: Plan | None = None
    records = 0
    for x, y in batches:
        if len(x) == 0:
            continue
        if plan is None or (records == 1 and len(x) > 1):  # a rule is better checked on two records than on one
            plan = make_plan(model, x, parameters)
        for name, found in sum_squares(plan, x, y, columns, count or plan.classes - 1).items():
            total[name] += found
        records += len(x)
    if records == 0:
        raise TrainingError("there are no records to compute a Fisher information on")
    result = project({name: tensor / records for name, tensor in total.items()}, mask)
    check_finite(result, "the Fisher information")
    return result
