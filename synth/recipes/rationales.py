"""Several rationales a question, told apart by their vote: those that come to the winning answer, and those that do not.

Source: the data of quality-guided contrastive rationale distillation (QCRD, Wang et al. 2024, arXiv 2405.13014): n rationales
of a teacher, the vote of Wang et al. 2022 (arXiv 2203.11171), agreeing ones as positives and disagreeing ones as negatives,
more negatives from hot samples and from earlier states of the student; with the label beside them, as Hsieh et al. 2023
(arXiv 2305.02301) learn it. `align` learns the groups by `distill`.
Differences: (1) the authors' code is not public; (2) quality is the share of the votes or any scorer's value, where the
paper trains a discriminator beside the student; (3) a vote that is tied, or has too small a share, is no vote; (4) where a
hot sample or an earlier student agrees with the vote it is left out: it is no negative, and is not trusted as a positive; (5)
optionally, a vote counts only where it is the known answer, which no model is shown.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from counterfoil.records import Answer, Completion, Group, Message, Prompt, Record, Score
from decode.engine import Sampling
from decode.steps import Ask, Refusal, Steps
from eval.scorer import Scorer
from eval.scorers.final_answer import read_final, same_answer
from eval.scorers.self_consistency import Ballot, count_votes
from synth.recipe import Recipe

__all__ = ["Rationales"]

EXPLAIN = """{question}

Explain it in a few short steps. Then end with one line: The answer is ..."""
LABEL = """{question}

Reply with the answer alone."""


class Rationales(Recipe):
    """Ask for rationales, let them vote; a group has positives and negatives with their quality, and the label."""

    makes: ClassVar[type[Record]] = Group

    n: int = Field(default=5, ge=2)
    """Rationales that vote."""
    temperature: float = Field(default=0.7, gt=0)
    """Of those; 0 would make them all alike."""
    hot_n: int = Field(default=1, ge=0)
    """More rationales that do not vote, of each of `hot_roles`: they are there to be wrong."""
    hot_temperature: float = Field(default=1.5, gt=0)
    """Of those."""
    hot_roles: tuple[str, ...] = ("",)
    """Roles that write those: the empty name is the main model; earlier checkpoints of a student are named, and given as
    `roles.NAME.adapter`."""
    min_p: float = Field(default=0.05, ge=0, le=1)
    """Keeps the tail of the distribution out, also of hot samples: what is no language teaches nothing."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Cut a rationale off after this many tokens: it then comes to nothing. A voter that was cut off is on neither side, a
    hot one is a negative, whose end is not unlearnt."""
    min_share: float = Field(default=0.5, gt=0, le=1)
    """Smallest share of the n rationales that the winning answer has."""
    min_negatives: int = Field(default=1, ge=0)
    """Fewest negatives of a group; 0 keeps questions on which all agree."""
    known: bool = False
    """Keep a question only where the vote is its `reference["answer"]`."""
    quality: Literal["vote", "scorer"] = "vote"
    """A rationale's weight: the share of the votes that its final answer has, or what the run's scorer says (0 to 1)."""
    marked: bool = False
    """Read a final answer after a marker alone."""

    def asks(self) -> Mapping[str, frozenset[str]]:
        """The main model, and who writes hot ones."""
        return dict.fromkeys(("", *self._hot_roles), frozenset({"chat", "n", "seed"}))

    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Ask all at once, vote, weigh; every rationale's share of the votes is kept."""
        asked = _ask_by(EXPLAIN, prompt)
        drawn = Sampling(n=self.n, temperature=self.temperature, min_p=self.min_p, max_new_tokens=self.max_new_tokens)
        hot = drawn.model_copy(update={"n": self.hot_n, "temperature": self.hot_temperature})
        voters, *others = yield [
            Ask(asked, drawn, "explain"),
            *(Ask(asked, hot, "explain hot", role) for role in self._hot_roles),
        ]
        found = [*voters, *(item for answered in others for item in answered)]
        finals = ["" if item.finish_reason == "length" else read_final(item.text, marked=self.marked) for item in found]
        ballot = count_votes(finals[: self.n])
        scores = [_weigh(item, final, finals[: self.n], ballot) for item, final in zip(found, finals, strict=True)]
        yield scores
        self._check(prompt, finals[: self.n], ballot)
        if self.quality == "scorer":
            scores = yield from scorer.grade(prompt, found)
            if wild := [item.value for item in scores if not 0 <= item.value <= 1]:
                raise Refusal("quality", "a score outside of 0..1", str(wild[0]))
        answers = self._tell_apart(found, finals, scores, ballot)
        num_negatives = sum(item.role == "rejected" for item in answers)
        if num_negatives < self.min_negatives:
            raise Refusal("contrast", "too few negatives", str(num_negatives))
        label = Answer(text=ballot.answer, final=ballot.answer, prompt=_ask_by(LABEL, prompt))
        return [Group.make(asked, [*answers, label], reference=prompt.reference)]

    @property
    def _hot_roles(self) -> tuple[str, ...]:
        return self.hot_roles if self.hot_n else ()

    def _check(self, prompt: Prompt, finals: Sequence[str], ballot: Ballot) -> None:
        """Refuse a vote that says too little, or is known to be wrong."""
        if not ballot.answer:
            raise Refusal("vote", "most rationales come to nothing")
        if ballot.confidence < self.min_share:
            raise Refusal("vote", "low confidence", f"{ballot.confidence:.2f}")
        others = [final for final, agrees in zip(finals, ballot.votes, strict=True) if final and not agrees]
        if sum(count_votes(others).votes) == sum(ballot.votes):
            raise Refusal("vote", "tied vote", f"{ballot.confidence:.2f}")
        if self.known:
            wanted = prompt.reference.get("answer")
            if not isinstance(wanted, str | int | float) or isinstance(wanted, bool):
                raise Refusal("vote", "no known answer", repr(wanted))
            if not same_answer(ballot.answer, str(wanted)):
                raise Refusal("vote", "not the known answer", ballot.answer)

    def _tell_apart(
        self, found: Sequence[Completion], finals: Sequence[str], scores: Sequence[Score], ballot: Ballot
    ) -> list[Answer]:
        """Return positives out of those that voted and negatives out of all, each text once."""
        sides: dict[str, Answer] = {}
        for item, final, score in zip(found, finals, scores, strict=True):
            agrees, text = same_answer(final, ballot.answer), item.text.strip()
            is_cut, votes = item.finish_reason == "length", item.index < self.n
            if not text or (is_cut if votes else agrees):  # a voter that was cut off may have been right
                continue
            role = "chosen" if agrees else "rejected"
            answer = Answer(text=item.text, role=role, score=score.value, is_cut=is_cut, final=final)
            sides.setdefault(text, answer)
        return list(sides.values())


def _ask_by(form: str, prompt: Prompt) -> tuple[Message, ...]:
    *before, last = prompt.messages
    return (*before, Message(role=last["role"], content=form.format(question=last["content"])))


def _weigh(item: Completion, final: str, finals: Sequence[str], ballot: Ballot) -> Score:
    """Score a rationale by the share of the votes that its final answer has."""
    share = sum(same_answer(final, other) for other in finals) / len(finals) if final else 0.0
    detail = {"final": final, "won": bool(final) and same_answer(final, ballot.answer)}
    return Score(completion_id=item.id, scorer="self_consistency", value=share, detail=detail)
