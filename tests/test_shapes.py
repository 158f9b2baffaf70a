"""Generated shapes are where and what their factors say, by geometry, and the judge of compositions finds them."""

import numpy as np
import pytest

from benchmarks import composition
from configs import shapes_position
from ebm_jax import checks, schema
from ebm_jax.data import sources, toys
from ebm_jax.data.toys import SHAPES, render
from ebm_jax.types import BadInput

SIDE = 16
RNG = np.random.default_rng(0)
AREAS = {"disc": np.pi * 3**2, "bar": 27.0, "pillar": 27.0}  # pixels of 16x16
WIDTHS = {"disc": 6, "bar": 9, "pillar": 3}
HEIGHTS = {"disc": 6, "bar": 3, "pillar": 9}


def of(shape, positions, side=SIDE):
    return render(np.full(len(positions), SHAPES.index(shape)), positions, side)[..., 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [16, 24])
def test_a_shape_covers_the_area_of_its_geometry_wherever_it_is(shape, side):
    areas = of(shape, RNG.random((50, 2)), side).sum((1, 2))
    assert np.allclose(areas, AREAS[shape] * (side / 16) ** 2, rtol=1e-3)  # 64 slabs of a disc: 6e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_of_mass_is_the_position_and_x_runs_to_the_right_and_y_downwards(shape):
    positions, pixels = RNG.random((50, 2)), np.arange(SIDE) + 0.5
    images = of(shape, positions)
    mass = images.sum((1, 2))
    centre = np.stack([images.sum(1) @ pixels, images.sum(2) @ pixels], -1) / mass[:, None]
    # a partly covered pixel counts at its middle: wrong by at most 1/8 of its length
    assert (
        np.abs(centre - (4.5 + 7 * positions)).max() <= 0.125 * max(HEIGHTS[shape], WIDTHS[shape]) / AREAS[shape] + 1e-3
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_as_wide_and_as_high_as_its_geometry_and_whole_at_all_corners(shape):
    for corner in ([0, 0], [0, 1], [1, 0], [1, 1]):
        image = of(shape, np.array([corner]))[0]
        assert image.max() <= 1 + 1e-6
        assert np.isclose(image.sum(), AREAS[shape], rtol=1e-3)
    fine = of(shape, np.array([[0.5, 0.5]]), 160)[0] > 0.5
    assert abs(fine.any(0).sum() - 10 * WIDTHS[shape]) <= 2
    assert abs(fine.any(1).sum() - 10 * HEIGHTS[shape]) <= 2


def test_an_image_moves_with_its_position_to_a_fraction_of_a_pixel():
    """Moved by whole pixels it is the same image rolled; by half a pixel it is the mean of both."""
    at = of("bar", np.array([[0, 0.5], [1 / 7, 0.5], [0.5 / 7, 0.5]]))  # the first and second are on pixels' edges
    assert np.allclose(at[1], np.roll(at[0], 1, 1), atol=1e-6)
    assert np.allclose(at[2], (at[0] + at[1]) / 2, atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_gives_others():
    first, again, other = (toys.shapes("train", (16, 16, 1), "shape", seed) for seed in (0, 0, 1))
    assert (first.images == again.images).all()
    assert (first.labels == again.labels).all()
    assert (first.images != other.images).any((1, 2, 3)).mean() > 0.99


def test_no_image_of_one_split_is_in_the_other():
    train, test = (toys.shapes(split, (16, 16, 1), "shape").images.reshape(-1, 256) for split in ("train", "test"))
    assert len(train) == 4096
    assert len(test) == 1024
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in test}


def test_both_conditions_label_the_same_images_with_what_they_show():
    shape, position = (toys.shapes("test", (16, 16, 1), condition) for condition in ("shape", "position"))
    assert (shape.images == position.images).all()
    assert (shape.num_classes, position.num_classes) == (3, 2)
    assert np.allclose(shape.images / 255, render(shape.labels, position.labels, 16), atol=0.5 / 255 + 1e-6)
    assert (np.bincount(shape.labels) > 1024 / 3 - 5 * np.sqrt(1024 * 2 / 9)).all()  # five standard deviations
    assert (np.abs(position.labels.mean(0) - 0.5) < 5 / np.sqrt(12 * 1024)).all()


@pytest.mark.parametrize(
    ("split", "shape", "condition", "told"),
    [
        ("valid", (16, 16, 1), "shape", "data.split 'valid' is not a split of shapes; use one of train, test"),
        ("train", (16, 16, 3), "shape", r"data.shape \(16, 16, 3\) is not a square gray .* use \(16, 16, 1\)"),
        ("train", (16, 20, 1), "shape", r"data.shape \(16, 20, 1\) is not a square gray .* use \(16, 16, 1\)"),
        (
            "train",
            (16, 16, 1),
            "rotation",
            "data.condition 'rotation' is not a factor of shapes; use shape or position",
        ),
    ],
)
def test_what_the_generator_does_not_make_is_refused(split, shape, condition, told):
    with pytest.raises(BadInput, match=told):
        toys.shapes(split, shape, condition)


def test_a_run_reads_them_by_the_config_also_when_dry():
    config = schema.dry_run(shapes_position.get_config())
    checks.check(config, 1)
    source, expected = sources.make_source(config), toys.shapes("train", (16, 16, 1), "position")
    image, label = source.read(7)
    assert (image == expected.images[7]).all()
    assert (label == expected.labels[7]).all()
    assert source.length == 4096


def test_a_factor_that_shapes_do_not_have_is_refused_before_the_run():
    config = shapes_position.get_config()
    config.data.condition = "rotation"  # its labels are as long as a position's
    with pytest.raises(BadInput, match="'rotation' is not a factor of shapes"):
        sources.make_source(config)


def test_the_judge_finds_shape_and_place_of_every_clean_image_also_off_its_lattice():
    kinds, positions = RNG.integers(3, size=300), RNG.random((300, 2))
    verdict = composition.judge(render(kinds, positions, 16))
    assert (verdict.shapes == kinds).all()
    # half the diagonal of a lattice cell, and as much again because the nearest image may not be at the nearest place
    assert np.linalg.norm(7 * (verdict.positions - positions), axis=1).max() < np.sqrt(2) * 7 / (
        composition.LATTICE - 1
    )
    assert verdict.residuals.max() < 0.05


def test_shares_are_one_for_what_was_asked_and_chance_for_what_was_not():
    asked = composition.every_pair(5, 2)
    real = render(asked.shapes, asked.positions, 16)
    assert composition.shares(real, asked)[:3] == (1.0, 1.0, 1.0)
    others = asked._replace(shapes=(asked.shapes + 1) % 3)
    assert composition.shares(real, others)[:3] == (0.0, 1.0, 0.0)
    one_off = asked._replace(
        positions=(asked.positions + 0.25) % 1.25
    )  # the next place of the lattice, 7/4 pixels away
    assert composition.shares(real, one_off)[:3] == (1.0, 0.0, 0.0)


def test_a_black_image_has_a_residual_of_one():
    assert np.allclose(composition.judge(np.zeros((1, 16, 16, 1))).residuals, 1.0)


def test_the_picture_has_a_block_for_each_shape_with_each_image_at_its_place():
    asked = composition.every_pair(3, 2)
    picture = composition.picture(render(asked.shapes, asked.positions, 16), asked, 2)
    block = picture.shape[1] // 3
    for kind, (tall, wide) in enumerate([(45, 45), (25, 60), (60, 25)]):  # disc, bar and pillar, at most
        corner = picture[-90:, kind * block :][:, composition.GAP : composition.GAP + 90]  # the lower left image
        bright = np.argwhere(corner > 200)
        high, across = bright.max(0) - bright.min(0) + 1
        assert (0 < high <= tall, 0 < across <= wide) == (True, True), (kind, high, across)
        assert bright[:, 0].mean() > 50
        assert bright[:, 1].mean() < 40
