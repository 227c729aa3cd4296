"""The subcommand ``gnc patches``."""

from __future__ import annotations

import argparse
from pathlib import Path

from gnclib.cli.evaluate import say

__all__ = ["patches_parser"]


def patches_parser(add) -> None:
    sub = add(
        "patches", _patches, "from which sigma on is the energy of image patches convex? (corollary 2.3)",
        "Bounds from above and below for the convexity threshold of the empirical measure of 3x3 to 8x8 patches of\n"
        "the training images of BSDS500. Each patch size is written at once; started again, the command computes\n"
        "what is missing.",
        "  gnc patches                                some minutes on one core\n"
        "  gnc patches --per-image 2 --out few.json   fewer patches",
    )  # fmt: skip
    sub.add_argument("--per-image", type=int, default=25, metavar="N", help="patches per image (default: 25)")
    sub.add_argument("--seed", type=int, default=0, help="of the patches and of the search (default: 0)")
    sub.add_argument("--out", type=Path, default=Path("runs/patches.json"), metavar="FILE",
                     help="result file (default: runs/patches.json)")  # fmt: skip


def _patches(args: argparse.Namespace) -> None:
    """Run ``gnc patches``. Raises ValueError for bad options or another file at --out."""
    from gnclib.images import data
    from gnclib.studies import patches as patch_bounds
    from gnclib.studies import results

    args.out.parent.mkdir(parents=True, exist_ok=True)
    images, about = data.training_images(), results.provenance()
    name = "BSDS500 train and test"
    for size, found in patch_bounds.compute(images, name, args.per_image, args.seed, args.out, about):
        edge = f"{found['edge']:.3f}" if found["edge"] else "none found"
        say(
            f"{size}x{size}: {found['patches']} patches; sigma by the corollary {found['theorem']:.3f}, Popoviciu"
            f" {found['popoviciu']:.3f}; not convex on R^d below {edge}, in the cube at {found['cube']:.3f}"
        )
    say(f"results are in {args.out}")
