"""Pictures and data sets, in and out, and how alike two pictures are.

Here: image files, BSDS500 and BSDS68, crops, PSNR and SSIM.
Never: energies.
May import: `io`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "data": ["add_noise", "bsds68", "embedded", "training_images", "validation_images"],
        "folders": ["folder_images", "image_files"],
        "metrics": ["psnr", "ssim"],
        "reading": ["Picture", "read"],
        "writing": ["check_writable", "quantise", "write"],
    },
)
