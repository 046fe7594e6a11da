"""Strict TOML: values that may refuse, never repair, and errors that a person can act on."""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

_SHOULD_BE = "Input should be "  # how pydantic begins to say what it wanted


class Strict(BaseModel):
    """A frozen value that refuses unknown keys and wrong types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Strict)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Parse a TOML file. Raises `ValueError` that names the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; wanted a {what} in TOML. Check the path."
        ) from None
    except IsADirectoryError:
        raise ValueError(
            f"{path}: this is a folder; wanted a {what} in TOML. Name the file in it."
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not text (byte {error.start} is {error.object[error.start]:#04x}); wanted a "
            f"{what} in TOML, UTF-8. Check that this is the right file."
        ) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not valid TOML: {error}; wanted a {what}. Correct the file there."
        ) from None


def validate(model: type[Model], data: dict[str, Any], where: Path | str) -> Model:
    """`data` as `model`. Raises one `ValueError` that lists every problem with its path."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = _problems(model, error)
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise ValueError(
            f"{where}: {count} in this file:\n"
            + "\n".join(f"  {line}" for line in problems)
            + "\nCorrect the file and try again."
        ) from None


def _problems(model: type[BaseModel], error: ValidationError) -> list[str]:
    """A line for each value: where it may be one of several kinds, pydantic has an error for each of them."""
    of_value: dict[str, list[Any]] = {}
    for item in error.errors():
        path = _dotted(_keys(model, item["loc"]))
        of_value.setdefault(path, []).append(item)
    return list(dict.fromkeys(line for items in of_value.values() for line in _lines(model, items)))


def _lines(model: type[BaseModel], items: list[Any]) -> list[str]:
    said = list(dict.fromkeys(_problem(model, item) for item in items))
    kinds = [item["msg"].partition(_SHOULD_BE)[2] for item in items]
    if len(said) == 1 or not all(kinds):
        return said
    path = _dotted(_keys(model, items[0]["loc"]))
    wanted = ", or ".join(dict.fromkeys(kinds))
    return [f"{path} = {items[0]['input']!r}: {_SHOULD_BE}{wanted}{_nearest(items)}"]


def _nearest(items: list[Any]) -> str:
    """The word that was meant, where one of a few was wanted."""
    words = [
        word
        for item in items
        if item["type"] == "literal_error"
        for word in re.findall(r"'([^']+)'", item["ctx"]["expected"])
    ]
    near = difflib.get_close_matches(str(items[0]["input"]), words, 1, 0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def _problem(model: type[BaseModel], item: Any) -> str:
    keys = _keys(model, item["loc"])
    path = _dotted(keys)
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(keys[-1]), _fields_at(model, keys[:-1]), 1, 0.5)
        valid = ", ".join(_fields_at(model, keys[:-1]))
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {valid}"
        return f"{path}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{path}: missing; a value is required here"
    message = item["msg"].removeprefix("Value error, ")
    if isinstance(item["input"], dict):
        return f"{path}: {message}"  # about a table as a whole: its text is in the file
    return f"{path} = {item['input']!r}: {message}{_nearest([item])}"


def _dotted(keys: list[Any]) -> str:
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text.lstrip(".") or "(the whole file)"


def _keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[Any]:
    """The keys of the file in pydantic's location, without its labels for the members of a union.

    A label stands where the value is no table, so it is whatever is no key where tables have keys.
    """
    keys: list[Any] = []
    for part in location:
        fields = _fields_at(model, keys)
        if isinstance(part, int) or fields or not keys:
            keys.append(part)
    return keys


def _fields_at(model: type[BaseModel], keys: list[Any]) -> list[str]:
    """The valid keys of the table at `keys`; none where the value there is no table."""
    current: Any = model
    for key in keys:
        if isinstance(key, int):
            continue
        field = getattr(current, "model_fields", {}).get(key)
        current = None if field is None else _model_in(field.annotation)
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The Strict model inside `list[Model]`, `tuple[Model, ...]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
