"""The random numbers of tests."""

import torch

from gnclib.foe import FieldsOfExperts


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_energy(config, seed=0, spread=0.2):
    """A float64 energy whose every parameter is random."""
    g = generator(seed)
    energy = FieldsOfExperts(config, generator=g).double()
    for p in energy.parameters():
        p.data += spread * torch.randn(p.shape, generator=g, dtype=torch.float64)
    return energy.requires_grad_(False)
