"""Quartic B-splines phi(x, tau): their definition and the engines that evaluate them fast.

Here: the definition in plain torch, the compiled CPU engine, the torch.compile engine.
Never: anything that knows what the splines are used for.
May import: nothing of gnclib but `gnclib.checks` and `gnclib.io`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "splines": ["SplineGrid", "quartic_bspline", "contract", "evaluate"],
    },
)
