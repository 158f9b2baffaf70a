"""What was compiled once, kept for the next start: JAX's persistent compilation cache, in the user's cache folder."""

import hashlib
import os
import platform
from pathlib import Path

import jax

VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own; empty: keep nothing
LARGEST = 2 * 2**30  # bytes; what was not used for longest goes first
WORTH_SECONDS = 0.5  # of compiling


def keep() -> None:
    """Keep what takes long to compile in ~/.cache/ebm_jax, or leave it to the variable where that is set.

    Where the folder cannot be made nothing is kept. XLA compiles for the very CPU, and JAX does not tell two of them
    apart by itself, so each kind has a folder of its own: a home directory may be that of many machines.
    """
    if VARIABLE in os.environ:
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = root / "ebm_jax" / "compiled" / machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", LARGEST)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_SECONDS)


def machine() -> str:
    """What its CPU can do, in eight hexadecimal digits."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    can = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.sha256(f"{platform.machine()} {can}".encode()).hexdigest()[:8]
