"""Pairs that judges made: gates in each case, models by role, nothing asked twice, and all of it with a real model."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from counterfoil.cli import main
from counterfoil.config import build
from counterfoil.errors import ConfigError, EngineError
from counterfoil.job import Run
from counterfoil.jsonl import read_jsonl
from counterfoil.progress import Progress
from counterfoil.records import Comparison, Completion, Dropped, Exchange, Pair, Prompt, Record, Score
from counterfoil.store import Store
from decode.dialogue import Outcome, converse
from decode.engine import Given, Request
from decode.engines.scripted import Scripted, ScriptedSession
from decode.speaker import Speaker
from decode.steps import Steps
from eval.scorers.pairwise import Pairwise
from synth.filters.judge_agrees import JudgeAgrees
from synth.synthesize import Synthesize

PROMPT = Prompt.make("Name a colour.", reference={"answer": "red"})
Verdict = Literal["A", "B", "tie", "garbage"]


def complete(*texts: str, prompt: Prompt = PROMPT) -> list[Completion]:
    return [
        Completion.make(
            prompt_id=prompt.id, index=at, text=text, finish_reason="stop", num_prompt_tokens=1, num_tokens=1
        )
        for at, text in enumerate(texts)
    ]


def say(better: Verdict) -> str:
    return "I cannot say" if better == "garbage" else json.dumps({"reason": "so", "better": better})


def write_script(path: Path, verdicts: dict[str, Verdict]) -> Path:
    """Write verdicts by what is shown as answer A."""
    rows = [{"when": f"answer A>\n{shown}\n", "replies": [say(better)]} for shown, better in verdicts.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Counted(Scripted):
    """The double, with a list of what it was asked."""

    asked: list[str]

    def open(self, model: str, *, adapters: Sequence[str | None] = (), methods: Any = ()) -> ScriptedSession:
        """Open it."""
        engine, plain = self, super().open(model)

        class Session(ScriptedSession):
            def stream(self, items: Any, *, glance: bool = False) -> Any:
                return super().stream(map(self.note, items), glance=glance)

            def note(self, item: Request | Given | None) -> Request | Given | None:
                if item is not None:
                    engine.asked.append(item.id)
                return item

        return Session(self, model, plain._rules)

    def identify(self, model: str) -> str:
        """Identify it as the double that it is."""
        return Scripted(replies=self.replies).identify(model)


@contextlib.contextmanager
def open_run(folder: Path) -> Iterator[Run]:
    folder.mkdir(exist_ok=True)
    with contextlib.closing(Store(folder / "state.sqlite")) as store:
        yield Run(folder, store, Progress(None, label="test", quiet=True))


def hold(folder: Path, engine: Scripted, steps: Any) -> Outcome:
    with open_run(folder) as run:
        (outcome,) = converse(run, {"": Speaker(model="m", engine=engine)}, iter([PROMPT]), steps, seed=0)
    return outcome


def gate(pair: Pair) -> Any:
    """Return a dialogue that ends with what the gate says of a pair."""

    def steps(prompt: Prompt) -> Steps[Sequence[Record]]:
        found = yield from JudgeAgrees().judge_pair(prompt, pair)
        return [found or pair]

    return steps


def make_pair(prompt: Prompt = PROMPT) -> Pair:
    better, worse = complete("red", "fish", prompt=prompt)
    return Pair.make(prompt, better, worse, scores=(1.0, 0.0), recipe="test")


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("A", "B", ""),  # the chosen one, wherever it stands
        ("B", "A", "the rejected answer is preferred"),
        ("A", "A", "the verdict changes with the order"),
        ("B", "B", "the verdict changes with the order"),
        ("tie", "tie", "a tie"),
        ("A", "tie", "the verdict changes with the order"),
        ("garbage", "B", "not as the schema asks"),
    ],
)
def test_a_pair_passes_where_the_judge_prefers_it_twice(
    first: Verdict, second: Verdict, reason: str, tmp_path: Path
) -> None:
    """`first` is said where the chosen answer is shown as A, `second` where it is shown as B."""
    script = write_script(tmp_path / "script.jsonl", {"red": first, "fish": second})
    pair = make_pair()
    outcome = hold(tmp_path / "run", Scripted(script=script), gate(pair))
    result = outcome.records[-1]
    if reason:
        assert isinstance(result, Dropped)
        assert (result.id, result.stage, result.reason) == (pair.id, "judge_agrees", reason)
        if first == "garbage":
            assert result.detail == "I cannot say"
    else:
        assert result == pair
    assert sum(isinstance(item, Comparison) for item in outcome.records) == (first != "garbage")


def test_the_gate_reads_the_pairs_own_prompt(tmp_path: Path) -> None:
    """A recipe may make another instruction on its way: the judge sees that, and its record is joined to it."""
    made = Prompt.make("Name a colour of the sunset.")
    script = write_script(tmp_path / "script.jsonl", {"red": "A", "fish": "B"})
    outcome = hold(tmp_path / "run", Scripted(script=script), gate(make_pair(made)))
    shown = [item.sent[0]["content"] for item in outcome.exchanges]  # type: ignore[index]
    assert len(shown) == 2 and all("\nName a colour of the sunset.\n" in text for text in shown)
    (found,) = [item for item in outcome.records if isinstance(item, Comparison)]
    assert found.prompt_id == made.id


@pytest.mark.parametrize("by", ["written", "likelihood"])
def test_what_a_scorer_asked_the_gate_does_not_ask_again(by: Any, tmp_path: Path) -> None:
    """Three answers are 3 pairs, 6 questions, or 12 weighed letters; the gate asks for none. Another judge asks its own."""

    def steps(gate: JudgeAgrees) -> Any:
        def talk(prompt: Prompt) -> Steps[Sequence[Record]]:
            better, worse, other = complete("red", "fish", "a third")
            yield from Pairwise(by=by).grade(prompt, [better, worse, other])
            for one, two in ((better, worse), (worse, better)):  # whichever is chosen
                pair = Pair.make(prompt, one, two, scores=(1.0, 0.0), recipe="test")
                yield from gate.judge_pair(prompt, pair)
            return []

        return talk

    engine = Counted(replies=(say("A"),), asked=[])
    outcome = hold(tmp_path / "one", engine, steps(JudgeAgrees(by=by)))
    assert len(engine.asked) == (12 if by == "likelihood" else 6)
    found = [item for item in outcome.records if isinstance(item, Comparison)]
    assert len(found) == 5 and len({item.id for item in found}) == 3, "a comparison that is made again has its id"
    engine.asked.clear()
    hold(tmp_path / "two", engine, steps(JudgeAgrees(by=by, criteria="Short is good.")))
    assert len(engine.asked) == (16 if by == "likelihood" else 8)


def synthesize(folder: Path, **changes: Any) -> Synthesize:
    """Return a synthesis whose main model says one of two things, and judges by what it sees where nobody else does."""
    rows = [
        {"prompt": f"Question {at}?", "reference": {"constraints": [{"kind": "max_words", "n": 5}]}} for at in range(3)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = write_script(folder / "script.jsonl", {"A good answer": "A", "A bad answer": "B"})
    values: dict[str, Any] = {
        "task": {"name": "file", "path": str(folder / "prompts.jsonl")},
        "engine": {"name": "scripted", "replies": ["A good answer", "A bad answer"], "script": str(script)},
        "recipe": {"name": "best_of_n", "n": 2},
        "scorer": "pairwise",
        "filters": ["judge_agrees", "truncated", "refusal", "copies_prompt", "length_gap"],
    }
    return build(Synthesize, values | changes, source="test")


def read(folder: Path, name: str, cls: type[Record]) -> list[Any]:
    if not (folder / name).exists() or (folder / name).stat().st_size == 0:
        return []
    rows = list(read_jsonl(folder / name, cls, where=name))
    assert all(type(row) is cls for row in rows)
    return rows


def test_a_model_judges_itself_unless_another_is_named(tmp_path: Path) -> None:
    """The second model always says A: it is asked in the first one's place, and no pair is left."""
    own = synthesize(tmp_path).run(tmp_path / "own", quiet=True)
    pairs = read(own.folder, "pairs.jsonl", Pair)
    assert [(item.chosen[0]["content"], item.score_chosen, item.score_rejected) for item in pairs] == [
        ("A good answer", 1.0, 0.0)
    ] * 3
    biased = {"engine": {"name": "scripted", "replies": [say("A")]}}
    other = synthesize(tmp_path, roles={"judge": biased}).run(tmp_path / "other", quiet=True)
    assert read(other.folder, "pairs.jsonl", Pair) == []
    assert other.manifest["counts"]["dropped"] == {"contrast: all scored alike": 3}
    assert [(item.forward, item.backward) for item in read(other.folder, "comparisons.jsonl", Comparison)] == [
        ("first", "second")
    ] * 3
    for done, name in ((own, "judge"), (other, "judge")):
        roles = [item.role for item in read(done.folder, "exchanges.jsonl", Exchange)]
        assert roles.count(name) == (12 if done is own else 6) and roles.count("") == 3


def test_a_judge_has_a_role_of_its_choice(tmp_path: Path) -> None:
    """A role that nobody asks is refused, and so is a judge whose engine writes no JSON by a schema."""
    with pytest.raises(ConfigError, match=r"roles\.critic"):
        synthesize(tmp_path, roles={"critic": {"engine": "scripted"}}).check()
    scorer = {"name": "pairwise", "role": "critic"}
    synthesize(tmp_path, scorer=scorer, filters=[], roles={"critic": {"engine": "scripted"}}).check()
    with pytest.raises(EngineError, match="schema"):
        synthesize(tmp_path, roles={"judge": {"engine": "hf"}}).check()


@pytest.mark.slow
def test_a_real_model_judges_its_own_answers(tmp_path: Path) -> None:
    """Three prompts, two answers each, by likelihood in both orders; what is written fits together."""
    config = tmp_path / "job.yaml"
    config.write_text(
        "task: {name: constraints, count: 3, difficulty: easy}\n"
        "engine: {name: hf, max_model_len: 1024, batch_size: 4}\n"
        "recipe: {name: best_of_n, n: 2, max_new_tokens: 12, margin: 0.5}\n"
        "scorer: {name: pairwise, by: likelihood, tie_band: 0.0}\n"
        "filters: [{name: judge_agrees, by: likelihood, tie_band: 0.0}, refusal, copies_prompt, length_gap]\n"
    )
    run = tmp_path / "run"
    assert main(["synth", str(config), "--to", str(run)]) == 0
    manifest = json.loads((run / "manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["read"] == 3 == counts["kept"] + sum(counts["dropped"].values())
    scores = {item.completion_id: item.value for item in read(run, "scores.jsonl", Score)}
    assert len(scores) == 6 and set(scores.values()) <= {0.0, 0.5, 1.0}
    compared = {frozenset(item.completion_ids): item for item in read(run, "comparisons.jsonl", Comparison)}
    assert len(compared) == 3
    for found in compared.values():
        values = [scores[key] for key in found.completion_ids]
        expected = [0.5, 0.5] if found.winner is None else [1.0 - found.winner, float(found.winner)]
        assert values == expected
    weighed = [item for item in read(run, "exchanges.jsonl", Exchange) if item.role == "judge"]
    assert all(item.completions[0].text in ("A", "B") for item in weighed)
    for pair in read(run, "pairs.jsonl", Pair):
        found = compared[frozenset((pair.chosen_id, pair.rejected_id))]
        assert found.winner is not None and found.completion_ids[found.winner] == pair.chosen_id
