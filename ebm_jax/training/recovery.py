"""Where a run begins, and where it goes back to when it is ill: the newest healthy state on disk.

Every checkpoint is a healthy state. A rescue goes back to a checkpoint and changes the state, but Orbax would not save
two states of one step. So the rescue saves its state apart, in the folder's `rescued/` under the rescue's number. A run
that is killed before its next checkpoint begins there. Just before that checkpoint, the newer checkpoints that the
rescue left behind move to rolled_back_checkpoints/.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ebm_jax import assemble, program
from ebm_jax.distributed import processes
from ebm_jax.report import console, progress, rates
from ebm_jax.storage import checkpoint
from ebm_jax.training.guard import Diverged, Ill, Symptom
from ebm_jax.training.state import TrainState
from ebm_jax.types import BadInput, Config, Folder

DIRECTORY = "rescued"
OF_CHAINS = ("chain_grad_norm", "chain_movement", "energy_samples", "energy_gap")
"""Metrics that leave their range at the untrained network because chains go wrong."""
AGAIN = " (the step of the illness before, too: look at its data and at chain.step_size)"


class Beginning(NamedTuple):
    """The state that a run, or a stretch of it between two rescues, begins with."""

    step: int
    state: TrainState
    unproven: bool
    """Whether a rescue made the state and no checkpoint was saved since."""

    @property
    def rescues(self) -> int:
        """How often the run was rescued so far."""
        return _rescues(self.state)


def begin(config: Config, mesh: Mesh, manager: ocp.CheckpointManager, folder: Folder) -> Beginning:
    """The newest valid checkpoint, or the state of a later rescue; the initial state if there is neither.

    Raises:
      BadInput: there are checkpoints, all are damaged, and there is no rescue's state.
    """
    abstract = program.abstract_state(config, mesh)
    with progress.phase("restoring the newest checkpoint"):
        saved, rescued = checkpoint.restore_newest(manager, abstract), _newest_rescued(folder, abstract)
    console.warn_skipped(saved.skipped)
    if rescued is None and saved.step is None and saved.skipped:
        raise BadInput(checkpoint.all_damaged(folder, saved))
    checkpoint.set_aside(manager, folder, saved.skipped)
    if rescued is not None and (saved.step is None or _rescues(rescued) > _rescues(saved.state)):
        return Beginning(int(np.max(jax.device_get(rescued.step))), rescued, True)
    if saved.step is None:
        chains = assemble.make_method(config).chains(abstract.memory)
        with progress.phase("making the network" + (" and filling the replay buffer" if chains is not None else "")):
            return Beginning(0, jax.block_until_ready(program.make_state(config, mesh)), False)
    return Beginning(saved.step, saved.state, False)


def roll_back(
    config: Config, mesh: Mesh, manager: ocp.CheckpointManager, folder: Folder, illness: Ill, *, again: bool = False
) -> tuple[Beginning, str]:
    """The beginning that an ill run goes on from, already saved on disk, and the event in words.

    It is what `begin` gives, with another random stream. But if `begin` gives a rescue's state, the run fell ill again
    before a checkpoint: then it is an older checkpoint, if there is one.

    Args:
      again: whether the last illness was at the same step; the words say so.

    Raises:
      Diverged: no rescue is left; the newest checkpoint is the last healthy state. Or none can help, because every step
        since the run's first one was ill.
    """
    if failure := checkpoint.settle(manager):
        console.warn(failure)
    step, state, unproven = left = begin(config, mesh, manager, folder)
    if manager.latest_step() is None:
        checkpoint.save(manager, step, state)
        checkpoint.settle(manager)
    if illness.untrained is not None:
        raise Diverged(f"{illness}; {_before_learning(config, illness.untrained)}")
    seen = f"{illness}{AGAIN if again else ''}"
    number, allowed = left.rescues + 1, config.guard.max_rescues if config.guard.enabled else 0
    if number > allowed:
        raise Diverged(
            f"{seen}; rescued {left.rescues} times, of {allowed}; the last healthy state is the checkpoint of step "
            f"{manager.latest_step()}; lower optim.learning_rate or chain.step_size, or raise loss.energy_l2"
        )
    if unproven:
        older = checkpoint.restore_newest(manager, program.abstract_state(config, mesh), before=float(step))
        if older.step is not None:
            step, state = older.step, older.state
    state = program.make_rescued(config, mesh, number)(state)
    with checkpoint.open_manager(folder, directory=DIRECTORY, warn=console.warn) as apart:
        checkpoint.save(apart, number, state)
    learning_rate = config.optim.learning_rate * config.guard.rescue_learning_rate**number
    event = (
        f"{seen}; {rates.rescued(number, allowed, step)}with another random stream, learning rate {learning_rate:g}, "
        f"{program.rescued_chain(config, number)} chain steps"
    )
    return Beginning(step, state, True), event


def _before_learning(config: Config, symptom: Symptom) -> str:
    """The cause and the cure, in words, of an illness that every step since the run's first one had."""
    since = "no step since the first was healthy, so a lower learning rate cannot help and nothing is rescued"
    size, energy = config.chain.step_size, program.untrained_energy(config)
    if not math.isfinite(energy):
        return (
            f"{since}; the untrained network itself gives energies of {energy:g}; mend model.name {config.model.name}"
        )
    if symptom.metric not in OF_CHAINS or symptom.times == 1.0:
        return f"{since}; look at model.name {config.model.name} and at the values of the data"
    lower = "lower it"
    if symptom.metric == "chain_grad_norm" and math.isfinite(symptom.times):
        factor = math.sqrt(symptom.times) if config.chain.kernel == "hmc" else symptom.times
        one_digit = float(f"{0.1 * size / factor:.1g}")
        lower += f" to {one_digit:g} or so"
    return f"{since}; chain.step_size {size:g} is too large for the untrained network; {lower}"


def _newest_rescued(folder: Folder, abstract: TrainState) -> TrainState | None:
    """The state that the last rescue went on from; None if there is none."""
    if processes.from_first("there" if checkpoint.exists(folder, DIRECTORY) else "") != "there":
        return None
    with checkpoint.open_manager(folder, directory=DIRECTORY) as apart:
        found = checkpoint.restore_newest(apart, abstract)
        console.warn_skipped(found.skipped)
        checkpoint.set_aside(apart, folder, found.skipped, DIRECTORY)
    return found.state


def _rescues(state: TrainState) -> int:
    """The number of rescues in a state; several models share it."""
    return int(np.max(jax.device_get(state.rescues)))
