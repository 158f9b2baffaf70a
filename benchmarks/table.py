"""The findings of the sections of `python -m benchmarks`, as Markdown and as a picture."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.timing import Times


class Claim(NamedTuple):
    """A target and what was found."""

    measure: str
    target: str
    found: str
    reached: bool


class Section(NamedTuple):
    """One question: its times, and the claims that rest on them."""

    title: str
    note: str
    times: dict[str, Times]
    """Of each candidate, ours first; empty where something else than time was measured."""
    claims: list[Claim]


def milliseconds(seconds: float) -> str:
    """A number to three digits."""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(sections: list[Section], machine: str) -> str:
    """All claims in one table, then the times of each section."""
    lines = [f"{machine}.", ""] if machine else []
    lines += ["| measure | target | measured | |", "|---|---|---|---|"]
    for section in sections:
        for claim in section.claims:
            verdict = "reached" if claim.reached else "**missed**"
            lines.append(f"| {claim.measure} | {claim.target} | {claim.found} | {verdict} |")
    for section in sections:
        lines += ["", f"### {section.title}", "", section.note]
        if section.times:
            lines += ["", "| | median, ms | quartiles, ms |", "|---|---|---|"]
        for name, times in section.times.items():
            low, high = (milliseconds(value) for value in times.quartiles)
            lines.append(f"| {name} | {milliseconds(times.median)} | {low} to {high} |")
    return "\n".join(lines) + "\n"


def picture(path: Path, sections: list[Section]) -> None:
    """Bars of the medians with quartiles, a panel for each section that compares candidates; ours are coloured."""
    from matplotlib.figure import Figure

    shown = [section for section in sections if len(section.times) > 1]
    figure = Figure(figsize=(9, 1.0 + 0.34 * sum(len(section.times) + 2 for section in shown)), layout="constrained")
    panels = np.atleast_1d(
        figure.subplots(len(shown), 1, gridspec_kw={"height_ratios": [len(section.times) + 1 for section in shown]})
    )
    for panel, section in zip(panels, shown, strict=True):
        names = list(section.times)[::-1]
        medians = np.array([1e3 * section.times[name].median for name in names])
        quartiles = 1e3 * np.array([section.times[name].quartiles for name in names]).T
        colors = ["C0" if name.startswith("ours") else "0.7" for name in names]
        panel.barh(names, medians, xerr=np.abs(quartiles - medians), color=colors, ecolor="0.3", capsize=2)
        if medians.max() > 10 * medians.min():
            panel.set_xscale("log")
        panel.set_title(section.title, fontsize=9, loc="left")
        panel.set_xlabel("ms", fontsize=8)
        panel.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)
