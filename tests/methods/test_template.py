"""What `Method.forget` does around `unlearn`: mask, split, cost, history, and what was rewritten."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import method_contract as contract
import numpy as np
import pytest
import torch

from expunge.core.errors import Interrupted, MaskError, MethodError
from expunge.core.mask import Mask
from expunge.core.registry import METHODS
from expunge.core.request import ForgetRequest
from expunge.core.seeds import derive, torch_generator
from expunge.core.trained import Trained, clone_model
from expunge.data.records import Records
from expunge.methods import Context, FineTuning, Method, Task, get_method, register_method
from expunge.training import Recipe, Runtime, Steps, loop

Hook = Callable[[Task], "Trained | None"]


@pytest.fixture(scope="module")
def context(digits: Records, cpu: Runtime) -> Context:
    return Context(digits, cpu, seed=1)


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with METHODS.temporary():
        yield


def toy(hook: Hook, guarantee: str = "empirical") -> Method:
    """A method that consists of a hook."""

    @register_method("toy", guarantee=guarantee, citation="tests")
    @dataclasses.dataclass(frozen=True)
    class Toy(Method):
        """Toy."""

        def unlearn(self, task: Task) -> Trained | None:
            return hook(task)

    return Toy()


def nothing(task: Task) -> None:
    """A method that changes nothing."""


def noise(task: Task) -> None:
    generator = torch_generator(task.context.seed, "noise")
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)


# ---- the hook alone keeps the contract


@pytest.mark.parametrize("kind", ["dense", "sparse", "mlp"])
def test_a_hook_of_four_lines_keeps_the_contract(
    kind: str, request: pytest.FixtureRequest, request_20: ForgetRequest, context: Context, tmp_path: Path
) -> None:
    outcome = contract.check(toy(noise), request.getfixturevalue(kind), request_20, context, tmp_path)
    assert outcome.rewrote == ("weights",)
    assert outcome.trained.provenance.history[-1] == "toy: 20 records forgotten"


def test_a_hook_may_return_the_original_itself(sparse: Trained, request_20: ForgetRequest, context: Context) -> None:
    """The result shares no memory with it all the same, and its split is the new one."""
    outcome = contract.check_callers_model(toy(lambda task: task.trained), sparse, request_20, context)
    contract.check_split(outcome, sparse, request_20)
    assert outcome.rewrote == ()
    assert outcome.trained.hash == sparse.hash
    assert outcome.dropped == ()  # it has all its state


def test_a_hook_that_does_nothing_rewrites_nothing(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    outcome = toy(nothing).forget(dense, request_20, context)
    assert (outcome.rewrote, outcome.trained.hash) == ((), dense.hash)
    assert outcome.dropped == ("rewind_checkpoint",)
    assert {change.status for change in outcome.changes} == {"unchanged"}


# ---- hooks with a fault: what the base repairs, and what is detected


def write_in_the_original(task: Task) -> None:
    with torch.no_grad():
        next(task.trained.model.parameters()).add_(1.0)


def draw_from_global_state(task: Task) -> None:
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.01)


def ignore_the_seed(task: Task) -> None:
    with torch.no_grad():
        next(task.model.parameters()).mul_(0.5)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (write_in_the_original, "caller's model was changed"),
        (draw_from_global_state, "global generator was used"),
        (ignore_the_seed, "another seed gave the same bits"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_broken_hooks_fail(
    hook: Hook, message: str, sparse: Trained, request_20: ForgetRequest, context: Context, tmp_path: Path
) -> None:
    mine = dataclasses.replace(sparse, model=clone_model(sparse.model))
    with pytest.raises(AssertionError, match=message):
        contract.check(toy(hook), mine, request_20, context, tmp_path)


def test_a_stronger_guarantee_is_refused(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    def claim(task: Task) -> None:
        task.guarantee = "exact"

    with pytest.raises(MethodError, match="claims the guarantee 'exact'"):
        toy(claim).forget(dense, request_20, context)
    assert toy(claim, "exact").forget(dense, request_20, context).guarantee == "exact"

    def weaken(task: Task) -> None:
        task.guarantee = "empirical"

    assert toy(weaken, "exact").forget(dense, request_20, context).guarantee == "empirical"


def test_a_mask_of_another_model_is_refused(
    dense: Trained, sparse: Trained, request_20: ForgetRequest, context: Context
) -> None:
    def mistake(task: Task) -> None:
        assert sparse.mask is not None
        task.mask = Mask({"nothing.weight": torch.ones(2, dtype=torch.bool)}, sparse.mask.provenance)

    with pytest.raises(MaskError, match="does not have"):
        toy(mistake).forget(dense, request_20, context)


# ---- what was rewritten and dropped


def test_rewritten_state_is_found_by_comparison(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    def buffers(task: Task) -> None:
        task.re_estimate(task.retain_rows, 256)

    def one_weight(task: Task) -> None:
        with torch.no_grad():
            next(task.model.parameters()).view(-1)[0] += 1.0

    def frozen_layer(task: Task) -> None:
        first, *_ = task.model.parameters()
        first.requires_grad_(False)
        task.fit(task.retain_rows, Recipe(epochs=1, batch_size=64, learning_rate=0.01))

    assert toy(buffers).forget(dense, request_20, context).rewrote == ("batch_norm",)
    outcome = toy(one_weight).forget(dense, request_20, context)
    assert outcome.rewrote == ("weights",)
    assert [(c.status, c.changed) for c in outcome.changes if c.status != "unchanged"] == [("partly", 1)]
    outcome = toy(frozen_layer).forget(dense, request_20, context)
    assert outcome.rewrote == ("weights", "batch_norm")
    assert outcome.changes[0].status == "unchanged"
    assert outcome.changes[0].kind == "parameter"
    assert sum(c.status != "unchanged" for c in outcome.changes) > 5


def test_a_mask_that_only_loses_weights_is_carried(
    sparse: Trained, request_20: ForgetRequest, context: Context
) -> None:
    def change(grow: bool) -> Hook:
        def hook(task: Task) -> None:
            assert task.mask is not None
            kept = {name: tensor.clone() for name, tensor in task.mask.kept.items()}
            name = next(iter(kept))
            kept[name].view(-1)[torch.nonzero(kept[name].reshape(-1) != grow)[0]] = grow
            task.mask = Mask(kept, task.mask.provenance)

        return hook

    thinned = toy(change(grow=False)).forget(sparse, request_20, context)
    assert "mask" in thinned.carried
    assert thinned.trained.mask is not None
    assert thinned.trained.mask.count_violations(thinned.trained.model) == {}
    assert "weights" in thinned.rewrote  # the weight that the mask lost is now 0
    grown = toy(change(grow=True)).forget(sparse, request_20, context)
    assert grown.rewrote == ("mask",)


def test_a_new_mask_and_a_removed_one_are_named(
    dense: Trained, sparse: Trained, request_20: ForgetRequest, context: Context
) -> None:
    def prune(task: Task) -> None:
        task.mask = sparse.mask

    def densify(task: Task) -> Trained:
        return dataclasses.replace(task.result(), mask=None)

    assert toy(prune).forget(dense, request_20, context).rewrote == ("weights", "mask")
    outcome = toy(densify).forget(sparse, request_20, context)
    assert "mask" in outcome.dropped
    assert outcome.rewrote == ()


def test_pruned_weights_do_not_count_as_unchanged(sparse: Trained, request_20: ForgetRequest, context: Context) -> None:
    """A tensor whose kept weights have all changed is `changed`, not `partly`."""
    outcome = toy(noise).forget(sparse, request_20, context)
    assert sparse.mask is not None
    for change in outcome.changes:
        if change.name in sparse.mask.kept:
            assert change.total == int(sparse.mask.kept[change.name].sum())
            assert (change.status, change.fraction) == ("changed", 1.0)


def test_state_that_a_method_defines_is_listed(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    counts = {"counts": {"classes": torch.arange(10)}}
    counting = dataclasses.replace(dense, state={**dense.state, **counts})

    def recount(task: Task) -> None:
        task.state["counts"] = {"classes": task.state["counts"]["classes"] - 1}

    def remove(task: Task) -> None:
        del task.state["counts"]

    kept, changed, removed = (toy(hook).forget(counting, request_20, context) for hook in (nothing, recount, remove))
    assert "counts" in kept.carried
    assert changed.rewrote == ("counts",)
    assert removed.dropped == ("rewind_checkpoint", "counts")


def test_recomputed_state_counts_as_rewritten(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    def same_again(task: Task) -> None:
        task.recomputed |= {"weights", "patches"}

    assert toy(same_again).forget(dense, request_20, context).rewrote == ("weights",)  # there are no patches


# ---- cost


def test_records_are_counted(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    def work(task: Task) -> None:
        assert sum(len(x) for x, _ in task.read(task.forget_rows)) == 20
        assert sum(len(x) for x, _ in task.read(task.retain_rows[:50], 16, forward_only=True)) == 50
        task.fit(task.forget_rows, Recipe(epochs=3, batch_size=8, learning_rate=0.01))
        task.run(get_method("FT", epochs=1), task.trained)

    outcome = toy(work).forget(dense, request_20, context)
    retained = len(outcome.trained.split.retain)
    assert outcome.cost.trained_records == 20 + 3 * 20 + retained
    assert outcome.cost.forward_records == 50
    assert outcome.cost.retain_records == retained
    assert len(outcome.history) == 3  # that of an inner method is added by hand


def test_time_is_measured_around_the_hook(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    def sleep(task: Task) -> None:
        time.sleep(0.2)

    def sleep_untimed(task: Task) -> None:
        with task.untimed():
            time.sleep(0.2)

    assert toy(sleep).forget(dense, request_20, context).cost.seconds > 0.199
    assert toy(sleep_untimed).forget(dense, request_20, context).cost.seconds < 0.15


def test_the_time_of_an_interrupted_run_counts(
    dense: Trained, request_20: ForgetRequest, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    def slow(model: torch.nn.Module, epoch: int, rate: float) -> None:
        time.sleep(0.03 if epoch < 2 else 0)

    def train(task: Task) -> None:
        recipe = Recipe(epochs=3, batch_size=8, learning_rate=0.01)
        task.fit(task.forget_rows, recipe, steps=Steps(after_step=slow))

    def stop(label: str, done: int, total: int, info: dict[str, float]) -> None:
        if info["epoch"] == 3:
            raise KeyboardInterrupt

    first = dataclasses.replace(context, checkpoint=tmp_path / "c", progress=stop)
    with pytest.raises(Interrupted):
        toy(train).forget(dense, request_20, first)
    outcome = toy(train).forget(dense, request_20, dataclasses.replace(first, progress=None))
    assert outcome.cost.seconds > 0.17  # two epochs of three steps before the interruption
    assert len(outcome.history) == 3


# ---- declared on Method


def test_declared_with_defaults(dense: Trained) -> None:
    method = toy(nothing)
    assert method.batch_norm is None
    assert method.trains is False
    assert method.drop_unused({"a": 1}) == ({"a": 1}, {})
    method.check_state(dense)
    method.check_pruning("omp", keep_weights=False)
    assert get_method("FT", batch_norm="frozen").batch_norm == "frozen"
    assert isinstance(get_method("GA"), FineTuning)
    assert get_method("Un-prune").batch_norm == "re-estimate"
    assert get_method("Un-prune", re_estimate=0).batch_norm == "train"
    assert get_method("Un-prune", rule="influence").batch_norm == "train"
    assert get_method("Un-prune", method="patch", rule="unchanged").batch_norm is None


def test_state_is_checked_before_the_hook(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    called = []

    @register_method("needy", guarantee="empirical", citation="tests")
    @dataclasses.dataclass(frozen=True)
    class Needy(Method):
        """Needy."""

        def check_state(self, trained: Trained) -> None:
            if "shards" not in trained.state:
                raise MethodError("there are no shards", where="state shards")

        def unlearn(self, task: Task) -> None:
            called.append(task)

    with pytest.raises(MethodError, match="no shards"):
        Needy().forget(dense, request_20, context)
    assert called == []
    empty = Needy().forget(dense, ForgetRequest(np.array([], dtype=str)), context)
    assert empty.trained.hash == dense.hash
    assert (empty.cost.trained_records, empty.cost.forward_records, empty.cost.seconds) == (0, 0, 0.0)


# ---- training in a hook


def test_training_keeps_masked_weights_at_zero_in_every_step(
    sparse: Trained, request_20: ForgetRequest, context: Context
) -> None:
    """Not only at the end: the other weights are trained against the masked network."""
    seen = []

    def train(task: Task) -> None:
        def look(model: torch.nn.Module, epoch: int, rate: float) -> None:
            assert task.mask is not None
            seen.append(task.mask.count_violations(model))

        task.fit(task.retain_rows, Recipe(epochs=1, batch_size=64, learning_rate=0.05), steps=Steps(after_step=look))

    toy(train).forget(sparse, request_20, context)
    assert len(seen) == 5
    assert seen == [{}] * 5


def test_the_seed_of_training_is_that_of_the_method(
    dense: Trained, request_20: ForgetRequest, context: Context
) -> None:
    seeds = []

    def look(task: Task) -> None:
        seeds.append(task.seed)

    toy(look).forget(dense, request_20, context)
    assert seeds == [derive(context.seed, "method", "toy")]


def test_a_gradient_that_a_hook_leaves_is_removed(dense: Trained, request_20: ForgetRequest, context: Context) -> None:
    def backward(task: Task) -> None:
        for x, y in task.read(task.forget_rows):
            torch.nn.functional.cross_entropy(task.model(x), y).backward()

    outcome = contract.check_callers_model(toy(backward), dense, request_20, context)
    assert outcome.cost.trained_records == 20
