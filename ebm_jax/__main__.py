"""`python -m ebm_jax` is the command `ebm-jax`."""

import sys

from ebm_jax.main import command

if __name__ == "__main__":
    sys.exit(command())
