"""CPU devices, JAX's strict modes and a cache of compiled programs, set before our own imports; `--types`.

A process has eight devices. A run takes two of them, so it costs as much as for a user on two cores. A test that needs
all eight says so: it takes `jax.devices()` itself, or has the marker `eight_devices`.
"""

import contextlib
import gc
import importlib.metadata
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes to compiling programs that run for milliseconds; tests that start processes hand this on to
# them. Without optimisations, XLA's older emitters of fusions compile a training step in a third of the time; JAX 0.11
# dropped them.
QUICK = "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else ""
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
for flag in ("--xla_force_host_platform_device_count=8", QUICK):
    if flag and flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import filelock  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from jax._src import compiler  # noqa: E402

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
ROOT = Path(__file__).resolve().parents[1]
DEVICES = 2  # of a run
FOR_EVER = 600  # seconds: the limit of every wait for a sure event; even a busy machine needs less


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--types", action="store_true", help="check shapes and types of every call: a third more time")


def pytest_configure(config: pytest.Config) -> None:
    """Check types if asked to, and share compiled programs; xdist's own process, which runs no test, is spared this."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        return
    if config.getoption("types"):
        jaxtyping.install_import_hook("ebm_jax", "beartype.beartype")
    from ebm_jax.storage import compiled

    # Many tests compile the same small program. All of xdist's processes, those that tests start and the next session
    # share one cache. JAX's keys hold the program and the compiler's options; each JAX and kind of processor has its
    # own folder.
    version = "-".join(importlib.metadata.version(name) for name in ("jax", "jaxlib"))
    cache = Path(tempfile.gettempdir()) / f"ebm_jax_tests_{os.getuid()}" / f"jax-{version}-{compiled.machine()}"
    os.environ.setdefault("EBM_JAX_TEST_CACHE", str(cache))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["EBM_JAX_TEST_CACHE"]
    jax.config.update("jax_compilation_cache_dir", os.environ["EBM_JAX_TEST_CACHE"])
    os.environ["XDG_CACHE_HOME"] = str(cache.parent / "user")  # what tests choose is no choice of the user's
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # JAX's millions of small objects live as long as their programs: looking for rubbish among them took a tenth of the
    # time.
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)


@pytest.fixture(autouse=True)
def programs_of_a_test_alone() -> Iterator[None]:
    """Keep no program of a run from test to test: some tests put other parts into it."""
    from ebm_jax import trained

    yield
    trained._kept.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def two_devices() -> Iterator[None]:
    """Let the mesh of all devices hold two, except in tests with the marker `eight_devices`."""
    from ebm_jax.distributed import parallel

    whole = parallel.device_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            parallel,
            "device_mesh",
            lambda devices=None: whole(devices or (None if DEVICES == 8 else jax.devices()[:2])),
        )
        yield


@pytest.fixture(autouse=True)
def eight_devices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what the marker of this name says."""
    if request.node.get_closest_marker("eight_devices"):
        monkeypatch.setitem(globals(), "DEVICES", 8)


@contextlib.contextmanager
def as_for_users() -> Iterator[None]:
    """Compile programs as a user's are compiled, to the bit."""
    options = compiler.get_compile_options

    def with_emitters(*args: Any, **kwargs: Any) -> Any:
        made = options(*args, **kwargs)
        if QUICK:
            made.env_option_overrides = [*made.env_option_overrides, (QUICK.split("=")[0].removeprefix("--"), True)]
        return made

    before = jax.config.values["jax_disable_most_optimizations"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", with_emitters)  # JAX has no public way for all programs at once
        jax.config.update("jax_disable_most_optimizations", False)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


def user_environment() -> dict[str, str]:
    """The environment of a program that trains as for users: one device a core, optimised programs."""
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    return {name: value for name, value in os.environ.items() if name not in ours}


@pytest.fixture(autouse=True)
def optimised(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a test with the marker of this name compile as users do."""
    with as_for_users() if request.node.get_closest_marker("optimised") else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of optional development data beside the repository; without it the test is skipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("there is no folder shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small conditional run of digits, trained once for all workers; nobody may change it."""
    from test_train import command

    import run

    together = (
        tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else tmp_path_factory.mktemp("one")
    )
    folder = together / "one_run"
    learn = {"loss__label_weight": 1.0, "buffer__relabel_prob": 0.5, "optim__learning_rate": 0.01}
    with filelock.FileLock(together / "one_run.lock"):
        if not folder.exists():
            assert run.main(command(together / "unfinished", model__num_classes=10, optim__ema_decay=0.0, **learn)) == 0
            (together / "unfinished").rename(folder)
    return folder


@pytest.fixture(scope="module")
def workdir(one_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that run for the tests of one module."""
    return Path(shutil.copytree(one_run, tmp_path_factory.mktemp("run") / "run"))


def few(names: Iterable[str], default: Iterable[str]) -> list[Any]:
    """Parameters of a test of which only some run by default; the others, which are like one of these, are slow."""
    return [name if name in set(default) else pytest.param(name, marks=pytest.mark.slow) for name in names]


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


def mixed_derivatives(apply: Callable, params: Any, images: Any, way: Any, step: float = 1e-2) -> tuple[Any, Any]:
    """∂/∂θ of <∇U(x), v>, v = `way`, twice: by second derivatives, and by differences of ∂U/∂θ along v."""

    def slope(params):
        return jax.numpy.vdot(jax.grad(lambda images: apply(params, images).sum())(images), way)

    first = jax.jit(jax.grad(lambda params, images: apply(params, images).sum()))
    ahead, behind = first(params, images + step * way), first(params, images - step * way)
    return jax.jit(jax.grad(slope))(params), jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command: list[str], folder: Path = ROOT, **environment: str) -> subprocess.Popen:
    """A new process on the CPU, with output and errors in one pipe. Whoever starts it kills it."""
    fewer = os.environ | {"XLA_FLAGS": QUICK}  # and one device
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
