"""Augmentation against a loop over pixels, and the distribution of its draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from expunge.core.errors import ConfigError, DataError
from expunge.core.seeds import record_keys
from expunge.data.transforms import (
    AUGMENTATIONS,
    PADDING,
    Draws,
    check_shape,
    crop_and_flip,
    draw_augmentation,
    get_augmentation,
    to_input,
)


def by_hand(image: np.ndarray, down: int, right: int, mirror: bool) -> np.ndarray:
    """Window, then mirror, one pixel at a time."""
    channels, height, width = image.shape
    out = np.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + down - PADDING, x + right - PADDING
                if 0 <= from_y < height and 0 <= from_x < width:
                    out[c, y, width - 1 - x if mirror else x] = image[c, from_y, from_x]
    return out


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crop_and_flip_equals_a_loop_over_pixels(dtype: type) -> None:
    rng = np.random.default_rng(1)
    batch = rng.integers(1, 256, (81 * 2, 2, 6, 5)).astype(dtype)  # no zero inside, so the border is told apart
    grid = [(a, b, m) for a in range(2 * PADDING + 1) for b in range(2 * PADDING + 1) for m in (False, True)]
    down, right, mirror = (torch.tensor(list(column)) for column in zip(*grid, strict=True))
    out = crop_and_flip(torch.from_numpy(batch), Draws(down, right, mirror)).numpy()
    assert out.dtype == dtype
    for image, (a, b, m), got in zip(batch, grid, out, strict=True):
        np.testing.assert_array_equal(got, by_hand(image, a, b, m))


def test_middle_window_without_mirror_is_the_identity() -> None:
    batch = torch.rand(3, 1, 7, 7)
    middle = torch.full((3,), PADDING)
    assert torch.equal(crop_and_flip(batch, Draws(middle, middle, torch.zeros(3, dtype=torch.bool))), batch)


def test_draws_are_uniform_and_independent() -> None:
    keys = record_keys([str(i) for i in range(40_000)])
    draws = draw_augmentation(keys, 5, 3, AUGMENTATIONS["crop-flip"])
    cells = (draws.down * 9 + draws.right) * 2 + draws.mirror.long()
    counts = np.bincount(cells.numpy(), minlength=162)
    assert len(counts) == 162
    assert chisquare(counts).pvalue > 1e-4
    other = draw_augmentation(keys, 5, 4, AUGMENTATIONS["crop-flip"])
    pairs = np.bincount((draws.down * 9 + other.down).numpy(), minlength=81)
    assert chisquare(pairs).pvalue > 1e-4, "two epochs are not independent"


def test_draws_depend_on_seed_epoch_and_id_alone() -> None:
    keys = record_keys([str(i) for i in range(500)])
    chosen = AUGMENTATIONS["crop-flip"]
    whole, some = draw_augmentation(keys, 1, 2, chosen), draw_augmentation(keys[::3], 1, 2, chosen)
    assert torch.equal(whole.down[::3], some.down)
    assert torch.equal(whole.mirror[::3], some.mirror)
    assert not torch.equal(whole.down, draw_augmentation(keys, 2, 2, chosen).down)
    assert not torch.equal(whole.down, draw_augmentation(keys, 1, 3, chosen).down)


def test_crop_alone_does_not_mirror_and_flip_alone_does_not_move() -> None:
    keys = record_keys([str(i) for i in range(100)])
    assert not draw_augmentation(keys, 0, 0, AUGMENTATIONS["crop"]).mirror.any()
    flip = draw_augmentation(keys, 0, 0, AUGMENTATIONS["flip"])
    assert flip.mirror.any()
    assert (flip.down == PADDING).all()
    assert (flip.right == PADDING).all()


def test_to_input() -> None:
    whole = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    assert torch.equal(to_input(whole), torch.tensor([[0.0, 0.2, 1.0]]))
    real = torch.tensor([[300.0, -1.0]])
    assert torch.equal(to_input(real), real)
    batch = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert to_input(batch, channels_last=True).is_contiguous(memory_format=torch.channels_last)
    assert to_input(torch.zeros(2, 3, 4), channels_last=True).shape == (2, 3, 4)


def test_bad_augmentations_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'crop-flip'"):
        get_augmentation("cropflip")
    with pytest.raises(DataError, match="C x H x W"):
        check_shape((9, 128), "crop-flip", "har")
    check_shape((9, 128), "none", "har")
