"""Names in a config: rows of tables, code of the user's own, and nothing that a stranger's config could run instead."""

import sys
import types

import flax.linen as nn
import pytest

import ebm_jax
from ebm_jax.registry import called, named
from ebm_jax.types import BadInput

TABLE = {"one": 1, "two": 2}
HERE = __name__


class Net(nn.Module):
    """Counts as a network wherever it is defined."""


def made(width, *, depth=2, **more):
    return width, depth, more


def few(width, depth=2):
    return width, depth


def refuses():
    raise ValueError("no\nsuch thing")


def test_a_row_of_the_table_or_an_import_path():
    assert named("model.name", "two", TABLE) == 2
    assert named("model.name", f"{HERE}:few", TABLE) is few
    with pytest.raises(BadInput, match=r"^model.name 'tow' is unknown; use one of one, two \(did you mean two\?\)$"):
        named("model.name", "tow", TABLE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_here:Net", "cannot be imported .*ModuleNotFoundError.* as package.module:Name"),
        (":Net", "cannot be imported"),
        (f"{HERE}:Missing", "is not in test_registry"),
        (f"{HERE}:not an identifier", "is not in test_registry"),
        ("os:system", "is no code for this package"),
        ("subprocess:run", "is no code for this package"),
        ("numpy:load", "is no code for this package"),
        ("builtins:exec", "is no code for this package"),
        (f"{HERE}:sys", "is no code for this package"),
        ("ebm_jax.storage.workdir:write_atomically", "is this package's own"),
    ],
)
def test_what_is_no_code_for_this_package_is_refused_in_one_line(name, message):
    with pytest.raises(BadInput, match=message) as error:
        named("model.name", name, TABLE)
    assert "\n" not in str(error.value)


def test_a_function_that_a_users_module_only_imports_is_not_the_users(monkeypatch):
    module = types.ModuleType("made_up")
    module.ebm_jax, module.system = ebm_jax, __import__("os").system
    monkeypatch.setitem(sys.modules, "made_up", module)
    with pytest.raises(BadInput, match="is no code for this package"):
        named("model.name", "made_up:system", TABLE)


def test_a_flax_module_needs_no_import_of_ours(monkeypatch):
    module = types.ModuleType("made_up")
    module.Net = type("Net", (nn.Module,), {"__module__": "made_up"})
    monkeypatch.setitem(sys.modules, "made_up", module)
    assert named("model.name", "made_up:Net", TABLE) is module.Net


def test_a_factory_gets_what_its_signature_names_and_all_of_its_own():
    offers = {"width": lambda: 3, "other": lambda: 1 / 0}
    assert called("model.name", "few", few, offers, {"depth": 7}) == (3, 7)
    offers = {"width": lambda: 3, "other": lambda: 4}
    assert called("model.name", "made", made, offers, {}) == (3, 2, {"other": 4})


@pytest.mark.parametrize(
    ("factory", "own", "message"),
    [
        (3, {}, "is a int; name a function or a class"),
        (few, {"height": 3}, "cannot be made .*TypeError.*height"),
        (lambda nobody: nobody, {}, "asks for nobody, which is none of width; .* as model.own.nobody"),
        (refuses, {}, "cannot be made .ValueError: no such thing"),
    ],
)
def test_a_factory_that_cannot_be_called_is_one_clear_line(factory, own, message):
    with pytest.raises(BadInput, match=message) as error:
        called("model.name", "own", factory, {"width": lambda: 3}, own)
    assert "\n" not in str(error.value)
