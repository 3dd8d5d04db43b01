"""Checks of JSON records that somebody else may have written or edited, field by field."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from .errors import BadInput

MOST_NUMBERS = 1 << 26
"""Of an image: 4,700 x 4,700 in colour. A damaged or hostile file asks for all memory otherwise."""
MOST_CLASSES = 1_000_000


def fits(value: Any, annotation: str) -> bool:
    """Whether a JSON value fits a type written as in Python: str, bool, int, float, list[...], dict[...], ... | None."""
    if annotation.endswith("| None"):
        return value is None or fits(value, annotation.removesuffix("| None").strip())
    if annotation == "float":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and -sys.float_info.max <= value <= sys.float_info.max  # an int may be too large for a float
    if annotation == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation == "list[str]":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if annotation == "dict[str, str]":
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return isinstance(value, {"str": str, "bool": bool}.get(annotation, list if annotation[:4] == "list" else dict))


def problem(record: Mapping[str, Any], types: Mapping[str, str]) -> str | None:
    """The first field of `types` that is missing or of another type; None if all fit."""
    for name, annotation in types.items():
        if name not in record:
            return f'"{name}" is missing'
        if not fits(record[name], annotation):
            shown = repr(record[name])
            return f'"{name}" is {shown if len(shown) <= 80 else shown[:77] + "..."}, expected {annotation}'
    return None


def check_model_record(record: Mapping[str, Any], where: str, num_classes: int | None = None) -> None:
    """The fields that every description of a model shares: sigma, class_names, data. BadInput names `where`."""
    wrong = problem(record, {"sigma": "float | None", "class_names": "list[str] | None", "data": "dict | None"})
    sigma, names, data = record.get("sigma"), record.get("class_names"), record.get("data")
    if wrong is None and sigma is not None and not sigma > 0:
        wrong = f'"sigma" is {sigma}, expected a positive number'
    if wrong is None and data is not None:
        inside = problem(data, {"name": "str | None", "root": "str | None"})
        wrong = inside and f'"data": {inside}'
    if wrong is None and num_classes is not None and names is not None and len(names) != num_classes:
        wrong = f'"class_names" has {len(names)} names for {num_classes} classes'
    if wrong is not None:
        raise BadInput(f"{where}: {wrong}")
