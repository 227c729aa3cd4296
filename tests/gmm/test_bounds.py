"""Thresholds of empirical measures: edges of hulls, the search, and the file of results."""

import json
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gnclib.gmm import bounds, empirical
from gnclib.gmm.bounds import (
    _spread,
    edge_direction,
    largest_spread,
    longest_edge,
    squared_diameter,
    threshold_on_box,
)
from gnclib.studies import patches as patch_bounds

F64 = {"dtype": torch.float64}


def polygon(n):
    angle = 2 * math.pi * torch.arange(n, **F64) / n
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_edges_of_a_polygon_are_found_and_diagonals_are_not():
    points = torch.cat([polygon(7), 0.3 * polygon(4)])
    for a in range(7):
        for b in range(a):
            edge = edge_direction(points, a, b)
            assert (edge is not None) == ((a - b) % 7 in (1, 6)), (a, b)
            if edge:
                across = (points[a] - points[b]).numpy() @ edge.direction
                assert abs(across) < 1e-12
                assert edge.margin > 0
                assert edge.length == pytest.approx(2 * math.sin(math.pi / 7))
    assert edge_direction(points, 0, 8) is None  # an inner point


def test_the_longest_edge_and_not_the_longest_diagonal():
    points = torch.tensor([[0, 0], [3, 0], [3, 1], [0, 1], [1.5, 0.5]], **F64)
    edge = longest_edge(points, torch.arange(5))
    assert edge.length == 3.0
    assert squared_diameter(points) == pytest.approx(10)
    assert longest_edge(points[4:], torch.arange(1)) is None


def test_a_point_is_no_edge():
    """Where no pair is an edge none is returned, although rounding makes points distant from themselves."""
    points = 5 + 10 * polygon(56)
    every_other = torch.arange(0, 56, 2)
    assert torch.cdist(points[every_other], points[every_other]).diagonal().max() > 0
    assert longest_edge(points, every_other, tries=500) is None


def test_the_diameter_of_more_points_than_fit_into_one_table():
    points = torch.rand(2300, 2, generator=torch.Generator().manual_seed(0), **F64)
    points[[7, 2100]] = torch.tensor([[-3.0, 0.0], [0.0, 4.0]], **F64)  # in the first and in the last part
    assert squared_diameter(points) == pytest.approx(25)
    assert squared_diameter(points + 1e8) == pytest.approx(25, rel=1e-6)


def test_the_margin_and_the_direction_of_an_edge_in_numbers():
    points = torch.tensor([[0, 0], [4, 0], [4, 2], [1, 2], [2, 1]], **F64)
    edge = edge_direction(points, 0, 1)
    assert (edge.a, edge.b, edge.length, edge.t_below) == (0, 1, 4.0, 4.0)
    assert edge.direction == pytest.approx([0, -1], abs=1e-12)
    assert edge.margin == pytest.approx(1)  # the nearest of the others is (2, 1)


def solution(monkeypatch, x):
    monkeypatch.setattr(bounds, "linprog", lambda *_, **__: SimpleNamespace(status=0, x=np.array(x)))


def test_a_direction_that_is_only_nearly_across_the_edge_is_made_exact(monkeypatch):
    """The linear program is solved to 1e-7 only."""
    solution(monkeypatch, [1e-3, -2.0])
    edge = edge_direction(torch.tensor([[0, 0], [3, 0], [1, 1]], **F64), 0, 1)
    assert edge.direction.tolist() == [0, -1]


@pytest.mark.parametrize(("height", "found"), [(2.9e-9, False), (3.1e-9, True), (5.9e-9, True)])
def test_a_margin_below_rounding_is_no_margin(monkeypatch, height, found):
    """A billionth of the largest coordinate, 3 here."""
    solution(monkeypatch, [0.0, -1.0])
    points = torch.tensor([[0, 0], [3, 0], [1, height], [2, 2]], **F64)
    assert (edge_direction(points, 0, 1) is not None) == found


def test_pairs_are_tried_from_the_farthest_down_in_growing_steps(monkeypatch):
    """One by one for the first thirty, then every second; sixty linear programs at most."""
    points, tried = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), **F64), []
    monkeypatch.setattr(bounds, "edge_direction", lambda points, a, b: tried.append((a, b)))
    candidates = torch.arange(39, -1, -1)
    assert longest_edge(points, candidates) is None
    pairs = [(a, b) for a in range(40) for b in range(a)]
    ranked = sorted(pairs, key=lambda pair: -(points[pair[0]] - points[pair[1]]).norm().item())
    ranks = [ranked.index((max(pair), min(pair))) for pair in tried]
    assert ranks[:32] == [*range(31), 32]
    assert len(ranks) == 60
    assert all(1 <= b - a <= max(1, a / 15) for a, b in pairwise(ranks))


def test_far_out_along_the_direction_the_energy_is_not_convex_below_the_bound():
    """The statement about edges, on the Hessian of the library: at y = r u + shift, for t just below |a - b|^2/4."""
    generator = torch.Generator().manual_seed(0)
    for d in (2, 3, 5):
        points = torch.rand(9, d, generator=generator, **F64)
        edge = longest_edge(points, torch.arange(9))
        t, u = 0.98 * edge.t_below, torch.from_numpy(edge.direction)
        along = torch.nn.functional.normalize(points[edge.b] - points[edge.a], dim=0)
        middle = (points[edge.a] + points[edge.b]) @ along / 2
        y = 40 * t / edge.margin * u
        y = y + (middle - y @ along) * along  # as far from a as from b
        eigenvalues = torch.linalg.eigvalsh(empirical(points).hessian(y[None], t)[0])
        assert eigenvalues[0] < 0
        assert torch.linalg.eigvalsh(empirical(points).hessian(y[None], 1.02 * edge.t_below)[0])[0] > 0


def test_the_gradient_of_the_spread_against_differences():
    generator = torch.Generator().manual_seed(1)
    points, y = torch.randn(20, 3, generator=generator, **F64), torch.randn(4, 3, generator=generator, **F64)
    norms, start = points.square().sum(1), torch.nn.functional.normalize(torch.ones(4, 3, **F64), dim=1)
    value, gradient, _ = _spread(points, norms, y, start, 0.7, 400)
    exact = torch.linalg.eigvalsh(torch.eye(3, **F64) - 0.7 * empirical(points).hessian(y, 0.7))[:, -1] * 0.7
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-9)
    for k in range(3):
        shift = 1e-5 * torch.eye(3, **F64)[k]
        ends = [_spread(points, norms, y + s * shift, start, 0.7, 400)[0] for s in (1, -1)]
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-5, gradient[:, k], rtol=1e-4, atol=1e-6)


def test_the_search_finds_the_exact_threshold_of_two_points_and_never_more():
    points = torch.tensor([[0.1, 0.2], [0.9, 0.6]], **F64)  # the midpoint is in the box: t* = |a - b|^2/4
    found, where = threshold_on_box(points, (0.0, 1.0), torch.Generator().manual_seed(0), accuracy=0.01)
    exact = squared_diameter(points) / 4
    assert 0.97 * exact < found <= exact
    assert ((where >= 0) & (where <= 1)).all()
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        cloud = torch.rand(30, 3, generator=generator, **F64)
        found, where = threshold_on_box(cloud, (0.0, 1.0), generator)
        assert 0 < found <= squared_diameter(cloud) / 4
        assert torch.linalg.eigvalsh(empirical(cloud).hessian(where[None], found)[0])[0] <= 1e-9


@pytest.mark.parametrize("threshold", [0.003, 0.37, 20.0])
def test_the_bisection_ends_within_its_accuracy(monkeypatch, threshold):
    """With a largest variance that is the same at every t, the answer is known."""
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.5]], **F64)
    times = []
    monkeypatch.setattr(
        bounds,
        "largest_spread",
        lambda _, y, t, box: times.append(t) or (torch.full((len(y),), threshold), y),
    )
    found, _ = threshold_on_box(points, (0.0, 1.0), torch.Generator().manual_seed(0))
    assert threshold / 1.02 <= found < threshold
    for seen, done in ((times, True), (times[:-1], False)):  # not earlier and not later than needed
        low = max([t for t in seen if t < threshold], default=0)
        high = min([t for t in seen if t >= threshold], default=math.inf)
        assert (high <= 1.02 * low) is done


def test_the_search_returns_the_worst_of_its_points():
    """Of the points where F is not convex at the t found, the one with the largest covariance."""
    generator = torch.Generator().manual_seed(5)
    cloud = torch.rand(12, 2, generator=generator, **F64)
    found, where = threshold_on_box(cloud, (0.0, 1.0), generator)
    _, others = largest_spread(cloud, (cloud[:6] + cloud[6:]) / 2, found, (0.0, 1.0))
    eigenvalues = torch.linalg.eigvalsh(empirical(cloud).hessian(torch.cat([where[None], others]), found))[
        :, 0
    ]
    assert eigenvalues[0] <= eigenvalues.min() + 1e-6


@pytest.mark.parametrize("t", [0.02, 0.05, 0.2])
def test_the_ascent_finds_the_largest_covariance_of_a_grid(t):
    points = torch.rand(8, 2, generator=torch.Generator().manual_seed(6), **F64)
    starts = (points[:, None] + points).reshape(-1, 2) / 2
    found, ends = largest_spread(points, starts, t, (0.0, 1.0))
    axis = torch.linspace(0, 1, 201, **F64)
    grid = torch.cartesian_prod(axis, axis)
    spreads = t - t**2 * torch.linalg.eigvalsh(empirical(points).hessian(grid, t))[:, 0]
    assert found.max() >= 0.98 * spreads.max()
    at_ends = t - t**2 * torch.linalg.eigvalsh(empirical(points).hessian(ends, t))[:, 0]
    assert (found <= at_ends + 1e-9).all()


def test_the_ascent_climbs():
    points = torch.rand(50, 4, generator=torch.Generator().manual_seed(3), **F64)
    starts = points[:8]
    before, _ = largest_spread(points, starts, 0.05, (0.0, 1.0), steps=0)
    after, ends = largest_spread(points, starts, 0.05, (0.0, 1.0), steps=60)
    assert after.max() > before.max()
    assert ((ends >= 0) & (ends <= 1)).all()


# --- the file of results ----------------------------------------------------------------------------------


def images():
    generator = torch.Generator().manual_seed(4)
    return {name: torch.rand(1, 1, 20, 24, generator=generator) for name in "ab"}


def test_patches_are_distinct_reproducible_and_inside_the_images():
    one, two = (patch_bounds.draw(images(), 3, 20, seed=5) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (len(torch.unique(one, dim=0)), 9)
    assert len(one) <= 40
    windows = torch.cat(
        [image.double().unfold(2, 3, 1).unfold(3, 3, 1).reshape(-1, 9) for image in images().values()]
    )
    assert all((windows == patch).all(1).any() for patch in one)
    with pytest.raises(ValueError, match="has no 30 x 30 patch"):
        patch_bounds.draw(images(), 30, 1, 0)


def test_a_file_is_continued_and_foreign_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(patch_bounds, "SIZES", (2, 3))
    path = tmp_path / "patches.json"
    run = dict(name="test", per_image=10, seed=0, path=path)
    first = next(patch_bounds.compute(images(), **run))  # stopped after the first size
    assert first.size == 2
    rest = list(patch_bounds.compute(images(), **run))
    assert [row.size for row in rest] == [3]
    content = patch_bounds.load(path)
    assert [row.size for row in content.rows["sizes"]] == [2, 3]
    for row in content.rows["sizes"]:
        assert row.cube <= row.popoviciu == row.theorem / 2
        assert row.edge <= row.popoviciu
    with pytest.raises(ValueError, match="its seed is 0, not 1"):
        next(patch_bounds.compute(images(), **run | {"seed": 1}))
    path.write_text(json.dumps({"settings": {}}))
    with pytest.raises(ValueError, match="no result file of 'gnc patches'"):
        patch_bounds.load(path)
