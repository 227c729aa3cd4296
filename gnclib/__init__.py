"""gnclib: image priors that grow non-convex as the smoothing goes, learned by score matching (Kobler & Pock 2023).

The names in ``__all__`` are the front door, ``from gnclib import FieldsOfExperts``; everything else is in the modules.
Each name is loaded when it is first asked for, so that ``import gnclib`` loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

#: the public names by the modules that define them; for type checkers the imports below say the same
_PUBLIC = {
    "certify": ("certify_convex", "enclose_threshold"),
    "foe": ("FieldsOfExperts",),
    "gmm": ("GaussianMixture",),
    "images": ("psnr",),
    "restore": (
        *(
            "Denoising",
            "Inpainting",
            "LearnedSchedule",
            "denoise_gnc",
            "estimate_sigma",
            "gnc_flow",
            "inpaint_gnc",
        ),
        "joint_descent",
    ),
}
_MODULE = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE)

if TYPE_CHECKING:
    from gnclib.certify import certify_convex as certify_convex
    from gnclib.certify import enclose_threshold as enclose_threshold
    from gnclib.foe import FieldsOfExperts as FieldsOfExperts
    from gnclib.gmm import GaussianMixture as GaussianMixture
    from gnclib.images import psnr as psnr
    from gnclib.restore import Denoising as Denoising
    from gnclib.restore import Inpainting as Inpainting
    from gnclib.restore import LearnedSchedule as LearnedSchedule
    from gnclib.restore import denoise_gnc as denoise_gnc
    from gnclib.restore import estimate_sigma as estimate_sigma
    from gnclib.restore import gnc_flow as gnc_flow
    from gnclib.restore import inpaint_gnc as inpaint_gnc
    from gnclib.restore import joint_descent as joint_descent
else:  # unseen by type checkers, to which it would make every name right

    def __getattr__(name: str) -> object:
        """Called for a name that is not here yet (PEP 562): load the module that defines it, and keep it."""
        if name not in _MODULE:
            raise AttributeError(
                f"module 'gnclib' has no attribute {name!r}; the public names are {', '.join(__all__)}"
            )
        value = getattr(import_module(f"gnclib.{_MODULE[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
