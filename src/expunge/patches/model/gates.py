"""Gates of patches: exact (by hash look-up or by a matrix product) and soft (by a matrix product or `gate_index`).

With the executed bits b of an input and a stored pattern b_p, the exact gate is 1 if b = b_p, else 0. The soft gate of
slope n is relu(1 - sum_i clamp(-n q_i, 0, 1)), with the margins q_i of the pattern at the pre-activations of the
network: q = s z for a relu unit; for a max pool, the value of the winner of the pattern minus the maximum. The cost of
each unit for the bits 1 and 0 is computed once, so the gates of all patches are one matrix product with the stored bits
and their complements. Inside a region every term is exactly 0 and the gate exactly 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from expunge.patches.network.execute import compute_bits
from expunge.patches.network.operations import Network

from .gate_index import compute_all_gates


def draw_hash_vector(atoms: int, seed: int) -> Tensor:
    """Draw `L` random integers (int64) whose float64 sum over any bits is exact, in any order."""
    room = 52 - max(1, atoms).bit_length()
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 2**room, (atoms,), generator=generator)


def sum_exactly(bits: Tensor, numbers: Tensor) -> Tensor:
    """Return the sums `B` of integers `L` over the set bits `B x L`; exact below 2^53."""
    return (bits.double() @ numbers.double()).long()


def compute_hash_keys(bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a hash vector that gives all patterns `P x L` different keys, the sorted keys `P`, and their order.

    Raises:
        ValueError: two patterns are equal.
    """
    for seed in range(64):
        vector = draw_hash_vector(bits.shape[1], seed)
        keys, order = torch.sort(torch.cat([sum_exactly(part, vector) for part in bits.split(1024)]))
        if len(keys) < 2 or bool((keys[1:] != keys[:-1]).all()):
            return vector, keys, order
    raise ValueError("two patches have the same pattern")


def draw_word_factors(atoms: int) -> Tensor:
    """Draw the random odd factors of `compute_word_keys`, `ceil(L / 8)` int64 (at least one)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (max(1, (atoms + 7) // 8),), generator=generator) | 1


def compute_word_keys(bits: Tensor, factors: Tensor) -> Tensor:
    """Return quick keys `B` int64 of bits `B x L` bool: words of eight bytes times the factors, summed modulo 2^64.

    Equal bits have equal keys. Rows with equal keys are then compared on all bits, see `look_up`.
    """
    lacking = -bits.shape[1] % 8 or 8 * (bits.shape[1] == 0)
    if lacking:
        bits = functional.pad(bits, (0, lacking))
    return (bits.contiguous().view(torch.int64) * factors).sum(1)


def find_candidates(bits: Tensor, factors: Tensor, keys: Tensor) -> Tensor:
    """Return the rows of bits `B x L` whose quick key is among the sorted `keys`; the last key is the largest int64."""
    code = compute_word_keys(bits, factors)
    return (keys.take(torch.searchsorted(keys, code)) == code).nonzero()[:, 0]


def look_up(bits: Tensor, vector: Tensor, keys: Tensor, packed: Tensor) -> Tensor:
    """Return the index of the patch whose pattern equals each row of bits, or -1, `B` int64.

    Args:
        bits: `B x L` bool.
        vector: the hash vector.
        keys: sorted keys of the patches.
        packed: packed patterns `P x bytes`, in the order of the keys. A hash match is confirmed on all bits.
    """
    code = sum_exactly(bits, vector)
    place = torch.searchsorted(keys, code).clamp_(max=len(keys) - 1)
    same = (unpack_bits(packed[place], bits.shape[1]) == bits).all(1) & (keys[place] == code)
    return torch.where(same, place, -1)


def unpack_bits(packed: Tensor, atoms: int) -> Tensor:
    """Unpack patterns `P x bytes` to `P x L` bool, on their device."""
    powers = 2 ** torch.arange(8, device=packed.device, dtype=torch.int32)
    bits = torch.div(packed.int().unsqueeze(-1), powers, rounding_mode="floor") % 2  # ONNX has no byte shift
    return bits.flatten(1)[:, :atoms].bool()


def compute_exact_gates(bits: Tensor, stored: Tensor) -> Tensor:
    """Return exact gates `B x P` in {0, 1} by one product: the number of differing bits is 0.

    Args:
        bits: `B x L`, 0 or 1 in float32.
        stored: `P x L`, 0 or 1 in float32 (exact for L below 2^24).
    """
    different = bits @ (1 - 2 * stored).T + stored.sum(1)
    return (different < 0.5).to(bits.dtype)


def compute_soft_gates(network: Network, values: Tensor, stored: Tensor, slope: Tensor | float) -> Tensor:
    """Return soft gates `B x P`, relu(1 - sum of clamp(-n q, 0, 1)).

    Args:
        network: the operation list.
        values: values of the atoms `B x L`, see `execute.choose_by_value`.
        stored: patterns `P x L`, 0 or 1 in the dtype of values.
        slope: slope n.
    """
    return gates_from_costs(*compute_unit_costs(network, values, slope), torch.cat([stored, 1 - stored], 1))


def gates_from_costs(on: Tensor, off: Tensor, both: Tensor) -> Tensor:
    """Return soft gates `B x P` from unit costs `B x L` each and the stored bits with their complements, `P x 2 L`."""
    return (1 - torch.cat([on, off], 1) @ both.T).clamp(min=0)


def compute_unit_costs(network: Network, values: Tensor, slope: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return clamp(-n q, 0, 1) of every atom for the stored bit 1 and for 0, `B x L` each."""
    on: list[Tensor] = []
    off: list[Tensor] = []
    for number, place in network.atom_slices.items():
        operation, part = network.operations[number], values[:, place]
        if operation.op == "relu":
            on.append((part * -slope).clamp(0, 1))
            off.append((part * slope).clamp(0, 1))
        else:
            width = part.shape[1] // _outputs(operation.shape)
            spread = part.unflatten(1, (-1, width))
            gap = (spread.amax(-1, keepdim=True) - spread) * slope
            on.append(gap.clamp(0, 1).flatten(1))
            off.append(torch.zeros_like(on[-1]))
    if len(on) == 1:
        return on[0], off[0]
    return torch.cat(on, 1), torch.cat(off, 1)


def _outputs(shape: tuple[int, ...]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total


def max_over_groups(gates: Tensor, group: Tensor, groups: int) -> Tensor:
    """Return the largest gate of each group, `B x P` to `B x G`."""
    index = group.expand(gates.shape[0], -1)
    return gates.new_zeros(gates.shape[0], groups).scatter_reduce(1, index, gates, "amax")


#: Exponents of the slopes that `find_closing_slopes` tries.
_SLOPES = range(-10, 41)


def find_closing_slopes(network: Network, values: Tensor, stored: Tensor) -> Tensor:
    """Return for each input the smallest power of two at which all soft gates are closed, `B` float64.

    Gates decrease with the slope, so gates that are closed stay closed. An input with exactly a stored pattern has an
    open gate at every slope and gets 0.

    Args:
        network: the operation list.
        values: values of the atoms, `B x L`.
        stored: patterns `P x L`, 0 or 1.
    """
    parts = [compute_bits(network.operations[n], values[:, place]) for n, place in network.atom_slices.items()]
    bits = torch.cat(parts, 1).to(stored.dtype)
    found = torch.zeros(len(values), dtype=torch.float64)
    left = (compute_exact_gates(bits, stored).amax(1) == 0).nonzero()[:, 0] if len(stored) else found.nonzero()[:, 0]
    for exponent in _SLOPES:
        if not len(left):
            break
        slope = 2.0**exponent
        found[left] = slope
        on, off = compute_unit_costs(network, values[left], slope)
        gates = compute_all_gates(on, off, stored)
        left = left[:0] if gates is None else left[gates.amax(1) > 0]
    return found


def choose_local_slope(
    network: Network, values: Iterable[Tensor], stored: Tensor, *, open_fraction: float = 0.0
) -> float:
    """Return the smallest power-of-two slope n at which at most a given fraction of inputs have an open soft gate.

    Args:
        network: the operation list.
        values: batches `B x L` of the values of the atoms of the inputs whose gates should stay closed (retained
            records).
        stored: patterns `P x L`, 0 or 1.
        open_fraction: largest fraction of inputs with an open gate. Inputs with exactly a stored pattern do not count.

    Example:
        >>> import torch
        >>> from expunge.patches import choose_local_slope, trace
        >>> network = trace(torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU()), (2,))
        >>> retained, stored = torch.tensor([[0.5, -0.25], [0.5, -0.125]]), torch.tensor([[1.0, 1.0]])
        >>> choose_local_slope(network, [retained], stored)
        8.0
        >>> choose_local_slope(network, [retained], stored, open_fraction=0.5)
        4.0
    """
    batches = [find_closing_slopes(network, part, stored) for part in values]
    found = torch.cat(batches) if batches else torch.zeros(0, dtype=torch.float64)
    others = found[found > 0].sort().values
    allowed = int(open_fraction * len(others))
    return float(others[len(others) - 1 - allowed]) if allowed < len(others) else 2.0 ** _SLOPES[0]
