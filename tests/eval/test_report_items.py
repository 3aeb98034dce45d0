"""The report's browser of groups and triplets: each text with its role, score and marks, and hostile text as text."""

import base64
import hashlib
import html
import json
import re
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from counterfoil.records import Answer, Group, Prompt, Record, Span, Triplet
from eval.report import render_report
from eval.report_items import find_kind

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
TEXT = f"a\u202e\U0001f600 the wrong year {HOSTILE}"


def write_run(folder: Path, **records: list[Record]) -> Path:
    folder.mkdir()
    for name, rows in records.items():
        (folder / f"{name}.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps({"job": "synthesize", "state": "done", "config": {}}))
    return folder


def make_groups() -> tuple[list[Record], list[Record]]:
    """Return prompts and a group on each: one with a marked answer, one of three of which one answers another prompt."""
    prompts = [Prompt.make(f"Question {at}", reference={"answer": "4"}, tags={"set": f"s{at}"}) for at in range(2)]
    start = TEXT.index("wrong")
    marked = [
        Answer(text="the right year", role="chosen", score=1.0),
        Answer(text=TEXT, role="rejected", score=0.25, spans=(Span(start=start, stop=start + 10, label="number"),)),
    ]
    other = Prompt.make("Were it otherwise").messages
    three = [
        Answer(text="It is 4", score=0.9, final="4"),
        Answer(text="It is 5", score=0.1, final="5", prompt=other),
        Answer(text="It was", is_cut=True),
    ]
    answers = (marked, three)
    groups = [
        Group.make(prompt.messages, given, reference=prompt.reference)
        for prompt, given in zip(prompts, answers, strict=True)
    ]
    return [*prompts], [*groups]


def make_triplets() -> list[Record]:
    stub = {"prompt_id": "p", "recipe": "retrieval"}
    one = Triplet.make("a query", "near text", f"far {HOSTILE}", **stub)
    pooled = Triplet.make("another query", "heavy", **stub).model_copy(
        update={"shares": {"light": 0.25, "heavy": 0.75}}
    )
    return [one, pooled]


def unpack(page: str) -> tuple[list[Any], dict[str, Any]]:
    def read(pattern: str) -> list[Any]:
        found = re.findall(rf'<script type="text/plain" {pattern}-1">([^<]*)</script>', page)
        return [json.loads(zlib.decompress(base64.b64decode(text))) for text in found]

    (packed,) = read('id="fields')
    return [row for rows in read('data-of="items') for row in rows], {item["name"]: item for item in packed["fields"]}


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    prompts, made = make_groups()
    return write_run(tmp_path / "groups", prompts=prompts, groups=made)


def test_a_group_is_shown_with_all_that_is_known_of_its_answers(groups: Path) -> None:
    rows, fields = unpack(render_report({"run": groups}, title="t"))
    assert [side[:2] for side in rows[0][2]] == [["chosen", 1.0], ["rejected", 0.25]]
    _, _, text, note, ends = rows[0][2][1]
    assert text.encode("utf-16-le")[2 * ends[0] : 2 * ends[1]].decode("utf-16-le") == "wrong year"  # as a script cuts
    assert note == "marked: number"
    assert rows[1][2] == [
        ["answer", 0.9, "It is 4", "comes to 4", []],
        ["answer", 0.1, "It is 5", "comes to 5; an answer to: Were it otherwise", []],
        ["answer", None, "It was", "cut off", []],
    ]
    assert fields["answers"]["numbers"] == [2, 3]
    assert fields["highest score"]["numbers"] == [1.0, 0.9]
    assert fields["marked pieces"]["numbers"] == [1, 0]
    assert fields["tag: set"]["values"] == ["", "s0", "s1"]


def test_pooled_positives_are_one_triplet_the_heaviest_first(tmp_path: Path) -> None:
    page = render_report({"run": write_run(tmp_path / "run", triplets=make_triplets())}, title="t")
    rows, fields = unpack(page)
    assert rows[0][1:] == ["a query", [["positive", None, "near text"], ["negative", None, f"far {HOSTILE}"]]]
    weighed = [["positive", None, "heavy", "weight 0.750", []], ["positive", None, "light", "weight 0.250", []]]
    assert rows[1][2] == weighed
    assert fields["words of the negative"]["numbers"] == [len(f"far {HOSTILE}".split()), None]
    assert "<h2>Triplets of run</h2>" in page
    assert '<option value="prompt">anchors</option>' in page


def test_pairs_go_before_the_groups_that_they_are_made_of(groups: Path) -> None:
    assert find_kind(groups).name == "groups"
    (groups / "pairs.jsonl").write_text("")
    assert find_kind(groups).name == "groups"
    (groups / "pairs.jsonl").write_text("{}\n")
    assert find_kind(groups).name == "pairs"


PROBE = """
const find = (name) => document.querySelector(`[data-role=${name}]`);
const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));
const type = async (box, value) => {
  box.value = value;
  box.dispatchEvent(new Event("input"));
  await pause(900);
};
const seen = [];
const look = () => {
  const marks = [...document.querySelectorAll("mark")].map((box) => box.textContent);
  const labels = [...document.querySelectorAll(".sides .label")].map((box) => box.textContent);
  const tones = [...document.querySelectorAll(".sides > div")].map((box) => box.className);
  seen.push([find("status").textContent, marks, labels, tones]);
};
(async () => {
  while (!document.querySelector("[data-browser]").dataset.ready) await pause(50);
  look();
  await type(find("search"), "OTHERWISE"); look();
  await type(find("where"), "prompt"); look();
  seen.push(document.title);
  document.title = JSON.stringify(seen);
})();
"""


def probe(folder: Path, browse: Callable[[Path], subprocess.CompletedProcess[str]]) -> list[Any]:
    page = render_report({"run": folder}, title="Items")
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    probed = page.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    path = folder / "report.html"
    path.write_text(probed.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    done = browse(path)
    assert not [line for line in done.stderr.splitlines() if re.search("CONSOLE|Refused|violates", line)]
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    return json.loads(html.unescape(title[1]))


@pytest.mark.slow
def test_a_browser_marks_pieces_and_seeks_in_notes(
    groups: Path, browse: Callable[[Path], subprocess.CompletedProcess[str]]
) -> None:
    """The labelled piece is marked in the first group; in the second the words that the first answer lacks."""
    first, sought, nothing, title = probe(groups, browse)
    assert first[0] == "2 of 2 groups, page 1 of 1"
    assert first[1] == ["wrong year", "5", "was"]
    assert first[2] == [
        "chosen, score 1",
        "rejected, score 0.25, marked: number",
        "answer, score 0.9, comes to 4",
        "answer, score 0.1, comes to 5; an answer to: Were it otherwise",
        "answer, cut off",
    ]
    assert sought[0] == "1 of 2 groups, page 1 of 1"
    assert nothing[0] == "0 of 2 groups, page 1 of 1"
    assert title == "Items"


@pytest.mark.slow
def test_a_browser_shows_triplets_without_marks(
    tmp_path: Path, browse: Callable[[Path], subprocess.CompletedProcess[str]]
) -> None:
    first, *_, title = probe(write_run(tmp_path / "run", triplets=make_triplets()), browse)
    assert first[1] == []
    assert first[2] == ["positive", "negative", "positive, weight 0.750", "positive, weight 0.250"]
    assert first[3] == ["chosen", "rejected", "chosen", "chosen"]
    assert title == "Items"
