"""Inverse problems (section 4): data terms, schedules, GNC flow, joint optimisation, learned schedules.

Here: everything between a measurement and an image, and the functions on numpy arrays.
Never: comparisons over data sets.
May import: `foe`, `spline`, `score`, `images`, `io`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "operators": ["LEVELS", "Denoising", "Inpainting", "Task"],
        "schemes": ["check_sigma", "predefined"],
        "linear": [
            *("Blur", "LinearMeasurement", "LinearOperator", "LowResolution", "PeriodicBlur", "Projections"),
            *("SampledFourier", "SampledTransform", "gaussian_kernel"),
        ],
        "schedules": ["as_count", "linear_schedule", "log_schedule", "step_sizes"],
        "flow": [
            *("DataTerm", "Energy", "Prior", "State", "ddim_flow", "gnc_flow", "last", "proximal_gradient"),
        ],
        "joint": ["joint_descent", "palm"],
        "learned": ["LearnedSchedule"],
        "proximal": ["proximal_point"],
        "noise_level": ["NoiseCurve", "estimate_sigma"],
        "posterior": ["Posterior", "posterior_components", "posterior_moments"],
        "sampling": ["effective_size", "mala", "r_hat"],
        "restoration": ["denoise_channels", "denoise_gnc", "inpaint_channels", "inpaint_gnc", "std_channels"],
        "stacks": ["denoise_stack"],
    },
)
