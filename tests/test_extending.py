"""The tests write every file of docs/extending.md and run its commands; no example is longer than the page promises."""

import json
import re
import shlex

import numpy as np
import pytest
from conftest import ROOT
from test_train import SHORT

import run
from ebm_jax import schema

pytestmark = pytest.mark.whole

TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```python\n# (lab/\w+\.py)\n(.*?)```", TEXT, re.S))
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^    (python run\.py .*)$", TEXT, re.M)]
READS_A_RUN = ("--mode=evaluate", "--mode=sample")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page's modules and all runs that its commands make."""
    folder = tmp_path_factory.mktemp("extending")
    (folder / "lab").mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.chdir(folder)
        for words in COMMANDS:
            assert run.main(shrunk(words)) == 0, words
        yield folder


def shrunk(words):
    """The command on tiny numbers, with the config's path from anywhere."""
    words = [word.replace("--config=configs/", f"--config={ROOT}/configs/") for word in words]
    if any(word in READS_A_RUN for word in words):
        return [*words, "--config.eval.num_samples=16", "--config.eval.batch_size=16"]
    return [*words, *(f"--config.{key}={value}" for key, value in SHORT.items())]


def row(folder, name, step=6):
    rows = map(json.loads, (folder / "runs" / name / "metrics.jsonl").read_text().splitlines())
    return next(row for row in rows if row["step"] == step)


def test_there_is_one_of_each_of_seven_things_in_at_most_30_lines():
    assert list(FILES) == [
        f"lab/{name}.py" for name in ("nets", "methods", "kernels", "data", "metrics", "tasks", "keys")
    ]
    assert max(content.count("\n") + 1 for content in FILES.values()) <= 30


def test_the_network_is_built_with_its_own_key(folder):
    config = json.loads((folder / "runs" / "own_net" / "config.json").read_text())
    assert config["model"]["own"] == {"depth": 2}
    params = run_params(folder, "own_net")
    assert sorted(params) == ["Dense_0", "Dense_1", "Dense_2"]  # two layers and the last one


def run_params(folder, name):
    import ebm_jax

    return ebm_jax.load(folder / "runs" / name)[1]


def test_the_method_trains_without_chains_and_its_metrics_are_kept(folder):
    assert {"energy_data", "energy_noise", "loss"} <= set(row(folder, "own_method"))
    assert "chain_grad_norm" not in row(folder, "own_method")
    assert not list((folder / "runs" / "own_method" / "images").glob("buffer_*"))


def test_the_kernel_moves_the_chains(folder):
    assert row(folder, "own_kernel")["chain_movement"] > 0


def test_the_data_set_has_as_many_images_as_its_key_says(folder, capsys):
    words = [
        "run.py",
        f"--config={ROOT}/configs/digits_contrastive.py",
        "--mode=prepare",
        "--config.data.source=lab.data:stripes",
    ]
    assert run.main([*words, "--config.train.batch_size=64", "--config.data.own.number=50"]) == 2
    assert "train.batch_size 64 is larger than the data set of 50 images" in capsys.readouterr().err


def test_the_metric_is_measured_and_on_the_card(folder):
    (card,) = (folder / "runs" / "own_data" / "evaluation").glob("*/evaluation.json")
    (values,) = [metric["values"] for metric in json.loads(card.read_text())["metrics"].values()]
    assert 0.3 < values["of unseen images"]["value"] < 0.7


def test_the_task_writes_its_array_and_its_picture(folder):
    (path,) = (folder / "runs" / "own_data" / "samples").glob("*.npz")
    assert np.load(path)["mean"].shape == (1, 8, 8, 1)
    assert path.with_suffix(".png").exists()


def test_the_key_has_one_line(folder, monkeypatch):
    monkeypatch.setattr(schema, "KEYS", dict(schema.KEYS))
    older = schema.defaults().to_dict()
    exec(FILES["lab/keys.py"], {})
    assert schema.defaults().train.warm_up == 1_000
    assert schema.of_run(older, "run")[0].train.warm_up == 0
