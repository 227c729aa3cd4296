"""Square pieces of images: random ones for training, and the one in the middle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class PatchSampler:
    """Uniformly random square crops of a set of images, fast enough for a training loop.

    Every position of every image at which a patch fits is equally likely. Images with 8-bit grey values are stored as
    uint8, so sampling is exact and 400 photographs take 62 MB.

    Parameters
    ----------
    images
        Mapping name -> (1, 1, H, W) or an iterable of such tensors, in [0, 1].
    size
        Side of a patch in pixels.
    generator
        The only source of randomness.
    augment
        Whether each crop is turned or mirrored by one of the 8 symmetries of the square, all equally likely.

    Raises
    ------
    ValueError
        No images, a wrong shape, dtype or range, or a patch larger than an image.
    """

    def __init__(
        self, images: Mapping[str, Tensor] | Iterable[Tensor], size: int, generator, augment: bool = True
    ):
        images = list(images.values() if isinstance(images, Mapping) else images)
        if not images:
            raise ValueError("there are no images to take patches from")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"the size of a patch must be a positive integer, got {size!r}")
        for image in images:
            if image.ndim != 4 or image.shape[:2] != (1, 1) or not image.is_floating_point():
                raise ValueError(
                    f"images must be a float tensor (1, 1, H, W), not {image.dtype} {tuple(image.shape)}"
                )
            height, width = image.shape[2:]
            if min(height, width) < size:
                raise ValueError(
                    f"a patch of {size} x {size} does not fit into an image of {height} x {width}"
                )
        if not isinstance(generator, torch.Generator):
            raise ValueError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        self.size, self.generator, self.augment = size, generator, augment
        pixels = torch.cat([image.detach().reshape(-1).float() for image in images])
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise ValueError("grey values must lie in [0, 1]")
        levels = (pixels * 255).round()  # (total number of pixels,)
        self._pixels = levels.to(torch.uint8) if torch.equal(levels / 255, pixels) else pixels
        shapes = torch.tensor([image.shape[2:] for image in images])  # (N, 2)
        self._width = shapes[:, 1]
        self._columns = shapes[:, 1] - size + 1  # positions per row, (N,)
        self._last = ((shapes[:, 0] - size + 1) * self._columns).cumsum(0)  # cumulated positions, (N,)
        self._start = shapes.prod(1).cumsum(0) - shapes.prod(1)  # first pixel of each image, (N,)
        self._side = torch.arange(size)

    def sample(self, count: int) -> Tensor:
        """Draw `count` patches: float32 (count, 1, size, size) in [0, 1]."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"the number of patches must be a positive integer, got {count!r}")
        draw = torch.randint(int(self._last[-1]), (count,), generator=self.generator)
        image = torch.searchsorted(self._last, draw, right=True)  # (count,)
        draw = draw - torch.where(image > 0, self._last[image - 1], 0)  # position within the image
        width, columns = self._width[image], self._columns[image]
        corner = self._start[image] + draw // columns * width + draw % columns
        rows = corner[:, None] + self._side * width[:, None]  # (count, size)
        patches = self._pixels[rows[:, :, None] + self._side][:, None]
        if self.augment:  # turn, then mirror
            flip = torch.randint(8, (count,), generator=self.generator)[:, None, None, None]
            patches = torch.where(flip & 4 > 0, patches.mT, patches)
            patches = torch.where(flip & 2 > 0, patches.flip(3), patches)
            patches = torch.where(flip & 1 > 0, patches.flip(2), patches)
        return patches.float().div_(255) if patches.dtype == torch.uint8 else patches


def patches(images, size: int, count: int, generator, augment: bool = False) -> Tensor:
    """Uniformly random crops (count, 1, size, size) of images, as of a `PatchSampler`, here not turned by default."""
    return PatchSampler(images, size, generator, augment=augment).sample(count)


def middle(x: Tensor, side: int) -> Tensor:
    """The square of ``side`` pixels in the middle of x (B, 1, H, W), or all of a smaller image."""
    top, left = ((length - min(length, side)) // 2 for length in x.shape[-2:])
    return x[..., top : top + side, left : left + side]
