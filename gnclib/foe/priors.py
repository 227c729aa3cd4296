"""Priors by name."""

from __future__ import annotations

import os

from gnclib.foe import FieldsOfExperts


def load_prior(name: str | os.PathLike) -> FieldsOfExperts:
    """A trained prior, ready for every solver: ``energy(y, t)`` and ``grad(y, t)`` for images in [0, 1].

    Parameters
    ----------
    name
        A prior of the package ("C1", "P1", "R1", "R2", "R3"), the folder of one (``config.json`` and
        ``model.safetensors``, as ``gnc train`` and ``save_pretrained`` write it), or a repository of the Hugging Face
        hub: "hf:owner/name" or "hf:owner/name@revision". The package comes first: write "./R1" for a folder of that
        name.

    Returns
    -------
    FieldsOfExperts
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
    return FieldsOfExperts.from_pretrained(name)
