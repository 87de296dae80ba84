"""Named values as text: `preresnet18(width=16)` <-> a frozen dataclass. No torch, no code is run.

Names resolve through an explicit dict, or as `package.module:Name` or `file.py:Name` for a class of
the user's own.
Arguments are literals, typed by the dataclass.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from math import isfinite
from types import ModuleType
from typing import Any, get_origin, get_type_hints

from bootstrap.errors import ConfigurationError


def parse_spec(text: str, table: Mapping[str, type], what: str, *, may_import: bool = True) -> Any:
    """The value that `text` names; ConfigurationError with a suggestion if it names none.

    `may_import=False` is for text that no user typed: then names of the table are all there is.
    """
    name, _, rest = text.strip().partition("(")
    cls = _resolve(name.strip(), table, what, may_import)
    arguments = _literal_arguments(text, rest, what)
    hints = get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}
    for key, value in arguments.items():
        if key not in known:
            raise ConfigurationError(
                f"{what} {name!r} has no argument {key!r}{did_you_mean(key, known)}"
            )
        arguments[key] = typed(value, hints[key], f"{what} {name!r}: {key}")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ConfigurationError(f"{what} {text!r}: {error}") from None


def format_spec(value: Any, table: Mapping[str, type]) -> str:
    """The text that `parse_spec` turns into `value`; arguments at their default are left out."""
    names = {cls: name for name, cls in table.items()}
    name = names.get(type(value), f"{type(value).__module__}:{type(value).__qualname__}")
    arguments = [
        f"{field.name}={getattr(value, field.name)!r}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    ]
    return f"{name}({', '.join(arguments)})" if arguments else name


def with_argument(text: str, key: str, value: Any, what: str) -> str:
    """The text that names the same class with one argument added or changed."""
    name, _, rest = text.strip().partition("(")
    arguments = {**_literal_arguments(text, rest, what), key: value}
    return f"{name.strip()}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"


def _resolve(name: str, table: Mapping[str, type], what: str, may_import: bool) -> type:
    if name in table:
        return table[name]
    module, colon, attribute = name.partition(":")
    if colon and not may_import:
        raise ConfigurationError(
            f"{what} {name!r} is code, which is not run; there are: {', '.join(table)}"
        )
    if colon:
        try:
            home = _run_file(module) if module.endswith(".py") else _import_module(module)
            cls = getattr(home, attribute)
        except (ImportError, AttributeError, ValueError, TypeError, OSError) as error:
            raise ConfigurationError(f"{what} {name!r} cannot be imported: {error}") from None
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise ConfigurationError(f"{what} {name!r} is not a dataclass, so it has no arguments")
        return cls
    raise ConfigurationError(
        f"unknown {what} {name!r}{did_you_mean(name, table)}; there are: {', '.join(table)}"
    )


def _import_module(name: str) -> ModuleType:
    """A module by its dotted name; like `file.py`, it may lie in the working folder."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last, so that it hides nothing
    return importlib.import_module(name)


def _run_file(path: str) -> ModuleType:
    """The module that a Python file defines, under the path's own text as its name."""
    if path not in sys.modules:
        found = importlib.util.spec_from_file_location(path, path)
        if found is None or found.loader is None:
            raise ImportError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(found)
        sys.modules[path] = module  # dataclasses look their annotations up there
        try:
            found.loader.exec_module(module)
        except BaseException:
            del sys.modules[path]
            raise
    return sys.modules[path]


def _literal_arguments(text: str, rest: str, what: str) -> dict[str, Any]:
    if not rest:
        return {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            raise ValueError("write name(key=value, ...)")
        keys = [keyword.arg for keyword in call.keywords]
        if None in keys or len({*keys}) < len(keys):
            raise ValueError("every argument is written once, as key=value")
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ConfigurationError(
            f"{what} {text!r}: arguments must be literals, name(key=value): {error}"
        ) from None


def typed(value: Any, hint: Any, where: str) -> Any:
    """`value` if it is of the type that a dataclass asks for; ConfigurationError if it is not."""
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not isfinite(value):
            raise ConfigurationError(f"{where}={value!r} must be finite")
        return float(value)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigurationError(f"{where}={value!r} must be a tuple, such as (0.1, 0.2)")
        return tuple(typed(item, hint.__args__[0], where) for item in value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or isinstance(value, bool) != (hint is bool)
    ):
        raise ConfigurationError(f"{where}={value!r} must be a {hint.__name__}")
    return value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message: the known name that is like this one, if there is any."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
