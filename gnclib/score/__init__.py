"""Joint score matching (section 3.2): how the energies are learned.

Here: the losses, the toy on the line where all of them are known, the training loop, its data and its recipes.
Never: restoration of images beyond the one-step estimate that watches a training.
May import: `deep`, `foe`, `gmm`, `spline`, `images`, `io`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "recipes": [
            *("LEARN_LAST", "LEARN_RECIPES", "OBJECTIVES", "PRIORS", "RECIPES", "LearnConfig", "TrainConfig"),
            *("VARIANTS", "Variant", "learning_rate"),
        ],
        "distributed": ["ALONE", "Group"],
        "training_set": ["HELD_OUT", "denoising_psnr", "mmse"],
        "training": ["Step", "TrainState", "load_checkpoint", "small_prior"],
    },
)
