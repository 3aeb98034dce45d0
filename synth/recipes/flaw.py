"""One named fault planted into a good answer, by as small an edit as will do: what is wrong is known to the character.

Source: Img-Diff (Jiao et al. 2024, arXiv 2408.04594), who replace one object of a picture, keep pairs whose likeness lies in
a band, find the regions that differ and have a model confirm the difference; here for text. Differences: (1) likeness is
rapidfuzz's, of the whole answers and of the changed words, where the paper compares pictures and regions; (2) a region is a
run of changed words, by difflib: what stood there, put back, gives the good answer again to the character; (3) numbers,
negations and names are changed by code, which does it exactly, and a model writes one sentence anew for the other faults; (4)
the difference is confirmed by a judge, which has to prefer the good answer, or to name the sentence that was changed.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, Field, create_model, model_validator
from rapidfuzz import fuzz

from counterfoil.records import (
    Answer,
    Completion,
    Dropped,
    Group,
    Message,
    Pair,
    Prompt,
    Record,
    Score,
    Span,
    content_id,
)
from decode.engine import Content, Sampling
from decode.steps import Ask, Refusal, Steps, ask_for
from eval.judging import PairJudge, disarm, draw_mark, show_request
from eval.scorer import Scorer
from synth.faults import RULES, SENTENCE, Change, Kind, find_changes
from synth.recipe import Candidate, Recipe

__all__ = ["Flaw"]

PLANT = """Here is a request and a good answer to it, sentence by sentence.

Request: {request}

{numbered}

Choose one sentence and write it again with one mistake in it: {fault}. Change only the words that make the mistake, and keep
all others as they are. Say which sentence it was, and write it with the mistake."""
FAULTS: dict[Kind, str] = {
    "entity": "a person, a place or a thing is named in place of the right one",
    "number": "a number, a date or an amount is wrong",
    "negation": "it says that something is not so which is so, or the other way round",
    "relation": "how two things relate is wrong: which is larger, earlier, the cause, the part or the owner of the other",
    "unsupported": "a detail is added that nothing in the request or the answer supports",
}

FIND = """Here is a request and an answer to it, sentence by sentence.

<{mark} request>
{request}
</{mark} request>

<{mark} answer>
{numbered}
</{mark} answer>

One of the sentences may have a mistake in it. Say which one, or 0 where there is none."""

MAX_SENTENCE = 800  # characters of one that is written anew


class _Planted(NamedTuple):
    kind: Kind
    completion: Completion
    changes: list[Change]
    similarity: float


class _Found(BaseModel):
    sentence: int


class _Rewritten(BaseModel):
    sentence: int
    rewritten: str = Field(min_length=1, max_length=MAX_SENTENCE)


class Flaw(Recipe):
    """Plant each kind of fault once into a good answer; keep what is a small edit and what the judge finds."""

    kinds: tuple[Kind, ...] = Field(default=("entity", "number", "negation", "relation", "unsupported"), min_length=1)
    """Which faults; each is a pair of its own."""
    by: Literal["rule", "model"] = "rule"
    """`rule` has code change numbers, negations and names of the answer, the model the rest; `model` has it change all."""
    good: Literal["reference", "own"] = "reference"
    """`reference` takes the text `prompt.reference["answer"]` where there is one; `own` the best of the model's samples."""
    n: int = Field(default=4, ge=1)
    """Samples of which an own answer is the best."""
    temperature: float = Field(default=0.7, gt=0)
    """Of the samples, and of the model that plants."""
    min_p: float = Field(default=0.05, ge=0, le=1)
    """Keeps the tail of the distribution out of the samples."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Cut a sample, or a sentence that is written anew, off after this many tokens."""
    least_score: float = 0.5
    """An own answer is good from this score on, in the scorer's units."""
    planter: str = "planter"
    """Role of the model that plants."""
    similarity: tuple[float, float] = (0.7, 0.9999)
    """Normalised indel similarity of the flawed answer to the good one, at least and at most; case does not count."""
    region: float = Field(default=0.9, gt=0, le=1)
    """Most similarity of the changed words to those that they replace: a spelling is no fault."""
    max_places: int = Field(default=1, ge=1)
    """Places in which an answer is changed, at most."""
    max_words: int = Field(default=6, ge=1)
    """Words that are changed in one place, or put there, at most."""
    judge: PairJudge | None = PairJudge()
    """Who must find the fault; None asks nobody."""
    found: Literal["both", "balance", "place"] = "both"
    """`both` wants the good answer preferred in either order. `balance` wants it preferred over the two orders taken
    together, by more than the judge's tie band: for a judge by likelihood to whom an answer's place matters more than what it
    says. `place` shows the flawed answer alone, and wants the sentence named that was changed; and the good one alone, in
    which the same sentence must not be named: some judges name the first of any."""

    @model_validator(mode="after")
    def check_balance(self) -> Self:
        """Refuse a verdict by the smallest of leans."""
        if self.found == "balance" and self.judge is not None and not self.judge.tie_band:
            raise ValueError("found: balance wants a tie_band above 0: any lean, noise as well, would be a verdict")
        return self

    def asks(self) -> Mapping[str, frozenset[str]]:
        """The main model for answers, the planter where a model plants, the judge."""
        needs = {"": frozenset({"chat", "n", "seed"})}
        parts = [self.judge.asks()] if self.judge else []
        if self.judge and self.found == "place":
            parts = [{self.judge.role: frozenset({"chat", "schema"})}]
        if any(not self._is_ruled(kind) for kind in self.kinds):
            parts.append({self.planter: frozenset({"chat", "schema"})})
        for role, more in (item for part in parts for item in part.items()):
            needs[role] = needs.get(role, frozenset()) | more
        return needs

    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Find a good answer, plant, judge; a kind that comes to nothing is dropped by its name."""
        good = yield from self._find_good(prompt, scorer)
        planted: list[_Planted] = []
        lost: list[Dropped] = []
        for number, kind in enumerate(self.kinds, self.n):  # after the samples
            try:
                text = yield from self._plant(prompt, good.text, kind)
                planted.append(self._examine(prompt, good.text, kind, text, number))
            except Refusal as refusal:
                lost.append(_drop(content_id(prompt.id, kind), refusal))
        yield [self._describe(item) for item in planted]
        try:
            preferred = yield from self._judge(prompt, good, planted)
        except Refusal as refusal:
            return [*(_drop(item.completion.id, refusal) for item in planted), *lost]
        pairs: list[Pair] = []
        answers: list[Answer] = []
        missed: list[Dropped] = []
        for item, preference in zip(planted, preferred, strict=True):
            if preference is None:
                refusal = Refusal("flaw", f"{item.kind}: the judge does not find it", item.completion.text)
                missed.append(_drop(item.completion.id, refusal))
                continue
            scores = 1.0, 1.0 - preference
            pairs.append(Pair.make(prompt, good, item.completion, scores=scores, recipe="flaw"))
            spans = tuple(Span(start=change.start, stop=change.stop, label=item.kind) for change in item.changes)
            answers.append(Answer(text=item.completion.text, role="rejected", score=scores[1], spans=spans))
        if answers:
            best = Answer(text=good.text, role="chosen", score=1.0)
            yield [Group.make(prompt.messages, [best, *answers], reference=prompt.reference)]
        return [*pairs, *missed, *lost]  # a prompt without a pair is dropped under the first

    def _judge(self, prompt: Prompt, good: Completion, planted: Sequence[_Planted]) -> Steps[list[float | None]]:
        """Return how much the good answer is preferred to each flawed one, 1 without a judge; None where it is not."""
        if self.judge is None or not planted:
            return [1.0 for _ in planted]
        if self.found == "place":
            return (yield from self._find_places(prompt, good, planted, self.judge))
        compared = yield from self.judge.compare(prompt, [(good, item.completion) for item in planted])
        if self.found == "balance":
            return [item.preference if item.preference > self.judge.tie_band else None for item in compared]
        return [item.preference if item.winner == 0 else None for item in compared]

    def _find_places(
        self, prompt: Prompt, good: Completion, planted: Sequence[_Planted], judge: PairJudge
    ) -> Steps[list[float | None]]:
        """Have the judge name the faulty sentence of each answer, the good one among them.

        1 where it is one that was changed, and is not named in the good answer as well; else None.
        """
        request = disarm(show_request(prompt))
        sentences = [list(SENTENCE.finditer(text)) for text in (good.text, *(item.completion.text for item in planted))]
        shown: list[Content] = []
        for parts in sentences:
            numbered = "\n".join(f"{number}. {disarm(part[0])}" for number, part in enumerate(parts, 1))
            asked = FIND.format(mark=draw_mark(request, numbered), request=request, numbered=numbered)
            shown.append((Message(role="user", content=asked),))
        wanted = create_model("Found", __base__=_Found, sentence=(int, Field(ge=0, le=max(map(len, sentences)))))
        told = yield from ask_for(wanted, shown, Sampling(max_new_tokens=32), step="find", role=judge.role)
        preferred: list[float | None] = []
        for item, parts, found in zip(planted, sentences[1:], told[1:], strict=True):
            named = parts[found.sentence - 1].span() if 0 < found.sentence <= len(parts) else (0, 0)
            hit = any(change.start < named[1] and named[0] < change.stop for change in item.changes)
            preferred.append(1.0 if hit and found.sentence != told[0].sentence else None)
        return preferred

    def _find_good(self, prompt: Prompt, scorer: Scorer) -> Steps[Completion]:
        known = prompt.reference.get("answer")
        if self.good == "reference" and isinstance(known, str) and known.strip():
            return _write(prompt, 0, known)
        drawn = Sampling(n=self.n, temperature=self.temperature, min_p=self.min_p, max_new_tokens=self.max_new_tokens)
        (answers,) = yield [Ask(prompt.messages, drawn)]
        scores = yield from scorer.grade(prompt, answers)
        whole = [
            Candidate(item, score.value)
            for item, score in zip(answers, scores, strict=True)
            if item.text.strip() and item.finish_reason != "length"
        ]
        best = max(whole, key=lambda item: item.score, default=None)
        if best is None:
            raise Refusal("flaw", "no whole answer")
        if not best.score >= self.least_score:  # one that is no number is not good either
            raise Refusal("flaw", "no good answer", f"best score {best.score:.3f}")
        return best.completion

    def _is_ruled(self, kind: Kind) -> bool:
        return self.by == "rule" and kind in RULES

    def _plant(self, prompt: Prompt, good: str, kind: Kind) -> Steps[str]:
        """Return the answer with a fault. Raises Refusal where there is no place for it, or a model wrote nothing usable."""
        if self._is_ruled(kind):
            edits = RULES[kind](good)
            if not edits:
                raise Refusal("flaw", f"{kind}: no place for it")
            edit = self.draw(prompt.id, kind).choice(edits)
            return good[: edit.start] + edit.now + good[edit.stop :]
        sentences = list(SENTENCE.finditer(good))
        wanted = create_model("Rewritten", __base__=_Rewritten, sentence=(int, Field(ge=1, le=len(sentences))))
        numbered = "\n".join(f"{number}. {found[0]}" for number, found in enumerate(sentences, 1))
        asked = PLANT.format(request=show_request(prompt), numbered=numbered, fault=FAULTS[kind])
        sampling = Sampling(temperature=self.temperature, min_p=self.min_p, max_new_tokens=self.max_new_tokens)
        messages = (Message(role="user", content=asked),)
        (told,) = yield from ask_for(wanted, [messages], sampling, step=f"plant {kind}", role=self.planter)
        found = sentences[told.sentence - 1]
        return good[: found.start()] + told.rewritten.strip() + good[found.end() :]

    def _examine(self, prompt: Prompt, good: str, kind: Kind, text: str, number: int) -> _Planted:
        """Say where the answer differs. Raises Refusal where that is nowhere, or too much."""
        if not text.strip() or text.split() == good.split():
            raise Refusal("flaw", f"{kind}: nothing changed", text)
        alike, changes = _compare(good, text), find_changes(good, text)
        why = ""
        if not self.similarity[0] <= alike <= self.similarity[1]:
            why = "outside of the band of similarity"
        elif len(changes) > self.max_places:
            why = "changed in too many places"
        elif any(
            max(len(item.was.split()), len(text[item.start : item.stop].split())) > self.max_words for item in changes
        ):
            why = "changed too many words"
        elif any(_compare(item.was, text[item.start : item.stop]) > self.region for item in changes):
            why = "changed too little"
        if why:
            raise Refusal("flaw", f"{kind}: {why}", f"similarity {alike:.4f}, {len(changes)} places: {text}")
        return _Planted(kind, _write(prompt, number, text), changes, alike)

    def _describe(self, planted: _Planted) -> Score:
        """Note what was planted, and how like the good answer it is."""
        text = planted.completion.text
        edits = [
            {"start": item.start, "stop": item.stop, "was": item.was, "now": text[item.start : item.stop]}
            for item in planted.changes
        ]
        by = "rule" if self._is_ruled(planted.kind) else "model"
        detail = {"kind": planted.kind, "by": by, "changes": edits}
        value = round(planted.similarity, 6)
        return Score(completion_id=planted.completion.id, scorer="flaw", value=value, detail=detail)


def _drop(key: str, why: Refusal) -> Dropped:
    return Dropped(id=key, stage=why.stage, reason=why.reason, detail=why.detail[:2000])


def _write(prompt: Prompt, index: int, text: str) -> Completion:
    """Make an answer of a text that no model wrote as it stands."""
    return Completion.make(
        prompt_id=prompt.id, index=index, text=text, finish_reason="stop", num_prompt_tokens=0, num_tokens=0
    )


def _compare(one: str, other: str) -> float:
    return fuzz.ratio(one.casefold(), other.casefold()) / 100
