"""Figures with axes, as PNG files: two-dimensional densities, histograms, curves, chains."""

from pathlib import Path
from typing import Any

import numpy as np

from ebm_jax.storage.writing import replacing

BINS = 80  # of a histogram


def density_figure(
    path: Path,
    data_points: np.ndarray,
    sample_points: np.ndarray,
    log_density_model_grid: np.ndarray,
    *,
    title: str = "",
) -> None:
    """Data, samples and the learned density side by side, each on the unit box.

    Args:
      path: the PNG file to write; its folders are made.
      data_points, sample_points: [n, 2] in [0, 1].
      log_density_model_grid: [side · side] in nats at `ebm_jax.metrics.density.grid(side)`.
      title: above the three panels.
    """
    figure = _figure(12.0, 4.4)
    panels = figure.subplots(1, 3)
    for panel, name, points in ((panels[0], "data", data_points), (panels[1], "samples", sample_points)):
        panel.scatter(points[:, 0], points[:, 1], s=1.5, alpha=0.5, linewidths=0)
        panel.set_title(f"{name} ({len(points):,})")
    side = round(len(log_density_model_grid) ** 0.5)
    density = np.exp(log_density_model_grid).reshape(side, side)
    panels[2].imshow(density.T, origin="lower", extent=(0, 1, 0, 1))
    panels[2].set_title("learned density")
    for panel in panels:
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    figure.suptitle(title)
    _save(figure, path)


def histograms(path: Path, reference: np.ndarray, others: dict[str, np.ndarray], label: str) -> None:
    """A panel for each set of values [n]: its histogram in colour over the reference's [m] in gray, on one axis.

    Args:
      path: the PNG file to write.
      others: panel title -> values.
      label: what the values are, below the panels.
    """
    figure, panels = _panels(len(others))
    values = np.concatenate([reference, *others.values()])
    low, high = np.quantile(values, [0.001, 0.999])
    bins = np.linspace(low, high if high > low else low + 1, 60).tolist()
    for panel, (title, of_set) in zip(panels, others.items(), strict=False):
        panel.hist(np.clip(reference, bins[0], bins[-1]), bins, density=True, color="0.7")
        panel.hist(np.clip(of_set, bins[0], bins[-1]), bins, density=True, histtype="step", color="C3", linewidth=1.5)
        panel.set_title(title, fontsize=9)
        panel.set_yticks([])
    figure.supxlabel(label)
    _save(figure, path)


def curves(
    path: Path,
    lines: dict[str, tuple[np.ndarray, np.ndarray]],
    labels: tuple[str, str],
    title: str = "",
    xscale: str = "linear",
) -> None:
    """Lines (x, y), each [n], by name in one panel, as a PNG file; `labels` are the names of the two axes."""
    figure, panels = _panels(1)
    for name, (x, y) in lines.items():
        panels[0].plot(x, y, label=name)
    panels[0].set(xlabel=labels[0], ylabel=labels[1], title=title, xscale=xscale)
    panels[0].legend(fontsize=8)
    _save(figure, path)


def chains_figure(
    path: Path, energies: dict[str, np.ndarray], traces: np.ndarray, autocorrelation: np.ndarray, *, title: str
) -> None:
    """Histograms of energies by name, the traces [steps, chains] of some chains, and their autocorrelation [lags]."""
    figure = _figure(15.0, 4.4)
    panels = figure.subplots(1, 3)
    every = np.concatenate(list(energies.values()))
    bins = np.linspace(every.min(), every.max(), BINS + 1).tolist()
    for name, values in energies.items():
        share = np.full(len(values), 1 / len(values))
        panels[0].hist(
            values, bins, weights=share, histtype="stepfilled", alpha=0.45, label=f"{name} ({len(values):,})"
        )
    panels[0].set(xlabel="energy U", ylabel="share", title="energies")
    panels[0].legend()
    panels[1].plot(traces, linewidth=0.6)
    panels[1].set(xlabel="step", ylabel="energy U", title=f"{traces.shape[1]} chains")
    panels[2].plot(autocorrelation)
    panels[2].axhline(0, color="gray", linewidth=0.6)
    panels[2].set(xlabel="lag, steps", title="autocorrelation of energy")
    figure.suptitle(title)
    _save(figure, path)


def reliability(path: Path, *, confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray) -> None:
    """Accuracy over confidence, beside the number of predictions at each confidence, as a PNG file.

    Args:
      confidence, accuracy: [m], of m equal bins of [0, 1]; NaN if a bin is empty.
      count: [m], predictions in each bin.
    """
    figure, panels = _panels(2)
    places = (np.arange(len(count)) + 0.5) / len(count)
    panels[0].plot([0, 1], [0, 1], "--", color="0.7")
    panels[0].plot(confidence, accuracy, "o-")
    panels[0].set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    panels[1].bar(places, count, 1 / len(count), edgecolor="white")
    panels[1].set(ylabel="predictions", xlim=(0, 1))
    figure.supxlabel("probability of the predicted class")
    _save(figure, path)


def robustness(path: Path, panels_of: dict[str, tuple[np.ndarray, dict[str, np.ndarray], float]]) -> None:
    """Accuracy over the radius of attacks, one panel for each norm, as a PNG file.

    Args:
      panels_of: norm with its unit -> radii [r]; attack -> bool [r, n], whether each image is still right; and the
        accuracy, in [0, 1], under an attack without bounds.
    """
    figure, panels = _panels(len(panels_of))
    for panel, (name, (radii, attacks, unbounded)) in zip(panels, panels_of.items(), strict=False):
        for attack, right in attacks.items():
            share = right.mean(1)
            error = np.sqrt(share * (1 - share) / right.shape[1])
            panel.errorbar(radii, share, error, marker="o", markersize=3, capsize=2, label=attack)
        panel.axhline(unbounded, linestyle=":", color="0.5", label="attack without bounds")
        panel.set(xlabel=f"radius, {name}", ylim=(-0.02, 1))
    panels[0].set_ylabel("accuracy, ± standard error")
    panels[0].legend(fontsize=7)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """A figure of this size in inches, with a canvas that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and of use to few runs
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panels(number: int):
    """A figure and the flat list of its panels: `number` of them, and perhaps some more, which stay empty."""
    columns = min(number, 3)
    rows = -(-number // columns)
    size = (5.5, 4.4) if number == 1 else (3.6 * columns, 2.4 * rows + 0.4)
    figure = _figure(*size)
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for empty in panels[number:]:
        empty.axis("off")
    return figure, panels


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, dpi=100, format="png")
