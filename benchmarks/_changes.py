"""Small changes of a record, for `patch_limits.py`: bits, attributes of Adult, pixels.

A kind of change is a function `(x, draws) -> changed`: the record `x` (shape of a record), a generator, and `M` changed
records `M x ...`. Changes that can all be listed are listed; of the others, a fixed number is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from expunge.data.records import Records
from expunge.data.sources.adult import SCALES

Change = Callable[[Tensor, np.random.Generator], Tensor]
#: Changes drawn for a record where they cannot all be listed.
DRAWN = 200


def _repeat(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` copies `M x ...`, and the same numbers as `M x d`."""
    copies = x.float().expand(count, *x.shape).clone()
    return copies, copies.view(count, -1)


def _places(size: int, many: int, draws: np.random.Generator) -> Tensor:
    """`DRAWN` sets of `many` different features out of `size`."""
    return torch.from_numpy(draws.random((DRAWN, size)).argpartition(many, axis=1)[:, :many].copy())


def one_bit(x: Tensor, _: np.random.Generator) -> Tensor:
    """Each bit flipped alone."""
    copies, flat = _repeat(x, x.numel())
    flat.diagonal().copy_(1 - x.float().flatten())
    return copies


def eight_bits(x: Tensor, draws: np.random.Generator) -> Tensor:
    """Eight different bits flipped."""
    copies, flat = _repeat(x, DRAWN)
    places = _places(x.numel(), 8, draws)
    flat.scatter_(1, places, 1 - flat.gather(1, places))
    return copies


def _step(values: Tensor, draws: np.random.Generator) -> Tensor:
    """Each value of 0 to 1 moved by 1/255, up or down at random, inwards at the ends."""
    up = torch.from_numpy(draws.random(values.shape) < 0.5)
    level = (values * 255).round()
    up = (up | (level <= 0)) & (level < 255)
    return (level + torch.where(up, 1.0, -1.0)) / 255


def one_pixel(x: Tensor, draws: np.random.Generator) -> Tensor:
    """Each pixel alone, one level of 255 brighter or darker."""
    copies, flat = _repeat(x, x.numel())
    flat.diagonal().copy_(_step(x.float().flatten(), draws))
    return copies


def eight_pixels(x: Tensor, draws: np.random.Generator) -> Tensor:
    """Eight different pixels, each one level of 255 brighter or darker."""
    copies, flat = _repeat(x, DRAWN)
    places = _places(x.numel(), 8, draws)
    flat.scatter_(1, places, _step(flat.gather(1, places), draws))
    return copies


class Attributes:
    """Changes of one raw attribute of Adult to another valid value.

    Categories change to another category of the same column. Numbers change to another value that the column has among
    the training records. `education` and `education-num` are one attribute and change together.
    """

    def __init__(self, records: Records, training: Tensor) -> None:
        self.numbers = list(SCALES)
        self.values = {i: training[:, i].unique() for i in range(len(self.numbers))}
        self.blocks: dict[str, slice] = {}
        start = len(self.numbers)
        for name, column in records.columns.items():
            count = len(np.unique(column))
            self.blocks[name] = slice(start, start + count)
            start += count
        if start != training.shape[1]:
            raise SystemExit(f"the categories of Adult take {start} features, the records have {training.shape[1]}")
        years = self.numbers.index("education-num")
        self.years = {
            int(code): float(training[training[:, self.blocks["education"]].argmax(1) == code, years].median())
            for code in training[:, self.blocks["education"]].argmax(1).unique()
        }

    def one_attribute(self, x: Tensor, draws: np.random.Generator) -> Tensor:
        """An attribute at random, then one of its other values at random."""
        names = [*(name for name in self.numbers if name != "education-num"), *self.blocks]
        copies, _ = _repeat(x, DRAWN)
        for row in copies:
            name = names[draws.integers(len(names))]
            if name in self.numbers:
                at = self.numbers.index(name)
                others = self.values[at][self.values[at] != x[at]]
                row[at] = others[draws.integers(len(others))]
            else:
                block = self.blocks[name]
                codes = [code for code in range(block.stop - block.start) if code != int(x[block].argmax())]
                if name == "education":
                    codes = [code for code in codes if code in self.years]
                code = codes[draws.integers(len(codes))]
                row[block] = 0
                row[block.start + code] = 1
                if name == "education":
                    row[self.numbers.index("education-num")] = self.years[code]
        return copies

    def age(self, x: Tensor, _: np.random.Generator) -> Tensor:
        """The age one year lower and one year higher, where a training record has that age."""
        at, scale = self.numbers.index("age"), SCALES["age"][1]
        years = round(float(x[at]) * scale)
        ages = [torch.tensor(age / scale, dtype=torch.float32) for age in (years - 1, years + 1)]
        kept = [age for age in ages if bool((self.values[at] == age).any())]
        copies, _ = _repeat(x, len(kept))
        for row, age in zip(copies, kept, strict=True):
            row[at] = age
        return copies


def changes_for(source: str, records: Records, training: Tensor) -> dict[str, Change]:
    """The kinds of change of a source, by name."""
    if source == "location30":
        return {"one bit flipped": one_bit, "8 bits flipped": eight_bits}
    if source == "adult":
        held = Attributes(records, training)
        return {"one attribute changed": held.one_attribute, "age by one year": held.age}
    return {"one pixel by 1/255": one_pixel, "8 pixels by 1/255": eight_pixels}
