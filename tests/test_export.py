"""An exported model is the model: the same bits in a process that has neither Flax nor this package."""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import changed, few
from test_train import files

import run
from ebm_jax import assemble, chains, export, opening, random, samplers, schema
from ebm_jax.labels import example_labels
from ebm_jax.models import energy
from ebm_jax.storage import exported

ROOT = Path(run.__file__).parent
SHORT = {
    "model.width": 4,
    "chain.num_steps": 2,
    "buffer.capacity": 64,
    "train.batch_size": 16,
    "train.num_steps": 2,
    "sample.num_steps": 3,
    "sample.quiet_steps": 1,
    "sample.num_images": 16,
    "log.images_every": 0,
}
BARE = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ebm_jax", "flax", "optax", "orbax", "ml_collections", "jaxtyping"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Absent())
"""
COMPARE = """
import numpy as np
import jax
for name in ("flax", "ebm_jax", "optax", "orbax", "ml_collections", "jaxtyping"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is not blocked")
from load import load
model = load()
for n in (16, 5):
    images = model.sampler(model.params, jax.random.key(3), model.labels(n))
    np.savez(f"{sys.argv[1]}_{n}.npz", images=images, energies=model.energy(model.params, images, model.labels(n)))
"""


def command(workdir, mode="export", **changes):
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    words = [f"--config.{key}={value}" for key, value in ((SHORT if mode == "train" else {}) | changed).items()]
    return [
        "run.py",
        f"--config={ROOT / 'configs' / 'digits_contrastive.py'}",
        f"--workdir={workdir}",
        f"--mode={mode}",
        *words,
    ]


def bare(code, folder, *words):
    """Run `code` with imports from `folder`, but neither from the repository nor from what the package is built on."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    source = BARE + f"sys.path[0] = {str(folder)!r}\n" + code
    words = [sys.executable, "-c", source, *map(str, words)]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def example(folder):
    return bare("import runpy\nrunpy.run_path('example.py', run_name='__main__')", folder)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert run.main(command(workdir, "train")) == 0
    return workdir


@pytest.fixture(scope="module")
def folder(whole_run):
    assert run.main(command(whole_run)) == 0
    return whole_run / "export" / "000002_0"


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def expected_samples(config, params, key, labels, jit=jax.jit):
    """The exported sampler, rebuilt from the public functions alone."""
    key_init, key_chain = jax.random.split(key)
    init = chains.make_base(config).sample(key_init, len(labels))
    return jit(samplers.make_sample_fn(config))(params, key_chain, labels=labels, init=init)


@pytest.mark.whole
def test_without_flax_and_ebm_jax_samples_and_energies_differ_by_zero_at_any_batch_size(whole_run, folder, tmp_path):
    result = bare(COMPARE, folder, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    config, params = opening.load(whole_run)
    for n in (16, 5):
        reloaded = np.load(tmp_path / f"out_{n}.npz")
        labels = jnp.zeros(n, jnp.int32)
        images = expected_samples(config, params, jax.random.key(3), labels)
        energies = jax.jit(samplers.make_energy_fn(config))(params, images, labels)
        assert images.shape == (n, 8, 8, 1)
        assert np.ptp(images) > 0.5
        np.testing.assert_array_equal(reloaded["images"], images)
        np.testing.assert_array_equal(reloaded["energies"], energies)


@pytest.mark.whole
def test_the_example_is_short_imports_jax_alone_and_runs(folder):
    lines = (folder / "example.py").read_text().splitlines()
    assert len([line for line in lines if line]) <= 14
    result = example(folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("(16, 8, 8, 1) mean energy ")


def test_the_manifest_says_what_the_files_are(whole_run, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    said = {name: manifest[name] for name in ("format", "jax", "platforms", "event_shape", "label_shape", "step")}
    assert said == {
        "format": exported.FORMAT,
        "jax": jax.__version__,
        "platforms": ["cpu", "tpu", "cuda"],
        "event_shape": [8, 8, 1],
        "label_shape": [],
        "step": 2,
    }
    assert (manifest["label_dtype"], manifest["weights"]) == ("int32", "ema")
    assert manifest["config"] == json.loads((whole_run / "config.json").read_text())
    for name in ("sampler.bin", "energy.bin", "params.npz"):
        assert manifest["files"][name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for name in ("sampler.bin", "energy.bin"):
        program = jax.export.deserialize(bytearray((folder / name).read_bytes()))
        assert program.platforms == ("cpu", "tpu", "cuda")
        assert program.calling_convention_version == manifest["calling_convention"]


def test_exporting_again_writes_beside_and_takes_other_weights_and_steps(whole_run, folder):
    before = files(folder)
    assert run.main(command(whole_run, sample__weights="raw", sample__num_steps=2)) == 0
    assert files(folder) == before
    assert [path for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    other = max(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    assert other != folder
    manifest = json.loads((other / "manifest.json").read_text())
    assert (manifest["weights"], manifest["config"]["sample"]["num_steps"]) == ("raw", 2)
    raw, ema = (exported.load(path).params["head"]["kernel"] for path in (other, folder))
    assert (raw != ema).any()


def change_manifest(folder, **values):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | values))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def replace_program(folder):
    """A program that no JAX can parse, with a right checksum."""
    content = b"\0" * 1000
    (folder / "energy.bin").write_bytes(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change_manifest(folder, files=files | {"energy.bin": hashlib.sha256(content).hexdigest()})


def test_wrong_arguments_of_an_exported_program_are_named_in_one_line(folder):
    model, images = exported.load(folder), np.full((2, 8, 8, 1), 0.5, np.float32)
    params, key, labels = model.params, jax.random.key(0), model.labels(2)
    wrong = {
        r"images are of uint8; .*for uint8 pixels give images / 255": (
            params,
            np.zeros((2, 8, 8, 1), np.uint8),
            labels,
        ),
        r"images of shape \(2, 1, 8, 8\) do not fit .*nx8x8x1": (params, images.transpose(0, 3, 1, 2), labels),
        r"images of shape \(0, 8, 8, 1\) do not fit": (params, images[:0], labels[:0]),
        r"labels of shape \(2, 1\) do not fit": (params, images, labels[:, None]),
        r"labels are of float32; give an array of int32": (params, images, labels.astype(np.float32)),
        r"1 labels for 2 images; give one for each": (params, images, labels[:1]),
        r"params are not this model's": ({"params": params}, images, labels),
    }
    for message, arguments in wrong.items():
        with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
            model.energy(*arguments)
    for given in (0, np.zeros(2, np.uint32), jax.random.split(key)):
        with pytest.raises(ValueError, match=r"^key is not one typed PRNG key; give jax.random.key\(SEED\)$"):
            model.sampler(params, given, labels)
    expected = model.energy(params, images, labels)
    with jax.enable_x64(True):
        wide = model.energy(params, jnp.asarray(images, jnp.float64), jnp.asarray(labels, jnp.int64))
    np.testing.assert_array_equal(wide, expected)
    assert wide.dtype == jnp.float32


BROKEN = {
    "another format": (lambda folder: change_manifest(folder, format=99), "manifest.json has format 99, this reader"),
    "an older calling convention": (
        lambda folder: change_manifest(folder, calling_convention=1, jax="0.3.9"),
        "has calling convention 1, jax",
    ),
    "a newer calling convention": (
        lambda folder: change_manifest(folder, calling_convention=999, jax="9.9.9"),
        "it was made with jax 9.9.9: install that",
    ),
    "a truncated program": (lambda folder: truncate(folder / "sampler.bin"), "sampler.bin is damaged"),
    "truncated parameters": (lambda folder: truncate(folder / "params.npz"), "params.npz is damaged"),
    "a missing program": (lambda folder: (folder / "energy.bin").unlink(), "energy.bin cannot be read (No such file"),
    "a program of another version": (replace_program, "energy.bin cannot be read ("),
    "no manifest": (lambda folder: (folder / "manifest.json").write_text("[]"), "is not the manifest of an export"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_one_clear_line(case, copy):
    damage, expected = BROKEN[case]
    damage(copy)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        exported.load(copy)
    assert expected in str(error.value)


@pytest.mark.parametrize("case", ["another format", "a truncated program"])
def test_the_example_prints_that_line_and_ends_with_status_2(case, copy):
    damage, expected = BROKEN[case]
    damage(copy)
    result = example(copy)
    assert result.returncode == 2
    assert result.stderr.startswith("example.py: ")
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_exporting_what_is_no_run_or_under_another_model_is_one_clear_line(whole_run, tmp_path, capsys):
    assert run.main(command(tmp_path / "none")) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    assert run.main(command(whole_run, model__width=9)) == 2
    assert "model.width is 4 there and 9 here" in capsys.readouterr().err


def test_a_run_is_exported_by_its_folder_alone(whole_run, folder, capsys):
    assert run.main(["run.py", f"--workdir={whole_run}", "--mode=export"]) == 0
    assert "exported step 2, ema weights: sampler.bin" in capsys.readouterr().out


def shrunk(name, **changes):
    config = schema.dry_run(importlib.import_module(f"configs.{name}").get_config()).unlock()
    config.model.width, config.sample.num_steps, config.sample.quiet_steps = 4, 2, 0
    return changed(config, **changes)


KINDS = {
    "strided": shrunk("mnist"),
    "residual, spectral norm, classes": shrunk("cifar10_conditional"),
    "a density by MALA": shrunk("density2d"),
    "attention": shrunk("folder_contrastive", model__resnet__attention=True),
    "soft labels": shrunk("dsprites_position"),
    "bfloat16": shrunk("digits_contrastive", model__dtype="bfloat16"),
    "tied noise": shrunk("digits_contrastive", chain__langevin__tied=True, chain__step_size=1e-3),
    "descent of a U-Net": shrunk("digits", model__dtype="float32", model__width=8),
}


def moved_params(config):
    """Untrained parameters, moved off their many zeros so that every one matters."""
    params = jax.eval_shape(lambda: assemble.init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), leaf.dtype), params)


def quick_jit(fn):
    """Compiles in half the time; for many programs that run once."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def reloaded(program):
    return quick_jit(jax.export.deserialize(bytearray(program.serialize())).call)


def both_ways(config):
    """Samples and energies of 3 chains from reloaded programs, and from the functions that were exported."""
    params, labels = moved_params(config), labels_for(config, 3)
    sampler, energy_fn = map(reloaded, export.programs(config, params))
    images = expected_samples(config, params, jax.random.key(0), labels, quick_jit)
    energies = quick_jit(samplers.make_energy_fn(config))(params, images, labels)
    return (sampler(params, jax.random.key(0), labels), energy_fn(params, images, labels)), (images, energies)


def labels_for(config, n):
    return example_labels(config, jnp.arange(n))


@pytest.mark.whole
@pytest.mark.parametrize("kind", few(KINDS, ("residual, spectral norm, classes", "a density by MALA", "soft labels")))
def test_every_kind_of_model_is_exported_but_for_rounding(kind):
    (samples, energies), (images, expected) = both_ways(KINDS[kind])
    assert np.isfinite(images).all()
    assert np.ptp(images) > 0.5
    # XLA may round the two programs differently: by 6e-7 at most, where a step moves by 1e-2 and more
    np.testing.assert_allclose(samples, images, rtol=0, atol=1e-5)
    np.testing.assert_allclose(energies, expected, rtol=1e-5)


@pytest.mark.whole
def test_labels_reach_both_programs():
    config = KINDS["soft labels"]
    params, labels = moved_params(config), labels_for(config, 3)
    sampler, energy_fn = export.programs(config, params)
    images = sampler.call(params, jax.random.key(0), labels)
    assert (sampler.call(params, jax.random.key(0), labels + 1) != images).any()
    assert (energy_fn.call(params, images, labels + 1) != energy_fn.call(params, images, labels)).all()


@pytest.mark.whole
def test_the_programs_of_an_ensembles_energy_are_those_of_its_members_mean():
    config = KINDS["strided"]
    apply, one = jax.jit(assemble.make_apply(config)), moved_params(config)
    both = [one, jax.tree.map(lambda leaf: 0.9 * leaf, one)]
    plain = jax.tree.map(lambda *leaves: np.stack(leaves), *both)  # what params.npz holds
    program = reloaded(export.programs(config, energy.stack(both))[1])
    images, labels = jax.random.uniform(jax.random.key(0), (3, 28, 28, 1)), jnp.zeros(3, jnp.int32)
    first, second = (apply(params, images, labels) for params in both)
    assert np.abs(first - second).min() > 1e-3
    np.testing.assert_allclose(program(plain, images, labels), (first + second) / 2, 1e-5)


def test_draws_of_a_symbolic_size_are_those_of_the_size():
    (n,) = jax.export.symbolic_shape("n")
    drawn = jax.export.export(
        jax.jit(lambda key, like: random.normal(key, (like.shape[0], 3))), platforms=export.PLATFORMS
    )(jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((n,), jnp.int32))
    np.testing.assert_array_equal(
        drawn.call(jax.random.key(1), jnp.zeros(4, jnp.int32)), jax.random.normal(jax.random.key(1), (4, 3))
    )
