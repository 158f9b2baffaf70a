"""Train an energy-based model, or use one: python run.py --config=configs/NAME.py [--mode=MODE]."""

import sys


def main(argv: list[str]) -> int:
    """Run one verb; the exit status: 0, 2 for what the user must mend, 3 for a diverged run, 130 after Ctrl-C."""
    from ebm_jax import cli, export, prepare, sample, train
    from ebm_jax.training.guard import Diverged
    from ebm_jax.types import BadInput

    verbs = {"train": train.train, "sample": sample.sample, "export": export.export, "prepare": prepare.prepare}
    try:
        command = cli.parse(argv)
        return verbs[command.mode](command.config, command.workdir)
    except (BadInput, Diverged) as error:
        print(f"run.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 3 if isinstance(error, Diverged) else 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except KeyboardInterrupt:
        print("run.py: interrupted; nothing since the last checkpoint is saved", file=sys.stderr)
        sys.exit(130)
