"""Choosing: which class a forgotten point is to be taken for, and which points represent many."""

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
    """Target class of each point, never its label: `P` int64.

    - `runner-up`: the class with the next largest logit (the smallest shift, on the whole).
    - `common`: for all points the class that is most often their runner-up; for points of that class, their runner-up.
      With one target soft patches cannot work against each other.
    - `random`: uniform over the other classes (paper C's confusing label, with the intended meaning).
    - `neighbour`: the label of the nearest retained input (Euclidean) among those of other classes.
    - `retrained`: what a retrained model answers; where it answers the label itself, its runner-up.

    Args:
        rule: one of `TARGETS`.
        logits: `P x K` of the base model.
        labels: `P`.
        seed: of `random`.
        points: inputs `P x ...` (`neighbour`, `retrained`).
        retain: inputs `R x ...` and labels `R` of retained records (`neighbour`).
        retrained: a model, inputs to logits (`retrained`).

    Raises:
        ConfigError: unknown rule.
        RequestError: what the rule needs is not given.
    """
    labels = labels.long()
    if rule == "runner-up":
        return _best_other(logits, labels)
    if rule == "common":
        best = _best_other(logits, labels)
        chosen = torch.bincount(best, minlength=logits.shape[1]).argmax()
        return torch.where(labels == chosen, best, chosen)
    if rule == "random":
        draws = numpy_generator(seed, "patch targets").integers(0, logits.shape[1] - 1, len(labels))
        drawn = torch.from_numpy(draws)
        return torch.where(drawn >= labels, drawn + 1, drawn)
    if rule == "neighbour":
        if points is None or retain is None:
            raise RequestError("the target `neighbour` needs the retained records", where="target")
        return _neighbours(points, labels, *retain)
    if rule == "retrained":
        if points is None or retrained is None:
            raise RequestError("the target `retrained` needs a retrained model", where="target")
        with torch.no_grad():
            return _best_other(torch.cat([retrained(part).float() for part in points.split(1024)]), labels)
    raise ConfigError(f"unknown target {rule!r}", where="target", hint=f"known: {', '.join(TARGETS)}")


def _best_other(logits: Tensor, labels: Tensor) -> Tensor:
    others = logits.clone()
    others.scatter_(1, labels[:, None], -torch.inf)
    return others.argmax(1)


def _neighbours(points: Tensor, labels: Tensor, inputs: Tensor, classes: Tensor) -> Tensor:
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
    """`count` representatives and the cluster of each point: numbers `C` and `P` int64.

    - `k-means`: K-means in input space, the point nearest to each centroid (paper C).
    - `k-medoids`: in activation space under the Hamming distance of patterns; farthest-first start, then alternating
      assignment and medoid up to 20 times.

    Raises:
        ConfigError: unknown rule.
    """
    count = min(count, len(points))
    if rule == "k-means":
        from sklearn.cluster import KMeans

        flat = points.flatten(1).double().numpy()
        model = KMeans(count, n_init=10, random_state=derive(seed, "k-means") % 2**32).fit(flat)
        distance = model.transform(flat)
        return _nearest_members(distance, model.labels_.astype(np.int64))
    if rule == "k-medoids":
        distance = _hamming(bits)
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


def _nearest_members(
    distance: NDArray[np.float64], cluster: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    used, cluster = np.unique(cluster, return_inverse=True)
    own = distance[:, used]
    own = np.where(cluster[:, None] == np.arange(len(used))[None, :], own, np.inf)
    return own.argmin(0).astype(np.int64), cluster.astype(np.int64)


def _hamming(bits: Tensor) -> NDArray[np.float64]:
    signs = bits.float() * 2 - 1
    return ((bits.shape[1] - signs @ signs.T) / 2).double().numpy()
