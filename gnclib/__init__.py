"""Image priors that grow non-convex as the smoothing goes, learned by score matching (Kobler & Pock 2023).

The public names are listed in ``__init__.pyi``; everything else is in the packages. A name is loaded when it is first
asked for, so that ``import gnclib`` loads nothing heavy.
"""

import os

import lazy_loader

__version__ = "0.1.0"

# Torch then asks Linux for large pages for tensors of 2 MB and more: filling 512 small pages with zeros takes
# longer, a third of the time of denoising 512 x 512 pixels with R_3. Torch reads it at its first allocation; 0 is off.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
