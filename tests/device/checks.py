"""What is computed on the second device, each beside the same on the CPU. Run by `test_second_device.py`.

    python tests/device/checks.py [DEVICE]

DEVICE is `far` (`second.py`, the default) or `cuda`; with `cpu`, the checks compare the CPU with itself. Each check
returns the largest absolute difference; the program prints one JSON object: check to difference, operations that ran on
`far`, and the error if there was one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

if sys.argv[1:] in ([], ["far"]):
    import second  # before any backward pass of this process

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers" / "networks"))

import numpy as np
from products import stand_ins
from sparse_toys import toy_records, toy_split

from expunge.core.request import ForgetRequest
from expunge.core.trained import Trained, clone_model
from expunge.data.batches import Batches
from expunge.data.records import Records
from expunge.evaluation import evaluate
from expunge.methods import Context, get_method
from expunge.models import architecture
from expunge.sparsity import Pruning, Rule, criterion_names, get_criterion, make_mask, prune, to_semi_structured
from expunge.sparsity.compression import semi_structured as tensor_cores
from expunge.training import Runtime, curvature, get_recipe, train
from expunge.training.ensemble.member import Member
from expunge.training.ensemble.train import train_ensemble

torch.set_num_threads(1)
ON = (sys.argv[1:] or ["far"])[0]
FAR, counted = (second.FAR, second.counted) if ON == "far" else (torch.device(ON), {"operations": 0})
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
torch.backends.cudnn.deterministic = True
ALL = ("conv", "linear")


class FarRuntime(Runtime):
    """A runtime of the second device."""

    @property
    def torch_device(self) -> torch.device:
        return FAR


CPU, THERE = Runtime("cpu"), FarRuntime("cpu") if ON == "far" else Runtime(ON)
RECORDS = toy_records((1, 8, 8))
SPLIT = toy_split(RECORDS)
REQUEST = ForgetRequest(SPLIT.retain[:10], selection={"by": "class"}, forgotten_class=0)
HOW = get_recipe("one-cycle", epochs=2, batch_size=40, rewind=0.5)
CHECKS: dict[str, Callable[[], float]] = {}


def check(function: Callable[[], float]) -> Callable[[], float]:
    CHECKS[function.__name__] = function
    return function


def apart(one: Any, other: Any) -> float:
    """Largest absolute difference of two models' tensors."""
    a, b = one.model.state_dict(), other.model.state_dict()
    assert all(t.device.type == "cpu" for t in (*a.values(), *b.values())), "a result lies elsewhere than on the CPU"
    assert (one.mask is None) == (other.mask is None)
    if one.mask is not None:
        assert one.mask.hash() == other.mask.hash(), "the masks differ"
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def both(run: Callable[[Runtime], Any]) -> float:
    return apart(run(THERE), run(CPU))


@functools.cache
def dense() -> Trained:
    return train(RECORDS, SPLIT, architecture("small-cnn", RECORDS, widths=(6, 8)), recipe=HOW, seed=0, runtime=CPU)


@functools.cache
def sparse() -> Trained:
    return prune(dense(), Pruning(sparsity=0.5, layers=ALL, keep_weights=True), Context(RECORDS, CPU))


def forgotten(runtime: Runtime, name: str, trained: Trained, **options: Any) -> Trained:
    context = Context(RECORDS, runtime=runtime, seed=0)
    return get_method(name, **options).forget(trained, REQUEST, context).trained


@check
def training() -> float:
    """Plain; augmented; in channels-last order; from a dataset that gives records one by one."""
    blueprint = architecture("small-cnn", RECORDS, widths=(6, 8))
    augmented = get_recipe("one-cycle", epochs=2, batch_size=40, augment="crop-flip")
    one_by_one = [(RECORDS.features[n], int(RECORDS.labels[n])) for n in range(len(RECORDS))]
    streamed = Records("toy", RECORDS.record_ids, RECORDS.labels, RECORDS.class_names, stream=one_by_one)

    def run(runtime: Runtime, records: Records = RECORDS, how: Any = HOW) -> Trained:
        return train(records, SPLIT, blueprint, recipe=how, seed=0, runtime=runtime)

    order = {"device": "cpu", "channels_last": True}
    return max(
        both(run),
        both(lambda runtime: run(runtime, how=augmented)),
        both(lambda runtime: run(runtime, records=streamed)),
        apart(run(dataclasses.replace(THERE, channels_last=True)), run(Runtime(**order))),
    )


@check
def criteria() -> float:
    found = []
    for name in criterion_names():
        granularity = "weight" if get_criterion(name).level == "weight" else "filter"
        options: dict[str, Any] = {"criterion": name, "granularity": granularity, "scope": "layer", "layers": ALL}
        found.append(
            both(
                lambda r, o=options: prune(dense(), Pruning(sparsity=0.5, schedule="at-init", **o), Context(RECORDS, r))
            )
            if name != "batchnorm"
            else both(
                lambda r, o=options: prune(
                    dense(), Pruning(sparsity=0.5, schedule="one-shot", **o), Context(RECORDS, r)
                )
            )
        )
    return max(found)


@check
def schedules() -> float:
    return max(
        both(lambda r, s=name: prune(dense(), Pruning(sparsity=0.5, layers=ALL, schedule=s), Context(RECORDS, r)))
        for name in ("omp", "imp", "gradual", "soft-filter")
    )


@check
def methods_of_fine_tuning() -> float:
    return max(
        both(lambda r, n=name, t=trained: forgotten(r, n, t, epochs=1))
        for name in ("FT", "GA", "RL", "l1-sparse")
        for trained in (dense(), sparse())
    )


@check
def batch_norm_modes() -> float:
    return max(
        both(lambda r, m=mode: forgotten(r, "FT", sparse(), epochs=1, batch_norm=m))
        for mode in ("frozen", "re-estimate")
    )


@check
def references() -> float:
    return max(
        both(lambda r, m=mask: forgotten(r, "Retrain", sparse(), mask=m)) for mask in ("same", "rewind", "re-prune")
    )


@check
def un_pruning() -> float:
    common: dict[str, Any] = {"method": "FT", "method_options": {"epochs": 1}, "score_records": 64}
    return max(
        both(lambda r, o=options: forgotten(r, "Un-prune", sparse(), **common, **o))
        for options in (
            *({"rule": rule} for rule in ("magnitude", "gradient", "random", "dense")),
            *({"rule": "influence", "curvature": kind} for kind in ("gauss-newton", "hessian", "method")),
            {"rule": "gradient", "rounds": 2, "reprune": "each", "final_epochs": 1},
        )
    )


@check
def curvature_of_the_loss() -> float:
    """Masked products, the largest eigenvalue by both ways, and a solve."""
    found = []
    for kind in curvature.CURVATURES:
        values = []
        for runtime in (THERE, CPU):
            model = runtime.place(clone_model(sparse().model))
            rows = RECORDS.rows(SPLIT.retain[:40])
            batches = Batches(RECORDS, rows, batch_size=40, device=runtime.torch_device)
            matrix = curvature.Curvature(model, batches.in_order, matrix_type=kind, mask=sparse().mask, damping=0.1)
            vector = curvature.draw_vector(matrix.parameters, 0, sparse().mask)
            values.append(
                (
                    curvature.norm(matrix.multiply(vector)),
                    curvature.lanczos(matrix, steps=5).norm,
                    curvature.power_iteration(matrix, steps=5).norm,
                    curvature.norm(curvature.conjugate_gradient(matrix, vector, steps=5).x),
                )
            )
        found += [abs(one - other) for one, other in zip(*values, strict=True)]
    return max(found)


@check
def influence_methods() -> float:
    """Fisher forgetting and influence unlearning, with every inverse, on a sparse model."""
    chosen: tuple[dict[str, Any], ...] = (
        {"name": "FF"},
        {"name": "FF", "fisher": "sampled"},
        {"name": "FF", "legacy": True, "alpha": 1e-8},
        {"name": "IU", "steps": 3},
        {"name": "IU", "inverse": "lissa", "lissa_steps": 5},
        {"name": "IU", "inverse": "block-diagonal", "steps": 2, "damping": 0.1},
        {"name": "IU", "inverse": "kfac", "damping": 0.1},
        {"name": "IU", "legacy": True},
    )
    return max(both(lambda r, o=options: forgotten(r, trained=sparse(), **o)) for options in chosen)


@check
def scores() -> float:
    unlearned, reference = forgotten(CPU, "FT", sparse(), epochs=1), forgotten(CPU, "Retrain", sparse())
    one, other = (
        {
            score.name: repr(score.value)
            for score in evaluate(unlearned, REQUEST, RECORDS, reference=reference, runtime=runtime)
        }
        for runtime in (THERE, CPU)
    )
    assert one == other
    assert len(one) > 5
    assert all(p.device.type == "cpu" for p in (*unlearned.model.parameters(), *reference.model.parameters()))
    return 0.0


@check
def ensembles() -> float:
    found = []
    for name, shape, options, engine in (
        ("mlp", (20,), {"widths": (8,)}, "products"),
        ("mlp", (20,), {"widths": (8,), "batch_norm": True}, "vmap"),
        ("small-cnn", (1, 8, 8), {"widths": (4, 8)}, "vmap"),
        ("small-cnn", (1, 8, 8), {"widths": (4, 8)}, "single"),
    ):
        records = toy_records(shape)
        blueprint = architecture(name, records, normalise="none", **options)
        mask, _ = make_mask(blueprint.build(0), Rule("random", layers=("linear",), sparsity=0.5))
        members = [Member(np.arange(100 + number), seed=number, mask=mask) for number in range(3)]
        one, other = (
            train_ensemble(records, blueprint, members, recipe=HOW, runtime=runtime, engine=engine).predict_logits(
                records, np.arange(50), runtime=runtime
            )
            for runtime in (THERE, CPU)
        )
        found.append(float((one.cpu() - other).abs().max()))
    return max(found)


@check
def patched_network() -> float:
    records = toy_records((20,))
    split = toy_split(records)
    original = train(records, split, architecture("mlp", records, widths=(16,)), recipe=HOW, seed=0, runtime=CPU)
    context = Context(records, runtime=THERE, seed=0)
    patched = get_method("patch").forget(original, ForgetRequest(split.retain[:5]), context).trained.model
    x = torch.from_numpy(records.features[:60])
    expected = patched(x)
    model = THERE.place(patched)
    return float((model(x.to(FAR)).cpu() - expected).abs().max())


def real_tensors_2_4() -> float:
    """What `to_semi_structured` makes on CUDA, with torch's own kernels, beside the masked dense network."""
    if FAR.type != "cuda":
        return 0.0
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96, bias=False), nn.ReLU(), nn.Linear(96, 10))
    mask, _ = make_mask(model, Rule("magnitude", "2:4", layers=("linear",)))
    converted = to_semi_structured(model, mask, device=FAR)
    mask.apply_(model)
    x = torch.randn(64, 64).half()
    with torch.inference_mode():
        return float((converted(x.to(FAR)).cpu().float() - model.float()(x.float())).abs().max())


@check
def tensors_2_4() -> float:
    """PyTorch's CUTLASS tensors on the device; the products, which CUDA alone has, unpack and multiply."""
    if ON != "far":
        return real_tensors_2_4()
    ran: list[str] = []
    library = stand_ins(ran)

    class There(torch.sparse.SparseSemiStructuredTensorCUTLASS):
        @classmethod
        def _validate_device_dim_dtype_shape(cls, original_tensor):
            assert original_tensor.device == FAR
            assert original_tensor.is_contiguous()

    there: Any = tensor_cores
    there._is_available = lambda device: torch.device(device) == FAR
    there._get_packers = lambda: {"cutlass": There.from_dense}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96, bias=False), nn.ReLU(), nn.Linear(96, 10))
    mask, _ = make_mask(model, Rule("magnitude", "2:4", layers=("linear",)))
    converted = to_semi_structured(model, mask, device="far:0")
    mask.apply_(model)
    x = torch.randn(7, 64).half()
    with torch.inference_mode():
        got = converted(x.to(FAR))
        expected = model.half()(x)
    assert got.device == FAR
    assert {*ran} == {"mm", "addmm"}
    library._destroy()
    return float((got.cpu().float() - expected.float()).abs().max())


@check
def a_forgotten_move_is_an_error() -> float:
    """Negative controls: what CUDA would refuse is refused here."""
    if FAR.type == "cpu":
        return 0.0
    model = nn.Linear(3, 2).to(FAR)
    wrong: list[Callable[[], Any]] = [
        lambda: model(torch.randn(4, 3)),
        lambda: torch.where(torch.ones(2, dtype=torch.bool), model.weight[:, 0], model.weight[:, 1]),
        lambda: model.weight.detach().masked_fill_(torch.ones(2, 3, dtype=torch.bool), 0.0),
        lambda: torch.randn(3, device=FAR, generator=torch.Generator().manual_seed(0)),
        lambda: model.weight.detach().numpy(),
        lambda: nn.functional.cross_entropy(model(torch.randn(4, 3).to(FAR)), torch.zeros(4, dtype=torch.int64)),
    ]
    for number, step in enumerate(wrong):
        try:
            step()
        except (RuntimeError, TypeError):
            continue
        raise AssertionError(f"step {number} mixed devices and was not refused")
    return 0.0


def main() -> None:
    """Run all checks."""
    warnings.simplefilter("ignore")
    found = {}
    for name, function in CHECKS.items():
        before = counted["operations"]
        try:
            difference, error = function(), None
        except Exception:
            difference, error = float("nan"), traceback.format_exc()
        found[name] = {
            "difference": difference,
            "operations": counted["operations"] - before,
            "error": error,
        }
    sys.stdout.write(json.dumps({"checks": found}) + "\n")


if __name__ == "__main__":
    main()
