"""Fields of Experts whose potentials depend on the noise level: the energies R_1, R_2, R_3 (eqs. 2 and 3).

Here: the energy, its configuration and filters, its spectra and curves, where its weights are found.
Never: training, restoration.
May import: `spline`, `io`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "layers": ["LearnedEnergy", "demand_shape", "recorded"],
        "energy": ["FieldsOfExperts"],
        "config": ["FoEConfig"],
        "filters": ["reflect"],
        "convexity": ["Certificate"],
        "hub": ["WEIGHTS", "derived", "is_hub_name", "locate", "read_prior", "weights_sha256"],
        "spectra": ["PointHessian", "smallest_eigenvalue"],
    },
)
