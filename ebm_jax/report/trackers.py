"""Programs that a run tells its numbers and pictures, beside its own files: TensorBoard, Weights & Biases, trackio."""

import contextlib
import importlib
import importlib.util
import io
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ebm_jax.kinds import shown
from ebm_jax.report.events import Events
from ebm_jax.storage.writing import write_atomically
from ebm_jax.types import BadInput

TENSORBOARD, NONE = "tensorboard", "none"
EXTRAS = ("wandb", "trackio")  # packages, and extras of pyproject.toml, of the same names
KNOWN = (TENSORBOARD, *EXTRAS)
PROJECT = "ebm_jax"
RESCUED, EVALUATION = "-rescued", "evaluation"
IDENTITIES = "trackers.json"  # in a run's folder: the name that each tracker knows the run by


class Point(NamedTuple):
    """A number of one step."""

    name: str
    """GROUP/NAME."""
    value: float
    step: int


@runtime_checkable
class Tracker(Protocol):
    """What takes the numbers of a run. All names are GROUP/NAME."""

    def add_scalar(self, name: str, value: float, step: int, description: str = "") -> None:
        """Take a number of one step, and what it is."""
        ...

    def add_image(self, name: str, picture: np.ndarray, step: int, caption: str = "") -> None:
        """Take a picture uint8 [h, w, c] of one step."""
        ...

    def add_text(self, name: str, text: str, step: int) -> None:
        """Take words about one step."""
        ...

    def add_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Take the values of the config that differ from the defaults."""
        ...

    def close(self) -> None:
        """Write what waits."""
        ...


def named(text: str) -> tuple[str, ...]:
    """The trackers of `log.trackers`, each once; () for none.

    Raises:
      BadInput: one is unknown, or its package is not installed.
    """
    for name in (names := asked(text)):
        if name not in KNOWN:
            raise BadInput(f"log.trackers {shown(name)} is unknown; use some of {', '.join(KNOWN)}, or {NONE}")
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise BadInput(
                f"log.trackers {name} needs the package {name}; pip install -r requirements-{name}.txt, or "
                f"'ebm_jax[{name}]', or leave it out"
            )
    return names


def asked(text: str) -> tuple[str, ...]:
    """The names in `log.trackers`, each once, whether there are such trackers here or not; () for none."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    return () if names == (NONE,) else names


class Trackers:
    """The trackers of one run, as one.

    Args:
      names: of KNOWN.
      folder: the run's folder on this machine.
      step: the step that the run begins at.
      told: the last step that the run's own files had; a run that goes on from an earlier one does the steps up to it
        again, and they are not told again.
      before: the points up to `step` of a run that a rescue sent back behind what was told, in the order of their
        steps. TensorBoard drops what it was told since. The others cannot, so this goes on as another run of theirs,
        which is told these points first. None: no rescue did.
      values: of the config, that such another run is told.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        folder: Path,
        step: int,
        told: int,
        before: Iterable[Point] | None = None,
        values: Mapping[str, Any] | None = None,
    ):
        self._all: list[Tracker] = []
        if TENSORBOARD in names:
            self._all.append(Events(folder, purge_step=step + 1))
        points = None if before is None else list(before)
        for name in EXTRAS:
            if name in names:
                identity, is_new = _identity(folder, name, anew=points is not None)
                tracker = _extra(name, folder, identity, -1 if is_new else told)
                self._all.append(tracker)
                if points is not None:
                    tracker.add_hyperparameters(values or {})
                    for point in points:
                        tracker.add_scalar(*point)

    def add_scalar(self, name: str, value: float, step: int, description: str = "") -> None:
        """Tell all: a number of one step, and what it is."""
        for tracker in self._all:
            tracker.add_scalar(name, value, step, description)

    def add_image(self, name: str, picture: np.ndarray, step: int, caption: str = "") -> None:
        """Tell all: a picture uint8 [h, w, c] of one step."""
        for tracker in self._all:
            tracker.add_image(name, picture, step, caption)

    def add_text(self, name: str, text: str, step: int) -> None:
        """Tell all: words about one step."""
        for tracker in self._all:
            tracker.add_text(name, text, step)

    def add_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Tell all: the values of the config that differ from the defaults."""
        for tracker in self._all:
            tracker.add_hyperparameters(values)

    def close(self) -> None:
        """Close all, also if one of them fails."""
        with contextlib.ExitStack() as stack:
            for tracker in self._all:
                stack.callback(tracker.close)


def of_evaluation(name: str, folder: Path, evaluation: str) -> Tracker:
    """A tracker of KNOWN for one evaluation of a run, which has the run's group and steps, and is beside the run.

    A run that trains meanwhile tells its own session, and steps there cannot go back. TensorBoard's is in the run's
    folder `evaluation`; the others show RUN-evaluation-EVALUATION.

    Args:
      folder: the run's folder on this machine.
      evaluation: its name, another one for each evaluation of the run.
    """
    if name == TENSORBOARD:
        return Events(folder / EVALUATION)
    first = _identity(folder, name, anew=False)[0].partition(RESCUED)[0]
    return _extra(name, folder, f"{first}-{EVALUATION}-{evaluation}", -1)


def point_name(*words: str) -> str:
    """The name of an evaluation's number or picture, GROUP/WORD/..., in letters that all trackers take."""
    return "/".join([EVALUATION, *(re.sub(r"\W+", "_", word).strip("_") for word in words)])


def _extra(name: str, folder: Path, identity: str, told: int) -> "WandB | Trackio":
    return WandB(folder, identity, told) if name == "wandb" else Trackio(folder, identity, told)


def _identity(folder: Path, tracker: str, *, anew: bool) -> tuple[str, bool]:
    """The name that a tracker knows the run by, kept in the run's folder, and whether it is new.

    It is some letters, and after n rescues that began another run of the tracker the same letters, "-rescued" and n.
    """
    path = folder / IDENTITIES
    known = json.loads(path.read_text()) if path.exists() else {}
    if tracker in known and not anew:
        return known[tracker], False
    first, _, rescues = known.get(tracker, uuid.uuid4().hex[:8]).partition(RESCUED)
    known[tracker] = f"{first}{RESCUED}{int(rescues or 0) + 1}" if anew and tracker in known else first
    write_atomically(path, json.dumps(known, indent=2) + "\n")
    return known[tracker], True


def _named(folder: Path, identity: str) -> tuple[str, str]:
    """The name of a run as its tracker shows it, and that of the group of it, its rescues and its evaluations."""
    first, dash, rest = identity.partition("-")
    name = folder.resolve().name
    return f"{name}{dash}{rest}", f"{name}-{first}"


class WandB:
    """Weights & Biases; WANDB_MODE=offline keeps all in the run's folder wandb/ for `wandb sync`."""

    def __init__(self, folder: Path, identity: str, told: int):
        wandb: Any = importlib.import_module("wandb")  # an extra, and seconds of imports

        self._wandb, self._told = wandb, told
        self._run: Any = None
        name, group = _named(folder, identity)
        begin = {"project": PROJECT, "name": name, "group": group, "id": identity, "resume": "allow"}
        try:
            self._run = wandb.init(**begin, dir=str(folder), settings=wandb.Settings(silent=True, console="off"))
        except (wandb.Error, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadInput(
                f"log.trackers wandb cannot begin ({reason}); run wandb login, or set WANDB_MODE=offline"
            ) from error

    def _log(self, name: str, value: Any, step: int) -> None:
        if step > self._told:
            self._run.log({name: value}, step=step)

    def add_scalar(self, name: str, value: float, step: int, description: str = "") -> None:
        """Log a number; the description has no place there."""
        del description
        self._log(name, value, step)

    def add_image(self, name: str, picture: np.ndarray, step: int, caption: str = "") -> None:
        """Log a picture with its caption."""
        self._log(name, self._wandb.Image(_in_colour(picture), caption=caption), step)

    def add_text(self, name: str, text: str, step: int) -> None:
        """Log words; those about a step that was told are at the last one, because steps cannot go back."""
        self._run.log({name: text}, step=max(step, self._told))

    def add_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Set the run's config."""
        self._run.config.update(dict(values), allow_val_change=True)

    def close(self) -> None:
        """End the session; the same name goes on with the run."""
        self._run.finish()


class Trackio:
    """trackio, which keeps runs in a database of this machine (`trackio show`)."""

    def __init__(self, folder: Path, identity: str, told: int):
        self._trackio: Any = importlib.import_module("trackio")  # an extra, and seconds of imports
        self._told = told
        self._name = f"{folder.resolve().name}-{identity}"
        self._group = _named(folder, identity)[1]
        self._run: Any = None

    def _begun(self, values: Mapping[str, Any] | None = None) -> Any:
        """The run; it begins with its hyper-parameters, or at its first number."""
        if self._run is None:
            with contextlib.redirect_stdout(io.StringIO()):  # its advice is for whoever calls it by hand
                self._run = self._trackio.init(
                    project=PROJECT,
                    name=self._name,
                    group=self._group,
                    config=dict(values or {}),
                    resume="allow",
                    embed=False,
                    auto_log_cpu=False,
                    auto_log_gpu=False,
                )
        return self._run

    def _log(self, name: str, value: Any, step: int) -> None:
        if step > self._told:
            self._begun().log({name: value}, step=step)

    def add_scalar(self, name: str, value: float, step: int, description: str = "") -> None:
        """Log a number; the description has no place there."""
        del description
        self._log(name, value, step)

    def add_image(self, name: str, picture: np.ndarray, step: int, caption: str = "") -> None:
        """Log a picture with its caption."""
        self._begun()
        self._log(name, self._trackio.Image(_in_colour(picture), caption=caption), step)

    def add_text(self, name: str, text: str, step: int) -> None:
        """Log words; those about a step that was told are at the last one, as those of Weights & Biases."""
        self._begun().log({name: text}, step=max(step, self._told))

    def add_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Begin with these values as the run's config."""
        self._begun(values)

    def close(self) -> None:
        """End the session; the same name goes on with the run."""
        if self._run is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                self._run.finish()


def _in_colour(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(3, 2) if picture.shape[2] == 1 else picture
