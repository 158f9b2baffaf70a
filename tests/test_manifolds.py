"""Precision, recall, density and coverage against scikit-learn's neighbours and loops over the definition."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from ebm_jax.metrics import manifolds
from ebm_jax.metrics.manifolds import Cover, cover, neighbour_distances
from ebm_jax.types import BadInput


def normal(n, d=3, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale


@pytest.fixture(params=[7, 1024])
def _chunk(request, monkeypatch):
    monkeypatch.setattr(manifolds, "CHUNK", request.param)


@pytest.mark.usefixtures("_chunk")
def test_distance_to_the_kth_neighbour_is_scikit_learns():
    x = normal(60)
    distances, _ = NearestNeighbors(n_neighbors=5).fit(x).kneighbors()  # without the row itself
    np.testing.assert_allclose(neighbour_distances(x, 5), np.square(distances[:, 4]), rtol=1e-9)


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("k", [1, 4])
def test_all_four_are_those_of_the_definitions(k):
    reference, samples = normal(50), normal(40, seed=1, scale=0.8) + 1.2

    def pairs(rows):
        """Each row with its neighbourhood's radius."""
        distances, _ = NearestNeighbors(n_neighbors=k).fit(rows).kneighbors()
        return list(zip(rows, distances[:, -1], strict=True))

    inside = np.array([[np.linalg.norm(y - x) <= r for y in samples] for x, r in pairs(reference)])
    outside_in = np.array([[np.linalg.norm(y - x) <= r for x in reference] for y, r in pairs(samples)])
    expected = Cover(
        precision=inside.any(0).mean(),
        recall=outside_in.any(0).mean(),
        density=inside.sum() / (k * len(samples)),
        coverage=inside.any(1).mean(),
    )
    assert 0 < expected.precision < 1, "the case would say nothing"
    np.testing.assert_allclose(cover(reference, samples, neighbours=k), expected, rtol=1e-12)


def test_a_set_covers_itself_and_sets_far_apart_do_not_cover_each_other():
    x = normal(40)
    assert cover(x, x, neighbours=3)[:2] == (1, 1)
    assert cover(x, x, neighbours=3).coverage == 1
    assert cover(x, x + 100, neighbours=3) == Cover(0, 0, 0, 0)


def test_a_collapsed_set_is_precise_and_recalls_little():
    reference, samples = normal(300), normal(300, seed=1, scale=0.1)
    found = cover(reference, samples, neighbours=3)
    assert found.precision > 0.9
    assert found.recall < 0.1
    assert found.coverage < 0.2


def test_density_and_coverage_of_two_sets_of_one_law_are_their_expectations():
    k, n = 5, 800
    found = [cover(normal(n, seed=2 * seed), normal(n, seed=2 * seed + 1), neighbours=k) for seed in range(8)]
    densities, coverages = [one.density for one in found], [one.coverage for one in found]
    # Naeem 2020, lemmas: E[density] = 1, E[coverage] = 1 - Π_{i=0}^{k-1} (n-1-i)/(2n-1-i)
    exact = 1 - np.prod([(n - 1 - i) / (2 * n - 1 - i) for i in range(k)])
    assert abs(np.mean(densities) - 1) < 5 * np.std(densities, ddof=1) / np.sqrt(8)
    assert abs(np.mean(coverages) - exact) < 5 * np.std(coverages, ddof=1) / np.sqrt(8)


def test_too_many_neighbours_and_sets_of_different_features_are_refused_in_one_line():
    with pytest.raises(BadInput, match=r"^4 neighbours among 4 samples; use 1 to 3$"):
        cover(normal(9), normal(4), neighbours=4)
    with pytest.raises(BadInput, match=r"^sets of 3 and 2 features.*$"):
        cover(normal(9), normal(9, 2), neighbours=4)
