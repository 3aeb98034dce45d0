"""A weak model's answers, confirmed or overruled by the strong model's own: texts on which both agree, pairs by confidence.

Source: Yang et al. 2024 (arXiv 2407.13647) and the authors' code. Stage I: a question is kept where the weak model's final
answer and that of the strong model are the same and not empty; the texts of either, or of both, are then learnt. Stage II: of
n samples the most frequent final answer wins, its share of all samples is the confidence (samples that come to nothing count
below the line). Below `drop_below` the question is dropped. Where the weak answer agrees, the weak text is chosen against a
sample with another answer; where it does not, it is rejected against a sample with the winning answer, if the confidence is
at least `override_at`: to overrule the weak label takes more than to confirm it. A pair's scores are the shares of the
samples that come to the answer of either side.
Differences: (1) answers are joined by their question's content, where the code compares the order of files; (2) a tied vote,
which only a `drop_below` of a half or less lets through, makes no pair; (3) the recipe holds both stages in one dialogue, so
that stage II samples the model as it is given, where the paper trains it on stage I before; (4) its strong model answers the
bare question, where the paper shows it demonstrations that the weak model answered.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from counterfoil.records import Answer, Completion, Dropped, Group, Pair, Prompt, Record
from decode.engine import Sampling
from decode.generate import draw_seed
from decode.steps import Ask, Refusal, Steps
from eval.scorer import Scorer
from eval.scorers.final_answer import read_final, same_answer
from eval.scorers.self_consistency import SelfConsistency, count_votes
from synth.recipe import Recipe

__all__ = ["Keep", "Voted", "WeakToStrong", "agree", "vote"]

Keep = Literal["weak", "strong", "both"]


class Voted(NamedTuple):
    """Pairs, a weak text on one side of each."""

    pairs: list[Pair]
    confirmed: bool
    """Whether the weak text is the chosen one."""


class WeakToStrong(Recipe):
    """Ask the weak model, the strong one, and that for samples; an agreement goes to the groups, what is left to pairs."""

    n: int = Field(default=10, ge=2)
    """Samples that vote."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the samples; 0 would make them all alike."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Cut an answer off after this many tokens; one that is cut off comes to nothing."""
    keep: Keep = "both"
    """Whose texts are learnt where they agree; both makes two answers a question (the paper's hybrid)."""
    drop_below: float = Field(default=0.6, gt=0, le=1)
    """Least confidence of a question that is paired at all."""
    override_at: float = Field(default=0.8, gt=0, le=1)
    """Least confidence at which the weak answer is overruled."""
    max_pairs: int = Field(default=1, ge=1)
    """Pairs a question, at most."""
    marked: bool = False
    """Read a final answer after a marker alone."""

    def asks(self) -> Mapping[str, frozenset[str]]:
        """The weak model, and the strong one that learns."""
        return {"weak": frozenset({"chat"}), "": frozenset({"chat", "n", "seed"})}

    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Ask all at once; every sample's share of the votes is kept, and the agreement or why there is none."""
        greedy = Sampling(max_new_tokens=self.max_new_tokens)
        drawn = greedy.model_copy(update={"n": self.n, "temperature": self.temperature})
        (weak,), (strong,), samples = yield [
            Ask(prompt.messages, greedy, "answer", "weak"),
            Ask(prompt.messages, greedy),
            Ask(prompt.messages, drawn, "sample"),
        ]
        yield from SelfConsistency(marked=self.marked).grade(prompt, samples)
        yield [agree(prompt, weak, strong, keep=self.keep, marked=self.marked)]
        found = vote(
            # As the job `synth vote` draws, which makes the same of the same answers.
            prompt, weak, samples, random.Random(draw_seed(self._seed, prompt.id)), drop_below=self.drop_below,
            override_at=self.override_at, max_pairs=self.max_pairs, marked=self.marked,
        )  # fmt: skip
        if isinstance(found, Dropped):
            raise Refusal(found.stage, found.reason, found.detail)
        return found.pairs


def agree(prompt: Prompt, weak: Completion, strong: Completion, *, keep: Keep, marked: bool) -> Group | Dropped:
    """Return the texts to learn, where both come to the same."""

    def refuse(reason: str, detail: str = "") -> Dropped:
        return Dropped(id=prompt.id, stage="agree", reason=reason, detail=detail[:200])

    if "length" in (weak.finish_reason, strong.finish_reason):
        return refuse("cut off", "weak" if weak.finish_reason == "length" else "strong")
    finals = [read_final(item.text, marked=marked) for item in (weak, strong)]
    if not all(finals):
        return refuse("no final answer", "weak" if not finals[0] else "strong")
    if not same_answer(*finals):
        return refuse("answers differ", " and ".join(finals))
    texts = {"weak": [weak.text], "strong": [strong.text], "both": [weak.text, strong.text]}[keep]
    unique = list(dict.fromkeys(text.strip() for text in texts))
    return Group.make(prompt.messages, [Answer(text=text, role="chosen", final=finals[0]) for text in unique])


def vote(
    prompt: Prompt,
    weak: Completion,
    samples: Sequence[Completion],
    rng: random.Random,
    *,
    drop_below: float,
    override_at: float,
    max_pairs: int,
    marked: bool,
) -> Voted | Dropped:
    """Return pairs of the weak text with samples drawn by `rng`, as the samples' votes decide."""

    def refuse(reason: str, detail: str = "") -> Dropped:
        return Dropped(id=prompt.id, stage="vote", reason=reason, detail=detail[:200])

    if weak.finish_reason == "length":
        return refuse("cut off", "weak")
    finals = [
        "" if item.finish_reason == "length" else read_final(item.text, marked=marked) for item in samples
    ]  # a sample that was cut off comes to nothing
    ballot = count_votes(finals)
    if not ballot.answer:
        return refuse("most samples come to nothing")
    if ballot.confidence < drop_below:
        return refuse("low confidence", f"{ballot.confidence:.2f}")
    others = [final for final, agrees in zip(finals, ballot.votes, strict=True) if final and not agrees]
    if sum(count_votes(others).votes) == sum(ballot.votes):
        return refuse("tied vote", f"{ballot.confidence:.2f}")
    confirmed = same_answer(read_final(weak.text, marked=marked), ballot.answer)
    if not confirmed and ballot.confidence < override_at:
        return refuse("too little confidence to overrule", f"{ballot.confidence:.2f}")
    fits = [
        item
        for item, agrees in zip(samples, ballot.votes, strict=True)
        if agrees != confirmed and item.finish_reason != "length" and item.text.strip() not in ("", weak.text.strip())
    ]
    if not fits or not weak.text.strip():
        return refuse("all samples agree" if confirmed else "no sample to set against it")
    drawn = rng.sample(fits, min(max_pairs, len(fits)))
    pairs: list[Pair] = []
    for item in drawn:
        chosen, rejected = (weak, item) if confirmed else (item, weak)
        cut = rejected.finish_reason == "length"
        against = _share("" if cut else read_final(rejected.text, marked=marked), finals)
        pairs.append(_make_pair(prompt, chosen, rejected, (ballot.confidence, against)))
    return Voted(pairs, confirmed)


def _share(final: str, finals: Sequence[str]) -> float:
    """Return the share of all samples that come to an answer; 0 for what comes to nothing."""
    return sum(same_answer(final, other) for other in finals if other) / len(finals) if final else 0.0


def _make_pair(prompt: Prompt, chosen: Completion, rejected: Completion, scores: tuple[float, float]) -> Pair:
    sides = [item.model_copy(update={"prompt_id": prompt.id}) for item in (chosen, rejected)]  # however it was known
    return Pair.make(prompt, sides[0], sides[1], scores=scores, recipe="weak_to_strong")
