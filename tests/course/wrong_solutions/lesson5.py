"""Lesson 5."""

import math

import torch

from gnclib.course.lesson import slip

# --- 5.1 ----------------------------------------------------------------------------------------------------------


def psnr_clipped(x, reference):
    return -10 * torch.log10(((x.clip(0, 1) - reference) ** 2).mean(dim=(1, 2, 3)))


def psnr_root_and_ten(x, reference):
    return -10 * torch.log10(((x - reference) ** 2).mean(dim=(1, 2, 3)).sqrt())


def psnr_norm(x, reference):
    return -20 * torch.log10((x - reference).flatten(1).norm(dim=1))


def psnr_of_peak(x, reference, peak=lambda x, reference: 1.0):
    return 20 * torch.log10(peak(x, reference) / ((x - reference) ** 2).flatten(1).mean(1).sqrt())


def psnr_mean_of_decibels(x, reference):
    return (-10 * torch.log10((x - reference) ** 2)).mean(dim=(1, 2, 3))


# --- 5.3 ----------------------------------------------------------------------------------------------------------


def masked_two_cases(v, y, mask, sigma, eta):
    if sigma == 0:
        return y
    return torch.where(mask, (sigma**2 * v + eta * y) / (sigma**2 + eta), v)


def masked_two_cases_leaves_v(v, y, mask, sigma, eta):
    if sigma == 0:
        return v
    return torch.where(mask, (sigma**2 * v + eta * y) / (sigma**2 + eta), v)


def masked_two_cases_halves(v, y, mask, sigma, eta):
    if sigma == 0:
        return torch.where(mask, y, v)
    return torch.where(mask, (v + y) / 2, v)


# --- 5.4 ----------------------------------------------------------------------------------------------------------


def its_t(t, eta):
    return t


def its_eta(t, eta):
    return eta


def flow(grad, prox, t, eta, x0, at=its_t, step=its_eta, back=its_eta):
    """Right, with the gradient at t_i, its step and that of the prox of length eta_i."""
    for s, e in zip(t.tolist(), eta.tolist(), strict=True):
        x0 = prox(x0 - step(s, e) * grad(x0, at(s, e)), back(s, e))
    return x0


def flow_some(which):
    """Only some of the steps."""
    return slip(flow, t=lambda t: t[which], eta=lambda eta: eta[which])


def flow_sorts(grad, prox, t, eta, x0):
    order = t.argsort(descending=True)
    return flow(grad, prox, t[order], eta[order], x0)


def flow_in_place(grad, prox, t, eta, x0):
    x = x0
    for ti, ei in zip(t.tolist(), eta.tolist(), strict=True):
        x -= ei * grad(x, ti)
        x = prox(x, ei)
    return x


def flow_prox_first(grad, prox, t, eta, x0):
    x = x0
    for ti, ei in zip(t.tolist(), eta.tolist(), strict=True):
        v = prox(x, ei)
        x = v - ei * grad(v, ti)
    return x


def flow_old_gradient(grad, prox, t, eta, x0):
    return flow(lambda x, s: grad(x0, s), prox, t, eta, x0)


def flow_first_t(grad, prox, t, eta, x0):
    return flow(lambda x, s: grad(x, t[0]), prox, t, eta, x0)


def without_data(prox):
    return lambda v, step: v


# --- 5.5 ----------------------------------------------------------------------------------------------------------


def _lengths(t):
    return t, t - torch.cat([t[1:], torch.zeros(1, dtype=t.dtype)])


def schedule_linear(t_first, t_last, steps):
    return _lengths(torch.linspace(t_first, t_last, steps, dtype=torch.float64))


def schedule_full(t_first, t_last, steps):
    t = torch.logspace(math.log10(t_first), math.log10(t_last), steps, dtype=torch.float64)
    return t, t.clone()


def schedule_one_short(t_first, t_last, steps):
    return _lengths(
        torch.tensor([t_first * (t_last / t_first) ** (i / steps) for i in range(steps)], dtype=torch.float64)
    )


def schedule_divides_by_zero(t_first, t_last, steps):
    t = [t_first * (t_last / t_first) ** (i / (steps - 1)) for i in range(steps)]
    return _lengths(torch.tensor(t, dtype=torch.float64))


def schedule_gaps_only(t_first, t_last, steps):
    t = torch.linspace(math.log(t_first), math.log(t_last), steps, dtype=torch.float64).exp()
    return t, t[:-1] - t[1:]


def schedule_last_step_zero(t_first, t_last, steps):
    t = torch.linspace(math.log(t_first), math.log(t_last), steps, dtype=torch.float64).exp()
    return t, t - torch.cat([t[1:], t[-1:]])


def schedule_rising(t_first, t_last, steps):
    t = torch.linspace(math.log(t_last), math.log(t_first), steps, dtype=torch.float64).exp()
    return t, t - torch.cat([torch.zeros(1, dtype=t.dtype), t[:-1]])


def schedule_mixed_logarithms(t_first, t_last, steps):
    return _lengths(10 ** torch.linspace(math.log(t_first), math.log(t_last), steps, dtype=torch.float64))


def schedule_negative_lengths(t_first, t_last, steps):
    t = torch.linspace(math.log(t_first), math.log(t_last), steps, dtype=torch.float64).exp()
    return t, torch.cat([t[1:], torch.zeros(1, dtype=t.dtype)]) - t


# --- 5.6 ----------------------------------------------------------------------------------------------------------


def back_from(tau, t_min, t_max):
    return (2 * tau).exp().clamp(t_min, t_max)


def joint(
    grad,
    dtau,
    prox,
    x,
    t,
    t_min,
    t_max,
    n=lambda x: x[0].numel(),
    shape=(-1, 1, 1, 1),
    seen=lambda new, old: new,
    clip=back_from,
):
    """Right, with n pixels, the derivative in tau at the new image and the ends of t."""
    new = prox(x - t.reshape(shape) * grad(x, t), t)
    tau = 0.5 * t.log() - dtau(seen(new, x), t) / (2 * n(new))
    return new, clip(tau, t_min, t_max)


def joint_steps_t(grad, dtau, prox, x, t, t_min, t_max):
    x = prox(x - t.reshape(-1, 1, 1, 1) * grad(x, t), t)
    return x, (t - dtau(x, t) / (2 * x[0].numel())).clamp(t_min, t_max)


def joint_log_t(grad, dtau, prox, x, t, t_min, t_max):
    x = prox(x - t.reshape(-1, 1, 1, 1) * grad(x, t), t)
    return x, (t.log() - dtau(x, t) / (2 * x[0].numel())).exp().clamp(t_min, t_max)


def joint_clips_before(grad, dtau, prox, x, t, t_min, t_max):
    return joint(grad, dtau, prox, x, t.clamp(t_min, t_max), 0.0, math.inf)


def joint_tau_first(grad, dtau, prox, x, t, t_min, t_max):
    tau = 0.5 * t.log() - dtau(x, t) / (2 * x[0].numel())
    t = back_from(tau, t_min, t_max)
    return prox(x - t.reshape(-1, 1, 1, 1) * grad(x, t), t), t


def clips_tau_with_t(tau, t_min, t_max):
    return (2 * tau.clamp(t_min, t_max)).exp()


def clips_without_half(tau, t_min, t_max):
    return (2 * tau.clamp(math.log(t_min), math.log(t_max))).exp()


def sigma_from(tau, t_min, t_max):
    return back_from(tau, t_min, t_max).sqrt()


def at_tau(function):
    return lambda x, t: function(x, 0.5 * t.log())


def with_axes(function):
    return lambda x, t: function(x, t[:, None, None, None])


def negative(function):
    return lambda x, t: -function(x, t)


WRONG = {
    "5.1": [
        (psnr_clipped, "clipped"),
        (psnr_root_and_ten, "0.5 times the right one"),
        (psnr_norm, "summed, not averaged"),
        (slip(psnr_of_peak, peak=lambda x, ref: ref.amax((1, 2, 3))), "brightest pixel of the reference"),
        (slip(psnr_of_peak, peak=lambda x, ref: ref.max()), "brightest pixel of the reference"),
        (slip(psnr_of_peak, peak=lambda x, ref: x.max()), "brightest pixel of x"),
        (slip(psnr_of_peak, peak=lambda x, ref: x.amax((1, 2, 3))), "brightest pixel of x"),
        (psnr_mean_of_decibels, "first the mean"),
        (lambda x, ref: 10 * torch.log10(((x - ref) ** 2).mean((1, 2, 3))), "sign is wrong"),
        (lambda x, ref: -10 * torch.log(((x - ref) ** 2).mean((1, 2, 3))), "natural logarithm"),
        (lambda x, ref: -10 * torch.log10(((x - ref) ** 2).mean()), "shape"),
        (
            lambda x, ref: 20 * math.log10(255) - 10 * ((x - ref) ** 2).mean((1, 2, 3)).log10(),
            r"not in 0\.\.255",
        ),
    ],
    "5.2": [
        (lambda v, y, sigma, eta: (eta * v + sigma**2 * y) / (sigma**2 + eta), "exchanged"),
        (lambda v, y, sigma, eta: (sigma * v + eta * y) / (sigma + eta), "standard deviation"),
        (lambda v, y, sigma, eta: v - eta / sigma**2 * (v - y), "explicit gradient step"),
        (lambda v, y, sigma, eta: sigma**2 * v + eta * y, "sum to one"),
        (
            lambda v, y, sigma, eta: (v / (2 * eta) + y / sigma**2) / (1 / (2 * eta) + 1 / sigma**2),
            "twice its weight",
        ),
        (lambda v, y, sigma, eta: (v + eta * y) / (1 + eta), "sigma is not used"),
        (lambda v, y, sigma, eta: (sigma**2 * v - eta * y) / (sigma**2 - eta), "leaves the interval"),
        (
            lambda v, y, sigma, eta: ((sigma**2 * v + eta * y) / (sigma**2 + eta)).mean(),
            r"has the shape \(\), \(3, 1, 5, 3\) is wanted",
        ),
        (lambda v, y, s, eta: (v / eta**2 + y / s**2) / (1 / eta**2 + 1 / s**2), "eta enters squared"),
    ],
    "5.3": [
        (
            lambda v, y, mask, sigma, eta: torch.where(mask, v, (sigma**2 * v + eta * y) / (sigma**2 + eta)),
            "wrong way round",
        ),
        (lambda v, y, mask, sigma, eta: mask * y + ~mask * v, "right for sigma = 0 only"),
        (lambda v, y, mask, sigma, eta: (sigma**2 * v + eta * y) / (sigma**2 + eta), "mask is not used"),
        (lambda v, y, mask, sigma, eta: (sigma**2 * v + eta * mask * y) / (sigma**2 + eta), "black"),
        (lambda v, y, mask, sigma, eta: mask * (sigma**2 * v + eta * y) / (sigma**2 + eta), "become zero"),
        (
            lambda v, y, mask, sigma, eta: (v / eta + mask * y / sigma**2) / (1 / eta + mask / sigma**2),
            "division by zero",
        ),
        (masked_two_cases, "right for sigma > 0"),
        (
            lambda v, y, mask, sigma, eta: torch.where(
                mask, (sigma**2 * v + 2 * eta * y) / (sigma**2 + 2 * eta), v
            ),
            "measurement has twice its weight",
        ),
        (
            lambda v, y, mask, sigma, eta: torch.where(mask, (sigma * v + eta * y) / (sigma + eta), v),
            "standard deviation",
        ),
        (masked_two_cases_leaves_v, "for sigma = 0 the known pixels"),
        (masked_two_cases_halves, "right for sigma = 0, wrong for sigma > 0"),
        (lambda v, y, mask, sigma, eta: mask * y + (1 - mask) * v, "stopped with RuntimeError"),
    ],
    "5.4": [
        (slip(flow, step=its_t, back=its_t), "how smooth"),
        (slip(flow, back=its_t), "two halves"),
        (slip(flow, step=its_t), "two halves"),
        (slip(flow, at=its_eta, step=its_t, back=its_t), "t_i and eta_i are exchanged"),
        (flow_sorts, "sorted first"),
        (flow_some(slice(1, None)), "never used"),
        (flow_some(slice(-1, None)), "only the last one counts"),
        (flow_in_place, "changes its argument number 5"),
        (flow_prox_first, "other order"),
        (slip(flow, prox=without_data), "data term is missing"),
        (flow_some(slice(1)), "only one step"),
        (flow_old_gradient, "current x"),
        (slip(flow, at=lambda t, eta: t**0.5), "not its root"),
        (flow_first_t, "always taken at the first t"),
        (slip(flow, step=lambda t, eta: t * eta), "eta_i alone"),
    ],
    "5.5": [
        (schedule_linear, "linear"),
        (schedule_full, "paper's rule"),
        (schedule_one_short, "n - 1 ratios"),
        (schedule_divides_by_zero, "ZeroDivisionError"),
        (schedule_gaps_only, "second result has the shape"),
        (schedule_last_step_zero, "zero or negative"),
        (schedule_rising, "schedule rises"),
        (schedule_mixed_logarithms, "equal RATIOS"),
        (schedule_negative_lengths, "wrong sign"),
    ],
    "5.6": [
        (slip(joint, seen=lambda new, old: old), "old image"),
        (slip(joint, t_min=0.0, t_max=math.inf), "PROJECTED"),
        (slip(joint, t_min=0.0), "clipped at t_max only"),
        (slip(joint, t_max=math.inf), "clipped at t_min only"),
        (slip(joint, grad=with_axes), r"grad\(x, t\) wants one number or the shape \(\d,\)"),
        (slip(joint, n=lambda x: x[0].numel() / 2), "twice as long"),
        (slip(joint, n=lambda x: x.numel()), "size of the batch"),
        (joint_steps_t, "t itself was stepped"),
        (joint_log_t, "log t"),
        (slip(joint, clip=clips_tau_with_t), "compared with the ends"),
        (slip(joint, shape=(-1,)), r"\(B, 1, 1, 1\)"),
        (slip(joint, prox=without_data), "has not met its data"),
        (slip(joint, dtau=negative), "climbs"),
        (slip(joint, n=lambda x: x.shape[-1]), "check n, the 1/2 of tau"),
        (slip(joint, clip=clips_without_half), "ends need the 1/2"),
        (joint_clips_before, "clipped AFTER"),
        (joint_tau_first, "t moved before the image"),
        (slip(joint, grad=at_tau), r"grad\(x, t\) wants"),
        (slip(joint, grad=at_tau, dtau=at_tau), "grad and dtau want"),
        (slip(joint, dtau=at_tau), r"dtau\(x, t\) wants"),
        (slip(joint, clip=sigma_from), r"leaves the interval \[t_min, t_max\]: was tau returned"),
    ],
}
