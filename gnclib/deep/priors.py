"""Priors by name, whatever kind of energy they are."""

from __future__ import annotations

import os
from typing import Any

from gnclib.deep import NetworkConfig, NetworkEnergy
from gnclib.foe import FieldsOfExperts, FoEConfig, LearnedEnergy, read_prior


def configuration(values: dict[str, Any]) -> FoEConfig | NetworkConfig:
    """The configuration that a config.json holds: a network's where it names a family. Raises ValueError."""
    return (NetworkConfig if "family" in values else FoEConfig).from_dict(values)


def kind_of(config: FoEConfig | NetworkConfig) -> type[LearnedEnergy]:
    """The class of the energies with such a configuration."""
    return NetworkEnergy if isinstance(config, NetworkConfig) else FieldsOfExperts


def load_prior(name: str | os.PathLike) -> LearnedEnergy:
    """A trained prior, ready for every solver: ``energy(y, t)`` and ``grad(y, t)`` for images in [0, 1].

    Parameters
    ----------
    name
        A prior of the package ("C1", "G1", "P1", "P2", "R1", "R2", "R3"), the folder of one (``config.json`` and
        ``model.safetensors``, as ``gnc train`` and ``save_pretrained`` write it), or a repository of the Hugging Face
        hub: "hf:owner/name" or "hf:owner/name@revision". The package comes first: write "./R1" for a folder of that
        name.

    Returns
    -------
    FieldsOfExperts or NetworkEnergy
        On the CPU in float32, its parameters without gradients; ``.to("cuda")``, ``.double()`` and
        ``.requires_grad_()`` change that.

    Raises
    ------
    FileNotFoundError
        There is no such prior, or one of its files is missing; the message lists the shipped ones.
    ValueError
        A file is damaged or does not fit the configuration, or a malformed hub name.
    ConnectionError, ImportError
        The hub cannot be reached, and its cache does not hold the repository; ``huggingface_hub`` is not installed.
    """
    config, state = read_prior(name, configuration)
    return kind_of(config).from_state(config, state).requires_grad_(False).eval()
