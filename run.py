"""Train an energy-based model, or use one: python run.py --config=configs/NAME.py [--mode=MODE]."""

import sys

from ebm_jax.main import command, main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(command())
