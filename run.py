"""Train an energy-based model, or use one: python run.py --config=configs/NAME.py [--mode=MODE]."""

import errno
import sys
from typing import Any

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def main(argv: list[str]) -> int:
    """Run one verb; return the exit status: 0, 2 for the user's error, 3 for a diverged run, 130 after Ctrl-C."""
    from functools import partial

    import jax

    from ebm_jax import cli, export, prepare, sample, train
    from ebm_jax.distributed import processes
    from ebm_jax.report import console, quiet
    from ebm_jax.storage import compiled
    from ebm_jax.training.guard import Diverged
    from ebm_jax.types import BadInput

    quiet.be_quiet()
    try:
        # A run's types and bits are its own, whatever JAX_ENABLE_X64 says
        with jax.enable_x64(False), processes.joined(cli.launch(argv), alike=(Diverged,)):
            with processes.agreed():
                command = cli.parse(argv)
            if command.note:
                console.warn(command.note)
            if command.mode != "compile":  # that mode reports the time that compiling takes
                compiled.keep()
            verbs = {
                "train": train.train,
                "sample": sample.sample,
                "evaluate": _evaluate,
                "export": export.export,
                "prepare": prepare.prepare,
                "compile": partial(_compile, topology=command.topology),
            }
            return verbs[command.mode](command.config, command.workdir)
    except (BadInput, Diverged) as error:
        print(f"run.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 3 if isinstance(error, Diverged) else 2
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"run.py: {error}; make room, and the same command goes on from the newest checkpoint", file=sys.stderr)
        return 2


def _evaluate(config: Any, workdir: Any) -> int:
    from ebm_jax import evaluate  # half a second of imports that no other verb needs

    return evaluate.evaluate(config, workdir)


def _compile(config: Any, workdir: Any, topology: str) -> int:
    from tools.compile import report  # a module of the repository, not of the package

    return report.compile(config, workdir, topology=topology)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except KeyboardInterrupt:
        print("run.py: interrupted; nothing since the last checkpoint is saved", file=sys.stderr)
        sys.exit(130)
