"""Homes, platforms, systems and shells other than the usual one: the program works, or one line says why not."""

import ast
import os
import pwd
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import pytest
from conftest import FOR_EVER, ROOT, finished, start

import run
from configs import digits_contrastive as digits
from ebm_jax import cli, evaluate, export, invocation, main, opening, sample, schema, train
from ebm_jax.data import sources
from ebm_jax.distributed import parallel
from ebm_jax.evaluators import features, ood
from ebm_jax.paths import expanded
from ebm_jax.report import console
from ebm_jax.storage import bucket, compiled, exported
from ebm_jax.storage.workdir import locked
from ebm_jax.tasks import inpaint
from ebm_jax.types import BadInput

DIGITS = f"--config={ROOT / 'configs' / 'digits_contrastive.py'}"
VERBS = {"train": train.train, "sample": sample.sample, "evaluate": evaluate.evaluate, "export": export.export}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory, and an empty working directory beside it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.fixture
def no_home(monkeypatch):
    """A container started with a user id that nobody has."""

    def unknown(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in ("HOME", "XDG_CACHE_HOME", compiled.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def config_with(**values):
    return schema.with_values(digits.get_config(), {key.replace("__", "."): value for key, value in values.items()})


def named_by(call, error=BadInput):
    """The one line of the error that a call ends with."""
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


PATHS = {
    "--workdir": lambda: named_by(lambda: cli.parse(["run.py", "--mode=sample", "--workdir=~/x"])),
    "--config": lambda: named_by(lambda: cli.parse(["run.py", "--config=~/x"])),
    "load": lambda: named_by(lambda: opening.load("~/x")),
    "open_run": lambda: named_by(lambda: opening.open_run("~/x")),
    "exported.load": lambda: named_by(lambda: exported.load("~/x"), ValueError),
    "sample.with_runs": lambda: opening.other_runs(config_with(sample__with_runs="~/x, y"))[0],
    "data.source folder": lambda: named_by(lambda: sources.make_source(config_with(data__source="folder:~/x"))),
    "data.source npz": lambda: named_by(lambda: sources.make_source(config_with(data__source="npz:~/x.npz"))),
    "eval.ood.sets": lambda: named_by(lambda: ood.check(config_with(eval__ood__sets="folder:~/x@test"))),
    "eval.inception.weights": lambda: named_by(
        lambda: features.require_weights("fid", config_with(eval__inception__weights="~/x.pth"))
    ),
    "eval.inception.reference": lambda: features._reference_file(config_with(eval__inception__reference="~/x.npz")),
    "sample.inpaint.mask": lambda: named_by(lambda: inpaint.known_pixels(config_with(sample__inpaint__mask="~/x.npy"))),
    **{
        name: lambda verb=verb: named_by(lambda: verb(digits.get_config(), "~/x"))
        for name, verb in VERBS.items()
        if name != "train"
    },
}


@pytest.mark.parametrize("place", PATHS)
def test_a_tilde_in_a_path_given_as_text_is_the_home_directory_everywhere(home, place):
    assert str(home / "x") in str(PATHS[place]())
    assert not list(Path().iterdir()), "and no folder is named ~"


def test_training_takes_a_tilde_and_a_folder_as_text(home):
    (home / "x").mkdir()
    (home / "x" / "thesis.txt").write_text("mine")
    for folder in ("~/x", str(home / "x")):
        assert f"--workdir {home / 'x'} is not empty" in named_by(partial(train.train, digits.get_config(), folder))
    assert not list(Path().iterdir())


def test_a_home_directory_that_nobody_has_is_named_and_a_file_of_that_name_still_has_a_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named_by(lambda: expanded("~nobody_here/x", "data.dir")) == (
        "data.dir ~nobody_here/x: there is no such home directory here; give the whole path"
    )
    assert expanded(expanded("./~nobody_here/x", "data.dir"), "data.dir") == tmp_path / "~nobody_here" / "x"


def test_without_a_home_directory_programs_are_not_kept_and_one_line_says_so(no_home):
    before = jax.config.values["jax_compilation_cache_dir"]
    told = compiled.keep()
    assert told is not None
    assert told.startswith("compiled programs are not kept for the next start (")
    assert f"{compiled.VARIABLE}=FOLDER keeps them" in told
    assert "\n" not in told
    assert jax.config.values["jax_compilation_cache_dir"] == before


@pytest.fixture
def no_platform(monkeypatch):
    """JAX_PLATFORMS names a platform without a plugin; JAX fails an assertion of its own."""

    def absent(*_):
        raise AssertionError

    before = jax.config.values["jax_platforms"]
    monkeypatch.setattr(jax, "devices", absent)
    monkeypatch.setattr(jax, "local_devices", absent)
    monkeypatch.setattr(parallel, "device_mesh", WHOLE_MESH)
    jax.config.update("jax_platforms", "cuda")
    yield
    jax.config.update("jax_platforms", before)


WHOLE_MESH = parallel.device_mesh  # before conftest lets it take two devices


@pytest.mark.parametrize("mode", [*VERBS, "compile"])
def test_a_platform_that_is_not_there_is_one_line_in_every_mode(no_platform, workdir, tmp_path, mode, capsys):
    folder = workdir if mode in cli.READ_A_RUN else tmp_path / "run"
    words = ["run.py", DIGITS, f"--mode={mode}", f"--workdir={folder}", *["--topology=cpu"] * (mode == "compile")]
    assert run.main(words) == 2
    assert capsys.readouterr().err == (
        "run.py: JAX_PLATFORMS=cuda: that platform is not here (JAX has no plugin for it here); unset the variable, or "
        "set JAX_PLATFORMS=cpu\n"
    )
    assert not (tmp_path / "run").exists()


def test_another_error_of_the_devices_is_not_said_to_be_the_platforms():
    def broken():
        raise RuntimeError("the driver is broken")

    before = jax.config.values["jax_platforms"]
    try:
        jax.config.update("jax_platforms", "")
        with pytest.raises(RuntimeError, match="the driver is broken"):
            parallel.present(broken)
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "rocm", "nonsense"])
def test_the_variable_itself_is_named_by_a_process(one_run, platform):
    words = [sys.executable, "run.py", "--mode=sample", f"--workdir={one_run}"]
    ((status, out),) = finished([start(words, JAX_PLATFORMS=platform)])
    assert status == 2
    assert out.startswith(f"run.py: JAX_PLATFORMS={platform}: that platform is not here (")
    assert out.count("\n") == 1


POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "readline", "curses"}
POSIX_NAMES = {  # of the modules os and signal, absent on Windows
    *("fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "setuid", "setgid", "getpgid", "killpg", "setsid"),
    *("sysconf", "sched_getaffinity", "sched_setaffinity", "uname", "getloadavg", "statvfs", "nice", "mkfifo", "chown"),
    *("fchmod", "fchown", "lchown", "pread", "pwrite", "wait", "waitid", "WNOHANG", "openpty", "ttyname", "sync"),
    *("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_SYNC", "O_DSYNC", "O_NOCTTY", "O_PATH", "O_TMPFILE"),
    *("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGQUIT", "SIGPIPE", "SIGSTOP", "SIGCONT"),
    *("alarm", "setitimer", "pause", "sigwait", "pthread_kill", "pthread_sigmask", "siginterrupt"),
}


def guards(node):
    """What keeps a statement from failing: the handlers of a try, the items of a with, the test of a condition."""
    if isinstance(node, ast.Try):
        return [handler.type for handler in node.handlers if handler.type]
    if isinstance(node, ast.With):
        return [item.context_expr for item in node.items]
    return [node.test] if isinstance(node, (ast.If, ast.IfExp)) else []


def posix_only(source):
    """What a source takes from POSIX at import, and what it takes inside functions without a way out."""
    tree = ast.parse(source)
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if any(
            word in ast.unparse(guard)
            for guard in guards(node)
            for word in ("ImportError", "AttributeError", "hasattr")
        )
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        used = isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("os", "signal") and node.attr
        if id(node) not in guarded and (POSIX_MODULES & set(modules) or used in POSIX_NAMES):
            yield ast.unparse(node)


SOURCES = [ROOT / "run.py", *sorted((ROOT / "ebm_jax").rglob("*.py")), *sorted((ROOT / "tools").rglob("*.py"))]


def test_no_module_needs_what_windows_lacks():
    assert {path.name: found for path in SOURCES if (found := list(posix_only(path.read_text())))} == {}
    bad = "import fcntl\nfrom pwd import getpwuid\ndef f():\n    import resource\n    os.open(x, os.O_DIRECTORY)\n"
    assert list(posix_only(bad)) == ["import fcntl", "from pwd import getpwuid", "import resource", "os.O_DIRECTORY"]
    assert not list(posix_only("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None\n"))


def test_where_there_are_no_locks_training_goes_on_and_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    told = []
    with locked(tmp_path / "run", told.append):
        assert (tmp_path / "run").is_dir()
    assert told == [f"this system cannot lock {tmp_path / 'run'}; take care that no other process trains there"]


def test_where_the_system_tells_no_memory_nothing_is_refused_for_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(parallel, "OF_CGROUP", ("/no/such/file",))
    assert parallel.host_memory() == sys.maxsize


@pytest.mark.parametrize("text", [r"C:\runs\x", "C:/runs/x", "c://runs/x"])
def test_a_drive_is_no_address_of_a_bucket(text):
    assert bucket.folder_of(text) == Path(text)
    assert not bucket.is_remote(bucket.folder_of(text))


def test_a_path_with_a_drive_keeps_its_colon_in_a_key_that_names_a_source():
    for place in (r"folder:C:\pics", r"npz:C:\pics.npz"):
        path = place.partition(":")[2]
        assert path in named_by(lambda place=place: sources.make_source(config_with(data__source=place)))
        assert path in named_by(lambda place=place: ood.check(config_with(eval__ood__sets=f"{place}@test")))


WINDOWS = """
import os, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios", "syslog", "readline"):
    sys.modules[name] = None
for name in ("sysconf", "sched_getaffinity", "getloadavg", "O_DIRECTORY", "O_NOFOLLOW", "statvfs"):
    delattr(os, name)
import ebm_jax, jax
config, params = ebm_jax.load(sys.argv[1])
config.sample.num_images = 3
print(jax.jit(ebm_jax.make_sample_fn(config))(params, jax.random.key(0)).shape)
"""


@pytest.mark.slow
def test_without_what_windows_lacks_a_run_is_loaded_and_sampled(one_run):
    ((status, out),) = finished([start([sys.executable, "-c", WINDOWS, str(one_run)])])
    assert (status, out.splitlines()[-1]) == (0, "(3, 8, 8, 1)"), out  # filelock warns that its locks are soft here


def test_a_config_imports_its_neighbour_from_any_working_directory(home, monkeypatch):
    folder = home / "mine"
    folder.mkdir()
    (folder / "neighbour_of_mine.py").write_text("WIDTH = 12\n")
    (folder / "mine.py").write_text(
        "from configs import digits_contrastive as digits\nfrom neighbour_of_mine import WIDTH\n\n\ndef get_config():\n"
        "    import neighbour_of_mine\n    config = digits.get_config()\n"
        "    config.model.width = WIDTH + neighbour_of_mine.WIDTH\n    return config\n"
    )
    before = list(sys.path)
    try:
        assert cli.parse(["run.py", f"--config={folder / 'mine.py'}"]).config.model.width == 24
        monkeypatch.chdir(folder)
        assert cli.parse(["run.py", "--config=mine.py"]).config.model.width == 24
    finally:
        sys.modules.pop("neighbour_of_mine", None)
    assert sys.path == before


@pytest.mark.parametrize("lines", ["config.sample.neighbours = 7", "config.sample.neighbours.number = 7"])
def test_a_config_file_may_still_set_the_number_of_neighbours_where_there_is_a_group_now(tmp_path, lines):
    path = tmp_path / "older.py"
    path.write_text(
        "from configs import digits_contrastive as digits\n\n\ndef get_config():\n    config = digits.get_config()\n"
        f"    {lines}\n    return config\n"
    )
    assert cli.parse(["run.py", f"--config={path}"]).config.sample.neighbours.number == 7


def test_a_command_is_quoted_for_the_shell_and_names_the_interpreter(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/my code/run.py", "--config=x"])
    assert invocation.words() == (sys.executable, "/home/me/my code/run.py")
    line = console.command("python", "run.py", "--workdir=/my runs/$a")
    words = subprocess.run(["sh", "-c", f"printf '%s|' {line}"], capture_output=True, text=True, check=True).stdout
    assert words == "python|run.py|--workdir=/my runs/$a|"
    monkeypatch.setattr(sys, "argv", ["/home/me/notebook.py"])
    assert invocation.words() == (sys.executable, "-m", "ebm_jax")


OUT_OF_MEMORY = [
    MemoryError(),
    MemoryError("std::bad_alloc"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nmore"),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("can't start new thread"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
@pytest.mark.parametrize(("mode", "key"), [("train", "train.batch_size"), ("sample", "sample.batch_size")])
def test_a_full_memory_is_one_line_that_names_what_to_lower(error, mode, key, workdir, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise error

    monkeypatch.setattr(f"ebm_jax.{mode}.{mode}", full)
    folder = workdir if mode == "sample" else tmp_path / "run"
    assert run.main(["run.py", DIGITS, f"--mode={mode}", f"--workdir={folder}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("run.py: the memory is full (")
    assert f"lower {key}" in told
    assert told.count("\n") == 1


def test_an_error_of_the_program_is_not_said_to_be_of_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *_: {}["a key"])
    with pytest.raises(KeyError):
        run.main(["run.py", DIGITS, f"--workdir={tmp_path / 'run'}"])


def test_the_memory_that_counts_is_the_smallest_limit_of_machine_shell_and_container(tmp_path, monkeypatch):
    whole = parallel.host_memory()
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "bytes").write_text(f"{whole // 2}\n")
    monkeypatch.setattr(parallel, "OF_CGROUP", (str(tmp_path / "max"), str(tmp_path / "bytes")))
    assert parallel.host_memory() == whole // 2
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (whole // 4, resource.RLIM_INFINITY))
    assert parallel.host_memory() == whole // 4


def test_a_limit_within_which_jax_may_abort_is_told_before_anything_is_imported(monkeypatch, capsys):
    for limit in (resource.RLIM_INFINITY, 2**31):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        main._warn_of_a_tight_limit()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**30, resource.RLIM_INFINITY))
    main._warn_of_a_tight_limit()
    assert capsys.readouterr().err == (
        "run.py: ulimit -v is 1,048,576 KiB; JAX may abort below 2,097,152, raise the limit\n"
    )


HANGING = """
import atexit, runpy, sys, time
atexit.register(time.sleep, 100_000)
sys.modules["ebm_jax.cli"] = None  # any failure: here the command line cannot be read
sys.argv = ["run.py"]
runpy.run_path("run.py", run_name="__main__")
"""


def test_a_program_that_fails_ends_whatever_a_library_waits_for_at_the_end():
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], cwd=ROOT, capture_output=True, text=True, check=False, timeout=FOR_EVER
    )
    assert ended.returncode == 1
    assert "Error: " in ended.stderr.splitlines()[-1]
