"""What all learned energies of images have in common: a range of noise levels, checks of what comes in, files."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor, nn

from gnclib import io
from gnclib.checks import as_images, as_time, hidden


class LearnedEnergy(nn.Module):
    """Base of the energies R(y, t), which have a ``config`` and the parameter ``offset`` of c(tau).

    A subclass is made from its configuration and adds ``energy``, ``grad``, ``energy_and_grad``, ``dtau``, ``hvp`` and
    ``certify``, and ``parameter_groups()``: what is learned, by the setting that is its learning rate.
    """

    #: whether the gradient's convolutions between channels are computed in bfloat16, where the processor is faster so;
    #: energies, derivatives in tau and Hessian products of a Fields of Experts stay exact
    bf16 = False
    #: whether ``border="valid"`` gives the part of the energy that sees nothing beyond the image
    has_valid_part = False
    #: a part of an image gives the same features where it begins at a multiple of this number of pixels
    alignment = 1
    #: side of the smallest image, in pixels
    smallest = 1

    @property
    def sigma_min(self) -> float:
        """Smallest noise level at which the energy is defined, a grey value."""
        return self.config.sigma_min

    @property
    def sigma_max(self) -> float:
        """Largest noise level at which the energy is defined."""
        return self.config.sigma_max

    def project(self) -> None:
        """Put parameters back to where they are meant to stay, in place; nothing where there is no such rule."""

    def make_convex(self) -> None:
        """Make the energy as convex as its configuration demands, in place; nothing where it is by construction."""

    def _range(self, t: float | Tensor, batch: int, like: Tensor) -> Tensor:
        """tau = 0.5 log t of each image, (B,). Raises ValueError if it leaves the range of the energy."""
        t = as_time(t, batch, like=like)
        low, high = self.sigma_min**2, self.sigma_max**2
        if not hidden() and bool(((t < low * (1 - 1e-5)) | (t > high * (1 + 1e-5))).any()):
            raise ValueError(
                f"t = {t.min().item():.4g} .. {t.max().item():.4g} leaves the range [{low:.4g}, {high:.4g}] of noise"
                " variances on which this energy is defined (t is sigma^2, with grey values in [0, 1])"
            )
        return (0.5 * t.log()).clamp(math.log(self.sigma_min), math.log(self.sigma_max))

    def _demand_images(self, y: Tensor, side: int) -> None:
        """Raise ValueError unless y is a batch of grey images in the number format of the energy, this large."""
        as_images(y, bytes_above=100)
        if y.dtype != self.offset.dtype:
            raise ValueError(
                f"images are {y.dtype} but the energy is {self.offset.dtype}: convert one, e.g. prior.double()"
            )
        if min(y.shape[-2:]) < side:
            raise ValueError(
                f"images of {y.shape[-2]}x{y.shape[-1]} pixels are too small: this energy needs {side}x{side} or more"
            )

    def weights_file(self) -> bytes:
        """The content of ``model.safetensors``: the same for the same weights, wherever they are."""
        return save({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()})

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write ``model.safetensors`` and ``config.json`` into ``folder``, each whole or not at all."""
        io.write_bytes(Path(folder) / "model.safetensors", self.weights_file())
        io.write_text(Path(folder) / "config.json", json.dumps(asdict(self.config), indent=2) + "\n")

    @classmethod
    def from_state(cls, config: Any, state: dict[str, Tensor]) -> Self:
        """The energy with these weights. Raises ValueError, before it makes anything, where they do not fit."""
        io.demand_tensors(state, config.shapes, "weights that do not fit the configuration")
        model = cls(config)
        model.load_state_dict(state)
        return model


def demand_shape(v: Tensor, y: Tensor) -> None:
    """Raise ValueError unless a direction v has the shape and dtype of the images."""
    if v.shape != y.shape or v.dtype != y.dtype:
        raise ValueError(
            f"v must have the shape and dtype of y, {tuple(y.shape)} {y.dtype}, got {tuple(v.shape)} {v.dtype}"
        )


def recorded(*tensors: Tensor) -> bool:
    """Whether torch records what is done with them."""
    return torch.is_grad_enabled() and any(v.requires_grad for v in tensors)
