"""Every figure of the project, with the notebook that makes it.

A figure is three files, NAME.png, NAME.pdf and NAME.json (the numbers behind it), written by
`gnclib.suite.plots.save`. A
notebook that saves a figure which is not declared here fails in ``gnc figures``, and so does one which does not save a
figure that is. `gallery` is the page that shows them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["MANIFEST", "SUFFIXES", "Figure", "gallery"]

SUFFIXES = (".png", ".pdf", ".json")


@dataclass(frozen=True)
class Figure:
    """A declared figure: its notebook, its title, and the tolerance of its numbers (:mod:`gnclib.suite.compare`)."""

    notebook: str
    title: str
    rtol: float = 1e-3
    atol: float = 1e-9


MANIFEST: dict[str, Figure] = {
    "convexity_map": Figure("01_convexity_theorem", "Where the Hessian of the smoothed energy is negative"),
    "bound_sharpness": Figure("01_convexity_theorem", "Exact thresholds against two bounds, equal variances"),
    "two_components": Figure(
        "01_convexity_theorem", "Two components: exact threshold, and where it is attained"
    ),
    "once_convex": Figure("01_convexity_theorem", "Once convex, always convex: on the line, and in a window"),
    "outside_domain": Figure("01_convexity_theorem", "Convex on X and non-convex outside, unequal variances"),
    "empirical_measure": Figure("01_convexity_theorem", "Exact threshold of an empirical measure"),
    "paving": Figure(
        "01_convexity_theorem", "Branch and bound: what is proved convex, not convex, or still open"
    ),
    "certificate": Figure(
        "01_convexity_theorem", "Boxes on which convexity is proved by interval arithmetic"
    ),
    "tweedie_maps": Figure("02_gnc_flow", "One step of the flow is the MMSE estimate, for several t"),
    "gnc_trajectories": Figure("02_gnc_flow", "Trajectories of the GNC flow"),
    "figure1": Figure("02_gnc_flow", "Figure 1: smoothed energies, attainment over t_0 and I, convexity"),
    "steps_needed": Figure("02_gnc_flow", "Steps needed until all trajectories arrive, against t_0"),
    "gnc_and_ddim": Figure("02_gnc_flow", "Where the GNC flow and DDIM end"),
    "gnc_control": Figure("02_gnc_flow", "GNC flow against gradient descent and random restarts"),
    "gnc_failure": Figure("02_gnc_flow", "Mixtures on which the GNC flow misses the global minimum"),
    "score_truth": Figure("03_score_matching", "The true energy on the line and its derivatives"),
    "score_regression": Figure(
        "03_score_matching", "Both derivatives of the energy are regressions on the noise"
    ),
    "score_boundary": Figure(
        "03_score_matching", "The boundary artefact of eq. 7 as printed, and its prediction"
    ),
    "score_maps": Figure("03_score_matching", "Errors of the learned derivatives over (y, tau)", rtol=1e-2),
    "score_lambda": Figure(
        "03_score_matching", "Role of lambda for the printed and the corrected loss", rtol=1e-2
    ),
    "score_valley": Figure("03_score_matching", "The artefact makes a spurious valley in tau"),
    "score_samples": Figure(
        "03_score_matching", "Error against the number of samples, by estimator", rtol=5e-2
    ),
    "spline_basis": Figure("04_train_foe", "Quartic B-splines: partition of unity and smoothness"),
    "dct_kernels": Figure("04_train_foe", "The kernels before training: the DCT basis"),
    "train_live": Figure("04_train_foe", "A short training: loss parts and denoising", rtol=2e-2),
    "train_log": Figure("04_train_foe", "The logs of the trainings of the shipped priors"),
    "train_quality": Figure(
        "04_train_foe",
        "The shipped priors over noise levels: score error and calibration",
        rtol=2e-2,
        atol=2e-3,
    ),
    "ablation_psnr": Figure("07_ablations", "Short trainings compared: denoising"),
    "ablation_yardsticks": Figure("07_ablations", "Short trainings compared: calibration and curvature"),
    "ablation_calibration": Figure(
        "07_ablations", "Short trainings compared: calibration over the noise levels"
    ),
    "effective_range": Figure("05_kernels_and_potentials", "Range of the responses against the noise level"),
    "figure2": Figure(
        "05_kernels_and_potentials",
        "Figure 2: kernels, potentials and activations of R_1, R_2 and R_3",
        rtol=1e-2,
    ),
    "figure2_r1_all": Figure("05_kernels_and_potentials", "R_1: all 48 kernels and potentials", rtol=1e-2),
    "figure2_r2_layer1": Figure(
        "05_kernels_and_potentials", "R_2, layer 1: all kernels and activations", rtol=1e-2
    ),
    "figure2_r2_layer2": Figure(
        "05_kernels_and_potentials", "R_2, layer 2: all effective kernels and potentials", rtol=1e-2
    ),
    "figure2_r3_layer1": Figure(
        "05_kernels_and_potentials", "R_3, layer 1: all kernels and activations", rtol=1e-2
    ),
    "figure2_r3_layer2": Figure(
        "05_kernels_and_potentials", "R_3, layer 2: all effective kernels and activations", rtol=1e-2
    ),
    "figure2_r3_layer3": Figure(
        "05_kernels_and_potentials", "R_3, layer 3: all effective kernels and potentials", rtol=1e-2
    ),
    "deep_kernels": Figure("05_kernels_and_potentials", "The kernels between channels, as whole tensors"),
    "potentials_shape": Figure(
        "05_kernels_and_potentials",
        "How quadratic, convex and rugged the potentials are",
        rtol=1e-2,
        atol=1e-3,
    ),
    "activations_shape": Figure(
        "05_kernels_and_potentials", "How linear the hidden activations are", rtol=1e-2, atol=1e-3
    ),
    "learned_hessian": Figure(
        "05_kernels_and_potentials",
        "Is the learned energy convex? Eigenvalues and chords",
        rtol=2e-2,
        atol=1e-3,
    ),
    "mmse_step": Figure("05_kernels_and_potentials", "One denoising step and what it removes"),
    "energy_knows": Figure(
        "05_kernels_and_potentials", "Energy of a photograph against its alternatives", rtol=1e-2, atol=1e-4
    ),
    "images_from_noise": Figure(
        "05_kernels_and_potentials", "From noise to images without data, in three ways", rtol=2e-2, atol=1e-3
    ),
    "gradually": Figure(
        "06_inverse_problems", "The idea: an energy that grows non-convex, on a line and on a photograph"
    ),
    "one_step": Figure(
        "06_inverse_problems", "One step as a denoiser: gain, optimal factor, wrong noise level"
    ),
    "denoising_steps": Figure(
        "06_inverse_problems", "Energy and PSNR per step of the GNC flow", rtol=1e-2, atol=2e-3
    ),
    "step_rules": Figure(
        "06_inverse_problems", "How long a step should be: PSNR against the number of steps"
    ),
    "bsds68_steps": Figure("06_inverse_problems", "Energy and PSNR per step of the GNC flow, mean of BSDS68"),
    "joint_descent": Figure(
        "06_inverse_problems",
        "Joint optimisation over image and smoothing: Algorithm 2 and PALM",
        rtol=1e-2,
        atol=2e-3,
    ),
    "learned_schedule": Figure("06_inverse_problems", "The learned schedule and step sizes"),
    "figure4": Figure(
        "06_inverse_problems", "Figure 4: energy and PSNR per step of the three schemes", rtol=1e-2, atol=2e-3
    ),
    "denoising_images": Figure("06_inverse_problems", "A photograph denoised by the three schemes"),
    "robustness": Figure("06_inverse_problems", "Noise levels between the trained ones, and wrong ones"),
    "colour": Figure(
        "06_inverse_problems", "A colour photograph, denoised in its channels and in opponent colours"
    ),
    "inpainting_images": Figure("06_inverse_problems", "A photograph of which 80 % are missing, filled in"),
    "figure3": Figure("07_ablations", "Figure 3: attainment and PSNR over t_0 and the number of steps"),
    "energy_and_psnr": Figure("07_ablations", "Mean energy against mean PSNR, all t_0 and numbers of steps"),
    "prox_iterations": Figure(
        "08_more_inverse_problems", "Conjugate-gradient iterations of the proximal maps", atol=2
    ),
    "five_problems": Figure(
        "08_more_inverse_problems", "Five linear inverse problems on one photograph", atol=0.02
    ),
    "with_and_without_gnc": Figure(
        "08_more_inverse_problems", "Energy and PSNR with and without graduated non-convexity", atol=0.02
    ),
    "problems_bsds68": Figure(
        "08_more_inverse_problems", "Gains over total variation on twelve images of BSDS68"
    ),
    "problems_tuning": Figure(
        "08_more_inverse_problems", "How the choice of t and t_I matters, on training crops"
    ),
    "plane_map": Figure("09_beyond_the_line", "Smallest eigenvalue of the Hessian in the plane"),
    "polygon_bounds": Figure("09_beyond_the_line", "Regular polygons: bounds for the threshold", rtol=3e-2),
    "patch_bounds": Figure("09_beyond_the_line", "From which noise on is the energy of patches convex?"),
    "attainment_random": Figure(
        "09_beyond_the_line", "Random mixtures: how often the global minimum is attained", atol=0.05
    ),
}


def gallery(manifest: Mapping[str, Figure] = MANIFEST) -> str:
    """A Markdown page for the folder of the figures: each with its title and files, under its notebook."""
    lines = [
        "# Figures",
        "",
        "All of them, by the notebook that makes them; written by `gnc figures`, as are the numbers behind each figure",
        "(JSON) and the [ledger of claims](claims.md).",
    ]
    for notebook in dict.fromkeys(figure.notebook for figure in manifest.values()):
        lines += ["", f"## {notebook}"]
        for name, figure in manifest.items():
            if figure.notebook == notebook:
                lines += ["", f"![{figure.title}]({name}.png)", ""]
                lines += [f"*{figure.title}.* [pdf]({name}.pdf), [numbers]({name}.json)"]
    return "\n".join(lines) + "\n"
