"""What a name in a config stands for: a row of a table in the package, or `package.module:Name` of the user's own."""

import difflib
import importlib
import re
from collections.abc import Mapping
from typing import Any

from ebm_jax.types import BadInput


def named(key: str, name: str, table: Mapping[str, Any]) -> Any:
    """The entry of this name in the table, or the object at an import path `package.module:Name`.

    Args:
      key: the config's key that has the name, for messages.

    Raises:
      BadInput: the table has no such name; the module cannot be imported, or has no such attribute.
    """
    if name in table:
        return table[name]
    module, separator, attribute = name.partition(":")
    if separator:
        return imported(key, module, attribute)
    near = difflib.get_close_matches(str(name), table, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise BadInput(f"{key} '{name}' is unknown; use one of {', '.join(table)}{hint}")


def file_name(name: str) -> str:
    """A name of a config as a part of a file's name, where a colon or a dot would say something else."""
    return re.sub(r"\W", "-", name)


def imported(key: str, module: str, attribute: str) -> Any:
    """The attribute of a module that the user named at `key`.

    Raises:
      BadInput: as `named`.
    """
    where = f"{key} '{module}:{attribute}'"
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises, or an empty or relative name
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{where} cannot be imported ({type(error).__name__}: {reason}); name an installed module, or one in the "
            "current folder, as package.module:Name"
        ) from error
    if not attribute.isidentifier() or not hasattr(found, attribute):
        raise BadInput(f"{where} is not in {module}; give the name of a function or class there")
    return getattr(found, attribute)
