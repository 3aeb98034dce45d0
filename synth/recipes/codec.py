"""Instructions made for a model: what a seed is for, more of its kind, harder by steps, until strong and target part ways.

Source: CodecLM (Wang et al. 2024, arXiv 2404.05875, section 3 and its prompts in the appendix): a strong model encodes a seed
as metadata (a use case, up to three skills), decodes that into plain instructions, and writes what would make one of that use
case hard, with an action to each. Each round the strong model's answer is set against the target's, both marked 1 to 10 in
both orders: with a gap of more than theta between the mean marks the instruction is kept with the better answer (the target's
where it won), else one of the actions, drawn by chance, rewrites it for the next round.
Differences: (1) metadata stay as they were encoded, where the paper mixes use cases and skills of all seeds: a dialogue knows
its own seed alone; (2) metadata and actions are asked greedily, so that equal questions have one kept answer, and by a JSON
schema; (3) a gap counts only where both orders agree on who is better; (4) what no round told apart is dropped by name; (5)
the worse answer is kept as well, as the rejected one; (6) the prompts and their examples are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, StringConstraints, create_model

from counterfoil.records import (
    Answer,
    Comparison,
    Completion,
    Dropped,
    Group,
    Message,
    Pair,
    Prompt,
    Record,
    Score,
    content_id,
)
from decode.engine import Sampling
from decode.steps import Ask, Refusal, Steps, ask_for
from eval.judging import disarm, draw_mark, show_request
from eval.scorer import Scorer
from synth.recipe import Recipe

__all__ = ["Codec"]

ENCODE = """What is this instruction for, and what does it take to follow it well?

<{mark} instruction>
{instruction}
</{mark} instruction>

Name its use case in a few words, and one to three skills of two or three words each, which other instructions of that use
case need as well. For example:

Write a mail to my landlord: the heater is broken. Use case: letters. Skills: polite tone, clear request.
Is 91 a prime number? Use case: arithmetic. Skills: long division, careful checking.
Why do cats purr? Tell it to a child of six. Use case: explanations for children. Skills: plain words, fitting examples."""
DECODE = """Write instructions for an assistant that answers in text, as a person would give them.

Use case: {use_case}
Skills that the assistant needs: {skills}

Write {count}, each of one or more whole sentences, complete in itself and different from the others."""
RUBRICS = """How can an instruction of this kind be made harder for an assistant that answers in text?

Use case: {use_case}
Skills that the assistant needs: {skills}

Write {count} rubrics, each one way in which such an instruction is hard, and with each the action that makes an instruction
harder in this way, in one sentence, such as: Ask for three reasons in place of one."""
REWRITE = """Rewrite this instruction so that it is harder, but still makes sense and can be answered in text.

<{mark} instruction>
{instruction}
</{mark} instruction>

How: {action}

Write the new instruction alone. It is complete in itself."""
MARKS = """You mark two answers to an instruction: how helpful, right, complete and to the point they are.

<{mark} instruction>
{instruction}
</{mark} instruction>

<{mark} answer A>
{first}
</{mark} answer A>

<{mark} answer B>
{second}
</{mark} answer B>

Mark each from 1 to 10, where 10 is best. Neither the order nor the length of the answers counts."""

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]
Sentence = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Instruction = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


AnswerT = TypeVar("AnswerT", bound=BaseModel)


class _Metadata(BaseModel):
    use_case: Words
    skills: list[Words] = Field(min_length=1, max_length=3)


class _Improvement(BaseModel):
    rubric: Words
    action: Sentence


class _Rubrics(BaseModel):
    improvements: list[_Improvement]


class _Decoded(BaseModel):
    instructions: list[Instruction]


class _Rewritten(BaseModel):
    instruction: Instruction


class _Marks(BaseModel):
    answer_a: int = Field(ge=1, le=10)
    answer_b: int = Field(ge=1, le=10)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a seed is of, and what was written of it."""

    seed_id: str
    use_case: str
    actions: list[str]
    seen: set[str]

    def takes(self, text: str) -> bool:
        """Note an instruction; say whether it is new."""
        folded = " ".join(text.casefold().split())
        is_new = folded not in self.seen
        self.seen.add(folded)
        return is_new

    def note(self, text: str, number: int) -> Prompt:
        """Return the instruction of a round as a prompt."""
        return Prompt.make(text, tags={"seed": self.seed_id, "use_case": self.use_case, "round": str(number)})

    def drop(self, text: str, number: int, why: Refusal) -> Dropped:
        """Return what stopped an instruction."""
        key = self.note(text, number).id
        return Dropped(id=key, stage=why.stage, reason=why.reason, detail=why.detail[:2000])


class Codec(Recipe):
    """Write instructions from seeds, keep those that a strong model and the target answer unlike well.

    It makes pairs, better against worse: these pass the run's filters, and a seed that led to none is dropped. The same
    answers are in a group beside it, for what learns from the better one alone.
    """

    target: str = ""
    """Role whose answers the strong model's are set against: the main model, which learns; the paper takes another one, tuned
    alike, for a base model that follows no instructions yet."""
    judge: str = "strong"
    """Role that marks."""
    num_instructions: int = Field(default=1, ge=1)
    """Plain instructions from a seed's metadata."""
    num_actions: int = Field(default=4, ge=1)
    """Rubrics with an action each."""
    rounds: int = Field(default=4, ge=1)
    """Rounds at most; the first is that of the plain instruction."""
    theta: float = Field(default=3.0, ge=0, lt=9)
    """The gap of the mean marks has to be larger than this."""
    temperature: float = Field(default=0.7, gt=0)
    """Of instructions and answers; metadata, actions and marks are greedy."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Cut an answer off after this many tokens."""
    max_json_tokens: int = Field(default=512, ge=16)
    """Cut off what is asked for as JSON, which is everything else; what is cut off is asked again."""

    def asks(self) -> Mapping[str, frozenset[str]]:
        """The strong model, the target, the judge."""
        writes = frozenset({"chat", "schema", "seed"})
        return {self.target: frozenset({"chat", "seed"}), self.judge: writes, "strong": writes}

    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Encode, decode, and take each instruction through its rounds; every instruction, mark and verdict is kept."""
        seed = show_request(prompt)
        metadata = yield from self._ask(_Metadata, _fill(ENCODE, instruction=seed), "encode")
        told = {"use_case": metadata.use_case, "skills": ", ".join(dict.fromkeys(metadata.skills))}
        wanted = _count(_Rubrics, improvements=(list[_Improvement], self.num_actions))
        rubrics = yield from self._ask(wanted, _fill(RUBRICS, **told, count=str(self.num_actions)), "rubrics")
        wanted = _count(_Decoded, instructions=(list[Instruction], self.num_instructions))
        asked = _fill(DECODE, **told, count=str(self.num_instructions))
        decoded = yield from self._ask(wanted, asked, "decode", temperature=self.temperature)
        kind = _Kind(prompt.id, metadata.use_case, [item.action for item in rubrics.improvements], set())
        kind.takes(seed)
        pairs: list[Pair] = []
        why = Refusal("decode", "instruction came before")
        for text in decoded.instructions:
            if not kind.takes(text):
                yield [kind.drop(text, 1, Refusal("decode", "instruction came before"))]
                continue
            try:
                pairs.append((yield from self._sharpen(kind, text)))
            except Refusal as refusal:
                why = refusal
        if not pairs:
            raise why
        return pairs

    def _sharpen(self, kind: _Kind, text: str) -> Steps[Pair]:
        """Contrast the answers to an instruction and, while that comes to nothing, to what an action makes of it.

        Raises the last round's Refusal; what stopped each round is kept under the id of its instruction.
        """
        rng = self.draw(kind.seed_id, text)
        left: list[str] = []  # the same action twice would say the same of the same text
        why: Refusal | None = None
        for number in range(1, self.rounds + 1):
            try:
                if number > 1:
                    left = left or list(kind.actions)
                    left.remove(action := rng.choice(left))
                    text = yield from self._rewrite(kind, text, action)
                return (yield from self._contrast(kind.note(text, number)))
            except Refusal as refusal:
                why = refusal
                yield [kind.drop(text, number, refusal)]
        assert why is not None, "there is a first round"
        raise why

    def _rewrite(self, kind: _Kind, text: str, action: str) -> Steps[str]:
        asked = _fill(REWRITE, instruction=text, action=action)
        newer = (yield from self._ask(_Rewritten, asked, "rewrite", temperature=self.temperature)).instruction
        if not kind.takes(newer):  # the action did nothing, or came to another instruction: another is drawn
            raise Refusal("rewrite", "instruction came before", newer)
        return newer

    def _contrast(self, instruction: Prompt) -> Steps[Pair]:
        """Set the better of the two answers against the other one. Raises Refusal unless it is better by more than theta."""
        drawn = Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)
        answers = yield [
            instruction,
            Ask(instruction.messages, drawn, "answer", "strong"),
            Ask(instruction.messages, drawn, "answer", self.target, attempt=1),  # so that one model says two things
        ]
        strong, target = (item.renumber(prompt_id=instruction.id, index=item.index) for (item,) in answers[1:])
        if not (strong.text.strip() and target.text.strip()):
            raise Refusal("contrast", "empty answer", "target" if strong.text.strip() else "strong")
        if strong.text.strip() == target.text.strip():
            raise Refusal("contrast", "answers alike")
        scores, verdict = yield from self._mark(instruction, strong, target)
        gap = scores[0].value - scores[1].value
        if abs(gap) <= self.theta:
            raise Refusal("contrast", "gap within theta", f"{gap:+.1f}")
        if verdict.winner is None:
            raise Refusal("contrast", "verdict changes with the order", f"{gap:+.1f}")
        sides = [(strong, scores[0].value), (target, scores[1].value)]
        (better, high), (worse, low) = sides if verdict.winner == 0 else sides[::-1]
        yield [Group.make(instruction.messages, [_side("chosen", better, high), _side("rejected", worse, low)])]
        return Pair.make(instruction, better, worse, scores=(high, low), recipe="codec")

    def _mark(
        self, instruction: Prompt, strong: Completion, target: Completion
    ) -> Steps[tuple[list[Score], Comparison]]:
        """Mark both answers in both orders; the mean marks and the comparison are kept, and returned."""
        request, texts = show_request(instruction), [strong.text, target.text]
        orders = [
            _fill(MARKS, instruction=request, first=first, second=second) for first, second in (texts, texts[::-1])
        ]
        sampling = Sampling(max_new_tokens=self.max_json_tokens)
        forward, backward = yield from ask_for(_Marks, list(map(_say, orders)), sampling, step="mark", role=self.judge)
        marks = [(forward.answer_a, backward.answer_b), (forward.answer_b, backward.answer_a)]
        scores = [
            Score(completion_id=item.id, scorer="codec", value=sum(own) / 2, detail={"marks": list(own)})
            for item, own in zip((strong, target), marks, strict=True)
        ]
        leans = [one - other for one, other in zip(*marks, strict=True)]
        verdict = Comparison(
            id=content_id(instruction.id, strong.id, target.id, "codec", self.judge),
            prompt_id=instruction.id,
            judge=self.judge,
            completion_ids=(strong.id, target.id),
            chars=(len(strong.text), len(target.text)),
            forward=_read(leans[0]),
            backward=_read(leans[1]),
        )
        yield [*scores, verdict]
        return scores, verdict

    def _ask(self, wanted: type[AnswerT], text: str, step: str, *, temperature: float = 0) -> Steps[AnswerT]:
        sampling = Sampling(temperature=temperature, max_new_tokens=self.max_json_tokens)
        (found,) = yield from ask_for(wanted, [_say(text)], sampling, step=step, role="strong")
        return found


def _say(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def _fill(form: str, **texts: str) -> str:
    """Fill in a form, in which texts are marked by a name that none of them holds: none ends where it likes."""
    shown = {name: disarm(text) for name, text in texts.items()}
    return form.format(mark=draw_mark(*shown.values()), **shown)


def _count(wanted: type[AnswerT], **fields: tuple[Any, int]) -> type[AnswerT]:
    """Return the type with just so many items in its lists."""
    given: dict[str, Any] = {
        name: (kind, Field(min_length=number, max_length=number)) for name, (kind, number) in fields.items()
    }
    return create_model(wanted.__name__, __base__=wanted, **given)


def _side(role: Literal["chosen", "rejected"], item: Completion, score: float) -> Answer:
    return Answer(text=item.text, role=role, score=score, is_cut=item.finish_reason == "length")


def _read(lean: int) -> Literal["first", "second", "tie"]:
    return "tie" if lean == 0 else "first" if lean > 0 else "second"
