"""Bad input: one line that names the value and the cure, exit status 2, no traceback, nothing touched."""

import subprocess
import sys
from pathlib import Path

import pytest

import ebm_jax
import run
from ebm_jax import cli
from ebm_jax.given import BadInput

ROOT = Path(run.__file__).parent
DIGITS = f"--config={ROOT / 'configs' / 'digits_contrastive.py'}"

DENSITY = f"--config={ROOT / 'configs' / 'density2d.py'}"

BAD = {
    "no config": ([], "--config is missing; usage:"),
    "a config without its flag": (["train", "digits"], "'digits' is not a flag; did you mean --config=digits?"),
    "no such config": ([f"--config={ROOT}/configs/digit.py"], "configs/digits_contrastive.py"),
    "misspelt group": ([DIGITS, "--config.trian.num_steps=3"], "did you mean --config.train.num_steps?"),
    "a word of a key": ([DIGITS, "--config.train.step=3"], "did you mean --config.train.num_steps?"),
    "initials of a key": ([DIGITS, "--config.optim.lr=3"], "did you mean --config.optim.learning_rate?"),
    "an American": ([DIGITS, "--config.sample.neighbors=3"], "did you mean --config.sample.neighbours.number?"),
    "a shorter mode": ([DIGITS, "--mode=eval"], "--mode 'eval' is unknown; use one of train, sample, evaluate"),
    "a shorter mode's cure": ([DIGITS, "--mode=eval"], "(did you mean evaluate?)"),
    "misspelt key": ([DIGITS, "--config.chain.stepsize=3"], "did you mean --config.chain.step_size?"),
    "a group, not a key": ([DIGITS, "--config.chain=3"], "--config.chain is not a key"),
    "text for a number": ([DIGITS, "--config.train.num_steps=many"], "--config.train.num_steps=many"),
    "a fraction for an integer": ([DIGITS, "--config.chain.num_steps=2.5"], "--config.chain.num_steps=2.5"),
    "no value": ([DIGITS, "--config.chain.num_steps"], "config.chain.num_steps"),
    "unknown flag": ([DIGITS, "--wrkdir=here"], "wrkdir"),
    "unknown mode": (
        [DIGITS, "--mode=fly"],
        "--mode 'fly' is unknown; use one of train, sample, evaluate, export, prepare, compile",
    ),
    "a stray word": ([DIGITS, "train"], "'train' is not a flag"),
    "no chain steps": (
        [DIGITS, "--config.chain.num_steps=0"],
        "chain.num_steps 0 is out of range; it must be at least 1",
    ),
    "negative chain steps": ([DIGITS, "--config.chain.num_steps=-4"], "chain.num_steps -4 is out of range"),
    "no step size": ([DIGITS, "--config.chain.step_size=0"], "chain.step_size 0.0 is out of range; it must be greater"),
    "a step size that is no number": ([DIGITS, "--config.chain.step_size=nan"], "chain.step_size nan is out of range"),
    "an infinite step size": ([DIGITS, "--config.chain.step_size=inf"], "chain.step_size inf is out of range"),
    "negative noise": ([DIGITS, "--config.chain.langevin.noise_scale=-0.1"], "chain.langevin.noise_scale -0.1"),
    "not a probability": ([DIGITS, "--config.buffer.restart_prob=1.5"], "a probability, 0 to 1"),
    "a decay of one": ([DIGITS, "--config.optim.ema_decay=1.0"], "at least 0 and below 1"),
    "misspelt choice": ([DIGITS, "--config.loss.objective=sofplus"], "did you mean softplus?"),
    "unknown network": ([DIGITS, "--config.model.name=resnet"], "use one of resnet32, resnet32_large"),
    "batch not divisible": (
        [DIGITS, "--config.train.batch_size=101"],
        "batch_size 101 is not divisible by 2 devices; use 100 or 102",
    ),
    "batch below the devices": (
        [DIGITS, "--config.train.batch_size=1"],
        "batch_size 1 is not divisible by 2 devices; use 2",
    ),
    "buffer not divisible": (
        [DIGITS, "--config.buffer.capacity=1001"],
        "capacity 1001 is not divisible by 2 devices; use 1000 or 1002",
    ),
    "buffer below the batch": (
        [DIGITS, "--config.buffer.capacity=32"],
        "smaller than train.batch_size 64; use at least 64",
    ),
    "batch above the data": (
        [DIGITS, "--config.train.batch_size=2048", "--config.buffer.capacity=4096"],
        "larger than the data set of 1438 images",
    ),
    "wrong classes": ([DIGITS, "--config.model.num_classes=7"], "use 1 (unconditional) or 10"),
    "wrong shape": (
        [DIGITS, "--config.data.shape=(16,16,1)"],
        "data.shape (16, 16, 1) is not the shape of digits; use (8, 8, 1)",
    ),
    "tiny shape": ([DIGITS, "--config.data.shape=(4,4,1)"], "at least 8 pixels a side"),
    "unknown data": ([DIGITS, "--config.data.source=tfds"], "'digits' is not a TFDS set"),
    "misspelt source": ([DIGITS, "--config.data.source=foldr:here"], "did you mean folder?"),
    "a path without its kind": (
        [DIGITS, "--config.data.source=/no/such"],
        "data.source '/no/such' is a path without a kind; use folder:/no/such",
    ),
    "a file without its kind": ([DIGITS, "--config.data.source=such.npz"], "use npz:such.npz"),
    "a word for a number": (
        [DIGITS, "--config.train.num_steps=abc"],
        "--config.train.num_steps=abc is not a whole number (at least 1); give one, such as "
        "--config.train.num_steps=100000",
    ),
    "a word for a number, apart": (
        [DIGITS, "--config.optim.learning_rate", "fast"],
        "learning_rate=fast is not a number",
    ),
    "a power for a whole number": ([DIGITS, "--config.train.num_steps=1e3"], "num_steps=1e3 is not a whole number"),
    "a word for a flag": ([DIGITS, "--config.log.report=maybe"], "log.report=maybe is not True or False; give"),
    "a folder without its path": ([DIGITS, "--config.data.source=folder"], "use folder:PATH"),
    "no such folder": ([DIGITS, "--config.data.source=folder:/no/such"], "/no/such is not a folder"),
    "no such file": ([DIGITS, "--config.data.source=npz:/no/such.npz"], "/no/such.npz does not exist"),
    "unknown density": ([DENSITY, "--config.data.name=moons"], "did you mean two_moons?"),
    "a network for images": ([DENSITY, "--config.model.name=small"], "density needs mlp"),
    "a shape of images": ([DENSITY, "--config.data.shape=(8,8,1)"], "it must be (2,)"),
    "classes of a density": ([DENSITY, "--config.model.num_classes=4"], "mlp takes no labels, use 1"),
    "dropout that the network lacks": (
        [DIGITS, "--config.model.resnet.dropout=0.5"],
        "model.resnet.dropout 0.5 does not go with model.name small; use one of resnet32, ",
    ),
    "attention that the network lacks": (
        [DIGITS, "--config.model.resnet.attention=True"],
        "model.resnet.attention True does not go",
    ),
    "a label of another length": (
        [DIGITS, "--config.data.condition=position"],
        "model.num_classes 1 does not fit data.condition position; use 2",
    ),
    "unknown type": ([DIGITS, "--config.model.dtype=float16"], "use one of float32, bfloat16"),
    "unknown split": ([DIGITS, "--config.data.split=tset"], "use one of train, test"),
    "more quiet steps than steps": ([DIGITS, "--config.sample.quiet_steps=400"], "at most sample.num_steps, 300"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_status_2(case, tmp_path, capsys):
    words, expected = BAD[case]
    assert run.main(["run.py", *words, f"--workdir={tmp_path / 'run'}"]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_unknown_address_is_refused_and_no_folder_of_its_name_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main(["run.py", DIGITS, "--workdir=s3://bucket/run"]) == 2
    assert "--workdir s3://bucket/run is no address that is known" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_from_the_shell_it_is_the_same_without_a_traceback(tmp_path):
    words = [sys.executable, "run.py", DIGITS, "--config.chain.nmu_steps=3", f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert (
        result.stderr
        == "run.py: --config.chain.nmu_steps is not a key of the config; did you mean --config.chain.num_steps?\n"
    )
    assert result.stdout == ""


def test_a_config_file_with_an_error_is_named(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from configs import default\ndef get_config():\n    c = default.get_config()\n    c.modle = 3\n"
    )
    assert run.main(["run.py", f"--config={tmp_path / 'mine.py'}"]) == 2
    error = capsys.readouterr().err
    assert "mine.py cannot be read" in error
    assert "modle" in error
    assert error.count("\n") == 1


def test_help_names_the_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(["run.py", "--help"])
    assert stop.value.code == 0
    assert "--config=configs/NAME.py" in capsys.readouterr().out


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse(["run.py", "--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"ebm_jax {ebm_jax.__version__}\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [([], "--workdir, the folder of a run, is missing; usage:"), (["runs/a"], "did you mean --workdir=runs/a\\?")],
)
def test_a_mode_that_reads_a_run_asks_for_its_folder_and_not_for_a_config(words, line):
    for mode in ("sample", "evaluate", "export"):
        with pytest.raises(BadInput, match=line):
            cli.parse(["run.py", mode, *words])
