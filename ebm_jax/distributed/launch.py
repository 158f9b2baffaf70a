"""The processes of one run as a person states them on the command line."""

from typing import NamedTuple


class Launch(NamedTuple):
    """The processes as a person states them; JAX asks Cloud TPU, SLURM, Open MPI or Kubernetes for a field of None."""

    coordinator: str | None
    """HOST:PORT of process 0."""
    num_processes: int | None
    process_id: int | None
    """0 to num_processes - 1."""
    timeout: float
    """Seconds, greater than 0, within which the processes must meet."""
