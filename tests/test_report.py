"""The picture of a grid, and the files that a resumed run goes on with."""

import json

import numpy as np
from PIL import Image

from ebm_jax.io import report

METRICS = {"energy_data": 0.1, "energy_samples": 0.2, "energy_gap": -0.1, "chain_grad_norm": 0.5, "loss": 0.0}


def test_a_grid_shows_each_image_enlarged_in_reading_order():
    values = np.linspace(0, 1, 6)
    images = np.broadcast_to(values[:, None, None, None], (6, 14, 14, 1))
    picture = report.grid(images)
    side = 4 * 14 + 2 * 3  # enlarged four times, with a gap of three pixels on each side
    assert picture.shape == (2 * side, 3 * side, 1)
    centres = picture[side // 2 :: side, side // 2 :: side, 0].reshape(-1)
    np.testing.assert_array_equal(centres, np.rint(255 * values))


def test_a_grid_file_is_what_the_grid_is(tmp_path):
    images = np.random.default_rng(0).uniform(size=(5, 32, 32, 3))
    report.write_grid(tmp_path / "a" / "grid.png", images)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "grid.png")), report.grid(images))


def test_resuming_drops_the_lines_that_are_done_again_and_half_a_line(tmp_path):
    path = tmp_path / report.METRICS
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)) + '{"step": 4')
    with report.Reporter(tmp_path, 20, 100) as reporter:
        reporter.progress(30, METRICS, every=10)
        reporter.progress(35, METRICS, every=10)
        reporter.progress(100, METRICS, every=30)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 100]
    assert rows[2]["energy_samples"] == METRICS["energy_samples"]
