"""The page of a run: it holds what the folder's files say, asks for nothing else, and survives whatever lies there."""

import ast
import base64
import hashlib
import html.parser
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import run
from ebm_jax import assemble, cli, evaluators, schema
from ebm_jax.given import BadInput
from ebm_jax.report import contents, curves, meanings, page, pictures, rates, reporter, rewriting, tiles, verb

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
WICKED = "</script><img src=x onerror=alert(1)>&<!--{{TITLE}}\u2028"
VALUES = {"samples / classifier distance": (5.4, 0.6), "test images / classifier distance": (1.6, 0.4)}
UNBOUNDED = "accuracy under an attack in L2 without bounds"
WORDS = ["train", "--config=digits", "--workdir=elsewhere", "--config.data.name=a b"]
SPELLINGS = (
    ["report", "a"],
    ["--mode=report", "--workdir=a"],
    ["--mode", "report", "--workdir", "a"],
    ["report", "--mode=report", "a"],
)


def config_of(**values):
    return schema.with_values(schema.defaults(), {"train.num_steps": 300, "data.shape": (8, 8, 1), **values})


def a_run(folder, config=None, steps=range(10, 110, 10), **numbers):
    """A made-up folder of a run: two steps a second, pictures of two steps, one evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps((config or config_of()).to_dict()))
    rows = [
        {"step": step, "energy_data": step / 7, "energy_samples": -step / 7, "loss": 1 / step,
         "steps_per_second": 2.0, "seconds": step / 2} | {name: of(step) for name, of in numbers.items()}
        for step in steps
    ]  # fmt: skip
    write_lines(folder / "metrics.jsonl", rows)
    for step in (10, 100):
        picture(folder / "images" / f"chains_{step:06d}.png", step)
    picture(folder / "samples" / "000100_0.png", 1)
    picture(folder / "samples" / "film_000100_0.gif", 2)
    measure(folder, VALUES)
    return folder


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def picture(path, seed, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)).save(path)


def measure(folder, values, name="classifier_distance", step=100):
    into = folder / "evaluation" / f"{step:06d}_0"
    picture(into / f"{name}_picture.png", 3)
    pairs = {key: {"value": value, "standard_error": error} for key, (value, error) in values.items()}
    metric = {"values": pairs, "protocol": {"samples": "1,000 fresh"}, "pictures": [f"{name}_picture.png"],
              "verdicts": ["as near as real images"], "seconds": 66.6}  # fmt: skip
    facts = {"protocol": {"seed": "0"}, "metrics": {name: metric}, "failed": {"ood": "no set"}}
    (into / "evaluation.json").write_text(json.dumps(facts))


class Parsed(html.parser.HTMLParser):
    """Scripts, addresses and tags of a page, as a browser's parser sees them."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.addresses, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def written(folder):
    """The page of a folder, as text and as the values that it draws."""
    text = page.html(page.of_run(contents.read(folder)))
    return text, json.loads(Parsed(text).scripts[0])


def test_the_page_is_one_file_that_asks_for_no_other(tmp_path):
    text, _ = written(a_run(tmp_path / "run"))
    parsed = Parsed(text)
    assert parsed.addresses == ["data:,"], "of the icon; pictures are data too"
    assert "default-src 'none'; img-src data:;" in text
    assert not re.findall(r"@import|url\(", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    assert len(parsed.scripts) == 3


def test_curves_pictures_tables_and_state_are_those_of_the_files(tmp_path):
    folder = a_run(tmp_path / "run", config_of(**{"chain.step_size": 7.5}))
    _, values = written(folder)
    energies = values["charts"][0]
    assert energies["x"] == list(range(10, 110, 10))
    assert [series["label"] for series in energies["series"]] == ["data", "samples"]
    np.testing.assert_allclose(energies["series"][1]["y"], -np.arange(10, 110, 10) / 7, rtol=1e-5)
    [through] = values["pictures"]
    assert [frame["step"] for frame in through["frames"]] == [10, 100]
    for frame, file in zip(through["frames"], ("chains_000010.png", "chains_000100.png"), strict=True):
        assert decoded(frame["source"]) == (folder / "images" / file).read_bytes()
    assert [one["title"] for one in values["samples"]] == ["generate, step 100", "film, step 100"]
    assert decoded(next(one["film"] for one in values["samples"] if one["film"])).startswith(b"GIF8")
    [metric] = values["evaluations"][0]["metrics"]
    assert (metric["rows"][0]["value"], metric["rows"][0]["error"]) == ("5.40", "0.60")
    assert metric["rows"][0]["verdict"] == "test images have 1.6: 3.4 times that"
    assert metric["verdicts"] == ["as near as real images"]
    assert values["evaluations"][0]["failed"] == [["ood", "no set"]]
    changed = {row["key"]: (row["value"], row["default"]) for row in values["config"]}
    assert changed == {
        "chain.step_size": ("7.5", "10.0"),
        "data.shape": ("8, 8, 1", "32, 32, 3"),
        "train.num_steps": ("300", "100000"),
    }


def test_the_page_says_that_samples_of_training_are_not_chosen_where_others_are(tmp_path):
    _, values = written(a_run(tmp_path / "all"))
    assert values["unchosen"] == ""
    _, values = written(a_run(tmp_path / "some", config_of(**{"sample.keep": 0.75})))
    assert "--mode=sample and --mode=evaluate keep 75% (sample.keep)" in values["unchosen"]


def test_an_event_of_the_guard_says_its_step_once(tmp_path):
    folder = a_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 40, "event": "step 40: it is ill"}) + "\n")
    assert written(folder)[1]["events"] == [{"step": 40, "text": "it is ill"}]


def decoded(source):
    kind, _, text = source.partition(";base64,")
    assert kind.startswith("data:image/")
    return base64.b64decode(text)


def test_time_left_is_the_steps_left_at_the_usual_rate(tmp_path):
    slow = {100: 0.1}  # steps a second of the last line, which pictures and compiling held up
    folder = a_run(tmp_path / "run", steps_per_second=lambda step: slow.get(step, 2.0))
    state = written(folder)[1]["state"]
    assert (state["step"], state["steps"], state["left"]) == (100, 300, (300 - 100) / 2.0)
    assert state["left_of"] == ""
    assert state["seconds"] == 50.0
    resumed = [*range(10, 60, 10), *range(10, 40, 10)]  # seconds since each start
    seconds = dict(zip(range(10, 90, 10), resumed, strict=True))
    folder = a_run(tmp_path / "two", steps=range(10, 90, 10), seconds=lambda step: seconds[step])
    assert written(folder)[1]["state"]["seconds"] == 50 + 30


def test_time_left_of_a_run_in_two_stages_is_that_of_the_stage_at_work(tmp_path):
    """300 steps, the second stage from step 105 or 95 on, rows up to step 100; the first stage is 20 times as fast."""
    for after, left, words in ((105, 5 / 20.0, "of the first stage"), (95, 200 / 1.0, "")):
        folder = a_run(
            tmp_path / str(after), config_of(**{"method.then.after": after}),
            steps_per_second=lambda step, after=after: 1.0 if step > after else 20.0,
        )  # fmt: skip
        state = written(folder)[1]["state"]
        assert (state["left"], state["left_of"]) == (left, words)


def test_a_metrics_facts_are_those_of_its_card_with_the_time_that_it_took(tmp_path):
    folder = a_run(tmp_path / "run")
    measure(folder, {"samples / classifier distance": (2.0, 0.5)})
    [metric] = written(folder)[1]["evaluations"][0]["metrics"]
    assert dict(metric["facts"]) == {"samples": "1,000 fresh", "time": "67 s"}


NAMES = ("cat", "dog", "zebra", "class 3", "of no class")
PLANS = (  # warmup, decay, final share
    *((0, 0, 1.0), (7, 0, 0.3), (0, 40, 0.1)),
    (7, 40, 0.05),
)


@pytest.mark.parametrize("plan", PLANS)
def test_the_learning_rate_that_is_drawn_is_the_one_that_the_optimiser_takes(tmp_path, plan):
    named = dict(zip(("optim.warmup_steps", "optim.decay_steps", "optim.final_share"), plan, strict=True))
    config = config_of(**named, **{"optim.learning_rate": 0.3, "optim.b1": 0.0, "optim.clip_offset": math.inf})
    run_of = contents.read(a_run(tmp_path / "run", config, steps=range(1, 61)))
    optimizer = assemble.make_optimizer(config)
    state, moved = optimizer.init(jnp.zeros(())), []
    for _ in range(60):  # Adam without momentum moves by its rate where the gradient never changes
        update, state = optimizer.update(jnp.float32(1.0), state, jnp.zeros(()))
        moved.append(-float(update))
    [chart] = [one for one in curves.charts(rates.with_rate(run_of), curves.CHARTS) if one["title"] == "Learning rate"]
    assert chart["x"] == list(range(1, 61))
    np.testing.assert_allclose(chart["series"][0]["y"], moved, rtol=2e-5)  # of 6 digits, in float32


def test_a_rescue_lowers_the_learning_rate_of_the_steps_after_the_one_it_goes_back_to(tmp_path):
    folder = a_run(tmp_path / "run", config_of(**{"optim.learning_rate": 0.8}))
    with (folder / "metrics.jsonl").open("a") as file:
        for step, number, back in ((55, 1, 50), (91, 2, 80), (85, 3, 30)):
            words = f"step {step}: ill; {rates.rescued(number, 5, back)}with another random stream"
            file.write(json.dumps({"step": step, "event": words}) + "\n")
    charts = {chart["title"]: chart for chart in written(folder)[1]["charts"]}
    assert charts["Learning rate"]["x"] == list(range(10, 110, 10))
    assert charts["Learning rate"]["series"][0]["y"] == [0.8] * 3 + [0.1] * 7, "the third goes back behind the others"
    twice = [contents.Event(55, rates.rescued(1, 5, 50)), contents.Event(91, rates.rescued(2, 5, 80))]
    assert [rates.rescues_before(twice, step) for step in (50, 51, 80, 81)] == [0, 1, 1, 2]


@pytest.mark.parametrize(("side", "channels", "named"), [(8, 1, True), (28, 1, False), (100, 3, True)])
def test_a_grid_keeps_the_class_and_the_place_of_each_of_its_images(tmp_path, side, channels, named):
    shades = (np.arange(11, dtype=np.float32) + 1) / 20
    images = np.broadcast_to(shades[:, None, None, None], (11, side, side, channels))
    classes = [NAMES[place % 5] for place in range(11)]
    captions = [classes] if named else []
    pictures.write_grid(tmp_path / "a.png", images, *captions, title="a title " * 30, classes=classes)
    found = tiles.inside((tmp_path / "a.png").read_bytes())
    assert found.classes == tuple(classes)
    shown = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    (left, top), (right, below), (width, height) = found.first, found.pitch, found.size
    for place, shade in enumerate(shades):
        x, y = left + place % found.columns * right, top + place // found.columns * below
        inside = shown[y : y + height, x : x + width]
        assert inside.shape == (height, width, 3)
        assert (inside == int(256 * shade)).all(), "all of the image and nothing beside it"
        assert (shown[y - 1, x - 1 : x + width + 1] != inside[0, 0]).all(), "which its frame goes around"


def test_the_page_has_a_row_of_samples_for_each_class_from_the_newest_grid_that_tells_them(tmp_path):
    conditional = config_of(**{"model.num_classes": 3})
    folder = a_run(tmp_path / "my run", conditional)
    found = written(folder)[1]["by_class"]
    assert found["place"] is None, "grids of before tell no classes"
    assert found["command"].endswith(f"--mode=sample '--workdir={folder}' --config.sample.num_images=30")
    images, classes = np.zeros((6, 8, 8, 1), np.float32), ["cat", "dog", "cat", "zebra", "dog", "cat"]
    pictures.write_grid(folder / "images" / "chains_000100.png", images, classes=classes)
    values = written(folder)[1]
    assert values["by_class"]["classes"] == [["cat", [0, 2, 5]], ["dog", [1, 4]], ["zebra", [3]]]
    assert values["by_class"]["place"] == ["pictures", 0, "frames", 1, "source"]
    pictures.write_grid(folder / "samples" / "000100_1.png", images, classes=["cat"] * 6)
    assert written(folder)[1]["by_class"]["path"] == "images/chains_000100.png", "of one class there is nothing to sort"
    pictures.write_grid(folder / "samples" / "000100_2.png", images, classes=classes[::-1])
    values = written(folder)[1]
    kind, number, key = values["by_class"]["place"]
    assert values[kind][number]["path"] == values["by_class"]["path"] == "samples/000100_2.png"
    assert decoded(values[kind][number][key]) == (folder / "samples" / "000100_2.png").read_bytes()
    for other in (config_of(), config_of(**{"model.num_classes": 2, "data.condition": "position"})):
        (folder / "config.json").write_text(json.dumps(other.to_dict()))
        assert written(folder)[1]["by_class"] is None, "it has no classes"


@pytest.mark.parametrize(
    "entry",
    ["", "{", "[]", "3", "[" * 100_000, '{"first": [0, 0]}', *(
        json.dumps({"first": [0, 0], "pitch": [8, 8], "size": [8, 8], "columns": 1, "classes": ["a"]} | wrong)
        for wrong in ({"columns": 0}, {"size": [9, 8]}, {"first": [-1, 0]}, {"first": [1, 0]}, {"classes": []},
                      {"classes": ["a", "b"]}, {"columns": 10**400}, {"size": [8]}, {"pitch": [0.5, 8]},
                      {"size": [0, 8]})
    )],
)  # fmt: skip
def test_a_strangers_entry_on_classes_is_believed_only_inside_its_picture(entry):
    file, kept = io.BytesIO(), PngInfo()
    kept.add_text(tiles.KEY, entry)
    Image.new("L", (8, 8)).save(file, "PNG", pnginfo=kept)
    assert tiles.inside(file.getvalue()) is None
    assert tiles.inside(b"no picture") is None


def test_a_long_run_is_thinned_and_no_peak_or_end_is_lost():
    rng = np.random.default_rng(0)
    rows = [{"step": step, "energy_data": float(rng.normal()), "energy_samples": 0.5} for step in range(1, 100_001)]
    rows[71_234]["energy_data"], rows[20_000]["energy_data"] = 99.0, -99.0
    [chart] = curves.charts(rows, curves.CHARTS)
    assert 500 < len(chart["x"]) <= curves.POINTS
    assert chart["x"] == sorted(set(chart["x"]))
    assert (chart["x"][0], chart["x"][-1]) == (1, 100_000)
    found = dict(zip(chart["x"], chart["series"][0]["y"], strict=True))
    assert (found[71_235], found[20_001]) == (99.0, -99.0)
    assert all(value == pytest.approx(rows[step - 1]["energy_data"], rel=1e-5) for step, value in found.items())


def test_a_number_of_another_stage_of_training_is_not_drawn_as_0():
    rows = [{"step": s, "stage": float(s > 3), "matching_error": 0.2, "energy_gap": float(s > 3) * s, "saturated": 0.0}
            for s in range(1, 7)]  # fmt: skip
    charts = {chart["title"]: chart for chart in curves.charts(rows, curves.CHARTS)}
    assert charts["Energy gap"]["x"] == [4, 5, 6]
    assert charts["Matching error"]["x"] == list(range(1, 7))
    assert charts["Saturated"]["series"][0]["y"] == [0.0] * 6, "0 in every stage is a number"


def test_models_of_one_program_and_standard_errors_are_in_the_chart_of_their_number():
    rows = [{"step": s, "loss": 1.5, "loss_0": 1.0, "loss_1": 2.0, "fid": 3.0, "fid_error": 0.5} for s in (1, 2)]
    loss, fid = curves.charts(rows, curves.CHARTS)
    assert [(one["label"], one["y"][0]) for one in loss["series"]] == [
        ("loss", 1.5),
        ("model 0", 1.0),
        ("model 1", 2.0),
    ]
    assert (fid["series"][0]["y"], fid["series"][0]["error"], fid["more"]) == ([3.0, 3.0], [0.5, 0.5], True)


def chart_of(**numbers):
    """The chart of lists of numbers, one a step from 1 on."""
    length = len(next(iter(numbers.values())))
    rows = [{"step": 1 + i, **{name: float(values[i]) for name, values in numbers.items()}} for i in range(length)]
    [chart] = curves.charts(rows, curves.CHARTS)
    return chart


def test_a_few_spikes_do_not_stretch_a_chart_and_are_told():
    calm = np.random.default_rng(0).normal(size=200)
    spiky = calm.copy()
    spiky[40], spiky[120], spiky[121] = 300.0, -80.0, 31.0
    chart = chart_of(energy_data=spiky, energy_samples=calm + 30.0)
    assert chart["range"] == pytest.approx((calm.min(), calm.max() + 30), rel=1e-5), "31 lies among the other's values"
    assert chart["beyond"] == "2 values lie beyond this scale, ▲, the largest 300 at step 41 (data)"
    assert chart["series"][0]["y"][40] == 300.0, "it stays in the page"
    assert (chart_of(energy_data=calm)["range"], chart_of(energy_data=calm)["beyond"]) == (None, "")


def test_a_spike_of_an_error_on_a_log_scale_is_one_by_its_decades():
    falling = 10.0 ** np.linspace(1, -2, 150)
    rough = falling * 10.0 ** np.random.default_rng(0).uniform(-0.3, 0.3, 150)
    rough[60] = 7e5
    chart = chart_of(matching_error=rough)
    assert chart["log"]
    assert 10 < chart["range"][1] < 20
    assert chart["beyond"] == "One value lies beyond this scale, ▲: 7e+05 at step 61"
    rough[60] = 40.0  # within its decades
    assert chart_of(matching_error=rough)["range"] is None


def test_nothing_that_lasts_is_cut_off():
    level = np.full(150, 1e-3)
    level[-2:] = 5e-4  # as a rescue halves a learning rate
    assert chart_of(learning_rate=level)["range"] is None
    noise = np.random.default_rng(0).normal(size=150)
    jump = noise + np.where(np.arange(150) < 140, 0.0, 1e4)  # a run that diverges at its end
    assert chart_of(energy_data=jump)["range"] is None
    apart = chart_of(energy_data=noise, energy_samples=noise + 1e5)
    assert apart["range"] is None
    assert chart_of(energy_data=[1.0, 2.0, 1e6, 1.0])["range"] is None, "of a few points none is a spike"


def test_of_two_series_one_that_falls_below_a_tenth_of_the_other_is_seen_by_a_log_scale():
    falling = np.linspace(1.0, 0.1, 100)
    rough = np.random.default_rng(0).uniform(2.0, 14.0, 100)
    assert chart_of(matching_error=falling, matching_error_near_data=rough)["log"]
    assert not chart_of(matching_error=falling)["log"]
    assert not chart_of(matching_error=rough / 5, matching_error_near_data=rough)["log"], "it is as wide as a fifth"
    assert not chart_of(energy_data=falling, energy_samples=rough - 3.0)["log"], "some are negative"


def test_runs_are_overlaid_in_a_chart_for_each_number_an_error_that_is_a_number_too():
    runs = {
        "a": [{"step": s, "matching_error": 0.1 * s, "distance": 2.0, "distance_error": 0.1} for s in range(1, 2_001)],
        "b": [{"step": s, "matching_error": 0.3} for s in (1, 3_000)],
    }
    charts = {chart["title"]: chart for chart in curves.overlaid(runs, curves.CHARTS)}
    assert set(charts) == {"Matching error: all noise levels", "Distance"}
    chart = charts["Matching error: all noise levels"]
    assert len(chart["x"]) <= curves.POINTS
    ours, other = ([pair for pair in zip(chart["x"], one["y"], strict=True) if pair[1]] for one in chart["series"])
    assert (ours[0], ours[-1], other) == ((1, 0.1), (2_000, 200.0), [(1, 0.3), (3_000, 0.3)])


def test_no_text_of_a_file_becomes_a_tag_or_ends_the_script(tmp_path):
    folder = a_run(tmp_path / "run", config_of(**{"data.name": WICKED}))
    (folder / "data.json").write_text(json.dumps([{"class_names": [WICKED, "cat"], "class_sizes": [3, 4]}]))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 100, "event": WICKED}) + "\n")
    measure(folder, {WICKED: (1.0, None)}, name="own")
    plain, (text, values) = Parsed(written(a_run(tmp_path / "plain"))[0]), written(folder)
    assert Parsed(text).tags == plain.tags
    shown = WICKED.replace("\u2028", "\\u2028")
    assert values["events"] == [{"step": 100, "text": shown}]
    assert values["data"][0][1] == f"{shown}: 3, cat: 4"
    assert values["evaluations"][0]["metrics"][0]["rows"][0]["name"] == shown
    named = Parsed(page.html(page.of_run(contents.read(a_run(tmp_path / "<b>&")))))
    assert named.tags == plain.tags


STRANGE = (
    *(None, True, 3, "x", [], [[]], [1, None], {}),
    {"metrics": 1},
    {"metrics": {"a": {"values": {"b": {"value": "c"}}}}},
    {"metrics": {"a": {"values": {"b": {"value": 10**400}}, "pictures": [{}]}}, "protocol": [], "failed": None},
    [{"class_names": 3, "class_sizes": [{}]}],
    [{"arguments": 4}],
    {"model": {"width": "x"}},
)


@pytest.mark.parametrize("file", ["config.json", "data.json", "versions.json", "evaluation/000100_0/evaluation.json"])
def test_json_of_any_other_kind_costs_no_more_than_its_own_part(tmp_path, file):
    folder = a_run(tmp_path / "run")
    for content in (*map(json.dumps, STRANGE), "", "{", "[" * 100_000, "\udcff"):
        (folder / file).write_text(content, errors="surrogateescape")
        _, values = written(folder)
        assert len(values["charts"][0]["x"]) == 10, content[:40]
        assert len(values["pictures"][0]["frames"]) == 2


LINES = (
    {"step": 5},
    {"step": 6, "loss": "x", "seconds": None},
    {"step": 7, "loss": math.nan, "steps_per_second": math.inf},
    {"step": 8, "event": {"a": 1}},
    {"step": 9, "seconds": 1e300, "stage": "x"},
    {"step": 6, "loss_error": 1.0},
)


@pytest.mark.parametrize(
    "lines", [LINES[:1], LINES, [{"step": 10**30}, {"step": True}, {"step": -1}, {"step": 1.5}, {}]]
)
def test_lines_of_any_numbers_have_a_page(tmp_path, lines):
    folder = tmp_path / "run"
    folder.mkdir()
    for file in ("metrics.jsonl", "evaluation.jsonl"):
        write_lines(folder / file, lines)
    _, values = written(folder)
    good = {line["step"] for line in lines if type(line.get("step")) is int and 0 <= line["step"] < 100}
    assert values["state"]["step"] == max(good, default=0)
    assert values["state"]["left"] is None
    assert len(values["damaged"]) == (1 if good else 3)


def test_half_a_line_is_passed_over_and_damage_is_named(tmp_path):
    folder = a_run(tmp_path / "run")
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole + '{"step": 110, "energy_da')
    _, values = written(folder)
    assert (values["charts"][0]["x"][-1], values["damaged"]) == (100, []), "it is being written"
    (folder / "metrics.jsonl").write_text("\0\0\n[]\n" + whole + '{"step": 110, "loss": NaN}\n')
    (folder / "images" / "chains_000010.png").write_bytes(b"no picture")
    (folder / "config.json").unlink()
    _, values = written(folder)
    assert values["damaged"] == ["config.json is missing", "metrics.jsonl has 2 damaged lines, left out"]
    assert [frame["step"] for frame in values["pictures"][0]["frames"]] == [100]
    assert values["state"]["step"] == 110
    shutil.rmtree(folder / "images")
    assert written(folder)[1]["pictures"] == []


def test_a_run_of_an_earlier_version_has_its_page(tmp_path):
    old = config_of().to_dict()
    del old["log"]["report"], old["eval"]["drift"], old["method"]
    folder = a_run(tmp_path / "run")
    (folder / "config.json").write_text(json.dumps(old))
    _, values = written(folder)
    assert values["damaged"] == []
    assert values["state"]["steps"] == 300


def test_no_link_of_a_strangers_folder_is_followed(tmp_path):
    picture(tmp_path / "mine.png", 9)
    (tmp_path / "mine.json").write_text(json.dumps({"protocol": {"secret": "of the reader"}}))
    folder = a_run(tmp_path / "run")
    (folder / "images" / "chains_000050.png").symlink_to(tmp_path / "mine.png")
    (folder / "data.json").symlink_to(tmp_path / "mine.json")
    inside = folder / "evaluation" / "000100_0" / "evaluation.json"
    inside.unlink()
    inside.symlink_to(tmp_path / "mine.json")
    (folder / page.NAME).symlink_to(tmp_path / "mine.json")
    text, values = written(folder)
    assert [frame["step"] for frame in values["pictures"][0]["frames"]] == [10, 100]
    assert "of the reader" not in text
    assert contents.picture_bytes(folder, contents.Picture("images/chains_000050.png", 99)) is None, "put there since"
    assert sum("is a link" in words for words in values["damaged"]) == 3
    page.write(folder)
    assert json.loads((tmp_path / "mine.json").read_text())["protocol"], "the page takes the link's place"
    assert not (folder / page.NAME).is_symlink()


def test_a_page_stays_below_its_bound_and_the_middle_pictures_go_first(tmp_path):
    folder = a_run(tmp_path / "run")
    for step in range(1_000, 31_000, 1_000):
        file = folder / "images" / f"chains_{step:06d}.png"
        picture(file, step, side=800) if step == 1_000 else shutil.copy(file.with_name("chains_001000.png"), file)
    text, values = written(folder)
    assert 0.8 * page.LARGEST < len(text.encode()) <= page.LARGEST
    steps = [frame["step"] for frame in values["pictures"][0]["frames"]]
    assert (steps[0], steps[-1]) == (10, 30_000)
    assert len(set(np.diff(steps[2:-1]))) == 1, "evenly spaced"
    assert steps[-2] > 25_000, "and up to the end"
    assert values["evaluations"][0]["metrics"][0]["pictures"]
    assert values["samples"][0]["source"] or values["samples"][1]["source"]
    assert len(steps) + len(values["left_out"]) == 32
    assert all((folder / path).exists() for path in values["left_out"])


@pytest.mark.parametrize("seconds", [0.01, 0.2, 5.0])
def test_rewriting_takes_at_most_a_hundredth_of_the_time_but_for_the_first_and_last(tmp_path, monkeypatch, seconds):
    now, times = [0.0], []

    def write(folder, place):
        times.append(now[0])
        now[0] += seconds

    monkeypatch.setattr(page, "write", write)
    pages = rewriting.Rewriting(tmp_path, clock=lambda: now[0])
    while now[0] < 10_000:
        pages.rewrite()
        now[0] += 0.5
    assert times[0] == 0.0
    assert (len(times) - 1) * seconds <= 0.01 * now[0]
    assert len(times) * seconds > 0.009 * now[0], "and nearly as often as it may"
    pages.rewrite(last=True)
    assert times[-1] == now[0] - seconds


def test_a_page_that_cannot_be_written_is_one_line_of_warning_and_ends_no_run(tmp_path, capsys):
    (tmp_path / "run" / page.NAME / "inside").mkdir(parents=True)  # a folder in its place
    with reporter.Reporter(tmp_path / "run", 0, 3, page=True) as watcher:
        for step in (1, 2, 3):
            watcher.progress(step, {"loss": 1.0}, 1)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{tmp_path / 'run' / page.NAME} is not written (" in error
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_the_page_is_there_from_the_first_line_on_and_after_an_error(tmp_path):
    class Stop(Exception):
        pass

    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(Stop), reporter.Reporter(folder, 0, 9, page=True) as watcher:  # noqa: PT012
        watcher.progress(1, {"loss": 1.0}, 1)
        assert json.loads(Parsed((folder / page.NAME).read_text()).scripts[0])["charts"][0]["x"] == [1]
        watcher.progress(2, {"loss": 1.0}, 1)
        watcher.event(2, "ill")
        raise Stop
    values = json.loads(Parsed((folder / page.NAME).read_text()).scripts[0])
    assert values["charts"][0]["x"] == [1, 2]
    assert values["events"] == [{"step": 2, "text": "ill"}]
    (tmp_path / "other").mkdir()
    with reporter.Reporter(tmp_path / "other", 0, 9) as watcher:
        watcher.progress(1, {"loss": 1.0}, 1)
    assert not (tmp_path / "other" / page.NAME).exists(), "log.report=False"


def test_processes_but_the_first_write_no_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporter.processes, "is_first", lambda: False)
    monkeypatch.chdir(tmp_path)
    with reporter.Reporter(tmp_path, 0, 9, page=True) as watcher:
        watcher.progress(1, {"loss": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == "", "nor try to"


def test_a_trained_run_has_its_page(one_run):
    values = json.loads(Parsed((one_run / page.NAME).read_text()).scripts[0])
    assert values["state"]["checkpoint"] == values["state"]["step"] == values["state"]["steps"]
    assert [len(places) for _, places in values["by_class"]["classes"]] == [7] * 4 + [6] * 6, (
        "64 chains, classes in turn"
    )
    assert {"chains", "buffer"} <= {one["name"] for one in values["pictures"]}
    assert values["damaged"] == []


def beside(name, samples, images):
    return {f"samples / {name}": samples, f"test images / {name}": images}


CASES = [
    ("split R-hat of energy", {"split R-hat of energy": (4.2, None)}, None, "bad", "not mixed: good is below 1.01"),
    ("split R-hat of energy", {"split R-hat of energy": (1.003, None)}, None, "good", "no sign against mixing"),
    ("AUROC, uniform / -U", {"AUROC, uniform / -U": (0.51, 0.02)}, None, "bad", "chance level"),
    ("AUROC, uniform / -U", {"AUROC, uniform / -U": (0.2, 0.02)}, None, "bad", "below chance"),
    ("AUROC, train / -U", {"AUROC, train / -U": (0.51, 0.02)}, None, "good", "as it should be"),
    ("AUROC, train / -U", {"AUROC, train / -U": (0.41, 0.02)}, None, "", "overfitting"),
    ("AUROC, uniform / -U", {"AUROC, uniform / -U": (1.0, 0.0)}, None, "good", "100% of the way"),
    ("accuracy", {"accuracy": (0.11, 0.01)}, 10, "bad", "chance level, 0.1"),
    ("accuracy", {"accuracy": (0.96, 0.01)}, 10, "", "chance is 0.1"),
    (UNBOUNDED, {UNBOUNDED: (0.0, None)}, 10, "good", "at most 0.01"),
    (UNBOUNDED, {UNBOUNDED: (0.3, None)}, 10, "bad", "the attack is blind"),
    ("samples / classifier distance", VALUES, None, "", "3.4 times that"),
    ("test images / classifier distance", VALUES, None, "", "measured alike"),
    ("samples / recall", beside("recall", (0.5, None), (1.0, None)), None, "", "50% of that"),
    ("samples / classifier score", beside("classifier score", (9.0, 0.1), (9.1, 0.1)), 9, "good", "within the errors"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "classes", "tone", "words"), CASES)
def test_a_verdict_compares_with_what_stands_beside_the_number(name, values, classes, tone, words):
    verdict = meanings.verdict_of(name, values, classes)
    assert verdict.tone == tone
    assert words in verdict.words
    assert meanings.meaning_of(name)


def names_of_values():
    """The name of each number in the evaluators' sources, with a 1 for what is filled in."""
    for source in Path(evaluators.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            pairs = zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ()
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
                pairs = [(node.targets[0].slice, node.value)]
            for name, value in pairs:
                if re.match(r"(Value\(|value$)", ast.unparse(value)):
                    parts = name.values if isinstance(name, ast.JoinedStr) else [name]
                    yield "".join(part.value if isinstance(part, ast.Constant) else "1" for part in parts)


def test_each_number_of_each_metric_of_the_package_has_a_meaning():
    names = set(names_of_values())
    assert {"FID", "accuracy", "acceptance", "AUROC, 1"} <= names
    assert len(names) > 35
    assert not [name for name in names if not meanings.meaning_of(name)]


def test_a_number_without_reference_or_not_finite_has_no_verdict():
    assert meanings.verdict_of("FID", {"FID": (30.0, 1.0)}) is None
    assert meanings.verdict_of("accuracy", {"accuracy": (0.5, 0.1)}) is None, "how many classes is not known"
    assert meanings.verdict_of("split R-hat of energy", {"split R-hat of energy": (math.nan, None)}) is None
    assert meanings.verdict_of("brightness", {"brightness": (1.0, None)}) is None
    assert meanings.meaning_of("brightness") == ""


def test_the_commands_go_on_with_the_run_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/opt/bin/ebm-jax"])
    folder = a_run(tmp_path / "my run")
    entries = [{"event": "began", "arguments": ["--config=old"]}, {"event": "went on", "arguments": WORDS}]
    (folder / "versions.json").write_text(json.dumps(entries))
    monkeypatch.chdir(tmp_path)
    values = json.loads(Parsed(page.html(page.of_run(contents.read(page.Path("my run"))))).scripts[0])
    commands = [one["command"] for one in values["commands"]]
    quoted = f"'--workdir={folder}'"
    assert commands == [
        f"/opt/bin/ebm-jax train --config=digits '--config.data.name=a b' {quoted}",
        f"/opt/bin/ebm-jax --mode=sample {quoted}",
        f"/opt/bin/ebm-jax --mode=evaluate {quoted}",
        f"/opt/bin/ebm-jax --mode=report {quoted}",
    ]
    assert [len(entry) for entry in values["versions"]] == [1, 1]


def test_report_says_which_file_it_wrote_and_compares_several_runs(tmp_path, monkeypatch, capsys):
    one = a_run(tmp_path / "a" / "run")
    two = a_run(tmp_path / "b" / "run", config_of(**{"optim.learning_rate": 0.5}), steps=range(5, 55, 5))
    measure(two, {"samples / classifier distance": (3.0, 0.2)}, step=50)
    monkeypatch.chdir(tmp_path)
    assert run.main(["run.py", "report", str(one)]) == 0
    assert f"wrote {one / page.NAME}, " in capsys.readouterr().out
    assert run.main(["run.py", "report", str(one), str(two)]) == 0
    assert "wrote comparison.html, " in capsys.readouterr().out
    values = json.loads(Parsed((tmp_path / "comparison.html").read_text()).scripts[0])
    names = [str(one), str(two)]
    assert [row["name"] for row in values["runs"]] == names, "folders of one name are told apart"
    assert values["config"] == [
        {
            "key": "optim.learning_rate",
            "values": ["0.0001", "0.5"],
            "meaning": schema.KEYS["optim.learning_rate"].meaning,
        }
    ]
    chart = values["charts"][0]
    assert chart["x"] == sorted({*range(10, 110, 10), *range(5, 55, 5)})
    assert [series["label"] for series in chart["series"]] == names
    assert [series["y"][0] is None for series in chart["series"]] == [True, False], "only the second has step 5"
    row = next(row for row in values["metrics"] if row["name"] == "samples: classifier distance")
    assert row["values"] == ["5.40 ± 0.60 (step 100)", "5.40 ± 0.60 (step 100)"], "the newest of each"
    assert [[shown["title"] for shown in beside["pictures"]] for beside in values["beside"]] == [
        ["samples, step 100", "chains, step 100"]
    ] * 2
    (tmp_path / "comparison.html").write_text("<p>mine</p>")
    with pytest.raises(BadInput, match=r"comparison\.html is another file; move it away"):
        verb.report([one, two])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "report needs the folder of a run; usage: report DIR"),
        (["nowhere"], "nowhere is not the folder of a run: it has none of config.json"),
        (["--config=digits"], "--config=digits is no flag of report"),
        (["a", "--workdir=a"], "a is given twice"),
        (["a"] * 21, "a is given twice"),
        ([f"a{number}" for number in range(21)], "21 folders are too many"),
    ],
)
def test_a_wrong_word_is_one_line_and_status_2(words, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["run.py", "report", *words]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_mode_is_told_in_any_spelling():
    for words in SPELLINGS:
        assert list(map(str, cli.folders_to_report(["run.py", *words]))) == ["a"]
    for words in (["train", "report"], ["--workdir=report"], ["report", "--help"], []):
        assert cli.folders_to_report(["run.py", *words]) is None


def test_the_plotting_library_is_the_one_that_was_distributed():
    told = (page.ASSETS / "uPlot.md").read_text()
    version = re.search(r"uPlot (\d+\.\d+\.\d+), the npm package", told)[1]
    rows = dict(re.findall(r"^\| (uPlot\S+) \|.*\| ([0-9a-f]{64}) \|$", told, re.MULTILINE))
    assert set(rows) == {"uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE"}
    for name, digest in rows.items():
        assert hashlib.sha256((page.ASSETS / name).read_bytes()).hexdigest() == digest
    assert f"(v{version})" in (page.ASSETS / "uPlot.iife.min.js").read_text()[:200]
    assert "MIT License" in (page.ASSETS / "uPlot.LICENSE").read_text()


PARTS = (
    "At step 100 of 300",
    "Energies",
    "lies beyond this scale",
    "rescue 1 of 5",
    "</script><img src=x",
    "3.4 times that",
    "--mode=sample",
)
FRAMES = """<!doctype html><body>{frames}<pre id="told"></pre><script>
const told = [];
for (const frame of document.querySelectorAll("iframe")) frame.addEventListener("load", () => setTimeout(() => {{
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach((one) => (one.open = true));
  for (const one of page.images) one.loading = "eager";
  setTimeout(() => {{
    told.push({{
      name: frame.name, inner: root.clientWidth, wide: root.scrollWidth, drawn: Number(page.body.dataset.drawn),
      plots: page.querySelectorAll(".uplot canvas").length,
      ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
      pictures: [...page.images].map((one) => one.complete && one.naturalWidth),
      text: page.body.innerText,
      resources: frame.contentWindow.performance.getEntriesByType("resource").map((one) => one.name),
    }});
    document.getElementById("told").textContent = btoa(unescape(encodeURIComponent(JSON.stringify(told))));
  }}, 500);
}}, 300));
</script>"""


def seen(pages, scheme, tmp_path):
    """What Chromium shows of pages at 390 and 1,200 pixels: by name and width; and the lines of its console."""
    frames = [
        f'<iframe name="{name} {width}" src="{path}" style="width:{width}px;height:6000px;border:0"></iframe>'
        for name, path in pages.items()
        for width in (390, 1200)
    ]
    (tmp_path / "frames.html").write_text(FRAMES.format(frames="".join(frames)))
    ended = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1300,1000",
         "--allow-file-access-from-files", f"--blink-settings=preferredColorScheme={scheme}", "--hide-scrollbars",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000", "--dump-dom", f"file://{tmp_path}/frames.html"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    told = re.search(r'<pre id="told">([^<]*)</pre>', ended.stdout)[1]
    found = {one["name"]: one for one in json.loads(base64.b64decode(told))}
    return found, [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.whole
@needs_chromium
@pytest.mark.parametrize(
    ("scheme", "ground"), [(0, "rgb(15, 18, 22)"), (1, "rgb(246, 247, 249)")], ids=["dark", "light"]
)
def test_a_browser_shows_every_part_without_error_or_sideways_scrolling(one_run, tmp_path, scheme, ground, monkeypatch):
    spike = {48: 1e6}
    made = a_run(
        tmp_path / "made",
        steps=range(4, 104, 4),
        own_number_of_a_very_long_name_indeed=lambda step: step,
        grad_norm=lambda step: spike.get(step, step),
    )
    long = "W" * 300
    with (made / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 40, "event": f"rescue 1 of 5: {WICKED} {long}"}) + "\n")
    (made / "data.json").write_text(json.dumps([{"class_names": [long, "cat"], "images": 3}]))
    measure(made, {f"{long} / b": (1.0, 0.1), **VALUES})
    page.write(made)
    other = shutil.copytree(one_run, tmp_path / "trained")
    monkeypatch.chdir(tmp_path)
    assert verb.report([made, other]) == 0
    pages = {"made": made / page.NAME, "trained": other / page.NAME, "comparison": tmp_path / "comparison.html"}
    found, console = seen(pages, scheme, tmp_path)
    assert console == []
    assert len(found) == 6
    for name, shown in found.items():
        assert shown["wide"] <= shown["inner"] == int(name.split()[1]), name
        assert shown["drawn"] > 0
        assert shown["plots"] >= shown["drawn"], "opening what is folded draws the rest"
        assert shown["pictures"], name
        assert all(shown["pictures"]), name
        assert shown["ground"] == ground
        assert [one for one in shown["resources"] if not one.startswith("data:")] == []
    words = found["made 1200"]["text"]
    for part in PARTS:
        assert part in words
    assert "Finished" in found["trained 390"]["text"]
    assert "Config: where the runs differ" in found["comparison 390"]["text"]
