"""2:4 export: PyTorch's own packing and dispatch, with the two matrix products of CUDA replaced by CPU versions.

The replacements unpack with PyTorch's own layout code and multiply, as the CUDA kernels are documented to do. The
tensors and their checks of shapes, padding, transposes and biases are PyTorch's. The CUDA kernels run only with CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from products import stand_ins
from torch import nn
from torch.sparse import _semi_structured_conversions as layout

from expunge.core.errors import MaskError
from expunge.core.mask import Mask
from expunge.sparsity import Rule, make_mask, to_semi_structured
from expunge.sparsity.compression import semi_structured as tensor_cores

CUTLASS = torch.sparse.SparseSemiStructuredTensorCUTLASS
CUSPARSELT = torch.sparse.SparseSemiStructuredTensorCUSPARSELT


def network() -> tuple[nn.Module, Mask]:
    """Two layers that fit (one without a bias), one of 96 columns and one of 10 rows that do not."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96, bias=False), nn.ReLU(), nn.Linear(96, 64), nn.Linear(64, 10)
    )
    mask, _ = make_mask(model, Rule("magnitude", "2:4", layers=("linear",)))
    return model, mask


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """CUTLASS's products on a CPU, and a device check that accepts CPU tensors; the list records the calls."""
    ran: list[str] = []

    library = stand_ins(ran)
    monkeypatch.setattr(tensor_cores, "_is_available", lambda device: True)

    class OnAnyDevice(CUTLASS):
        @classmethod
        def _validate_device_dim_dtype_shape(cls, original_tensor):
            limits = cls._DTYPE_SHAPE_CONSTRAINTS[original_tensor.dtype]
            rows, columns = original_tensor.shape
            assert rows % limits.sparse_min_rows == columns % limits.sparse_min_cols == 0
            assert original_tensor.is_contiguous()

    def no_library(weight):
        raise RuntimeError("CUDA error: architecture mismatch when calling `cusparseLtInit(&handle)`\nmore")

    packings = {"cusparselt": no_library, "cutlass": OnAnyDevice.from_dense}
    monkeypatch.setattr(tensor_cores, "_get_packers", lambda: packings)
    yield ran
    library._destroy()


@pytest.mark.parametrize("count", [1, 7, 64])
def test_the_whole_network_with_torchs_sparse_tensors(products: list[str], count: int) -> None:
    model, mask = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sparse = to_semi_structured(model, mask, device="cpu")
    converted = [isinstance(module.weight, CUTLASS) for module in sparse.modules() if isinstance(module, nn.Linear)]
    assert converted == [True, True, False, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    mask.apply_(model)
    x = torch.randn(count, 64)
    products.clear()
    with torch.inference_mode():
        got = sparse(x.half())
    assert products == ["addmm", "mm"]
    expected = model.half()(x.half())
    assert got.shape == expected.shape
    assert torch.allclose(got.float(), expected.float(), atol=1e-2)
    assert torch.equal(got, sparse(x.half()).detach())  # under autograd too


def test_packing_keeps_every_2_4_weight_and_only_those() -> None:
    model, mask = network()
    mask.apply_(model)
    for module in tensor_cores.find_convertible_layers(model, mask).values():
        weight = module.weight.detach().half()
        packed, meta = layout.sparse_semi_structured_from_dense_cutlass(weight)
        assert packed.shape == (len(weight), weight.shape[1] // 2)
        assert torch.equal(layout.sparse_semi_structured_to_dense_cutlass(packed, meta), weight)


def test_a_packing_that_loses_weights_is_refused(products: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, mask = network()
    right = tensor_cores._get_packers()["cutlass"]
    lossy = {"cutlass": lambda weight: right(weight.roll(1, 0))}
    monkeypatch.setattr(tensor_cores, "_get_packers", lambda: lossy)
    with pytest.raises(MaskError, match="cutlass: 0: the sparse layer differs from the masked one"):
        to_semi_structured(model, mask, device="cpu")


def test_each_library_that_does_not_work_is_named(products: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, mask = network()
    with pytest.raises(MaskError, match="cusparselt: CUDA error: architecture mismatch") as caught:
        to_semi_structured(model, mask, device="cpu", backend="cusparselt")
    assert "more" not in str(caught.value)
    assert "cutlass" not in str(caught.value)
    monkeypatch.setattr(
        tensor_cores, "_get_packers", lambda: {"cusparselt": CUSPARSELT.from_dense, "cutlass": CUTLASS.from_dense}
    )
    with pytest.raises(MaskError, match=r"cusparselt: .*not supported.*; cutlass: .*not supported"):
        to_semi_structured(model, mask, device="cpu")


def test_a_library_that_fails_halfway_does_not_affect_the_next(
    products: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first converts one layer, wrongly but within its own tolerance, and fails at the next."""
    model, mask = network()
    right = tensor_cores._get_packers()["cutlass"]
    seen: list[torch.Tensor] = []

    def halfway(weight: torch.Tensor) -> torch.Tensor:
        seen.append(weight)
        if len(seen) == 1:
            return weight * 0.999
        raise RuntimeError

    monkeypatch.setattr(tensor_cores, "_get_packers", lambda: {"cusparselt": halfway, "cutlass": right})
    sparse = to_semi_structured(model, mask, device="cpu")
    assert len(seen) == 2
    alone = to_semi_structured(model, mask, device="cpu", backend="cutlass")
    x = torch.randn(5, 64).half()
    with torch.inference_mode():
        assert torch.equal(sparse(x), alone(x))


def test_an_error_without_a_message_is_named_by_its_type(products: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, mask = network()

    def silent(weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    monkeypatch.setattr(tensor_cores, "_get_packers", lambda: {"cutlass": silent})
    with pytest.raises(MaskError, match="cutlass: NotImplementedError"):
        to_semi_structured(model, mask, device="cpu")


def test_unavailable_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, mask = network()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert tensor_cores._is_available("cuda")
    assert tensor_cores._is_available("cuda:0")
    for device in ("gpu", "cuda:9", "", "meta", None):
        with pytest.raises(MaskError, match="need a CUDA device"):
            to_semi_structured(model, mask, device=device)  # type: ignore[arg-type]


def test_refusals_before_any_device_is_used() -> None:
    model, mask = network()
    if not torch.cuda.is_available():
        with pytest.raises(MaskError, match="CUDA"):
            to_semi_structured(model, mask)
    with pytest.raises(MaskError, match="CUDA"):
        to_semi_structured(model, mask, device="cpu")
    with pytest.raises(MaskError, match="unknown backend 'cutlas'") as caught:
        to_semi_structured(model, mask, backend="cutlas")
    assert "did you mean 'cutlass'" in str(caught.value.hint)
    one, _ = make_mask(model, Rule("magnitude", "weight", layers=("linear",), sparsity=0.3))
    with pytest.raises(MaskError, match="not 2:4"):
        to_semi_structured(model, one)
    small = nn.Sequential(nn.Linear(8, 4))
    mask, _ = make_mask(small, Rule("magnitude", "2:4", layers=("linear",)))
    with pytest.raises(MaskError, match="no linear layer"):
        to_semi_structured(small, mask)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda() -> None:
    model, mask = network()
    sparse = to_semi_structured(model, mask)
    mask.apply_(model)
    x = torch.randn(33, 64)
    with torch.inference_mode():
        got = sparse(x.half().cuda()).float().cpu()
    assert torch.allclose(got, model(x), atol=2e-2)
