"""Verbs to jobs: which module a verb's config is built into. Nothing here is imported before its verb is used."""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import get_origin

from counterfoil.config import apply_override, build, find_config, parse_override, read_yaml
from counterfoil.errors import ConfigError
from counterfoil.job import Job, Service

__all__ = ["VERBS", "load_config", "load_job"]

VERBS = {
    "run": ("counterfoil.pipeline", "pipelines"),
    "synth": ("synth.synthesize", "synth"),
    "align": ("align.train", "align"),
    "decode": ("decode.generate", "decode"),
    "eval": ("eval.evaluate", "eval"),
    "serve": ("decode.serve", "serve"),
}
"""Verb -> the module of its usual job, and the folder of its configs.

A config may name another job of the same package: `job: report` under `eval` is eval/report.py, class Report.
"""


def find_job(verb: str, name: object, *, source: str) -> type[Job | Service]:
    """Import the job class of a verb, or another of the same package by name; for `serve` the service."""
    usual = VERBS[verb][0]
    module_name = usual if name is None else f"{usual.split('.')[0]}.{name}"
    known = isinstance(name, str) and name.isidentifier() and importlib.util.find_spec(module_name) is not None
    if name is not None and not known:
        raise ConfigError(f"{source}: job", given=repr(name), allowed=f"a job of {verb}", do="Fix or remove the line.")
    module = importlib.import_module(module_name)
    wanted = module_name.rsplit(".", 1)[1].capitalize()
    found = getattr(module, wanted, None)
    if not (isinstance(found, type) and issubclass(found, Service if verb == "serve" else Job)):
        raise ConfigError(f"{source}: job", given=f"{module_name} has no job {wanted}", allowed="a job", do="Fix it.")
    return found


def load_job(
    verb: str, config: str, overrides: Sequence[str], *, optional: frozenset[str] = frozenset()
) -> tuple[Job, list[str]]:
    """Build the job of `verb config key=value ...`; see `load_config`."""
    job, used = load_config(verb, config, overrides, optional=optional)
    assert isinstance(job, Job)
    return job, used


def load_config(
    verb: str,
    config: str,
    overrides: Sequence[str],
    *,
    optional: frozenset[str] = frozenset(),
    stand_in: str | None = None,
) -> tuple[Job | Service, list[str]]:
    """Build the job of `verb config key=value ...`; return it with the overrides that it took.

    Of the overrides, those in `optional` are left out where the job has no such field. `stand_in` takes the place of
    what has to be given and was not, in a job that is to be looked at alone.
    Raises ConfigError for whatever is wrong with the config.
    """
    path = find_config(config, VERBS[verb][1])
    values = read_yaml(path)
    cls = find_job(verb, values.pop("job", None), source=str(path))
    used: list[str] = []
    for text in overrides:
        key, value = parse_override(text)
        head = key.split(".", 1)[0]
        if text in optional and head not in cls.model_fields:
            continue
        used.append(text)
        if verb == "run" and "." in key and isinstance(values.get("jobs"), dict) and head in values["jobs"]:
            values["changes"] = {**values.get("changes", {}), key: value}
        else:
            apply_override(values, key, value, cls=cls)
    for name, item in cls.model_fields.items():
        if stand_in is not None and item.is_required():
            values.setdefault(name, [stand_in] if get_origin(item.annotation) is tuple else stand_in)
    return build(cls, values, source=_name_source(path, used)), used


def _name_source(path: Path, overrides: Sequence[str]) -> str:
    return f"{path.name} + {' '.join(overrides)}" if overrides else path.name
