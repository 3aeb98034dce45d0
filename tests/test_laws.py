"""The ten laws of the house, each kept by a test; what a number or a name must be is said beside it."""

import ast
import importlib
import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from align.embedding_loss import EmbeddingLoss
from align.objective import Objective
from counterfoil.cli import main
from counterfoil.config import Choice, Config, build, dump, find_class, list_configs, list_family
from counterfoil.errors import ConfigError, CounterfoilError, EngineError, InputError, RunError
from counterfoil.job import Job, Service, read_manifest
from counterfoil.verbs import VERBS, load_config
from decode.embedder import Embedder
from decode.engine import Engine
from decode.method import Method
from eval.scorer import Scorer
from eval.task import Task
from synth.filter import Filter
from synth.recipe import Recipe
from synth.synthesize import Synthesize

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("counterfoil", "decode", "eval", "synth", "align")
FAMILIES: dict[str, type[Choice]] = {
    cls.FOLDER: cls for cls in (Engine, Method, Embedder, Scorer, Task, Recipe, Filter, Objective, EmbeddingLoss)
}


def members() -> list[tuple[type[Choice], str]]:
    return [(cls, name) for cls in FAMILIES.values() for name in list_family(cls)]


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for found in cls.__subclasses__():
        yield found
        yield from subclasses(found)


def fill(cls: type[Config], folder: Path) -> dict[str, Any]:
    """Give every required field a value of its type: a path, several of them, a text, a choice, or a job's command line."""
    given = str(folder / "given")
    texts = {"Path": given, "str": given, "tuple[float": [1], "tuple[Path": [given], "tuple[typing.Anno": [given]}
    values: dict[str, Any] = {}
    for name, item in cls.model_fields.items():
        if item.is_required():
            shown = str(item.annotation).replace("pathlib.", "").removeprefix("<class '")
            choices = get_args(item.annotation) if get_origin(item.annotation) is Literal else ()
            found = (value for kind, value in texts.items() if shown.startswith(kind))
            values[name] = [*choices, *found, {"one": "synth x"}][0]
    return values


def all_jobs() -> list[type[Job]]:
    """Import the usual job of each verb and the jobs that the configs name."""
    for module, _ in VERBS.values():
        importlib.import_module(module)
    importlib.import_module("eval.report")
    return [cls for cls in subclasses(Job) if cls.__module__.split(".")[0] in PACKAGES]


# 1. The folder is the registry.


def test_every_family_is_known_here() -> None:
    """Each `FOLDER: ClassVar[str] = "a.b"` in the sources is a family that the tests below walk."""
    found = {
        name
        for path in sources(*PACKAGES)
        for name in re.findall(r'FOLDER: ClassVar\[str\] = "(.+)"', path.read_text())
    }
    assert found == set(FAMILIES)


@pytest.mark.parametrize(("family", "name"), members())
def test_every_file_of_a_family_is_a_member_of_that_name(family: type[Choice], name: str) -> None:
    cls = find_class(family, name)
    assert issubclass(cls, family)
    assert cls.__module__ == f"{family.FOLDER}.{name}"


def write_package(folder: Path, package: str, module: str, text: str) -> None:
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("")
    (folder / package / f"{module}.py").write_text(text)


FILTER = """
from synth.filter import LocalFilter
class KeepAll(LocalFilter):
    limit: int = 3
    def open(self):
        return lambda pair: None
"""


def test_a_dotted_name_is_the_users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "laws_user", "keep_all", FILTER)
    monkeypatch.syspath_prepend(tmp_path)
    job = build(Synthesize, {"filters": [{"name": "laws_user.keep_all", "limit": 5}, "length_only"]}, source="test")
    assert [dump(item)["name"] for item in job.filters] == ["laws_user.keep_all", "length_only"]
    assert dump(job.filters[0])["limit"] == 5
    assert build(Synthesize, dump(job), source="test") == job


def test_a_file_that_does_not_import_raises_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "laws_broken", "torn", "import a_module_that_is_nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_nowhere"):
        build(Synthesize, {"filters": ["laws_broken.torn"]}, source="test")


# 2. The config is the object.


def test_every_config_is_frozen_and_refuses_unknown_keys() -> None:
    for family, name in members():
        find_class(family, name)
    all_jobs()
    found = [cls for cls in subclasses(Config) if cls.__module__.split(".")[0] in PACKAGES]
    assert {"BestOfN", "Scripted", "Synthesize", "Train", "Lora", "Sampling", "Dpo"} <= {cls.__name__ for cls in found}
    for cls in found:
        assert cls.model_config.get("frozen") is True, cls
        assert cls.model_config.get("extra") == "forbid", cls


def test_no_config_class_stands_beside_a_class() -> None:
    """`Config` itself is the only class whose name ends so."""
    found = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in sources(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config")
    ]
    assert found == ["counterfoil/config.py: Config"]


@pytest.mark.parametrize(("family", "name"), members())
def test_a_member_is_dumped_and_built_back(family: type[Choice], name: str, tmp_path: Path) -> None:
    cls = find_class(family, name)
    member = build(cls, fill(cls, tmp_path), source="test")
    plain = dump(member)
    assert plain["name"] == name
    assert json.loads(json.dumps(plain)) == plain
    assert build(family, plain, source="test") == member


def test_a_job_is_dumped_and_built_back(tmp_path: Path) -> None:
    for cls in all_jobs():
        job = build(cls, fill(cls, tmp_path), source="test")
        assert build(cls, json.loads(json.dumps(dump(job))), source="test") == job


# 3. YAML holds choices, classes hold defaults.


def config_files() -> list[Path]:
    return [path for path in sorted((ROOT / "configs").rglob("*.*")) if path.parent.name != "accelerate"]  # its own


def depth(value: Any) -> int:
    """Count the levels of mappings and lists under a value: 0 for a plain one."""
    inner = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


def test_all_configs_are_found_by_name() -> None:
    """As many as git would commit, and nothing but YAML in a folder of a verb."""
    which = ["configs", ":!configs/accelerate"]
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", *which]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        assert len([line for line in listed.stdout.split("\n") if line]) == len(config_files())
    assert sorted(list_configs().values()) == config_files()
    assert {key.split("/")[0] for key in list_configs()} <= {folder for _, folder in VERBS.values()}


@pytest.mark.parametrize("path", config_files(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_loads_and_is_short(path: Path, tmp_path: Path) -> None:
    """At most 25 lines after the header, at most two levels below the top, no number that YAML takes for a text."""
    verb = next(verb for verb, (_, folder) in VERBS.items() if folder == path.parent.name)
    lines = path.read_text(encoding="utf-8").splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert lines[0].startswith("# ")
    assert f"counterfoil {verb} {path.stem}" in "\n".join(header), "the header says the command"
    assert len(lines) - len(header) <= 25
    values = yaml.safe_load("\n".join(lines))
    assert depth(values) - 1 <= 2
    assert [text for text in texts(values) if re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", text)] == []
    usual = load_job_class(verb, values)
    absent = {name: value for name, value in fill(usual, tmp_path).items() if name not in values}
    job, used = load_config(verb, str(path), [f"{key}={json.dumps(value)}" for key, value in absent.items()])
    assert type(job) is usual
    assert len(used) == len(absent)


def load_job_class(verb: str, values: dict[str, Any]) -> type[Job | Service]:
    module = importlib.import_module(
        f"{VERBS[verb][0].split('.')[0]}.{values['job']}" if "job" in values else VERBS[verb][0]
    )
    return getattr(module, module.__name__.rsplit(".", 1)[1].capitalize())


# 4. Capabilities before weight: tests/test_capabilities.py.
# 5. Nothing is silently lost: tests/synth/test_synthesize.py and tests/decode/test_generate.py count it.
# 6. A run is a folder: tests/counterfoil/test_job.py.


def small(**changes: Any) -> Synthesize:
    values: dict[str, Any] = {
        "task": {"name": "constraints", "count": 3},
        "engine": "scripted",
        "recipe": {"name": "best_of_n", "n": 2},
    }
    return build(Synthesize, values | changes, source="test")


def test_a_run_is_a_folder(tmp_path: Path) -> None:
    """The second run changes no file; the manifest says all that law 6 asks for."""
    first = small().run(tmp_path / "run", quiet=True, overrides=("seed=0",))
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    again = small().run(tmp_path / "run", quiet=True)
    assert (first.fresh, again.fresh) == (True, False)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == stamps
    manifest = read_manifest(tmp_path / "run")
    assert manifest == again.manifest
    assert {
        "config", "overrides", "git", "versions", "model", "seeds", "inputs", "outputs", "counts", "tokens", "seconds",
    } <= set(again.manifest)  # fmt: skip
    assert again.manifest["overrides"] == ["seed=0"]
    assert again.manifest["outputs"]["prompts.jsonl"]["num_lines"] == 3
    with pytest.raises(RunError, match=r"differs in: seed\)"):
        small(seed=1).run(tmp_path / "run", quiet=True)


# 7. Four-part errors.


@pytest.mark.parametrize("cls", [CounterfoilError, *subclasses(CounterfoilError)])
def test_an_error_has_four_parts_and_survives_pickling(cls: type[CounterfoilError]) -> None:
    error = cls("a.b", given="1", allowed="0", do="Say 0.")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert (back.where, back.given, back.allowed, back.do) == ("a.b", "1", "0", "Say 0.")
    assert str(back) == "a.b: 1\n  allowed: 0\n  do: Say 0."


def test_the_errors_are_the_drawn_tree() -> None:
    assert {cls.__name__ for cls in subclasses(CounterfoilError) if cls.__module__ == "counterfoil.errors"} == {
        cls.__name__ for cls in (ConfigError, InputError, EngineError, RunError)
    }


def test_a_users_mistake_shows_no_traceback_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["synth", "quikstart"], ["synth", "quickstart", "recipe.margn=1"], ["show", "no/such.yaml"]):
        assert main(words) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "Traceback" not in shown.err
        assert [line.split(":")[0].strip() for line in shown.err.splitlines()] == ["error", "allowed", "do"]
        for debug in ([*words, "--debug"], ["--debug", *words]):
            assert main(debug) == 2
            assert "Traceback" in capsys.readouterr().err


# 8. Test doubles are products: tests/decode/test_scripted.py.
# 9. Every method names its source.


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sources("synth/recipes", "align/objectives", "align/embedding", "decode/methods")
        if path.name != "__init__.py"
    ],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_a_method_names_its_source_and_its_differences(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert "Source:" in text
    assert re.search(r"\bDifferences\b", text)


# 10. Sizes.


def test_files_and_functions_are_short() -> None:
    """A file stops at 400 lines, a function at 60."""
    long: list[str] = []
    for path in sources(*PACKAGES, "tests", "benchmarks"):
        text = path.read_text()
        if text.count("\n") > 400:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                num_lines = node.end_lineno - node.lineno + 1
                if num_lines > 60:
                    long.append(f"{path.relative_to(ROOT)}: {node.name}: {num_lines} lines")
    assert long == []


def test_no_file_is_called_after_nothing() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert [str(path) for path in sources(*PACKAGES, "tests", "benchmarks") if path.stem in vague] == []


def test_help_answers_at_once() -> None:
    """Under 0.3 s, or eight starts of a bare interpreter where the machine is busy; best of three."""
    took: list[float] = []
    bare: list[float] = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare.append(time.monotonic() - started)
        started = time.monotonic()
        shown = subprocess.run([sys.executable, "-m", "counterfoil", "--help"], capture_output=True, text=True)
        took.append(time.monotonic() - started)
        assert shown.returncode == 0
        assert all(verb in shown.stdout for verb in (*VERBS, "show", "runs", "doctor"))
    assert min(took) < max(0.3, 8 * min(bare))


HEAVY = "{'torch', 'pydantic', 'transformers', 'vllm', 'datasets', 'trl', 'numpy', 'scipy'}"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import counterfoil.cli", HEAVY),
        # A synthesis with the double needs pydantic and no model's library.
        ("import synth.synthesize, counterfoil.pipeline", HEAVY.replace("'pydantic', ", "")),
    ],
)
def test_nothing_heavy_is_imported_early(code: str, heavy: str) -> None:
    code = f"import sys; {code}; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_arrow() -> None:
    """The contracts of pyproject.toml, kept by import-linter."""
    tool = Path(sys.executable).with_name("lint-imports")
    shown = subprocess.run([str(tool), "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stdout + shown.stderr
