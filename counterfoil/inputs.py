"""What a job reads, found in its config by marks on fields: files, and the weights of models and adapters.

All of it is part of a run's identity by its content, so that a folder is never taken for the work on something else.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from counterfoil.config import Config, list_parts, walk_configs
from counterfoil.errors import InputError
from counterfoil.jsonl import describe_file
from counterfoil.models import find_model, fingerprint_model, is_local

__all__ = [
    "AdapterName", "InputPath", "ModelName", "describe_input", "find_incidental", "find_inputs", "find_limits",
    "find_weights", "list_path_fields",
    "without_paths",
]  # fmt: skip


class Input:
    """Marks a path that the job reads: it must exist."""


class Model:
    """Marks the name of a model, whose weights the job reads."""


class Adapter:
    """Marks the folder of an adapter, or the name that a server has for one."""


InputPath = Annotated[Path, Input()]
ModelName = Annotated[str, Model()]
"""A name, a folder, a GGUF file or a hub id."""
AdapterName = Annotated[str, Adapter()]
"""A folder of a PEFT adapter, or a name."""

PLACE = re.compile(r"\w+(\[\d+\])*(\.\w+(\[\d+\])*)*")
"""A field's place in a config: `filters[0].sets[1]`."""


def find_inputs(config: Config) -> dict[str, Path]:
    """Map the places of a config's paths to them."""
    return {place: Path(value) for place, value, marks, _ in _walk(config, "", None) if Input in marks}


def find_weights(config: Config, *, download: bool) -> dict[str, str]:
    """Map the places of a config's models and adapters to fingerprints of their files, or of the server that has them.

    What cannot be found is left out: the work itself says so. Without `download` hub ids are left out as well.
    """
    found: dict[str, str] = {}
    for place, name, marks, engine in _walk(config, "", None):
        if Adapter in marks and Path(name).is_dir():
            found[place] = fingerprint_model(Path(name))
        if Model in marks and name and (download or is_local(name)):
            try:
                found[place] = engine.identify(name) if engine is not None else fingerprint_model(find_model(name))
            except InputError:
                continue
    return found


def find_incidental(config: Config) -> list[str]:
    """List the places of fields that change no result."""
    return [f"{place}{key}" for place, part in walk_configs(config) for key in sorted(part.INCIDENTAL)]


def find_limits(config: Config) -> list[str]:
    """List the places of fields that say where a run ends."""
    return [f"{place}{key}" for place, part in walk_configs(config) for key in sorted(part.LIMITS)]


def _walk(config: Config, prefix: str, engine: Any) -> Iterator[tuple[str, Any, frozenset[type], Any]]:
    """Yield each marked value that is not None: its place, its marks, and the engine that its model would be run by.

    What is in a mapping, a role's model, goes without an engine by its owner's; what is in another field has its own ways.
    """
    engine = getattr(config, "engine", None) or engine
    for key, item in type(config).model_fields.items():
        value: Any = getattr(config, key)
        marks = frozenset(_find_marks([*item.metadata, item.annotation]))
        for suffix, part in list_parts(value).items():
            place = f"{prefix}{key}{suffix}"
            if isinstance(part, Config):
                yield from _walk(part, f"{place}.", engine if suffix.startswith(".") else None)
            elif part is not None and marks:
                yield place, part, marks, engine


def _find_marks(parts: Iterable[Any]) -> Iterator[type]:
    """Yield the marks among the parts of an annotation: in `InputPath | None` one lies a level deeper."""
    for part in parts:
        if isinstance(part, Input | Model | Adapter):
            yield type(part)
        yield from _find_marks(get_args(part))


def list_path_fields(cls: type[Config]) -> frozenset[str]:
    """Name the fields that take one path or several, inputs or not."""
    return frozenset(key for key, item in cls.model_fields.items() if _takes_path(item.annotation))


def _takes_path(annotation: Any) -> bool:
    return annotation is Path or any(_takes_path(part) for part in get_args(annotation))


def describe_input(name: str, path: Path) -> dict[str, Any]:
    """Return an input's path and hashes. Raises InputError where it is not there, or an empty folder."""
    if not path.exists():
        raise InputError(
            f"{name}: {path}", given="no such file or folder", allowed="what an earlier job wrote", do="Check the path."
        )
    if path.is_file():
        return {"path": str(path), **describe_file(path)._asdict()}
    files = [item for item in sorted(path.rglob("*")) if item.is_file() and not item.name.startswith(".")]
    if not files:
        raise InputError(
            f"{name}: {path}", given="an empty folder", allowed="a folder with files", do="Check the path."
        )
    return {"path": str(path), "files": {str(item.relative_to(path)): describe_file(item).sha256 for item in files}}


def without_paths(identity: Mapping[str, Any], *, is_done: bool = True) -> dict[str, Any]:
    """Return what a run is known by: its job, code, config and inputs, without where the latter lie and what is incidental.

    The same content elsewhere is the same input, and a run goes on with more at a time, or more patience; one that is not
    done also with other limits.
    """
    inputs = {
        key: {name: fact for name, fact in facts.items() if name != "path"} for key, facts in identity["inputs"].items()
    }
    config = json.loads(json.dumps(identity["config"]))
    for key in inputs:
        _blank(config, key.partition(" ")[0], also_none=False)  # `parts[0] synth` stands for the field `parts[0]`
    for place in (*identity.get("incidental", ()), *(() if is_done else identity.get("limits", ()))):
        _blank(config, place, also_none=True)
    return {"job": identity["job"], "code": identity.get("code", {}), "config": config, "inputs": inputs}


def _blank(config: Any, place: str, *, also_none: bool) -> None:
    """Take the value at a place out of a config, and nothing beside it; a pipeline's places are no places in its own."""
    if not PLACE.fullmatch(place):
        return
    *parents, last = [int(part) if part.isdigit() else part for part in re.findall(r"\w+", place)]
    inside = config
    try:
        for parent in parents:
            inside = inside[parent]
        if also_none or inside[last] is not None:
            inside[last] = ""
    except (KeyError, IndexError, TypeError):
        return
