r"""Gaussian mixtures under Gaussian smoothing (Kobler & Pock 2023, section 2, eq. 1 and theorem 2.2).

A mixture ``f_X = sum_i w_i N(mu_i, Sigma_i)`` convolved with ``N(0, t I)`` is again a mixture, so its energy
and all derivatives are known in closed form. With ``P_i = (Sigma_i + t I)^-1``, ``a_i = P_i (mu_i - y)`` and
the responsibilities ``g_i(y, t)`` (the probability that y came from component i):

    F(y, t) = -log sum_i w_i N(y; mu_i, Sigma_i + t I)
    grad F  = -sum_i g_i a_i
    hess F  =  sum_i g_i P_i - Cov_g(a),     Cov_g(a) = sum_i g_i (a_i - a_bar)(a_i - a_bar)^T

The covariance is evaluated in this centred form: ``sum g a a^T - a_bar a_bar^T`` loses every digit far out,
where the ``a_i`` are large and almost equal. The covariances are diagonalised once,
``Sigma_i = Q_i diag(lambda_i) Q_i^T``, so every t costs the same as a diagonal mixture. Everything is
float64, on the CPU, and goes through logsumexp.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gnclib.checks import as_time
from gnclib.gmm import threshold


class GaussianMixture:
    """Gaussian mixture ``sum_i w_i N(mu_i, Sigma_i)`` with the smoothed energy of eq. 1.

    On the line ``y`` is (B,) and `hessian` gives (B,); with means (K, d) they are (B, d) and (B, d, d). All results
    are float64. Components of weight 0 are carried but never matter.

    Parameters
    ----------
    weights : (K,)
        On the simplex: >= 0, sum 1 up to 1e-6; then normalised to 1 in float64.
    means : (K,) on the line, or (K, d)
    variances : (K,) or (K, d, d)
        Isotropic variances >= 0 (0 is a point mass), or symmetric positive definite covariances.

    Raises
    ------
    ValueError
        Naming the argument that is wrong (shape, nan, off the simplex, not positive definite). So do all methods.
    """

    def __init__(self, weights, means, variances):
        self.weights = _finite("weights", weights)
        self.means = _finite("means", means)
        self.variances = _finite("variances", variances)
        self._check_shapes()
        total = self.weights.sum().item()
        if (self.weights < 0).any() or abs(total - 1) > 1e-6:
            raise ValueError(
                f"weights must lie on the simplex (>= 0, sum 1), got smallest {self.weights.min().item():.6g} "
                f"and sum {total:.6g}"
            )
        if abs(total - 1) > 1e-12:  # written-out decimals stay as they are
            self.weights = self.weights / total
        active = self.weights > 0
        means = self.means if self.means.ndim == 2 else self.means[:, None]
        eigenvalues, vectors = self._diagonalise(means.shape[1])
        self._log_w, self._mu = self.weights[active].log(), means[active]  # (K,), (K, d)
        self._lam = eigenvalues[active]  # (K, d)
        self._q = None if vectors is None else vectors[active]  # (K, d, d)

    def _check_shapes(self):
        w, m, v = self.weights, self.means, self.variances
        if w.ndim != 1 or len(w) == 0:
            raise ValueError(f"weights must have shape (K,) with K >= 1, got {tuple(w.shape)}")
        if m.ndim not in (1, 2) or len(m) != len(w) or m.numel() == 0:
            raise ValueError(f"means must have shape ({len(w)},) or ({len(w)}, d), got {tuple(m.shape)}")
        wanted = [(len(w),)] + ([(len(w), m.shape[1], m.shape[1])] if m.ndim == 2 else [])
        if tuple(v.shape) not in wanted:
            shapes = " or ".join(map(str, wanted))
            raise ValueError(f"variances must have shape {shapes} for these means, got {tuple(v.shape)}")

    def _diagonalise(self, d: int) -> tuple[Tensor, Tensor | None]:
        v = self.variances
        if v.ndim == 1:
            if (v < 0).any():
                raise ValueError(f"variances must be >= 0, number {int(v.argmin())} is {v.min().item():.6g}")
            return v[:, None].expand(-1, d), None
        asymmetry = (v - v.mT).abs().amax((1, 2))
        if (asymmetry > 1e-10 * v.abs().amax((1, 2))).any():
            raise ValueError(f"variances must be symmetric, matrix {int(asymmetry.argmax())} is not")
        eigenvalues, vectors = torch.linalg.eigh((v + v.mT) / 2)
        bad = (eigenvalues[:, 0] <= 1e-13 * eigenvalues[:, -1].abs()).nonzero().flatten()
        if len(bad):
            k = int(bad[0])
            raise ValueError(
                f"variances must be symmetric positive definite, matrix {k} has the eigenvalue "
                f"{eigenvalues[k, 0].item():.6g}"
            )
        return eigenvalues, vectors

    @property
    def dim(self) -> int:
        """Dimension d of the space."""
        return self._mu.shape[1]

    @property
    def on_line(self) -> bool:
        """True when points are (B,) instead of (B, d)."""
        return self.means.ndim == 1

    def __repr__(self) -> str:
        return f"GaussianMixture(K={len(self.weights)}, d={self.dim})"

    def _points(self, y) -> Tensor:
        y = torch.as_tensor(y, dtype=torch.float64, device="cpu")
        if self.on_line and y.ndim == 1:
            y = y[:, None]
        elif self.on_line or y.ndim != 2 or y.shape[1] != self.dim:
            wanted = "(B,)" if self.on_line else f"(B, {self.dim})"
            raise ValueError(f"y must have shape {wanted}, got {tuple(y.shape)}")
        if not torch.isfinite(y.detach()).all():
            raise ValueError("y must be finite, got nan or inf")
        return y  # (B, d)

    def _terms(self, y, t) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log(w_i N_i) (B, K); u_i = Q_i^T (mu_i - y) and p_i, the eigenvalues of P_i, (B, K, d); t (B,)."""
        y = self._points(y)
        t = as_time(t, len(y), like=y)
        v = self._lam + t[:, None, None]  # (B, K, d)
        if (v.detach() <= 0).any():
            raise ValueError("t = 0 needs positive variances: a point mass has no energy until smoothed")
        delta = self._mu - y[:, None, :]
        u = delta if self._q is None else torch.einsum("kji,bkj->bki", self._q, delta)
        log_pdf = -0.5 * (u.square() / v + (2 * math.pi * v).log()).sum(-1)
        return self._log_w + log_pdf, u, 1 / v, t

    def _rotate(self, u: Tensor) -> Tensor:
        return u if self._q is None else torch.einsum("kij,bkj->bki", self._q, u)

    def energy(self, y, t) -> Tensor:
        """``F(y, t) = -log f_Y(y | t)``, eq. 1, (B,); normalised, so exp(-F) integrates to one.

        Parameters
        ----------
        y : (B,) on the line, else (B, d)
        t : float or (B,)
            Noise variance >= 0; > 0 if a component is a point mass.
        """
        return -self._terms(y, t)[0].logsumexp(-1)

    def grad(self, y, t) -> Tensor:
        """``grad_1 F = -sum_i g_i P_i (mu_i - y)``, shaped like y: minus the score."""
        logits, u, p, _ = self._terms(y, t)
        a = self._rotate(u * p)
        return self._shape(-(logits.softmax(-1)[..., None] * a).sum(1))

    def hessian(self, y, t) -> Tensor:
        """``hess F = sum_i g_i P_i - Cov_g(a)`` (appendix A), (B,) or (B, d, d)."""
        logits, u, p, _ = self._terms(y, t)
        g, a = logits.softmax(-1), self._rotate(u * p)
        centred = a - (g[..., None] * a).sum(1, keepdim=True)  # (B, K, d)
        cov = torch.einsum("bk,bki,bkj->bij", g, centred, centred)
        if self._q is None:
            mean_p = torch.diag_embed((g[..., None] * p).sum(1))
        else:
            mean_p = torch.einsum("bk,kil,bkl,kjl->bij", g, self._q, p, self._q)
        return (mean_p - cov)[:, 0, 0] if self.on_line else mean_p - cov

    def hvp(self, y, t, v) -> Tensor:
        """``hess F`` times v, shaped like y and v: the energy's contract for :mod:`gnclib.restore.posterior`."""
        v, hessian = self._points(v), self.hessian(y, t)
        if len(v) != len(self._points(y)):
            raise ValueError(f"there must be as many v as y, got {len(v)} and {len(self._points(y))}")
        return self._shape((hessian.reshape(-1, self.dim, self.dim) @ v[..., None])[..., 0])

    def dtau(self, y, t, *, order: int = 2) -> tuple[Tensor, ...]:
        """The derivatives of F in ``tau = 0.5 log t`` up to ``order`` (1 or 2), as many (B,); closed form, t > 0.

        With ``l_i = log N_i``: ``d_t F = -E_g[d_t l]``, ``d_tt F = -E_g[d_tt l] - Var_g(d_t l)``, then the chain
        rule ``d_tau F = 2 t d_t F``, ``d_tautau F = 4 t d_t F + 4 t^2 d_tt F``.
        """
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order!r}")
        logits, u, p, t = self._terms(y, t)
        if (t.detach() <= 0).any():
            raise ValueError("dtau needs t > 0: tau = 0.5 log t is -inf at t = 0")
        g, tp = logits.softmax(-1), t[:, None, None] * p
        first = (tp * (u.square() * p - 1)).sum(-1)  # 2 t d_t l, (B, K)
        second = (2 * tp * tp * (1 - 2 * u.square() * p)).sum(-1)  # 4 t^2 d_tt l
        mean = (g * first).sum(-1)
        spread = (g * (first - mean[:, None]).square()).sum(-1)
        return (-mean, -2 * mean - (g * second).sum(-1) - spread)[:order]

    def denoise(self, y, t) -> Tensor:
        """Tweedie / MMSE estimate ``E[X | X + sqrt(t) Z = y] = y - t grad_1 F(y, t)``, shaped like y.

        Evaluated as the posterior mean ``sum_i g_i (mu_i + Sigma_i P_i (y - mu_i))``, which stays in the hull of
        the component means instead of cancelling two large terms.
        """
        logits, u, p, _ = self._terms(y, t)
        estimate = self._mu - self._rotate(u * self._lam * p)  # (B, K, d)
        return self._shape((logits.softmax(-1)[..., None] * estimate).sum(1))

    def _shape(self, vectors: Tensor) -> Tensor:
        return vectors[:, 0] if self.on_line else vectors

    def sample(self, n: int, generator: torch.Generator | None = None, t: float = 0.0) -> Tensor:
        """n points of ``X + sqrt(t) Z``: (n,) on the line, else (n, d), float64; t = 0 gives X itself.

        The same seeded generator gives the same sample; None takes torch's global one.
        """
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(f"n must be a whole number >= 1, got {n!r}")
        if not isinstance(generator, torch.Generator | None):
            raise ValueError(f"generator must be a torch.Generator or None, got {generator!r}")
        t = as_time(t, 1, like=self._mu)
        pick = torch.multinomial(self._log_w.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        noise = noise * (self._lam[pick] + t).sqrt()
        if self._q is not None:
            noise = torch.einsum("nij,nj->ni", self._q[pick], noise)
        return self._shape(self._mu[pick] + noise)

    min_hessian = threshold.min_hessian
    convexity_threshold = threshold.convexity_threshold

    def theorem_bound(self, domain=None) -> float:
        """Theorem 2.2: ``diam(X)^2 - min_i lambda_min(Sigma_i)``, or 0 if less; F(., t) is convex on X from there on.

        Parameters
        ----------
        domain : X, optional
            (lo, hi) on the line, or the two corners (lo (d,), hi (d,)) of a box; None takes the convex hull of the
            means, whose diameter is their largest distance.
        """
        if domain is None:
            diameter = self._diameter()
        else:
            ends = _finite("domain", domain)
            ends = ends[:, None] if self.on_line and ends.ndim == 1 else ends  # (2, d)
            if ends.shape != (2, self.dim) or not (ends[0] < ends[1]).all():
                raise ValueError(f"domain must be a pair, lo < hi in all {self.dim} directions, got {domain}")
            if ((self._mu < ends[0]) | (self._mu > ends[1])).any():
                raise ValueError(f"theorem 2.2 needs every mean in the domain, {domain} leaves one out")
            diameter = (ends[1] - ends[0]).norm().item()
        return max(diameter**2 - self._lam.min().item(), 0.0)

    def _diameter(self) -> float:
        return torch.cdist(self._mu, self._mu, compute_mode="donot_use_mm_for_euclid_dist").max().item()

    def popoviciu_bound(self) -> float:
        """``max(diam({mu_i})^2 / 4 - s^2, 0)`` for equal isotropic covariances ``s^2 I``.

        Then ``hess F = I/(s^2+t) - Cov_g(mu)/(s^2+t)^2`` and Popoviciu's inequality bounds the covariance by a
        quarter of the squared diameter: F(., t) is convex on ALL of R^d from there on. Not in the paper.
        """
        if self._q is not None or (self._lam != self._lam[0, 0]).any():
            raise ValueError("Popoviciu's bound needs equal isotropic variances, given as shape (K,)")
        return max(self._diameter() ** 2 / 4 - self._lam[0, 0].item(), 0.0)

    def variance_preserving(self, a: float) -> GaussianMixture:
        """Law of ``sqrt(a) X + sqrt(1 - a) Z``: means ``sqrt(a) mu_i``, covariances ``a Sigma_i + (1 - a) I``.

        It is the mixture at ``t = (1 - a)/a``, shrunk by sqrt(a); so it is convex exactly for ``a <= 1/(1 + t*)``.
        """
        if not 0 < a <= 1:
            raise ValueError(f"a must lie in (0, 1], got {a}")
        eye = 1.0 if self.variances.ndim == 1 else torch.eye(self.dim, dtype=torch.float64)
        return GaussianMixture(self.weights, math.sqrt(a) * self.means, a * self.variances + (1 - a) * eye)


def _finite(name: str, value) -> Tensor:
    try:
        value = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be numbers, got {value!r}") from error
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} must be finite, got nan or inf")
    return value


def empirical(points) -> GaussianMixture:
    """Empirical measure ``1/N sum_i delta_{x_i}`` of corollary 2.3: the mixture with all covariances zero.

    Parameters
    ----------
    points : (N,) on the line, or (N, d)
        The energy exists for t > 0 only.

    Raises
    ------
    ValueError
        No points, another shape, nan or inf.
    """
    points = _finite("points", points)
    if points.ndim not in (1, 2) or points.numel() == 0:
        raise ValueError(f"points must have shape (N,) or (N, d) with N >= 1, got {tuple(points.shape)}")
    n = len(points)
    return GaussianMixture(torch.full((n,), 1 / n, dtype=torch.float64), points, torch.zeros(n))


def figure1_mixture() -> GaussianMixture:
    """The five-component mixture of Figure 1 on X = [-1, 1].

    The paper's numbers are lost; these are OUR choice: five separate minima at t = 0, the global one near 0.35.
    The variances are sigma = (.05, .08, .04, .06, .10) squared, written out so that each decimal is exact.
    """
    return GaussianMixture(
        weights=[0.15, 0.20, 0.10, 0.30, 0.25],
        means=[-0.8, -0.4, 0.0, 0.35, 0.75],
        variances=[0.0025, 0.0064, 0.0016, 0.0036, 0.01],
    )
