"""Random numbers without global state: each purpose has its own seed, derived from the seed of the run.

The order of an epoch sorts records by a hash of seed, epoch and record id. So removing records does not change the
order or the augmentation of the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, DataError
from .reading.plain import as_plain
from .show import repr_fields

if TYPE_CHECKING:
    import torch


def check_seed(seed: object) -> int:
    """The seed as an integer; negative ones are allowed.

    Raises:
        ConfigError: it is none: another type would be another seed in a file, or none at all.

    Example:
        >>> check_seed(3)
        3
        >>> check_seed(1.5)
        Traceback (most recent call last):
        ...
        expunge.core.errors.ConfigError: seed: is 1.5, not an integer
    """
    plain = as_plain(seed)
    if isinstance(plain, int) and not isinstance(plain, bool):
        return plain
    raise ConfigError(f"is {str(seed)[:60]}, not an integer", where="seed")


def derive(seed: int, *labels: object) -> int:
    """Derive the seed of one purpose: 63 bits of the SHA-256 of the seed and the labels.

    Args:
        seed: the seed of the run.
        labels: names of the purpose. They decide the numbers that are drawn, so they never change.

    Raises:
        ConfigError: the seed is not an integer.

    Example:
        >>> derive(0, "order") == derive(0, "order"), derive(0, "order") == derive(0, "augmentation")
        (True, False)
        >>> 0 <= derive(1, "order", 3) < 2**63
        True
    """
    text = "\x1f".join([str(check_seed(seed)), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(seed: int, *labels: object) -> np.random.Generator:
    """A numpy generator for one purpose; see `derive`.

    Example:
        >>> numpy_generator(0, "bootstrap").integers(0, 10, 5).tolist()
        [3, 5, 2, 2, 7]
    """
    return np.random.default_rng(derive(seed, *labels))


def torch_generator(seed: int, *labels: object) -> torch.Generator:
    """A torch generator on the CPU for one purpose; see `derive`. Draws on a GPU would depend on the GPU model.

    Example:
        >>> import torch
        >>> torch.randperm(4, generator=torch_generator(0, "order")).tolist()
        [3, 0, 1, 2]
    """
    import torch

    return torch.Generator(device="cpu").manual_seed(derive(seed, *labels))


@contextlib.contextmanager
def global_rng(seed: int, *labels: object) -> Iterator[None]:
    """Seed torch's global generators within the block and restore them after it; for dropout and custom code.

    Example:
        >>> import torch
        >>> state = torch.get_rng_state()
        >>> with global_rng(0, "initial weights"):
        ...     first = torch.rand(3)
        >>> with global_rng(0, "initial weights"):
        ...     second = torch.rand(3)
        >>> torch.equal(first, second), torch.equal(state, torch.get_rng_state())
        (True, True)
    """
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        # without an accelerator, torch would store the seed for one, with a formatted stack: a millisecond a call
        seeded = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
        seeded(derive(seed, *labels))
        yield


def record_keys(record_ids: Sequence[str] | NDArray[np.str_]) -> NDArray[np.uint64]:
    """64-bit BLAKE2b keys of `N` record ids: `N` unsigned integers that are equal on all machines and in all releases.

    Example:
        >>> keys = record_keys(["a", "b", "a"])
        >>> keys.shape, keys.dtype.name, bool(keys[0] == keys[2])
        ((3,), 'uint64', True)
    """
    digest = b"".join(hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in record_ids)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def mix(keys: NDArray[np.uint64], *salts: int) -> NDArray[np.uint64]:
    """A pseudo-random 64-bit value for each key: the SplitMix64 finaliser, applied once for each salt [Steele2014]_.

    .. [Steele2014] Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    values = keys.astype(np.uint64, copy=True)
    with np.errstate(over="ignore"):
        for salt in salts:
            values ^= np.uint64(salt & 0xFFFFFFFFFFFFFFFF)
            values += np.uint64(0x9E3779B97F4A7C15)
            values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            values ^= values >> np.uint64(31)
    return values


def epoch_order(keys: NDArray[np.uint64], seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of records in one epoch: a permutation of `N` positions, sorted by hash(seed, epoch, record id).

    Records with equal keys stay in the given order.

    Args:
        keys: `N` keys (`record_keys`).
        seed: seed of the order.
        epoch: number of the epoch.

    Example:
        >>> ids = np.asarray(["a", "b", "c", "d"])
        >>> order = ids[epoch_order(record_keys(ids), seed=0, epoch=1)]
        >>> fewer = np.asarray(["a", "b", "d"])
        >>> after = fewer[epoch_order(record_keys(fewer), seed=0, epoch=1)]  # "c" was removed
        >>> [i for i in order if i != "c"] == list(after)
        True
    """
    return np.argsort(mix(keys, derive(seed, "order", epoch)), kind="stable").astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordedOrder:
    """The orders of records of a training that happened elsewhere; used instead of `epoch_order`.

    Attributes:
        epochs: the record ids of each epoch, in order.
    """

    epochs: tuple[NDArray[np.str_], ...]

    __repr__ = repr_fields

    @functools.cached_property
    def _keys(self) -> list[NDArray[np.uint64]]:
        return [record_keys(ids) for ids in self.epochs]

    def order(self, keys: NDArray[np.uint64], epoch: int) -> NDArray[np.int64]:
        """The order of some of the records in one epoch: positions, as `epoch_order` returns them.

        Removed records leave the order of the others as it was.

        Raises:
            DataError: the epoch was not recorded, or one of the records was not in it exactly once.

        >>> ids = np.asarray(["a", "b", "c"])
        >>> recorded = RecordedOrder((np.asarray(["c", "a", "b"]),))
        >>> ids[:2][recorded.order(record_keys(ids[:2]), 0)].tolist()  # "c" was removed
        ['a', 'b']
        """
        if epoch >= len(self.epochs):
            raise DataError(f"the order of epoch {epoch + 1} was not recorded; {len(self.epochs)} epochs were")
        recorded = self._keys[epoch]
        found, places, counts = np.unique(recorded, return_index=True, return_counts=True)
        at = np.minimum(np.searchsorted(found, keys), max(0, len(found) - 1))
        known = np.zeros(len(keys), dtype=np.bool_) if not len(found) else (found[at] == keys) & (counts[at] == 1)
        if not known.all():
            raise DataError(
                f"{int((~known).sum())} of {len(keys)} records were not exactly once in epoch {epoch + 1} of the "
                "recorded training",
                hint="the ids of the recording have to be those of the records",
            )
        return np.argsort(places[at], kind="stable").astype(np.int64)

    def hash(self) -> str:
        """Hash of all orders."""
        return hashlib.sha256(b"".join(keys.tobytes() for keys in self._keys)).hexdigest()
