"""Architectures as numbers: defaults against the shipped priors, limits from both sides, sizes against an energy."""

import json
from dataclasses import replace

import pytest

from gnclib.foe import WEIGHTS, FieldsOfExperts, FoEConfig


def stored(name):
    return FoEConfig.from_dict(json.loads((WEIGHTS / name / "config.json").read_text()))


def test_the_defaults_are_those_of_the_shipped_priors():
    """R1 sets nothing; C1 has coarser scales, whose sizes it takes as they are."""
    assert stored("R1") == FoEConfig()
    assert stored("R3") == FoEConfig(layers=3, dilation=2)
    own = {name: getattr(stored("C1"), name) for name in ("nodes_tau", "sigma_max", "scales", "convex_from")}
    assert stored("C1") == FoEConfig(**own)


INSIDE = [
    {"layers": 1000},
    {"features": 1},
    {"features": 48},
    {"kernel_size": 1001},
    {"kernel_size": 3, "features": 8},
    {"deep_kernel_size": 1},
    {"dilation": 1000},
    {"nodes_x": 5},
    {"range": 1e-6},
    {"range": 1e6},
    {"sigma_min": 1e-6, "sigma_max": 2e-6},
    {"scales": 10},
    {"scales": 1, "coarse_features": 48},
    {"coarse_features": 99},  # without coarser scales nobody reads it
    {"convex_from": 1e-6},
    {"layers": 2, "coarse_features": 99},
]


@pytest.mark.parametrize("changes", INSIDE, ids=str)
def test_what_is_just_allowed(changes):
    config = FoEConfig(**changes)
    assert {name: getattr(config, name) for name in changes} == changes


OUTSIDE = [
    ({"layers": 0}, "layers must be a positive integer"),
    ({"layers": 1001}, "layers must be a positive integer, at most 1000"),
    ({"features": 0}, "features must be a positive integer"),
    ({"features": 49}, r"features must lie in 1\.\.48"),
    ({"kernel_size": 3, "features": 9}, r"features must lie in 1\.\.8"),
    ({"deep_kernel_size": 2}, "deep_kernel_size must be odd"),
    ({"nodes_x": 4}, "nodes_x must be an integer, at least 5"),
    ({"range": 0.9e-6}, r"range must lie in \[1e-6, 1e6\]"),
    ({"range": 1.1e6}, r"range must lie in \[1e-6, 1e6\]"),
    ({"sigma_min": 0.5, "sigma_max": 0.5}, "sigma_min < sigma_max"),
    ({"scales": -1}, "scales must be an integer from 0 to 10"),
    ({"scales": 11}, "scales must be an integer from 0 to 10"),
    ({"scales": 1, "coarse_features": 49}, "coarse_features must lie in"),
]


@pytest.mark.parametrize(("changes", "message"), OUTSIDE, ids=str)
def test_what_is_just_not(changes, message):
    with pytest.raises(ValueError, match=message):
        FoEConfig(**changes)


@pytest.mark.parametrize(
    ("config", "margin", "dilations"),
    [
        (FoEConfig(), 3, (1,)),
        (FoEConfig(layers=2), 4, (1, 1)),
        (FoEConfig(layers=3, dilation=2), 7, (1, 2, 2)),
        (FoEConfig(layers=3, dilation=3, deep_kernel_size=5, kernel_size=9), 16, (1, 3, 3)),
    ],
)
def test_margins_and_dilations(config, margin, dilations):
    assert (config.margin, config.dilations) == (margin, dilations)


@pytest.mark.parametrize(
    "config",
    [
        FoEConfig(layers=3, features=5, kernel_size=5, deep_kernel_size=1, nodes_x=9, nodes_tau=6),
        FoEConfig(features=4, kernel_size=3, scales=2, coarse_features=3, coarse_nodes=8),
    ],
)
def test_shapes_are_those_of_an_energy(config):
    state = FieldsOfExperts(config).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == config.shapes


def test_grids():
    config = FoEConfig(nodes_x=9, range=2.0, coarse_nodes=7, sigma_min=0.1, sigma_max=1.0)
    assert (config.grid_x.count, config.grid_x.low, config.grid_x.high) == (9, -2.0, 2.0)
    assert replace(config.grid_x, count=7) == config.coarse_grid
    assert config.grid_tau.nodes()[[0, -1]].tolist() == pytest.approx([-2.796, 0.493], abs=1e-3)
