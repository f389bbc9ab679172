"""Checks of JSON values that answer with OpenAI's error codes, messages and parameter paths.

A check is a function of a value and its path; it returns nothing or raises. Knows no event: see `validate.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], None]


class ClientError(Exception):
    """What a client did wrong (or is told so, where `kind` is `server_error`), in the words of an `error` event."""

    def __init__(
        self, code: str, message: str, param: str | None = None, *, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind


def anything(value: Any, path: str) -> None:
    """Every value passes."""


def text(limit: int | None = None) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, str):
            raise wrong_type(value, path, "a string")
        if limit is not None and len(value) > limit:
            raise ClientError(
                "string_above_max_length",
                f"Invalid '{path}': string too long. Expected a string with maximum length {limit}, "
                f"but got a string with length {len(value)} instead.",
                path,
            )

    return check


def boolean(value: Any, path: str) -> None:
    if not isinstance(value, bool):
        raise wrong_type(value, path, "a boolean")


def integer(low: int, high: int) -> Check:
    def check(value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(value, path, "an integer")
        _check_range(value, path, "integer", low, high)

    return check


def number(low: float, high: float) -> Check:
    def check(value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(value, path, "a number")
        _check_range(value, path, "decimal", low, high)

    return check


def _check_range(value: float, path: str, noun: str, low: float, high: float) -> None:
    if value < low:
        raise ClientError(
            f"{noun}_below_min_value",
            f"Invalid '{path}': {noun} below minimum value. Expected a value >= {low}, but got {value} instead.",
            path,
        )
    if value > high:
        raise ClientError(
            f"{noun}_above_max_value",
            f"Invalid '{path}': {noun} above maximum value. Expected a value <= {high}, but got {value} instead.",
            path,
        )


def one_of(*values: Any) -> Check:
    def check(value: Any, path: str) -> None:
        if value not in values or isinstance(value, bool):
            raise not_supported(value, path, values)

    return check


def either(matches: type, first: Check, second: Check) -> Check:
    """`first` for a value of the type, `second` for every other."""

    def check(value: Any, path: str) -> None:
        (first if isinstance(value, matches) else second)(value, path)

    return check


def nullable(inner: Check) -> Check:
    def check(value: Any, path: str) -> None:
        if value is not None:
            inner(value, path)

    return check


def array(of: Check, limit: int = 1024) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise wrong_type(value, path, "an array")
        if len(value) > limit:
            raise ClientError("array_above_max_length", f"Invalid '{path}': array too long (at most {limit}).", path)
        for index, each in enumerate(value):
            of(each, f"{path}[{index}]")

    return check


def record(
    required: Mapping[str, Check] | None = None, optional: Mapping[str, Check] | None = None, *, loose: bool = False
) -> Check:
    """An object. An unknown key is an error unless `loose`; the required keys are missed first, as OpenAI does."""
    needs = dict(required or {})
    known = {**needs, **(optional or {})}

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise wrong_type(value, path, "an object")
        for key in needs:
            if key not in value:
                raise missing(_join(path, key))
        for key, each in value.items():
            inner = known.get(key)
            if inner is not None:
                inner(each, _join(path, key))
            elif not loose:
                raise ClientError("unknown_parameter", f"Unknown parameter: '{_join(path, key)}'.", _join(path, key))

    return check


def tagged(key: str, variants: Mapping[str, Check]) -> Check:
    """An object whose `key` says which check is its own."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise wrong_type(value, path, "an object")
        if key not in value:
            raise missing(_join(path, key))
        tag = value[key]
        inner = variants.get(tag) if isinstance(tag, str) else None
        if inner is None:
            raise not_supported(tag, _join(path, key), tuple(variants))
        inner(value, path)

    return check


def mapping(pairs: int, key_limit: int, value_limit: int) -> Check:
    """Metadata: at most so many pairs of strings."""
    check_value = text(value_limit)

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise wrong_type(value, path, "an object")
        if len(value) > pairs:
            raise ClientError(
                "object_above_max_properties", f"Invalid '{path}': at most {pairs} pairs are allowed.", path
            )
        for key, each in value.items():
            text(key_limit)(key, path)
            check_value(each, _join(path, key))

    return check


def missing(path: str) -> ClientError:
    return ClientError("missing_required_parameter", f"Missing required parameter: '{path}'.", path)


def not_supported(value: Any, path: str, values: tuple[Any, ...]) -> ClientError:
    names = [f"'{each}'" for each in values]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"
    return ClientError("invalid_value", f"Invalid value: '{str(value)[:100]}'. Supported values are: {listed}.", path)


def wrong_type(value: Any, path: str, wanted: str) -> ClientError:
    where = f"Invalid type for '{path}'" if path else "Invalid type"
    return ClientError("invalid_type", f"{where}: expected {wanted}, but got {_noun(value)} instead.", path or None)


def _noun(value: Any) -> str:
    if value is None:
        return "null"
    nouns = {
        bool: "a boolean",
        str: "a string",
        int: "an integer",
        float: "a decimal",
        list: "an array",
        dict: "an object",
    }
    return nouns.get(type(value), "something else")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
