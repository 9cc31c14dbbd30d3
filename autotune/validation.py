"""Validation of data from files against dataclasses, with one-line messages."""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable
from typing import Any, TypeVar, cast

import pydantic

from autotune.errors import BadInputError

T = TypeVar("T")


def validate(kind: type[T], data: dict[str, Any], *, source: str) -> T:
    """An instance of the dataclass `kind` made from plain data, strictly typed.

    Args:
        kind: A dataclass; its own `__pydantic_config__` says whether unknown keys are errors.
        data: Plain values, as a YAML or JSON file gives them.
        source: Where they came from, for the message.

    Raises:
        BadInputError: It names the first key at fault, its value, and what is allowed.
    """
    try:
        # Strict mode takes lists for tuples, and mappings for dataclasses, from JSON only.
        text = json.dumps(data, default=str)
        value: T = _adapter(cast(Hashable, kind)).validate_json(text, strict=True)
        return value
    except pydantic.ValidationError as error:
        raise BadInputError(f"{source}: {_first_problem(error)}") from error
    except BadInputError as error:
        raise BadInputError(f"{source}: {error}") from error


@functools.cache
def _adapter(kind: Hashable) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(cast(type[Any], kind))


def _first_problem(error: pydantic.ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"]) or "the file"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key} is no known key: remove it, or check its spelling"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key} is missing"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key}: {message}, not {first['input']!r}{more}"
