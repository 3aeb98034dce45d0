"""Exports: every config of the data set loads offline, and the card states what the run knows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from counterfoil.cli import main
from counterfoil.errors import InputError
from counterfoil.export import export_run
from counterfoil.job import read_manifest
from counterfoil.records import Answer, Comparison, Dropped, Group, Prompt, Record, Span, Triplet


def write_records(path: Path, *records: Record) -> None:
    path.write_text("".join(record.model_dump_json() + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def run(synth_yaml: Callable[..., Path], tmp_path: Path) -> Path:
    """A synthesis of three pairs, with what a judge, a filter and another recipe would have left put beside."""
    assert main(["synth", str(synth_yaml(4, fail_when="no3")), "--to", "run", "--quiet", "--brief"]) == 0
    folder = tmp_path / "run"
    verdicts: list[tuple[Any, Any]] = [("first", "first"), ("first", "second"), ("tie", "tie")]
    write_records(
        folder / "comparisons.jsonl",
        *(
            Comparison(
                id=f"{at}",
                prompt_id="p",
                judge="judge",
                completion_ids=("a", "b"),
                chars=(5, 9),
                forward=one,
                backward=two,
            )
            for at, (one, two) in enumerate(verdicts)
        ),
    )
    triplet = Triplet.make("a", "b", "c", prompt_id="p", recipe="retrieval")
    write_records(folder / "triplets.jsonl", triplet.model_copy(update={"shares": {"b": 0.75, "d": 0.25}}))
    write_records(folder / "instructions.jsonl", Prompt.make("new", reference={"gold": 1}, tags={"seed": "s"}))
    write_records(folder / "refused.jsonl", Dropped(id="x", stage="overlap", reason="a | b `c` <script>"))
    span = Span(start=0, stop=1, label="entity")
    marked = Answer(text="x", spans=(span,), prompt=Prompt.make("other").messages)
    with (folder / "groups.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(Group.make("a text", [marked], reference={"gold": [1, "two"]}).model_dump_json() + "\n")
    return folder


def read_manifest_of(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def test_every_config_loads_offline(run: Path, tmp_path: Path) -> None:
    from datasets import get_dataset_config_names, load_dataset

    out = str(export_run(run, read_manifest_of(run), kind="hub-folder", to=tmp_path / "out"))
    assert get_dataset_config_names(out) == ["pairs", "triplets", "groups", "comparisons", "instructions"]
    tables: dict[str | None, Any] = {
        name: load_dataset(out, name, split="train", cache_dir=str(tmp_path / "cache"))
        for name in (None, "triplets", "groups", "comparisons", "instructions")
    }
    pairs = [json.loads(line) for line in (run / "pairs.jsonl").read_text().splitlines()]
    assert tables[None].to_list() == pairs
    assert tables["triplets"][0]["negative"] == "c"
    assert tables["triplets"][0]["shares"] == [{"text": "b", "weight": 0.75}, {"text": "d", "weight": 0.25}]
    assert [row["backward"] for row in tables["comparisons"]] == ["first", "second", "tie"]
    (instruction,) = tables["instructions"].to_list()
    assert instruction["messages"] == [{"role": "user", "content": "new"}]
    assert (json.loads(instruction["reference"]), json.loads(instruction["tags"])) == ({"gold": 1}, {"seed": "s"})
    groups = tables["groups"].to_list()
    assert len(groups) == 4
    assert sorted(item["score"] for item in groups[0]["answers"]) == [0.0, 1.0]
    assert groups[3]["prompt"] == [{"role": "text", "content": "a text"}]
    assert groups[3]["answers"][0]["spans"] == [{"start": 0, "stop": 1, "label": "entity"}]
    assert json.loads(groups[3]["answers"][0]["prompt"])[0]["content"] == "other"
    assert json.loads(groups[3]["reference"]) == {"gold": [1, "two"]}


def test_the_card_states_all_of_it(run: Path, tmp_path: Path) -> None:
    """Of three comparisons two hold in both orders; of three pairs, whose chosen answer has 4 words, none is longer."""
    manifest = read_manifest_of(run)
    export_run(run, manifest, kind="hub-folder", to=tmp_path / "out")
    _, front, card = (tmp_path / "out/README.md").read_text(encoding="utf-8").split("---\n", 2)
    head = yaml.safe_load(front)
    names = ["pairs", "triplets", "groups", "comparisons", "instructions"]
    assert [item["config_name"] for item in head["configs"]] == names
    assert head["configs"][0]["default"] is True
    assert head["license"] == "other"
    for words in (
        'load_dataset("REPO_OR_FOLDER", "groups", split="train")', "| recipe | best\\_of\\_n |",
        f"| fingerprint | {manifest['model']} |", "| scorer | of the task file |", "near\\_duplicate, length\\_only",
        "| generate: request failed | 1 | 0 |", "| overlap: a \\| b \\`c\\` \\<script> | 0 | 1 |",
        "| margin of a pair | 3 | 1 | 1 | 1 | 1 | 1 |", "is the longer one in 0.0 % [0.0 to 56.1], 0 of 3",
        "| same verdict in both orders | 66.7 % \\[20.8 to 93.9\\], 2 of 3 |", "| whichever was shown first | 33.3 %",
        "Overlap with evaluation sets was not looked for.", "| answer | main | 3 | 6 |", "state yours here",
    ):  # fmt: skip
        assert words in card, words


def test_what_a_user_writes_does_not_end_the_configs_block(run: Path, tmp_path: Path) -> None:
    manifest = read_manifest_of(run)
    manifest["config"] = manifest["config"] | {"note": "```\n# not a heading\n````"}
    export_run(run, manifest, kind="hub-folder", to=tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "\n`````yaml\n" in card
    assert card.split("\n`````yaml\n")[1].split("\n`````")[0].count("not a heading") == 1


def test_parquet_is_the_pairs_alone(run: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    to = export_run(run, read_manifest_of(run), kind="parquet", to=tmp_path / "out")
    assert [path.name for path in to.iterdir()] == ["train-00000-of-00001.parquet"]
    assert pq.read_table(to / "train-00000-of-00001.parquet").num_rows == 3


def test_another_runs_export_is_not_mixed_with_this_one(run: Path, tmp_path: Path) -> None:
    """What was left there would be pushed with it; the same run's own export is written anew."""
    for _ in range(2):
        export_run(run, read_manifest_of(run), kind="hub-folder", to=tmp_path / "out")
    (tmp_path / "out" / "completions").mkdir()
    with pytest.raises(InputError, match="another export's completions"):
        export_run(run, read_manifest_of(run), kind="hub-folder", to=tmp_path / "out")


def test_answers_are_exported(tmp_path: Path) -> None:
    from datasets import load_dataset

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Say one"}) + "\n")
    words = [f"prompts={prompts}", "engine=scripted", "--to", "answers", "--quiet", "--brief"]
    assert main(["decode", "answer", *words]) == 0
    assert main(["show", "answers", "--export", "hub-folder"]) == 0
    rows: Any = load_dataset("answers/export", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows[0]["text"] == "Reply 0 to: Say one"


def test_a_synthesis_says_how_to_see_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "run"]) == 0
    assert "counterfoil eval synthesis parts=run" in capsys.readouterr().out


def test_a_broken_line_or_no_record_is_an_error(run: Path, tmp_path: Path) -> None:
    with (run / "pairs.jsonl").open("a") as stream:
        stream.write("{torn\n")
    with pytest.raises(InputError, match="broken JSON"):
        export_run(run, read_manifest_of(run), kind="parquet", to=tmp_path / "out")
    for name in ("pairs", "triplets", "groups", "comparisons", "instructions"):
        (run / f"{name}.jsonl").unlink()
    with pytest.raises(InputError, match="a run without pairs"):
        export_run(run, read_manifest_of(run), kind="parquet", to=tmp_path / "out")
