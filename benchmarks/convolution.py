"""Where Winograd's form of a 3x3 convolution wins on this CPU: a convolution and its input gradient inside a scan.

    python -m benchmarks.convolution [--batch 16] [--sides 4,8,16,32] [--channels 16,32,64,128,256]

FEWEST_CHANNELS in ebm_jax/models/convolution.py is the rule that follows. A ratio says how many times faster a form is
than XLA's plain convolution in float32.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.timing import medians
from ebm_jax.models import convolution

STEPS = 8
FORMS = {"plain, bfloat16": (convolution.plain, jnp.bfloat16)} | {
    f"winograd, {jnp.dtype(dtype)}": (convolution.winograd, dtype) for dtype in (jnp.float32, jnp.bfloat16)
}
SAME = ((1, 1), (1, 1))


def chain(form: Callable, x: jax.Array, kernel: jax.Array) -> Callable[[], jax.Array]:
    """STEPS convolutions with `kernel`, each followed by one with the transposed kernel, like an input gradient."""
    back = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)

    def body(x, _):
        return 0.5 * form(form(x, kernel, SAME), back, SAME), None

    run = jax.jit(lambda x: lax.scan(body, x, None, length=STEPS)[0])
    return lambda: run(x)


def main() -> None:
    """Print one line for each side and number of channels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sides", default="4,7,8,14,16,32")
    parser.add_argument("--channels", default="16,32,64,128,256")
    args = parser.parse_args()
    print(f"{'side':>4} {'channels':>8} {'plain, float32':>15} " + " ".join(f"{name:>18}" for name in FORMS))
    for side in map(int, args.sides.split(",")):
        for channels in map(int, args.channels.split(",")):
            keys = jax.random.split(jax.random.key(0))
            x = jax.random.normal(keys[0], (args.batch, side, side, channels))
            kernel = jax.random.normal(keys[1], (3, 3, channels, channels)) / (9 * channels) ** 0.5
            forms = {"plain": (convolution.plain, jnp.float32)} | FORMS
            calls = {name: chain(form, x.astype(dtype), kernel.astype(dtype)) for name, (form, dtype) in forms.items()}
            times = medians(calls, rounds=5)
            ratios = " ".join(f"{times['plain'] / times[name]:>18.2f}" for name in FORMS)
            print(f"{side:>4} {channels:>8} {times['plain'] / (2 * STEPS) * 1e3:>12.2f} ms {ratios}", flush=True)


if __name__ == "__main__":
    main()
