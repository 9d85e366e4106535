"""Choice of the target classes of forgotten points, and of representatives of many points."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.core.errors import ConfigError, RequestError
from expunge.core.seeds import derive, numpy_generator

TARGETS = ("runner-up", "common", "random", "neighbour", "retrained")
REPRESENTATIVES = ("k-means", "k-medoids")


def choose_targets(
    rule: str,
    logits: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    points: Tensor | None = None,
    retain: tuple[Tensor, Tensor] | None = None,
    retrained: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Choose the target class of each point, never its label. Returns `P` int64.

    - `runner-up`: the other class with the largest logit (it usually needs the smallest shift).
    - `common`: the most frequent runner-up, for all points; for points of that class, their own runner-up. With one
      target, soft patches do not work against each other.
    - `random`: uniform over the other classes (the confusing label of [Li2025], as its text describes it).
    - `neighbour`: the label of the nearest retained input (Euclidean) of another class.
    - `retrained`: the prediction of a retrained model, or its runner-up if it predicts the label.

    Args:
        rule: one of `TARGETS`.
        logits: logits of the base model, `P x K`.
        labels: classes to forget, `P`.
        seed: seeds `random`.
        points: inputs `P x ...` (for `neighbour` and `retrained`).
        retain: inputs `R x ...` and labels `R` of retained records (for `neighbour`).
        retrained: maps inputs to logits (for `retrained`).

    Raises:
        ConfigError: unknown rule.
        RequestError: an argument that the rule needs is missing.

    Example:
        >>> import torch
        >>> from expunge.patches import choose_targets
        >>> logits, labels = torch.tensor([[3.0, 1.0, 2.0], [0.0, 4.0, 1.0]]), torch.tensor([0, 1])
        >>> choose_targets("runner-up", logits, labels).tolist()
        [2, 2]
        >>> retain = torch.tensor([[0.0], [1.0]]), torch.tensor([1, 2])
        >>> choose_targets("neighbour", logits, labels, points=torch.tensor([[0.1], [0.2]]), retain=retain).tolist()
        [1, 2]
    """
    labels = labels.long()
    if rule == "runner-up":
        return _find_runner_up(logits, labels)
    if rule == "common":
        best = _find_runner_up(logits, labels)
        chosen = torch.bincount(best, minlength=logits.shape[1]).argmax()
        return torch.where(labels == chosen, best, chosen)
    if rule == "random":
        draws = numpy_generator(seed, "patch targets").integers(0, logits.shape[1] - 1, len(labels))
        drawn = torch.from_numpy(draws)
        return torch.where(drawn >= labels, drawn + 1, drawn)
    if rule == "neighbour":
        if points is None or retain is None:
            raise RequestError("the target `neighbour` needs the retained records", where="target")
        return _find_neighbour_labels(points, labels, *retain)
    if rule == "retrained":
        if points is None or retrained is None:
            raise RequestError("the target `retrained` needs a retrained model", where="target")
        with torch.no_grad():
            return _find_runner_up(torch.cat([retrained(part).float() for part in points.split(1024)]), labels)
    raise ConfigError(f"unknown target {rule!r}", where="target", hint=f"known: {', '.join(TARGETS)}")


def _find_runner_up(logits: Tensor, labels: Tensor) -> Tensor:
    others = logits.clone()
    others.scatter_(1, labels[:, None], -torch.inf)
    return others.argmax(1)


def _find_neighbour_labels(points: Tensor, labels: Tensor, inputs: Tensor, classes: Tensor) -> Tensor:
    flat, everyone = points.flatten(1).float(), inputs.flatten(1).float()
    found = []
    for part, label in zip(flat.split(256), labels.split(256), strict=True):
        distance = torch.cdist(part, everyone)
        distance[label[:, None] == classes[None, :]] = torch.inf
        if not bool(torch.isfinite(distance.min(1).values).all()):
            raise RequestError("there is no retained record of another class", where="target")
        found.append(classes[distance.argmin(1)])
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def choose_representatives(
    rule: str, points: Tensor, bits: Tensor, count: int, *, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cluster points and choose one representative per cluster.

    - `k-means`: K-means in input space; the point nearest to each centroid [Li2025].
    - `k-medoids`: k-medoids of the patterns under the Hamming distance, with farthest-first initialisation and at most
      20 iterations.

    Args:
        rule: one of `REPRESENTATIVES`.
        points: inputs `P x ...`.
        bits: their patterns, `P x L` bool.
        count: number of clusters C, at most P.
        seed: seeds K-means.

    Returns:
        indices of the representatives, `C` int64, and the cluster of each point, `P` int64.

    Raises:
        ConfigError: unknown rule.
    """
    count = min(count, len(points))
    if rule == "k-means":
        from sklearn.cluster import KMeans

        flat = points.flatten(1).double().numpy()
        model = KMeans(count, n_init=10, random_state=derive(seed, "k-means") % 2**32).fit(flat)
        distance = model.transform(flat)
        return _find_nearest_members(distance, model.labels_.astype(np.int64))
    if rule == "k-medoids":
        distance = _compute_hamming(bits)
        medoids = [int(distance.sum(1).argmin())]
        while len(medoids) < count:
            medoids.append(int(distance[:, medoids].min(1).argmax()))
        for _ in range(20):
            cluster = distance[:, medoids].argmin(1)
            fresh = [
                int(members[distance[np.ix_(members, members)].sum(1).argmin()])
                if len(members := np.flatnonzero(cluster == c))
                else medoids[c]
                for c in range(count)
            ]
            if fresh == medoids:
                break
            medoids = fresh
        return np.asarray(medoids, dtype=np.int64), distance[:, medoids].argmin(1).astype(np.int64)
    raise ConfigError(f"unknown representatives {rule!r}", hint=f"known: {', '.join(REPRESENTATIVES)}")


def _find_nearest_members(
    distance: NDArray[np.float64], cluster: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    used, cluster = np.unique(cluster, return_inverse=True)
    own = distance[:, used]
    own = np.where(cluster[:, None] == np.arange(len(used))[None, :], own, np.inf)
    return own.argmin(0).astype(np.int64), cluster.astype(np.int64)


def _compute_hamming(bits: Tensor) -> NDArray[np.float64]:
    signs = bits.float() * 2 - 1
    return ((bits.shape[1] - signs @ signs.T) / 2).double().numpy()
