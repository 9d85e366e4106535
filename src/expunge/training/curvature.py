"""Curvature of the training loss: products with the Hessian or the Gauss-Newton matrix, its spectrum, and solves.

A vector has the shape of the parameters: `name -> tensor`. With a mask, vectors are restricted to the kept weights, and
the matrix to its masked block P H P, where P projects onto the kept weights. The network runs in evaluation mode unless
an argument says otherwise, so that all products belong to one fixed function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

from expunge.core.errors import ConfigError, TrainingError, unknown_name_hint
from expunge.core.hashing import plain_name
from expunge.core.mask import Mask
from expunge.core.seeds import global_rng, torch_generator
from expunge.core.show import repr_fields
from expunge.core.trained import clone_model
from expunge.data.batches import Batch

from .batchnorm import set_training_mode
from .loop import Objective, cross_entropy
from .runtime import second_derivatives

Vector = dict[str, torch.Tensor]
BatchSource = Callable[[], Iterable[Batch]]
CURVATURES = ("hessian", "gauss-newton")


def parameters_of(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by plain name; only those in `names`, if given.

    Raises:
        TrainingError: a parameter in `names` is frozen or missing.
    """
    found = {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    if names is None:
        return found
    frozen = [name for name in names if name not in found]
    if frozen:
        raise TrainingError(
            "cannot differentiate with respect to this parameter: it is frozen or missing",
            where=frozen[0],
            hint="enable its gradient (requires_grad_), or leave its layer out",
        )
    return {name: found[name] for name in names}


def dot(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Return the inner product of two vectors, summed in float64."""
    return math.fsum(float((a[name].double() * b[name].double()).sum()) for name in a)


def norm(a: Mapping[str, torch.Tensor]) -> float:
    """Return the Euclidean norm of a vector."""
    return math.sqrt(max(dot(a, a), 0.0))


def combine(a: Mapping[str, torch.Tensor], scale: float, b: Mapping[str, torch.Tensor]) -> Vector:
    """Return a + scale * b."""
    return {name: tensor + scale * b[name] for name, tensor in a.items()}


def project(vector: Vector, mask: Mask | None) -> Vector:
    """Return the vector with 0 at pruned weights. Weights in tensors that the mask does not name are kept."""
    if mask is None:
        return vector
    pruned = {name: ~kept for name, kept in mask.kept.items()}
    return {k: v.masked_fill(pruned[k].to(v.device), 0.0) if k in pruned else v for k, v in vector.items()}


def draw_vector(parameters: Mapping[str, torch.Tensor], seed: int, mask: Mask | None = None) -> Vector:
    """Draw a standard normal vector on the kept weights, on the CPU."""
    generator = torch_generator(seed, "curvature")
    drawn = {n: torch.randn(p.shape, generator=generator).to(p.device, p.dtype) for n, p in parameters.items()}
    return project(drawn, mask)


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
    """Raise TrainingError unless a product with the curvature of the loss on 2 random records can be computed.

    The arguments are those of `Curvature`.
    """
    x = torch.rand(2, *input_shape, generator=torch_generator(0, "second derivatives"))
    y = torch.arange(2) % classes
    copied = clone_model(model).cpu()
    matrix = Curvature(copied, lambda: [(x, y)], matrix_type=matrix_type, names=None if names is None else tuple(names))
    try:
        with global_rng(0, "second derivatives"):
            matrix.multiply({name: torch.ones_like(parameter) for name, parameter in matrix.parameters.items()})
    except (RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise TrainingError(
            f"the curvature of the loss cannot be computed ({type(error).__name__}: {first[:160]})",
            where=type(model).__name__,
        ) from error


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
        try:
            logits, jv = self._forward_mode(parameters, v, x)
        except NotImplementedError:  # an operation of the model has no forward derivative
            logits, jv = self._double_backward(parameters, v, x)
        outputs = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.objective(outputs, y), outputs, create_graph=True)
        (hvp,) = torch.autograd.grad((gradient * jv).sum(), outputs)  # L'' J v
        return torch.autograd.grad(logits, list(parameters.values()), hvp, allow_unused=True)

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


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Extreme eigenvalues of a symmetric matrix.

    Attributes:
        norm: largest absolute eigenvalue (the spectral norm).
        eigenvalues: the Ritz values, ascending; the outer ones converge first.
        residual: ||C q - lambda q|| of the Ritz pair of `norm`: an eigenvalue lies within this distance of lambda.
        products: number of matrix-vector products.
    """

    norm: float
    eigenvalues: tuple[float, ...]
    residual: float
    products: int

    __repr__ = repr_fields


def lanczos(matrix: Curvature, *, steps: int = 30, seed: int = 0, tolerance: float = 1e-4) -> Spectrum:
    """Compute the spectral norm of the (masked) curvature by the Lanczos method with full reorthogonalisation.

    Stops when the residual bound of the outermost Ritz pair, |beta_k e_k^T s|, is below `tolerance` times its value.
    """
    first = draw_vector(matrix.parameters, seed, matrix.mask)
    flat = torch.cat([tensor.reshape(-1) for tensor in first.values()])
    if not flat.any():  # a mask that keeps nothing
        return Spectrum(0.0, (0.0,), 0.0, 0)
    basis = (flat / flat.double().norm().to(flat.dtype))[None]  # one row per Lanczos vector
    alphas: list[float] = []
    betas: list[float] = []
    best, residual = 0.0, math.inf
    values = np.zeros(1)
    for step in range(max(1, steps)):
        product = matrix.multiply(_unflatten(basis[-1], first))
        w = torch.cat([product[name].reshape(-1) for name in first])
        alphas.append(float(w.double() @ basis[-1].double()))
        for _ in range(2):  # twice is enough
            w = w - basis.T @ (basis @ w)
        beta = float(w.double().norm())
        values, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
        outer = int(np.argmax(np.abs(values)))
        best, residual = abs(float(values[outer])), beta * abs(float(vectors[-1, outer]))
        if residual <= tolerance * max(best, 1e-30) or step == steps - 1 or beta < 1e-12:
            break
        betas.append(beta)
        basis = torch.cat([basis, (w / beta)[None]])
    return Spectrum(best, tuple(float(v) for v in values), residual, len(alphas))


def _unflatten(flat: torch.Tensor, like: Vector) -> Vector:
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {name: part.view_as(like[name]) for (name, part) in zip(like, parts, strict=True)}


def power_iteration(matrix: Curvature, *, steps: int = 100, seed: int = 0, tolerance: float = 1e-4) -> Spectrum:
    """Compute the spectral norm by power iteration; slower than `lanczos`, and a check on it."""
    v = draw_vector(matrix.parameters, seed, matrix.mask)
    value, residual, done = 0.0, math.inf, 0
    for step in range(max(1, steps)):
        size = norm(v)
        if size == 0:
            return Spectrum(0.0, (0.0,), 0.0, step)
        v = {name: tensor / size for name, tensor in v.items()}
        w = matrix.multiply(v)
        value, done = dot(v, w), step + 1
        residual = norm(combine(w, -value, v))
        if residual <= tolerance * max(abs(value), 1e-30):
            break
        v = w
    return Spectrum(abs(value), (value,), residual, done)


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """Approximate solution of C x = b.

    Attributes:
        x: the solution.
        residual: ||b - C x|| / ||b||.
        products: number of matrix-vector products.
    """

    x: Vector
    residual: float
    products: int

    __repr__ = repr_fields


def conjugate_gradient(matrix: Curvature, b: Vector, *, steps: int = 20, tolerance: float = 1e-3) -> Solution:
    """Solve C x = b on the kept weights by conjugate gradients, starting from 0.

    Stops early if a direction has no positive curvature: the Hessian of a network is not positive definite in general.
    Use damping or the Gauss-Newton matrix.
    """
    b = project({name: tensor.detach().clone() for name, tensor in b.items()}, matrix.mask)
    x = {name: torch.zeros_like(tensor) for name, tensor in b.items()}
    r, size = b, norm(b)
    p, rr, products = r, dot(r, r), 0
    while products < steps and size > 0 and math.sqrt(rr) > tolerance * size:
        cp = matrix.multiply(p)
        products += 1
        p_cp = dot(p, cp)
        if p_cp <= 0:
            break
        length = rr / p_cp
        x, r = combine(x, length, p), combine(r, -length, cp)
        new = dot(r, r)
        p, rr = combine(r, new / rr, p), new
    return Solution(x, math.sqrt(rr) / size if size else 0.0, products)
