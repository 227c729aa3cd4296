"""Recipes of the shipped priors and schedules, and the variants of ``gnc ablate``; no torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gnclib.foe import FoEConfig
from gnclib.score.settings import LearnConfig, TrainConfig

__all__ = ["LEARN_RECIPES", "PRIORS", "RECIPES", "STEPS", "Variant", "variants"]

#: the priors that can be trained by name
PRIORS = {
    "R1": FoEConfig(layers=1),
    "R2": FoEConfig(layers=2, dilation=2),
    "R3": FoEConfig(layers=3, dilation=2),
}
_SHIPPED = TrainConfig(objective="denoising", roughness=10.0, averaging=0.9995)
_DEEP = {"lr": 5e-4, "smoothing": 1e-4, "roughness_hidden": 0.1, "warm_start_hidden": "magnitude"}
#: the settings with which the shipped priors are trained
RECIPES = {
    "R1": replace(_SHIPPED, batch=16, patch=48),
    "R2": replace(_SHIPPED, batch=4, patch=64, **_DEEP),
    "R3": replace(_SHIPPED, batch=4, patch=72, **_DEEP),
}
#: the settings of the shipped schedules, and those of fine-tuning; lr_prior on validation images for R3 at sigma 25:
#: 3e-4 had gained 0.02 dB after 120 updates, where 1e-3 had lost 0.03
LEARN_RECIPES = {
    "schedule": LearnConfig(),
    "finetune": LearnConfig(iterations=1000, lr=0.01, lr_prior=3e-4),
}
#: iterations of each training of ``gnc ablate``
STEPS = 1000


@dataclass(frozen=True)
class Variant:
    """One way to build and train a prior: a name, the architecture, the training and the start.

    Parameters
    ----------
    name, prior, config
        What the tables call it, the architecture, the training.
    kernels
        "dct" or "random" for K_1.
    warm
        What a deeper prior sets out from (:meth:`gnclib.foe.FieldsOfExperts.warm_start`): a variant of one layer, which
        is trained first with the same seed, or None for the cold start (K_1 as ``kernels`` says, Kaiming-normal K_2 ...
        K_L).
    """

    name: str
    prior: FoEConfig = field(default_factory=FoEConfig)
    config: TrainConfig = field(default_factory=TrainConfig)
    kernels: str = "dct"
    warm: Variant | None = None


def variants(steps: int = STEPS) -> list[Variant]:
    """The variants that are compared.

    The recipe of the shipped R_1 with so many steps (but for the averaging of weights, which is one of the variants),
    the same with one ingredient exchanged at a time, and R_3 from the warm start on the way to its own recipe: a
    smaller lambda, then magnitudes for identities, then kernels that reach further.
    """
    config = TrainConfig(
        steps=steps, batch=16, patch=48, lr=1e-3, smoothing=5e-4, fraction=0.125, objective="denoising", roughness=10.0
    )  # fmt: skip
    recipe = Variant("recipe", FoEConfig(), config)

    def trained(name: str, **changes) -> Variant:
        return replace(recipe, name=name, config=replace(config, **changes))

    def shaped(name: str, **changes) -> Variant:
        return replace(recipe, name=name, prior=replace(recipe.prior, **changes))

    deep = Variant("R_3 warm", FoEConfig(layers=3), replace(config, batch=4, patch=64, lr=5e-4), warm=recipe)
    light = replace(deep, name="R_3 lambda / 5", config=replace(deep.config, smoothing=config.smoothing / 5))
    bent = replace(light.config, warm_start_hidden="magnitude", roughness_hidden=0.1)
    magnitudes = replace(light, name="R_3 magnitudes", config=bent)
    return [
        recipe,
        deep,
        replace(deep, name="R_3 cold", warm=None),
        light,
        magnitudes,
        replace(magnitudes, name="R_3 dilated", prior=replace(magnitudes.prior, dilation=2)),
        trained("lambda = 0", smoothing=0.0),
        trained("lambda x 10", smoothing=10 * config.smoothing),
        trained("roughness = 0", roughness=0.0),
        shaped("input not scaled", scaled_input=False, range=4.0, nodes_x=127),
        replace(recipe, name="random kernels", kernels="random"),
        trained("objective corrected", objective="corrected"),
        trained("objective printed", objective="printed"),
        trained("objective vanishing", objective="vanishing"),
        shaped("N_tau = 5", nodes_tau=5),
        shaped("N_tau = 21", nodes_tau=21),
        shaped("N_x = 31", nodes_x=31),
        shaped("N_x = 191", nodes_x=191),
        trained("roughness x 10", roughness=10 * config.roughness),
        trained("averaged weights", averaging=0.9995),
    ]
