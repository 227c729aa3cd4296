"""Proofs of convexity: interval arithmetic and branch and bound over boxes.

Here: outward-rounded arithmetic, enclosures of second derivatives, certificates.
Never: sampling; what is only likely is no certificate.
May import: `gmm`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "proofs": [
            "Box",
            "Certificate",
            "NotProved",
            "ThresholdEnclosure",
            "Witness",
            "certify_convex",
            "enclose_threshold",
            "exact",
            "pave",
            "witness_nonconvex",
        ],
    },
)
