"""Pictures and data sets, in and out, and how alike two pictures are.

Here: image files, BSDS500 and BSDS68, crops, PSNR and SSIM.
Never: energies.
May import: `io`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "crops": ["PatchSampler", "middle", "patches"],
        "data": [
            *("add_noise", "bsds68", "embedded", "folder_images", "image_files", "refuse_validation"),
            *("training_images", "validation_images"),
        ],
        "metrics": ["psnr", "ssim"],
        "reading": ["Picture", "declared_pixels", "read", "read_mask"],
        "stacks": ["Stack", "layout", "unpack"],
        "writing": ["check_map", "check_place", "check_writable", "quantise", "write", "write_map"],
    },
)
