"""The contract of a method, as functions that raise AssertionError. `check` runs them all.

Every method of the registry must pass them; deliberately broken methods must fail them.
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
    """BatchNorm's running statistics."""
    return {k: v for k, v in trained.model.state_dict().items() if "running_" in k or "num_batches" in k}


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return {k: v.detach() for k, v in trained.model.named_parameters()}


def kind_hash(trained: Trained, kind: str) -> str:
    """Hash of one kind of influence-bearing state."""
    if kind == "weights":
        return hash_tensors(weights(trained))
    if kind == "batch_norm":
        return hash_tensors(buffers(trained))
    if kind == "mask":
        return "none" if trained.mask is None else trained.mask.hash()
    if kind == "normalisation":
        return hash_tensors({k: v for k, v in trained.model.state_dict().items() if k.startswith("normalise.")})
    return hash_tensors(trained.state.get(kind, {}))


def fingerprint(trained: Trained) -> str:
    """Everything of a trained model, its flags and gradients too."""
    body = {kind: kind_hash(trained, kind) for kind in INFLUENCE_STATE}
    body["all"] = trained.hash
    body["training"] = str([m.training for m in trained.model.modules()])
    body["requires_grad"] = str([p.requires_grad for p in trained.model.parameters()])
    body["gradients"] = str([p.grad is None for p in trained.model.parameters()])
    body["split"] = trained.split.hash
    body["provenance"] = hash_json(trained.provenance.to_json())
    body["kinds"] = str(sorted(trained.state))
    return hash_json(body)


def leaves_the_callers_model_alone(
    method: Method, trained: Trained, request: ForgetRequest, context: Context
) -> Outcome:
    """Bits, flags, gradients, mask, split, state: as before. The result shares no memory with what was given."""
    before, ids = fingerprint(trained), request.record_ids.copy()
    outcome = method.forget(trained, request, context)
    assert fingerprint(trained) == before, "the caller's model was touched"
    assert np.array_equal(request.record_ids, ids), "the request was touched"
    given = {t.data_ptr() for t in trained.model.state_dict().values()}
    got = {t.data_ptr() for t in outcome.trained.model.state_dict().values() if t.numel()}
    assert not given & got, "the result shares memory with the caller's model"
    assert all(p.grad is None for p in outcome.trained.model.parameters()), "the result carries gradients"
    return outcome


def empty_request_is_the_identity(method: Method, trained: Trained, context: Context) -> None:
    outcome = leaves_the_callers_model_alone(method, trained, ForgetRequest(np.array([], dtype=str)), context)
    assert outcome.trained.hash == trained.hash, "an empty request changed the model"
    assert kind_hash(outcome.trained, "mask") == kind_hash(trained, "mask"), "an empty request changed the mask"
    assert outcome.trained.split.hash == trained.split.hash
    assert outcome.rewrote == (), "an empty request rewrote something"
    assert outcome.cost.passes == 0


def split_is_moved(outcome: Outcome, trained: Trained, request: ForgetRequest) -> None:
    after, wanted = outcome.trained.split, set(request.record_ids.tolist())
    assert not wanted & set(after.retain.tolist()), "a forgotten record is still in the retain set"
    assert wanted <= set(after.forget.tolist()), "a forgotten record is not in the forget set"
    assert after.base_hash == trained.split.base_hash, "the split was drawn again"


def masked_weights_are_zero(outcome: Outcome, trained: Trained, directory: Path) -> None:
    """+0.0 after the method, after saving and loading both ways, after deepcopy. A mask never grows back."""
    mask, model = outcome.trained.mask, outcome.trained.model
    if trained.mask is not None:
        assert mask is not None, "the mask was lost"
        if "mask" not in outcome.rewrote:
            assert trained.mask.violations(model) == {}, "a weight that was masked is not +0.0"
    if mask is None:
        return
    mask.check_fits(model)
    assert mask.violations(model) == {}, "a masked weight is not +0.0"
    twin = copy.deepcopy(model)
    assert mask.violations(twin) == {}
    torch.save(model.state_dict(), directory / "m.pt")
    twin.load_state_dict(torch.load(directory / "m.pt", weights_only=True))
    assert mask.violations(twin) == {}
    write_tensors(directory / "m.safetensors", model.state_dict())
    twin.load_state_dict(read_tensors(directory / "m.safetensors")[0])
    mask.save(directory / "mask.safetensors")
    assert Mask.load(directory / "mask.safetensors").violations(twin) == {}
    assert hash_tensors(twin.state_dict()) == outcome.trained.hash, "saving changed a bit"


def accounts_are_true(outcome: Outcome, trained: Trained) -> None:
    """What is said to be rewritten has changed; what is said to remember is bit-equal, or a mask that only shrank."""
    present = outcome.trained.influence_state()
    rewrote, remembers = set(outcome.rewrote), set(outcome.remembers)
    assert rewrote <= set(present), f"rewrote {rewrote - set(present)}, which the model does not have"
    assert rewrote | remembers == set(present), "some state is neither rewritten nor remembered"
    for kind in trained.influence_state():
        if kind not in present:
            assert kind in outcome.dropped, f"{kind} vanished without a word"
    for kind in outcome.dropped:
        assert kind not in present, f"{kind} is said to be dropped but is there"
    for kind in present:
        same = kind_hash(outcome.trained, kind) == kind_hash(trained, kind)
        if kind in rewrote:
            assert not same, f"{kind} is said to be rewritten but is bit-equal to before"
        elif kind == "mask":
            assert trained.mask is not None
            assert outcome.trained.mask is not None
            for name, alive in trained.mask.alive.items():
                grown = outcome.trained.mask.alive[name] & ~alive
                assert not grown.any(), "the mask is said to remember but weights grew back"
        else:
            assert same, f"{kind} has changed but is not said to be rewritten"


def json_is_complete(outcome: Outcome, method: Method, directory: Path) -> None:
    body = outcome.to_json()
    write_json(directory / "outcome.json", "expunge.outcome", 1, body)
    found = read_json(directory / "outcome.json", "expunge.outcome", 1)
    assert json.loads(json.dumps(body)) == {k: v for k, v in found.items() if k not in ("kind", "schema_version")}
    keys = {"request", "method", "cost", "state", "hashes", "seeds", "provenance", "history", "versions"}
    assert keys <= found.keys()
    assert found["method"]["name"] == method.name
    assert found["method"]["options"] == json.loads(json.dumps(dataclasses.asdict(method))), "options differ"
    assert found["method"]["guarantee"] in GUARANTEES
    assert found["hashes"]["weights"] == outcome.trained.hash
    assert all(found["hashes"][k] for k in ("data", "split", "base_split", "weights"))
    assert (found["hashes"]["mask"] is None) == (outcome.trained.mask is None)
    assert {"rewrote", "dropped", "still_remembers"} <= found["state"].keys()
    assert found["cost"]["seconds"] >= 0
    assert found["cost"]["passes"] >= 0
    assert found["cost"]["retain_records"] == len(outcome.trained.split.retain)


def seeds_decide(method: Method, trained: Trained, request: ForgetRequest, context: Context, outcome: Outcome) -> None:
    """Same seed, same bits, whatever the global generator holds (which is left alone); another seed, other bits."""
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = method.forget(trained, request, context)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was used"
    assert again.trained.hash == outcome.trained.hash, "the same seed gave other bits"
    assert kind_hash(again.trained, "mask") == kind_hash(outcome.trained, "mask")
    other = method.forget(trained, request, dataclasses.replace(context, seed=context.seed + 1))
    assert other.trained.hash != outcome.trained.hash, "another seed gave the same bits"


def wrong_requests_are_refused(method: Method, trained: Trained, context: Context) -> None:
    for ids in (["nobody"], trained.split.test[:1], trained.split.retain, [trained.split.retain[0], "nobody"]):
        before = fingerprint(trained)
        try:
            method.forget(trained, ForgetRequest(np.asarray(ids, dtype=str)), context)
        except RequestError:
            assert fingerprint(trained) == before
        else:
            raise AssertionError(f"a request for {list(ids)[:2]} was carried out")


def check(
    method: Method, trained: Trained, request: ForgetRequest, context: Context, directory: Path, *, seeded: bool = True
) -> Outcome:
    """The whole contract. `seeded=False`: the method does not draw, so that another seed gives the same bits."""
    outcome = leaves_the_callers_model_alone(method, trained, request, context)
    empty_request_is_the_identity(method, trained, context)
    split_is_moved(outcome, trained, request)
    masked_weights_are_zero(outcome, trained, directory)
    accounts_are_true(outcome, trained)
    json_is_complete(outcome, method, directory)
    if seeded:
        seeds_decide(method, trained, request, context, outcome)
    wrong_requests_are_refused(method, trained, context)
    return outcome
