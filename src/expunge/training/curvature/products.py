"""Curvature of the training loss: products with the Hessian or the Gauss-Newton matrix, its spectrum, and solves.

A vector has the shape of the parameters: `name -> tensor`. With a mask, vectors are restricted to the kept weights, and
the matrix to its masked block P H P, where P projects onto the kept weights. The network runs in evaluation mode unless
an argument says otherwise, so that all products belong to one fixed function.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

from expunge.core.errors import ConfigError, TrainingError, unknown_name_hint
from expunge.core.mask import Mask
from expunge.core.probe import make_probe
from expunge.core.seeds import global_rng, torch_generator
from expunge.core.show import repr_fields
from expunge.core.trained import clone_model
from expunge.data.batches import Batch
from expunge.training.batchnorm import set_training_mode
from expunge.training.loop import Objective, cross_entropy
from expunge.training.runtime import second_derivatives

from .vectors import Vector, combine, parameters_of, project

BatchSource = Callable[[], Iterable[Batch]]
CURVATURES = ("hessian", "gauss-newton")
#: Largest error of `_compare_derivatives`: a lost layer is one of order 1.
_TOLERANCE = 0.1


@contextlib.contextmanager
def evaluation_mode(model: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluation mode inside the block; training mode with `batch_statistics`, on a model whose buffers may change."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(batch_statistics)
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def check_second_derivatives(
    model: nn.Module,
    input_shape: Sequence[int],
    classes: int,
    *,
    matrix_type: str = "hessian",
    names: Sequence[str] | None = None,
) -> None:
    """Raise TrainingError unless a true product with the curvature of the loss can be computed on 2 random records.

    It is true if the derivative of the logits, of which it is made, agrees with a difference of logits. A backward pass
    that was written by hand and cannot be differentiated (`once_differentiable`, `detach`) gives no error, but a
    product without the layers in front of it.

    The arguments are those of `Curvature`.
    """
    x = make_probe(model, input_shape, 2, torch_generator(0, "second derivatives"))
    y = torch.arange(2) % classes
    copied = clone_model(model).cpu()
    matrix = Curvature(copied, lambda: [(x, y)], matrix_type=matrix_type, names=None if names is None else tuple(names))
    try:
        with global_rng(0, "second derivatives"):
            matrix.multiply({name: torch.ones_like(parameter) for name, parameter in matrix.parameters.items()})
        lost = _compare_derivatives(matrix, x)  # it converts the copy to float64
    except (RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise TrainingError(
            f"the curvature of the loss cannot be computed ({type(error).__name__}: {first[:160]})",
            where=type(model).__name__,
        ) from error
    if lost > _TOLERANCE:
        raise TrainingError(
            f"derivatives of the network are not those of its outputs (they differ by {100 * lost:.0f} %)",
            where=type(model).__name__,
            hint="it has an operation with a backward pass of its own, which cannot be differentiated",
        )


def _compare_derivatives(matrix: Curvature, x: torch.Tensor) -> float:
    """How far J v is from a central difference of the logits, relative to the larger of both.

    v is in proportion to the weights, so that what is exactly 0 (pruned weights, idle units) does not move. In float64,
    if the network can.
    """
    with contextlib.suppress(RuntimeError, TypeError, AttributeError), evaluation_mode(matrix.model):
        wide = x.double() if x.is_floating_point() else x
        with torch.no_grad():
            matrix.model.double()(wide)
        return _compare_derivatives_at(matrix, wide, 1e-6)
    matrix.model.float()
    return _compare_derivatives_at(matrix, x, 1e-3)


def _compare_derivatives_at(matrix: Curvature, x: torch.Tensor, step: float) -> float:
    parameters = matrix.parameters
    generator = torch_generator(0, "a direction")
    v = {n: p.detach() * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items()}

    def logits_at(factor: float) -> torch.Tensor:
        moved = {n: p.detach() + factor * v[n] for n, p in parameters.items()}
        with torch.no_grad(), global_rng(0, "second derivatives"):
            return functional_call(matrix.model, moved, (x,)).double()

    linearise = matrix._double_backward if matrix.matrix_type == "hessian" else matrix._linearise
    with evaluation_mode(matrix.model), torch.enable_grad(), second_derivatives(matrix.model):
        with global_rng(0, "second derivatives"):
            logits, slope = linearise(parameters, v, x)
        difference = (logits_at(step) - logits_at(-step)) / (2 * step)
    rounding = torch.finfo(logits.dtype).eps * float(logits.detach().abs().max()) / step
    scale = max(float(difference.norm()), float(slope.norm()))
    return float((slope - difference).norm()) / scale if scale > 100 * rounding else 0.0


def gradient(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    objective: Objective = cross_entropy,
    names: Sequence[str] | None = None,
    batch_statistics: bool = False,
) -> Vector:
    """Compute the gradient of the mean loss over all records of the batches.

    Args:
        model: the network; its parameters do not change.
        batches: pairs of inputs `B x ...` and labels `B`; a batch is weighted by its size.
        objective: mean loss of a batch, `(B x K logits, B labels) -> scalar`.
        names: parameters to differentiate with respect to, or None for all.
        batch_statistics: BatchNorm normalises with the statistics of each batch (its buffers then change), instead of
            its running ones.

    Raises:
        TrainingError: there are no records, or a parameter in `names` is frozen or missing.
    """
    parameters = parameters_of(model, names)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    count = 0
    with evaluation_mode(model, batch_statistics=batch_statistics), torch.enable_grad():
        for x, y in batches:
            if batch_statistics:
                set_training_mode(
                    model, frozen=len(x) == 1, input_shape=x.shape[1:]
                )  # one record has no batch variance, as in training
            grads = torch.autograd.grad(objective(model(x), y), list(parameters.values()), allow_unused=True)
            for name, grad in zip(total, grads, strict=True):
                if grad is not None:
                    total[name] += grad * len(x)
            count += len(x)
    if count == 0:
        raise TrainingError("there are no records to compute a gradient on")
    return {name: tensor / count for name, tensor in total.items()}


def jvp(
    model: nn.Module, x: torch.Tensor, vector: Vector, *, mask: Mask | None = None, names: Sequence[str] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the logits and J v, their derivative along a vector, in evaluation mode: two tensors `B x K`.

    Cost: about one pass over the records (a forward pass with derivatives; about two passes if an operation of the
    network has none). Memory: the activations of the batch.

    Args:
        model: the network; it does not change.
        x: `B x ...` inputs.
        vector: v, by plain name.
        mask: v is 0 at the pruned weights.
        names: the parameters that v has; None: all.

    >>> import torch
    >>> from torch import nn
    >>> from expunge.training.curvature import jvp
    >>> model = nn.Linear(2, 3)
    >>> logits, slope = jvp(model, torch.ones(4, 2), {"weight": torch.ones(3, 2), "bias": torch.zeros(3)})
    >>> slope[0].tolist()
    [2.0, 2.0, 2.0]
    """
    matrix = Curvature(model, list, mask, "gauss-newton", names=None if names is None else tuple(names))
    with evaluation_mode(model), torch.enable_grad(), second_derivatives(model):
        logits, slope = matrix._linearise(matrix.parameters, project(vector, mask), x)
    return logits.detach(), slope


@dataclasses.dataclass(frozen=True, eq=False)
class Curvature:
    """The curvature matrix C of a model's mean loss, as a linear operator.

    C = H + damping I, where H is the Hessian of the mean loss over the batches, or its Gauss-Newton part J^T L'' J,
    which has no negative eigenvalue. With a mask, C = P H P + damping I on the kept weights.

    Attributes:
        model: the network; it is evaluated and not changed.
        batches: called once per product; it must return the same records in every call.
        mask: restricts C to the kept weights, or None.
        matrix_type: `hessian` or `gauss-newton`.
        objective: mean loss of `B x K` logits.
        damping: added to the diagonal (include a weight decay here).
        names: parameters that C covers, or None for all.
    """

    model: nn.Module
    batches: BatchSource
    mask: Mask | None = None
    matrix_type: str = "hessian"
    objective: Objective = cross_entropy
    damping: float = 0.0
    names: tuple[str, ...] | None = None

    __repr__ = repr_fields

    def __post_init__(self) -> None:
        if self.matrix_type not in CURVATURES:
            hint = unknown_name_hint(self.matrix_type, CURVATURES)
            raise ConfigError(f"unknown curvature {self.matrix_type!r}", where="curvature", hint=hint)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that C covers."""
        return parameters_of(self.model, self.names)

    def multiply(self, vector: Vector) -> Vector:
        """Return C v. It costs about two forward and one or two backward passes over the batches.

        Raises:
            TrainingError: an operation of the network has no second derivative.
        """
        parameters = self.parameters
        v = project(vector, self.mask)
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        count = 0
        with evaluation_mode(self.model), torch.enable_grad(), second_derivatives(self.model):
            for x, y in self.batches():
                product = self._hessian_product if self.matrix_type == "hessian" else self._gauss_newton_product
                for name, part in zip(total, product(parameters, v, x, y), strict=True):
                    if part is not None:
                        total[name] += part.detach() * len(x)
                count += len(x)
        result = {name: tensor / max(count, 1) for name, tensor in total.items()}
        return combine(project(result, self.mask), self.damping, v)

    def _hessian_product(
        self, parameters: dict[str, nn.Parameter], v: Vector, x: torch.Tensor, y: torch.Tensor
    ) -> Sequence[torch.Tensor | None]:
        inputs = list(parameters.values())
        grads = torch.autograd.grad(self.objective(self.model(x), y), inputs, create_graph=True, allow_unused=True)
        along = [(g * v[n]).sum() for n, g in zip(parameters, grads, strict=True) if g is not None and g.requires_grad]
        return torch.autograd.grad(torch.stack(along).sum(), inputs, allow_unused=True)

    def _gauss_newton_product(
        self, parameters: dict[str, nn.Parameter], v: Vector, x: torch.Tensor, y: torch.Tensor
    ) -> Sequence[torch.Tensor | None]:
        logits, jv = self._linearise(parameters, v, x)
        outputs = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.objective(outputs, y), outputs, create_graph=True)
        (hvp,) = torch.autograd.grad((gradient * jv).sum(), outputs)  # L'' J v
        return torch.autograd.grad(logits, list(parameters.values()), hvp, allow_unused=True)

    def _linearise(
        self, parameters: dict[str, nn.Parameter], v: Vector, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits with their graph, and J v."""
        try:
            return self._forward_mode(parameters, v, x)
        except NotImplementedError:  # an operation of the model has no forward derivative
            return self._double_backward(parameters, v, x)

    def _forward_mode(
        self, parameters: dict[str, nn.Parameter], v: Vector, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits with their graph, and J v, by forward-mode differentiation in one pass."""
        names = {parameter: name for name, parameter in parameters.items()}
        with forward_ad.dual_level():
            duals = {
                name: forward_ad.make_dual(parameter, v[names[parameter]])
                for name, parameter in self.model.named_parameters()
                if parameter in names
            }
            logits, jv = forward_ad.unpack_dual(functional_call(self.model, duals, (x,)))
        return logits, torch.zeros_like(logits) if jv is None else jv.detach()

    def _double_backward(
        self, parameters: dict[str, nn.Parameter], v: Vector, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do the same with reverse passes: J v = d/du ((J^T u) . v) for a dummy u. It takes nearly twice the time."""
        logits = self.model(x)
        u = torch.zeros_like(logits, requires_grad=True)
        back = torch.autograd.grad(logits, list(parameters.values()), u, create_graph=True, allow_unused=True)
        along = [(g * v[n]).sum() for n, g in zip(parameters, back, strict=True) if g is not None]
        (jv,) = torch.autograd.grad(torch.stack(along).sum(), u, retain_graph=True)
        return logits, jv.detach()
