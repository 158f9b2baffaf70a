"""Figures of two-dimensional densities, as PNG files."""

from pathlib import Path

import numpy as np


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
      log_density_model_grid: [side · side] in nats at `ebm_jax.evaluation.density.grid(side)`.
      title: above the three panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and of use to few runs
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
