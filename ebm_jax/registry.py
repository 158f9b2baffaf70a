"""Names in a config, looked up in a table of the package or imported from the user's `package.module:Name`."""

import difflib
import hashlib
import importlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from ebm_jax.kinds import printable, shown
from ebm_jax.types import BadInput

PYTHON = "python:"
"""What the names of objects begin with that Python code gave."""
_given: dict[str, Any] = {}


def keep(thing: Any, value: Any) -> str:
    """The name under which this process knows `value` from now on, for a config: `python:TYPE-DIGEST` of a thing.

    It is the same in every process for things of the same `repr`, addresses apart: what is made alike has one name.
    """
    words = re.sub(r" at 0x[0-9a-f]+", "", repr(thing))
    first = thing[0] if isinstance(thing, tuple) else thing
    kind = re.sub(r"\W", "", getattr(first, "__name__", type(first).__name__))
    name = f"{PYTHON}{kind}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    _given[name] = value
    return name


def named(key: str, name: str, table: Mapping[str, Any]) -> Any:
    """The entry of this name in the table, an object that Python gave, or the one at a path `package.module:Name`.

    Args:
      key: the config's key that has the name, for messages.

    Raises:
      BadInput: the table has no such name; the module cannot be imported, or has no such attribute.
    """
    if name in table:
        return table[name]
    if name in _given:
        return _given[name]
    if name.startswith(PYTHON):
        raise BadInput(
            f"{key} {printable(name)} is an object that ebm_jax.fit was given in Python; open the run from there, with "
            "ebm_jax.open_run(FOLDER, net=...)"
        )
    module, separator, attribute = name.partition(":")
    if separator:
        return imported(key, module, attribute)
    near = difflib.get_close_matches(str(name), table, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise BadInput(f"{key} {shown(name)} is unknown; use one of {', '.join(table)}{hint}")


def of_network(name: str) -> str:
    """How a message calls the network of this name: one that Python gave is "net TYPE", as its giver knows it."""
    given = name.startswith(PYTHON)
    return f"net {printable(name[len(PYTHON) :].rpartition('-')[0])}" if given else f"model.name '{name}'"


def file_name(name: str) -> str:
    """A config's name as part of a file name, where a colon or a dot has another meaning."""
    return re.sub(r"\W", "-", name)


def imported(key: str, module: str, attribute: str) -> Any:
    """The attribute of a module that the config names at `key`.

    A run's folder may come from a stranger, and a name such as os:system is no network. So only code that was written
    for this package is taken: a Flax module, or what is defined in a module that imports ebm_jax.

    Raises:
      BadInput: the module cannot be imported, has no such attribute, or was not written for this package.
    """
    where = f"{key} '{module}:{attribute}'"
    try:
        if module.partition(".")[0] == "ebm_jax":
            raise BadInput(f"{where} is this package's own; use one of the names that {key} has")
        found = importlib.import_module(module)
    except BadInput:
        raise
    except Exception as error:  # whatever the user's module raises, or an empty or relative name
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{where} cannot be imported ({type(error).__name__}: {reason}); name an installed module, or one beside "
            "run.py or in the folder that ebm-jax is started in, as package.module:Name"
        ) from error
    if not attribute.isidentifier() or not hasattr(found, attribute):
        raise BadInput(f"{where} is not in {module}; give the name of a function or class there")
    own = getattr(found, attribute)
    if not _is_made_for_us(own):
        raise BadInput(f"{where} is no code for this package; put `import ebm_jax` into the module that defines it")
    return own


def _is_made_for_us(found: Any) -> bool:
    """Whether it is a value of a type of ours, a Flax module, or is defined in a module that imports ebm_jax."""
    if _of(type(found), "ebm_jax") or (isinstance(found, type) and any(_of(one, "flax") for one in found.__mro__)):
        return True
    home = sys.modules.get(getattr(found, "__module__", None) or "")
    return home is not None and any(_of(value, "ebm_jax") for value in vars(home).values())


def _of(value: Any, package: str) -> bool:
    """Whether a value is a module of the package, or defined in one."""
    home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return isinstance(home, str) and home.partition(".")[0] == package


def called(key: str, name: str, factory: Any, offers: Mapping[str, Callable[[], Any]], own: Mapping[str, Any]) -> Any:
    """Call a factory with the offers that its signature names, or all if it takes any keyword, and with all `own`.

    Args:
      key, name: the config's key and the factory's name there, for messages.
      offers: for each parameter, a function that gives its value.
      own: keywords from the open group of the config.

    Raises:
      BadInput: the factory is no function or class, asks for what nobody offers, or refuses its arguments.
    """
    if not callable(factory):
        raise BadInput(f"{key} '{name}' is a {type(factory).__name__}; name a function or a class")
    parameters = inspect.signature(factory).parameters.values()
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in (*offers, *own):
            raise BadInput(
                f"{key} '{name}' asks for {parameter.name}, which is none of {', '.join(sorted(offers))}; give it a "
                f"default, or a value as {key.partition('.')[0]}.own.{parameter.name}"
            )
    wanted = offers if takes_any else [p.name for p in named if p.name in offers]
    try:
        return factory(**({parameter: offers[parameter]() for parameter in wanted} | dict(own)))
    except BadInput:
        raise
    except Exception as error:  # whatever the user's code raises
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{key} '{name}' cannot be made ({type(error).__name__}: {reason}); give its other parameters defaults, "
            "and its keys values that it takes"
        ) from error
