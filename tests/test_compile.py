"""--mode=compile: what it says of a step that test_regressions.py counts too, and of one that does not fit."""

import importlib
import importlib.util
import re

import jax
import pytest

import run
from ebm_jax import assemble, program, schema
from ebm_jax.distributed import parallel
from tools.compile import chips, hlo, report

pytestmark = pytest.mark.whole

TINY = {"model.width": 4, "chain.num_steps": 3, "buffer.capacity": 1_600, "train.batch_size": 16}
TPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: requirements-tpu.txt")


def tiny(name, **values):
    return schema.with_values(importlib.import_module(f"configs.{name}").get_config(), TINY | values)


def step_of(config):
    mesh = parallel.device_mesh()
    state = program.abstract_state(config, mesh)
    lowered = program.make_step(config, mesh).lower(state, program.abstract_batch(config, mesh))
    return state, hlo.parse(lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text())


def words(*rest, name="density2d"):
    return ["run.py", f"--config=configs/{name}.py", "--mode=compile", *rest]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(run.__file__.removesuffix("run.py"))


@pytest.fixture(scope="module")
def density():
    return step_of(tiny("density2d"))


def test_a_step_that_donates_all_and_copies_nothing_is_said_to(density):
    state, program = density
    assert report.donated(program, len(jax.tree.leaves(state))).startswith("all, ")
    assert report.buffer_copies(program, state.memory) == "none"


def test_what_is_not_donated_is_named(density):
    state, program = density
    number = next(n for n, one in program.parameters.items() if one.label == "state.memory.images")
    less = program._replace(aliased=program.aliased - {number})
    assert report.donated(less, len(jax.tree.leaves(state))).endswith("but not state.memory.images")


def test_the_work_of_a_chain_grows_by_one_energy_and_its_gradient_for_each_step():
    three, five = (step_of(tiny("density2d", **{"chain.num_steps": steps}))[1] for steps in (3, 5))
    config = tiny("density2d")
    mesh, apply = parallel.device_mesh(), assemble.make_apply(config)
    params = program.abstract_state(config, mesh).params
    points = jax.ShapeDtypeStruct((TINY["train.batch_size"] // mesh.size, 2), "float32")
    one = jax.jit(jax.value_and_grad(lambda x, params: apply(params, x).sum())).lower(points, params).compile()
    assert hlo.flops(five) - hlo.flops(three) == 2 * hlo.flops(hlo.parse(one.as_text())) > 0


def test_the_table_for_the_cpu_has_no_limit_of_memory_and_nothing_is_written(tmp_path, capsys):
    overrides = [f"--config.{key}={value}" for key, value in TINY.items()]
    assert run.main(words("--topology=cpu", f"--workdir={tmp_path / 'run'}", *overrides)) == 0
    lines = capsys.readouterr().out
    assert "8 x cpu" in lines
    assert "no limit" in lines
    assert "1 all-reduce of" in lines
    assert re.search(r"derived from the network +0.00\d G, compiled -\d+.\d %", lines), "-: heads are no products here"
    assert re.search(r"of a chain step +\d+.\d KiB, \d+.\d\d of the network's \d+.\d KiB", lines)
    assert "time by" not in lines, "the speed of this CPU is not known"
    assert not (tmp_path / "run").exists()


BAD = {
    "no topology": ([], "--topology is missing; use cpu, or"),
    "unknown topology": (["--topology=v7:2x2"], "--topology 'v7:2x2' is unknown; use cpu, or"),
    "another mode": (["--topology=cpu", "--mode=train"], "--topology cpu is for --mode=compile, not --mode=train"),
    "batch not divisible": (["--topology=cpu", "--config.train.batch_size=100"], "not divisible by 8 devices"),
    "buffer not divisible": (["--topology=cpu", "--config.buffer.capacity=1001"], "not divisible by 8 devices"),
}
BAD_TPU = {
    "a shape that no host has": (["--topology=v5e:3x5"], "--topology v5e:3x5 cannot be: INVALID_ARGUMENT"),
    "no shape": (["--topology=v5e"], "--topology v5e cannot be: INVALID_ARGUMENT"),
    "batch not divisible": (["--topology=v5e:16x16", "--config.train.batch_size=100"], "by 256 devices; use 256"),
    "too large a buffer": (
        ["--topology=v5e:2x2", "--config=configs/digits_contrastive.py", "--config.buffer.capacity=2000000000"],
        "lower buffer.capacity",
    ),
}


def refused(rest, expected, capsys):
    assert run.main(words(*rest)) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_status_2(case, capsys):
    refused(*BAD[case], capsys)


@TPU
@pytest.mark.parametrize("case", BAD_TPU)
def test_a_topology_that_cannot_be_is_one_clear_line_and_status_2(case, capsys):
    refused(*BAD_TPU[case], capsys)


def test_libtpu_that_is_missing_is_one_clear_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(["--topology=v5e:2x2"], "needs libtpu; pip install -r requirements-tpu.txt", capsys)


SAYS = [  # libtpu 0.0.42.1, and an older one
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (30.00G) exceeds "
    "available HBM (15.75G).",
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 30.00G of 15.75G hbm. Exceeded hbm capacity by "
    "14.25G.",
]


@pytest.mark.eight_devices
@pytest.mark.parametrize("says", SAYS)
def test_what_does_not_fit_is_said_with_the_key_to_lower_by_how_much(says):
    config, mesh = tiny("digits_contrastive", **{"train.batch_size": 64}), parallel.device_mesh()
    state = program.abstract_state(config, mesh)
    line = report._too_large(config, mesh, chips.CHIPS["TPU v5 lite"], state, says)
    assert "needs 30.00 GiB of memory a chip, 14.25 more than its 15.75 GiB" in line
    assert "lower train.batch_size 64, to 24 for example" in line  # 64 · 0.9 · 15.75/30 = 30.2, a multiple of 8 devices


@TPU
def test_a_step_compiles_for_a_tpu_that_is_not_there(capsys):
    overrides = [f"--config.{key}={value}" for key, value in TINY.items()] + ["--config.sample.num_steps=3"]
    assert run.main(words("--topology=v5e:2x2", *overrides)) == 0
    lines = capsys.readouterr().out
    assert "4 x TPU v5 lite" in lines
    assert "of 15.75 GiB" in lines
    assert "1 all-reduce of" in lines
    assert "time by memory" in lines


@pytest.mark.slow
@TPU
def test_what_the_compiler_refuses_for_its_memory_is_one_line_and_status_2(capsys):
    refused(
        ["--topology=v5e:2x2", "--config.train.batch_size=400_000_000", "--config.buffer.capacity=400_000_000"],
        "GiB",
        capsys,
    )
