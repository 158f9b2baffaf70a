"""How pictures and figures look: sizes, fonts, colours, and the words above and below images."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ebm_jax.kinds import printable
from ebm_jax.types import Config

GRID_SIDE, STRIP_SIDE, LARGE_SIDE = 84, 64, 140  # pixels: the most that an image is enlarged to, by a whole factor
LEAST_WIDTH = 400  # pixels, of a picture with a title
MARGIN = 4  # pixels beside words
TITLE_SIZE, CAPTION_SIZE = 13, 11  # pixels, of the fonts
TITLE_LINE, CAPTION_LINE = 18, 16  # pixels: heights of a line of each
BACKGROUND, TITLE_BACKGROUND, INK = 96, 32, 255  # gray levels
HATCH = (45, 45, 45), (230, 159, 0)  # colours of the ground and of the stripes of hidden pixels
HATCH_PERIOD, HATCH_STRIPE = 6, 2  # pixels, of the sum of both coordinates
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Okabe & Ito's, which readers of any colour vision tell apart."""
LINES = ("-", "--", "-.", ":")  # in turn, for those who see no colours
REFERENCE = "#BBBBBB"  # what others are compared with
DENSITY_MAP, DIFFERENCE_MAP = "viridis", "RdBu_r"  # both are read without telling red from green
FIGURE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
"""Settings of Matplotlib, for the time that a figure is drawn."""


@cache
def font(size: int) -> Any:
    """DejaVu Sans, which Matplotlib brings along: Pillow's own font has no accents and no arrows."""
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def title_band(title: str, width: int) -> Image.Image:
    """The title in white on dark gray, its lines broken to fit the width in pixels; of height 0 if it is empty."""
    lines = [line for paragraph in title.splitlines() for line in _wrapped(paragraph, font(TITLE_SIZE), width)]
    return _band(lines, width, TITLE_LINE, TITLE_SIZE, TITLE_BACKGROUND)


def caption_band(words: str, width: int) -> Image.Image:
    """One line of words below or above images, cut to the width in pixels."""
    return _band([_fitting(printable(words), font(CAPTION_SIZE), width)], width, CAPTION_LINE, CAPTION_SIZE, BACKGROUND)


def heading_band(words: str, width: int) -> Image.Image:
    """The line above a row of images, as large as a title."""
    return _band([printable(words)], width, TITLE_LINE, TITLE_SIZE, BACKGROUND)


def heading_width(words: str) -> int:
    """Pixels that a heading takes."""
    return round(font(TITLE_SIZE).getlength(printable(words))) + 2 * MARGIN


def title(name: str, step: int, what: str, *facts: str) -> str:
    """The title of a picture of a run: a line that says what it is, and a line of facts about how it came about.

    Args:
      name: of the run, as its folder's.
      facts: the empty ones are left out.
    """
    return f"{printable(name)}, step {step:,}: {what}\n{'; '.join(filter(None, facts))}".rstrip()


def steps(config: Config) -> str:
    """The steps of sampling, in words."""
    sample = config.sample
    number, quiet = sample.num_steps, min(sample.quiet_steps, sample.num_steps)
    if config.chain.kernel == "descent":
        return f"{sample.descent_steps + number:,} steps of descent{guidance(config)}"
    descent = f"{sample.descent_steps:,} steps of descent, " if sample.descent_steps else ""
    silent = f", {'all' if quiet == number else f'the last {quiet:,}'} without noise" if quiet else ""
    return f"{descent}{number:,} chain steps{silent}{guidance(config)}"


def guidance(config: Config) -> str:
    """The guidance of sampling in words that follow others; empty: none."""
    sample = config.sample
    if not sample.guidance:
        return ""
    interval = sample.guidance_from, sample.guidance_until
    within = "" if interval == (0.0, 1.0) else f" between the shares {interval[0]:g} and {interval[1]:g} of data"
    return f", with guidance {sample.guidance:g}{within}"


def kept(config: Config) -> str:
    """How many of the samples drawn are kept, in words that follow others; empty: all."""
    keep = config.sample.keep
    return f", of each class the {keep:.0%} kept whose class the model tells best" if keep < 1 else ""


def weights(config: Config) -> str:
    """Which weights sample, in words."""
    return "EMA weights" if config.sample.weights == "ema" else "weights of the last step"


def of_noise(config: Config) -> str:
    """How samples from noise come about, in words: steps, start, weights."""
    return f"{steps(config)}; start: noise; {weights(config)}"


def is_hatched(y: Any, x: Any) -> Any:
    """Whether the pixel at these coordinates of a hidden part is of a stripe; takes arrays too."""
    return (y + x) % HATCH_PERIOD < HATCH_STRIPE


def _band(lines: Sequence[str], width: int, line_height: int, size: int, background: int) -> Image.Image:
    band = Image.new("L", (width, line_height * len(lines)), background)
    pen = ImageDraw.Draw(band)
    for row, line in enumerate(lines):
        pen.text((MARGIN, row * line_height + line_height // 2), line, fill=INK, font=font(size), anchor="lm")
    return band


def _wrapped(text: str, drawn: Any, width: int) -> list[str]:
    """The words of the text in lines of at most the width; a longer word is cut."""
    lines = [""]
    for word in printable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and drawn.getlength(longer) > width - 2 * MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fitting(line, drawn, width) for line in lines]


def _fitting(text: str, drawn: Any, width: int) -> str:
    """The text, or else the longest beginning of it that fits the width with "…" behind."""
    shorter = (f"{text[:length]}…" for length in range(len(text) - 1, -1, -1))
    return next((words for words in (text, *shorter) if drawn.getlength(words) <= width - 2 * MARGIN), "")
