"""The verb that makes the page of a run anew, report.html, or of several runs one that compares them."""

from collections.abc import Sequence
from pathlib import Path

from ebm_jax.given import BadInput
from ebm_jax.paths import Folder
from ebm_jax.report import contents, page
from ebm_jax.report.console import say, warn
from ebm_jax.storage.writing import write_atomically

COMPARISON = "comparison.html"
MOST = 20  # runs of a comparison


def report(folders: Sequence[Folder]) -> int:
    """Write report.html into the folder of one run, or comparison.html of several runs into the present directory.

    Returns:
      The exit status 0.

    Raises:
      BadInput: a folder holds nothing of a run, the runs are too many, or the file cannot be written.
    """
    if len(folders) > MOST:
        raise BadInput(f"{len(folders)} folders are too many for one page; give at most {MOST}")
    runs = [contents.read(folder) for folder in folders]
    for run in runs:
        for words in run.damaged:
            warn(f"{run.folder}: {words}")
    path = folders[0] / page.NAME if len(runs) == 1 else _free(Path(COMPARISON))
    text = page.html(page.of_run(runs[0]) if len(runs) == 1 else page.of_runs(runs))
    try:
        write_atomically(path, text)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); make room, or change its rights") from error
    say(f"wrote {path}, {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
    return 0


def _free(path: Path) -> Path:
    """The path, unless a file lies there that is no page of ours.

    Raises:
      BadInput: one does.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(500)
    except FileNotFoundError:
        return path
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); start this in another directory") from error
    if page.MARK.encode() not in begins:
        raise BadInput(f"{path} is another file; move it away, or start this in another directory")
    return path
