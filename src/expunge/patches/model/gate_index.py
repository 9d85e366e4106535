"""Look-up of soft gates: finds the patches that can be open at an input without a product over all patches.

A relu unit with n |z| >= 1 costs 1 if its stored bit differs, and a gate whose costs sum to 1 or more is closed. So at
an open gate every such *sure* unit has the stored bit. The stored patterns are sorted by the codes of blocks of bits
and of pairs of blocks. An input queries the pair with the fewest unsure bits, or, if these are too many, the block with
the fewest matches, once for every setting of the unsure bits. Matches are compared on all sure bits, and the gates of
those that remain are computed term by term, pools included. If no block has few enough unsure bits, the product over
all patches is computed.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from expunge.core.show import repr_fields
from expunge.patches.network.operations import Network

from .rare_bit_index import RareBitIndex

#: Maximum number of blocks; bits per block for few and for many patterns (more than `_MANY`). With fewer patterns
#: than `_FEWEST` the product is as fast.
_BLOCKS, _NARROW, _WIDE, _MANY, _FEWEST = 32, 12, 16, 4096, 1000

#: Largest numbers of unsure units of a pair of blocks, and of a block (tried in turn), whose settings are all queried.
_PAIR, _UNSURE = 4, (2, 5)

#: One look-up takes about as long as this many pairs of the product.
_LOOKUP_COST = 8.0

#: Average number of unsure units per block above which the product is computed at once.
_TOO_MANY_UNSURE = 6

#: Numbers processed at once when pairs are confirmed; and number of bits below which pairs are not filtered further.
_AT_ONCE, _FEW = 1 << 22, 1 << 15


@dataclasses.dataclass(frozen=True, eq=False)
class BlockPairIndex:
    """Stored patterns, sorted by the codes of `m // 2` pairs of blocks.

    Attributes:
        keys: the number of the pair and its code as one int64, sorted, followed by the largest int64.
        stop: end of the run of equal keys, for every position of `keys`.
        order: patterns in the order of the keys.
    """

    keys: Tensor
    stop: Tensor
    order: Tensor

    __repr__ = repr_fields

    @classmethod
    def of(cls, codes: Tensor, width: int) -> BlockPairIndex:
        """Build the index from the codes `P x m` of blocks of `width` bits."""
        paired = _pair_codes(codes, width)
        numbered = paired | torch.arange(paired.shape[1], device=codes.device) << 2 * width
        keys, order = torch.sort(numbered.T.flatten(), stable=True)
        stop = torch.searchsorted(keys, keys, right=True)
        last = torch.full_like(keys[:1], 2**63 - 1)
        return cls(torch.cat([keys, last]), torch.cat([stop, last * 0]), order % len(codes))

    @property
    def expected(self) -> float:
        """Average number of patterns with the key of a stored pattern."""
        runs = self.stop[:-1].unique(return_counts=True)[1].double()
        return float(runs.square().sum() / max(1, len(self.order)))


@dataclasses.dataclass(frozen=True, eq=False)
class BlockIndex:
    """Stored patterns, sorted by the codes of `m` blocks of `w` relu bits.

    Attributes:
        atoms: `m w` int64, the bits of the blocks, block after block.
        powers: `w` float32, the value of each bit in a code.
        ones: `2^w` int64, the number of set bits of each code.
        weights: `L x m` float32, `powers` of all bits as one matrix; empty if most bits are in no block.
        table: `m (2^w + 1)` int32, where the patterns with each code begin in `order`.
        order: `m P` int64, patterns in the order of their codes, block after block.
        words: `W x P` int64, the codes of `63 // w` blocks each.
        index: the index that is queried first: by pairs of blocks or by rare bits, whichever has fewer expected
            matches; None with one block.
        heads: the first of the words, in the order of the index.
        patterns: P.
    """

    atoms: Tensor
    powers: Tensor
    ones: Tensor
    weights: Tensor
    table: Tensor
    order: Tensor
    words: Tensor
    index: BlockPairIndex | RareBitIndex | None
    heads: Tensor
    patterns: int

    __repr__ = repr_fields

    @property
    def shape(self) -> tuple[int, int]:
        """m and w."""
        return len(self.atoms) // len(self.powers), len(self.powers)

    def compute_codes(self, bits: Tensor) -> Tensor:
        """Return codes `B x m` int64 of bits `B x L`, 0 or 1 in float32."""
        if len(self.weights):
            return (bits @ self.weights).long()
        return (bits.index_select(1, self.atoms).view(-1, *self.shape) @ self.powers).long()

    def find_runs(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for positions of the table, where the patterns with that code begin in `order`, and their number."""
        first = self.table.take(place)
        return first, self.table.take(place + 1) - first


def _word(codes: Tensor, width: int, number: int) -> Tensor:
    """Return the codes `B x m` of a few blocks as one int64 each, `B`; word `number` of those needed for all blocks."""
    each = 63 // width
    part = codes[:, each * number : each * (number + 1)]
    return (part << torch.arange(0, width * part.shape[1], width, device=codes.device)).sum(1)


def _pair_codes(codes: Tensor, width: int) -> Tensor:
    """Return codes `B x m // 2` of pairs of blocks, from codes `B x m` of blocks of `width` bits."""
    even = codes[:, : codes.shape[1] // 2 * 2]
    return even[:, ::2] | even[:, 1::2] << width


def make_blocks(network: Network, stored: Tensor) -> BlockIndex | None:
    """Return the index of patterns `P x L` (0 or 1), or None if there are too few patterns or relu units.

    The bits are distributed over the blocks from the most balanced to the most one-sided, so every block has some of
    both.
    """
    places = [s for n, s in network.atom_slices.items() if network.operations[n].op == "relu"]
    relus = torch.cat([torch.arange(0), *(torch.arange(s.start, s.stop) for s in places)]).to(stored.device)
    width = _WIDE if len(stored) > _MANY else _NARROW
    count = min(_BLOCKS, len(relus) // width)
    if not count or len(stored) < _FEWEST:
        return None
    uneven = (stored[:, relus].mean(0) - 0.5).abs()
    atoms = relus[torch.sort(uneven, stable=True).indices[: count * width]].view(width, count).T.flatten()
    powers = 2.0 ** torch.arange(width, device=stored.device)
    weights = stored.new_zeros(stored.shape[1] if stored.shape[1] <= 4 * len(atoms) else 0, count)
    if len(weights):
        weights[atoms, torch.arange(count, device=stored.device).repeat_interleave(width)] = powers.repeat(count)
    ones = (
        torch.arange(1 << width, device=stored.device).unsqueeze(1) >> torch.arange(width, device=stored.device)
    ) & 1
    found = BlockIndex(atoms, powers, ones.sum(1), weights, atoms, atoms, atoms, None, atoms, len(stored))
    codes = torch.cat([found.compute_codes(part) for part in stored.split(4096)])
    ranked, order = torch.sort(codes.T.contiguous(), dim=1, stable=True)
    every = torch.arange((1 << width) + 1, device=stored.device).expand(count, -1).contiguous()
    first = torch.searchsorted(ranked, every) + torch.arange(count, device=stored.device).unsqueeze(1) * len(stored)
    table = first.flatten().int()
    words = torch.stack([_word(codes, width, number) for number in range(-(-count // (63 // width)))])
    index: BlockPairIndex | RareBitIndex | None = None
    heads = words[:0, 0]
    if count > 1:
        pairs, rare = BlockPairIndex.of(codes, width), RareBitIndex.of(stored, atoms)
        index = rare if rare.expected < pairs.expected else pairs
        heads = words[0].take(index.order)
    return dataclasses.replace(found, table=table, order=order.flatten(), words=words, index=index, heads=heads)


def find_open_pairs(blocks: BlockIndex, values: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs of input and patch whose soft gate may be open.

    Args:
        blocks: index of the stored patterns.
        values: values of the atoms, `B x L`.
        slope: slope n of the gates.

    Returns:
        rows and patches of the pairs, `N` each; and the rows `R` for which the index cannot be used (they are in no
        pair).
    """
    count, width = blocks.shape
    scaled = (values * slope).abs_()
    sure = torch.ge(scaled, 1, out=scaled)  # NaN is unsure
    positive = torch.gt(values, 0, out=torch.empty_like(values))
    code = blocks.compute_codes(positive)
    mask = (1 << width) - 1 - blocks.compute_codes(sure)
    unsure = blocks.ones.take(mask)
    everything = torch.arange(len(values), device=values.device)
    if int(unsure.sum()) > _TOO_MANY_UNSURE * count * len(values):
        return everything[:0], everything[:0], everything
    found, unresolved = [], everything
    if blocks.index is not None:
        if isinstance(blocks.index, RareBitIndex):
            rows, first, many, unresolved = blocks.index.query(positive, sure)
        else:
            rows, first, many, unresolved = _query_pairs(blocks, blocks.index, code, mask, unsure)
        has_many = torch.zeros_like(everything).index_add_(0, rows, many) > 16 + blocks.patterns // 2
        many = torch.where(has_many.take(rows), 0, many)
        found.append(_filter_runs(blocks, rows, first, many, code, mask, blocks.index.order, blocks.heads))
        unresolved = torch.cat([unresolved, has_many.nonzero()[:, 0]])
    if len(unresolved):
        place = code + torch.arange(count, device=values.device) * ((1 << width) + 1)
        unresolved = unresolved[((mask[unresolved] > 0) | (blocks.find_runs(place[unresolved])[1] > 0)).all(1)]
    for most in _UNSURE:
        if len(unresolved) and (count << most) * _LOOKUP_COST <= blocks.patterns:
            rows, patches, unresolved = _query_blocks(blocks, code, mask, place, unresolved, most)
            found.append((rows, patches))
    if not found:
        return everything[:0], everything[:0], unresolved
    rows, patches = found[0] if len(found) == 1 else (torch.cat(part) for part in zip(*found, strict=True))
    return rows, patches, unresolved


def _query_pairs(
    blocks: BlockIndex, pairs: BlockPairIndex, code: Tensor, mask: Tensor, unsure: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return runs of matches by the pair of blocks with the fewest unsure bits, and rows that have too many."""
    width, count = blocks.shape[1], code.shape[1] // 2
    least, best = (unsure[:, : 2 * count : 2] + unsure[:, 1 : 2 * count : 2]).min(1)
    fits = least <= _PAIR
    rows, unresolved = fits.nonzero()[:, 0], (~fits).nonzero()[:, 0]
    best = best[rows]
    left = _pair_codes(mask, width)[rows, best]
    place = (_pair_codes(code, width)[rows, best] & ~left) | best << 2 * width
    while len(some := left.nonzero()[:, 0]):  # one unsure bit per iteration, off and on
        bit = left & -left
        left = left ^ bit
        place, rows = torch.cat([place, (place | bit)[some]]), torch.cat([rows, rows[some]])
        left = torch.cat([left, left[some]])
    first = torch.searchsorted(pairs.keys, place)
    hit = (pairs.keys.take(first) == place).nonzero()[:, 0]
    first = first.take(hit)
    return rows.take(hit), first, pairs.stop.take(first) - first, unresolved


def _query_blocks(
    blocks: BlockIndex, code: Tensor, mask: Tensor, place: Tensor, rows: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, for each row, the block with the fewest matches among those with at most `most` unsure bits.

    Returns:
        rows and patches of the pairs, and the rows without such a block.
    """
    left = mask[rows]
    places = (place[rows] - (code[rows] & left)).unsqueeze(-1)
    real = torch.ones_like(places, dtype=torch.bool)
    for _ in range(most):
        bit = (left & -left).unsqueeze(-1)
        left = left ^ bit.squeeze(-1)
        places, real = torch.cat([places, places + bit], -1), torch.cat([real, real & (bit > 0)], -1)
    first, many = blocks.find_runs(places)
    many = torch.where(real, many, 0)
    total, best = torch.where(left > 0, 2**62, many.sum(-1)).min(1)
    fits = total <= 16 + blocks.patterns // 2
    unresolved = rows[~fits]
    ask = (fits & (total > 0)).nonzero()[:, 0]
    index = ask, best[ask]
    line = rows[ask].repeat_interleave(many.shape[2])
    return *_filter_runs(
        blocks, line, first[index].flatten(), many[index].flatten(), code, mask, blocks.order
    ), unresolved


def _filter_runs(
    blocks: BlockIndex,
    rows: Tensor,
    first: Tensor,
    many: Tensor,
    code: Tensor,
    mask: Tensor,
    order: Tensor,
    heads: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return rows and patches of runs of `order`, without those whose sure bits differ.

    `heads` are the first words in the order of the index."""
    group = torch.repeat_interleave(many).long()
    place = (first - many.cumsum(0) + many).take(group) + torch.arange(len(group), device=group.device)
    width = blocks.shape[1]
    if len(group) * len(blocks.atoms) <= _FEW:
        return rows.take(group), order.take(place)
    sure = (1 << width) - 1 - mask

    def agree(stored: Tensor, number: int, rows: Tensor) -> Tensor:
        own, mask_word = _word(code, width, number), _word(sure, width, number)
        return ((stored ^ own.take(rows)) & mask_word.take(rows) == 0).nonzero()[:, 0]

    line = rows.take(group)
    if heads is not None:
        keep = agree(heads.take(place), 0, line)
        line, place = line.take(keep), place.take(keep)
    patches = order.take(place)
    for number, stored in enumerate(blocks.words):
        if len(line) * len(blocks.atoms) <= _FEW:
            break
        keep = agree(stored.take(patches), number, line)
        line, patches = line.take(keep), patches.take(keep)
    return line, patches


def compute_pair_gates(on: Tensor, off: Tensor, stored: Tensor, rows: Tensor, patches: Tensor) -> Tensor:
    """Return soft gates of pairs, `N`, from unit costs `B x L` each and patterns `P x L`; exactly 1 inside a region."""
    found = []
    step = max(1, _AT_ONCE // max(1, stored.shape[1]))
    for some, which in zip(rows.split(step), patches.split(step), strict=True):
        costs = torch.lerp(off.index_select(0, some), on.index_select(0, some), stored.index_select(0, which))
        found.append(1 - costs.sum(1))
    return torch.cat(found).clamp_(min=0) if found else on.new_zeros(0)


def compute_all_gates(on: Tensor, off: Tensor, stored: Tensor) -> Tensor | None:
    """Return soft gates `B x P` by a product of half the size of the layout `matrix`, or None if all are closed.

    1 - sum_i s_i on_i + (1 - s_i) off_i = 1 - sum_i off_i + s . (off - on). With S = sum_i on_i + off_i and n = L + 3
    roundings, the computed value has an error of at most 3 gamma_n (S + 1). Pairs within 4 n u (S + 1), which is more,
    of 0 or of 1 are recomputed term by term, so a closed gate is exactly 0 and the gate of the own region exactly 1.
    """
    signed, total = off - on, off.sum(1)
    gates = torch.addmm((1 - total).unsqueeze(1), signed, stored.T)
    found = gates.detach()
    size = float((total + on.sum(1)).detach().nan_to_num().amax()) + 1 if len(on) else 1.0
    slack = 2 * (signed.shape[1] + 3) * torch.finfo(signed.dtype).eps * size
    if not found.numel() or float(found.amax()) <= -slack:  # false if there is a NaN
        return None
    distance = torch.addcmul(found, found, found, value=-1).abs_()  # |g (1 - g)| <= slack (1 + slack) there
    flat = _find_true(distance.sub_(slack * (1 + slack)).clamp_(max=0).bool())
    gates.clamp_(0, 1)
    if len(flat):
        rows = flat // gates.shape[1]
        patches = flat - rows * gates.shape[1]
        gates[rows, patches] = compute_pair_gates(on, off, stored, rows, patches)
    return gates


def _find_true(found: Tensor) -> Tensor:
    """Return the flat positions of True in a contiguous tensor with few of them, eight bytes at a time."""
    flat = found.view(-1)
    if len(flat) % 8:
        return flat.nonzero()[:, 0]
    words = flat.view(torch.int64).nonzero()[:, 0]
    inside = flat.view(-1, 8).index_select(0, words).nonzero()
    return words.take(inside[:, 0]) * 8 + inside[:, 1]
