"""`params.yaml`, read, checked and edited; what is wrong is said with its place and what is right.

The file is read as YAML 1.2, as DVC reads it: `1e-5` is a number in both.
"""

from __future__ import annotations

import difflib
import io
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.runtime.errors import UserError
from stages.runtime.params import Params
from stages.runtime.publishing import write_whole

PARAMS_FILE = Path("params.yaml")
Sections = TypeVar("Sections", bound=BaseModel)


def parse_params(raw: Any, path: Path = PARAMS_FILE) -> Params:
    """Check `raw`, what YAML made of `path`.

    Raises `UserError` that names the file, the key and, for a misspelt one, the nearest valid key.
    """
    return checked(Params, raw, path)


def checked(model: type[Sections], raw: Any, path: Path) -> Sections:
    """As `parse_params`, for a file of other parameters."""
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected sections of keys, found {type(raw).__name__}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(problem, model) for problem in error.errors()]
    # a misspelt key shows twice, as unknown and as missing: say the unknown first
    problems.sort(key=lambda line: "is missing" in line)
    raise UserError(f"{path}: " + f"\n{path}: ".join(problems))


def read_yaml(path: Path, quick: bool = False) -> Any:
    """The content of a YAML file of the project; `UserError` if there is none.

    quick: by the parser that DVC has read the file with, several times as fast; it says less of
    what is wrong.
    """
    try:
        return YAML(typ="safe", pure=not quick).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not here ({Path.cwd()}): run from the project's root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None


def edit_params(path: Path, changes: Mapping[str, object]) -> None:
    """Change parameters in a file, by dotted keys that are there; its comments stay.

    The file is the old one or the new one, whenever it is read.
    """
    yaml = YAML()
    yaml.width = 4096
    content = yaml.load(path)
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        if name not in place:
            raise KeyError(f"{path} has no {key}")
        place[name] = value
    text = io.BytesIO()
    yaml.dump(content, text)
    write_whole(path, text.getvalue())


def _explain(problem: Any, model: type[BaseModel]) -> str:
    place = [
        str(part)
        for part in problem["loc"]
        if part != "float" and not str(part).startswith(("literal", "constrained"))
    ]
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(place[:-1], model)
        near = difflib.get_close_matches(place[-1], fields, n=1, cutoff=0.5)
        hint = (
            f"did you mean `{'.'.join([*place[:-1], near[0]])}`?"
            if near
            else f"valid keys: {', '.join(fields)}"
        )
        return f"`{key}` is no parameter; {hint}"
    if problem["type"] == "missing":
        return f"`{key}` is missing"
    if problem["type"] == "value_error":
        return f"`{key}`: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    if problem["type"] == "string_type" and problem["input"] is not None:
        kind = type(problem["input"]).__name__
        return f"`{key}` is {_short(problem['input'])}, for YAML a {kind}: put it in quotes"
    return f"`{key}` is {_short(problem['input'])}: {problem['msg'].lower()}"


def _short(value: object) -> str:
    """A value as a message can show it: aliases may make it larger than the file it stands in."""
    shown = reprlib.Repr()
    shown.maxlevel = 1
    return shown.repr(value)


def _fields_at(place: list[str], model: Any) -> list[str]:
    for part in place:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
