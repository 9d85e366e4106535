"""Curvature of the training loss: products with the Hessian or the Gauss-Newton matrix, its spectrum, and solves.

Everything works on vectors that look like the parameters (`name -> tensor`), optionally restricted to the weights that
a mask keeps alive: the masked block P H P with P the projection onto alive weights. The network runs in evaluation mode
unless it is told otherwise, so that products are those of one fixed function.
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
from expunge.core.seeds import torch_generator

from .batchnorm import set_training
from .loop import Objective, cross_entropy

Vector = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]
BatchSource = Callable[[], Iterable[Batch]]
CURVATURES = ("hessian", "gauss-newton")


def parameters_of(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """The trainable parameters by plain name, or those named.

    Raises:
        TrainingError: one of those named is frozen, or is not there.
    """
    found = {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    if names is None:
        return found
    frozen = [name for name in names if name not in found]
    if frozen:
        raise TrainingError(
            "nothing can be differentiated by this parameter: it is frozen, or not there",
            where=frozen[0],
            hint="let it take gradients (requires_grad_), or leave its layer out",
        )
    return {name: found[name] for name in names}


def dot(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Inner product of two vectors, summed in float64."""
    return math.fsum(float((a[name].double() * b[name].double()).sum()) for name in a)


def norm(a: Mapping[str, torch.Tensor]) -> float:
    """Euclidean norm of a vector."""
    return math.sqrt(max(dot(a, a), 0.0))


def combine(a: Mapping[str, torch.Tensor], scale: float, b: Mapping[str, torch.Tensor]) -> Vector:
    """a + scale * b."""
    return {name: tensor + scale * b[name] for name, tensor in a.items()}


def project(vector: Vector, mask: Mask | None) -> Vector:
    """The vector with 0 at masked weights (weights that the mask does not name are alive)."""
    if mask is None:
        return vector
    dead = {name: ~tensor for name, tensor in mask.alive.items()}
    return {k: v.masked_fill(dead[k].to(v.device), 0.0) if k in dead else v for k, v in vector.items()}


def random_vector(parameters: Mapping[str, torch.Tensor], seed: int, mask: Mask | None = None) -> Vector:
    """A standard normal vector on the alive weights, drawn on the CPU."""
    generator = torch_generator(seed, "curvature")
    drawn = {n: torch.randn(p.shape, generator=generator).to(p.device, p.dtype) for n, p in parameters.items()}
    return project(drawn, mask)


@contextlib.contextmanager
def evaluation(model: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluation mode inside the block (or training mode, on a model whose buffers may move)."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(batch_statistics)
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def gradient(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    objective: Objective = cross_entropy,
    names: Sequence[str] | None = None,
    batch_statistics: bool = False,
) -> Vector:
    """Gradient of the mean loss over all records of the batches.

    `objective` is a mean over the records of its batch; batches count by their size.

    Raises:
        TrainingError: there are no records.
    """
    parameters = parameters_of(model, names)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    count = 0
    with evaluation(model, batch_statistics=batch_statistics), torch.enable_grad():
        for x, y in batches:
            if batch_statistics:
                set_training(model, frozen=len(x) == 1)  # one record has no batch variance, as in training
            grads = torch.autograd.grad(objective(model(x), y), list(parameters.values()), allow_unused=True)
            for name, grad in zip(total, grads, strict=True):
                if grad is not None:
                    total[name] += grad * len(x)
            count += len(x)
    if count == 0:
        raise TrainingError("there are no records to take a gradient over")
    return {name: tensor / count for name, tensor in total.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Curvature:
    """The matrix C of a model's mean loss, by its products with vectors.

    C = H + damping I, with H the Hessian of the mean loss over the batches or its Gauss-Newton part J^T L'' J (which
    has no negative eigenvalue), restricted to the alive weights: P H P + damping I on them.

    Attributes:
        model: evaluated, never changed.
        batches: called anew for every product; the same records in every call.
        mask: restricts to alive weights, or None.
        kind: `hessian` or `gauss-newton`.
        objective: mean loss of `B x K` logits.
        damping: added to the diagonal (a weight decay belongs here).
        names: parameters that take part, or None for all.
    """

    model: nn.Module
    batches: BatchSource
    mask: Mask | None = None
    kind: str = "hessian"
    objective: Objective = cross_entropy
    damping: float = 0.0
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in CURVATURES:
            hint = unknown_name_hint(self.kind, CURVATURES)
            raise ConfigError(f"unknown curvature {self.kind!r}", where="curvature", hint=hint)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that take part."""
        return parameters_of(self.model, self.names)

    def times(self, vector: Vector) -> Vector:
        """C v; about two passes forward and one or two backward over the batches."""
        parameters = self.parameters
        v = project(vector, self.mask)
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        count = 0
        with evaluation(self.model), torch.enable_grad():
            for x, y in self.batches():
                product = self._hessian if self.kind == "hessian" else self._gauss_newton
                for name, part in zip(total, product(parameters, v, x, y), strict=True):
                    if part is not None:
                        total[name] += part.detach() * len(x)
                count += len(x)
        result = {name: tensor / max(count, 1) for name, tensor in total.items()}
        return combine(project(result, self.mask), self.damping, v)

    def _hessian(
        self, parameters: dict[str, nn.Parameter], v: Vector, x: torch.Tensor, y: torch.Tensor
    ) -> Sequence[torch.Tensor | None]:
        where = list(parameters.values())
        grads = torch.autograd.grad(self.objective(self.model(x), y), where, create_graph=True, allow_unused=True)
        along = [(g * v[n]).sum() for n, g in zip(parameters, grads, strict=True) if g is not None and g.requires_grad]
        return torch.autograd.grad(torch.stack(along).sum(), where, allow_unused=True)

    def _gauss_newton(
        self, parameters: dict[str, nn.Parameter], v: Vector, x: torch.Tensor, y: torch.Tensor
    ) -> Sequence[torch.Tensor | None]:
        try:
            logits, jv = self._forward_mode(parameters, v, x)
        except NotImplementedError:  # an operation of the model has no forward derivative
            logits, jv = self._twice_backward(parameters, v, x)
        outputs = logits.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.objective(outputs, y), outputs, create_graph=True)
        (bent,) = torch.autograd.grad((slope * jv).sum(), outputs)
        return torch.autograd.grad(logits, list(parameters.values()), bent, allow_unused=True)

    def _forward_mode(
        self, parameters: dict[str, nn.Parameter], v: Vector, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits, with their graph, and J v: beside each operation its derivative along v, one pass."""
        names = {parameter: name for name, parameter in parameters.items()}
        with forward_ad.dual_level():
            duals = {
                name: forward_ad.make_dual(parameter, v[names[parameter]])
                for name, parameter in self.model.named_parameters()
                if parameter in names
            }
            logits, jv = forward_ad.unpack_dual(functional_call(self.model, duals, (x,)))
        return logits, torch.zeros_like(logits) if jv is None else jv.detach()

    def _twice_backward(
        self, parameters: dict[str, nn.Parameter], v: Vector, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same by reverse passes alone: d/du (J^T u) . v is linear in the dummy u. Nearly twice the time."""
        logits = self.model(x)
        u = torch.zeros_like(logits, requires_grad=True)
        back = torch.autograd.grad(logits, list(parameters.values()), u, create_graph=True, allow_unused=True)
        along = [(g * v[n]).sum() for n, g in zip(parameters, back, strict=True) if g is not None]
        (jv,) = torch.autograd.grad(torch.stack(along).sum(), u, retain_graph=True)
        return logits, jv.detach()


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Extreme eigenvalues.

    Attributes:
        norm: largest absolute eigenvalue (the spectral norm of a symmetric matrix).
        eigenvalues: the Ritz values, ascending; the outer ones converge first.
        residual: ||C q - lambda q|| of the Ritz pair of `norm`: some eigenvalue lies within it of `norm`'s.
        products: matrix-vector products spent.
    """

    norm: float
    eigenvalues: tuple[float, ...]
    residual: float
    products: int


def lanczos(matrix: Curvature, *, steps: int = 30, seed: int = 0, tolerance: float = 1e-4) -> Spectrum:
    """Spectral norm of the (masked) curvature by Lanczos with full reorthogonalisation.

    Stops when the residual bound of the outermost Ritz pair, |beta_k e_k^T s|, is below `tolerance` times its value.
    """
    first = random_vector(matrix.parameters, seed, matrix.mask)
    flat = torch.cat([tensor.reshape(-1) for tensor in first.values()])
    basis = (flat / flat.double().norm().to(flat.dtype))[None]  # one row a Lanczos vector
    alphas: list[float] = []
    betas: list[float] = []
    best, residual = 0.0, math.inf
    values = np.zeros(1)
    for step in range(max(1, steps)):
        product = matrix.times(_unflat(basis[-1], first))
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


def _unflat(flat: torch.Tensor, like: Vector) -> Vector:
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {name: part.view_as(like[name]) for (name, part) in zip(like, parts, strict=True)}


def power_iteration(matrix: Curvature, *, steps: int = 100, seed: int = 0, tolerance: float = 1e-4) -> Spectrum:
    """Spectral norm by power iteration; slower than Lanczos, and the check on it."""
    v = random_vector(matrix.parameters, seed, matrix.mask)
    value, residual, done = 0.0, math.inf, 0
    for step in range(max(1, steps)):
        size = norm(v)
        if size == 0:
            return Spectrum(0.0, (0.0,), 0.0, step)
        v = {name: tensor / size for name, tensor in v.items()}
        w = matrix.times(v)
        value, done = dot(v, w), step + 1
        residual = norm(combine(w, -value, v))
        if residual <= tolerance * max(abs(value), 1e-30):
            break
        v = w
    return Spectrum(abs(value), (value,), residual, done)


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """x with C x ~ b: the solution, its relative residual ||b - C x|| / ||b||, and the products spent."""

    x: Vector
    residual: float
    products: int


def conjugate_gradient(matrix: Curvature, b: Vector, *, steps: int = 20, tolerance: float = 1e-3) -> Solution:
    """Solve C x = b on the alive weights by conjugate gradients, from 0.

    Stops early where a direction has no positive curvature (the Hessian of a network is not positive definite; use
    damping, or the Gauss-Newton matrix).
    """
    b = project({name: tensor.detach().clone() for name, tensor in b.items()}, matrix.mask)
    x = {name: torch.zeros_like(tensor) for name, tensor in b.items()}
    r, size = b, norm(b)
    p, rr, products = r, dot(r, r), 0
    while products < steps and size > 0 and math.sqrt(rr) > tolerance * size:
        cp = matrix.times(p)
        products += 1
        bend = dot(p, cp)
        if bend <= 0:
            break
        length = rr / bend
        x, r = combine(x, length, p), combine(r, -length, cp)
        new = dot(r, r)
        p, rr = combine(r, new / rr, p), new
    return Solution(x, math.sqrt(rr) / size if size else 0.0, products)
