"""The verb that compiles the training step and the sampler for named chips, and says what each needs."""

import importlib.util
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from ebm_jax import assemble, checks, program, samplers, schema
from ebm_jax.distributed import parallel
from ebm_jax.report import console
from ebm_jax.sampling.replay import ReplayBuffer
from ebm_jax.types import BadInput, Config, Folder
from tools.compile import chips, floor, hlo

USE = f"use cpu, or a TPU's name and shape, such as v5e:2x4, v5p:2x2x2 or v5e:16x16 ({', '.join(chips.NAMES)})"
NO_TPU = {  # libtpu asks a metadata server for these; its lock is for programs that run on a TPU
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
PARTS = {  # parts of a chip's memory, by the beginnings of their arguments' paths
    "parameters": ("state.params", "params"),
    "optimiser and EMA": ("state.opt_state", "state.ema", "state.spectral"),
    "replay buffer": ("state.memory",),
    "batch": ("batch",),
}
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Compiled(NamedTuple):
    """A program, and its compiler's account of one chip's memory."""

    program: hlo.Program
    parts: dict[str, int]
    """Bytes of its arguments, by PARTS."""
    temporaries: int
    peak: int
    """Bytes at once: arguments, results that take over none of their memory, temporaries."""
    seconds: float
    """Compiling took."""


def compile(config: Config, folder: Folder, *, topology: str) -> int:
    """Print the needs of a config's compiled step and sampler on each chip of a topology. Nothing runs or is written.

    Args:
      topology: "cpu", or a TPU's name and shape, such as "v5e:16x16".

    Raises:
      BadInput: there is no such topology, libtpu is missing, the config does not fit its chips or their memory.
    """
    del folder
    mesh = parallel.device_mesh(devices(config, topology))
    checks.check(config, mesh.size)
    kind = mesh.devices.flat[0].device_kind
    chip = chips.CHIPS.get(kind)
    if chip is None and topology != "cpu":
        raise BadInput(f"--topology {topology} is of {kind}, whose speed is not known here; {USE}")
    libraries = " ".join(f"{name} {version(name)}" for name in ("jax", *(("libtpu",) if chip else ())))
    console.say(f"compiling {config.data.name} for {topology}: {mesh.size} x {kind}, {libraries}; nothing runs")
    key = parallel.abstract(jax.eval_shape(lambda: jax.random.key(0)), mesh, parallel.REPLICATED)
    state, batch = program.abstract_state(config, mesh), program.abstract_batch(config, mesh)

    def advice(compiler_says: str) -> str:
        return _too_large(config, mesh, chip, state, compiler_says)

    if chip and _local_bytes(state) > chip.hbm:
        raise BadInput(advice(f"{_local_bytes(state) / chips.GIB:.2f}G"))

    def sampler_advice(compiler_says: str) -> str:
        return f"the sampler does not fit ({compiler_says}); lower sample.batch_size {config.sample.batch_size}"

    step = _compiled(program.make_step(config, mesh), (state, batch), advice)
    sampler = _compiled(samplers.make_sampler(config, mesh), (state.ema, key, 0), sampler_advice)
    for compiled, says in ((step, advice), (sampler, sampler_advice)):
        if chip and compiled.peak > chip.hbm:
            raise BadInput(says(f"{compiled.peak / chips.GIB:.2f}G of {chip.hbm / chips.GIB:.2f}G"))
    for line in table(config, mesh, chip, state, step, sampler):
        console.say(line)
    return 0


def devices(config: Config, topology: str) -> Sequence[Any]:
    """The devices of a topology. A TPU's can only be compiled for.

    Raises:
      BadInput: as `compile`.
    """
    if topology == "cpu":
        parallel.split_cpu(config.train.cpu_devices, config.train.batch_size, config.buffer.capacity)
        return parallel.present(partial(jax.devices, "cpu"))
    if re.split("[:=_]", topology)[0] not in chips.NAMES:
        raise BadInput(f"--topology '{topology}' is unknown; {USE}" if topology else f"--topology is missing; {USE}")
    if importlib.util.find_spec("libtpu") is None:
        raise BadInput(f"--topology {topology} needs libtpu; pip install -r requirements-tpu.txt (no TPU is needed)")
    if os.environ.get("TPU_SKIP_MDS_QUERY"):  # JAX sets it where it finds no TPU chip; a real TPU has its own answers
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # a TPU of this machine stays free for those who run on it
    megacore = {"chip_config_name": "megacore"} if topology.startswith("v4") else {}  # as Cloud TPUs run it
    try:
        return topologies.get_topology_desc(topology, "tpu", **megacore).devices
    except jax.errors.JaxRuntimeError as error:
        raise BadInput(f"--topology {topology} cannot be: {_first_line(error)}; {USE}") from error


def _compiled(function: Callable, arguments: tuple, advice: Callable[[str], str]) -> Compiled:
    began = time.perf_counter()
    lowered = function.lower(*arguments)
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise BadInput(advice(_first_line(error))) from error
        raise
    seconds = time.perf_counter() - began
    program, memory = hlo.parse(executable.as_text()), executable.memory_analysis()
    parts = dict.fromkeys(PARTS, 0)
    for parameter in program.parameters.values():
        for name, beginnings in PARTS.items():
            if parameter.label.startswith(beginnings):
                parts[name] += sum(array.size for array in parameter.arrays)
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.argument_size_in_bytes + results + memory.temp_size_in_bytes
    return Compiled(program, parts, memory.temp_size_in_bytes, peak, seconds)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _too_large(config: Config, mesh: Mesh, chip: chips.Chip | None, state: Any, compiler_says: str) -> str:
    """By how much the training step does not fit into a chip's memory, and which key to lower.

    Args:
      compiler_says: its first size, "26.40G" for example, is the need: of temporaries if the text names them, else of
        everything.
    """
    sizes: dict[str, float] = {"model.width": _local_bytes((state.params, state.ema, state.opt_state))}
    sizes["buffer.capacity"] = _local_bytes(state.memory)
    arguments, found = sum(sizes.values()), re.search(r"([\d.]+)([KMGT])\b", compiler_says)
    if chip is None or found is None:
        return (
            f"the training step does not fit ({compiler_says}); lower train.batch_size, buffer.capacity or model.width"
        )
    needed = float(found[1]) * UNITS[found[2]] + ("temporaries" in compiler_says) * arguments
    sizes["train.batch_size"] = max(needed - arguments, 0)
    key = max(sizes, key=lambda name: sizes[name])
    room = 0.9 * max(chip.hbm - (needed - sizes[key]), 0) / sizes[key]  # a tenth does not shrink with the key
    step = 1 if key == "model.width" else mesh.size
    value = schema.value_of(config, key)
    fits = int(value * room) // step * step
    instead = f", to {fits} for example" if fits else ""
    return (
        f"the training step needs {needed / chips.GIB:.2f} GiB of memory a chip, {(needed - chip.hbm) / chips.GIB:.2f} "
        f"more than its {chip.hbm / chips.GIB:.2f} GiB; most of it grows with {key}: lower {key} {value}{instead}, or "
        "take more chips"
    )


def _local_bytes(tree: Any) -> int:
    """Bytes of one device's share of abstract arrays."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)


def table(
    config: Config, mesh: Mesh, chip: chips.Chip | None, state: Any, step: Compiled, sampler: Compiled
) -> list[str]:
    """The lines that the verb prints: a name, and one column each for the training step and the sampler."""
    programs = (step, sampler)
    rows: list[tuple[str, ...]] = [("", "training step", "sampler")]
    rows.append(("memory of a chip, peak", *(_of(compiled.peak, chip) for compiled in programs)))
    for part in PARTS:
        rows.append((f"  {part}", *(_bytes(compiled.parts[part]) for compiled in programs)))
    rows.append(("  temporaries", *(_bytes(compiled.temporaries) for compiled in programs)))
    rows.append(("state donated", donated(step.program, len(jax.tree.leaves(state))), "-"))
    rows.append(("collectives", *(_collectives(compiled.program) for compiled in programs)))
    rows.append(("  of these in a loop", *(_in_loops(compiled.program) for compiled in programs)))
    every_row = config.train.batch_size == config.buffer.capacity  # chains and buffer then look alike
    chains = assemble.make_method(config).chains(state.memory)
    copies = "-" if chains is None else buffer_copies(step.program, chains)
    copies = "a step draws all of it" if every_row else copies
    rows.append(("copies of the whole buffer", copies, "-"))
    flops = [hlo.flops(compiled.program) for compiled in programs]
    traffic = [hlo.traffic(compiled.program) for compiled in programs]
    rows.append(("FLOPs of a chip", *(_count(number) for number in flops)))
    rows.append(("FLOPs of all chips", *(_count(number * mesh.size) for number in flops)))
    derived = floor.step_flops(config, mesh.size)
    excess = 100 * (flops[0] * mesh.size / derived - 1)
    rows.append(("  derived from the network", f"{_count(derived)}, compiled {excess:+.1f} %", "-"))
    rows.append(("bytes to and from memory", *(_bytes(number) for number in traffic)))
    chain_step = hlo.traffic(step.program, in_loops=True) / config.chain.num_steps
    least = floor.chain_step_bytes(config, mesh.size)
    times = f"{_bytes(chain_step)}, {chain_step / least:.2f} of the network's {_bytes(least)}"
    rows.append(("  of a chain step", times, "-"))
    if chip:
        times = [(one / chip.flops, other / chip.bandwidth) for one, other in zip(flops, traffic, strict=True)]
        rows.append(("time by FLOPs", *(_time(by_flops) for by_flops, _ in times)))
        rows.append(("time by memory", *(_time(by_memory) for _, by_memory in times)))
        rows.append(("at least (computed)", *(_bound(*both) for both in times)))
    rows.append(("compiled in", *(f"{compiled.seconds:.0f} s" for compiled in programs)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if chip:
        lines.append(
            f"computed, not measured, from {chip.flops / 1e12:.0f} TFLOP/s in bfloat16 and {chip.bandwidth / 1e9:.0f} "
            f"GB/s a chip ({chip.source}); FLOPs are those of convolutions and matrix products"
        )
    return lines


def donated(program: hlo.Program, leaves: int) -> str:
    """Which leaves of the training state give their memory to the new state, in words."""
    mine = {number: one for number, one in program.parameters.items() if one.label.startswith("state.")}
    kept = [one.label for number, one in mine.items() if number not in program.aliased]
    size = sum(array.size for number, one in mine.items() if number in program.aliased for array in one.arrays)
    if not kept and len(mine) == leaves:
        return f"all, {_bytes(size)}"
    lost = [f"{leaves - len(mine)} unused"] if len(mine) < leaves else []
    return f"{_bytes(size)}, but not {', '.join(kept + lost)}"


def buffer_copies(program: hlo.Program, buffer: ReplayBuffer) -> str:
    """The copies of a chip's whole replay buffer of a single model, in words."""
    images: Any = buffer.images
    shape = images.sharding.shard_shape(images.shape)
    return _counts(hlo.whole_copies(program, shape[-2], int(np.prod(shape))))


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def _collectives(program: hlo.Program) -> str:
    found = hlo.collectives(program)
    size = sum(collective.size for collective in found)
    return _counts(Counter(collective.kind for collective in found)) + (f" of {_bytes(size)}" if found else "")


def _in_loops(program: hlo.Program) -> str:
    return _counts(Counter(collective.kind for collective in hlo.collectives(program) if collective.in_loop))


def _of(size: float | int, chip: chips.Chip | None) -> str:
    return f"{_bytes(size)}, no limit" if chip is None else f"{_bytes(size)} of {chip.hbm / chips.GIB:.2f} GiB"


def _bytes(size: float | int) -> str:
    unit = next((unit for unit in ("GiB", "MiB") if size >= UNITS[unit[0]]), "KiB")
    return f"{size / UNITS[unit[0]]:.1f} {unit}"


def _count(number: float) -> str:
    return f"{number / 1e12:.3f} T" if number >= 1e11 else f"{number / 1e9:.3f} G"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def _bound(by_flops: float, by_memory: float) -> str:
    return f"{_time(max(by_flops, by_memory))}, by {'FLOPs' if by_flops >= by_memory else 'memory'}"
