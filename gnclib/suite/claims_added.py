"""Statements of this project about choices in the recipe and beyond the paper: (id, sentence, where)."""

from __future__ import annotations

__all__ = ["ADDED"]

ADDED: tuple[tuple[str, str, str], ...] = (
    # Ablations
    (
        "A-lambda",
        "The weight lambda trades: without it d_tau R is not calibrated, and ten times our weight costs PSNR.",
        "about section 3.2, eq. 7",
    ),
    (
        "A-boundary",
        "On image patches the boundary term hardly matters: printed, corrected, vanishing and denoising objectives "
        "give the same PSNR, calibration and joint optimisation within the noise between seeds.",
        "about section 3.2, eq. 7",
    ),
    (
        "A-dct",
        "Under the same short training, kernels that start from the DCT basis give a better denoiser than random ones.",
        "about section 3.1, eq. 2",
    ),
    (
        "A-scaled",
        "Under the same short training, the scaled input s(tau) y gives a better denoiser at every noise level "
        "than the printed formula.",
        "about section 3.1, eq. 2",
    ),
    (
        "A-nodes",
        "Eleven spline nodes in tau are enough: five lose PSNR, twenty-one do not gain any.",
        "about section 3.1 and appendix B",
    ),
    (
        "A-smooth",
        "Damping the roughness of the potentials costs no PSNR, and brings the smallest eigenvalue of the Hessian at "
        "the largest noise closer to convexity.",
        "about section 3.1 and appendix B",
    ),
    (
        "A-warm",
        "After the same number of steps, an R_3 that started from a briefly trained R_1 denoises better than one that "
        "started from DCT and Kaiming-normal kernels.",
        "about section 3.1, eq. 3",
    ),
    (
        "A-deep",
        "Each of the three changes that lead from the warm R_3 to its recipe (a smaller lambda, magnitudes in the last "
        "hidden layer, dilated kernels) gives a better denoiser after the same number of steps.",
        "about section 3.1, eq. 3",
    ),
    # Beyond the paper
    (
        "X-popoviciu",
        "For equal isotropic covariances s^2 I the energy is convex on all of R^d for t >= diam({mu_i})^2 / "
        "4 - s^2: four times sharper in diam^2, and global.",
        "about Theorem 2.2",
    ),
    (
        "X-tight",
        "Two components at +-a with variance s^2 and any weights have the exact threshold t* = a^2 - s^2 on "
        "the whole line; two points at distance D have t* = D^2 / 4.",
        "about Theorem 2.2",
    ),
    (
        "X-certificate",
        "F(., t) is convex on [-1, 1], and on the whole line, for every t above the threshold, proved by interval "
        "arithmetic, and non-convex 1e-6 below that by a witness.",
        "about Figure 1",
    ),
    (
        "X-once",
        "Once convex on R^d, always convex: the convex t form one interval [t*, inf) (Prekopa-Leindler).",
        "about Theorem 2.2",
    ),
    (
        "X-outside",
        "With unequal variances the energy can be convex on X and non-convex outside of X at the same t.",
        "about Theorem 2.2",
    ),
    (
        "X-vp",
        "For the variance-preserving process the same formulas give a threshold in the signal fraction a.",
        "about Theorem 2.2",
    ),
    (
        "X-ddim",
        "A deterministic DDIM step moves by the fraction 1 - sigma_{i+1}/sigma_i of the GNC flow's step.",
        "about Algorithm 1",
    ),
    (
        "X-control",
        "Plain gradient descent at t = 0 carries fewer starts to the global minimiser than the GNC flow.",
        "about Algorithm 1",
    ),
    (
        "X-failure",
        "There are mixtures (a narrow deep well beside a broad shallow one) on which the GNC flow misses "
        "the global minimiser.",
        "about Algorithm 1",
    ),
    (
        "X-edge",
        "For points (or equal covariances s^2 I) the exact threshold on R^d is at least a quarter of the squared "
        "length of every edge of the convex hull, minus s^2; exact where the farthest two points form an edge.",
        "about Corollary 2.3",
    ),
    (
        "X-patches",
        "On R^d the energy of image patches needs at least 0.7 of Popoviciu's sigma to be convex; in the cube [0, 1]^d "
        "the search finds no non-convexity above half of it.",
        "about Corollary 2.3",
    ),
    (
        "X-attain",
        "On random mixtures the GNC flow attains the global minimum more often than descent without smoothing, and "
        "less often the more components there are.",
        "about Algorithm 1",
    ),
    (
        "X-far",
        "At its smallest smoothing the learned energy R_1 rates images of noise as more probable than a photograph, "
        "and descent from a poor start ends there; at larger smoothing it judges rightly, and the GNC flow that "
        "comes from there does not get lost.",
        "about Algorithm 1 and eq. 9",
    ),
    (
        "X-deep",
        "The deeper the energy, the more graduation decides where the flow ends: begun at a small smoothing, R_3 loses "
        "decibels on deblurring and super-resolution, R_1 next to nothing.",
        "about Algorithm 1 and eq. 9",
    ),
    (
        "X-problems",
        "Without being trained again, R_1 with the GNC flow reconstructs blurred, coarse, randomly sensed and "
        "projected images better than TV and than the same solver without graduation after as many gradients.",
        "about eq. 9",
    ),
)
