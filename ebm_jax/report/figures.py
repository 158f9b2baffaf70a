"""Figures with axes, as PNG files: two-dimensional densities, histograms, curves, chains."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ebm_jax.report import style
from ebm_jax.storage.writing import replacing

BINS = 80  # of a histogram


def density_figure(
    path: Path,
    log_density_data_grid: np.ndarray,
    sample_points: np.ndarray,
    log_density_model_grid: np.ndarray,
    *,
    title: str = "",
) -> None:
    """The true density, samples, the model's density, and where they diverge, each on the unit box.

    Both densities are on one colour scale, whose bar is below them. The last panel is p log(p/q), whose integral is
    the divergence KL(data || model) above it.

    Args:
      path: the PNG file to write; its folders are made.
      log_density_data_grid, log_density_model_grid: [side · side] in nats at `ebm_jax.metrics.density.grid(side)`; -inf
        outside the support of the data.
      sample_points: [n, 2] in [0, 1].
      title: above the panels.
    """
    side = round(len(log_density_model_grid) ** 0.5)
    log_p = log_density_data_grid - np.log(np.exp(log_density_data_grid).mean())  # one on the cells, as in the report
    truth, model = np.exp(log_p), np.exp(log_density_model_grid)
    with np.errstate(invalid="ignore"):  # 0 times -inf outside the support
        excess = np.where(truth > 0, truth * (log_p - log_density_model_grid), 0.0)
    with _drawn(path, 16.0, 4.6, title) as figure:
        panels = figure.subplots(1, 4)
        box: dict[str, Any] = {"origin": "lower", "extent": (0, 1, 0, 1)}
        scale: dict[str, Any] = {"vmin": 0.0, "vmax": max(truth.max(), model.max()), "cmap": style.DENSITY_MAP}
        panels[0].imshow(truth.reshape(side, side).T, **box, **scale)
        panels[0].set_title("data: true density p")
        panels[1].scatter(*sample_points.T, s=1.5, alpha=0.5, linewidths=0, color=style.COLOURS[0])
        panels[1].set_title(f"samples ({len(sample_points):,})")
        shown = panels[2].imshow(model.reshape(side, side).T, **box, **scale)
        panels[2].set_title("model: learned density q")
        bar = figure.colorbar(shown, ax=panels[:3], location="bottom", shrink=0.5, aspect=60, pad=0.04)
        bar.set_label("density p and q, per unit of area, on one scale")
        most = float(np.abs(excess).max()) or 1.0
        differs = panels[3].imshow(
            excess.reshape(side, side).T, **box, cmap=style.DIFFERENCE_MAP, vmin=-most, vmax=most
        )
        panels[3].set_title(f"KL(data || model) {excess.mean():.4f} nats")
        bar = figure.colorbar(differs, ax=panels[3], location="bottom", shrink=0.9, aspect=30, pad=0.04)
        bar.set_label("where from: p log(p/q)")
        for panel in panels:
            panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="$x_1$")
        panels[0].set_ylabel("$x_2$")


def histograms(
    path: Path, reference: np.ndarray, others: dict[str, np.ndarray], label: str, *, name: str, title: str = ""
) -> None:
    """A panel for each set of values [n]: its histogram as a line over the reference's [m] in gray, on one axis.

    Args:
      path: the PNG file to write.
      others: panel title -> values; what is before ":" is the name of the values.
      label: what the values are, below the panels.
      name: of the reference.
      title: above the panels.
    """
    values = np.concatenate([reference, *others.values()])
    low, high = np.quantile(values, [0.001, 0.999])
    bins = np.linspace(low, high if high > low else low + 1, 60).tolist()
    with _panelled(path, len(others), title) as (figure, panels):
        for panel, (heading, of_set) in zip(panels, others.items(), strict=False):
            colour, known = style.COLOURS[3], heading.partition(":")[0]
            panel.hist(np.clip(reference, bins[0], bins[-1]), bins, density=True, color=style.REFERENCE, label=name)
            heights, _, _ = panel.hist(
                np.clip(of_set, bins[0], bins[-1]), bins, density=True, histtype="step", color=colour, label=known
            )
            panel.set_title(heading)
            panel.margins(y=0.2)
            place = int(np.argmax(heights))
            panel.annotate(
                known,
                ((bins[place] + bins[place + 1]) / 2, heights[place]),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=colour,
            )
            panel.legend(loc="upper left")
        figure.supxlabel(label)
        figure.supylabel("share per unit")


def curves(
    path: Path,
    lines: dict[str, tuple[np.ndarray, np.ndarray]],
    labels: tuple[str, str],
    title: str = "",
    xscale: str = "linear",
) -> None:
    """Lines (x, y), each [n], by name in one panel, as a PNG file; `labels` are the names of the two axes.

    Several lines differ in colour and in dashes, and have their names beside them too, before ":" if there is one.
    """
    with _panelled(path, 1) as (_, panels):
        for place, (name, (x, y)) in enumerate(lines.items()):
            look = {"color": _of(style.COLOURS, place), "linestyle": _of(style.LINES, place)}
            above = 2 + place % len(style.LINES) / 10  # dashes over the lines that they coincide with
            panels[0].plot(x, y, label=name, zorder=above, **look)
            if len(lines) > 1:
                at = int((place + 1) / (len(lines) + 1) * (len(x) - 1))
                panels[0].annotate(
                    name.partition(":")[0],
                    (x[at], y[at]),
                    color=look["color"],
                    fontsize=8,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
                )
        panels[0].set(xlabel=labels[0], ylabel=labels[1], title=title, xscale=xscale)
        panels[0].legend()


def chains_figure(
    path: Path, energies: dict[str, np.ndarray], traces: np.ndarray, autocorrelation: np.ndarray, *, title: str
) -> None:
    """Histograms of energies by name, the traces [steps, chains] of some chains, and their autocorrelation [lags]."""
    every = np.concatenate(list(energies.values()))
    bins = np.linspace(every.min(), every.max(), BINS + 1).tolist()
    with _drawn(path, 15.0, 4.4, title) as figure:
        panels = figure.subplots(1, 3)
        for place, (name, values) in enumerate(energies.items()):
            share = np.full(len(values), 1 / len(values))
            look = {"color": _of(style.COLOURS, place), "linestyle": _of(style.LINES, place)}
            panels[0].hist(values, bins, weights=share, histtype="stepfilled", alpha=0.15, color=look["color"])
            panels[0].hist(values, bins, weights=share, histtype="step", label=f"{name} ({len(values):,})", **look)
        panels[0].set(xlabel="energy U", ylabel="share", title="energies")
        panels[0].legend()
        panels[1].plot(traces, linewidth=0.6)
        panels[1].set(xlabel="step", ylabel="energy U", title=f"{traces.shape[1]} chains")
        panels[2].plot(autocorrelation, color=style.COLOURS[0])
        panels[2].axhline(0, color=style.REFERENCE, linewidth=0.6)
        panels[2].set(xlabel="lag, steps", title="autocorrelation of energy")


def reliability(
    path: Path, *, confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray, title: str = ""
) -> None:
    """Accuracy over confidence, beside the number of predictions at each confidence, as a PNG file.

    Args:
      confidence, accuracy: [m], of m equal bins of [0, 1]; NaN if a bin is empty.
      count: [m], predictions in each bin.
      title: above the panels.
    """
    places = (np.arange(len(count)) + 0.5) / len(count)
    with _panelled(path, 2, title) as (figure, panels):
        panels[0].plot([0, 1], [0, 1], "--", color=style.REFERENCE, label="as often right as sure")
        panels[0].plot(confidence, accuracy, "o-", color=style.COLOURS[0], label="the model", clip_on=False, zorder=3)
        panels[0].set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        panels[0].legend()
        panels[1].bar(places, count, 1 / len(count), color=style.COLOURS[0], edgecolor="white")
        panels[1].set(ylabel="predictions", xlim=(0, 1))
        figure.supxlabel("probability of the predicted class")


def robustness(
    path: Path, panels_of: dict[str, tuple[np.ndarray, dict[str, np.ndarray], float]], title: str = ""
) -> None:
    """Accuracy over the radius of attacks, one panel for each norm, as a PNG file.

    Args:
      panels_of: norm with its unit -> radii [r]; attack -> bool [r, n], whether each image is still right; and the
        accuracy, in [0, 1], under an attack without bounds.
      title: above the panels.
    """
    with _panelled(path, len(panels_of), title) as (_, panels):
        for panel, (name, (radii, attacks, unbounded)) in zip(panels, panels_of.items(), strict=False):
            for place, (attack, right) in enumerate(attacks.items()):
                share = right.mean(1)
                error = np.sqrt(share * (1 - share) / right.shape[1])
                look = {"color": _of(style.COLOURS, place), "linestyle": _of(style.LINES, place)}
                panel.errorbar(radii, share, error, marker="o", markersize=3, capsize=2, label=attack, **look)
            panel.axhline(unbounded, linestyle=":", color=style.REFERENCE, label="attack without bounds")
            panel.set(xlabel=f"radius, {name}", ylim=(-0.02, 1))
        panels[0].set_ylabel("accuracy, ± standard error")
        panels[0].legend()


def _of(looks: Sequence[str], place: int) -> str:
    return looks[place % len(looks)]


@contextlib.contextmanager
def _drawn(path: Path, width: float, height: float, title: str = "") -> Iterator[Any]:
    """A figure of this size in inches, with a canvas that needs no screen; it is written as the context ends."""
    import matplotlib  # slow to import, and of use to few runs
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style.FIGURE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        if title:
            figure.suptitle(title)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            figure.savefig(file, dpi=100, format="png")


@contextlib.contextmanager
def _panelled(path: Path, number: int, title: str = "") -> Iterator[tuple[Any, list[Any]]]:
    """As `_drawn`, with the flat list of its panels: `number` of them, and perhaps some more, which stay empty."""
    columns = min(number, 3)
    rows = -(-number // columns)
    size = (6.0, 5.0) if number == 1 else (4.2 * columns, 3.0 * rows + 0.8)
    with _drawn(path, *size, title) as figure:
        panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
        for empty in panels[number:]:
            empty.axis("off")
        yield figure, panels
