"""Runs that diverge, on purpose: each is rescued or ends with status 3, and no checkpoint is poisoned."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import bits, command, final_state, rows

import run
from configs import digits_contrastive as digits
from ebm_jax import assemble, program, samplers, schema, train
from ebm_jax.data import memory, sources
from ebm_jax.distributed import parallel
from ebm_jax.storage import checkpoint
from ebm_jax.storage.workdir import read_config
from ebm_jax.training import guard, recovery, state

pytestmark = pytest.mark.whole

WITHOUT_KEY_CHECKS = partial(jax.debug_key_reuse, False)
"""The checker takes the keys of several models' vmapped scan for used ones; a single model passes it."""


def poisoned_rows(run_state, value=np.nan):
    """The state with `value` in one row of the last device's shard of the buffer."""
    images = run_state.memory.images
    rows = jnp.where(jnp.arange(images.shape[0])[:, None] == images.shape[0] - 1, value, images)
    return run_state._replace(memory=run_state.memory._replace(images=jax.device_put(rows, images.sharding)))


def poisoned_params(run_state):
    """The state as after an update that went wrong on every device."""
    return run_state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, run_state.params))


def sabotage(monkeypatch, change, at, times=1):
    """Apply `change` to the state before step `at`, the first `times` times that the run reaches it."""
    left, make_steps = [times], program.make_steps

    def make(config, mesh, rescues=0, stage=None):
        step = make_steps(config, mesh, rescues, stage)

        def sabotaged(run_state, batch):
            if left[0] and int(np.max(run_state.step)) == at:
                left[0] -= 1
                run_state = change(run_state)
            return step(run_state, batch)

        return sabotaged

    monkeypatch.setattr(train.program, "make_steps", make)


def states_on_disk(workdir):
    """Every state that a checkpoint or a rescue left, by folder and number."""
    config = read_config(workdir)
    abstract, found = program.abstract_state(config, parallel.device_mesh()), {}
    for directory in (checkpoint.DIRECTORY, recovery.DIRECTORY):
        if not checkpoint.exists(workdir, directory):
            continue
        with checkpoint.open_manager(workdir, read_only=True, directory=directory) as manager:
            for step in manager.all_steps():
                restored = checkpoint.restore_newest(manager, abstract, before=step + 1.0)
                assert restored.step == step
                found[directory, step] = restored.state
    return found


def assert_none_is_poisoned(workdir):
    """Every state on disk is finite, and its raw network gives digits energies within the guard's limits."""
    config = read_config(workdir)
    limit = assemble.make_limits(config).ranges[0].most
    images = jnp.asarray(memory.digits("test").images[:64], jnp.float32) / 255
    found = states_on_disk(workdir)
    assert found
    for name, one in found.items():
        assert state.non_finite(one) == 0, name
        energies = samplers.make_energy_fn(config)(state.network_params(one, ema=False), images)
        assert abs(energies.mean()) < limit, name


def events(workdir):
    return [row for row in rows(workdir) if "event" in row]


@pytest.mark.slow
@pytest.mark.parametrize("change", [poisoned_rows, poisoned_params])
def test_a_transient_nan_costs_a_rescue_and_the_run_is_the_one_that_goes_on_from_there(
    tmp_path, monkeypatch, capsys, change
):
    words = command(tmp_path / "run", buffer__capacity=16, checkpoint__every=2)  # capacity = batch: all rows are drawn
    with monkeypatch.context() as patch:
        sabotage(patch, change, at=4)  # the state of step 4 was saved before
        assert run.main(words) == 0
    assert "rescue 1 of 5: back to step 2 " in capsys.readouterr().err
    assert_none_is_poisoned(tmp_path / "run")
    (event,) = events(tmp_path / "run")
    assert event["step"] == 5
    assert "back to step 2" in event["event"]
    assert [row["step"] for row in rows(tmp_path / "run") if "event" not in row] == [1, 2, 3, 4, 5, 6]
    assert b"back to step 2" in b"".join(path.read_bytes() for path in (tmp_path / "run").glob("events.out.tfevents.*"))

    config, mesh = read_config(tmp_path / "run"), parallel.device_mesh()
    expected = program.make_state(config, mesh)
    step = program.make_step(config, mesh)
    with sources.open_batches(config, pytest.fail) as batches:
        for index in range(6):
            if index == 2:
                expected = program.make_rescued(config, mesh, 1)(expected)
            expected, _ = step(expected, program.place_batch(config, mesh, batches(index)))
    for got, wanted in zip(bits(final_state(tmp_path / "run").state), bits(expected), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_permanent_fault_ends_with_status_3_one_line_and_the_last_healthy_state(tmp_path, capsys, monkeypatch):
    assert run.main(command(tmp_path / "run", train__num_steps=3)) == 0
    good = bits(final_state(tmp_path / "run").state)
    capsys.readouterr()
    load = memory.load

    def no_numbers(source, workers):
        dataset = load(source, workers)
        return dataset._replace(images=np.full(dataset.images.shape, np.nan, np.float32))

    monkeypatch.setattr(memory, "load", no_numbers)
    words = command(tmp_path / "run", train__num_steps=9, guard__max_rescues=2)
    assert run.main(words) == 3
    error = capsys.readouterr().err.splitlines()
    assert "step 4: energy_data is nan (which is not finite); rescue 1 of 2: back to step 3" in error[0]
    assert "(the step of the illness before, too: look at its data and at chain.step_size); rescue 2 of 2" in error[1]
    assert error[-1].startswith("run.py: step 4: energy_data is nan")
    assert "step of the illness before" not in error[0]
    assert "the last healthy state is the checkpoint of step 3" in error[-1]
    assert [event["event"] in line for event, line in zip(events(tmp_path / "run"), error, strict=True)] == [True] * 3
    restored = final_state(tmp_path / "run")
    assert restored.step == 3
    for a, b in zip(bits(restored.state), good, strict=True):
        np.testing.assert_array_equal(a, b)
    assert_none_is_poisoned(tmp_path / "run")

    assert run.main(words) == 3, "started again it is still out of rescues"
    assert "rescued 2 times, of 2" in capsys.readouterr().err


HOPELESS = {
    "chain_grad_norm": ("chain.step_size 1e+06 is too large for the untrained network; lower it to 20 or so", 5000.0),
    "energy_samples": ("chain.step_size 1e+06 is too large for the untrained network; lower it", 30.0),
    "chain_movement": ("chain.step_size 1e+06 is too large for the untrained network; lower it", np.inf),
    "energy_data": ("look at model.name small and at the values of the data", np.inf),
}


def test_an_illness_before_any_learning_is_not_rescued_and_its_line_names_the_key_that_cures_it(tmp_path, monkeypatch):
    config, mesh = schema.dry_run(digits.get_config()), parallel.device_mesh()
    config.chain.step_size = 1e6
    beginning = recovery.Beginning(0, program.make_state(config, mesh), False)
    monkeypatch.setattr(recovery, "begin", lambda *_: beginning)
    monkeypatch.setattr(recovery.program, "untrained_energy", lambda _: 0.1)
    with checkpoint.open_manager(tmp_path, keep=3) as manager:

        def line(metric, times):
            illness = guard.Ill(2, "it is ill", guard.Symptom(metric, "it is ill", times))
            with pytest.raises(guard.Diverged) as ended:
                recovery.roll_back(config, mesh, manager, tmp_path, illness)
            return str(ended.value)

        for metric, (cure, times) in HOPELESS.items():
            assert line(metric, times).startswith("step 2: it is ill; no step since the first was healthy, ")
            assert line(metric, times).endswith(cure)
        config.chain.kernel, config.chain.step_size = "hmc", 1e3
        assert "chain.step_size 1000 " in line("chain_grad_norm", 1e4)
        assert line("chain_grad_norm", 1e4).endswith("lower it to 1 or so"), "gradients act by its square"
        assert "model.name small" in line("chain_grad_norm", 1.0), "it is dead"
        monkeypatch.setattr(recovery.program, "untrained_energy", lambda _: np.nan)
        assert line("chain_grad_norm", np.inf).endswith("gives energies of nan; mend model.name small")
        assert not checkpoint.exists(tmp_path, recovery.DIRECTORY)
        assert list(manager.all_steps()) == [0], "the state that it began with"


@pytest.mark.slow
@pytest.mark.parametrize("step_size", [1e6, 1e30])
def test_a_huge_step_size_ends_at_the_first_step_with_status_3_and_one_line(tmp_path, capsys, step_size):
    assert run.main(command(tmp_path / "run", chain__step_size=step_size)) == 3
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("run.py: step 1: chain_grad_norm is ")
    assert f"chain.step_size {step_size:g} is too large for the untrained network" in error


@pytest.mark.slow
def test_a_dry_run_of_64x64_pixels_is_well(tmp_path):
    words = [
        "run.py",
        "--config=configs/folder_contrastive.py",
        "--config.train.dry_run=True",
        "--config.data.shape=(64,64,3)",
    ]
    assert run.main([*words, f"--workdir={tmp_path}", "--config.train.seed=2"]) == 0


@pytest.mark.slow
def test_a_nan_that_no_step_has_drawn_is_not_saved(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        sabotage(patch, poison_an_unvisited_row, at=5)
        assert run.main(command(tmp_path / "run", buffer__capacity=2048, train__num_steps=6)) == 0
    assert "step 6: 1 values of the state are not finite; rescue 1" in capsys.readouterr().err
    assert_none_is_poisoned(tmp_path / "run")


def poison_an_unvisited_row(run_state):
    buffer = jax.device_get(run_state.memory)
    images = np.array(buffer.images)
    images[np.flatnonzero(buffer.visits == 0)[-1], 0] = np.nan
    placed = jax.device_put(images, run_state.memory.images.sharding)
    return run_state._replace(memory=run_state.memory._replace(images=placed))


class Killed(BaseException):
    """As SIGKILL would: nothing of the run may act on it."""


@pytest.mark.slow
def test_killed_between_a_rescue_and_the_next_checkpoint_a_run_still_knows_that_it_was_rescued(tmp_path, monkeypatch):
    visits = []

    def kill_the_second_time(run_state):
        visits.append(1)
        if len(visits) == 2:
            raise Killed
        return run_state

    killed, whole = (
        command(tmp_path / name, buffer__capacity=16, train__num_steps=7, checkpoint__every=3)
        for name in ("killed", "whole")
    )
    for words in (killed, whole):
        with monkeypatch.context() as patch:
            sabotage(patch, poisoned_rows, at=4)
            if words is killed:
                sabotage(patch, kill_the_second_time, at=4, times=2)
                with pytest.raises(Killed):
                    run.main(words)
            else:
                assert run.main(words) == 0
    assert final_state(tmp_path / "killed").state.rescues == 0, "no checkpoint has it yet"
    assert run.main(killed) == 0
    states = [final_state(tmp_path / name).state for name in ("killed", "whole")]
    assert states[0].rescues == 1
    for a, b in zip(*map(bits, states), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
def test_rescued_again_without_a_checkpoint_in_between_a_run_goes_to_older_ones_until_no_rescue_is_left(
    tmp_path, members
):
    config = schema.dry_run(digits.get_config())
    config.train.num_models, config.guard.max_rescues = members, 5
    mesh, keys = parallel.device_mesh(), set()

    def roll_back(manager):
        beginning, event = recovery.roll_back(config, mesh, manager, tmp_path, guard.Ill(9, "it is ill"))
        assert f"rescue {beginning.rescues} of 5: back to step {beginning.step} " in event
        keys.add(np.asarray(jax.random.key_data(beginning.state.key)).tobytes())
        begun = recovery.begin(config, mesh, manager, tmp_path)
        assert begun.unproven
        for a, b in zip(bits(begun.state), bits(beginning.state), strict=True):
            np.testing.assert_array_equal(a, b)
        return beginning

    def stepped(step):
        run_state = program.make_state(config, mesh)
        return run_state._replace(step=jnp.full_like(run_state.step, step))

    with checkpoint.open_manager(tmp_path, keep=3) as manager:
        assert roll_back(manager).step == 0, "before the first checkpoint: the initial state"
        rescued = recovery.begin(config, mesh, manager, tmp_path).state
        checkpoint.discard_after(manager, 0)
        for step in (4, 6):
            checkpoint.save(manager, step, rescued._replace(step=jnp.full_like(rescued.step, step)))
        manager.wait_until_finished()
        assert [roll_back(manager).step for _ in range(4)] == [6, 4, 0, 0]
        assert list(manager.all_steps()) == [0, 4, 6], "nothing is lost before something newer is saved"
        with pytest.raises(guard.Diverged, match=r"rescued 5 times, of 5; the last healthy state is .* step 6"):
            roll_back(manager)
        assert len(keys) == 5

        begun = recovery.begin(config, mesh, manager, tmp_path)
        assert (begun.step, begun.rescues) == (0, 5)
        checkpoint.discard_after(manager, begun.step)
        checkpoint.save(manager, 3, begun.state._replace(step=jnp.full_like(begun.state.step, 3)))
        manager.wait_until_finished()
        begun = recovery.begin(config, mesh, manager, tmp_path)
        assert (begun.step, begun.rescues, begun.unproven) == (3, 5, False)


DIVERGING = {
    "lambda 0 and a high learning rate": {"loss__energy_l2": 0.0, "optim__learning_rate": 0.3},
    "the difference form": {"loss__energy_l2_form": "difference", "optim__learning_rate": 0.1},
    "spectral normalisation off": {
        "model__name": "resnet32",
        "model__spectral_norm": False,
        "loss__energy_l2": 0.0,
        "optim__learning_rate": 0.1,
    },
}


def assert_rescued_or_ended_cleanly(workdir, capsys, words, num_steps):
    status = run.main(words)
    error = capsys.readouterr().err
    assert status in (0, 3)
    assert "rescue 1 of" in error, "it was to diverge"
    assert len(events(workdir)) == error.count("\n"), "each said once"
    assert final_state(workdir).step == num_steps or status == 3
    assert_none_is_poisoned(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVERGING)
def test_a_run_made_to_diverge_is_rescued_or_ends_cleanly(tmp_path, capsys, name):
    words = command(tmp_path / "run", train__num_steps=30, guard__max_rescues=2, **DIVERGING[name])
    assert_rescued_or_ended_cleanly(tmp_path / "run", capsys, words, 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVERGING)
def test_a_longer_run_of_the_shipped_digits_made_to_diverge_is_rescued_or_ends_cleanly(tmp_path, capsys, name):
    full = {"model__width": 8, "chain__num_steps": 20, "buffer__capacity": 256, "train__batch_size": 32}
    words = command(
        tmp_path / "run", train__num_steps=200, checkpoint__every=20, log__every=20, **full | DIVERGING[name]
    )
    assert_rescued_or_ended_cleanly(tmp_path / "run", capsys, words, 200)


@pytest.mark.slow
def test_of_two_models_one_nan_rolls_both_back(tmp_path, monkeypatch, capsys):
    def poison_the_second(run_state):
        return run_state._replace(params=jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), run_state.params))

    with monkeypatch.context() as patch, WITHOUT_KEY_CHECKS():
        sabotage(patch, poison_the_second, at=4)
        assert run.main(command(tmp_path / "run", train__num_models=2)) == 0
    assert "step 5: model 1: " in capsys.readouterr().err
    assert (final_state(tmp_path / "run").state.rescues == 1).all()
    assert_none_is_poisoned(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.optimised  # half of the time
@pytest.mark.parametrize("name", ["digits_contrastive", "density2d"])
def test_on_ten_seeds_of_a_short_healthy_run_the_guard_never_fires(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.train.num_models, config.train.num_steps = 10, 150
    mesh = parallel.device_mesh(jax.devices()[:2])
    run_state, step, limits = (
        program.make_state(config, mesh),
        program.make_step(config, mesh),
        assemble.make_method(config).limits,
    )
    health = guard.HEALTHY
    with sources.open_batches(config, pytest.fail) as batches, WITHOUT_KEY_CHECKS():
        for index in range(150):
            run_state, metrics = step(run_state, program.place_batch(config, mesh, batches(index)))
            health, illness = guard.judge(health, jax.device_get(metrics), limits)
            assert illness is None
            assert health.symptom is None, "not even for a step"
    assert state.non_finite(run_state) == 0
