"""YAML to a frozen typed object, and back.

A config is the object itself: a frozen pydantic class whose fields are the hyperparameters. A field whose type is a
family (`Engine`, `Recipe`, ...) takes a name, and the name is a file in the family's folder:

    objective: dpo                        -> align/objectives/dpo.py, class Dpo, its defaults
    objective: {name: dpo, beta: 0.2}     -> the same with a choice
    objective: their_pkg.their_module     -> imported as written, so users extend a family without a fork
"""

import difflib
import importlib
import importlib.util
import json
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeGuard, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from counterfoil.errors import ConfigError
from counterfoil.records import content_id

__all__ = [
    "Choice", "Config", "apply_override", "build", "dump", "find_class", "find_config", "fingerprint", "list_configs",
    "list_family", "list_parts", "parse_override", "read_yaml", "walk_configs",
]  # fmt: skip


def _is_mapping(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


class Config(BaseModel):
    """Frozen, typed; an unknown key is refused with the name that was probably meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset()
    """Fields that change no result, only how it is come to: how many at a time, how patiently."""
    LIMITS: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where a run ends, and nothing about what comes before."""

    @model_validator(mode="before")
    @classmethod
    def refuse_unknown(cls, value: Any) -> Any:
        """Raise for the first key that is no field."""
        if _is_mapping(value):
            for key in value:
                if key not in cls.model_fields:
                    raise _unknown(key, cls)
        return value


ConfigT = TypeVar("ConfigT", bound=Config)


def _unknown(key: str, cls: type[Config]) -> PydanticCustomError:
    fields = ", ".join(sorted(cls.model_fields)) or "none"
    close = difflib.get_close_matches(key, list(cls.model_fields), n=1)
    do = f"Did you mean {close[0]!r}? Fix the name or remove the line." if close else "Remove the line."
    return PydanticCustomError(
        "unknown_key",
        "{cls} has no field {key}",
        {"cls": cls.__name__, "key": repr(key), "at": key, "allowed": f"fields: {fields}", "do": do},
    )


class Choice(Config):
    """The root of a family sets `FOLDER`, the package whose files are its members; a member is one class in one file."""

    FOLDER: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def choose(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        """Turn a name, or a mapping with a `name`, into the member of that name."""
        if isinstance(value, cls) or "FOLDER" not in cls.__dict__:
            return handler(value)
        if isinstance(value, str):
            value = {"name": value}
        if not _is_mapping(value) or not isinstance(value.get("name"), str):
            raise PydanticCustomError(
                "no_name", "no name given", {"allowed": _names(cls), "do": "Give the name of one: `name: ...`."}
            )
        rest = {key: given for key, given in value.items() if key != "name"}
        return find_class(cls, value["name"]).model_validate(rest)


ChoiceT = TypeVar("ChoiceT", bound=Choice)


def _find_family(cls: type[Choice]) -> type[Choice]:
    return next(base for base in cls.__mro__ if issubclass(base, Choice) and "FOLDER" in base.__dict__)


def _names(cls: type[Choice]) -> str:
    return "one of " + ", ".join(list_family(cls)) + ", or a module of yours with a dot in its name"


def list_family(cls: type[Choice]) -> list[str]:
    """List the names of a family: the files in its folder."""
    folder = importlib.import_module(cls.FOLDER)
    return sorted(info.name for info in pkgutil.iter_modules(folder.__path__))


def find_class(cls: type[ChoiceT], name: str) -> type[ChoiceT]:
    """Import the member `name` of the family `cls`.

    A file that exists but does not import raises its own error: it is never reported as missing.
    """
    module_name = name if "." in name else f"{cls.FOLDER}.{name}"
    if "." not in name and name not in list_family(cls):
        close = difflib.get_close_matches(name, list_family(cls), n=1)
        do = f"Did you mean {close[0]!r}?" if close else "Use one of these names."
        raise PydanticCustomError("unknown_name", "no {name} here", {"name": name, "allowed": _names(cls), "do": do})
    if "." in name and importlib.util.find_spec(name.split(".")[0]) is None:
        raise PydanticCustomError(
            "unknown_name",
            "no package {name} is installed",
            {"name": name.split(".")[0], "allowed": _names(cls), "do": "Install it, or fix the name."},
        )
    module = importlib.import_module(module_name)
    wanted = "".join(part.capitalize() for part in name.rsplit(".", 1)[-1].split("_"))
    found = getattr(module, wanted, None)
    if isinstance(found, type) and issubclass(found, Choice) and not issubclass(found, cls):
        do = "Name another, or give it where any of its family will do."
        raise PydanticCustomError(
            "wrong_kind", "{name} is no {kind}", {"name": name, "kind": cls.__name__, "allowed": _names(cls), "do": do}
        )
    if not (isinstance(found, type) and issubclass(found, cls)):
        raise PydanticCustomError(
            "no_class",
            "{module} has no class {wanted}",
            {"module": module_name, "wanted": wanted, "allowed": f"a {cls.__name__}", "do": "Name it as its file."},
        )
    return found


def dump(value: Any) -> Any:
    """Turn a config into plain JSON-able values that `build` takes back; members of a family keep their name."""
    if isinstance(value, Config):
        named: dict[str, Any] = {}
        if isinstance(value, Choice):
            named["name"] = type(value).__module__.removeprefix(f"{_find_family(type(value)).FOLDER}.")
        return named | {key: dump(getattr(value, key)) for key in type(value).model_fields}
    if _is_mapping(value):
        return {str(key): dump(item) for key, item in value.items()}
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Sequence | frozenset | set):
        items: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]  (of anything)
        return [dump(item) for item in items]
    return str(value)


def list_parts(value: Any) -> dict[str, Any]:
    """Map what follows a field's name to what is there: nothing to a lone value, `[0]` and `.name` to those of several."""
    if isinstance(value, tuple):
        return {f"[{at}]": part for at, part in enumerate(value)}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if _is_mapping(value):
        return {f".{name}": part for name, part in value.items()}
    return {"": value}


def walk_configs(config: Config, place: str = "") -> Iterator[tuple[str, Config]]:
    """Yield a config and all those in it, each with what its fields' places begin with: `filters[0].`."""
    yield place, config
    for key in type(config).model_fields:
        for suffix, part in list_parts(getattr(config, key)).items():
            if isinstance(part, Config):
                yield from walk_configs(part, f"{place}{key}{suffix}.")


def fingerprint(value: Any) -> str:
    """Hash a config to 16 hexadecimal digits: equal configs, equal fingerprints."""
    return content_id(dump(value))


def build(cls: type[ConfigT], values: Mapping[str, Any], *, source: str) -> ConfigT:
    """Validate `values` as `cls`. Raises ConfigError with `source` (a file or `command line`) and the path inside."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise _explain(error, source) from error


def _explain(error: ValidationError, source: str) -> ConfigError:
    first = error.errors()[0]
    ctx = first.get("ctx", {})
    path = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    if "at" in ctx:
        path.append(str(ctx["at"]))
    where = f"{source}: {'.'.join(path)}" if path else source
    given = first["msg"]
    if first["type"] not in {"unknown_key", "no_name", "missing"}:
        given += f"; given {first['input']!r}"[:200]
    plain = "a value" if first["type"] == "missing" else first["msg"].removeprefix("Input should be ")
    allowed = ctx.get("allowed") or plain
    do = ctx.get("do") or ("Add it." if first["type"] == "missing" else "Change the value.")
    return ConfigError(where, given=given, allowed=str(allowed), do=str(do))


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key.sub=value`; the value is read as JSON, or as YAML's `{key: value}`, else it is the string that it is."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError("command line", given=repr(text), allowed="key=value", do="Write, for instance, seed=1.")
    try:
        return key.strip(), json.loads(value)
    except json.JSONDecodeError:
        return key.strip(), _read_mapping(value) or value


def _read_mapping(text: str) -> Mapping[str, Any] | None:
    """Read `{key: value}`; None for all else, above all for a template such as `{question}`."""
    if not re.match(r"\{\s*[\w.]+\s*: ", text):
        return None
    try:
        found: Any = _Loader(text).get_single_data()
    except yaml.YAMLError:
        return None
    return found if _is_mapping(found) else None


def apply_override(values: dict[str, Any], key: str, value: Any, *, cls: type[Config] | None = None) -> None:
    """Set `key` (dotted) in nested `values`. A bare name on the way becomes a mapping with that name.

    What is left at its default, at any depth, keeps that default (of `cls`) but for what the override changes. A text for
    a field (of `cls`) that takes several values is split at its commas: `a,b` or `[a,b]`.
    """
    head, _, rest = key.partition(".")
    if not rest:
        kind = str(cls.model_fields[head].annotation) if cls and head in cls.model_fields else ""
        several = isinstance(value, str) and kind.startswith("tuple[") and "..." in kind
        values[head] = [part for part in value.strip("[]").split(",") if part] if several else value
        return
    found: Any = cls.model_fields[head].default if cls and head in cls.model_fields else None
    default: Config | None = found if isinstance(found, Config) else None
    given = values.get(head)
    usual: dict[str, Any] = dump(default) if default is not None else {}
    inside: dict[str, Any] = dict(given) if _is_mapping(given) else {"name": given} if isinstance(given, str) else usual
    values[head] = inside
    apply_override(inside, rest, value, cls=_find_type(default, inside.get("name")))


def _find_type(default: Config | None, name: object) -> type[Config] | None:
    """Return the class that an override goes into: the default's, or its family's member of that name."""
    if not isinstance(default, Choice) or not isinstance(name, str):
        return None if default is None else type(default)
    try:
        return find_class(_find_family(type(default)), name)
    except PydanticCustomError:  # no such member: said when the whole is built
        return None


def _config_root() -> Path:
    """Return the folder of the configs that travel with the distribution: in the wheel, else beside the packages."""
    here = Path(__file__).resolve().parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def list_configs() -> dict[str, Path]:
    """Map `verb/name` to the YAML file, for every config of a job that travels with the distribution."""
    root = _config_root()
    found = sorted(path for path in root.rglob("*.yaml") if path.parent.name != "accelerate")  # those are accelerate's
    return {str(path.relative_to(root).with_suffix("")): path for path in found}


def find_config(name: str, folder: str) -> Path:
    """Find a config: a path to a YAML file, else a name in `folder` of the configs that travel with us."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or "/" in name:
        if path.is_file():
            return path
        raise ConfigError(name, given="no such file", allowed="a YAML file", do="Check the path.")
    known = {key.split("/", 1)[1]: path for key, path in list_configs().items() if key.startswith(f"{folder}/")}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, list(known), n=1)
    do = f"Did you mean {close[0]!r}?" if close else "Use one of these names, or a path ending in .yaml."
    raise ConfigError(f"config {name!r}", given="not found", allowed=", ".join(sorted(known)) or "none", do=do)


class _Loader(yaml.SafeLoader):
    """YAML lets a later key replace an earlier one of its name without a word; here that is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises ConfigError for broken YAML, or for anything but a mapping."""
    try:
        values: Any = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(str(path), given=str(error).replace("\n", " "), allowed="YAML", do="Mend it.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), given=str(error), allowed="UTF-8 text", do="Save it as UTF-8.") from error
    if values is None:
        values = {}
    if not _is_mapping(values):
        raise ConfigError(str(path), given=type(values).__name__, allowed="a mapping", do="Write `key: value` lines.")
    return dict(values)
