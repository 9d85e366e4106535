"""The user's model: a float32 copy on the CPU to work on, and the way back to its class, device, types and flags."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import prune

from expunge.core.errors import ModelError, with_article
from expunge.core.hashing import plain_name
from expunge.core.show import repr_fields
from expunge.core.split import Split
from expunge.core.trained import Trained, clone_model, plain_state
from expunge.data.batches import Batches
from expunge.data.fields import Field, InputFields
from expunge.data.records import Records
from expunge.models.call import ModelCall, detect_call, unadapt
from expunge.models.live import PREFIX, is_model_object
from expunge.models.normalise import Normalised
from expunge.training import Runtime

#: Wrappers, and the attribute that holds the user's own module.
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module"}


@dataclasses.dataclass(frozen=True)
class Own:
    """How the user's model was when it was adopted.

    Attributes:
        device: of its first tensor.
        dtypes: types of its tensors that are not float32, by plain name.
        training: the train/eval flag of each module, by plain path.
    """

    device: str = "cpu"
    dtypes: Mapping[str, torch.dtype] = dataclasses.field(default_factory=dict)
    training: Mapping[str, bool] = dataclasses.field(default_factory=dict)

    __repr__ = repr_fields

    def dress(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model of the adopted class, on the device, with the types and flags that it had.

        Args:
            model: the network of a `Trained`: maybe adapted, and with `Normalise` before it, which is left out.
        """
        if isinstance(model, Normalised) and "network" not in self.training:  # it was added by `adopt`
            model = model.network
        found = unadapt(model)
        found = clone_model(found) if found is model else found
        for path, module in found.named_modules():
            module.training = self.training.get(plain_name(path), False)
        for name, tensor in plain_state(found).items():
            dtype = self.dtypes.get(name)
            if dtype is not None:
                _find_tensor(found, name, tensor).data = tensor.to(dtype)
        return found.to(self.device)

    def describe(self, trained: Trained, split: Split, runtime: Runtime) -> dict[str, Any]:
        """What a report says of an adopted model.

        Args:
            trained: the model before the request.
            split: after it.
            runtime: device of the work.
        """
        return {
            "network": trained.provenance.architecture.get("name"),
            "records": split.counts(),
            "device": str(runtime.torch_device),
            "types of the original": sorted({str(dtype).removeprefix("torch.") for dtype in self.dtypes.values()})
            or ["float32"],
        }


def _find_tensor(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The parameter or buffer of a name, as an object: a state dict has detached views of them."""
    path, _, attribute = name.rpartition(".")
    found = getattr(model.get_submodule(path), attribute, tensor)
    return found if isinstance(found, torch.Tensor) else tensor


def unwrap_model(model: Any) -> nn.Module:
    """Return the user's own module, without the wrappers of `torch.compile`, DDP and DataParallel.

    Raises:
        ModelError: it is no module, a TorchScript module, without values (lazy, or on the meta device), or sharded over
            processes.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> unwrap_model(nn.DataParallel(model)) is model
        True
    """
    while isinstance(model, nn.Module) and type(model).__name__ in _WRAPPERS:
        model = getattr(model, _WRAPPERS[type(model).__name__])
    if isinstance(model, (list, tuple, dict)):
        raise ModelError(
            f"is {with_article(type(model).__name__)} with {len(model)} entries, not a model",
            where="model",
            hint="give the torch.nn.Module itself; of several models, adopt one at a time",
        )
    if not isinstance(model, nn.Module):
        name = getattr(model, "__name__", type(model).__name__)
        hint = "call it first: adopt(make(), ...)" if callable(model) else "give a torch.nn.Module"
        if isinstance(model, (str, Path)):
            hint = "read it first: with your own code, or expunge.load_trained(directory) of what `save` wrote"
        raise ModelError(f"{name} is not a torch.nn.Module", where="model", hint=hint)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "is a TorchScript module, which cannot be copied, masked or trained as a torch.nn.Module can",
            where="model",
            hint="give the torch.nn.Module that it was scripted or traced from",
        )
    for module in model.modules():
        if "FullyShardedDataParallel" in type(module).__name__:
            raise ModelError(
                "is sharded over processes (FSDP)", where="model", hint="gather its state dict, and load it into one"
            )
    lazy = next((name for name, parameter in model.named_parameters() if nn.parameter.is_lazy(parameter)), None)
    if lazy is not None:
        raise ModelError("is a lazy parameter without values", where=lazy, hint="run the model once before adopting it")
    meta = next((name for name, tensor in model.state_dict().items() if _is_meta(tensor)), None)
    if meta is not None:
        raise ModelError("has no values: it is on the meta device", where=meta, hint="load the weights first")
    return model


def _is_meta(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.is_meta


def describe_own(model: nn.Module) -> Own:
    """Record device, types and flags of a model."""
    state = plain_state(model)
    device = next((str(tensor.device) for tensor in state.values()), "cpu")
    dtypes = {name: t.dtype for name, t in state.items() if t.is_floating_point() and t.dtype != torch.float32}
    return Own(device, dtypes, {plain_name(path): module.training for path, module in model.named_modules()})


def copy_model(model: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Copy a model to the CPU in float32 and evaluation mode; the masks of `torch.nn.utils.prune` are taken out.

    Args:
        model: the user's model; not modified.

    Returns:
        The copy, and by name the weights that its hooks keep (True); empty if it has no such hooks.

    Raises:
        ModelError: the model cannot be copied.
    """
    hooked = {
        f"{path}.{hook._tensor_name}" if path else hook._tensor_name: (path, hook._tensor_name)
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    }
    if not hooked:
        return clone_model(model).cpu().float().eval(), {}
    values = [getattr(model.get_submodule(path), name) for path, name in hooked.values()]
    made: nn.Module = copy.deepcopy(model, {id(value): value.detach().clone() for value in values})
    kept = {}
    for full, (path, name) in hooked.items():
        module = made.get_submodule(path)
        kept[plain_name(full)] = getattr(module, f"{name}_mask").detach().bool().cpu().clone()
        prune.remove(module, name)
    return clone_model(made).cpu().float().eval(), kept


def find_model_call(model: nn.Module, records: Records) -> ModelCall:
    """Find out how a model is called and which output holds the logits, by running it on two records.

    Args:
        model: the float32 copy.
        records: the records.

    Raises:
        ModelError: the model does not accept the records, or no output has the shape of logits.
    """
    x, _ = next(iter(Batches(records, np.arange(2) % len(records), batch_size=2).in_order()))
    fields = records.fields
    if fields is None and records.dtype == "int64":
        fields = InputFields((Field("", records.input_shape, "int64"),))
    if fields is not None and fields.names == ("",) and not fields.fields[0].is_integer:
        fields = None
    return detect_call(model, x, records.classes, fields)


def describe_live(name: str, directory: object) -> str:
    """What a saved model needs that names an object of this process, as a sentence.

    Args:
        name: of its architecture.
        directory: where it was saved.
    """
    if is_model_object(name):
        return (
            f"{directory} can be loaded in this process only: the model was adopted without a factory. Give "
            "adopt(factory=...) a function of a module, or save result.model.state_dict()"
        )
    title = name.removeprefix(PREFIX)
    return (
        f"{directory} can be loaded where the factory is registered: define it there, then "
        f"expunge.models.live.register_factory(make, title={title!r}) before load_trained. A factory of a module "
        "(package.module:make) needs no such line"
    )
