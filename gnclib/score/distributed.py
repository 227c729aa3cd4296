"""Groups of processes that train together, one per GPU or per group of CPU cores, as ``torchrun`` starts them.

Data-parallel training: every process ("rank") holds the same weights and draws the same global batch from the same
generator, computes the loss on its own slice, and all take the mean of the gradients before each step. The result is
that of one process on the whole batch up to rounding, and all ranks stay identical to the bit.

This does what torch's DistributedDataParallel does, written out: one ``all_reduce`` of one flat vector per step. The
energies have fewer than a million parameters, so that there is nothing to overlap; and their training calls
``inner_grad`` and ``dtau`` instead of ``forward`` and leaves out parameters on ranks without a share of the smoothing
part. The order of the sums is fixed, so that a resumed run repeats it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

#: how long a rank waits for the others, in seconds; rank 0 validates meanwhile
PATIENCE = 600.0


@dataclass(frozen=True)
class Group:
    """The processes that train together, ``world`` of them, seen from one of them, 0 <= ``rank`` < ``world``."""

    rank: int = 0
    world: int = 1

    def slice(self, count: int) -> slice:
        """The part of a global batch of ``count`` that belongs to this rank; ``count`` is a multiple of the world."""
        size = count // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def share(self, values: Tensor, total: int) -> Tensor:
        """What this rank adds to a mean over ``total`` values of which it holds ``values`` (any number of them).

        N sum(values) / total: the mean of the shares over the N ranks is the mean over all values.
        """
        return values.sum() * (self.world / total)

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its mean over the ranks, in place; all of one dtype and device."""
        if self.world == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view_as(t))

    def any(self, flag: bool, device: torch.device | str = "cpu") -> bool:
        """Whether ``flag`` is true on one of the ranks: the same answer for all of them."""
        if self.world == 1:
            return flag
        found = torch.tensor(float(flag), device=device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found.item())

    def agree(self, values: Tensor, what: str) -> None:
        """Raise RuntimeError, on all ranks, if they hold different ``values``."""
        if self.world == 1:
            return
        values = values.detach().contiguous()
        first = values.clone()
        dist.broadcast(first, 0)
        if self.any(not torch.equal(first, values), values.device):
            raise RuntimeError(
                f"the processes do not start from the same {what}: they must see the same files"
            )

    def close(self) -> None:
        """End the work together; to be called by every rank that has not failed."""
        if self.world > 1:
            dist.destroy_process_group()


#: one process on its own
ALONE = Group()


def join(device: str, environment: Mapping[str, str] = os.environ) -> tuple[Group, torch.device]:
    """The group that ``torchrun`` made (:data:`ALONE` without it) and this rank's device.

    With "cuda" each rank gets the GPU of its local rank. Raises ValueError: another device than "cpu" or "cuda", or
    CUDA is asked for where torch does not find it or has too few GPUs.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {device!r}")
    world, local = int(environment.get("WORLD_SIZE", 1)), int(environment.get("LOCAL_RANK", 0))
    found = torch.device(device)
    if device == "cuda":
        if not torch.cuda.is_available():
            built = "no usable GPU or driver" if torch.version.cuda else "this torch was built without CUDA"
            raise ValueError(f"--device cuda: torch finds no CUDA here ({built}); train with --device cpu")
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"--device cuda: {torch.cuda.device_count()} GPU(s) for local rank {local}: start at most one"
                " process per GPU"
            )
        found = torch.device("cuda", local)
        torch.cuda.set_device(found)
    if world == 1:
        return ALONE, found
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=PATIENCE))
    return Group(dist.get_rank(), dist.get_world_size()), found
