"""Compiled programs, kept for the next start: JAX's persistent compilation cache, in the user's cache folder."""

import errno
import hashlib
import os
import platform
from pathlib import Path

import jax

from ebm_jax.paths import expanded
from ebm_jax.types import BadInput

VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own; empty: keep nothing
LARGEST = 2 * 2**30  # bytes; the least recently used program goes first
WORTH_SECONDS = 0.5  # programs that compile faster are not kept


def keep() -> str | None:
    """Keep programs that compile slowly in ~/.cache/ebm_jax; if the variable is set, leave it to JAX.

    If the folder cannot be had, nothing is kept. XLA compiles for one kind of CPU, and JAX does not tell two kinds
    apart. So each kind has a folder of its own: many machines may share a home directory.

    Returns:
      A line that says why nothing is kept; None if it is, or if the variable is set.
    """
    if VARIABLE in os.environ:
        return None
    try:
        root = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "the cache of compiled programs,")
        folder = root / "ebm_jax" / "compiled" / machine()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except (BadInput, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error).partition(";")[0]
        return f"compiled programs are not kept for the next start ({reason}); {VARIABLE}=FOLDER keeps them"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_SECONDS)
    return None


def machine() -> str:
    """The CPU's abilities as eight hexadecimal digits."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    can = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.sha256(f"{platform.machine()} {can}".encode()).hexdigest()[:8]
