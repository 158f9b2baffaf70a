"""An input gradient inside a chain's scan against the same one outside, plain and canonical convolutions.

    python -m benchmarks.conv_in_scan [--batch 16] [--width 64] [--side 32]

The claim of ebm_jax/models/layers.py: inside costs at most 1.10 times outside.
"""

import argparse

import jax
from jax import lax

from benchmarks.timing import medians
from ebm_jax.models import convolution as convolutions
from ebm_jax.models import energy, layers, networks

STEPS = 6


def main() -> None:
    """Print one line for each form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 16), ("width", 64), ("side", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    x = jax.random.uniform(jax.random.key(0), (args.batch, args.side, args.side, 3))
    canonical = layers.convolution
    calls = {}
    for form, convolution in (("plain", convolutions.plain), ("canonical", canonical)):
        layers.convolution = convolution
        network = networks.resnet32(width=args.width, num_classes=1, spectral_norm=False)
        params = network.init(jax.random.key(1), x)["params"]
        apply = energy.from_module(network)
        gradient = jax.grad(lambda x, apply=apply, params=params: apply(params, x).sum())

        def chain(x, gradient=gradient):
            return lax.scan(lambda x, _: (x - 1e-3 * gradient(x), None), x, None, length=STEPS)[0]

        once, scanned = jax.jit(gradient), jax.jit(chain)
        jax.block_until_ready((once(x), scanned(x)))  # traced while this form is in place
        calls[f"{form} once"] = lambda once=once: once(x)
        calls[f"{form} scan"] = lambda scanned=scanned: scanned(x)
    times = medians(calls)
    for form in ("plain", "canonical"):
        once, inside = times[f"{form} once"], times[f"{form} scan"] / STEPS
        print(f"{form:10s} outside {once * 1e3:7.1f} ms   inside {inside * 1e3:7.1f} ms   ratio {inside / once:.2f}")


if __name__ == "__main__":
    main()
