"""What an evaluator is given, a trained run, and what it gives back: numbers, how they came about, and pictures."""

import hashlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ebm_jax import assemble, choices, trained
from ebm_jax.data import sources
from ebm_jax.data.memory import Dataset
from ebm_jax.distributed import parallel
from ebm_jax.models import energy
from ebm_jax.report import console
from ebm_jax.sampling import replay
from ebm_jax.types import BadInput, Config, EnergyFn, Folder, Labels, Params, PRNGKey

SAMPLES = 0  # the number that the samples' key is folded with
Draw = Callable[[Path], None]


class Samples(NamedTuple):
    """Images that the model made."""

    images: np.ndarray
    """float32 [n, h, w, c] in [0, 1]."""
    labels: np.ndarray
    """int32 [n] or float32 [n, k]: what each was sampled under."""
    origin: str
    """In words: fresh chains of how many steps, how many of them noise-free, or the training buffer."""


class Value(NamedTuple):
    """One number of an evaluation."""

    number: float
    standard_error: float | None = None
    """Over what is stated in the protocol; None where there is none."""


class Outcome(NamedTuple):
    """What an evaluator found."""

    values: dict[str, Value]
    """By name, with its unit where it has one, such as "log Z, nats"; of names "row / column" a grid is shown."""
    protocol: dict[str, str]
    """How they came about, each fact in words: sample sizes, sets and their hashes, chain steps, seeds."""
    pictures: dict[str, Draw]
    """By name: a function that draws to the path of a .png."""


class Subject:
    """A trained run under evaluation; what is costly is made once, when it is first asked for.

    Args:
      params: of the network, or of several, stacked, which are an ensemble.
      step: of the checkpoint that they are from.
      folder: of the run, for what an evaluator keeps.
      note: takes a few words on how far a long piece of work is, for the person who waits.
    """

    def __init__(
        self,
        config: Config,
        params: Params,
        mesh: Mesh,
        step: int,
        folder: Folder,
        note: Callable[[str], None] = lambda words: None,
    ) -> None:
        self.config, self.params, self.mesh = config, params, mesh
        self.step, self.folder, self.note = step, folder, note
        self.used: set[str] = set()
        """The splits, and "samples", that were asked for, since whoever watches this emptied it."""
        self._splits: dict[str, Dataset] = {}

    @property
    def key(self) -> PRNGKey:
        """The key of all randomness of an evaluation; each evaluator folds its own number in, 1 or more."""
        return jax.random.key(self.config.eval.seed)

    def energy_fn(self, labels: Labels | None = None) -> EnergyFn:
        """The energy of images under these labels [b] or [b, k]; None for an unconditional model."""
        return energy.bind(energy.of_members(assemble.make_apply(self.config)), self.params, labels)

    def map(self, fn: Callable[..., Any], *rows: np.ndarray) -> Any:
        """`fn(energy_of, *rows of a batch)` over all rows, `eval.batch_size` at a time, spread over all devices.

        Args:
          fn: of energy_of, (images, labels=None) -> energies, and of arrays of one batch, [b, ...]; it is compiled.
          rows: arrays [n, ...], n >= 1.

        Returns:
          The tree that `fn` gives, its leaves [n, ...] on the host.
        """
        apply, n, devices = energy.of_members(assemble.make_apply(self.config)), len(rows[0]), self.mesh.size
        size = -(-min(self.config.eval.batch_size, n) // devices) * devices
        compiled = jax.jit(lambda params, *batch: fn(partial(apply, params), *batch))
        parts = []
        for start in range(0, n, size):
            places = np.minimum(np.arange(start, start + size), n - 1)  # the last batch repeats the last row
            batch = parallel.place_batch(self.mesh, tuple(array[places] for array in rows))
            parts.append(jax.device_get(compiled(self.params, *batch)))
            self.note(f"{min(start + size, n):,} of {n:,} images")
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)

    def data(self, split: str) -> Dataset:
        """All images uint8 of a split of the run's own data, preprocessed as in training, with the data's labels.

        An unconditional model's have the data's labels too, though it never saw them.

        Raises:
          BadInput: there is no such split, or it cannot be read.
        """
        self.used.add(split)
        if split not in self._splits:
            self.note(f"reading {self.config.data.name} {split}")
            self._splits[split] = sources.load_dataset(with_split(self.config, split), console.warn)
        return self._splits[split]

    def described(self, split: str) -> str:
        """A split in words, for a protocol: its name, size and SHA-256."""
        images = self.data(split).images
        size = "x".join(map(str, images.shape[1:]))
        return f"{self.config.data.name} {split}, {len(images):,} images of {size}, SHA-256 {sha256(images)}"

    def used_in_words(self) -> dict[str, str]:
        """What of the run was asked for since `used` was emptied: samples and sets, for a protocol."""
        origins = (
            {"samples": f"{len(self._samples.images):,}, {self._samples.origin}"} if "samples" in self.used else {}
        )
        return origins | {f"split {split}": self.described(split) for split in sorted(self.used - {"samples"})}

    @property
    def samples(self) -> Samples:
        """`eval.num_samples` samples of the model, as `eval.samples` says: of fresh chains, or the training buffer."""
        self.used.add("samples")
        return self._samples

    @cached_property
    def _samples(self) -> Samples:
        if choices.choice(self.config, "eval.samples"):
            return self._buffered()
        config = self.config.copy_and_resolve_references().unlock()
        config.sample.num_images, config.sample.batch_size = config.eval.num_samples, config.eval.batch_size
        return self._by_rounds(config) if config.sample.buffer_capacity else self._fresh(config)

    def _fresh(self, config: Config) -> Samples:
        images = np.empty((config.eval.num_samples, *config.data.shape), np.float32)
        labels, done = [], 0
        key = jax.random.fold_in(self.key, SAMPLES)
        self.note(f"sampling {len(images)}, the first batch")
        for batch, batch_labels, _ in trained.fresh_batches(config, self.mesh, self.params, key):
            images[done : done + len(batch)] = batch
            labels.append(batch_labels)
            done += len(batch)
            self.note(f"{done} of {len(images)} sampled")
        return Samples(images, np.concatenate(labels), fresh_origin(config))

    def _by_rounds(self, config: Config) -> Samples:
        """Those chains of a sampling buffer that went the most rounds; it begins anew, so that only seeds matter."""
        init, advance, _ = trained.make_rounds(config, self.mesh)
        key_init, key_rounds = jax.random.split(jax.random.fold_in(self.key, SAMPLES))
        buffer = init(key_init)
        for _ in range(config.sample.rounds):
            buffer = advance(self.params, key_rounds, buffer)
            self.note(f"round {int(buffer.rounds)} of {config.sample.rounds} of the sampling buffer")
        images, labels, visits = trained.oldest_chains(config, buffer, config.eval.num_samples)
        mixed = np.random.default_rng(config.eval.seed).permutation(len(images))  # errors are over groups in order
        origin = f"{rounds_origin(config)}; {visits.mean():.1f} on average, {visits.min()} at least"
        return Samples(images[mixed], labels[mixed], origin)

    def _buffered(self) -> Samples:
        """Random chains of the newest checkpoint's buffer: where training left them, some just restarted from noise."""
        state = trained.restore(
            self.folder, assemble.abstract_state(self.config, self.mesh), before=self.step + 1
        ).state
        waiting = assemble.make_method(self.config).chains(state.memory)
        if waiting is None:
            raise BadInput("eval.samples 'buffer' needs a method with a replay buffer; use fresh")
        pixels, labels, visits = jax.device_get((waiting.images, waiting.labels, waiting.visits))
        chains = visits.size
        rows = chosen_rows(chains, self.config.eval.num_samples, self.config.eval.seed)
        stored = jnp.asarray(pixels.reshape(chains, -1)[rows])
        images = np.asarray(replay.as_images(stored, tuple(self.config.data.shape)))
        labels = labels.reshape(chains, *labels.shape[visits.ndim :])[rows]
        origin = (
            f"THE TRAINING BUFFER, not fresh chains: {len(rows)} of its {chains} chains, each moved on in "
            f"{visits.reshape(-1)[rows].mean():.1f} training steps on average since it started from noise"
        )
        return Samples(images, labels, origin)


def fresh_origin(config: Config) -> str:
    """In words, where fresh chains come from: the steps of the group `sample`."""
    sample = config.sample
    annealed = f", annealed from temperature {sample.anneal_from:g}" if sample.anneal_from else ""
    labels = f", under the labels {sample.labels} in turn" if sample.labels else ""
    return (
        f"fresh chains of {sample.num_steps} steps of {config.chain.kernel} from uniform noise, the last "
        f"{sample.quiet_steps} without noise{annealed}{labels}"
    )


def rounds_origin(config: Config) -> str:
    """In words, where the chains of a sampling buffer come from: the keys of the group `sample`."""
    sample = config.sample
    energies = "the energy of one member, by turns" if choices.choice(config, "sample.ensemble") else "the energy"
    return (
        f"chains of a sampling buffer of {sample.buffer_capacity}, begun from uniform noise by this evaluation: "
        f"{sample.rounds} rounds, each of {min(sample.num_images, sample.batch_size)} of them and {sample.num_steps} "
        f"steps of {config.chain.kernel} under {energies}, the last {sample.quiet_steps} without noise; "
        f"{sample.restart_prob:g} of them restarted and {sample.relabel_prob:g} relabelled in a round; those that went "
        "the most rounds since they began"
    )


def with_split(config: Config, split: str) -> Config:
    """The config whose data is another split."""
    other = config.copy_and_resolve_references().unlock()
    other.data.split = split
    return other.lock()


def chosen_rows(length: int, count: int, seed: int) -> np.ndarray:
    """`count` different random rows of 0..length-1, or all of fewer, in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(length)[:count])


def sha256(array: np.ndarray) -> str:
    """The hash of an array's shape, type and values in hexadecimal digits."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str} ".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


Evaluator = Callable[[Subject], Outcome]
