"""Lesson 4."""

import math

import torch
import torch.nn.functional as F

from gnclib.spline import quartic_bspline

# --- 4.1 cosine filters ---------------------------------------------------------------------------------------------


def dct_same_factor(s):
    k = torch.arange(s, dtype=torch.float64)
    rows = math.sqrt(2 / s) * torch.cos(math.pi * torch.outer(k, k + 0.5) / s)
    return torch.einsum("ax,by->abxy", rows, rows).reshape(s * s, s, s)[1:]


def dct_not_scaled(s):
    k = torch.arange(s, dtype=torch.float64)
    rows = torch.cos(math.pi * torch.outer(k, k + 0.5) / s)
    return torch.einsum("ax,by->abxy", rows, rows).reshape(s * s, s, s)[1:]


def dct_at_corners(s):
    k = torch.arange(s, dtype=torch.float64)
    rows = math.sqrt(2 / s) * torch.cos(math.pi * torch.outer(k, k) / s)
    rows[0] /= math.sqrt(2)
    return torch.einsum("ax,by->abxy", rows, rows).reshape(s * s, s, s)[1:]


def _rows(s):
    k = torch.arange(s, dtype=torch.float64)
    rows = math.sqrt(2 / s) * torch.cos(math.pi * torch.outer(k, k + 0.5) / s)
    rows[0] = 1 / math.sqrt(s)
    return rows


def dct_transposed(s):
    filters = [torch.outer(b, a) for a in _rows(s) for b in _rows(s)]
    return torch.stack(filters[1:])


def dct_with_constant(s):
    return torch.stack([torch.outer(a, b) for a in _rows(s) for b in _rows(s)])


def dct_last_left_out(s):
    return torch.stack([torch.outer(a, b) for a in _rows(s) for b in _rows(s)][:-1])


def dct_as_a_list(s):
    return [torch.outer(a, b) for a in _rows(s) for b in _rows(s)][1:]


def dct_normalised_twice(s):
    filters = torch.stack([torch.outer(a, b) for a in _rows(s) for b in _rows(s)][1:])
    return filters / filters.abs().amax((1, 2), keepdim=True)


def dct_of_integers(s):
    k = torch.arange(s)
    rows = torch.cos(math.pi * torch.outer(k, k + 0.5) / s)
    rows = rows / rows.norm(dim=1, keepdim=True)
    return torch.einsum("ax,by->abxy", rows, rows).reshape(s * s, s, s)[1:]


def dct_cast_at_the_end(s):
    return dct_of_integers(s).double()


# --- 4.2 B-splines --------------------------------------------------------------------------------------------------


def spline_not_divided(u, degree):
    if degree == 0:
        return ((u >= -0.5) & (u < 0.5)).double()
    left, right = spline_not_divided(u + 0.5, degree - 1), spline_not_divided(u - 0.5, degree - 1)
    return ((degree + 1) / 2 + u) * left + ((degree + 1) / 2 - u) * right


def spline_shifted_by_one(u, degree):
    if degree == 0:
        return ((u >= -0.5) & (u < 0.5)).double()
    left, right = spline_shifted_by_one(u + 1, degree - 1), spline_shifted_by_one(u - 1, degree - 1)
    return (((degree + 1) / 2 + u) * left + ((degree + 1) / 2 - u) * right) / degree


def spline_exchanged(u, degree):
    if degree == 0:
        return ((u >= -0.5) & (u < 0.5)).double()
    left, right = spline_exchanged(u + 0.5, degree - 1), spline_exchanged(u - 0.5, degree - 1)
    return (((degree + 1) / 2 - u) * left + ((degree + 1) / 2 + u) * right) / degree


def spline_of_a_box_at_zero(u, degree):
    if degree == 0:
        return ((u >= 0) & (u < 1)).double()
    left, right = spline_of_a_box_at_zero(u + 0.5, degree - 1), spline_of_a_box_at_zero(u - 0.5, degree - 1)
    return (((degree + 1) / 2 + u) * left + ((degree + 1) / 2 - u) * right) / degree


def spline_narrow_weights(u, degree):
    if degree == 0:
        return ((u >= -0.5) & (u < 0.5)).double()
    left, right = spline_narrow_weights(u + 0.5, degree - 1), spline_narrow_weights(u - 0.5, degree - 1)
    return ((degree / 2 + u) * left + (degree / 2 - u) * right) / degree


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


def spline_of_a_closed_box(u, degree):
    if degree == 0:
        return (u.abs() <= 0.5).double()
    left, right = spline_of_a_closed_box(u + 0.5, degree - 1), spline_of_a_closed_box(u - 0.5, degree - 1)
    return (((degree + 1) / 2 + u) * left + ((degree + 1) / 2 - u) * right) / degree


def spline_of_an_open_box(u, degree):
    if degree == 0:
        return (u.abs() < 0.5).double()
    left, right = spline_of_an_open_box(u + 0.5, degree - 1), spline_of_an_open_box(u - 0.5, degree - 1)
    return (((degree + 1) / 2 + u) * left + ((degree + 1) / 2 - u) * right) / degree


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


def basis(x, nodes):
    return quartic_bspline((x[..., None] - nodes) / (nodes[1] - nodes[0]))


def potential_of_log_t(x, w, t, mu, nu):
    return torch.einsum("bcmn,cnj,bj->bcm", basis(x, mu), w, basis(t.log(), nu))


def potential_of_sigma(x, w, t, mu, nu):
    return torch.einsum("bcmn,cnj,bj->bcm", basis(x, mu), w, basis(t.sqrt(), nu))


def potential_one_spacing(x, w, t, mu, nu):
    h = mu[1] - mu[0]
    b_x, b_tau = quartic_bspline((x[..., None] - mu) / h), quartic_bspline((t.log()[:, None] / 2 - nu) / h)
    return torch.einsum("bcmn,cnj,bj->bcm", b_x, w, b_tau)


def potential_without_spacing(x, w, t, mu, nu):
    b_x, b_tau = quartic_bspline(x[..., None] - mu), quartic_bspline(t.log()[:, None] / 2 - nu)
    return torch.einsum("bcmn,cnj,bj->bcm", b_x, w, b_tau)


def potential_at_the_first_level(x, w, t, mu, nu):
    return torch.einsum("bcmn,cnj,j->bcm", basis(x, mu), w, basis(0.5 * t[0].log(), nu))


def potential_of_the_first_channel(x, w, t, mu, nu):
    return torch.einsum("bcmn,nj,bj->bcm", basis(x, mu), w[0], basis(0.5 * t.log(), nu))


def potential_summed(x, w, t, mu, nu):
    return torch.einsum("bcmn,cnj,bj->b", basis(x, mu), w, basis(0.5 * t.log(), nu))


def potential_divided(x, w, t, mu, nu):
    return torch.einsum("bcmn,cnj,bj->bcm", basis(x, mu), w, basis(0.5 * t.log(), nu)) / (mu[1] - mu[0])


def potential_divides_in_place(x, w, t, mu, nu):
    x -= mu[0]
    return torch.einsum("bcmn,cnj,bj->bcm", basis(x, mu - mu[0]), w, basis(0.5 * t.log(), nu))


def potential_decimal(x, w, t, mu, nu):
    return torch.einsum("bcmn,cnj,bj->bcm", basis(x, mu), w, basis(t.sqrt().log10(), nu))


def potential_decimal_of_t(x, w, t, mu, nu):
    return torch.einsum("bcmn,cnj,bj->bcm", basis(x, mu), w, basis(t.log10(), nu))


def potential_without_dtau(x, w, t, mu, nu):
    b_tau = quartic_bspline(0.5 * t.log()[:, None] - nu)
    return torch.einsum("bcmn,cnj,bj->bcm", basis(x, mu), w, b_tau)


def potential_without_dx(x, w, t, mu, nu):
    return torch.einsum("bcmn,cnj,bj->bcm", quartic_bspline(x[..., None] - mu), w, basis(0.5 * t.log(), nu))


def potential_spacing_of_nu(x, w, t, mu, nu):
    b_x = quartic_bspline((x[..., None] - mu) / (nu[1] - nu[0]))
    return torch.einsum("bcmn,cnj,bj->bcm", b_x, w, basis(0.5 * t.log(), nu))


def potential_of_exchanged_spacings(x, w, t, mu, nu):
    b_x = quartic_bspline((x[..., None] - mu) / (nu[1] - nu[0]))
    b_tau = quartic_bspline((0.5 * t.log()[:, None] - nu) / (mu[1] - mu[0]))
    return torch.einsum("bcmn,cnj,bj->bcm", b_x, w, b_tau)


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


def loss(a, x, z, t, kernels, mu, noise=None, gain=None, sign=-1, spacing=None):
    y = x + (math.sqrt(t) if noise is None else noise) * z
    h = mu[1] - mu[0]
    features = F.conv2d(y, kernels)
    basis = quartic_bspline((features[..., None] - mu) / h, 1) / (h if spacing is None else spacing)
    slope = (basis * a[:, None, None, :]).sum(-1)
    grad = F.conv_transpose2d(slope, kernels)
    return 0.5 * ((math.sqrt(t) if gain is None else gain) * grad + sign * z) ** 2


def descend(a, rate, value):
    return a.detach() - rate * torch.autograd.grad(value, a)[0]


def step_up(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    return a + rate * torch.autograd.grad(loss(a, x, z, t, kernels, mu).mean(), a)[0]


def step_plus(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    return descend(a, rate, loss(a, x, z, t, kernels, mu, sign=1).mean())


def step_t_is_sigma(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    return descend(a, rate, loss(a, x, z, t, kernels, mu, noise=t).mean())


def step_without_noise(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    return descend(a, rate, loss(a, x, z, t, kernels, mu, noise=0).mean())


def step_t_grad(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    return descend(a, rate, loss(a, x, z, t, kernels, mu, gain=t).mean())


def step_without_half(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    return descend(a, rate, 2 * loss(a, x, z, t, kernels, mu).mean())


def step_sum(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    return descend(a, rate, loss(a, x, z, t, kernels, mu).sum())


def step_mean_of_images(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    return descend(a, rate, loss(a, x, z, t, kernels, mu).sum((1, 2, 3)).mean())


def step_no_spacing(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    return descend(a, rate, loss(a, x, z, t, kernels, mu, spacing=1).mean())


def by_hand(a, x, z, t, kernels, mu, rate, n=None, front=None, inside=1, outside=1):
    h = mu[1] - mu[0]
    y = x + math.sqrt(t) * z
    u = (F.conv2d(y, kernels)[..., None] - mu) / h
    slope = (quartic_bspline(u, inside) / h * a[:, None, None, :]).sum(-1)
    r = math.sqrt(t) * F.conv_transpose2d(slope, kernels) - z
    kr = F.conv2d(r, kernels)
    total = (kr[..., None] * quartic_bspline(u, outside) / h).sum((0, 2, 3))
    return a - rate * (math.sqrt(t) if front is None else front) / (n or x.numel()) * total


def step_one_image(a, x, z, t, kernels, mu, rate):
    return by_hand(a, x, z, t, kernels, mu, rate, n=x[0].numel())


def step_positions(a, x, z, t, kernels, mu, rate):
    return by_hand(a, x, z, t, kernels, mu, rate, n=F.conv2d(x, kernels)[:, 0].numel())


def step_positions_of_one(a, x, z, t, kernels, mu, rate):
    h, w = F.conv2d(x, kernels).shape[-2:]
    return by_hand(a, x, z, t, kernels, mu, rate, n=h * w)


def step_features(a, x, z, t, kernels, mu, rate):
    return by_hand(a, x, z, t, kernels, mu, rate, n=F.conv2d(x, kernels).numel())


def step_no_root_in_front(a, x, z, t, kernels, mu, rate):
    return by_hand(a, x, z, t, kernels, mu, rate, front=1.0)


def step_beta_inside(a, x, z, t, kernels, mu, rate):
    return by_hand(a, x, z, t, kernels, mu, rate, inside=0)


def step_beta_outside(a, x, z, t, kernels, mu, rate):
    return by_hand(a, x, z, t, kernels, mu, rate, outside=0)


def step_beta_everywhere(a, x, z, t, kernels, mu, rate):
    return by_hand(a, x, z, t, kernels, mu, rate, inside=0, outside=0)


def step_gradient(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    return torch.autograd.grad(loss(a, x, z, t, kernels, mu).mean(), a)[0]


def step_in_place(a, x, z, t, kernels, mu, rate):
    b = a.clone().requires_grad_()
    a -= rate * torch.autograd.grad(loss(b, x, z, t, kernels, mu).mean(), b)[0]
    return a


def step_not_a_leaf(a, x, z, t, kernels, mu, rate):
    return a - rate * torch.autograd.grad(loss(a, x, z, t, kernels, mu).mean(), a)[0]


def step_forgets_to_return(a, x, z, t, kernels, mu, rate):
    a = a.clone().requires_grad_()
    a = descend(a, rate, loss(a, x, z, t, kernels, mu).mean())


WRONG = {
    "4.1": [
        (dct_same_factor, r"row k = 0 has norm sqrt\(2\)"),
        (dct_not_scaled, "bare cosines"),
        (dct_at_corners, "middle n"),
        (dct_transposed, "rows and columns are exchanged"),
        (dct_with_constant, r"has the shape \(25, 5, 5\), \(24, 5, 5\) is wanted"),
        (dct_last_left_out, "constant one still among them"),
        (dct_as_a_list, "a torch.Tensor is wanted"),
        (dct_normalised_twice, "not all filters have norm one"),
        (dct_of_integers, "single precision only"),
        (dct_cast_at_the_end, "right to some digits only: a tensor on the way"),
    ],
    "4.2": [
        (spline_not_divided, "degree! times too large"),
        (spline_shifted_by_one, "shift u by 1/2"),
        (spline_exchanged, "weights are exchanged"),
        (spline_of_a_box_at_zero, "box is not centred"),
        (spline_narrow_weights, "vanish at the ends"),
        (spline_always_quartic, "degree is not used"),
        (spline_of_booleans, "floating-point"),
        (spline_powers_of_the_other_side, "values are negative"),
        (spline_of_a_closed_box, "half-open, count its ends once"),
        (spline_of_an_open_box, "half-open, count its ends once"),
        (spline_of_clamped_powers, "degree 0"),
    ],
    "4.3": WRONG_PARABOLAS,
    "4.4": [
        (potential_of_exchanged_spacings, "spacings are exchanged"),
        (
            lambda x, w, t, mu, nu: potential_divided(x, w, t, mu, nu) / (nu[1] - nu[0]),
            "divided by their spacings",
        ),
        (potential_of_log_t, "twice the right tau"),
        (potential_of_sigma, "not in sigma"),
        (potential_one_spacing, "their own spacing"),
        (potential_without_spacing, "measured in spacings"),
        (potential_at_the_first_level, "noise level of the first"),
        (potential_of_the_first_channel, "coefficients of its own"),
        (potential_summed, "shape"),
        (potential_divided, "the spacing of mu times too small"),
        (potential_decimal, "NATURAL"),
        (potential_decimal_of_t, "decimal one of t"),
        (potential_without_dtau, "distances in tau"),
        (potential_without_dx, "distances in x"),
        (potential_spacing_of_nu, "not that of nu"),
        (potential_divides_in_place, "argument number 1 in place"),
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
        (step_up, "goes UP"),
        (step_plus, "MINUS the score"),
        (step_t_is_sigma, "t is the variance"),
        (step_without_noise, "noisy image y"),
        (step_t_grad, "not t grad R"),
        (step_without_half, "twice too long"),
        (step_sum, "here it is their sum"),
        (step_mean_of_images, "not only over the images"),
        (step_no_spacing, "1/h is missing"),
        (step_one_image, "those of ONE image"),
        (step_positions, "not the positions of a kernel"),
        (step_positions_of_one, "not the positions of a kernel"),
        (step_features, "not the positions of a kernel"),
        (step_no_root_in_front, r"sqrt\(t\) is missing in front"),
        (step_beta_inside, "in grad R"),
        (step_beta_outside, "in the derivative of J"),
        (step_beta_everywhere, "where its slope beta' belongs$"),
        (step_gradient, "new coefficients are wanted"),
        (step_in_place, "argument number 1 in place"),
        (step_not_a_leaf, "does not require grad"),
        (step_forgets_to_return, "`return` missing"),
    ],
}
