"""Lesson 4."""

import math

import torch
import torch.nn.functional as F

from gnclib.course.lesson import slip
from gnclib.spline import quartic_bspline

# --- 4.1 cosine filters ---------------------------------------------------------------------------------------------


def rows(s, first=0.5**0.5, centre=0.5, gain=lambda s: math.sqrt(2 / s)):
    k = torch.arange(s, dtype=torch.float64)
    values = gain(s) * torch.cos(math.pi * torch.outer(k, k + centre) / s)
    values[0] *= first
    return values


def dct(s, **changes):
    return torch.stack([torch.outer(a, b) for a in rows(s, **changes) for b in rows(s, **changes)][1:])


def dct_transposed(s):
    return torch.stack([torch.outer(b, a) for a in rows(s) for b in rows(s)][1:])


def dct_with_constant(s):
    return torch.stack([torch.outer(a, b) for a in rows(s) for b in rows(s)])


def dct_last_left_out(s):
    return dct_with_constant(s)[:-1]


def dct_as_a_list(s):
    return list(dct(s))


def dct_normalised_twice(s):
    return dct(s) / dct(s).abs().amax((1, 2), keepdim=True)


def dct_of_integers(s):
    k = torch.arange(s)
    rows = torch.cos(math.pi * torch.outer(k, k + 0.5) / s)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return torch.einsum("ax,by->abxy", rows, rows).reshape(s * s, s, s)[1:]


def dct_cast_at_the_end(s):
    return dct_of_integers(s).double()


# --- 4.2 B-splines --------------------------------------------------------------------------------------------------


def half_open(u):
    return (u >= -0.5) & (u < 0.5)


def spline(u, degree, box=half_open, shift=0.5, wider=1, sign=1, divisor=lambda degree: degree):
    """Right, with a half-open box and weights that vanish at +-(degree + 1) / 2."""
    if degree == 0:
        return box(u).double()
    left, right = (spline(u + s, degree - 1, box, shift, wider, sign, divisor) for s in (shift, -shift))
    end = (degree + wider) / 2
    return ((end + sign * u) * left + (end - sign * u) * right) / divisor(degree)


def spline_always_quartic(u, degree):
    def power(x):
        return x.clamp(min=0) ** 4

    return sum((-1) ** k * math.comb(5, k) * power(u + 2.5 - k) for k in range(6)) / 24


def spline_of_booleans(u, degree):
    if degree == 0:
        return (u >= -0.5) & (u < 0.5)
    return (spline_of_booleans(u + 0.5, 0) | spline_of_booleans(u - 0.5, 0)).long()


def spline_powers_of_the_other_side(u, degree):
    """Truncated powers, but not truncated."""
    half = (degree + 1) / 2
    terms = [(-1) ** k * math.comb(degree + 1, k) * (u + half - k) ** degree for k in range(degree + 1)]
    return sum(terms) / math.factorial(degree)


def spline_of_clamped_powers(u, degree):
    """Right for all degrees but 0, where 0 ** 0 is 1."""
    half = (degree + 1) / 2
    terms = [
        (-1) ** k * math.comb(degree + 1, k) * (u + half - k).clamp(min=0) ** degree
        for k in range(degree + 2)
    ]
    return sum(terms) / math.factorial(degree)


# --- 4.3 the coefficients of a parabola -----------------------------------------------------------------------------


def parabola_by_collocation(mu, c):
    h = mu[1] - mu[0]
    return torch.linalg.solve(quartic_bspline((mu[:, None] - mu) / h), c * mu**2)


WRONG_PARABOLAS = [
    (lambda mu, c: c * mu**2, "these are samples"),
    (lambda mu, c: c * (mu**2 + 5 / 12 * (mu[1] - mu[0]) ** 2), "wrong sign"),
    (lambda mu, c: c * (mu**2 - 5 / 12), "another number"),
    (lambda mu, c: c * (mu**2 - 5 / 12 * (mu[1] - mu[0])), "square of h"),
    (lambda mu, c: c * (mu**2 - (mu[1] - mu[0]) ** 2 / 12), "sum of five"),
    (lambda mu, c: c * (mu**2 - 4 / 12 * (mu[1] - mu[0]) ** 2), "degree four is a sum of five"),
    (lambda mu, c: mu**2 - 5 / 12 * (mu[1] - mu[0]) ** 2, "factor c is missing"),
    (lambda mu, c: c * mu**2 - 5 / 12 * (mu[1] - mu[0]) ** 2, "belongs to the correction"),
    (lambda mu, c: c / 2 * (mu**2 - 5 / 12 * (mu[1] - mu[0]) ** 2), "0.5 times the right one"),
    (parabola_by_collocation, "second differences"),
]


# --- 4.4 potentials -------------------------------------------------------------------------------------------------


def of_mu(mu, nu):
    return mu[1] - mu[0]


def of_nu(mu, nu):
    return nu[1] - nu[0]


def none(mu, nu):
    return 1.0


def potential(x, w, t, mu, nu, tau=lambda t: 0.5 * t.log(), dx=of_mu, dtau=of_nu, sums="bcmn,cnj,bj->bcm"):
    """Right, with distances in x and tau in spacings of the own nodes."""
    in_x = quartic_bspline((x[..., None] - mu) / dx(mu, nu))
    in_tau = quartic_bspline((tau(t)[:, None] - nu) / dtau(mu, nu))
    return torch.einsum(sums, in_x, w, in_tau)


def potential_divided(x, w, t, mu, nu):
    return potential(x, w, t, mu, nu) / of_mu(mu, nu)


def potential_divided_twice(x, w, t, mu, nu):
    return potential_divided(x, w, t, mu, nu) / of_nu(mu, nu)


def potential_in_place(x, w, t, mu, nu):
    x -= mu[0]
    return potential(x, w, t, mu - mu[0], nu)


# --- 4.5 the gradient -----------------------------------------------------------------------------------------------


def grad_filtered_twice(y, kernels, slope):
    s = kernels.shape[-1]
    return F.conv2d(slope(F.conv2d(y, kernels)), kernels.transpose(0, 1), padding=s - 1)


def grad_flipped_once(y, kernels, slope):
    turned = kernels.transpose(0, 1).flip(-1)
    return F.conv2d(slope(F.conv2d(y, kernels)), turned, padding=kernels.shape[-1] - 1)


def grad_valid(y, kernels, slope):
    return F.conv2d(slope(F.conv2d(y, kernels)), kernels.transpose(0, 1).flip(-1, -2))


def grad_quadratic(y, kernels, slope):
    return F.conv_transpose2d(F.conv2d(y, kernels), kernels)


def grad_no_transpose(y, kernels, slope):
    return slope(F.conv2d(y, kernels))


def grad_slope_of_image(y, kernels, slope):
    a = slope(y.expand(-1, len(kernels), -1, -1))[:, :1]
    return F.conv_transpose2d(F.conv2d(a, kernels), kernels)


def grad_negative(y, kernels, slope):
    return -F.conv_transpose2d(slope(F.conv2d(y, kernels)), kernels)


def grad_mean_of_channels(y, kernels, slope):
    return F.conv_transpose2d(slope(F.conv2d(y, kernels)), kernels) / len(kernels)


def grad_times_features(y, kernels, slope):
    x = F.conv2d(y, kernels)
    return F.conv_transpose2d(x * slope(x), kernels)


def grad_same_padding(y, kernels, slope):
    s = kernels.shape[-1]
    x = F.conv2d(F.pad(y, [s // 2, s - 1 - s // 2] * 2), kernels)
    back = F.conv_transpose2d(slope(x), kernels)
    return back[..., s // 2 :, s // 2 :][..., : y.shape[-2], : y.shape[-1]]


def grad_transposed_and_flipped(y, kernels, slope):
    return F.conv_transpose2d(slope(F.conv2d(y, kernels)), kernels.flip(-1, -2))


def grad_transposed_and_flipped_once(y, kernels, slope):
    return F.conv_transpose2d(slope(F.conv2d(y, kernels)), kernels.flip(-1))


def grad_same_there_and_back(y, kernels, slope):
    s = kernels.shape[-1]
    pad, turned = [(s - 1) // 2, s // 2] * 2, kernels.transpose(0, 1).flip(-1, -2)
    return F.conv2d(F.pad(slope(F.conv2d(F.pad(y, pad), kernels)), pad), turned)


def grad_by_autograd(y, kernels, slope):
    v = torch.zeros_like(y).requires_grad_()
    return torch.autograd.grad((F.conv2d(v, kernels) * slope(F.conv2d(y, kernels))).sum(), v)[0]


def grad_by_vjp(y, kernels, slope):
    features, back = torch.func.vjp(lambda v: F.conv2d(v, kernels), y)
    return back(slope(features))[0]


def grad_of_bare_images(y, kernels, slope):
    return torch.cat([F.conv_transpose2d(slope(F.conv2d(image, kernels)), kernels)[None] for image in y])


# --- 4.6 one step of training ---------------------------------------------------------------------------------------


def loss(a, x, z, t, kernels, mu, noise=math.sqrt, gain=math.sqrt, sign=-1.0, spacing=None):
    """Its summands, of which the mean is right."""
    h = mu[1] - mu[0]
    features = F.conv2d(x + noise(t) * z, kernels)
    basis = quartic_bspline((features[..., None] - mu) / h, 1) / (spacing or h)
    grad = F.conv_transpose2d((basis * a[:, None, None, :]).sum(-1), kernels)
    return 0.5 * (gain(t) * grad + sign * z) ** 2


def step(a, x, z, t, kernels, mu, rate, average=torch.mean, **changes):
    b = a.clone().requires_grad_()
    value = average(loss(b, x, z, t, kernels, mu, **changes))
    return a - rate * torch.autograd.grad(value, b)[0]


def by_hand(
    a,
    x,
    z,
    t,
    kernels,
    mu,
    rate,
    count=lambda x, features: x.numel(),
    front=math.sqrt,
    inside=1,
    outside=1,
):
    """Right, with the derivatives of the splines that are `inside` grad R and `outside`, in the derivative of J."""
    h = mu[1] - mu[0]
    features = F.conv2d(x + math.sqrt(t) * z, kernels)
    u = (features[..., None] - mu) / h
    slope = (quartic_bspline(u, inside) / h * a[:, None, None, :]).sum(-1)
    rest = F.conv2d(math.sqrt(t) * F.conv_transpose2d(slope, kernels) - z, kernels)
    total = (rest[..., None] * quartic_bspline(u, outside) / h).sum((0, 2, 3))
    return a - rate * front(t) / count(x, features) * total


def step_gradient(a, x, z, t, kernels, mu, rate):
    return a - step(a, x, z, t, kernels, mu, 1.0)


def step_in_place(a, *others):
    a.copy_(step(a, *others))
    return a


def step_not_a_leaf(a, x, z, t, kernels, mu, rate):
    return a - rate * torch.autograd.grad(loss(a, x, z, t, kernels, mu).mean(), a)[0]


def step_forgets_to_return(*arguments):
    step(*arguments)


WRONG = {
    "4.1": [
        (slip(dct, first=1.0), r"row k = 0 has norm sqrt\(2\)"),
        (slip(dct, first=1.0, gain=lambda s: 1.0), "bare cosines"),
        (slip(dct, centre=0.0), "middle n"),
        (dct_transposed, "rows and columns are exchanged"),
        (dct_with_constant, r"has the shape \(25, 5, 5\), \(24, 5, 5\) is wanted"),
        (dct_last_left_out, "constant one still among them"),
        (dct_as_a_list, "a torch.Tensor is wanted"),
        (dct_normalised_twice, "not all filters have norm one"),
        (dct_of_integers, "single precision only"),
        (dct_cast_at_the_end, "right to some digits only: a tensor on the way"),
    ],
    "4.2": [
        (slip(spline, divisor=lambda degree: 1), "degree! times too large"),
        (slip(spline, shift=1.0), "shift u by 1/2"),
        (slip(spline, sign=-1), "weights are exchanged"),
        (slip(spline, box=lambda u: (u >= 0) & (u < 1)), "box is not centred"),
        (slip(spline, wider=0), "vanish at the ends"),
        (spline_always_quartic, "degree is not used"),
        (spline_of_booleans, "floating-point"),
        (spline_powers_of_the_other_side, "values are negative"),
        (slip(spline, box=lambda u: u.abs() <= 0.5), "half-open, count its ends once"),
        (slip(spline, box=lambda u: u.abs() < 0.5), "half-open, count its ends once"),
        (spline_of_clamped_powers, "degree 0"),
    ],
    "4.3": WRONG_PARABOLAS,
    "4.4": [
        (slip(potential, dx=of_nu, dtau=of_mu), "spacings are exchanged"),
        (potential_divided_twice, "divided by their spacings"),
        (slip(potential, tau=torch.log), "twice the right tau"),
        (slip(potential, tau=torch.sqrt), "not in sigma"),
        (slip(potential, dtau=of_mu), "their own spacing"),
        (slip(potential, dx=none, dtau=none), "measured in spacings"),
        (slip(potential, t=lambda t: t[0].expand(len(t))), "noise level of the first"),
        (slip(potential, w=lambda w: w[0].expand_as(w)), "coefficients of its own"),
        (slip(potential, sums="bcmn,cnj,bj->b"), "shape"),
        (potential_divided, "the spacing of mu times too small"),
        (slip(potential, tau=lambda t: t.sqrt().log10()), "NATURAL"),
        (slip(potential, tau=torch.log10), "decimal one of t"),
        (slip(potential, dtau=none), "distances in tau"),
        (slip(potential, dx=none), "distances in x"),
        (slip(potential, dx=of_nu), "not that of nu"),
        (potential_in_place, "argument number 1 in place"),
    ],
    "4.5": [
        (grad_filtered_twice, "upside down"),
        (grad_transposed_and_flipped, "turns the kernels already"),
        (grad_transposed_and_flipped_once, "one axis only"),
        (grad_same_there_and_back, "pad on the way there"),
        (grad_flipped_once, "one axis only"),
        (grad_valid, "shape"),
        (grad_quadratic, "slope of the potentials is missing"),
        (grad_no_transpose, "shape"),
        (grad_negative, "sign is wrong"),
        (grad_mean_of_channels, "the number of channels times too small"),
        (grad_times_features, "once more"),
        (grad_same_padding, "brightness"),
        (grad_slope_of_image, "the result is"),
        (grad_by_autograd, "by automatic differentiation"),
        (grad_by_vjp, "by automatic differentiation"),
        (grad_of_bare_images, r"slope\(x\) wants features of the shape"),
    ],
    "4.6": [
        (slip(step, rate=lambda rate: -rate), "goes UP"),
        (slip(step, sign=1.0), "MINUS the score"),
        (slip(step, noise=lambda t: t), "t is the variance"),
        (slip(step, noise=lambda t: 0.0), "noisy image y"),
        (slip(step, gain=lambda t: t), "not t grad R"),
        (slip(step, average=lambda summands: 2 * summands.mean()), "twice too long"),
        (slip(step, average=torch.sum), "here it is their sum"),
        (
            slip(step, average=lambda summands: summands.sum((1, 2, 3)).mean()),
            "not only over the images",
        ),
        (slip(step, spacing=1.0), "1/h is missing"),
        (slip(by_hand, count=lambda x, features: x[0].numel()), "those of ONE image"),
        (
            slip(by_hand, count=lambda x, features: features[:, 0].numel()),
            "not the positions of a kernel",
        ),
        (
            slip(by_hand, count=lambda x, features: features[0, 0].numel()),
            "not the positions of a kernel",
        ),
        (slip(by_hand, count=lambda x, features: features.numel()), "not the positions of a kernel"),
        (slip(by_hand, front=lambda t: 1.0), r"sqrt\(t\) is missing in front"),
        (slip(by_hand, inside=0), "in grad R"),
        (slip(by_hand, outside=0), "in the derivative of J"),
        (slip(by_hand, inside=0, outside=0), "where its slope beta' belongs$"),
        (step_gradient, "new coefficients are wanted"),
        (step_in_place, "argument number 1 in place"),
        (step_not_a_leaf, "does not require grad"),
        (step_forgets_to_return, "`return` missing"),
    ],
}
