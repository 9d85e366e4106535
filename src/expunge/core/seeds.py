"""Randomness without global state: every draw has a seed that names what it is for.

The order of an epoch sorts records by a hash of (seed, epoch, record id). So the order, and the augmentation, of the
records that stay does not change when others are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def derive(seed: int, *labels: object) -> int:
    """A 63-bit seed for one purpose: the first bytes of SHA-256 over the seed and the labels."""
    text = "\x1f".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(seed: int, *labels: object) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.default_rng(derive(seed, *labels))


def torch_generator(seed: int, *labels: object) -> torch.Generator:
    """A CPU torch generator for one purpose (CUDA streams differ between GPU models, so draws are made on the CPU)."""
    import torch

    return torch.Generator(device="cpu").manual_seed(derive(seed, *labels))


@contextlib.contextmanager
def global_rng(seed: int, *labels: object) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them after it (for dropout and users' code)."""
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, *labels))
        yield


def record_keys(record_ids: Sequence[str] | NDArray[np.str_]) -> NDArray[np.uint64]:
    """64-bit BLAKE2b keys of record ids, `N` unsigned integers; stable over machines and releases."""
    digest = b"".join(hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in record_ids)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def mix(keys: NDArray[np.uint64], *salts: int) -> NDArray[np.uint64]:
    """A pseudo-random 64-bit value for every key: the SplitMix64 finaliser, once a salt [Steele2014]_.

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

    Positions whose keys are equal keep their given order.
    """
    return np.argsort(mix(keys, derive(seed, "order", epoch)), kind="stable").astype(np.int64)
