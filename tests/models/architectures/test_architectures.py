"""The reference networks: parameter counts against formulas, shapes, seeds, initial weights, gradients."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, ModelError
from expunge.core.trained import plain_state
from expunge.models import Architecture, model_names, model_options, model_table

CASES = [
    ("mlp", {}, (30,), 2),
    ("mlp", {"widths": []}, (64,), 10),
    ("mlp", {"widths": [8], "batch_norm": True}, (1, 8, 8), 10),
    ("small-cnn", {}, (1, 8, 8), 10),
    ("small-cnn", {}, (1, 28, 28), 10),
    ("small-cnn", {"widths": [4, 8]}, (3, 32, 32), 7),
    ("lenet5", {}, (1, 28, 28), 10),
    ("lenet5", {}, (3, 32, 32), 10),
    ("resnet18", {"width": 8}, (3, 32, 32), 10),
    ("resnet18", {"width": 4}, (1, 28, 28), 10),
    ("resnet20", {}, (3, 32, 32), 10),
    ("resnet20", {"width": 3}, (1, 29, 27), 5),
    ("resnet20", {"depth": 44, "width": 4}, (3, 32, 32), 100),
    ("vgg16-bn", {}, (3, 32, 32), 10),
    ("alexnet", {"hidden": 32}, (3, 32, 32), 10),
    ("alexnet", {"hidden": 32}, (1, 28, 28), 10),
    ("alexnet", {"hidden": 32}, (3, 47, 31), 10),
    ("cnn1d", {}, (9, 128), 6),
    ("cnn1d", {"widths": [4], "kernel": 1}, (1, 3), 2),
]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def conv(before: int, after: int, kernel: int, bias: bool = False) -> int:
    return before * after * kernel + (after if bias else 0)


def norm(channels: int) -> int:
    return 2 * channels


def linear(before: int, after: int) -> int:
    return before * after + after


def resnet18_count(k: int) -> int:
    total = conv(3, 64, 9) + norm(64) + linear(512, k)
    before = 64
    for after in (64, 128, 256, 512):
        total += conv(before, after, 9) + 3 * conv(after, after, 9) + 4 * norm(after)
        if before != after:
            total += conv(before, after, 1) + norm(after)
        before = after
    return total


def resnet_narrow_count(depth: int, k: int) -> int:
    n = (depth - 2) // 6
    total = conv(3, 16, 9) + norm(16) + linear(64, k)
    for before, after in ((16, 16), (16, 32), (32, 64)):
        total += conv(before, after, 9) + (2 * n - 1) * conv(after, after, 9) + 2 * n * norm(after)
    return total


def vgg16_count(k: int) -> int:
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    pairs = itertools.pairwise(channels)
    return sum(conv(a, b, 9, bias=True) + norm(b) for a, b in pairs) + linear(512, k)


COUNTS = [
    # Well-known numbers, not computed here: 3x3 stem, option-A shortcuts, one linear layer.
    ("resnet18", {}, (3, 32, 32), 10, 11_173_962),
    ("resnet20", {}, (3, 32, 32), 10, 269_722),
    ("vgg16-bn", {}, (3, 32, 32), 10, 14_728_266),
    ("lenet5", {}, (1, 28, 28), 10, 61_706),
    ("resnet18", {}, (3, 32, 32), 100, resnet18_count(100)),
    ("resnet20", {"depth": 44}, (3, 32, 32), 10, resnet_narrow_count(44, 10)),
    ("resnet20", {"depth": 56}, (3, 32, 32), 10, resnet_narrow_count(56, 10)),
    ("vgg16-bn", {}, (3, 32, 32), 100, vgg16_count(100)),
    ("mlp", {}, (30,), 2, linear(30, 64) + linear(64, 64) + linear(64, 2)),
    ("mlp", {"widths": [5], "batch_norm": True}, (4,), 3, 4 * 5 + norm(5) + linear(5, 3)),
    ("small-cnn", {}, (1, 8, 8), 10, 16 * 9 + 16 * 32 * 9 + 32 * 64 * 9 + norm(16 + 32 + 64) + linear(64, 10)),
    ("cnn1d", {}, (9, 128), 6, 9 * 32 * 5 + 32 * 64 * 5 + 64 * 128 * 5 + norm(32 + 64 + 128) + linear(128, 6)),
    (
        "alexnet",
        {},
        (3, 32, 32),
        10,
        conv(3, 64, 9, True)
        + conv(64, 192, 9, True)
        + conv(192, 384, 9, True)
        + conv(384, 256, 9, True)
        + conv(256, 256, 9, True)
        + linear(256 * 2 * 2, 512)
        + linear(512, 512)
        + linear(512, 10),
    ),
]


def test_the_formulas_give_the_published_numbers() -> None:
    assert resnet18_count(10) == 11_173_962
    assert resnet_narrow_count(20, 10) == 269_722
    assert vgg16_count(10) == 14_728_266


@pytest.mark.parametrize(("name", "options", "shape", "classes", "count"), COUNTS)
def test_parameter_counts(name: str, options: dict, shape: tuple[int, ...], classes: int, count: int) -> None:
    assert parameters(Architecture(name, options, shape, classes).build()) == count


@pytest.mark.parametrize(("name", "options", "shape", "classes"), CASES)
def test_shapes_gradients_and_types(name: str, options: dict, shape: tuple[int, ...], classes: int) -> None:
    model = Architecture(name, options, shape, classes).build(3)
    assert model.training
    x = torch.rand(3, *shape)
    logits = model(x)
    assert logits.shape == (3, classes)
    assert logits.dtype == torch.float32
    nn.functional.cross_entropy(logits, torch.zeros(3, dtype=torch.int64)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, f"{parameter_name} takes no part"
        assert torch.isfinite(parameter.grad).all()
    model.eval()
    with torch.no_grad():
        together = model(x)
        alone = torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["small-cnn", "resnet20", "vgg16-bn", "alexnet"])
def test_channels_last_gives_the_same_logits(name: str) -> None:
    model = Architecture(name, {}, (3, 32, 32), 10).build().eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        plain = model(x)
        last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "resnet20", "alexnet", "cnn1d"])
def test_the_seed_decides_the_bits_and_the_global_generator_does_not(name: str) -> None:
    shape = (9, 128) if name == "cnn1d" else (3, 32, 32)
    arch = Architecture(name, {}, shape, 10)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = plain_state(arch.build(5))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    second = plain_state(arch.build(5))
    other = plain_state(arch.build(6))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_convolutions_start_from_kaiming_fan_out() -> None:
    for name in ("resnet18", "resnet20", "vgg16-bn"):
        model = Architecture(name, {}, (3, 32, 32), 10).build()
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
                fan_out = module.out_channels * math.prod(module.kernel_size)
                wanted = math.sqrt(2 / fan_out)
                assert module.weight.std().item() == pytest.approx(wanted, rel=0.1)


def test_resnet18_keeps_the_resolution_of_the_stem_and_uses_the_usual_names() -> None:
    model = Architecture("resnet18", {"width": 4}, (3, 32, 32), 10).build().eval()
    sizes = {}
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        getattr(model, stage).register_forward_hook(lambda m, i, o, stage=stage: sizes.update({stage: tuple(o.shape)}))
    model(torch.rand(1, 3, 32, 32))
    assert sizes == {
        "layer1": (1, 4, 32, 32),
        "layer2": (1, 8, 16, 16),
        "layer3": (1, 16, 8, 8),
        "layer4": (1, 32, 4, 4),
    }
    names = set(plain_state(model))
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.downsample.0.weight", "layer4.1.conv2.weight"} <= names


def test_option_a_shortcut_subsamples_and_pads_with_zero_channels() -> None:
    from expunge.models.architectures.resnet20 import PaddedBlock

    block = PaddedBlock(2, 4, 2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 2, 5, 5)
    out = block(x)
    assert out.shape == (1, 4, 3, 3)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, 0].any()
    assert not out[:, 3].any()


def test_dropout_draws_only_in_training() -> None:
    model = Architecture("alexnet", {}, (3, 32, 32), 10).build()
    x = torch.rand(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_lenet_pads_28_to_32() -> None:
    small = Architecture("lenet5", {}, (1, 28, 28), 10).build(1)
    large = Architecture("lenet5", {}, (1, 32, 32), 10).build(1)
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(small(x), large(nn.functional.pad(x, (2, 2, 2, 2))))


@pytest.mark.parametrize(
    ("name", "options", "shape", "error", "says"),
    [
        ("lenet5", {}, (1, 8, 8), ModelError, "28 x 28 or 32 x 32"),
        ("lenet5", {}, (1, 32, 28), ModelError, "32 x 28"),
        ("vgg16-bn", {}, (3, 28, 28), ModelError, "at least 32 x 32"),
        ("alexnet", {}, (3, 8, 8), ModelError, "at least 16 x 16"),
        ("resnet18", {}, (30,), ModelError, "takes images"),
        ("cnn1d", {}, (3, 32, 32), ModelError, "windows of signals"),
        ("cnn1d", {"kernel": 4}, (9, 128), ConfigError, "odd number"),
        ("resnet20", {"depth": 21}, (3, 32, 32), ConfigError, "6n"),
        ("resnet20", {"depth": 2}, (3, 32, 32), ConfigError, "6n"),
        ("mlp", {"widths": [0]}, (4,), ConfigError, "positive integers"),
        ("small-cnn", {"widths": ["a"]}, (1, 8, 8), ConfigError, "positive integers"),
        ("resnet18", {"width": 1.5}, (3, 32, 32), ConfigError, "positive integers"),
        ("alexnet", {"dropout": 1.0}, (3, 32, 32), ConfigError, r"is a number in \[0, 1\)"),
    ],
)
def test_what_a_network_cannot_be(name: str, options: dict, shape: tuple, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        Architecture(name, options, shape, 10).build()


def test_the_table_lists_every_network_with_summary_and_options() -> None:
    rows = {row["name"]: row for row in model_table()}
    wanted = {"resnet18", "resnet20", "vgg16-bn", "alexnet", "small-cnn", "lenet5", "mlp", "cnn1d"}
    assert set(rows) == set(model_names()) >= wanted
    assert all(row["summary"] for row in rows.values())
    assert rows["mlp"]["options"] == {"widths": [64, 64], "batch_norm": False}
    assert model_options("small-cnn") == {"widths": (16, 32, 64)}


def test_the_documentation_lists_every_network_and_option() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    for name in model_names():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert all(f"`{option}`" in row for option in model_options(name)), name
