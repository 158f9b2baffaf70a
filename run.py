"""Train an energy-based model, or use one: python run.py --config=configs/NAME.py [--mode=MODE]."""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

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
    """
    from functools import partial

    import jax

    from ebm_jax import cli, export, prepare, sample, train
    from ebm_jax.distributed import processes
    from ebm_jax.report import console, quiet
    from ebm_jax.storage import compiled
    from ebm_jax.training.guard import Diverged
    from ebm_jax.types import BadInput, printable

    quiet.be_quiet()
    mode = ""
    try:
        # A run's types and bits are its own, whatever JAX_ENABLE_X64 says
        with jax.enable_x64(False), processes.joined(cli.launch(argv), alike=(Diverged,)):
            with processes.agreed():
                command = cli.parse(argv)
            mode = command.mode
            if command.note:
                console.warn(command.note)
            if mode != "compile" and (unkept := compiled.keep()):  # that mode reports the time that compiling takes
                console.warn(unkept)
            verbs = {
                "train": train.train,
                "sample": sample.sample,
                "evaluate": _evaluate,
                "export": export.export,
                "prepare": prepare.prepare,
                "compile": partial(_compile, topology=command.topology),
            }
            return verbs[mode](command.config, command.workdir)
    except (BadInput, Diverged) as error:
        _say(str(error), printable)
        return 3 if isinstance(error, Diverged) else 2
    except Exception as error:
        if (line := _cure(error, mode)) is None:
            raise
        _say(line, printable)
        return 2


def _say(line: str, escaped: Callable[[str], str] = str) -> None:
    print(f"run.py: {escaped(' '.join(line.split()))}", file=sys.stderr)


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


def _evaluate(config: Any, workdir: Any) -> int:
    from ebm_jax import evaluate  # half a second of imports that no other verb needs

    return evaluate.evaluate(config, workdir)


def _compile(config: Any, workdir: Any, topology: str) -> int:
    from tools.compile import report  # a module of the repository, not of the package

    return report.compile(config, workdir, topology=topology)


def _warn_of_a_tight_limit() -> None:
    """Say so before a library aborts the process, which nothing can catch; this imports no library."""
    with contextlib.suppress(ImportError):  # no such limits on Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
            _say(f"ulimit -v is {limit // 1024:,} KiB; JAX may abort below {ADDRESS_SPACE // 1024:,}, raise the limit")


def program(argv: list[str]) -> int:
    """`main` for a process of its own: Ctrl-C ends it within seconds, and nothing is raised."""
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


if __name__ == "__main__":
    status = program(sys.argv)
    if status:  # what failed may make a library wait for ever at the end: for a full disk, or for a step that runs
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
