"""How this program was started: its name in messages, and the words that start it again."""

import os
import sys

SCRIPT, COMMAND = "run.py", "ebm-jax"
ARGUMENTS = "arguments"  # of the command, in a run's versions.json


def name() -> str:
    """What a line of this program begins with: ebm-jax for the installed command, run.py for all else."""
    return COMMAND if _is_command(sys.argv[0]) or _is_module(sys.argv[0]) else SCRIPT


def words() -> tuple[str, ...]:
    """The words that start it on this machine as it was started, without arguments."""
    called, python = sys.argv[0], sys.executable or "python"
    if _is_command(called):
        return (called,)
    if os.path.basename(called) == SCRIPT:
        return python, called
    return python, "-m", "ebm_jax"  # as it was started, or from a script or notebook that imports the package


def arguments() -> list[str]:
    """The words after the program's name; empty if a script or notebook that imports the package started it."""
    called = sys.argv[0]
    ours = _is_command(called) or _is_module(called) or os.path.basename(called) == SCRIPT
    return sys.argv[1:] if ours else []


def again(mode: str) -> tuple[str, ...]:
    """The words that start it again as it was started, with all its arguments, but in another mode."""
    kept, following = [], iter(sys.argv[1:])
    for place, word in enumerate(following):
        if word in ("--mode", "-mode"):
            next(following, None)
        elif not (word.startswith(("--mode=", "-mode=")) or (place == 0 and not word.startswith("-"))):
            kept.append(word)
    return (*words(), f"--mode={mode}", *kept)


def portable() -> tuple[str, ...]:
    """The same for another machine, as documents write it."""
    return ("python", SCRIPT) if name() == SCRIPT else (COMMAND,)


def _is_command(called: str) -> bool:
    return os.path.basename(called).partition(".")[0] in (COMMAND, f"{COMMAND}-script")  # Windows adds .exe


def _is_module(called: str) -> bool:
    return os.path.split(called)[1] == "__main__.py" and os.path.basename(os.path.dirname(called)) == "ebm_jax"
