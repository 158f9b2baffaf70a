"""The direction of imports and the forbidden calls of the design, read off the syntax trees."""

import ast
import builtins

import jax.numpy as jnp
import jaxtyping
import pytest
from conftest import ROOT

from ebm_jax.models.layers import average_pool

LAYERS = [  # each part may import the parts above its own line, and itself
    {"given", "invocation", "machine", "version"},
    {"paths"},
    {"shipped"},
    {"types"},
    {"choice", "kinds", "noise"},
    {"pixels", "random", "registry"},
    {"arguments", "arrays", "schema"},
    {"labels", "distributed", "manual"},
    {"models", "sampling", "data", "storage"},
    {"applications", "methods", "metrics", "report"},
    {"training", "chains"},
    {"assemble", "checks"},
    {"inputs"},
    {"program", "samplers", "identity"},
    {"capacity", "duration", "publishing"},
    {"trust"},
    {"trained"},
    {"opening"},
    {"evaluators", "training.recovery"},
    {"tasks"},
    {"train", "sample", "prepare", "evaluate", "export", "cli"},
    {"conversion", "fitting"},
    {"__init__"},
    {"main"},
    {"run", "__main__"},
]
LAYER_OF = {part: index for index, parts in enumerate(LAYERS) for part in parts}
PURE = {"models", "sampling", "methods", "training", "applications", "metrics", "assemble", "chains"}
TOUCHES_THE_WORLD = {"storage", "report"}
FORBIDDEN_LIBRARIES = {("sampling", "flax"), ("sampling", "optax"), ("methods", "flax"), ("methods", "optax")}
CONFIG_LIBRARY = {"schema", "cli"}  # who may import ml_collections
SOURCES = {"run": ROOT / "run.py"}  # by the module's name inside the package
for file in sorted((ROOT / "ebm_jax").rglob("*.py")):
    SOURCES[".".join(file.relative_to(ROOT / "ebm_jax").with_suffix("").parts)] = file


def imported(tree, module):
    """The full names that a module imports anywhere in its source."""
    package = ["ebm_jax", *module.split(".")][:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*start, alias.name]) for alias in node.names)


def place_of(name):
    """The entry of LAYERS that a module belongs to; names of the package itself belong to `__init__`."""
    first, _, rest = name.partition(".")
    both = f"{first}.{rest.partition('.')[0]}"
    return both if both in LAYER_OF else first if first in LAYER_OF else "__init__"


def import_offences(module, names):
    part = place_of(module)
    for name in names:
        library, _, rest = name.partition(".")
        if library == "pickle" or (part, library) in FORBIDDEN_LIBRARIES:
            yield f"imports {library}"
        if library == "ml_collections" and part not in CONFIG_LIBRARY:
            yield "imports ml_collections"
        if library != "ebm_jax":
            continue
        other = place_of(rest)
        world = part in PURE and other in TOUCHES_THE_WORLD
        if world or not (other == part or LAYER_OF[other] < LAYER_OF[part]):
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
    """What breaks the design in a module's source; `module` is its name inside the package."""
    tree = ast.parse(source)
    return sorted({*import_offences(module, imported(tree, module)), *call_offences(tree)})


def unknown_annotations(source):
    """Names in annotations of functions that the module binds nowhere; ruff cannot tell them from jaxtyping's axes."""
    nodes = list(ast.walk(ast.parse(source)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    arguments = [node for node in nodes if isinstance(node, ast.arg)]
    annotations = [node.returns for node in functions] + [node.annotation for node in arguments]
    used = {name.id for one in filter(None, annotations) for name in ast.walk(one) if isinstance(name, ast.Name)}
    imports = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    bound = {alias.asname or alias.name.partition(".")[0] for alias in imports} | {node.arg for node in arguments}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return sorted(used - bound - set(dir(builtins)))


@pytest.mark.parametrize("module", SOURCES)
def test_annotations_name_what_the_module_knows(module):
    assert unknown_annotations(SOURCES[module].read_text()) == []


def test_an_annotation_without_its_import_is_seen():
    inside = "def run():\n    def draw(path: Path) -> Float[Array, 'n c']: ..."
    assert unknown_annotations(f"from jaxtyping import Array, Float\n{inside}") == ["Path"]
    assert unknown_annotations(f"from jaxtyping import Array, Float\nfrom pathlib import Path\n{inside}") == []


@pytest.mark.parametrize("module", SOURCES)
def test_module_has_a_place_and_keeps_to_the_design(module):
    assert module == "__init__" or place_of(module) != "__init__"
    assert offences(module, SOURCES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "offence"),
    [
        ("models.networks", "from ebm_jax.sampling.langevin import langevin", "imports sampling"),
        ("models.networks", "def f():\n    import ebm_jax.data.memory", "imports data"),
        ("sampling.replay", "from ebm_jax import models", "imports models"),
        ("sampling.replay", "from ..models import layers", "imports models"),
        ("sampling.kernel", "import flax.linen as nn", "imports flax"),
        ("data.memory", "from ebm_jax.sampling import replay", "imports sampling"),
        ("types", "from ebm_jax.distributed import parallel", "imports distributed"),
        ("models.energy", "from ebm_jax.training.step import make_train_step", "imports training"),
        ("training.step", "from ebm_jax import assemble", "imports assemble"),
        ("training.loop", "from ebm_jax.training import recovery", "imports training.recovery"),
        ("training.step", "from ebm_jax import load", "imports __init__"),
        ("training.step", "from ml_collections import ConfigDict", "imports ml_collections"),
        ("applications", "import ebm_jax.report.console", "imports report"),
        ("assemble", "from ebm_jax.train import train", "imports train"),
        ("train", "from ebm_jax import cli", "imports cli"),
        ("sample", "import run, ebm_jax.run", "imports run"),
        ("data.memory", "import pickle", "imports pickle"),
        ("data.memory", "np.load(path, allow_pickle=True)", "allow_pickle"),
        ("assemble", "config.model.get('width', 64)", "config with a default"),
        ("assemble", "self.config.get('width', default=64)", "config with a default"),
        ("assemble", "getattr(config.model, 'width', 64)", "config with a default"),
        ("training.step", "jnp.nan_to_num(x)", "nan_to_num"),
        ("training.step", "from jax.numpy import nan_to_num", "nan_to_num"),
    ],
)
def test_checker_flags(module, source, offence):
    assert offences(module, source) == [offence]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("distributed.parallel", "from ebm_jax.types import PRNGKey"),
        ("models.networks", "import flax.linen as nn\nfrom ebm_jax.models.layers import Conv"),
        ("training.step", "from ebm_jax.distributed import parallel\nfrom ebm_jax.sampling import replay"),
        ("assemble", "from ebm_jax.methods import losses\ngetattr(config, 'model')"),
        ("schema", "from ml_collections import ConfigDict\nos.environ.get('HOME', '')"),
        ("data.memory", "np.load(path, allow_pickle=False)"),
        ("run", "from ebm_jax import cli, train\nfrom ebm_jax.types import BadInput"),
    ],
)
def test_checker_passes_what_the_design_allows(module, source):
    assert offences(module, source) == []


@pytest.mark.whole
def test_shapes_in_the_package_are_checked_where_tests_ask_for_it(request):
    if not request.config.getoption("types"):
        pytest.skip("without --types")
    with pytest.raises(jaxtyping.TypeCheckError):
        average_pool(jnp.zeros((2, 3)))


def test_no_two_evaluators_draw_the_same_noise():
    """Each passes a number of its own to `key_of`, a constant of its module."""
    found = {}
    for module, file in SOURCES.items():
        tree = ast.parse(file.read_text())
        numbers = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "key_of":
                found[module, call.args[1].id] = numbers[call.args[1].id]
    assert len(found) >= 7, found
    assert len(set(found.values())) == len(found), found
