"""Gaussian mixtures under Gaussian smoothing, and from which smoothing on their energy is convex (section 2).

Here: mixtures, the exact threshold on the line, bounds for empirical measures.
Never: images, files, learned energies.
May import: numpy, torch, scipy; nothing of gnclib but `gnclib.checks`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"mixture": ["GaussianMixture", "empirical", "figure1_mixture"]}
)
