"""Image priors that grow non-convex as the smoothing goes, learned by score matching (Kobler & Pock 2023).

The public names are listed in ``__init__.pyi``; everything else is in the packages. A name is loaded when it is first
asked for, so that ``import gnclib`` loads nothing heavy.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
