"""The testable claims of Kobler & Pock 2023, section by section, and the statements added to them here.

`source` tells whose claim it is: "paper" for what the paper says, "ours" for what goes beyond it.
"""

from __future__ import annotations

from typing import NamedTuple

from gnclib.suite.claims_added import ADDED

__all__ = ["CLAIMS", "Claim"]


class Claim(NamedTuple):
    """A testable statement: `id`, one `sentence`, `where` it is made, and its `source` ("paper" or "ours")."""

    id: str
    sentence: str
    where: str
    source: str = "paper"


THEORY = "Section 2 and appendix A"
PRIORS = "Section 3.1 and appendix B"
MATCHING = "Section 3.2"
INVERSE = "Section 4"
EXPERIMENTS = "Section 5"

CLAIMS: tuple[Claim, ...] = (
    # Section 2: convexity
    Claim(
        "T2.2",
        "The energy of a Gaussian mixture with means in a bounded set X, smoothed with variance t, is "
        "convex on X for every t >= diam(X)^2 - min_i lambda_min(Sigma_i).",
        f"{THEORY}, Theorem 2.2",
    ),
    Claim(
        "T2.2-sufficient",
        "Where Sigma_i + tI >= (y - mu_i)(y - mu_i)^T for all i, the Hessian of the smoothed energy at y is "
        "positive semi-definite.",
        f"{THEORY}, proof of Theorem 2.2",
    ),
    Claim(
        "C2.3",
        "The smoothed energy of an empirical measure (N points in X) is convex on X for every t >= "
        "diam(X)^2.",
        f"{THEORY}, Corollary 2.3",
    ),
    Claim(
        "T2.2-gradual",
        "Smoothing is gradual: F(., 0) is non-convex with several minima, which merge one after the other "
        "as t grows, until F(., t) is convex.",
        "Sections 1 and 2",
    ),
    # Section 2: Algorithm 1 and Figure 1
    Claim(
        "A1-tweedie",
        "A gradient step of size t on F(., t) is the MMSE estimate E[X | X + sqrt(t) Z = y] (Tweedie).",
        "Section 2, Algorithm 1",
    ),
    Claim(
        "A1-one-step",
        "With a single step (I = 1) from a large smoothing the GNC flow maps every start to nearly one "
        "point, the mean.",
        "Section 2, Algorithm 1",
    ),
    Claim(
        "A1-arrive",
        "Started where F(., t_1) is convex and with enough steps, the GNC flow carries every start in X to "
        "the global minimiser.",
        "Section 2, Algorithm 1 and Figure 1 (centre)",
    ),
    Claim(
        "F1-left",
        "On [-1, 1] the energy of the five-component mixture (eq. 1) has several local minima at t = 0 and "
        "becomes convex for large t.",
        "Section 2, Figure 1 (left)",
    ),
    Claim(
        "F1-steps",
        "The larger the initial smoothing, the fewer steps are needed until all trajectories arrive at the "
        "global minimiser.",
        "Section 2, Figure 1 (centre)",
    ),
    Claim(
        "F1-threshold",
        "The smallest second derivative of F(., t) on [-1, 1] is negative for small t and changes sign "
        "once, at a threshold below the bound of Theorem 2.2.",
        "Section 2, Figure 1 (right)",
    ),
    # Section 3.1: priors
    Claim(
        "P-splines",
        "Quartic B-splines represent the identity (hidden layers) and a quadratic (last layer) exactly "
        "inside the node range, so the prior starts there.",
        f"{PRIORS}, eqs. 2 and 3",
    ),
    Claim(
        "P-smooth",
        "Potentials made of tensor products of quartic B-splines are C^3 in the feature and in tau, so that "
        "gradients and second tau-derivatives are continuous.",
        f"{PRIORS}, eqs. 2 and 3",
    ),
    Claim(
        "P-wiener",
        "Before training, one step y - t grad_1 R_1 is a Wiener filter: with B the mean over a window of the kernels' "
        "size it is B^2 y + sigma_0^2 / (sigma_0^2 + t) (y - B^2 y).",
        "about section 3.1, eq. 2",
        "ours",
    ),
    Claim(
        "P-gain",
        "Training makes the one-step denoiser of R_1 better than that Wiener filter at every noise level.",
        "about section 3.1, eq. 2",
        "ours",
    ),
    Claim(
        "P-deeper",
        "The shipped priors of two and three layers have a smaller score error than R_1 at every noise level.",
        "about section 3.1, eq. 3",
        "ours",
    ),
    # Section 3.2: joint score matching
    Claim(
        "J-split",
        "With the metric M(t) = diag(t I, lambda) the joint objective splits into an image term weighted by "
        "t and a smoothing term weighted by lambda.",
        f"{MATCHING}, eqs. 4 and 5",
    ),
    Claim(
        "J-denoising",
        "The image part of explicit score matching equals the denoising loss 1/2 ||sqrt(t) grad_1 R - z||^2 "
        "up to a constant.",
        f"{MATCHING}, eqs. 5 and 6",
    ),
    Claim(
        "J-implicit",
        "The smoothing part of explicit score matching equals the implicit loss lambda (1/2 (d_2 R)^2 - "
        "d_22 R) up to a constant, for the uniform prior on a bounded interval as well.",
        f"{MATCHING}, eqs. 5 to 7",
    ),
    Claim(
        "J-recovers",
        "Minimising the loss of eq. 7 recovers the image score grad_1 F(., t) of the data at every "
        "smoothing t.",
        f"{MATCHING}, eq. 7",
    ),
    Claim(
        "J-joint",
        "A prior trained with eq. 7 models the joint density of (y, tau): its tau-derivative matches that "
        "of the true energy.",
        f"{MATCHING}, eq. 7",
    ),
    Claim(
        "J-gap",
        "For a uniform prior on [tau_min, tau_max] the implicit loss lacks a boundary term, and its "
        "minimiser rises steeply at tau_max and falls at tau_min.",
        "about section 3.2, eq. 7",
        "ours",
    ),
    Claim(
        "J-boundary",
        "With the boundary term (E[d_tau R | tau_max] - E[d_tau R | tau_min]) / (tau_max - tau_min) added, "
        "the implicit loss agrees with explicit score matching.",
        "about section 3.2, eq. 7",
        "ours",
    ),
    Claim(
        "J-vanishing",
        "A prior on tau that vanishes at both ends makes the implicit loss correct without a boundary term.",
        "about section 3.2, eq. 7",
        "ours",
    ),
    Claim(
        "J-identity",
        "The true energy satisfies E[d_tau F(y, tau) | tau] = 0 for every tau.",
        "about section 3.2",
        "ours",
    ),
    Claim(
        "J-calibrated",
        "The shipped priors satisfy E[d_tau R | tau] = 0 for every tau, up to 5 % of the number of pixels, on "
        "photographs that they were not trained on.",
        "about section 3.2, eq. 7",
        "ours",
    ),
    Claim(
        "J-tau-denoising",
        "Denoising score matching works in tau as well: regressing d_tau R on n - ||z||^2 equals explicit score "
        "matching up to a constant, without second derivatives and without a boundary term.",
        "about section 3.2, eq. 7",
        "ours",
    ),
    # Section 4: inverse problems
    Claim(
        "I-lipschitz",
        "The gradient of R(., t) in the image is about 1/t-Lipschitz, so the step size t is right.",
        f"{INVERSE}, Algorithm 2",
    ),
    Claim(
        "I-joint-descends",
        "Alternating preconditioned proximal gradient steps on the image and on t (Algorithm 2) decrease "
        "the joint energy D(x) + R(x, t).",
        f"{INVERSE}, Algorithm 2",
    ),
    Claim(
        "I-palm",
        "PALM with Lipschitz backtracking can be used for the joint problem instead.",
        f"{INVERSE}, Algorithm 2",
    ),
    Claim(
        "I-mmse",
        "One step of the GNC flow (I = 1) from t = sigma^2 is a one-shot MMSE denoiser.",
        f"{INVERSE}, eq. 9",
    ),
    Claim(
        "I-learned",
        "A learned schedule (t_i, eta_i) of an unrolled GNC flow beats the predefined schedule with the "
        "same number of steps in PSNR.",
        f"{INVERSE}, learned schedule",
    ),
    Claim(
        "I-finetune",
        "Fine-tuning the whole prior in the unrolled scheme improves the PSNR further.",
        f"{INVERSE}, suggested extension",
    ),
    # Section 5: learned priors (Figure 2)
    Claim(
        "R-convex",
        "The learned prior R(., t) becomes convex for large enough smoothing.",
        EXPERIMENTS,
    ),
    Claim(
        "F2-quadratic",
        "At the largest tau (red) the learned potentials are close to quadratic.",
        f"{EXPERIMENTS}, Figure 2",
    ),
    Claim(
        "F2-nonconvex",
        "At the smallest tau (blue) learned potentials are non-convex, at the largest they are convex.",
        f"{EXPERIMENTS}, Figure 2",
    ),
    Claim(
        "F2-linear",
        "The hidden activations of the deeper priors get linear towards large tau.",
        f"{EXPERIMENTS}, Figure 2",
    ),
    Claim(
        "F2-simpler",
        "Deeper priors have simpler potentials, with fewer local minima.",
        f"{EXPERIMENTS}, Figure 2",
    ),
    # Section 5: Figure 3
    Claim(
        "F3-similar",
        "GNC flow and joint optimisation differ little, in the minimal energy attained and in PSNR.",
        f"{EXPERIMENTS}, Figure 3",
    ),
    Claim(
        "F3-attain",
        "The rate at which the global minimal energy is attained is best for large enough t_0 and I.",
        f"{EXPERIMENTS}, Figure 3",
    ),
    Claim(
        "F3-early",
        "For denoising the best PSNR comes before the minimal energy is attained.",
        f"{EXPERIMENTS}, Figure 3",
    ),
    Claim(
        "F3-inpainting",
        "For inpainting the gap between best PSNR and minimal energy is smaller than for denoising.",
        f"{EXPERIMENTS}, Figure 3",
    ),
    # Section 5: Figure 4
    Claim(
        "F4-energy",
        "GNC flow and joint optimisation almost reach the minimal energy of one denoising problem.",
        f"{EXPERIMENTS}, Figure 4",
    ),
    Claim(
        "F4-learned-energy",
        "The learned schedule does not reach the minimal energy.",
        f"{EXPERIMENTS}, Figure 4",
    ),
    Claim(
        "F4-learned-psnr",
        "The learned schedule has the best PSNR of the three schemes.",
        f"{EXPERIMENTS}, Figure 4",
    ),
    Claim(
        "F4-last-step",
        "The PSNR of the learned schedule peaks exactly at its last step I.",
        f"{EXPERIMENTS}, Figure 4",
    ),
    *(Claim(*added, "ours") for added in ADDED),
)
