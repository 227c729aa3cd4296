"""Lesson 5."""

import math

import torch

# --- 5.1 ----------------------------------------------------------------------------------------------------------


def psnr_clipped(x, reference):
    return -10 * torch.log10(((x.clip(0, 1) - reference) ** 2).mean(dim=(1, 2, 3)))


def psnr_root_and_ten(x, reference):
    return -10 * torch.log10(((x - reference) ** 2).mean(dim=(1, 2, 3)).sqrt())


def psnr_norm(x, reference):
    return -20 * torch.log10((x - reference).flatten(1).norm(dim=1))


def psnr_peak_of_image(x, reference):
    peak = reference.flatten(1).max(dim=1).values
    return 20 * torch.log10(peak / ((x - reference) ** 2).flatten(1).mean(1).sqrt())


def psnr_peak_of_batch(x, reference):
    return 20 * torch.log10(reference.max() / ((x - reference) ** 2).flatten(1).mean(1).sqrt())


def psnr_peak_of_x(x, reference):
    return 10 * torch.log10(x.max() ** 2 / ((x - reference) ** 2).mean(dim=(1, 2, 3)))


def psnr_peak_of_each_x(x, reference):
    return 10 * torch.log10(x.flatten(1).amax(1) ** 2 / ((x - reference) ** 2).mean(dim=(1, 2, 3)))


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


def flow_full_steps(grad, prox, t, eta, x0):
    x = x0
    for ti in t.tolist():
        x = prox(x - ti * grad(x, ti), ti)
    return x


def flow_at_once(grad, prox, t, eta, x0):
    """Right, if it is given the right functions."""
    return [x0 := prox(x0 - e * grad(x0, s), e) for s, e in zip(t.tolist(), eta.tolist(), strict=True)][-1]


def flow_prox_with_t(grad, prox, t, eta, x0):
    x = x0
    for ti, ei in zip(t.tolist(), eta.tolist(), strict=True):
        x = prox(x - ei * grad(x, ti), ti)
    return x


def flow_gradient_with_t(grad, prox, t, eta, x0):
    x = x0
    for ti, ei in zip(t.tolist(), eta.tolist(), strict=True):
        x = prox(x - ti * grad(x, ti), ei)
    return x


def flow_exchanged(grad, prox, t, eta, x0):
    x = x0
    for ti, ei in zip(t.tolist(), eta.tolist(), strict=True):
        x = prox(x - ti * grad(x, ei), ti)
    return x


def flow_sorts(grad, prox, t, eta, x0):
    x = x0
    for i in t.argsort(descending=True):
        x = prox(x - eta[i] * grad(x, t[i]), eta[i])
    return x


def flow_off_by_one(grad, prox, t, eta, x0):
    x = x0
    for i in range(1, len(t)):
        x = prox(x - eta[i] * grad(x, t[i]), eta[i])
    return x


def flow_never_updated(grad, prox, t, eta, x0):
    for ti, ei in zip(t.tolist(), eta.tolist(), strict=True):
        x = prox(x0 - ei * grad(x0, ti), ei)
    return x


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


def flow_no_data(grad, prox, t, eta, x0):
    x = x0
    for ti, ei in zip(t.tolist(), eta.tolist(), strict=True):
        x = x - ei * grad(x, ti)
    return x


def flow_returns_in_loop(grad, prox, t, eta, x0):
    x = x0
    for ti, ei in zip(t.tolist(), eta.tolist(), strict=True):
        x = prox(x - ei * grad(x, ti), ei)
        return x


def flow_old_gradient(grad, prox, t, eta, x0):
    x = x0
    for ti, ei in zip(t.tolist(), eta.tolist(), strict=True):
        x = prox(x - ei * grad(x0, ti), ei)
    return x


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


def _image_step(grad, prox, x, t):
    return prox(x - t.reshape(-1, 1, 1, 1) * grad(x, t), t)


def joint_old_image(grad, dtau, prox, x, t, t_min, t_max):
    tau = 0.5 * t.log() - dtau(x, t) / (2 * x[0].numel())
    return _image_step(grad, prox, x, t), (2 * tau).exp().clamp(t_min, t_max)


def joint_no_ends(grad, dtau, prox, x, t, t_min, t_max):
    x = _image_step(grad, prox, x, t)
    return x, torch.exp(2 * (0.5 * t.log() - dtau(x, t) / (2 * x[0].numel())))


def joint_one_end(grad, dtau, prox, x, t, t_min, t_max, lower=None, upper=None):
    x = _image_step(grad, prox, x, t)
    return x, torch.exp(t.log() - dtau(x, t) / x[0].numel()).clamp(lower, upper)


def joint_asks_with_axes(grad, dtau, prox, x, t, t_min, t_max):
    wide = t[:, None, None, None]
    x = prox(x - wide * grad(x, wide), wide)
    return x, torch.exp(t.log() - dtau(x, t) / x[0].numel()).clamp(t_min, t_max)


def joint_n_only(grad, dtau, prox, x, t, t_min, t_max):
    x = _image_step(grad, prox, x, t)
    tau = 0.5 * t.log() - dtau(x, t) / x[0].numel()
    return x, tau.clamp(0.5 * math.log(t_min), 0.5 * math.log(t_max)).mul(2).exp()


def joint_whole_batch(grad, dtau, prox, x, t, t_min, t_max):
    x = _image_step(grad, prox, x, t)
    tau = 0.5 * t.log() - dtau(x, t) / (2 * x.numel())
    return x, (2 * tau).exp().clamp(t_min, t_max)


def joint_steps_t(grad, dtau, prox, x, t, t_min, t_max):
    x = _image_step(grad, prox, x, t)
    return x, (t - dtau(x, t) / (2 * x[0].numel())).clamp(t_min, t_max)


def joint_log_t(grad, dtau, prox, x, t, t_min, t_max):
    x = _image_step(grad, prox, x, t)
    return x, (t.log() - dtau(x, t) / (2 * x[0].numel())).exp().clamp(t_min, t_max)


def joint_clips_tau_with_t(grad, dtau, prox, x, t, t_min, t_max):
    x = _image_step(grad, prox, x, t)
    tau = (0.5 * t.log() - dtau(x, t) / (2 * x[0].numel())).clamp(t_min, t_max)
    return x, (2 * tau).exp()


def joint_columns(grad, dtau, prox, x, t, t_min, t_max):
    x = prox(x - t * grad(x, t), t)
    tau = 0.5 * t.log() - dtau(x, t) / (2 * x[0].numel())
    return x, (2 * tau).exp().clamp(t_min, t_max)


def joint_no_prox(grad, dtau, prox, x, t, t_min, t_max):
    x = x - t[:, None, None, None] * grad(x, t)
    tau = 0.5 * t.log() - dtau(x, t) / (2 * x[0].numel())
    return x, (2 * tau).exp().clamp(t_min, t_max)


def joint_ascends(grad, dtau, prox, x, t, t_min, t_max):
    x = _image_step(grad, prox, x, t)
    tau = 0.5 * t.log() + dtau(x, t) / (2 * x[0].numel())
    return x, (2 * tau).exp().clamp(t_min, t_max)


def joint_columns_of_pixels(grad, dtau, prox, x, t, t_min, t_max):
    x = _image_step(grad, prox, x, t)
    tau = 0.5 * t.log() - dtau(x, t) / (2 * x.shape[-1])
    return x, (2 * tau).exp().clamp(t_min, t_max)


def joint_ends_without_half(grad, dtau, prox, x, t, t_min, t_max):
    x = _image_step(grad, prox, x, t)
    tau = 0.5 * t.log() - dtau(x, t) / (2 * x[0].numel())
    return x, tau.clamp(math.log(t_min), math.log(t_max)).mul(2).exp()


def joint_clips_before(grad, dtau, prox, x, t, t_min, t_max):
    x = _image_step(grad, prox, x, t)
    tau = (0.5 * t.log()).clamp(0.5 * math.log(t_min), 0.5 * math.log(t_max))
    return x, (2 * (tau - dtau(x, t) / (2 * x[0].numel()))).exp()


def joint_tau_first(grad, dtau, prox, x, t, t_min, t_max):
    tau = 0.5 * t.log() - dtau(x, t) / (2 * x[0].numel())
    t = (2 * tau).exp().clamp(t_min, t_max)
    return _image_step(grad, prox, x, t), t


def joint_grad_at_tau(grad, dtau, prox, x, t, t_min, t_max):
    tau = 0.5 * t.log()
    x = prox(x - t.reshape(-1, 1, 1, 1) * grad(x, tau), t)
    return x, (2 * (tau - dtau(x, t) / (2 * x[0].numel()))).exp().clamp(t_min, t_max)


def joint_both_at_tau(grad, dtau, prox, x, t, t_min, t_max):
    tau = 0.5 * t.log()
    x = prox(x - t.reshape(-1, 1, 1, 1) * grad(x, tau), t)
    return x, (2 * (tau - dtau(x, tau) / (2 * x[0].numel()))).exp().clamp(t_min, t_max)


def joint_dtau_at_tau(grad, dtau, prox, x, t, t_min, t_max):
    x, tau = _image_step(grad, prox, x, t), 0.5 * t.log()
    return x, (2 * (tau - dtau(x, tau) / (2 * x[0].numel()))).exp().clamp(t_min, t_max)


def joint_returns_sigma(grad, dtau, prox, x, t, t_min, t_max):
    x = _image_step(grad, prox, x, t)
    tau = 0.5 * t.log() - dtau(x, t) / (2 * x[0].numel())
    return x, tau.clamp(0.5 * math.log(t_min), 0.5 * math.log(t_max)).exp()


WRONG = {
    "5.1": [
        (psnr_clipped, "clipped"),
        (psnr_root_and_ten, "0.5 times the right one"),
        (psnr_norm, "summed, not averaged"),
        (psnr_peak_of_image, "brightest pixel of the reference"),
        (psnr_peak_of_batch, "brightest pixel of the reference"),
        (psnr_peak_of_x, "brightest pixel of x"),
        (psnr_peak_of_each_x, "brightest pixel of x"),
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
        (flow_full_steps, "how smooth"),
        (flow_prox_with_t, "two halves"),
        (flow_gradient_with_t, "two halves"),
        (flow_exchanged, "t_i and eta_i are exchanged"),
        (flow_sorts, "sorted first"),
        (flow_off_by_one, "never used"),
        (flow_never_updated, "only the last one counts"),
        (flow_in_place, "changes its argument number 5"),
        (flow_prox_first, "other order"),
        (flow_no_data, "data term is missing"),
        (flow_returns_in_loop, "only one step"),
        (flow_old_gradient, "current x"),
        (lambda grad, *a: flow_at_once(lambda x, t: grad(x, t**0.5), *a), "not its root"),
        (
            lambda grad, p, t, *a: flow_at_once(lambda x, _: grad(x, t[0]), p, t, *a),
            "always taken at the first t",
        ),
        (lambda grad, *a: flow_at_once(lambda x, t: t * grad(x, t), *a), "eta_i alone"),
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
        (joint_old_image, "old image"),
        (joint_no_ends, "PROJECTED"),
        (lambda *a: joint_one_end(*a, upper=a[6]), "clipped at t_max only"),
        (lambda *a: joint_one_end(*a, lower=a[5]), "clipped at t_min only"),
        (joint_asks_with_axes, r"grad\(x, t\) wants one number or the shape \(\d,\)"),
        (joint_n_only, "twice as long"),
        (joint_whole_batch, "size of the batch"),
        (joint_steps_t, "t itself was stepped"),
        (joint_log_t, "log t"),
        (joint_clips_tau_with_t, "compared with the ends"),
        (joint_columns, r"\(B, 1, 1, 1\)"),
        (joint_no_prox, "has not met its data"),
        (joint_ascends, "climbs"),
        (joint_columns_of_pixels, "check n, the 1/2 of tau"),
        (joint_ends_without_half, "ends need the 1/2"),
        (joint_clips_before, "clipped AFTER"),
        (joint_tau_first, "t moved before the image"),
        (joint_grad_at_tau, r"grad\(x, t\) wants"),
        (joint_both_at_tau, "grad and dtau want"),
        (joint_dtau_at_tau, r"dtau\(x, t\) wants"),
        (joint_returns_sigma, r"leaves the interval \[t_min, t_max\]: was tau returned"),
    ],
}
