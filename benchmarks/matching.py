"""The training step of equilibrium matching on a U-Net's scalar, ours and PyTorch's, in turn.

    python -m benchmarks.matching [--peer-python PATH] [--rounds 15] [--float32]

U(x) = <x, f(x)>, f a U-Net of 236 thousand parameters (widths 32 and 64 on 14x14 and 7x7), batch 64 of 28x28. A step
takes the gradient of a loss of U's input gradient, clips it, and updates Adam and a running mean. PATH is as for
`python -m benchmarks`. CPU seconds are printed beside the times: other jobs disturb them less, but PyTorch's threads
also count them while they wait for each other.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.peer import Peer
from ebm_jax import random
from ebm_jax.models.layers import space_to_depth
from ebm_jax.models.normalisation import group_norm
from ebm_jax.models.products import product_convolution, product_convolution_same

BATCH, SIDE, STEPS = 64, 28, 4  # the last: of one scan
BLOCKS = {"down0": (32, 32), "down1": (64, 64), "up1": (64, 64), "up0": (64, 32)}
CONVOLUTIONS = {"stem": (3, 4, 32), "half": (3, 32, 64), "double": (3, 64, 32), "head": (3, 32, 4), "skip": (1, 64, 32)}
AGREE = 1e-4  # relative, in float32

Weights = dict[str, jax.Array]


def weights() -> Weights:
    """Kernels, biases and gains of the U-Net by name, small and random, so that every path has a gradient."""
    convolutions = CONVOLUTIONS | {
        f"{name}.{i}": (3, (c_in, c_out)[i], c_out) for name, (c_in, c_out) in BLOCKS.items() for i in (0, 1)
    }
    norms = {f"{name}.{i}": channels[i] for name, channels in BLOCKS.items() for i in (0, 1)} | {"head": 32}
    rng, made = np.random.default_rng(0), {}
    for name, (size, c_in, c_out) in convolutions.items():
        made[f"{name}.kernel"] = rng.normal(0, (size * size * c_in) ** -0.5, (size, size, c_in, c_out))
        made[f"{name}.bias"] = rng.normal(0, 0.1, c_out)
    for name, channels in norms.items():
        made |= {f"{name}.gain": rng.normal(1, 0.1, channels), f"{name}.shift": rng.normal(0, 0.1, channels)}
    return {name: jnp.asarray(value, jnp.float32) for name, value in made.items()}


def unet(p: Weights, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """f(x), float32, of x's shape."""

    def convolve(name, x):
        return (
            product_convolution_same(x.astype(dtype), p[f"{name}.kernel"])
            + p[f"{name}.bias"].astype(dtype)[None, None, None]
        )

    def activate(name, x):
        normalised = group_norm(x.astype(jnp.float32), p[f"{name}.gain"], p[f"{name}.shift"], x.shape[-1] // 8)
        return jax.nn.silu(normalised).astype(dtype)

    def block(name, x):
        h = convolve(f"{name}.1", activate(f"{name}.1", convolve(f"{name}.0", activate(f"{name}.0", x))))
        return h + (convolve("skip", x) if name == "up0" else x)

    def half(x):  # 3x3 of stride 2 as 2x2 after space to depth
        kernel = jnp.pad(p["half.kernel"], ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(
            2, 2, 2, 2, *CONVOLUTIONS["half"][1:]
        )
        kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, -1, CONVOLUTIONS["half"][2])
        y: jax.Array = product_convolution(space_to_depth(x), kernel, ((1, 0), (1, 0)))  # pyright: ignore
        return y + p["half.bias"].astype(dtype)[None, None, None]

    fine = block("down0", convolve("stem", space_to_depth(x)))
    coarse = convolve("double", block("up1", block("down1", half(fine))))
    joined = jnp.concatenate([coarse.repeat(2, 1).repeat(2, 2), fine], 3)
    out = convolve("head", activate("head", block("up0", joined))).astype(jnp.float32)
    b, h, w, _ = out.shape
    return out.reshape(b, h, w, 2, 2).transpose(0, 1, 3, 2, 4).reshape(x.shape)


def field(p: Weights, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The input gradient of U."""
    return jax.grad(lambda x: (x * unet(p, x, dtype)).sum())(x)


def stepper(dtype: jnp.dtype, steps: int) -> tuple[Callable[[], None], tuple[float, float]]:
    """`steps` training steps that go on from those before, in one program; seconds and CPU seconds that it compiled."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-4, b1=0.9, b2=0.99))
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (10_000, SIDE, SIDE, 1), np.uint8))

    def loss(p, key, x):
        key_noise, key_time = jax.random.split(key)
        noise, g = random.normal(key_noise, x.shape), random.uniform(key_time, (BATCH, 1, 1, 1))
        target = 4 * jnp.minimum((1 - g) / 0.2, 1) * (noise - x)
        return jnp.square(field(p, g * x + (1 - g) * noise, dtype) - target).mean()

    def step(state, key):
        p, opt_state, ema = state
        key_rows, key_loss = jax.random.split(key)
        x = images[jax.random.randint(key_rows, (BATCH,), 0, len(images))].astype(jnp.float32) / 127.5 - 1
        updates, opt_state = optimizer.update(jax.grad(loss)(p, key_loss, x), opt_state)
        p = optax.apply_updates(p, updates)
        return (p, opt_state, optax.incremental_update(p, ema, 0.005)), None

    def several(state, key):
        keys = jax.random.split(key, steps)
        return step(state, keys[0])[0] if steps == 1 else lax.scan(step, state, keys)[0]

    p = weights()
    held = [(p, optimizer.init(p), jax.tree.map(jnp.copy, p))]
    start = time.perf_counter(), time.process_time()
    run = jax.jit(several, donate_argnums=0).lower(held[0], jax.random.key(0)).compile()
    compiled = time.perf_counter() - start[0], time.process_time() - start[1]

    def call():
        held[0] = jax.block_until_ready(run(held[0], jax.random.key(0)))

    return call, compiled


def both_clocks(call: Callable[[], None], steps: int) -> tuple[float, float]:
    """Seconds and CPU seconds of one of the `steps` steps of a call."""
    start = time.perf_counter(), time.process_time()
    call()
    return (time.perf_counter() - start[0]) / steps, (time.process_time() - start[1]) / steps


def start_peer(python: str) -> Peer:
    """The peer with our weights.

    Raises:
      RuntimeError: its network is another one.
    """
    peer, p = Peer(python), weights()
    x = np.random.default_rng(2).normal(size=(4, SIDE, SIDE, 1)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "matching.npz"
        np.savez(file, x=x, **{name: np.asarray(value) for name, value in p.items()})  # pyright: ignore[reportArgumentType]
        theirs = np.asarray(peer.ask("matching", weights=str(file), batch=BATCH, side=SIDE)).reshape(x.shape)
    ours = np.asarray(field(p, jnp.asarray(x), jnp.dtype(jnp.float32)))
    if (difference := np.abs(ours - theirs).max() / np.abs(ours).max()) > AGREE:
        raise RuntimeError(f"the networks differ: input gradients by {difference:.1e} of the largest")
    return peer


def main() -> None:
    """Print the least and the median times, and PyTorch's over ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--float32", action="store_true")
    words = parser.parse_args()
    dtype = jnp.dtype(jnp.float32 if words.float32 else jnp.bfloat16)
    candidates = {}
    for name, steps in (("ours", 1), (f"ours, {STEPS} in a scan", STEPS)):
        call, compiled = stepper(dtype, steps)
        print(f"{name}: compiled in {compiled[0]:.1f} s, CPU {compiled[1]:.1f} s", flush=True)
        candidates[name] = partial(both_clocks, call, steps)
    if words.peer_python:
        peer = start_peer(words.peer_python)
        candidates["PyTorch"] = partial(peer.ask, "matching_step", dtype=str(dtype))
    found = {name: [] for name in candidates}
    for turn in range(words.rounds + 1):
        for name, call in candidates.items():
            seconds = call()
            if turn:  # the first warms up
                found[name].append(seconds)
    least = {name: np.min(seconds, 0) for name, seconds in found.items()}
    for name, (wall, cpu) in least.items():
        middle = np.median(found[name], 0)
        text = f"{name}, {dtype}: {1e3 * wall:.0f} ms (median {1e3 * middle[0]:.0f}), "
        text += f"CPU {1e3 * cpu:.0f} ms (median {1e3 * middle[1]:.0f})"
        if "PyTorch" in least:
            ratios = least["PyTorch"] / least[name]
            text += f"; PyTorch takes {ratios[0]:.2f} times as long, {ratios[1]:.2f} times the CPU"
        print(text)


if __name__ == "__main__":
    main()
