"""The program: words of a command line in, an exit status out; `run.py` and the command `ebm-jax` call it.

Nothing here imports a library before the words are understood, so a wrong one is told at once.
"""

import contextlib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ebm_jax import invocation
from ebm_jax.given import BadInput, Diverged, printable

if TYPE_CHECKING:
    from ebm_jax.cli import Command

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
ADDRESS_SPACE = 2 * 2**30  # bytes; JAX aborts within 1.5 GB, and samples a tiny model within 2.0 GB
INTERRUPTED = "interrupted; nothing since the last checkpoint is saved"
OUT_OF_MEMORY = {  # the keys that lower what a mode takes
    "train": "train.batch_size, buffer.capacity, chain.num_steps or model.width",
    "sample": "sample.batch_size or sample.num_images",
    "evaluate": "eval.batch_size, eval.num_samples or sample.batch_size",
    "export": "sample.snapshots, or export a smaller model",
    "prepare": "data.memory_gib or data.workers",
    "compile": "train.batch_size, chain.num_steps or model.width",
    "": "the other programs' memory",
}


def main(argv: list[str]) -> int:
    """Run one verb; return the exit status: 0, 2 for what the user can mend, 3 for a diverged run, 130 after Ctrl-C.

    Raises:
      KeyboardInterrupt: Ctrl-C came while there was no step to save.
      SystemExit: after --help.
    """
    from ebm_jax import cli
    from ebm_jax.distributed import processes
    from ebm_jax.report import quiet

    quiet.be_quiet()
    mode = ""
    try:
        if (folders := cli.folders_to_report(argv)) is not None:
            from ebm_jax.report import verb

            return verb.report(folders)
        launch = cli.launch(argv)
        command = cli.parse(argv) if launch is None else None
        with processes.joined(launch, alike=(Diverged,)):
            if command is None:
                with processes.agreed():
                    command = cli.parse(argv)
            mode = command.mode
            return _carry_out(command)
    except (BadInput, Diverged) as error:
        _say(str(error), printable)
        return 3 if isinstance(error, Diverged) else 2
    except Exception as error:
        if (line := _cure(error, mode)) is None:
            raise
        _say(line, printable)
        return 2


def _carry_out(command: "Command") -> int:
    import jax

    from ebm_jax.report import console
    from ebm_jax.storage import compiled

    with jax.enable_x64(False):  # a run's types and bits are its own, whatever JAX_ENABLE_X64 says
        if command.note:
            console.warn(command.note)
        if command.mode == "compile":
            return _compile(command)
        if unkept := compiled.keep():
            console.warn(unkept)
        verb = importlib.import_module(f"ebm_jax.{command.mode}")  # alone: others have seconds of imports
        return getattr(verb, command.mode)(command.config, command.workdir)


def _compile(command: "Command") -> int:
    """Compile without the cache, because that mode reports the time that compiling takes.

    Raises:
      BadInput: this package lies in no clone of the repository, which alone has the mode.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / "tools" / "compile").is_dir():
        raise BadInput("--mode=compile is not in the installed package; use python run.py in a clone of the repository")
    if str(root) not in sys.path:
        sys.path.append(str(root))
    from tools.compile import report

    return report.compile(command.config, command.workdir, topology=command.topology)


def _say(line: str, escaped: Callable[[str], str] = str) -> None:
    print(f"{invocation.name()}: {escaped(' '.join(line.split()))}", file=sys.stderr)


def _cure(error: Exception, mode: str) -> str | None:
    """One line for an error of the machine, which the user can mend; None for any other."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error}; make room, and the same command goes on from the newest checkpoint"
    if not _is_of_memory(error):
        return None
    reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    limit = "raise the limit of memory (ulimit -v, the container's)"
    return f"the memory is full ({reason}); lower {OUT_OF_MEMORY[mode]}, or {limit}"


def _is_of_memory(error: Exception) -> bool:
    """Whether Python, the system or XLA did not get memory, or no thread for want of it."""
    words = (
        "RESOURCE_EXHAUSTED",
        "Out of memory",
        "bad_alloc",
        "can't start new thread",
        "annot allocate memory",
        "failed to map segment",
    )
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _warn_of_a_tight_limit() -> None:
    """Say so before a library aborts the process, which nothing can catch; this imports no library."""
    with contextlib.suppress(ImportError):  # no such limits on Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
            _say(f"ulimit -v is {limit // 1024:,} KiB; JAX may abort below {ADDRESS_SPACE // 1024:,}, raise the limit")


def guarded(argv: list[str]) -> int:
    """`main` for a process of its own: Ctrl-C ends it within seconds, and only --help raises, a SystemExit."""
    _warn_of_a_tight_limit()
    try:
        from ebm_jax.distributed import interrupts, processes

        with interrupts.watched(lambda: processes.end_interrupted(INTERRUPTED)):
            return main(argv)
    except KeyboardInterrupt:
        _say(INTERRUPTED)
        return 130
    except Exception as error:
        if (line := _cure(error, "")) is None:
            traceback.print_exc()
            return 1
        _say(line)
        return 2


def command() -> int:
    """The whole program: `guarded` with this process's words, which ends the process by force if it failed."""
    if invocation.name() == invocation.COMMAND and not sys.flags.safe_path:
        with contextlib.suppress(OSError):  # the folder is gone
            sys.path.append(os.getcwd())  # last, so that a module of the user's own hides no library
    status = guarded(sys.argv)
    if status:  # what failed may make a library wait for ever at the end: for a full disk, or for a step that runs
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    return status
