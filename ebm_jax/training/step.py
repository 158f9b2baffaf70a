"""One training step, of any method, as one device runs it on its share of the batch."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from ebm_jax.distributed import parallel
from ebm_jax.methods.method import Memory, Method, Model, prepared
from ebm_jax.models import energy, spectral
from ebm_jax.training import monitors
from ebm_jax.training.state import TrainState
from ebm_jax.types import Batch, Metrics, Params, PRNGKey, Scalar

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    apply: energy.ApplyFn,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    ema_ramp: bool,
    rescue_learning_rate: float,
    sharpness: float,
) -> TrainStep:
    """One device's step (state, batch) -> (state, metrics); `parallel.over_devices` maps it.

    Batch and memory are this device's shares. Devices communicate only for the mean of gradient and metrics, and where
    the method gathers. Metrics are scalars: the method's metrics, the loss, the gradient's norm and the `monitors`.

    Args:
      ema_decay: the weight of the old running mean in the new one, in [0, 1].
      ema_ramp: whether that weight is at most (1 + t)/(10 + t) after step t, so that the mean forgets its start.
      rescue_learning_rate: every rescue of the run multiplies the learning rate by this factor (training/recovery.py).
      sharpness: ρ >= 0: the gradient is that at θ + ρ g / |g|, g the gradient at θ (Foret et al. 2021, arXiv
        2010.01412, equations 2 and 3), on the same batch and the same chains, which follow θ. Metrics are those at θ.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = parallel.device_key(jax.random.fold_in(state.key, state.step))
        vectors = spectral.power_iteration(state.params, state.spectral)

        def model_of(params: Params) -> Model:
            return Model(apply, spectral.normalise(params, vectors))

        if sharpness:
            loss_at = prepared(method, key, model_of(parallel.varying(state.params)), batch, state.memory)
        else:
            loss_at = partial(_loss_at, method, key, batch, state.memory)
        gradient_at = jax.value_and_grad(lambda params: loss_at(model_of(params)), has_aux=True)
        (loss, (memory, metrics)), gradient = gradient_at(parallel.varying(state.params))
        metrics |= {"loss": loss}
        if sharpness:
            uphill = _scaled(parallel.mean_over_devices(gradient), sharpness)
            _, gradient = gradient_at(parallel.varying(optax.apply_updates(state.params, uphill)))
        metrics |= monitors.of_values((metrics, gradient))
        gradient, metrics = parallel.mean_over_devices((gradient, metrics))
        metrics |= method.derived(metrics) | {"grad_norm": optax.tree.norm(gradient)}
        metrics |= monitors.of_kernels(state.params, vectors)

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        updates = optax.tree.scale(jnp.float32(rescue_learning_rate) ** state.rescues, updates)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (2.0 + state.step) / (11.0 + state.step)) if ema_ramp else ema_decay
        ema = optax.incremental_update(spectral.normalise(params, vectors), state.ema, 1.0 - decay)
        return TrainState(state.step + 1, state.rescues, state.key, params, ema, opt_state, vectors, memory), metrics

    return train_step


def _loss_at(
    method: Method, key: PRNGKey, batch: Batch, memory: Memory, model: Model
) -> tuple[Scalar, tuple[Memory, Metrics]]:
    return method.loss(key, model, batch, memory)


def _scaled(gradient: Params, length: float) -> Params:
    """The gradient, made so long; 0 where it is 0."""
    norm = optax.tree.norm(gradient)
    return optax.tree.scale(length / jnp.where(norm > 0, norm, 1.0), gradient)
