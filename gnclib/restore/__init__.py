"""Inverse problems (section 4): data terms, schedules, GNC flow, joint optimisation, learned schedules.

Here: everything between a measurement and an image, and the functions on numpy arrays.
Never: comparisons over data sets.
May import: `foe`, `score`, `images`, `io`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "restoration": ["denoise_channels", "denoise_gnc", "inpaint_channels", "inpaint_gnc"],
        "flow": ["gnc_flow"],
        "joint": ["joint_descent"],
        "learned": ["LearnedSchedule"],
        "operators": ["Denoising", "Inpainting"],
        "noise_level": ["estimate_sigma"],
    },
)
