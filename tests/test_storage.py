"""A run's folder in a bucket. In most tests a local folder stands for it, in a slow one an emulator."""

import importlib.util
import json
import os
import sys

import numpy as np
import pytest
from conftest import finished, free_port, start
from etils import epath

from ebm_jax.report import page, reporter
from ebm_jax.storage import bucket, workdir
from ebm_jax.types import BadInput

METRICS = {"energy_data": 0.1, "energy_samples": 0.2, "energy_gap": -0.1, "chain_grad_norm": 0.5, "loss": 0.0}
EMULATED = all(map(importlib.util.find_spec, ("gcsfs", "gcp_storage_emulator")))


@pytest.fixture
def remote(monkeypatch, tmp_path):
    """A folder that counts as a bucket's: its files can only be written whole."""
    monkeypatch.setattr(bucket, "SCHEME", f"{tmp_path}/bucket/")
    return epath.Path(tmp_path / "bucket" / "run")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3://bucket/run", "is no address that is known; give a folder, or gs://BUCKET/RUN"),
        ("gs://", "is no address that is known"),
        ("http://a/b", "is no address that is known"),
    ],
)
def test_another_address_than_that_of_a_bucket_is_refused(address, expected):
    with pytest.raises(BadInput, match=expected):
        bucket.folder_of(address)


def test_a_bucket_without_gcsfs_is_one_line_with_the_cure(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="needs gcsfs; pip install -r requirements-gcs"):
        bucket.folder_of("gs://bucket/run")


def test_a_bucket_that_cannot_be_reached_is_one_line_with_the_reason(remote, monkeypatch):
    class Forbidden(Exception):
        pass

    def refuse(path):
        raise Forbidden("403\nno access for this account")

    monkeypatch.setattr(type(remote), "is_dir", refuse)
    with pytest.raises(BadInput, match=r"cannot be read \(403 no access for this account\); use another"):
        bucket.names(remote)


def test_a_mirror_of_a_folder_of_this_machine_is_that_folder(tmp_path):
    mirror = bucket.Mirror(tmp_path)
    assert mirror.local == tmp_path
    (tmp_path / "a").write_text("kept")
    assert mirror.close() is None
    assert (tmp_path / "a").read_text() == "kept"


def test_a_mirror_brings_what_goes_on_copies_what_changed_and_leaves_nothing_here(remote):
    remote.mkdir(parents=True)
    (remote / "metrics.jsonl").write_text("one\n")
    (remote / "config.json").write_text("{}")
    mirror = bucket.Mirror(remote, ("*.jsonl",))
    assert [path.name for path in mirror.local.iterdir()] == ["metrics.jsonl"]
    (remote / "metrics.jsonl").write_text("of somebody else")
    with (mirror.local / "metrics.jsonl").open("a") as file:
        file.write("two\n")
    (mirror.local / "images").mkdir()
    (mirror.local / "images" / "grid.png").write_bytes(b"picture")
    assert mirror.close() is None
    assert (remote / "metrics.jsonl").read_text() == "one\ntwo\n"
    assert (remote / "images" / "grid.png").read_bytes() == b"picture"
    assert not mirror.local.exists()


def test_what_did_not_change_is_not_copied_again(remote):
    mirror = bucket.Mirror(remote)
    (mirror.local / "a").write_text("mine")
    mirror.push()
    mirror._copying.result()
    (remote / "a").write_text("changed there")
    assert mirror.close() is None
    assert (remote / "a").read_text() == "changed there"


def test_what_a_bucket_does_not_take_stays_here_and_is_told(remote, monkeypatch):
    mirror = bucket.Mirror(remote)
    (mirror.local / "a").write_text("mine")

    def refuse(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(remote), "write_bytes", refuse)
        mirror.push()
        told = mirror.close()
    assert f"run could not be written (No space left on device); what it lacks is in {mirror.local}" in told
    assert (mirror.local / "a").read_text() == "mine"


def test_a_run_in_a_bucket_goes_on_with_the_lines_events_and_pictures_that_are_there(remote):
    images = np.zeros((4, 8, 8, 1))
    for steps in (range(1, 5), range(3, 7)):  # the second begins anew after step 2
        with reporter.Reporter(remote, steps[0] - 1, 6) as written:
            for step in steps:
                written.progress(step, METRICS, 1)
            written.image("chains", steps[-1], images)
    rows = [json.loads(line)["step"] for line in (remote / reporter.METRICS).read_text().splitlines()]
    assert rows == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in (remote / "images").iterdir()) == ["chains_000004.png", "chains_000006.png"]
    assert len([path for path in remote.iterdir() if "tfevents" in path.name]) == 2


def test_the_page_of_a_run_in_a_bucket_is_written_there_and_made_anew_from_there(remote):
    from configs import digits_contrastive as digits

    workdir.claim(remote, digits.get_config().lock())
    with reporter.Reporter(remote, 0, 6, page=True) as written:
        written.progress(1, METRICS, 1)
        written.image("chains", 1, np.zeros((4, 8, 8, 1)))
    texts = [(remote / page.NAME).read_text()]
    (remote / page.NAME).write_text("")
    assert page.write(remote) == remote / page.NAME
    texts.append((remote / page.NAME).read_text())
    for text in texts:
        assert "data:image/png;base64," in text
        assert '"key":"data.source"' in text, "the config is known"
        assert '"damaged":[]' in text
        assert f"--workdir={remote}" in text


def test_claiming_a_bucket_writes_the_config_once_and_another_run_is_refused(remote, monkeypatch):
    from configs import digits_contrastive as digits

    config = digits.get_config().lock()
    written = []
    write_bytes = type(remote).write_bytes
    monkeypatch.setattr(type(remote), "write_bytes", lambda path, b: (written.append(path.name), write_bytes(path, b)))
    workdir.claim(remote, config)
    assert written == ["config.json"], "no temporary file: a bucket cannot rename"
    other = config.copy_and_resolve_references().unlock()
    other.model.width += 1
    with pytest.raises(BadInput, match=r"holds a run that cannot go on: model\.width is"):
        workdir.claim(remote, other.lock())


SERVER = """
import sys, time
from gcp_storage_emulator.handlers import objects

plain = objects.download

def download(request, response, storage, *args, **kwargs):  # the emulator leaves out what tensorstore compares
    try:
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = found["generation"]
    except Exception:
        pass
    plain(request, response, storage, *args, **kwargs)

objects.download = download

from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
print("up", flush=True)
time.sleep(100_000)
"""
TINY = {"model.width": 4, "chain.num_steps": 2, "train.batch_size": 16, "buffer.capacity": 64, "train.cpu_devices": 1}
TINY |= {"checkpoint.every": 4, "log.every": 2, "sample.num_steps": 3, "sample.quiet_steps": 1, "sample.num_images": 4}

CHEAP = {
    "metrics": "chains,ood,classifier_distance",
    "num_samples": 130,
    "batch_size": 64,
    "classifier_distance.steps": 2,
}
CHEAP |= {"chains.number": 4, "chains.steps": 16, "ood.images": 20, "ood.sets": "uniform"}


@pytest.mark.slow
@pytest.mark.skipif(not EMULATED, reason="needs gcsfs and gcp-storage-emulator: requirements-gcs.txt, and by hand")
def test_a_run_in_an_emulated_bucket_goes_on_and_ends_and_is_evaluated_like_one_in_a_folder(tmp_path):
    port = free_port()
    server = start([sys.executable, "-c", SERVER, str(port)])
    where = f"http://127.0.0.1:{port}"
    access = {"STORAGE_EMULATOR_HOST": where, "TENSORSTORE_GCS_HTTP_URL": where, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x"}

    def run(*words, status=0):
        ((found, out),) = finished([start([sys.executable, "run.py", *words], **access)])
        assert found == status, out
        return out

    settings = ["--config=configs/digits_contrastive.py", *(f"--config.{key}={value}" for key, value in TINY.items())]
    try:
        assert server.stdout.readline() == "up\n"
        for folder in ("gs://bucket/run", str(tmp_path / "run")):
            run(*settings, f"--workdir={folder}", "--config.train.num_steps=8")
            out = run(*settings, f"--workdir={folder}", "--config.train.num_steps=12")
            assert "going on from step 8" in out
            assert f"samples/000012_0.png and {folder}/" in run("--mode=sample", f"--workdir={folder}")
        run(*settings, "--workdir=gs://bucket/run", "--config.model.width=5", status=2)
        os.environ |= access
        there = epath.Path("gs://bucket/run")
        here = tmp_path / "run"
        rows = [
            [json.loads(line)["loss"] for line in (at / "metrics.jsonl").read_text().splitlines()]
            for at in (there, here)
        ]
        assert rows[0] == rows[1]
        assert len(rows[0]) == 6
        samples = [np.load((at / "samples" / "000012_0.npz").open("rb"))["images"] for at in (there, here)]
        np.testing.assert_array_equal(*samples)
        assert {path.name for path in (there / "checkpoints").iterdir()} == {"4", "8", "12"}
        found = []
        for at in (there, here):
            out = run("--mode=evaluate", f"--workdir={at}", *(f"--config.eval.{key}={v}" for key, v in CHEAP.items()))
            folder = at / "evaluation" / "000012_0"
            assert f"{folder / 'evaluation.json'}" in out
            found.append(json.loads((folder / "evaluation.json").read_text()))
            pictures = {name for metric in found[-1]["metrics"].values() for name in metric["pictures"]}
            assert {path.name for path in folder.iterdir()} == pictures | {"evaluation.json", "card.md"}
            assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
            assert (folder / "card.md").read_text().count("![") == len(pictures) > 2
        assert found[0]["metrics"].keys() == {"chains", "ood", "classifier_distance"}
        for name, metric in found[0]["metrics"].items():
            assert metric["values"] == found[1]["metrics"][name]["values"]
            assert metric["protocol"] == found[1]["metrics"][name]["protocol"]
        (kept,) = (there / "classifier").iterdir()
        content = kept.read_bytes()
        words = CHEAP | {"metrics": "classifier_distance"}
        out = run("--mode=evaluate", f"--workdir={there}", *(f"--config.eval.{key}={v}" for key, v in words.items()))
        assert "evaluation/000012_1/" in out, "an earlier evaluation stays"
        assert kept.read_bytes() == content, "the classifier is read, not trained again"
    finally:
        server.kill()
        for name in access:
            os.environ.pop(name, None)
