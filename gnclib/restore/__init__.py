"""Inverse problems (section 4): data terms, schedules, GNC flow, joint optimisation, learned schedules.

Here: everything between a measurement and an image, and the functions on numpy arrays.
Never: comparisons over data sets.
May import: `deep`, `foe`, `score`, `images`, `io`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "operators": ["LEVELS", "Denoising", "Inpainting", "Task"],
        "schemes": ["FIRST_INPAINTING", "Scheme", "check_sigma", "predefined"],
        "linear": [
            *("Blur", "LinearMeasurement", "LinearOperator", "LowResolution", "PeriodicBlur", "Projections"),
            *("SampledFourier", "SampledTransform", "gaussian_kernel"),
        ],
        "schedules": ["as_count", "linear_schedule", "log_schedule", "step_sizes"],
        "flow": [
            *("DataTerm", "Energy", "Prior", "State", "checked_start", "ddim_flow", "energy_and_grad"),
            *("gnc_flow", "last", "proximal_gradient", "wide"),
        ],
        "joint": ["joint_descent", "palm"],
        "learned": ["STARTS", "LearnedSchedule", "find_schedule", "weights_sha256"],
        "proximal": ["proximal_point"],
        "noise_level": ["NoiseCurve", "estimate_sigma"],
        "posterior": ["doubts", "flaws", "posterior_components", "posterior_moments"],
        "evidence": ["Gaussian", "WithBrightness", "annealed_constant", "quadratic_constant"],
        "sampling": ["mala"],
        "tiles": ["Tiled"],
        "symmetry": ["SYMMETRIES", "Symmetrised"],
        "restoration": ["denoise_channels", "denoise_gnc", "inpaint_channels", "inpaint_gnc", "std_channels"],
        "stacks": ["denoise_stack"],
    },
)
