"""The verb that exports: a run's sampler and energy as programs that run with jax alone, on CPU, TPU and GPU."""

import hashlib
import io
import json
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ebm_jax import chains, checks, opening, samplers
from ebm_jax.distributed import parallel
from ebm_jax.labels import label_shape
from ebm_jax.models.energy import Stacked
from ebm_jax.report import console, progress
from ebm_jax.storage import bucket, exported
from ebm_jax.storage.workdir import unused
from ebm_jax.storage.writing import require_no_links
from ebm_jax.types import BadInput, Config, Energies, Folder, Images, Labels, Params, PRNGKey

PLATFORMS = ("cpu", "tpu", "cuda")
EXAMPLE = '''\
"""16 samples of this model and their mean energy; needs jax, numpy and flatbuffers, nothing else."""
import sys
import jax
from load import load

try:
    model = load()
except ValueError as error:
    print(f"example.py: {error}", file=sys.stderr)
    sys.exit(2)
images = model.sampler(model.params, jax.random.key(0), model.labels(16))
print(images.shape, "mean energy", model.energy(model.params, images, model.labels(16)).mean())
'''


def export(config: Config, folder: str | Folder) -> int:
    """Write export/STEP_N/: sampler.bin, energy.bin, params.npz, manifest.json, load.py, example.py.

    The group `sample` of the config sets the chain, and `sample.weights` the weights. Earlier exports stay.

    Returns:
      The exit status 0.

    Raises:
      BadInput: there is no checkpoint to export, or the folder cannot be written.
    """
    folder = bucket.folder_of(folder)
    checks.check(config, 1)
    require_no_links(folder)
    mesh = parallel.first_device_mesh()
    with progress.Board(f"exporting {folder}"):
        run = opening.open_run(folder, config, mesh, ensemble=False)
        console.warn_skipped(run.skipped)
        with progress.phase(f"making programs for {', '.join(PLATFORMS)}"):
            files = artifact(config, run.params, run.step)
        path = _write(folder / "export", run.step, files)
    sizes = ", ".join(f"{name} {len(content):,} bytes" for name, content in files.items())
    console.say(f"exported step {run.step}, {config.sample.weights} weights: {sizes}")
    example = console.command(sys.executable, str(path / "example.py"))
    console.say_written(*(path / name for name in files))
    console.say(f"run it, with jax, numpy and flatbuffers alone: {example}")
    return 0


def make_sampler(config: Config) -> Callable[[Params, PRNGKey, Labels], Images]:
    """The function of sampler.bin: one chain from noise for each label [n] or [n, k]; images float32 [n, h, w, c]."""
    sample_fn, base = samplers.make_sample_fn(config), chains.make_base(config)

    def sampler(params: Params, key: PRNGKey, labels: Labels) -> Images:
        key_init, key_chain = jax.random.split(key)  # sample_fn splits again, as in older exports: same images
        init = base.sample(key_init, labels.shape[0])
        return sample_fn(params, key_chain, labels=labels, init=init)

    return sampler


def make_energy(config: Config) -> Callable[[Params, Images, Labels], Energies]:
    """The function of energy.bin: images [n, h, w, c] in [0, 1], labels [n] or [n, k], energies [n]."""
    energy_fn = samplers.make_energy_fn(config)
    return lambda params, images, labels: energy_fn(params, images, labels)


def programs(config: Config, params: Params) -> tuple[jax.export.Exported, jax.export.Exported]:
    """Sampler and energy for all PLATFORMS and any number n of chains; only shapes and types of `params` count.

    The programs of an ensemble take its stacked arrays as plain dicts, because they run without our types.
    """
    (n,) = jax.export.symbolic_shape("n")
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _plain(params))

    wrapped = Stacked if isinstance(params, Stacked) else lambda plain: plain

    def exported_of(fn: Callable, *inputs: Any) -> jax.export.Exported:
        program = jax.jit(lambda plain, *inputs: fn(wrapped(plain), *inputs))
        return jax.export.export(program, platforms=PLATFORMS)(abstract, *inputs)

    label_shape, label_dtype = _label(config)
    labels = jax.ShapeDtypeStruct((n, *label_shape), label_dtype)
    images = jax.ShapeDtypeStruct((n, *config.data.shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return exported_of(make_sampler(config), key, labels), exported_of(make_energy(config), images, labels)


def artifact(config: Config, params: Params, step: int) -> dict[str, bytes]:
    """The content of each file of an export, by file name."""
    sampler, energy = programs(config, params)
    files = {exported.SAMPLER: bytes(sampler.serialize()), exported.ENERGY: bytes(energy.serialize())}
    files[exported.PARAMS] = _npz(_plain(params))
    label_shape, label_dtype = _label(config)
    manifest = {
        "format": exported.FORMAT,
        "jax": jax.__version__,
        "calling_convention": sampler.calling_convention_version,
        "platforms": PLATFORMS,
        "event_shape": tuple(config.data.shape),
        "label_shape": label_shape,
        "label_dtype": np.dtype(label_dtype).name,
        "step": step,
        "weights": config.sample.weights,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "config": config.to_dict(),
    }
    files[exported.MANIFEST] = (json.dumps(manifest, indent=2) + "\n").encode()
    files["load.py"] = Path(exported.__file__).read_bytes()
    files["example.py"] = EXAMPLE.encode()
    return files


def _label(config: Config) -> tuple[tuple[int, ...], Any]:
    """Shape and type of one label."""
    soft = label_shape(config)
    return ((), jnp.int32) if soft is None else (soft, jnp.float32)


def _plain(params: Params) -> Params:
    """The parameters as nested dicts of arrays; an ensemble's arrays are stacked."""
    return params.params if isinstance(params, Stacked) else params


def _npz(params: Params) -> bytes:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
    buffer = io.BytesIO()
    np.savez(buffer, **names)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def _write(parent: Folder, step: int, files: dict[str, bytes]) -> Folder:
    """Write the files into the first free folder STEP_N; a folder gets this name only when it is complete."""
    try:
        parent.mkdir(exist_ok=True)
        path = unused(parent, f"{step:06d}")
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # nobody can have put a link there
        unfinished.mkdir()
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
        return unfinished.rename(path)
    except OSError as error:
        raise BadInput(f"{parent} cannot be written ({error.strerror}); free it, or copy the run elsewhere") from error
