"""Soft gates by look-up: which patches can be open at an input, found without a product over all patches.

A relu unit with n |z| >= 1 costs a full 1 where its stored bit differs, and a gate whose costs sum to 1 or more is
closed. So at an open gate every such *sure* unit has the stored bit. The stored patterns are therefore sorted by the
codes of several blocks of bits. An input asks in the block that has the fewest answers, once for every setting of its
unsure bits there; the answers are compared on all sure bits, and what is left is computed term by term, pools included.
Where no block is sure enough, the product over all patches decides.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .network import Network

#: Blocks at most, and bits of one: for few patterns, for many; with fewer patterns yet the product is as fast.
_BLOCKS, _NARROW, _WIDE, _MANY, _FEWEST = 32, 12, 16, 4096, 1000

#: Unsure units of a block whose settings are all looked up: tried in turn for inputs that have no block so sure.
_UNSURE = (2, 5)

#: One look-up takes about as long as so many pairs of the product, to which dearer searches are left.
_WORTH = 8.0

#: Unsure units a block, on average over the inputs, from which on the product is taken at once.
_HOPELESS = 6

#: Numbers that a confirmation of pairs handles at once, and few enough to confirm them without looking further.
_AT_ONCE, _FEW = 1 << 22, 1 << 15


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """Stored patterns by the codes of `m` blocks of `w` relu bits.

    Attributes:
        atoms: `m w` int64, the bits of the blocks one after the other.
        powers: `w` float32, what each bit adds to a code.
        table: `m (2^w + 1)` int32: where the patterns with each code begin in `order`.
        order: `m P` int64, patterns by code, a block after the other.
        words: `W x P` int64, the codes of `63 // w` blocks each.
        patterns: P.
    """

    atoms: Tensor
    powers: Tensor
    table: Tensor
    order: Tensor
    words: Tensor
    patterns: int

    @property
    def shape(self) -> tuple[int, int]:
        """m and w."""
        return len(self.atoms) // len(self.powers), len(self.powers)

    def codes(self, bits: Tensor) -> Tensor:
        """Codes `B x m` int64 of bits `B x (m w)`."""
        return (bits.to(self.powers.dtype).view(-1, *self.shape) @ self.powers).long()

    def counted(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Where in `order` the patterns with the codes at places of the table begin, and how many they are."""
        first = self.table.take(place)
        return first, self.table.take(place + 1) - first


def _words(codes: Tensor, width: int) -> Tensor:
    """Codes `B x m` in `W x B` int64, as many whole codes a word as fit."""
    each, count = 63 // width, codes.shape[1]
    index = torch.arange(count, device=codes.device)
    shift = torch.zeros(-(-count // each), count, dtype=torch.int64, device=codes.device)
    shift[index // each, index] = 1 << (width * (index % each))
    return shift @ codes.T


def make_blocks(network: Network, stored: Tensor) -> Blocks | None:
    """Blocks for patterns `P x L` (0 or 1); None where there are too few relu units for one.

    The bits are dealt to the blocks from the most evenly split to the most one-sided, so that every block has some of
    each.
    """
    places = [s for n, s in network.atom_slices.items() if network.operations[n].kind == "relu"]
    relus = torch.cat([torch.arange(0), *(torch.arange(s.start, s.stop) for s in places)]).to(stored.device)
    width = _WIDE if len(stored) > _MANY else _NARROW
    count = min(_BLOCKS, len(relus) // width)
    if not count or len(stored) < _FEWEST:
        return None
    uneven = (stored[:, relus].mean(0) - 0.5).abs()
    atoms = relus[torch.sort(uneven, stable=True).indices[: count * width]].view(width, count).T.flatten()
    powers = 2.0 ** torch.arange(width, device=stored.device)
    found = Blocks(atoms, powers, atoms, atoms, atoms, len(stored))
    codes = torch.cat([found.codes(part[:, atoms]) for part in stored.split(4096)])
    ranked, order = torch.sort(codes.T.contiguous(), dim=1, stable=True)
    every = torch.arange((1 << width) + 1, device=stored.device).expand(count, -1).contiguous()
    first = torch.searchsorted(ranked, every) + torch.arange(count, device=stored.device).unsqueeze(1) * len(stored)
    table, words = first.flatten().int(), _words(codes, width)
    return dataclasses.replace(found, table=table, order=order.flatten(), words=words)


def find(blocks: Blocks, values: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of input and patch of which the soft gate may be open, and inputs for which no block is sure enough.

    Args:
        blocks: of the stored patterns.
        values: `B x L` atoms' values.
        slope: n.

    Returns:
        rows and patches of the pairs, `N` each, and further rows `R` that are in no pair.
    """
    count, width = blocks.shape
    z = values[:, blocks.atoms]
    unsure = ((z * slope).abs() >= 1).logical_not_()  # NaN is unsure
    if int(unsure.sum()) > _HOPELESS * count * len(z):
        everything = torch.arange(len(z), device=z.device)
        return everything[:0], everything[:0], everything
    code, mask = blocks.codes(z > 0), blocks.codes(unsure)
    place = code + torch.arange(count, device=z.device) * ((1 << width) + 1)
    far = ((mask > 0) | (blocks.counted(place)[1] > 0)).all(1).nonzero()[:, 0]
    pairs = [(far[:0], far[:0])]
    for most in _UNSURE:
        if len(far) and (count << most) * _WORTH <= blocks.patterns:
            rows, patches, far = _ask(blocks, code, mask, place, far, most)
            pairs.append((rows, patches))
    rows, patches = (torch.cat(part) for part in zip(*pairs, strict=True))
    return rows, patches, far


def _ask(
    blocks: Blocks, code: Tensor, mask: Tensor, place: Tensor, rows: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs for `rows` by the block with the fewest answers among those with at most so many unsure bits; rows left."""
    left = mask[rows]
    places = (place[rows] - (code[rows] & left)).unsqueeze(-1)
    real = torch.ones_like(places, dtype=torch.bool)
    for _ in range(most):
        bit = (left & -left).unsqueeze(-1)
        left = left ^ bit.squeeze(-1)
        places, real = torch.cat([places, places + bit], -1), torch.cat([real, real & (bit > 0)], -1)
    first, many = blocks.counted(places)
    many = torch.where(real, many, 0)
    total, best = torch.where(left > 0, 2**62, many.sum(-1)).min(1)
    fits = total <= 16 + blocks.patterns // 2
    far = rows[~fits]
    ask = (fits & (total > 0)).nonzero()[:, 0]
    index = ask, best[ask]
    flat, begin = many[index].flatten(), first[index].flatten()
    group = torch.repeat_interleave(flat).long()
    begin = begin - flat.cumsum(0) + flat
    patches = blocks.order.take(begin[group] + torch.arange(len(group), device=group.device))
    line = group // many.shape[2]
    rows, width = rows[ask], blocks.shape[1]
    word, sure = _words(code[rows], width), _words((1 << width) - 1 - mask[rows], width)
    for stored, own, care in zip(blocks.words, word, sure, strict=True):
        if len(line) * len(blocks.atoms) <= _FEW:
            break
        same = (stored.take(patches) ^ own.take(line)) & care.take(line) == 0
        line, patches = line[same], patches[same]
    return rows[line], patches, far


def pair_gates(on: Tensor, off: Tensor, stored: Tensor, rows: Tensor, patches: Tensor) -> Tensor:
    """Soft gates of pairs, `N`, from unit costs `B x L` each and patterns `P x L`; exactly 1 inside a region."""
    found = []
    step = max(1, _AT_ONCE // max(1, stored.shape[1]))
    for some, which in zip(rows.split(step), patches.split(step), strict=True):
        found.append(1 - torch.lerp(off[some], on[some], stored[which]).sum(1))
    return torch.cat(found).clamp_(min=0) if found else on.new_zeros(0)


def all_gates(on: Tensor, off: Tensor, stored: Tensor) -> Tensor | None:
    """Soft gates `B x P` by a product of half the size of the matrix form's; None where all are closed.

    1 - sum_i s_i on_i + (1 - s_i) off_i = 1 - sum_i off_i + s . (off - on). With S = sum_i on_i + off_i and n = L + 3
    roundings, what is computed is off by at most 3 gamma_n (S + 1). Pairs within more than that, 4 n u (S + 1), of 0 or
    of 1 are computed anew term by term, so that a closed gate is exactly closed and that of the own region exactly 1.
    """
    signed, total = off - on, off.sum(1)
    gates = torch.addmm((1 - total).unsqueeze(1), signed, stored.T)
    found = gates.detach()
    size = float((total + on.sum(1)).detach().nan_to_num().amax()) + 1 if len(on) else 1.0
    slack = 2 * (signed.shape[1] + 3) * torch.finfo(signed.dtype).eps * size
    if not found.numel() or float(found.amax()) <= -slack:  # not so where there is a NaN
        return None
    distance = found.sub(0.5).abs_().sub_(0.5).abs_()  # from 0 or 1, whichever is nearer
    rows, patches = distance.sub_(slack).clamp_(max=0).bool().nonzero(as_tuple=True)
    gates.clamp_(0, 1)
    if len(rows):
        gates[rows, patches] = pair_gates(on, off, stored, rows, patches)
    return gates
