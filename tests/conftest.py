"""Eight CPU devices, JAX's strict modes and run-time shape checks, all set before the package is imported."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEVICE_COUNT = "--xla_force_host_platform_device_count"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if DEVICE_COUNT not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICE_COUNT}=8".strip()

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")

# Many tests compile the same small program. All of xdist's processes, and those that tests start, compile it once.
if "EBM_JAX_TEST_CACHE" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="ebm_jax_test_cache_")
    os.environ["EBM_JAX_TEST_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ["EBM_JAX_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jaxtyping.install_import_hook("ebm_jax", "beartype.beartype")

ROOT = Path(__file__).resolve().parents[1]
FOR_EVER = 600  # seconds: the limit of every wait for a sure event; even a busy machine needs less


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of optional development data beside the repository; without it the test is skipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("there is no folder shared/data beside the repository")
    return folder


def changed(config: Any, **changes: Any) -> Any:
    """A copy of the config with other values; `chain__langevin__tied=True` is chain.langevin.tied."""
    from ebm_jax import schema  # after the import hook

    return schema.with_values(config, {key.replace("__", "."): value for key, value in changes.items()})


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr and of the jaxprs inside it, each once."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command: list[str], folder: Path = ROOT, **environment: str) -> subprocess.Popen:
    """A new process on the CPU, with output and errors in one pipe. Whoever starts it kills it."""
    fewer = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=fewer | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(happened: Callable[[], Any]) -> None:
    """Wait for something that is sure to happen, however busy the machine is."""
    deadline = time.monotonic() + FOR_EVER
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def finished(running: list[subprocess.Popen], timeout: float = FOR_EVER) -> list[tuple[int, str]]:
    """(exit status, output) of each process; none outlives the timeout, in seconds."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, output) for process, output in zip(running, outputs, strict=True)]
