"""The report of a synthesis: what a run left is joined and shown, and hostile text stays text in a real browser."""

import base64
import hashlib
import html
import html.parser
import json
import re
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from counterfoil.config import build
from counterfoil.errors import InputError
from counterfoil.records import Completion, Exchange, Pair, Prompt, Record
from decode.embedders.sentence_transformers import SentenceTransformers
from eval.report import Report, render_report
from eval.report_topics import map_topics, name_topic

ATTACKS = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\"><svg onload=\"document.title='owned'\">",
    "<a href=\"javascript:document.title='owned'\">link</a> [link](javascript:document.title='owned')",
    "a\u2028b\u2029c\u202ed\u2066e\u200ff\x00g",
)
HOSTILE = " ".join(ATTACKS)
GOOD, BAD, OTHER = f"Good {HOSTILE}", f"Bad {HOSTILE} with a longer end", "Neither of them"


def write_lines(path: Path, *rows: Any) -> Path:
    texts = (row.model_dump_json() if isinstance(row, Record) else json.dumps(row) for row in rows)
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def make_run(folder: Path, num_prompts: int) -> Path:
    """Leave what a synthesis leaves: each prompt has three answers, judged in both orders, the third in no pair.

    The judge finds the good answer in either order; of the two others it prefers the one that it sees first.
    """
    prompts, exchanges, pairs, scores, comparisons = [], [], [], [], []
    for number in range(num_prompts):
        prompt = Prompt.make(
            f"Prompt {number} {HOSTILE}", reference={"gold": HOSTILE}, tags={"topic": f"topic {number % 3}"}
        )
        found = [
            Completion.make(
                prompt_id=prompt.id, index=at, text=text, finish_reason="stop", num_prompt_tokens=9, num_tokens=4
            )
            for at, text in enumerate((BAD, GOOD, OTHER))
        ]
        bad, good, other = found
        prompts.append(prompt)
        exchanges.append(Exchange(prompt_id=prompt.id, step="answer", sent=prompt.messages, completions=tuple(found)))
        asked = ({"role": "user", "content": f"Which is better? {GOOD}"},)
        verdict = Completion.make(
            prompt_id=prompt.id, index=3, text=f"A {HOSTILE}", finish_reason="length", num_prompt_tokens=5, num_tokens=2
        )
        exchanges.append(
            Exchange(prompt_id=prompt.id, step="compare", role="judge", sent=asked, completions=(verdict,))
        )
        margin = 1 + number / 100
        pairs.append(Pair.make(prompt, good, bad, scores=(margin, 0.0), recipe="best_of_n"))
        scores += [{"completion_id": good.id, "scorer": "pairwise", "value": margin, "detail": {"why": HOSTILE}}]
        for one, two, forward, backward in ((bad, good, "second", "second"), (bad, other, "first", "second")):
            comparisons.append(
                {"id": one.id, "prompt_id": prompt.id, "judge": "judge", "completion_ids": [one.id, two.id]}
                | {"chars": [len(one.text), len(two.text)], "forward": forward, "backward": backward}
            )
    folder.mkdir()
    named = {"prompts": prompts, "exchanges": exchanges, "pairs": pairs, "scores": scores, "comparisons": comparisons}
    for name, rows in named.items():
        write_lines(folder / f"{name}.jsonl", *rows)
    write_lines(folder / "dropped.jsonl", {"id": "d", "stage": "contrast", "reason": "a tie", "detail": HOSTILE})
    write_lines(folder / "refused.jsonl", *[{"id": "r", "stage": "overlap", "reason": "shares words"}] * 3)
    manifest = {
        "job": "synthesize", "state": "done", "started": "2026-01-01", "seconds": 10,
        "config": {"filters": [{"name": "overlap"}]},
        "counts": {"read": num_prompts + 1, "kept": num_prompts, "dropped": {"contrast: a tie": 1}},
        "tokens": {"prompt": 14 * num_prompts, "generated": 14 * num_prompts},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


class Held(NamedTuple):
    """What a page holds, unpacked."""

    index: dict[str, Any]
    fields: dict[str, dict[str, Any]]
    places: list[int]
    pairs: list[Any]
    dialogues: list[Any]


def unpack(page: str) -> Held:
    def read(pattern: str) -> list[Any]:
        found = re.findall(rf'<script type="text/plain" {pattern}-1">([^<]*)</script>', page)
        return [json.loads(zlib.decompress(base64.b64decode(text))) for text in found]

    index = re.search(r'id="index-1">([^<]*)<', page)
    assert index is not None
    (packed,) = read('id="fields')
    fields = {item["name"]: item for item in packed["fields"]}
    pairs, dialogues = ([row for rows in read(f'data-of="{name}') for row in rows] for name in ("items", "dialogues"))
    return Held(json.loads(index[1]), fields, packed["dialogues"], pairs, dialogues)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("synth") / "run", 30)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return render_report({"run": run}, title="A synthesis")


def read_text(page: str) -> str:
    """Return what a person reads: without tags, spaces as one."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_each_pair_leads_to_all_that_was_sent_and_came_back(page: str) -> None:
    held = unpack(page)
    assert held.index == {"num": 30, "kind": "pairs", "marks": True, "items": [0], "dialogues": [0]}
    assert held.places == [*range(30)]
    _, prompt, ((name, score, chosen), _) = held.pairs[7]
    assert (name, score) == ("chosen", 1.07)
    assert prompt.startswith("Prompt 7 </script>")
    assert chosen == GOOD.translate({ord(c): f"<U+{ord(c):04X}>" for c in "\u2028\u2029\u202e\u2066\u200f\x00"})
    asked, judged = held.dialogues[7]["asked"]
    assert asked[:3] == ["answer", "", [["user", prompt]]]
    assert [(reply[0], reply[2], reply[3]) for reply in asked[3]] == [(0, "stop", 4), (1, "stop", 4), (2, "stop", 4)]
    assert asked[3][1][1] == chosen
    assert asked[3][1][4][0][:2] == ["pairwise", 1.07]
    assert "owned" in asked[3][1][4][0][2]
    assert judged[:2] == ["compare", "judge"]
    assert judged[3][0][2] == "length"
    assert held.dialogues[7]["verdicts"] == [["judge", 0, 1, "second", "second"], ["judge", 0, 2, "first", "second"]]
    assert "owned" in held.dialogues[7]["reference"]


def test_evaluation_sets_are_looked_for_in_the_kept_pairs(run: Path, tmp_path: Path) -> None:
    """Two of thirty prompts begin as texts of one do; every chosen answer begins as a text of the other."""
    asked = [json.loads(line)["prompt"][0]["content"] for line in (run / "pairs.jsonl").read_text().split("\n") if line]
    third, fifth, good = (" ".join(re.findall(r"\w+", text)[:12]) for text in (asked[3], asked[5], GOOD))
    write_lines(tmp_path / "known.jsonl", {"question": third}, {"deep": [{"text": fifth}]})
    write_lines(tmp_path / "answers.jsonl", {"text": good})
    sets = [tmp_path / "known.jsonl", tmp_path / "answers.jsonl"]
    text = read_text(render_report({"run": run}, title="A synthesis", sets=sets))
    assert "pairs whose prompt shares words with an evaluation set 2 " in text
    assert "pairs whose chosen shares words with an evaluation set 30 " in text
    assert "pairs whose rejected shares words with an evaluation set 0 " in text
    (tmp_path / "known.jsonl").write_text("{torn\n")
    with pytest.raises(InputError, match=r"sets: .*known\.jsonl"):
        render_report({"run": run}, title="A synthesis", sets=sets)


def test_every_field_can_be_filtered_by(page: str) -> None:
    fields = unpack(page).fields
    assert fields["margin"]["numbers"][7] == 1.07
    topics = fields["tag: topic"]
    assert [topics["values"][code] for code in topics["codes"][:4]] == ["topic 0", "topic 1", "topic 2", "topic 0"]
    words = [
        fields[f"words {name}"]["numbers"][0] for name in ("of the chosen", "of the rejected", "more in the chosen")
    ]
    assert words == [len(GOOD.split()), len(BAD.split()), len(GOOD.split()) - len(BAD.split())]
    assert fields["cut off"]["values"] == ["", "neither"]


def test_the_numbers_are_those_of_the_run(page: str) -> None:
    """Half of the comparisons hold in both orders; the others all go to what was shown first."""
    text = read_text(page)
    for words in (
        "31 prompts became 30 pairs. 1 led to none; the commonest reason is contrast: a tie (1).",
        "contrast a tie 1 0 </script>", "overlap shares words 0 3", "comparisons 60",
        "same verdict in both orders 50.0% [37.7% to 62.3%], 30 of 60",
        "first, of those that the order decided 100.0% [88.6% to 100.0%], 30 of 30",
        "the longer one, of winners in both orders 0.0% [0.0% to 11.4%], 0 of 30",
        "ties: pairs whose scores are equal 0", "but for case and spaces 29", "refused by the filter overlap 3",
        "near duplicates were not looked for", "answer main model 30 90 270 360 0", "compare judge 30 30 150 60 30",
        "10s in all, 42 generated tokens a second.",
    ):  # fmt: skip
        assert words in text, words
    assert "overlap with evaluation sets was not" not in text


def test_dialogues_stop_where_their_room_is_full(run: Path) -> None:
    page = render_report({"run": run}, title="t", max_dialogue_mb=0)
    assert unpack(page).places == [-1] * 30
    assert "The page holds the dialogues behind 0 of 30 pairs (max_dialogue_mb)" in page


def test_pairs_to_prompts_that_the_recipe_wrote_find_their_dialogues(tmp_path: Path) -> None:
    """Two seeds whose answers are the same words: each pair leads to its own, and scores and verdicts with it."""
    folder = make_run(tmp_path / "run", 2)
    for at in range(2):
        seed = Prompt.make(f"seed {at}")
        written = Prompt.make(f"what the recipe wrote of {at}", tags={"skill": "sums"})
        true, false = (
            Completion.make(
                prompt_id=seed.id, index=place, text=text, finish_reason="stop", num_prompt_tokens=1, num_tokens=1
            )
            for place, text in enumerate(("True", "False"))
        )
        exchange = Exchange(prompt_id=seed.id, step="answer", sent=written.messages, completions=(true, false))
        sides = [item.renumber(prompt_id=written.id, index=item.index) for item in (true, false)]
        pair = Pair.make(written, *sides, scores=(1.0, 0.0), recipe="codec").model_copy(update={"source_id": seed.id})
        score = {"completion_id": sides[0].id, "scorer": "judge", "value": 1.0 + at}
        verdict = {"id": "v", "prompt_id": written.id, "judge": "judge", "completion_ids": [item.id for item in sides]}
        verdict |= {"chars": [4, 5], "forward": "first", "backward": "first"}
        records = {"exchanges": exchange, "pairs": pair, "prompts": seed, "scores": score, "comparisons": verdict}
        for name, record in (records | {"instructions": written}).items():
            with (folder / f"{name}.jsonl").open("a") as stream:
                stream.write((record.model_dump_json() if isinstance(record, Record) else json.dumps(record)) + "\n")
    held = unpack(render_report({"run": folder}, title="t"))
    assert held.places == [0, 1, 2, 3]
    for at, dialogue in enumerate(held.dialogues[2:]):
        assert dialogue["asked"][0][2] == [["user", f"what the recipe wrote of {at}"]]
        assert [reply[4] for reply in dialogue["asked"][0][3]] == [[["judge", 1.0 + at, ""]], []]
        assert dialogue["verdicts"] == [["judge", 0, 1, "first", "first"]]
    assert held.fields["tag: skill"]["values"] == ["", "sums"]
    assert held.fields["tag: skill"]["codes"] == [0, 0, 1, 1]


def test_many_rows_are_packed_in_chunks_and_the_same_bytes(tmp_path: Path) -> None:
    """Pairs of some 1,100 characters, 300,000 a chunk: two chunks hold 400."""
    folder = make_run(tmp_path / "run", 400)
    page = render_report({"run": folder}, title="t")
    held = unpack(page)
    assert len(held.index["items"]) >= 2
    assert [row[1].split()[1] for row in held.pairs] == [str(number) for number in range(400)]
    assert held.index["dialogues"][0] == 0
    assert len(held.dialogues) == 400
    assert page == render_report({"run": folder}, title="t")


def test_topics_are_named_by_the_words_that_set_them_apart() -> None:
    texts = ["the cat sat", "the cat ran", "the dog sat", "a bird sang"]
    assert name_topic(texts[:2], texts).startswith("cat")
    assert name_topic(["12 34"], ["12 34"]) == "(no words)"
    assert map_topics([Prompt.make("one")], set(), SentenceTransformers()) is None


@pytest.mark.slow
def test_topics_of_a_real_embedder() -> None:
    """Two subjects that share no words but the frame are two groups; pairs are counted in each."""
    cooking = ("soup", "bread", "stew", "cake", "sauce", "pasta", "salad", "curry", "pie", "jam", "rice", "omelette")
    space = (
        "Mars",
        "Jupiter",
        "Venus",
        "Saturn",
        "comets",
        "galaxies",
        "stars",
        "nebulae",
        "orbits",
        "Pluto",
        "moons",
        "quasars",
    )
    prompts = [Prompt.make(f"How do I cook {word} in my kitchen?") for word in cooking]
    prompts += [Prompt.make(f"What do astronomers know about {word}?") for word in space]
    found = map_topics(prompts, {item.id for item in prompts[:6]}, SentenceTransformers())
    assert found is not None
    assert sorted(row[1:] for row in found.rows) == [(12, 0), (12, 6)]
    assert {"kitchen", "astronomers"} <= {word for name, _, _ in found.rows for word in name.split(", ")}


def test_the_job_takes_its_limits_and_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    """A name that is no model is a note in the page, not the end of the report."""
    values = {"parts": [str(run)], "max_pairs": 10, "embedder": {"name": "sentence_transformers", "model": "/nowhere"}}
    done = build(Report, values, source="test").run(tmp_path / "report", quiet=True)
    text = done.path("report.html").read_text(encoding="utf-8")
    assert "The page holds the first 10 of 30 pairs" in text
    assert "No map: " in text


PROBE = """
const find = (name) => document.querySelector(`[data-role=${name}]`);
const seen = [];
const root = document.querySelector("[data-browser]");
const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));
const type = async (box, value) => {
  box.value = value;
  box.dispatchEvent(new Event("input"));
  await pause(900);
};
const look = () => {
  const first = document.querySelector("article.item p");
  seen.push(`${find("status").textContent}; ${first ? first.textContent.split(",")[0] : "none"}`);
};
(async () => {
  while (!root.dataset.ready) await pause(50);
  find("next").click(); await pause(300); look();
  await type(find("search"), "PROMPT 7 <"); look();
  await type(find("where"), "chosen"); look();
  await type(find("search"), "");
  const option = (box, text) => [...box.options].find((item) => item.textContent.startsWith(text)).value;
  await type(find("sort"), option(find("sort"), "margin, highest")); look();
  await type(find("add"), option(find("add"), "margin"));
  await type(document.querySelector(".chip input"), "1.25"); look();
  await type(find("add"), option(find("add"), "tag: topic"));
  const choice = document.querySelectorAll(".chip")[1].querySelector("select");
  await type(choice, option(choice, "topic 2")); look();
  document.querySelector("details.made").open = true; await pause(600);
  document.querySelectorAll("details").forEach((box) => { box.open = true; });
  const made = document.querySelector("details.made");
  const badges = [...made.querySelectorAll(".badge")].map((box) => box.textContent);
  const [asked, replies] = [".exchange", ".reply"].map((name) => made.querySelectorAll(name).length);
  seen.push(`${asked} asked, ${replies} replies, ${badges}`);
  seen.push([...made.querySelectorAll("li")].map((item) => item.textContent));
  seen.push(document.title);
  document.title = JSON.stringify(seen);
})();
"""


class Elements(html.parser.HTMLParser):
    """A page as a browser's parser sees it: its elements, and its text but for scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: D102  its base class names it
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:  # noqa: D102  its base class names it
        self.text += data


@pytest.mark.slow
def test_a_browser_filters_sorts_searches_and_shows_hostile_text_as_text(
    page: str, tmp_path: Path, browse: Callable[[Path], subprocess.CompletedProcess[str]]
) -> None:
    """The page's own policy stays, with the probe's hash beside the program's: nothing else runs, nothing is fetched."""
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    probed = page.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    path = tmp_path / "report.html"
    path.write_text(probed.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    done = browse(path)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    assert json.loads(html.unescape(title[1])) == [
        "30 of 30 pairs, page 2 of 2; Pair 21",
        "1 of 30 pairs, page 1 of 1; Pair 8",
        "0 of 30 pairs, page 1 of 1; none",
        "30 of 30 pairs, page 1 of 2; Pair 30",
        "5 of 30 pairs, page 1 of 1; Pair 30",
        "2 of 30 pairs, page 1 of 1; Pair 30",
        "2 asked, 4 replies, rejected,chosen",
        [
            "judge: answer 0 before 1: answer 1; 1 before 0: answer 1",
            "judge: answer 0 before 2: answer 0; 2 before 0: answer 2",
        ],
        "A synthesis",
    ]
    found = Elements(done.stdout)
    assert not [name for _, given in found.tags for name in given if name.startswith("on")]
    assert not [given for _, given in found.tags if str(given.get("href", "#"))[0] != "#"]
    assert all(str(given["src"]).startswith("data:image/svg+xml;base64,") for tag, given in found.tags if tag == "img")
    assert {tag for tag, _ in found.tags} & {"svg", "iframe", "object", "link", "base"} == set()
    spelled = "a<U+2028>b<U+2029>c<U+202E>d<U+2066>e<U+200F>f<U+0000>g"
    for text in ("<img src=x onerror=", "<svg onload=", '<a href="javascript:', spelled):
        assert text in found.text
    assert not [line for line in done.stderr.splitlines() if re.search("CONSOLE|Refused|violates", line)]
