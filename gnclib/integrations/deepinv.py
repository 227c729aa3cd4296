r"""The learned energies in DeepInverse (``deepinv``): a prior with a value, and a denoiser.

deepinv minimises ``f(x) + lambda g(x)`` with a data fidelity f of its own and a prior g, which may depend on one
parameter, ``sigma_denoiser`` (``g_param`` in its algorithms). Here it is the standard deviation of the noise that the
energy expects, so the smoothing of the energy is its square:

    g(x) = R(x, t),    t = sigma_denoiser^2.

R is a negative log-density in nats. So the data fidelity that belongs to it is ``||A x - y||^2 / (2 sigma^2)``, with
``lambda = 1``: ``deepinv.optim.L2(sigma=...)``. One value of ``sigma_denoiser`` per iteration makes deepinv's
proximal gradient descent the GNC flow of the paper (Kobler & Pock 2023, eq. 9):

    ts = gnclib.restore.schedules.log_schedule(0.03, 1e-4, 30)
    flow = deepinv.optim.PGD(prior=EnergyPrior("R1"), data_fidelity=deepinv.optim.L2(sigma=0.02), g_first=True,
                             sigma_denoiser=ts.sqrt().tolist(), stepsize=ts.tolist(), max_iter=30)

Images are (B, C, H, W) with grey values in [0, 1]; each channel is a grey image to the energy, values add up over the
channels. ``sigma_denoiser`` is a number, has one value per image, (B,) or (B, 1, 1, 1), or one per channel, (1 or B, C,
1, 1), within the range on which the energy is defined (0.01 to 1 for the shipped priors). The denoiser by several steps
also takes one per pixel, whatever broadcasts to (B, C, H, W): its data term is then ``sum (x - y)^2 / (2 sigma^2)``.
Images of 16 bits, as layers under autocast make them, are taken to float32, without autocast, and come back in their
own type.
"""

from __future__ import annotations

import os
import warnings

try:
    from deepinv.models import Denoiser
    from deepinv.optim import Prior
except ImportError as error:
    raise ImportError(
        f"gnclib.integrations.deepinv needs deepinv ({error}): pip install deepinv torchvision"
    ) from error
except RuntimeError as error:  # torchvision: "operator torchvision::nms does not exist"
    raise ImportError(
        f"deepinv is there but cannot be imported ({error}): it needs the torchvision that was built together with your"
        " torch; install both from the same source"
    ) from error

import torch
from torch import Tensor

from gnclib.checks import in_full_precision
from gnclib.deep import load_prior
from gnclib.restore import Denoising, Task, as_count, check_sigma, gnc_flow, last, predefined, proximal_point


class EnergyPrior(Prior):
    """A learned energy as an explicit prior: g(x) = R(x, sigma_denoiser^2), in nats.

    Parameters
    ----------
    energy : name of a prior as for :func:`gnclib.load_prior`, or an energy of grey images
        With ``energy(y, t)`` and ``grad(y, t)``.
    tolerance, iterations
        Of :meth:`prox`: residual in grey values, and how many steps at most.
    """

    def __init__(
        self,
        energy: str | os.PathLike | torch.nn.Module = "R1",
        *,
        tolerance: float = 1e-5,
        iterations: int = 300,
    ):
        super().__init__()
        self.explicit_prior = True
        self.energy = _energy(energy)
        self.tolerance, self.iterations = tolerance, iterations

    @in_full_precision
    def fn(self, x: Tensor, sigma_denoiser: float | Tensor, *args, **kwargs) -> Tensor:
        """R(x, sigma_denoiser^2) of each image, the sum over its channels: (B, C, H, W) -> (B,).

        Raises ValueError: another shape, or a sigma_denoiser that is missing, not positive, or outside of the range.
        """
        channels, t = _channels(x, sigma_denoiser)
        return self.energy.energy(channels, t).reshape(x.shape[:2]).sum(1)

    @in_full_precision
    def grad(self, x: Tensor, sigma_denoiser: float | Tensor, *args, **kwargs) -> Tensor:
        """The gradient of :meth:`fn` in x, shaped like x, by the energy's own formula; differentiable again."""
        channels, t = _channels(x, sigma_denoiser)
        return self.energy.grad(channels, t).reshape(x.shape).to(x)

    @in_full_precision
    def prox(
        self, x: Tensor, sigma_denoiser: float | Tensor, *args, gamma: float | Tensor = 1.0, **kwargs
    ) -> Tensor:
        """A point z with z - x + gamma grad R(z, t) = 0, t = sigma_denoiser^2, by descent from x; shaped like x.

        That is the proximal map where R is convex. Elsewhere it is a stationary point of gamma R(z, t) +
        ||z - x||^2 / 2 at which that sum is, up to rounding, not above its value at x; it need not be the global
        minimum. See :mod:`gnclib.restore.proximal` for the method. It stops, for each channel on its own, when the root
        mean square of the residual ``z - x + gamma grad R(z, t)`` is at most ``tolerance``. If that takes more than
        ``iterations`` steps, the point reached is returned with a RuntimeWarning which names its residual: gamma far
        above t asks for many steps (about 10 for gamma = t, 50 for gamma = 10 t).

        gamma: > 0, a number or one per image. The result is not differentiable: in unfolded networks use the gradient
        (``g_first=True``). Raises as :meth:`fn`, and RuntimeError where a derivative of the result is wanted.
        """
        _refuse_gradient("prox", self.energy, x, sigma_denoiser, gamma)
        channels, t = _channels(x, sigma_denoiser)
        found = proximal_point(
            self.energy, channels, t, _per_channel("gamma", gamma, x),
            tolerance=self.tolerance, iterations=self.iterations,
        )  # fmt: skip
        if not bool(found.reached.all()):
            warnings.warn(
                f"gnclib: the proximal map has a residual of {found.residual.max().item():.1e} grey values after"
                f" {found.steps} steps, not {self.tolerance:.1e}: take a smaller gamma, more iterations or a larger"
                " tolerance",
                RuntimeWarning,
                stacklevel=2,
            )
        return found.x.reshape(x.shape).to(x)


class EnergyDenoiser(Denoiser):
    """A learned energy as a denoiser, for plug-and-play methods and as a baseline.

    One step is the posterior mean by Tweedie's formula, ``y - t grad R(y, t)`` with t = sigma^2, differentiable. More
    steps are the GNC flow on ``||x - y||^2 / (2 sigma^2) + R(x, t)`` along the predefined schedule of
    :func:`gnclib.restore.schemes.predefined`, a little better and as many times as expensive; not differentiable.

    Parameters
    ----------
    energy : as for :class:`EnergyPrior`
        For more than one step it must have ``sigma_min`` and ``sigma_max``.
    steps : int >= 1

    Raises
    ------
    ValueError
        Another number of steps, or more than one with an energy that has no range of noise levels.
    """

    def __init__(self, energy: str | os.PathLike | torch.nn.Module = "R1", *, steps: int = 1):
        super().__init__()
        self.energy, self.steps = _energy(energy), as_count(steps)
        if self.steps > 1 and not hasattr(self.energy, "sigma_min"):
            raise ValueError(
                f"{type(self.energy).__name__} has no sigma_min and sigma_max: it denoises in one step only"
            )

    @in_full_precision
    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs) -> Tensor:
        """The noisy images (B, C, H, W) without their noise of standard deviation sigma, see the module.

        Raises as :meth:`EnergyPrior.fn`; ValueError: a sigma for each pixel, and one step; RuntimeError: a derivative
        of several steps is wanted.
        """
        if self.steps == 1:
            channels, t = _channels(x, sigma)
            return (channels - t[:, None, None, None] * self.energy.grad(channels, t)).reshape(x.shape).to(x)
        _refuse_gradient("the GNC flow", self.energy, x, sigma)
        channels, noise = _grey(x), _levels("sigma", sigma, x)
        largest = noise.flatten(1).amax(1)  # (B C,), where the schedule begins
        result = torch.empty_like(channels)
        for level in largest.unique():  # a schedule belongs to one noise level
            chosen, sigma = largest == level, 255 * level.item()
            check_sigma(sigma, self.energy)
            ts, etas = predefined(self.energy, Task("denoise", sigma), self.steps)
            data_term = Denoising(channels[chosen], noise[chosen])
            result[chosen] = last(gnc_flow(self.energy, ts, data_term, step_sizes=etas)).x
        return result.reshape(x.shape).to(x)


def _energy(energy):
    return load_prior(energy) if isinstance(energy, (str, os.PathLike)) else energy


def _grey(x: Tensor) -> Tensor:
    """The channels as grey images, (B C, 1, H, W), in float32 at least."""
    if not isinstance(x, Tensor) or x.ndim != 4:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"images must be a tensor of shape (B, C, H, W), got {shape}")
    return x.reshape(-1, 1, *x.shape[2:]).to(torch.promote_types(x.dtype, torch.float32))


def _channels(x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
    """The channels as grey images, (B C, 1, H, W), and t = sigma^2 of each, (B C,)."""
    return _grey(x), _per_channel("sigma_denoiser", sigma, x) ** 2


def _per_channel(name: str, value, x: Tensor) -> Tensor:
    """A number, or one per image or channel, as (B C,)."""
    found = _levels(name, value, x)
    if found[0].numel() > 1:
        raise ValueError(
            f"{name} has one value per pixel, {tuple(value.shape)}: that takes the denoiser with several steps,"
            " EnergyDenoiser(steps=10)"
        )
    return found.reshape(-1)


def _levels(name: str, value, x: Tensor) -> Tensor:
    """A number, or one per image, channel or pixel, as (B C, 1, 1, 1) or (B C, 1, H, W); positive and finite."""
    known = "a number, or a tensor with one value per image, channel (B, C, 1, 1) or pixel (B, C, H, W)"
    if value is None:
        raise ValueError(f"this prior needs {name}: {known}")
    try:
        wide = torch.promote_types(x.dtype, torch.float32)
        value = torch.as_tensor(value, dtype=wide, device=x.device)
        if value.ndim < 4:
            value = value.reshape(-1, 1, 1, 1)
        torch.broadcast_to(value, x.shape)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be {known}, for images {tuple(x.shape)}: {error}") from error
    seen = value.detach()
    if not bool((torch.isfinite(seen) & (seen > 0)).all()):
        raise ValueError(f"{name} must be finite and > 0, got {seen.min().item():g} to {seen.max().item():g}")
    size = (1, 1) if value.shape[2:] == (1, 1) else x.shape[2:]
    return value.expand(*x.shape[:2], *size).reshape(-1, 1, *size)


def _refuse_gradient(what: str, energy, *inputs) -> None:
    """A result without the derivative that somebody waits for would be wrong in silence."""
    parameters = energy.parameters() if isinstance(energy, torch.nn.Module) else ()
    awaited = any(isinstance(v, Tensor) and v.requires_grad for v in (*inputs, *parameters))
    if awaited and torch.is_grad_enabled():
        raise RuntimeError(
            f"{what} has no derivative here: use the prior's gradient (g_first=True) or one step of the denoiser, or"
            " compute it under torch.no_grad()"
        )
