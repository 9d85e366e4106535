"""The contract of a method, as functions that raise AssertionError. `check` calls all of them.

Every registered method must pass; deliberately broken methods must fail.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from expunge.core.errors import RequestError
from expunge.core.files import read_json, read_tensors, write_json, write_tensors
from expunge.core.hashing import hash_json, hash_tensors
from expunge.core.mask import Mask
from expunge.core.outcome import GUARANTEES, Outcome
from expunge.core.request import ForgetRequest
from expunge.core.trained import INFLUENCE_STATE, Trained
from expunge.methods import Context, Method


def buffers(trained: Trained) -> dict[str, torch.Tensor]:
    """Return the buffers of the BatchNorm layers."""
    return {k: v for k, v in trained.model.state_dict().items() if "running_" in k or "num_batches" in k}


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return {k: v.detach() for k, v in trained.model.named_parameters()}


def state_hash(trained: Trained, name: str) -> str:
    """Return the hash of one item of influence-bearing state."""
    if name == "weights":
        return hash_tensors(weights(trained))
    if name == "batch_norm":
        return hash_tensors(buffers(trained))
    if name == "mask":
        return "none" if trained.mask is None else trained.mask.hash()
    if name == "normalisation":
        return hash_tensors({k: v for k, v in trained.model.state_dict().items() if k.startswith("normalise.")})
    return hash_tensors(trained.state.get(name, {}))


def fingerprint(trained: Trained) -> str:
    """Return a hash of everything in a trained model, including flags and gradients."""
    body = {name: state_hash(trained, name) for name in INFLUENCE_STATE}
    body["all"] = trained.hash
    body["training"] = str([m.training for m in trained.model.modules()])
    body["requires_grad"] = str([p.requires_grad for p in trained.model.parameters()])
    body["gradients"] = str([p.grad is None for p in trained.model.parameters()])
    body["split"] = trained.split.hash
    body["provenance"] = hash_json(trained.provenance.to_json())
    body["state"] = str(sorted(trained.state))
    return hash_json(body)


def check_callers_model(method: Method, trained: Trained, request: ForgetRequest, context: Context) -> Outcome:
    """Bits, flags, gradients, mask, split and state are unchanged, and the result shares no memory with the input."""
    before, ids = fingerprint(trained), request.record_ids.copy()
    outcome = method.forget(trained, request, context)
    assert fingerprint(trained) == before, "the caller's model was changed"
    assert np.array_equal(request.record_ids, ids), "the request was changed"
    before_pointers = {t.data_ptr() for t in trained.model.state_dict().values()}
    after_pointers = {t.data_ptr() for t in outcome.trained.model.state_dict().values() if t.numel()}
    assert not before_pointers & after_pointers, "the result shares memory with the caller's model"
    assert all(p.grad is None for p in outcome.trained.model.parameters()), "the result carries gradients"
    return outcome


def check_empty_request(method: Method, trained: Trained, context: Context) -> None:
    outcome = check_callers_model(method, trained, ForgetRequest(np.array([], dtype=str)), context)
    assert outcome.trained.hash == trained.hash, "an empty request changed the model"
    assert state_hash(outcome.trained, "mask") == state_hash(trained, "mask"), "an empty request changed the mask"
    assert outcome.trained.split.hash == trained.split.hash
    assert outcome.rewrote == (), "an empty request rewrote something"
    assert outcome.cost.passes == 0


def check_split(outcome: Outcome, trained: Trained, request: ForgetRequest) -> None:
    after, forgotten = outcome.trained.split, set(request.record_ids.tolist())
    assert not forgotten & set(after.retain.tolist()), "a forgotten record is still in the retain set"
    assert forgotten <= set(after.forget.tolist()), "a forgotten record is not in the forget set"
    assert after.base_hash == trained.split.base_hash, "the base split has changed"


def check_masked_weights(outcome: Outcome, trained: Trained, directory: Path) -> None:
    """Masked weights are +0.0 after the method, after deepcopy, and after saving and loading in both formats."""
    mask, model = outcome.trained.mask, outcome.trained.model
    if trained.mask is not None:
        assert mask is not None, "the mask was lost"
        if "mask" not in outcome.rewrote:
            assert trained.mask.count_violations(model) == {}, "a masked weight is not +0.0"
    if mask is None:
        return
    mask.check_fits(model)
    assert mask.count_violations(model) == {}, "a masked weight is not +0.0"
    copied = copy.deepcopy(model)
    assert mask.count_violations(copied) == {}
    torch.save(model.state_dict(), directory / "m.pt")
    copied.load_state_dict(torch.load(directory / "m.pt", weights_only=True))
    assert mask.count_violations(copied) == {}
    write_tensors(directory / "m.safetensors", model.state_dict())
    copied.load_state_dict(read_tensors(directory / "m.safetensors")[0])
    mask.save(directory / "mask.safetensors")
    assert Mask.load(directory / "mask.safetensors").count_violations(copied) == {}
    assert hash_tensors(copied.state_dict()) == outcome.trained.hash, "saving changed a bit"


def check_reported_state(outcome: Outcome, trained: Trained) -> None:
    """State reported as rewritten has changed; other state is bit-equal, or a mask that only lost weights."""
    present = outcome.trained.list_influence_state()
    rewrote, remembers = set(outcome.rewrote), set(outcome.carried)
    assert rewrote <= set(present), f"rewrote {rewrote - set(present)}, which the model does not have"
    assert rewrote | remembers == set(present), "some state is neither rewritten nor remembered"
    for name in trained.list_influence_state():
        if name not in present:
            assert name in outcome.dropped, f"{name} is missing, and not reported as dropped"
    for name in outcome.dropped:
        assert name not in present, f"{name} is reported as dropped but is present"
    for name in present:
        same = state_hash(outcome.trained, name) == state_hash(trained, name)
        if name in rewrote:
            assert not same, f"{name} is reported as rewritten but is bit-equal to before"
        elif name == "mask":
            assert trained.mask is not None
            assert outcome.trained.mask is not None
            for tensor_name, kept in trained.mask.kept.items():
                regrown = outcome.trained.mask.kept[tensor_name] & ~kept
                assert not regrown.any(), "the mask is reported as remembering, but weights were regrown"
        else:
            assert same, f"{name} has changed but is not reported as rewritten"


def check_changes(outcome: Outcome, trained: Trained) -> None:
    """Every parameter and buffer is compared with the original's, and the comparison is right."""
    before, after = trained.model.state_dict(), outcome.trained.model.state_dict()
    if before.keys() != after.keys():  # a patched model has its base under another name, and buffers of the patches
        return
    assert [change.name for change in outcome.changes] == list(after), "not every tensor was compared"
    for change in outcome.changes:
        same = hash_tensors({"t": before[change.name]}) == hash_tensors({"t": after[change.name]})
        assert (change.status == "unchanged") == same, f"{change.name} is reported as {change.status}"
        different = (before[change.name] != after[change.name]).sum()
        assert change.changed >= int(different), f"{change.name}: too few changed entries"


def check_guarantee(outcome: Outcome, method: Method, trained: Trained) -> None:
    """The outcome's guarantee is not stronger than the method's, and is the one that was announced for the model."""
    strength = list(GUARANTEES)
    assert strength.index(outcome.guarantee) >= strength.index(method.guarantee), "the guarantee is too strong"
    assert outcome.guarantee == method.find_guarantee(trained), "the guarantee is not the announced one"


def check_history(outcome: Outcome, trained: Trained) -> None:
    """The history of the model goes on, and is otherwise unchanged."""
    before, after = trained.provenance.history, outcome.trained.provenance.history
    assert after[: len(before)] == before, "the history of the model was changed"
    assert len(after) > len(before), "the history of the model has no line on the request"


def check_json(outcome: Outcome, method: Method, directory: Path) -> None:
    body = outcome.to_json()
    write_json(directory / "outcome.json", "expunge.outcome", 2, body)
    found = read_json(directory / "outcome.json", "expunge.outcome", 2)
    assert json.loads(json.dumps(body)) == {k: v for k, v in found.items() if k not in ("kind", "schema_version")}
    keys = {"request", "method", "cost", "state", "hashes", "seeds", "provenance", "history", "versions"}
    assert keys <= found.keys()
    assert found["method"]["name"] == method.name
    assert found["method"]["options"] == json.loads(json.dumps(dataclasses.asdict(method))), "options differ"
    assert found["method"]["guarantee"] in GUARANTEES
    assert found["hashes"]["weights"] == outcome.trained.hash
    assert all(found["hashes"][k] for k in ("data", "split", "base_split", "weights"))
    assert (found["hashes"]["mask"] is None) == (outcome.trained.mask is None)
    assert {"rewrote", "dropped", "carried"} <= found["state"].keys()
    assert found["cost"]["seconds"] >= 0
    assert found["cost"]["passes"] >= 0
    assert found["cost"]["retain_records"] == len(outcome.trained.split.retain)


def check_seeds(method: Method, trained: Trained, request: ForgetRequest, context: Context, outcome: Outcome) -> None:
    """The same seed gives the same bits, another one does not; the global generator is not used."""
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    rerun = method.forget(trained, request, context)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was used"
    assert rerun.trained.hash == outcome.trained.hash, "the same seed gave other bits"
    assert state_hash(rerun.trained, "mask") == state_hash(outcome.trained, "mask")
    other = method.forget(trained, request, dataclasses.replace(context, seed=context.seed + 1))
    assert other.trained.hash != outcome.trained.hash, "another seed gave the same bits"


def check_invalid_requests(method: Method, trained: Trained, context: Context) -> None:
    for ids in (["nobody"], trained.split.test[:1], trained.split.retain, [trained.split.retain[0], "nobody"]):
        before = fingerprint(trained)
        try:
            method.forget(trained, ForgetRequest(np.asarray(ids, dtype=str)), context)
        except RequestError:
            assert fingerprint(trained) == before
        else:
            raise AssertionError(f"a request for {list(ids)[:2]} was accepted")


def check(
    method: Method, trained: Trained, request: ForgetRequest, context: Context, directory: Path, *, seeded: bool = True
) -> Outcome:
    """Check the whole contract. `seeded=False`: the method draws nothing, so another seed gives the same bits."""
    outcome = check_callers_model(method, trained, request, context)
    check_empty_request(method, trained, context)
    check_split(outcome, trained, request)
    check_masked_weights(outcome, trained, directory)
    check_reported_state(outcome, trained)
    check_changes(outcome, trained)
    check_guarantee(outcome, method, trained)
    check_history(outcome, trained)
    check_json(outcome, method, directory)
    if seeded:
        check_seeds(method, trained, request, context, outcome)
    check_invalid_requests(method, trained, context)
    return outcome
