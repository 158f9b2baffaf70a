"""Counts of compiled training steps that must not grow: they are exact, and the same on every machine.

benchmarks/ and docs/performance.md say what they mean in time; nothing is timed here.
"""

import math
import re
from typing import Any

import jax
import numpy as np
import pytest
from test_compile import tiny

from ebm_jax import assemble, program
from ebm_jax.distributed import parallel
from ebm_jax.models import networks
from ebm_jax.models.network import as_network
from ebm_jax.storage import checkpoint
from ebm_jax.types import Batch
from tools.compile import hlo

pytestmark = pytest.mark.whole

CHAIN = 7  # steps; the loops that draw random bits have 5
# Chains times pixels exceed the kernels' elements; otherwise XLA swaps image and kernel
SIZES = {"train.batch_size": 40, "buffer.capacity": 400, "chain.num_steps": CHAIN, "model.spectral_norm": True}
RESNET = networks.ResNet(stem=4, blocks=(networks.Residual(64, True),), num_classes=1, spectral_norm=True)
CASES = {  # the network (None: the config's) and its layers: plain convolutions, Winograd's, dense without the head
    "resnet": (RESNET, (3, 1, 0)),
    "digits": (None, (3, 1, 1)),
}
METRICS = 8  # averaged over the devices; the others follow from these
ARITHMETIC = ("add", "subtract", "multiply", "divide", "dot")


class Step:
    """A training step compiled for two devices."""

    def __init__(self, case):
        network, (self.plain, self.winograd, self.dense) = CASES[case]
        config = tiny("digits_contrastive", **SIZES | {"model.width": 32})
        mesh = parallel.device_mesh(jax.devices()[:2])
        with pytest.MonkeyPatch.context() as patch:
            if network is not None:
                patch.setattr(assemble, "make_network", lambda config: as_network(network))
            self.state = program.abstract_state(config, mesh)
            lowered = program.make_step(config, mesh).lower(self.state, program.abstract_batch(config, mesh))
        self.program = hlo.parse(lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text())
        self.chain = [run for run in hlo.runs(self.program) if run.in_loop]
        self.outside = [run for run in hlo.runs(self.program) if not run.in_loop]


def count(runs, *opcodes):
    """How often instructions with one of the `opcodes` run."""
    return sum(run.times for run in runs if run.instruction.opcode in opcodes)


@pytest.fixture(scope="module", params=CASES)
def step(request):
    return Step(request.param)


def test_a_chain_step_is_one_forward_pass_and_one_input_gradient(step):
    assert count(step.chain, "convolution") == CHAIN * 2 * step.plain
    assert count(step.chain, "dot") == CHAIN * 2 * (16 * step.winograd + step.dense)


def test_the_loss_is_one_forward_pass_for_data_and_samples_and_no_gradient_of_the_images(step):
    forward = kernels = step.plain
    assert count(step.outside, "convolution") == forward + kernels + step.plain - 1


def test_no_convolution_has_another_layout_than_the_one_that_a_cpu_has_fast_code_for(step):
    runs = [run for run in step.chain + step.outside if run.instruction.opcode == "convolution"]
    found = [re.findall(r"dim_labels=([\w>-]+)", run.instruction.attributes) for run in runs]
    assert found == len(runs) * [["b01f_01io->b01f"]]


def test_kernels_are_normalised_and_transformed_before_the_chain_and_only_moved_in_it(step):
    leaves = jax.tree.leaves(step.state.params)
    kernels = [leaf.shape for leaf in leaves if leaf.ndim > 1 and min(leaf.shape[-2:]) > 1]
    shapes = {part for shape in kernels for part in (shape, shape[-2:], (math.prod(shape[:-1]), shape[-1]))}

    def shape(run):
        dims = run.instruction.arrays[0].dims
        return dims[next((place for place, size in enumerate(dims) if size > 1), 0) :]

    inside = [run for run in step.chain if shape(run) in shapes]
    assert not [run.instruction.name for run in inside if run.instruction.opcode in ARITHMETIC]
    outside = [run for run in step.outside if shape(run) in shapes]
    assert count(outside, *ARITHMETIC) > 0
    # XLA does not hoist what only moves elements: one flip of a plain kernel, four flips of Winograd's parts
    assert count(step.chain, "reverse") == CHAIN * (step.plain + 4 * step.winograd)


def test_devices_talk_once_a_step_after_the_chain_about_every_gradient_and_metric_once(step):
    (only,) = hlo.collectives(step.program)
    assert (only.kind, only.in_loop) == ("all-reduce", False)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(step.state.params))
    assert only.size == 4 * (parameters + METRICS)


def test_every_byte_of_the_state_is_donated(step):
    parameters = step.program.parameters
    taken_over = sum(array.size for number in step.program.aliased for array in parameters[number].arrays)
    plain = [leaf for leaf in jax.tree.leaves(step.state) if leaf is not step.state.key]
    sizes = [leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in plain]
    assert taken_over == sum(sizes) + 8, "the key is two uint32"


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_is_traced_and_compiled_once_also_from_a_restored_state_on(devices, tmp_path, monkeypatch):
    traces, make, events, compilations = [], program.make_train_step, [], []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))

    def counted(*args, **kwargs):
        step = make(*args, **kwargs)
        return lambda state, batch: (traces.append(1), step(state, batch))[1]

    monkeypatch.setattr(program, "make_train_step", counted)
    config = tiny("density2d")
    mesh = parallel.device_mesh(jax.devices()[:devices])
    step, state = program.make_step(config, mesh), program.make_state(config, mesh)
    rows: Any = np.zeros((16, 2), np.float32), np.zeros(16, np.int32)

    def trained(state):
        batch = program.place_batch(config, mesh, Batch(*rows))
        events.clear()
        state, _ = step(state, batch)
        compilations.append(sum(name.endswith("backend_compile_duration") for name in events))
        return state

    state = trained(trained(state))
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, 2, state)
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        state = checkpoint.restore_newest(manager, program.abstract_state(config, mesh)).state
    assert int(trained(trained(state)).step) == 4
    assert len(traces) == 1
    assert compilations == [1, 0, 0, 0]
