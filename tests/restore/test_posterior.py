"""Posterior by second-order Tweedie against closed forms of Gaussians and mixtures, and dense Hessians."""

import math

import numpy as np
import pytest
import torch

from gnclib import denoise_gnc, load_prior
from gnclib.gmm import GaussianMixture, figure1_mixture
from gnclib.images import data
from gnclib.restore.posterior import FLOOR, doubts, flaws, posterior_components, posterior_moments
from gnclib.restore.tiles import Tiled

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Gaussian:
    """Images (B, 1, h, w) with the covariance S: R(y, t) = y^T (S + t)^-1 y / 2 + log det(S + t) / 2."""

    def __init__(self, covariance, shape):
        self.values, self.vectors = torch.linalg.eigh(covariance)
        self.covariance, self.shape = covariance, shape

    def _times(self, f, y):
        return ((y.flatten(1) @ self.vectors * f) @ self.vectors.T).reshape(y.shape)

    def energy(self, y, t):
        squared = (y * self.grad(y, t)).flatten(1).sum(1)
        return (squared + (self.values + t).log().sum()) / 2

    def grad(self, y, t):
        return torch.cat(
            [self._times(1 / (self.values + s), v[None]) for v, s in zip(y, self.ts(y, t), strict=True)]
        )

    def ts(self, y, t):
        return torch.as_tensor(t, dtype=F64).expand(len(y))

    def hvp(self, y, t, v):
        return self.grad(v, t)

    def posterior(self, t):
        s = self.covariance
        return s - s @ torch.linalg.inv(s + t * torch.eye(len(s), dtype=F64)) @ s


def smooth(height=6, width=5, length=1.5, variance=0.05):
    """Gaussian images whose correlation falls with the distance."""
    at = torch.cartesian_prod(torch.arange(height, dtype=F64), torch.arange(width, dtype=F64))
    return Gaussian(variance * torch.exp(-torch.cdist(at, at) / length), (height, width))


def mixture_in_space(d=3):
    roots = draw(3, d, d, seed=1) / 2
    return GaussianMixture(
        [0.5, 0.2, 0.3], draw(3, d, seed=2), roots @ roots.mT + 0.05 * torch.eye(d, dtype=F64)
    )


def test_mixtures_in_closed_form():
    """Given the component, x is Gaussian with C_i = S_i - S_i P_i S_i; the law of total covariance does the rest."""
    t, y = 0.3, draw(5, 3, seed=3)
    mixture = mixture_in_space()
    found = posterior_moments(mixture, y, t)
    precision = torch.linalg.inv(mixture.variances + t * torch.eye(3, dtype=F64))  # (K, d, d)
    offset = y[:, None] - mixture.means
    log = -0.5 * (torch.einsum("bki,kij,bkj->bk", offset, precision, offset) - precision.logdet())
    g = (mixture.weights.log() + log).softmax(1)
    means = mixture.means + torch.einsum("kij,kjl,bkl->bki", mixture.variances, precision, offset)
    mean = (g[..., None] * means).sum(1)
    inner = mixture.variances - mixture.variances @ precision @ mixture.variances
    variance = torch.einsum("bk,kii->bi", g, inner) + (g[..., None] * (means - mean[:, None]) ** 2).sum(1)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.variance, variance)
    least = FLOOR * variance.mean(1, keepdim=True)
    torch.testing.assert_close(found.std, torch.maximum(variance, least).sqrt())
    torch.testing.assert_close(found.dimension, variance.sum(1) / t)
    assert not found.error.any()


def test_on_the_line_by_quadrature():
    mixture, t, y = figure1_mixture(), 0.02, torch.tensor([-0.6, 0.1, 0.5], dtype=F64)
    x = torch.linspace(-3, 3, 60001, dtype=F64)
    density = torch.exp(-mixture.energy(x, 0.0) - (y[:, None] - x) ** 2 / (2 * t))
    density = density / density.sum(1, keepdim=True)
    mean = density @ x
    variance = (density * (x - mean[:, None]) ** 2).sum(1)
    found = posterior_moments(mixture, y, t)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.variance, variance)


def test_gaussian_images():
    """Each image with its own t; SURE of the right energy and tr Cov have the same mean over y."""
    energy, t = smooth(), torch.tensor([0.01, 0.1], dtype=F64)
    y = draw(2, 1, 6, 5)
    found = posterior_moments(energy, y, t)
    for k in range(2):
        cov = energy.posterior(t[k])
        torch.testing.assert_close(
            found.mean[k].flatten(), y[k].flatten() - t[k] * energy.grad(y, t)[k].flatten()
        )
        torch.testing.assert_close(found.variance[k].flatten(), cov.diagonal())
        pairs = cov.reshape(6, 5, 6, 5)
        below = sum(pairs[i, j, i + 1, j] for i in range(5) for j in range(5))
        beside = sum(pairs[i, j, i, j + 1] for i in range(6) for j in range(4))
        torch.testing.assert_close(found.neighbours[:, k], torch.stack([below, beside]))
    alone = posterior_moments(energy, y[1:], t[1:])
    torch.testing.assert_close(alone.variance, found.variance[1:])
    torch.testing.assert_close(alone.risk, found.risk[1:])


@pytest.mark.parametrize("belief", [0.05, 0.005])
def test_risk_is_unbiased_even_if_the_energy_is_wrong(belief):
    """Means over 4,000 noisy images, with their standard errors; tr Cov alone trusts the energy."""
    truth, energy, t, count = smooth(), smooth(variance=belief), 0.02, 4000
    root = torch.linalg.cholesky(truth.covariance)
    x = (draw(count, 30, seed=4) @ root.T).reshape(count, 1, 6, 5)
    y = x + math.sqrt(t) * draw(count, 1, 6, 5, seed=5)
    # one Hessian for all y: the trace is that of one image
    one = posterior_moments(energy, y[:1], t)
    mean = y - t * energy.grad(y, t)
    squared = (mean - x).flatten(1).square().sum(1)
    risk = (y - mean).flatten(1).square().sum(1) - 30 * t + 2 * one.total
    torch.testing.assert_close(one.risk, risk[:1])
    difference = risk - squared
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(count)
    ratio = (squared.mean() / one.total).item()
    assert ratio == pytest.approx(1, abs=0.02) if belief == 0.05 else ratio > 1.5


def test_components_of_gaussian_images():
    energy, t, y = smooth(), 0.05, draw(1, 1, 6, 5)
    values, vectors = torch.linalg.eigh(energy.posterior(t))
    variances, images = posterior_components(energy, y, t, 4)
    torch.testing.assert_close(variances, values.flip(0)[:4], rtol=1e-6, atol=0)
    torch.testing.assert_close(images.flatten(1).norm(dim=1), torch.ones(4, dtype=F64))
    assert ((images.flatten(1) * vectors.T.flip(0)[:4]).sum(1).abs() > 1 - 1e-6).all()
    box = slice(1, 4), slice(2, 5)
    inside = energy.posterior(t).reshape(6, 5, 6, 5)[1:4, 2:5, 1:4, 2:5].reshape(9, 9)
    variances, images = posterior_components(energy, y, t, 3, box)
    torch.testing.assert_close(variances, torch.linalg.eigvalsh(inside).flip(0)[:3], rtol=1e-6, atol=0)
    assert images.shape == (3, 3, 3)
    with pytest.raises(ValueError, match="one image"):
        posterior_components(energy, draw(2, 1, 6, 5), t, 1)


@pytest.fixture(scope="module")
def patch():
    """A noisy patch of 12 x 12 pixels, R1 in float64, and the dense Hessian by automatic differentiation."""
    prior, t = load_prior("R1").double(), (25 / 255) ** 2
    y = data.add_noise(data.embedded()["camera"][..., 150:162, 230:242], 25 / 255, 0).double()
    dense = torch.func.hessian(lambda flat: prior.energy(flat.view(1, 1, 12, 12), t).sum())(y.flatten())
    return prior, y, t, dense


def test_the_diagonal_of_a_learned_energy(patch):
    """Exact with lattices as wide as the kernels; else the stated error is the true one within a factor of 2."""
    prior, y, t, dense = patch
    variance = t * (1 - t * dense.diagonal()).view_as(y)
    found = posterior_moments(prior, y, t)
    torch.testing.assert_close(found.variance, variance)
    torch.testing.assert_close(found.mean, y - t * prior.grad(y, t))
    assert found.error.item() == 0
    pairs = dense.view(12, 12, 12, 12)
    vertical = sum(pairs[i, j, i + 1, j] for i in range(11) for j in range(12))
    torch.testing.assert_close(
        found.neighbours[0, 0], -(t**2) * vertical, rtol=0.02, atol=0
    )  # probes touch there
    rough = [posterior_moments(prior, y, t, spacing=3, seed=seed) for seed in range(12)]
    errors = torch.stack([(p.variance - variance).square().mean().sqrt() for p in rough])
    stated = torch.stack([p.error * p.total / y.numel() for p in rough])
    assert 0.5 < (stated.square().mean() / errors.square().mean()).sqrt() < 2
    mean = torch.stack([p.variance for p in rough]).mean(0)
    assert (mean - variance).square().mean().sqrt() < 3 / math.sqrt(12) * errors.mean()
    values, _ = posterior_components(prior, y, t, 3)
    expected = t * (1 - t * torch.linalg.eigvalsh(dense)[:3])
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=0)


def test_tiles_change_nothing(patch):
    prior, _, t, _ = patch
    y = data.add_noise(data.embedded()["camera"][..., 150:190, 230:265], 0.1, 0).double()
    whole, tiled = (posterior_moments(energy, y, t) for energy in (prior, Tiled(prior, 16)))
    torch.testing.assert_close(tiled.variance, whole.variance)
    torch.testing.assert_close(tiled.mean, whole.mean)


def test_bad_spacing(patch):
    prior, y, t, _ = patch
    with pytest.raises(ValueError, match="spacing of probes"):
        posterior_moments(prior, y, t, spacing=0)
    with pytest.raises(ValueError, match="range"):
        posterior_moments(prior, y, 2.0)


# --- numpy arrays -----------------------------------------------------------------------------------------


def photo(side=96, noise=0.0, seed=0):
    x = data.embedded()["camera"][..., 100 : 100 + side, 220 : 220 + side]
    return data.add_noise(x, noise, seed)[0, 0].numpy() if noise else x[0, 0].numpy()


@pytest.mark.filterwarnings("error")
def test_arrays_and_colour():
    """The same numbers as by hand, no doubt about white noise; in colour the variances of the planes add up."""
    sigma = 25 / 255
    y = photo(noise=sigma)
    image, std = denoise_gnc(y, sigma, scheme="mmse", return_std=True)
    found = posterior_moments(load_prior("R1"), torch.from_numpy(y)[None, None], sigma**2)
    np.testing.assert_allclose(std, found.std[0, 0].numpy(), rtol=1e-4)
    np.testing.assert_allclose(image, found.mean[0, 0].numpy(), atol=1e-5)
    assert std.dtype == y.dtype
    inside = np.abs(image - photo()) < 1.645 * std
    assert 0.85 < inside.mean() < 0.95
    x = data.embedded(colour=True)["astronaut"][..., 40:104, 200:264]
    noisy = data.add_noise(x, sigma, 1).numpy()[:, 0] if x.ndim == 4 else data.add_noise(x, sigma, 1).numpy()
    colour, spread = denoise_gnc(
        noisy, sigma, scheme="mmse", channel_axis=0, colour="opponent", return_std=True
    )
    basis = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    planes = np.einsum("kc,chw->khw", basis, noisy - 0.5).astype(np.float32) + 0.5
    stds = [
        posterior_moments(load_prior("R1"), torch.from_numpy(p)[None, None], sigma**2).std[0, 0].numpy()
        for p in planes
    ]
    np.testing.assert_allclose(spread**2, np.einsum("kc,khw->chw", basis**2, np.square(stds)), rtol=1e-3)
    assert 0.85 < (np.abs(colour - x.numpy().reshape(colour.shape)) < 1.645 * spread).mean() < 0.95


def blurred(noise):
    """Noise of the same power whose neighbours are correlated."""
    z = noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))
    return z / 2


BAD = {
    "the power that this sigma": lambda x, z: x + 1.3 * z,
    "the power": lambda x, z: x + 0.7 * z,
    "expect: another sigma, parts without noise": lambda x, z: np.where(np.arange(96) < 40, 0.0, x + z),
    "not white": lambda x, z: x + blurred(z),
    "cut off at 0 or 1": lambda x, z: (1.5 * x - 0.25 + z).clip(0, 1),
    "in steps of 0.0667": lambda x, z: np.rint(15 * (x + z)) / 15,
}


@pytest.mark.parametrize("reason", BAD)
def test_noise_that_is_not_white_and_gaussian_is_named(reason):
    z = 0.1 * np.random.default_rng(0).standard_normal((96, 96))
    with pytest.warns(UserWarning, match=f"standard deviations are uncertain: .*{reason}"):
        denoise_gnc(BAD[reason](photo(), z), 0.1, scheme="mmse", return_std=True)


def test_a_few_grey_values_at_the_ends_are_no_flaw():
    y = np.random.default_rng(0).uniform(0.05, 0.95, (1, 64, 64))
    for values, share in ((2, 0), (100, 100 / 64**2)):  # of 4096; 1 % are 41
        y.flat[:values] = np.arange(values) % 2
        assert flaws(y, 0.1) == (
            [f"{100 * share:.1f} % of the grey values were cut off at 0 or 1, and the noise with them"]
            if share
            else []
        )


def test_what_is_refused_or_unknown():
    y = photo(noise=0.1)
    with pytest.raises(ValueError, match="range"):
        denoise_gnc(y, 0.005, return_std=True)
    with pytest.raises(ValueError, match="one sigma for all pixels"):
        denoise_gnc(y, np.full(y.shape, 0.1), return_std=True)
    with pytest.warns(UserWarning, match="sigma was estimated"):
        denoise_gnc(y, scheme="mmse", return_std=True)
    with pytest.warns(UserWarning, match="no noise was found"):
        assert np.isnan(denoise_gnc(np.full((40, 40), 0.3), return_std=True)[1]).all()


def test_no_doubt_about_other_photographs():
    prior, levels = load_prior("R1"), (15 / 255, 50 / 255)
    for name in ("camera", "astronaut", "coffee"):
        x = data.embedded()[name][..., 60:188, 100:228]
        for sigma in levels:
            assert doubts(posterior_moments(prior, data.add_noise(x, sigma, 3), sigma**2)) == [], (
                name,
                sigma,
            )
