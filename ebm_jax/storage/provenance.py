"""Which code, on which machine, made a number or went on with a run."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jax

from ebm_jax import invocation
from ebm_jax.storage.writing import write_atomically
from ebm_jax.types import Folder
from ebm_jax.version import VERSION

LIBRARIES = ("jax", "flax", "numpy", "scikit-learn")
OF_A_RUN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
FILE = "versions.json"


def record(folder: Folder, step: int) -> None:
    """Add an entry to the run's versions.json: which versions begin the run, or go on with it from this step, and the
    words of the command."""
    path = folder / FILE
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):  # there is none, or a person changed it: it only informs
        before = []
    entry = {
        "event": "went on" if step else "began",
        "step": step,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "ebm_jax": VERSION,
        "commit": commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in OF_A_RUN},
        **({invocation.ARGUMENTS: arguments} if (arguments := invocation.arguments()) else {}),
    }
    kept = before if isinstance(before, list) else []
    write_atomically(path, json.dumps([*kept, entry], indent=2) + "\n")


def commit() -> str:
    """The commit of the checkout that holds this package, plus "-dirty" if files differ; or why it is unknown."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed, perhaps into another repository's folder
        return "unknown: the package is no git checkout"
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: git failed ({type(error).__name__})"


def versions() -> str:
    """The versions of Python and of the libraries that numbers depend on."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)])


def devices() -> str:
    """The number and kind of the devices, and the processor of the machine."""
    found = jax.devices()
    return f"{len(found)} {found[0].device_kind} device(s) of {_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    """The processor's name from Linux; elsewhere from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
