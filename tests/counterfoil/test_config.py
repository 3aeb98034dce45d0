"""Configs: names, paths inside an error, overrides, broken files."""

from pathlib import Path
from typing import Any

import pytest

from counterfoil.config import apply_override, build, dump, find_config, fingerprint, parse_override, read_yaml
from counterfoil.errors import ConfigError
from counterfoil.verbs import load_job
from decode.engine import Sampling
from decode.generate import Generate
from eval.evaluate import Evaluate
from synth.synthesize import Synthesize


def refuse(cls: Any, values: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        build(cls, values, source="x.yaml")
    return raised.value


def test_a_misspelt_key_is_told_apart_with_its_path() -> None:
    error = refuse(Synthesize, {"recipe": {"name": "best_of_n", "margn": 1}})
    assert error.where == "x.yaml: recipe.margn"
    assert error.given == "BestOfN has no field 'margn'"
    fields = "against, greedy, margin, max_length_gap, max_new_tokens, max_pairs, min_p, n, policies, temperature, ties"
    assert error.allowed == f"fields: {fields}"
    assert error.do == "Did you mean 'margin'? Fix the name or remove the line."


def test_a_key_like_no_field_is_to_be_removed() -> None:
    error = refuse(Synthesize, {"zzz": 1})
    assert (error.where, error.do) == ("x.yaml: zzz", "Remove the line.")


def test_a_path_leads_through_nested_families() -> None:
    error = refuse(Synthesize, {"task": {"name": "file", "scoring": {"name": "verifiable", "min_distinct": 2}}})
    assert error.where == "x.yaml: task.scoring.min_distinct"
    assert "given 2" in error.given
    assert "1" in error.allowed


@pytest.mark.parametrize(
    ("values", "where", "do"),
    [
        ({"recipe": "best_of_m"}, "x.yaml: recipe", "Did you mean 'best_of_n'?"),
        ({"engine": "zzz"}, "x.yaml: engine", "Use one of these names."),
        ({"engine": "nowhere_at_all.engine"}, "x.yaml: engine", "Install it, or fix the name."),
        ({"engine": {"replies": []}}, "x.yaml: engine", "Give the name of one: `name: ...`."),
        ({"engine": 3}, "x.yaml: engine", "Give the name of one: `name: ...`."),
        ({"filters": ["length_only", "zzz"]}, "x.yaml: filters.1", "Use one of these names."),
    ],
)
def test_a_name_that_is_none_lists_the_family(values: dict[str, Any], where: str, do: str) -> None:
    error = refuse(Synthesize, values)
    assert (error.where, error.do) == (where, do)
    assert error.allowed.startswith("one of ")
    assert error.allowed.endswith("or a module of yours with a dot in its name")


def test_a_module_without_the_class_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config_user").mkdir()
    (tmp_path / "config_user" / "__init__.py").write_text("")
    (tmp_path / "config_user" / "odd_one.py").write_text("OddOne = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    error = refuse(Synthesize, {"engine": "config_user.odd_one"})
    assert "config_user.odd_one has no class OddOne" in error.given
    assert error.allowed == "a Engine"


def test_a_missing_field_is_to_be_added() -> None:
    error = refuse(Generate, {})
    assert (error.where, error.given, error.do) == ("x.yaml: prompts", "Field required", "Add it.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=1", ("seed", 1)),
        ("recipe.margin=0.3", ("recipe.margin", 0.3)),
        ("model=./folder", ("model", "./folder")),
        ("model=a=b", ("model", "a=b")),
        ("plain_text=false", ("plain_text", False)),
        ('engine={"name": "hf"}', ("engine", {"name": "hf"})),
        ("engine={name: hf, threads: [1, 2]}", ("engine", {"name": "hf", "threads": [1, 2]})),
        ("question={question}", ("question", "{question}")),
        ("question={a}: {b}", ("question", "{a}: {b}")),
        ("question={a: 1", ("question", "{a: 1")),
        ("learning_rate=5e-7", ("learning_rate", 5e-7)),
        ("adapter=null", ("adapter", None)),
        ("model=", ("model", "")),
    ],
)
def test_an_override_is_json_else_a_text(text: str, expected: tuple[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["seed", "=1", " =1"])
def test_an_override_without_a_key_or_sign_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="command line"):
        parse_override(text)


def changed(cls: Any, values: dict[str, Any], key: str, value: Any) -> Any:
    apply_override(values, key, value, cls=cls)
    return build(cls, values, source="test")


def test_an_override_changes_a_default_and_nothing_beside_it() -> None:
    """Evaluate's own default is 128 new tokens where Sampling's is 256; its task stays `constraints`."""
    job = changed(Evaluate, {}, "sampling.temperature", 0.5)
    assert job.sampling == Sampling(temperature=0.5, max_new_tokens=128)
    assert dump(changed(Evaluate, {}, "task.count", 7).task)["count"] == 7
    assert changed(Synthesize, {}, "recipe.margin", 0.3).recipe.margin == 0.3


def test_an_override_reaches_a_default_inside_a_choice() -> None:
    """The file task's scorer is left out, in three ways of giving the task."""
    for values in ({"task": {"name": "file"}}, {"task": {"name": "file", "scoring": "verifiable"}}):
        apply_override(values, "task.scoring", {"name": "verifiable", "min_distinct": 0.1}, cls=Synthesize)
        assert dump(build(Synthesize, values, source="test").task)["scoring"]["min_distinct"] == 0.1


def test_an_override_swaps_a_node_and_then_changes_it() -> None:
    """What the YAML said of another engine does not stay behind."""
    values: dict[str, Any] = {"engine": {"name": "vllm", "seed": 3}}
    apply_override(values, "engine", "scripted", cls=Synthesize)
    apply_override(values, "engine.latency_s", 0.5, cls=Synthesize)
    assert values["engine"] == {"name": "scripted", "latency_s": 0.5}
    assert build(Synthesize, values, source="test").engine.latency_s == 0.5


def test_an_override_never_changes_what_was_given() -> None:
    inner = {"name": "best_of_n", "n": 3}
    values: dict[str, Any] = {"recipe": inner}
    apply_override(values, "recipe.margin", 0.1, cls=Synthesize)
    assert inner == {"name": "best_of_n", "n": 3}


def test_a_job_takes_a_list_with_commas_and_swaps_its_objective(tmp_path: Path) -> None:
    job, used = load_job("synth", "quickstart", ["filters=length_only,near_duplicate"])
    assert [dump(item)["name"] for item in job.filters] == ["length_only", "near_duplicate"]
    assert used == ["filters=length_only,near_duplicate"]
    job, _ = load_job("synth", "quickstart", ["recipe=flaw", "recipe.kinds=number,negation"])
    assert job.recipe.kinds == ("number", "negation"), "of the member that was named, not of the default"
    for text in ("q_proj,v_proj", "[q_proj,v_proj]", '["q_proj","v_proj"]'):
        job, _ = load_job("align", "quickstart", ["data=x.jsonl", f"lora.targets={text}"])
        assert job.lora.targets == ("q_proj", "v_proj")
    job, _ = load_job("align", "quickstart", ["data=x.jsonl", "objective=dpo", "objective.beta=0.2"])
    assert job.objective.beta == 0.2


def test_where_an_override_is_wrong_it_is_named() -> None:
    with pytest.raises(ConfigError) as raised:
        load_job("synth", "quickstart", ["recipe.n=0"])
    assert raised.value.where == "quickstart.yaml + recipe.n=0: recipe.n"


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("a: [1", "while parsing"),
        ("- a\n- b\n", "list"),
        ("word", "str"),
        ("a: 1\na: 2\n", "given twice"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_a_broken_yaml_is_refused(text: str, given: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml") as raised:
        read_yaml(path)
    assert given in raised.value.given


def test_bytes_that_are_no_text_are_refused_and_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        read_yaml(path)
    path.write_text("# nothing but a comment\n")
    assert read_yaml(path) == {}


def test_an_unknown_config_is_answered_with_a_likely_one() -> None:
    with pytest.raises(ConfigError) as raised:
        find_config("quikstart", "synth")
    assert raised.value.do == "Did you mean 'quickstart'?"
    assert "quickstart" in raised.value.allowed
    with pytest.raises(ConfigError, match="no such file"):
        find_config("no/such.yaml", "synth")
    assert find_config("quickstart", "synth").is_file()


@pytest.mark.parametrize("job", ["zzz", 3, "scorer", "a.b"])
def test_a_job_that_is_none_is_refused(job: Any, tmp_path: Path) -> None:
    """`scorer` is a module of eval, without a job."""
    path = tmp_path / "x.yaml"
    path.write_text(f"job: {job}\n")
    with pytest.raises(ConfigError, match="job"):
        load_job("eval", str(path), [])


def test_a_fingerprint_is_of_the_values() -> None:
    """A default written out is the default; another value is another config."""
    plain = build(Synthesize, {}, source="test")
    assert fingerprint(build(Synthesize, {"seed": 0, "recipe": "best_of_n"}, source="test")) == fingerprint(plain)
    assert fingerprint(build(Synthesize, {"seed": 1}, source="test")) != fingerprint(plain)
    assert len(fingerprint(plain)) == 16
