"""The widget "Denoise (gnclib)" of napari, which ``napari.yaml`` declares: an image layer in, a new layer out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from gnclib.restore import denoise_gnc

if TYPE_CHECKING:
    import napari.layers
    import napari.types


def denoise(
    layer: napari.layers.Image,
    prior: Literal["R1", "R2", "R3", "M1", "M3", "C1", "C3", "G1"] = "R1",
    sigma: float = 0.0,
) -> napari.types.LayerDataTuple:
    """The layer without its noise, frame by frame, as float32.

    uint8 and uint16 mean 0..255 and 0..65535; other numbers go from the least to the greatest value of the layer.

    Parameters
    ----------
    layer : grey (..., H, W), or RGB or RGBA (..., H, W, 3 or 4); what lies before is frames
    prior : name of a prior that comes with gnclib
    sigma : standard deviation of the noise in the units of the layer; 0: estimated for each frame

    Returns
    -------
    data, settings, "image", as napari takes new layers

    Raises
    ------
    ValueError
        As :func:`gnclib.denoise_gnc`.
    """
    data = np.asarray(layer.data)
    low, high = (0, np.iinfo(data.dtype).max) if data.dtype in ("u1", "u2") else (data.min(), data.max())
    low, high = float(low), float(high)  # differences of int8 may not be an int8
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(
            f"{layer.name} goes from {low} to {high}: values must be finite, and not all the same"
        )
    grey = (data.astype(np.float32) - low) / (high - low)
    level, axis = (float(sigma) / float(high - low) or None), -1 if layer.rgb else None
    made = np.empty_like(grey)
    for place in np.ndindex(grey.shape[: -3 if layer.rgb else -2]):
        made[place] = denoise_gnc(grey[place], level, prior=prior, channel_axis=axis)
    values = made.clip(0, 1) if layer.rgb else made * (high - low) + low  # napari shows colours in [0, 1]
    return values, {"name": f"{layer.name}, denoised", "scale": layer.scale, "rgb": layer.rgb}, "image"
