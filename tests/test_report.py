"""Pictures and films of images, and the files that a resumed run goes on with."""

import json

import numpy as np
from PIL import Image

from ebm_jax.report import pictures, reporter

METRICS = {"energy_data": 0.1, "energy_samples": 0.2, "energy_gap": -0.1, "chain_grad_norm": 0.5, "loss": 0.0}


def levels_of(values):
    """The level v of the interval [v/256, (v + 1)/256) that has each value; 1 belongs to the last."""
    return np.searchsorted(np.arange(1, 256) / 256, values, side="right").astype(np.uint8)


def test_a_grid_shows_each_image_enlarged_in_reading_order():
    values = np.linspace(0, 1, 6)
    images = np.broadcast_to(values[:, None, None, None], (6, 14, 14, 1))
    picture = pictures.grid(images)
    side = 4 * 14 + 2 * 3  # enlarged four times, with a gap of three pixels on each side
    assert picture.shape == (2 * side, 3 * side, 1)
    centres = picture[side // 2 :: side, side // 2 :: side, 0].reshape(-1)
    np.testing.assert_array_equal(centres, levels_of(values))


def test_a_grid_has_a_caption_below_each_image_that_fits_its_width():
    for channels in (1, 3):
        images = np.random.default_rng(0).random((5, 32, 32, channels))
        bare, captioned = pictures.grid(images), pictures.grid(images, ["cat", "W" * 50, "\n", "", "cat"])
        side, height = 36, 36 + pictures.SMALL_CAPTION
        assert captioned.shape == (2 * height, 3 * side, channels)
        rows = captioned.reshape(2, height, 3, side, channels).swapaxes(1, 2).reshape(6, height, side, channels)
        np.testing.assert_array_equal(
            rows[:5, :side],
            bare.reshape(2, side, 3, side, channels).swapaxes(1, 2).reshape(6, side, side, channels)[:5],
        )
        bands = rows[:5, side:].astype(int) - pictures.BACKGROUND
        np.testing.assert_array_equal(bands[0], bands[4])
        assert [bool(band.any()) for band in bands] == [True, True, True, False, True], "control characters are escaped"
        assert not bands[:, :, -1].any(), "no letter is cut in two"


def test_the_pictures_of_a_run_have_the_captions_that_they_are_given(tmp_path):
    images = np.zeros((2, 8, 8, 1))
    with reporter.Reporter(tmp_path, 0, 1) as written:
        written.image("named", 1, images, ["dog", "cat"])
        written.image("bare", 1, images)
    named, bare = (np.asarray(Image.open(tmp_path / "images" / f"{name}_000001.png")) for name in ("named", "bare"))
    np.testing.assert_array_equal(named, pictures.grid(images, ["dog", "cat"])[:, :, 0])
    np.testing.assert_array_equal(bare, pictures.grid(images)[:, :, 0])


def test_a_grid_file_is_what_the_grid_is(tmp_path):
    images = np.random.default_rng(0).uniform(size=(5, 32, 32, 3))
    pictures.write_grid(tmp_path / "a" / "grid.png", images)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "grid.png")), pictures.grid(images))


def test_rows_of_images_of_several_sizes_and_channels_stand_below_one_another_alike_in_size(tmp_path):
    rng = np.random.default_rng(0)
    rows = {"original": rng.uniform(size=(3, 32, 32, 3)), "observed": rng.uniform(size=(3, 8, 8, 1))}
    pictures.write_rows(tmp_path / "a" / "rows.png", rows)
    picture = np.asarray(Image.open(tmp_path / "a" / "rows.png"))
    assert picture.shape[1] == max(pictures.CAPTION_WIDTH, 3 * 36)
    expected = [
        levels_of(images).repeat(scale, 1).repeat(scale, 2) for images, scale in zip(rows.values(), (1, 4), strict=True)
    ]
    top = 0
    for images in expected:
        side = images.shape[1]
        gap = side // 16
        caption = picture[top : top + pictures.CAPTION]
        assert (caption == 255).any()
        assert caption.min() == pictures.BACKGROUND
        top += pictures.CAPTION
        for column, image in enumerate(images):
            left = column * (side + 2 * gap) + gap
            shown = picture[top + gap : top + gap + side, left : left + side]
            np.testing.assert_array_equal(shown, np.broadcast_to(image, shown.shape))
        top += side + 2 * gap
    assert top == len(picture)


def test_a_film_has_its_frames_in_order_goes_on_for_ever_and_holds_the_last(tmp_path):
    levels = np.linspace(0, 1, 6)
    for channels in (1, 3):
        frames = np.broadcast_to(levels[:, None, None, None, None], (6, 4, 8, 8, channels))
        pictures.write_film(tmp_path / "a" / "film.gif", frames)
        with Image.open(tmp_path / "a" / "film.gif") as film:
            assert film.n_frames == 6
            assert film.info["loop"] == 0
            durations = []
            for index in range(6):
                film.seek(index)
                durations.append(film.info["duration"])
                shown = np.asarray(film.convert("RGB"))
                expected = np.broadcast_to(pictures.grid(frames[index]), shown.shape)
                np.testing.assert_array_equal(shown, expected)  # gray levels all fit in a palette
        assert durations[:-1] == [pictures.FRAME_MS] * 5
        assert durations[-1] == pictures.LAST_FRAME_MS > pictures.FRAME_MS


def test_a_strip_has_a_chain_in_each_row_and_at_most_twelve_frames_from_first_to_last(tmp_path):
    for num_frames, places in ((3, [0, 1, 2]), (45, list(range(0, 45, 4)))):
        levels = np.linspace(0, 1, 2 * num_frames).reshape(num_frames, 2)
        frames = np.broadcast_to(levels[:, :, None, None, None], (num_frames, 2, 14, 14, 1))
        pictures.write_strip(tmp_path / "a" / "strip.png", frames)
        picture = np.asarray(Image.open(tmp_path / "a" / "strip.png"))
        side = 4 * 14 + 2 * 3
        assert picture.shape == (2 * side, len(places) * side)
        centres = picture[side // 2 :: side, side // 2 :: side]
        np.testing.assert_array_equal(centres, levels_of(levels[places].T))


def test_resuming_drops_the_lines_that_are_done_again_and_half_a_line(tmp_path):
    path = tmp_path / reporter.METRICS
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)) + '{"step": 4')
    with reporter.Reporter(tmp_path, 20, 100) as written:
        written.progress(30, METRICS, every=10)
        written.progress(35, METRICS, every=10)
        written.progress(100, METRICS, every=30)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 100]
    assert rows[2]["energy_samples"] == METRICS["energy_samples"]


def test_events_stay_when_a_run_goes_back_and_the_rows_of_steps_done_again_do_not(tmp_path):
    path = tmp_path / reporter.METRICS
    with reporter.Reporter(tmp_path, 0, 100) as written:
        for step in (10, 20, 30):
            written.progress(step, METRICS, every=10)
        written.event(35, "it is ill")
        written.go_back(20)
        written.progress(30, METRICS | {"loss": 7.0}, every=10)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 35, 30]
    assert rows[2] == {"step": 35, "event": "it is ill"}
    assert rows[3]["loss"] == 7.0
    with reporter.Reporter(tmp_path, 10, 100):
        pass
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 35]
    assert b"it is ill" in b"".join(file.read_bytes() for file in tmp_path.glob("events.out.tfevents.*"))


def test_a_process_that_is_not_the_first_writes_no_picture_no_density_no_row_and_no_event(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(reporter.processes, "is_first", lambda: False)
    points, log_q = np.full((5, 2), 0.5), np.zeros((4, 4))
    with reporter.Reporter(tmp_path, 0, 100) as written:
        written.progress(10, METRICS, every=10)
        written.event(11, "it is ill")
        written.image("chains", 12, np.zeros((1, 4, 4, 1)))
        written.density(12, points, points, log_q, {"kl": 0.5, "nll": 1.0, "entropy": 0.5})
    assert list(tmp_path.iterdir()) == []
    assert "nats" not in capsys.readouterr().out
