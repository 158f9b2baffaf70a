"""Ours beside its peers and beside its own limits, in one run: docs/performance.md and its picture.

    python -m benchmarks [--peer-python PATH --igebm FOLDER] [--only chain,step,...] [--rounds 5] [--write]

PATH is the interpreter of a separate environment (`python -m venv`, then `pip install torch torchvision tqdm
"torchebm==0.8.*" "ebmkit==0.16.*"`, torch for the CPU). FOLDER is a clone of github.com/rosinality/igebm-pytorch.
Without them the peers are left out. Candidates of a section take turns, round after round; times are medians with
quartiles. Nothing else should run: the ratios bear some load, the times do not. `--write` puts the tables into
docs/performance.md and draws docs/performance.png.
"""

import argparse
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import own, planar, resnet
from benchmarks.peer import Peer
from benchmarks.table import Section, markdown, picture
from ebm_jax.distributed import parallel

DOCS = Path(__file__).parents[1] / "docs"
MARKS = ("<!-- measured: begin -->\n", "<!-- measured: end -->")


class Setting(NamedTuple):
    """The arguments of the sections."""

    peer: Peer | None
    igebm: str
    rounds: int


SECTIONS: dict[str, Callable[[Setting], Section]] = {
    "resnet": lambda setting: resnet.section(setting.peer, setting.igebm, setting.rounds),
    "planar": lambda setting: planar.section(setting.peer, setting.rounds),
    "step": lambda setting: own.step_section(setting.rounds),
    "scan": lambda setting: own.scan_section(setting.rounds),
    "capacity": lambda setting: own.capacity_section(setting.rounds),
    "linear": lambda setting: own.linear_section(setting.rounds),
    "start": lambda setting: own.start_section(),
    "memory": lambda setting: own.memory_section(),
}


def machine() -> str:
    """The machine, the versions and the commit, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    extras = sorted(
        {word for line in lines if line.startswith("flags") for word in re.findall(r"avx512_bf16|amx_bf16", line)}
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=DOCS).stdout
    cores = f"{parallel.cores()} cores of {names[0] if names else platform.processor()}"
    instructions = ", ".join(extras) or "no instructions for bfloat16"
    return (
        f"{cores} ({instructions}), Python {platform.python_version()}, JAX {jax.__version__}, commit {commit.strip()}"
    )


def main() -> None:
    """Run the sections that are asked for, print them, and write them if asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--igebm", default="")
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    words = parser.parse_args()
    chosen = words.only.split(",")
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}; use {', '.join(SECTIONS)}")
    if words.write and chosen != list(SECTIONS):
        parser.error("--write takes all sections")
    jax.config.update("jax_num_cpu_devices", parallel.cores())
    peer = Peer(words.peer_python) if words.peer_python else None
    setting = Setting(peer, words.igebm, words.rounds)
    sections = []
    for name in chosen:
        print(f"... {name}", file=sys.stderr, flush=True)
        sections.append(SECTIONS[name](setting))
        print(markdown(sections[-1:], ""), flush=True)
    if peer is not None:
        peer.close()
    if words.write:
        path = DOCS / "performance.md"
        text = path.read_text()
        before, after = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
        path.write_text(text[:before] + markdown(sections, machine()) + text[after:])
        picture(DOCS / "performance.png", sections)


if __name__ == "__main__":
    np.set_printoptions(precision=3)
    main()
