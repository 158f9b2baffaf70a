"""Pictures, films and figures with their words, and the files that a resumed run goes on with."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ebm_jax import schema
from ebm_jax.report import figures, pictures, reporter, style

METRICS = {"energy_data": 0.1, "energy_samples": 0.2, "energy_gap": -0.1, "chain_grad_norm": 0.5, "loss": 0.0}


def levels_of(values):
    """The level v of the interval [v/256, (v + 1)/256) that has each value; 1 belongs to the last."""
    return np.searchsorted(np.arange(1, 256) / 256, values, side="right").astype(np.uint8)


def test_a_grid_shows_each_image_enlarged_by_a_whole_factor_in_reading_order_below_its_title():
    images = np.random.default_rng(0).uniform(size=(6, 14, 14, 1))
    bare, titled = pictures.grid(images), pictures.grid(images, title="six images")
    side = 6 * 14 + 2 * 5  # enlarged six times, with a gap of five pixels on each side
    assert bare.shape == (2 * side, 3 * side, 1)
    for place, image in enumerate(levels_of(images)):
        top, left = 5 + place // 3 * side, 5 + place % 3 * side
        np.testing.assert_array_equal(bare[top : top + 84, left : left + 84], image.repeat(6, 0).repeat(6, 1))
    np.testing.assert_array_equal(titled[style.TITLE_LINE :, : bare.shape[1]], bare)
    assert titled.shape[1] == style.LEAST_WIDTH > bare.shape[1]
    assert (titled[: style.TITLE_LINE] == 255).any()


def test_large_images_are_not_enlarged():
    for size, scale in ((8, 10), (28, 3), (32, 2), (48, 1), (128, 1)):
        gap = max(1, size * scale // 16)
        assert pictures.grid(np.zeros((1, size, size, 3))).shape == (size * scale + 2 * gap,) * 2 + (3,)


def test_a_grid_has_a_caption_below_each_image_that_fits_its_width():
    for channels in (1, 3):
        images = np.random.default_rng(0).random((5, 32, 32, channels))
        bare, captioned = pictures.grid(images), pictures.grid(images, ["cat", "W" * 50, "\n", "", "cat"])
        side, height = 72, 72 + style.CAPTION_LINE
        assert captioned.shape == (2 * height, 3 * side, channels)
        rows = captioned.reshape(2, height, 3, side, channels).swapaxes(1, 2).reshape(6, height, side, channels)
        np.testing.assert_array_equal(
            rows[:5, :side],
            bare.reshape(2, side, 3, side, channels).swapaxes(1, 2).reshape(6, side, side, channels)[:5],
        )
        bands = rows[:5, side:].astype(int) - style.BACKGROUND
        np.testing.assert_array_equal(bands[0], bands[4])
        assert [bool(band.any()) for band in bands] == [True, True, True, False, True], "control characters are escaped"
        assert not bands[:, :, -1].any(), "no letter is cut in two"
        fits = style.caption_band("WWWW…", side)
        np.testing.assert_array_equal(bands[1, ..., 0] + style.BACKGROUND, np.asarray(fits))
        two = pictures.grid(images, [""] * 5, ["cat"] * 5)
        assert len(two) == 2 * (height + style.CAPTION_LINE), "a line of captions below another"
        np.testing.assert_array_equal(
            two[height : height + style.CAPTION_LINE, :side, 0] - style.BACKGROUND, bands[0, ..., 0]
        )


def test_letters_with_accents_and_of_other_alphabets_are_not_the_box_of_an_unknown_one():
    unknown = np.asarray(style.caption_band("\ufdd0", 80))
    shown = [np.asarray(style.caption_band(letter, 80)) for letter in "é→жΩ·"]
    assert not any((band == unknown).all() for band in shown)
    assert len({band.tobytes() for band in shown}) == 5


def test_a_title_breaks_its_lines_to_fit_and_loses_no_word(monkeypatch):
    drawn = []
    real = style.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        style.ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, **rest: (drawn.append(text), real(self, at, text, **rest)),
    )
    title = style.title("digits", 1750, "64 samples", "100 steps of descent, 20 chain steps", "", "EMA weights")
    assert title == "digits, step 1,750: 64 samples\n100 steps of descent, 20 chain steps; EMA weights"
    for width, lines in ((600, 2), (200, 4)):
        drawn.clear()
        band = np.asarray(style.title_band(title, width))
        assert band.shape == (lines * style.TITLE_LINE, width)
        assert " ".join(drawn).split() == title.split()
        assert (band[:, -1] == style.TITLE_BACKGROUND).all(), "no letter at the edge"


def test_the_steps_of_sampling_in_words():
    for changes, words in {
        (): "300 chain steps, the last 100 without noise",
        (("sample.quiet_steps", 0),): "300 chain steps",
        (
            ("sample.descent_steps", 60),
            ("sample.num_steps", 20),
        ): "60 steps of descent, 20 chain steps, all without noise",
        (("chain.kernel", "descent"), ("sample.quiet_steps", 0)): "300 steps of descent",
    }.items():
        config = schema.with_values(schema.default_config(), dict(changes))
        assert style.steps(config) == words
        assert style.of_noise(config) == f"{words}; start: noise; EMA weights"
    config = schema.with_values(schema.default_config(), {"sample.weights": "raw"})
    assert style.weights(config) == "weights of the last step"


def test_the_pictures_of_a_run_have_the_captions_that_they_are_given(tmp_path):
    images = np.zeros((2, 8, 8, 1))
    with reporter.Reporter(tmp_path, 0, 1) as written:
        written.image("named", 1, images, ["dog", "cat"], "a title")
        written.image("bare", 1, images)
    named, bare = (np.asarray(Image.open(tmp_path / "images" / f"{name}_000001.png")) for name in ("named", "bare"))
    np.testing.assert_array_equal(named, pictures.grid(images, ["dog", "cat"], title="a title")[:, :, 0])
    np.testing.assert_array_equal(bare, pictures.grid(images)[:, :, 0])


def test_a_grid_file_is_what_the_grid_is(tmp_path):
    images = np.random.default_rng(0).uniform(size=(5, 32, 32, 3))
    pictures.write_grid(tmp_path / "a" / "grid.png", images, title="a title")
    found = np.asarray(Image.open(tmp_path / "a" / "grid.png"))
    np.testing.assert_array_equal(found, pictures.grid(images, title="a title"))


def test_rows_of_images_of_several_sizes_and_channels_stand_below_one_another_alike_in_size(tmp_path):
    rng = np.random.default_rng(0)
    rows = {"original": rng.uniform(size=(3, 32, 32, 3)), "observed": rng.uniform(size=(3, 8, 8, 1))}
    pictures.write_rows(tmp_path / "a" / "rows.png", rows, "a title")
    picture = np.asarray(Image.open(tmp_path / "a" / "rows.png"))
    assert picture.shape[1] == style.LEAST_WIDTH
    expected = [
        levels_of(images).repeat(scale, 1).repeat(scale, 2) for images, scale in zip(rows.values(), (2, 8), strict=True)
    ]
    top = style.TITLE_LINE
    for images in expected:
        side = images.shape[1]
        gap = side // 16
        heading = picture[top : top + style.TITLE_LINE]
        assert (heading == 255).any()
        assert heading.min() == style.BACKGROUND
        top += style.TITLE_LINE
        for column, image in enumerate(images):
            left = column * (side + 2 * gap) + gap
            shown = picture[top + gap : top + gap + side, left : left + side]
            np.testing.assert_array_equal(shown, np.broadcast_to(image, shown.shape))
        top += side + 2 * gap
    assert top == len(picture)


@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_pixels_are_hatched_and_no_others(tmp_path, channels):
    rng = np.random.default_rng(0)
    images, hidden = rng.uniform(size=(2, 8, 8, channels)), rng.random((8, 8)) < 0.5
    pictures.write_rows(tmp_path / "rows.png", {"known": pictures.Row(images, hidden=hidden)})
    picture = np.asarray(Image.open(tmp_path / "rows.png"))[style.TITLE_LINE + 5 :]
    blocks = [picture[:80, left : left + 80].reshape(8, 10, 8, 10, 3).swapaxes(1, 2) for left in (5, 95)]
    for image, found in zip(levels_of(images), blocks, strict=True):
        known = (found == image[:, :, None, None]).all((2, 3, 4))
        np.testing.assert_array_equal(known, ~hidden)
        for block in found[hidden]:
            assert {tuple(pixel) for pixel in block.reshape(-1, 3).tolist()} == set(style.HATCH)
    np.testing.assert_array_equal(blocks[0][hidden], blocks[1][hidden])


def test_a_row_has_its_captions_below_its_images(tmp_path):
    images = np.zeros((2, 8, 8, 1))
    pictures.write_rows(tmp_path / "rows.png", {"": pictures.Row(images, ["cat", "é"])})
    band = np.asarray(Image.open(tmp_path / "rows.png"))[-style.CAPTION_LINE :, : 2 * 90, 0]
    np.testing.assert_array_equal(band[:, :90], np.asarray(style.caption_band("cat", 90)))
    np.testing.assert_array_equal(band[:, 90:], np.asarray(style.caption_band("é", 90)))


def test_a_film_has_its_frames_in_order_goes_on_for_ever_and_holds_the_last(tmp_path):
    levels = np.linspace(0, 1, 6)
    for channels in (1, 3):
        frames = np.broadcast_to(levels[:, None, None, None, None], (6, 4, 8, 8, channels))
        pictures.write_film(tmp_path / "a" / "film.gif", frames, range(0, 12, 2), "a title", ["cat"] * 4)
        with Image.open(tmp_path / "a" / "film.gif") as film:
            assert film.n_frames == 6
            assert film.info["loop"] == 0
            durations = []
            for index in range(6):
                film.seek(index)
                durations.append(film.info["duration"])
                shown = np.asarray(film.convert("RGB"))
                title = f"a title\nstep {2 * index} of 10"
                expected = np.broadcast_to(pictures.grid(frames[index], ["cat"] * 4, title=title), shown.shape)
                np.testing.assert_array_equal(shown, expected)  # gray levels all fit in a palette
        assert durations[:-1] == [pictures.FRAME_MS] * 5
        assert durations[-1] == pictures.LAST_FRAME_MS > pictures.FRAME_MS


def test_a_strip_has_a_chain_in_each_row_and_at_most_twelve_frames_from_first_to_last_with_their_steps(tmp_path):
    for num_frames, places in ((3, [0, 1, 2]), (45, list(range(0, 45, 4)))):
        levels = np.linspace(0, 1, 2 * num_frames).reshape(num_frames, 2)
        frames = np.broadcast_to(levels[:, :, None, None, None], (num_frames, 2, 14, 14, 1))
        pictures.write_strip(tmp_path / "a" / "strip.png", frames, range(0, 10 * num_frames, 10))
        picture = np.asarray(Image.open(tmp_path / "a" / "strip.png"))
        side = 4 * 14 + 2 * 3
        assert picture.shape == (2 * side + style.CAPTION_LINE, len(places) * side)
        above = [np.asarray(style.caption_band(f"step {10 * place}", side)) for place in places]
        np.testing.assert_array_equal(picture[: style.CAPTION_LINE], np.concatenate(above, 1))
        centres = picture[style.CAPTION_LINE + side // 2 :: side, side // 2 :: side]
        np.testing.assert_array_equal(centres, levels_of(levels[places].T))


def test_a_chain_of_a_strip_has_its_class_below_its_last_frame(tmp_path):
    frames = np.full((3, 2, 14, 14, 1), 0.5)
    pictures.write_strip(tmp_path / "strip.png", frames, captions=["cat", "dog"])
    picture, side = np.asarray(Image.open(tmp_path / "strip.png")), 4 * 14 + 2 * 3
    for row, name in enumerate(["cat", "dog"]):
        band = picture[(row + 1) * side + row * style.CAPTION_LINE :][: style.CAPTION_LINE]
        np.testing.assert_array_equal(band[:, 2 * side :], style.caption_band(name, side))
        assert (band[:, : 2 * side] == style.BACKGROUND).all()


def figure_drawn(monkeypatch, draw):
    """The figure that `draw` makes, in place of its file."""
    from matplotlib.figure import Figure

    made = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: made.append(self))
    draw()
    return made[0]


def test_both_densities_are_on_one_scale_with_a_bar_and_the_divergence_is_that_of_the_grid(tmp_path, monkeypatch):
    side = 30
    p = np.random.default_rng(0).random(side**2)
    p /= p.mean()
    uniform = np.zeros(side**2)
    for log_p, log_q, kl in ((np.log(7 * p), uniform, (p * np.log(p)).mean()), (uniform, np.log(p), -np.log(p).mean())):
        draw = partial(figures.density_figure, tmp_path / "d.png", log_p, np.full((5, 2), 0.5), log_q, title="a run")
        figure = figure_drawn(monkeypatch, draw)
        truth, _, model, differs = figure.axes[:4]
        for panel in (truth, model):
            np.testing.assert_allclose(panel.images[0].get_clim(), (0.0, p.max()))
        assert truth.images[0].get_cmap().name == model.images[0].get_cmap().name
        np.testing.assert_allclose(truth.images[0].get_array().T.reshape(-1), np.exp(log_p) / np.exp(log_p).mean())
        np.testing.assert_allclose(model.images[0].get_array().T.reshape(-1), np.exp(log_q))
        assert differs.get_title() == f"KL(data || model) {kl:.4f} nats"
        low, high = differs.images[0].get_clim()
        assert low == -high
        assert [axes.get_xlabel() for axes in figure.axes[4:]] == [
            "density p and q, per unit of area, on one scale",
            "where from: p log(p/q)",
        ]
        assert figure.get_suptitle() == "a run"


def test_a_truth_without_mass_somewhere_adds_nothing_to_the_divergence_there(tmp_path, monkeypatch):
    log_p = np.where(np.arange(16) < 8, np.log(2.0), -np.inf)
    figure = figure_drawn(
        monkeypatch, lambda: figures.density_figure(tmp_path / "d.png", log_p, np.zeros((1, 2)), np.zeros(16))
    )
    assert figure.axes[3].get_title() == f"KL(data || model) {np.log(2):.4f} nats"


def test_curves_and_histograms_have_axes_a_legend_and_names_beside_the_lines(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(3, 500))
    lines = {
        f"set {place}: AUROC 0.5": (np.linspace(0, 1, 50), np.linspace(0, 1, 50) ** place) for place in range(1, 5)
    }
    figure = figure_drawn(monkeypatch, lambda: figures.curves(tmp_path / "c.png", lines, ("false", "true"), "a run"))
    (panel,) = figure.axes
    assert (panel.get_xlabel(), panel.get_ylabel(), panel.get_title()) == ("false", "true", "a run")
    assert [text.get_text() for text in panel.get_legend().get_texts()] == list(lines)
    assert [text.get_text() for text in panel.texts] == [f"set {place}" for place in range(1, 5)]
    looks = [(line.get_color(), line.get_linestyle()) for line in panel.lines]
    assert len({colour for colour, _ in looks}) == len({dashes for _, dashes in looks}) == 4
    assert [text.get_color() for text in panel.texts] == [colour for colour, _ in looks]

    others = {"noise: AUROC 0.9": values[1], "stripes: AUROC 0.5": values[2]}
    figure = figure_drawn(
        monkeypatch,
        lambda: figures.histograms(tmp_path / "h.png", values[0], others, "-U", name="inside", title="a run"),
    )
    assert (figure.get_supxlabel(), figure.get_supylabel(), figure.get_suptitle()) == ("-U", "share per unit", "a run")
    for panel, name in zip(figure.axes, ("noise", "stripes"), strict=False):
        assert [text.get_text() for text in panel.get_legend().get_texts()] == ["inside", name]
        assert [text.get_text() for text in panel.texts] == [name]


def test_the_colours_of_lines_differ_for_readers_with_and_without_all_cones():
    """Viénot et al. 1999: what is left of a colour without L or without M cones, in linear RGB."""
    rgb = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in style.COLOURS]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    protan = [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]
    deutan = [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]
    for seen in (np.eye(3), protan, deutan):
        left = np.clip(linear @ np.array(seen).T, 0, 1) ** (1 / 2.2)
        far = np.linalg.norm(left[:, None] - left[None], axis=2) + np.eye(len(left))
        assert far.min() > 0.1


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
        written.density(12, log_q, points, log_q, {"kl": 0.5, "nll": 1.0, "entropy": 0.5})
    assert list(tmp_path.iterdir()) == []
    assert "nats" not in capsys.readouterr().out
