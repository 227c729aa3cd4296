"""Expressive energies, with a network where a Field of Experts has kernels and potentials; priors by name.

Here: the energy, its network, its configuration, `load_prior` for every kind of prior.
Never: training, restoration.
May import: `foe`, `spline`, `io`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "energy": ["NetworkEnergy", "configuration", "kind_of", "load_prior"],
        "config": ["NetworkConfig"],
    },
)
