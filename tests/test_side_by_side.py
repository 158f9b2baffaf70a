"""docs/side_by_side.md: the snippets of every library that is installed run, and ours are never longer."""

import importlib.util
import re

import numpy as np
import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "side_by_side.md").read_text()
SECTIONS = {
    title: dict(re.findall(r'```python title="(\w+)"\n(.*?)```', text, re.S))
    for title, text in (section.split("\n", 1) for section in PAGE.split("\n## ")[1:])
}
IMPORTS = {  # what a file of each begins with; the page leaves it out for all alike
    "ebm_jax": "import jax\nimport ebm_jax\nfrom ebm_jax import langevin, run, unbounded",
    "ebmkit": "import ebm\nimport torch",
    "torchebm": "import torch\nfrom torchebm.core import BaseModel\nfrom torchebm.losses import ContrastiveDivergence\n"
    "from torchebm.samplers import LangevinDynamics\n\n\n"
    "class ConvEnergy(BaseModel):\n    def __init__(self):\n        super().__init__()\n"
    "        self.net = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3), torch.nn.SiLU(), torch.nn.Flatten(),"
    " torch.nn.LazyLinear(1))\n\n    def forward(self, x):\n        return self.net(x)[:, 0]",
    "blackjax": "import blackjax\nimport jax",
}
PACKAGES = {"ebmkit": "ebm"}  # the name of the package, where the library has another


def lines(snippet):
    return len([line for line in snippet.splitlines() if line.strip()])


def test_five_things_of_which_ours_is_never_the_longer():
    assert len(SECTIONS) == 5
    for title, snippets in SECTIONS.items():
        assert {"ebm_jax", "ebmkit", "torchebm"} <= set(snippets), title
        ours = lines(snippets["ebm_jax"])
        assert all(ours <= lines(snippet) for snippet in snippets.values()), title
        assert max(len(line) for snippet in snippets.values() for line in snippet.splitlines()) <= 110, title


@pytest.mark.whole
@pytest.mark.parametrize("library", IMPORTS)
def test_the_snippets_run_in_order_and_the_samples_are_in_the_wells(library, tmp_path, monkeypatch):
    package = PACKAGES.get(library, library)
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).uniform(size=(128, 8, 8, 1)).astype(np.float32)
    if library in ("ebmkit", "torchebm"):
        torch = pytest.importorskip("torch")
        images = torch.tensor(images).permute(0, 3, 1, 2)
    namespace = {"images": images}
    exec(IMPORTS[library], namespace)
    for title, snippets in SECTIONS.items():
        if library in snippets:
            exec(compile(snippets[library].replace("steps=200", "steps=3"), title, "exec"), namespace)
    found = namespace["states"].position if library == "blackjax" else namespace["x"]
    # 2,000 coordinates of standard deviation 0.43 in |x|: a standard error of 0.01
    assert abs(float(abs(found).mean()) - mean_distance()) < 0.05
    if library == "ebm_jax":
        assert namespace["samples"].shape == (64, 8, 8, 1)
        np.testing.assert_array_equal(
            namespace["trained"].sample(namespace["jax"].random.key(0), 64), namespace["samples"]
        )


def mean_distance():
    x = np.linspace(-4, 4, 4_001)
    weight = np.exp(-((x**2 - 1) ** 2))
    return (np.abs(x) * weight).sum() / weight.sum()
