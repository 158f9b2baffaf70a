"""The direction of imports and the forbidden calls of the design, read off the syntax trees."""

import ast

import jax.numpy as jnp
import jaxtyping
import pytest
from conftest import ROOT

from ebm_jax.models.layers import average_pool

LAYERS = [  # each part may import the parts above its own line, and itself
    {"types"},
    {"random", "labels", "distributed", "registry"},
    {"models", "sampling", "data", "storage", "report"},
    {"methods", "metrics", "applications"},
    {"training"},
    {"choices", "schema", "checks", "assemble", "capacity", "trained"},
    {"__init__"},
    {"tasks", "evaluators", "training.recovery"},
    {"train", "sample", "prepare", "evaluate", "export", "cli"},
    {"run"},
]
LAYER_OF = {part: index for index, parts in enumerate(LAYERS) for part in parts}
ALLOWED_BESIDE = {("data", "storage"), ("storage", "report"), ("report", "storage")}
ALLOWED_BESIDE |= {("data.sources", "choices"), ("models", "distributed"), ("assemble", "data")}
FORBIDDEN_PARTS = {
    (pure, io) for pure in ("training", "applications", "metrics", "methods") for io in ("storage", "report", "data")
}
FORBIDDEN_LIBRARIES = {("sampling", "flax"), ("sampling", "optax")}
CONFIG_READERS = {"schema", "storage.workdir", "trained", *LAYERS[-2]}
SOURCES = {"run": ROOT / "run.py"}  # by the module's name from the package on
for file in sorted((ROOT / "ebm_jax").rglob("*.py")):
    SOURCES[".".join(file.relative_to(ROOT / "ebm_jax").with_suffix("").parts)] = file


def imported(tree, module):
    """The full names that a module imports, wherever in it."""
    package = ["ebm_jax", *module.split(".")][:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*start, alias.name]) for alias in node.names)


def import_offences(module, names):
    part = module.split(".")[0]
    for name in names:
        library, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if library == "pickle" or (part, library) in FORBIDDEN_LIBRARIES:
            yield f"imports {library}"
        if library == "ml_collections" and module not in CONFIG_READERS:
            yield "imports ml_collections"
        if library != "ebm_jax":
            continue
        other = other if other in LAYER_OF else "__init__"  # a name of the package itself
        beside = other == part or (part, other) in ALLOWED_BESIDE
        if (part, other) in FORBIDDEN_PARTS or not (beside or LAYER_OF[other] < LAYER_OF[part]):
            yield f"imports {other}"


def call_offences(tree):
    for node in ast.walk(tree):
        if "nan_to_num" in (getattr(node, "attr", None), getattr(node, "id", None), getattr(node, "name", None)):
            yield "nan_to_num"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and getattr(node.value, "value", True):
            yield "allow_pickle"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        arguments = len(node.args) + len(node.keywords)
        if called.endswith(".get") and "config" in called and arguments == 2:
            yield "config with a default"
        if called == "getattr" and "config" in ast.unparse(node.args[0]) and arguments == 3:
            yield "config with a default"


def offences(module, source):
    """What in the source of a module, named from the package on, is against the design."""
    tree = ast.parse(source)
    return sorted({*import_offences(module, imported(tree, module)), *call_offences(tree)})


@pytest.mark.parametrize("module", SOURCES)
def test_module_has_a_place_and_keeps_to_the_design(module):
    assert module.split(".")[0] in LAYER_OF
    assert offences(module, SOURCES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "offence"),
    [
        ("models.networks", "from ebm_jax.sampling.langevin import langevin", "imports sampling"),
        ("models.networks", "def f():\n    import ebm_jax.data.memory", "imports io"),
        ("sampling.replay", "from ebm_jax import models", "imports models"),
        ("sampling.replay", "from ..models import layers", "imports models"),
        ("sampling.kernel", "import flax.linen as nn", "imports flax"),
        ("io.data", "from ebm_jax.sampling import replay", "imports sampling"),
        ("types", "from ebm_jax import parallel", "imports parallel"),
        ("models.energy", "from ebm_jax.training.step import make_train_step", "imports training"),
        ("training.step", "from ebm_jax import build", "imports build"),
        ("training.step", "from ebm_jax.data.memory import digits", "imports io"),
        ("training.step", "from ebm_jax import load", "imports __init__"),
        ("training.step", "from ml_collections import ConfigDict", "imports ml_collections"),
        ("applications", "import ebm_jax.report.console", "imports io"),
        ("build", "from ebm_jax.train import train", "imports train"),
        ("train", "from ebm_jax import cli", "imports cli"),
        ("sample", "import run, ebm_jax.run", "imports run"),
        ("io.data", "import pickle", "imports pickle"),
        ("io.data", "np.load(path, allow_pickle=True)", "allow_pickle"),
        ("build", "config.model.get('width', 64)", "config with a default"),
        ("build", "self.config.get('width', default=64)", "config with a default"),
        ("build", "getattr(config.model, 'width', 64)", "config with a default"),
        ("training.step", "jnp.nan_to_num(x)", "nan_to_num"),
        ("training.step", "from jax.numpy import nan_to_num", "nan_to_num"),
    ],
)
def test_checker_flags(module, source, offence):
    assert offences(module, source) == [offence]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("parallel", "from ebm_jax.types import PRNGKey"),
        ("models.networks", "import flax.linen as nn\nfrom ebm_jax.models.layers import Conv"),
        ("training.step", "from ebm_jax import parallel\nfrom ebm_jax.sampling import replay"),
        ("build", "from ebm_jax.io import data\nfrom ml_collections import ConfigDict\ngetattr(config, 'model')"),
        ("io.workdir", "from ml_collections import ConfigDict\nos.environ.get('HOME', '')"),
        ("io.data", "np.load(path, allow_pickle=False)"),
        ("run", "from ebm_jax import cli, train\nfrom ebm_jax.types import BadInput"),
    ],
)
def test_checker_passes_what_the_design_allows(module, source):
    assert offences(module, source) == []


def test_shapes_in_the_package_are_checked_during_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        average_pool(jnp.zeros((2, 3)))
