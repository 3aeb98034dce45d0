r"""Every record that counterfoil reads or writes, on one page.

Each is a line of a JSONL file. Ids are content hashes, so that records are joined by what they are and never by where
they stand: the same prompt has the same id in every run.

    Prompt -> Completion (n a prompt) -> Score (one a completion and scorer) -> Pair
                                      \\-> Dropped: whatever does not go on, with the stage and the reason
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

__all__ = [
    "Answer",
    "Comparison",
    "Completion",
    "Dropped",
    "Exchange",
    "Group",
    "Message",
    "Pair",
    "Prompt",
    "Record",
    "Score",
    "Span",
    "Triplet",
    "content_id",
]


_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


def content_id(*parts: Any) -> str:
    """Hash JSON-able `parts` to 16 hexadecimal digits (64 bits of BLAKE2b; a clash in 10 million records: 3e-6)."""
    return hashlib.blake2b(_encode(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


class Message(TypedDict):
    """One turn of a chat, as transformers' chat templates take it."""

    role: str
    content: str


class Record(BaseModel):
    """Frozen; a key that is not a field is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompt(Record):
    """What a model is asked."""

    id: str
    messages: tuple[Message, ...]
    reference: dict[str, Any] = {}
    """What a scorer needs to judge an answer (constraints, a gold answer); no model is ever shown it."""
    tags: dict[str, str] = {}
    """Where it comes from, for grouping in reports: topic, split, source file and line."""
    negative: tuple[Message, ...] | None = None
    """What decoding methods with two prompts contrast it with: the question without its context, a negative prompt."""

    @classmethod
    def make(
        cls,
        messages: str | Sequence[Message],
        *,
        reference: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
        negative: str | Sequence[Message] | None = None,
    ) -> Self:
        """Build a prompt with its id. A string becomes one user message. Tags are no part of the id."""
        turns, reference = _turns(messages), reference or {}
        against = None if negative is None else _turns(negative)
        parts = (turns, reference) if against is None else (turns, reference, against)
        return cls(id=content_id(*parts), messages=turns, reference=reference, tags=tags or {}, negative=against)


def _turns(messages: str | Sequence[Message]) -> tuple[Message, ...]:
    return (Message(role="user", content=messages),) if isinstance(messages, str) else tuple(messages)


class Completion(Record):
    """What a model answered."""

    id: str
    prompt_id: str
    index: int
    """Which of the n samples of its prompt, from 0."""
    text: str
    finish_reason: str
    """`stop` (end of sequence or a stop string) or `length` (cut off at max_new_tokens)."""
    num_prompt_tokens: int
    num_tokens: int
    """Tokens generated, the end-of-sequence token included."""
    token_ids: tuple[int, ...] | None = None
    token_logprobs: tuple[float, ...] | None = None
    """Natural-log probabilities of the generated tokens under the model itself, before temperature and truncation."""

    @classmethod
    def make(cls, *, prompt_id: str, index: int, text: str, **rest: Any) -> Self:
        """Build a completion with its id, which is of the prompt, the index and the text."""
        text = text.encode(errors="replace").decode()  # half of a surrogate pair, which a server may send, is no text
        return cls(id=content_id(prompt_id, index, text), prompt_id=prompt_id, index=index, text=text, **rest)

    def renumber(self, *, prompt_id: str, index: int) -> Self:
        """Return it as an answer to another prompt, or of another number."""
        if (prompt_id, index) == (self.prompt_id, self.index):
            return self
        update = {"id": content_id(prompt_id, index, self.text), "prompt_id": prompt_id, "index": index}
        return self.model_copy(update=update)


class Exchange(Record):
    """What a model was sent on a record's way, and what it answered."""

    prompt_id: str
    """Of the prompt with which the dialogue began."""
    step: str
    """What it is in the dialogue: `answer`, `judge` ..."""
    role: str = ""
    """Which of the job's models was asked; empty for the main one."""
    sent: tuple[Message, ...] | str | tuple[int, ...]
    """Chat messages, a text that is continued, or token ids."""
    completions: tuple[Completion, ...]
    """What came back; their `prompt_id` is this one, their `index` goes on through the whole dialogue."""


class Score(Record):
    """What a scorer says of a completion: higher is better."""

    completion_id: str
    scorer: str
    value: float
    detail: dict[str, Any] = {}


class Pair(Record):
    """A preference pair in TRL's conversational format, with the stub that says how it was made."""

    id: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    score_chosen: float
    score_rejected: float
    prompt_id: str
    chosen_id: str
    rejected_id: str
    recipe: str
    cut: tuple[Literal["chosen", "rejected"], ...] = ()
    """Sides that stop before their end, at a limit of tokens."""
    source_id: str = ""
    """Of the prompt with which the dialogue that made it began, as in its exchanges; a recipe may ask about others."""

    @classmethod
    def make(
        cls, prompt: Prompt, chosen: Completion, rejected: Completion, *, scores: tuple[float, float], recipe: str
    ) -> Self:
        """Pair two completions of `prompt`. Raises ValueError where one is no answer to it or empty, or both are one."""
        if {chosen.prompt_id, rejected.prompt_id} != {prompt.id}:
            raise ValueError(f"prompt {prompt.id} got answers to {chosen.prompt_id} and {rejected.prompt_id}")
        if chosen.text == rejected.text or not (chosen.text.strip() and rejected.text.strip()):
            raise ValueError(f"prompt {prompt.id} got an empty answer, or one answer twice")
        sides: tuple[tuple[Literal["chosen", "rejected"], Completion], ...] = (
            ("chosen", chosen),
            ("rejected", rejected),
        )
        return cls(
            id=content_id(prompt.id, chosen.text, rejected.text),
            prompt=prompt.messages,
            chosen=({"role": "assistant", "content": chosen.text},),
            rejected=({"role": "assistant", "content": rejected.text},),
            score_chosen=scores[0],
            score_rejected=scores[1],
            prompt_id=prompt.id,
            chosen_id=chosen.id,
            rejected_id=rejected.id,
            recipe=recipe,
            cut=tuple(name for name, side in sides if side.finish_reason == "length"),
        )


class Comparison(Record):
    """What a judge said of two answers to one prompt, shown in both orders."""

    id: str
    prompt_id: str
    judge: str
    """The role of the model that judged."""
    completion_ids: tuple[str, str]
    chars: tuple[int, int]
    """Lengths of the two texts."""
    forward: Literal["first", "second", "tie"]
    """Which of `completion_ids` was better where they were shown in this order."""
    backward: Literal["first", "second", "tie"]
    """Which of `completion_ids` was better where the second was shown first."""
    preference: float = 0.0
    """How much the first was preferred, -1 to 1, over both orders, where the judge's probabilities were read."""

    @property
    def winner(self) -> int | None:
        """0 or 1, the one that won in both orders; None where there is none."""
        if self.forward != self.backward or self.forward == "tie":
            return None
        return 0 if self.forward == "first" else 1


class Triplet(Record):
    """Texts for an embedder, in sentence-transformers' columns: the anchor is nearer to the positive than to the negative."""

    id: str
    anchor: str
    positive: str
    negative: str | None = None
    shares: dict[str, float] = {}
    """Texts that are one positive together, each with its weight, all weights together 1: the positive's vector is then the
    weighted mean of theirs. Empty where `positive` stands alone; else that is the heaviest."""
    prompt_id: str = ""
    recipe: str = ""
    source_id: str = ""
    """As of a pair."""

    @classmethod
    def make(cls, anchor: str, positive: str, negative: str | None = None, *, prompt_id: str, recipe: str) -> Self:
        """Build a triplet with its id. Raises ValueError where two of its texts are one."""
        texts = [text for text in (anchor, positive, negative) if text is not None]
        if len(set(texts)) < len(texts) or not all(text.strip() for text in texts):
            raise ValueError("a triplet of equal or empty texts")
        key = content_id(anchor, positive, negative)
        return cls(id=key, anchor=anchor, positive=positive, negative=negative, prompt_id=prompt_id, recipe=recipe)


class Span(Record):
    """A piece of an answer's text, in characters."""

    start: int
    stop: int
    label: str = ""
    """What is said of it: a fault's name, an option's letter."""


class Answer(Record):
    """An answer to a group's prompt, and what is known of it."""

    text: str
    role: Literal["chosen", "rejected", ""] = ""
    """Whether it is one to learn or one to leave; empty where only its score is known."""
    score: float | None = Field(default=None, allow_inf_nan=False)
    """Higher is better, in the scorer's units."""
    is_cut: bool = False
    """Whether the text stops before its end (at a limit of tokens): no end is then learnt after it."""
    token_ids: tuple[int, ...] | None = None
    """Its tokens as they were drawn, the one that ends it included; None encodes the text."""
    spans: tuple[Span, ...] = ()
    """Pieces of it that are labelled."""
    final: str = ""
    """What it comes to: the number, the option's letter that was read from its end."""
    prompt: str | tuple[Message, ...] | None = None
    """What it answers, where that is not the group's prompt: a counterfactual one."""


class Group(Record):
    """Answers that are learnt from together: a pair, K scored samples of a prompt, an answer with its faults marked."""

    id: str
    prompt: str | tuple[Message, ...]
    """A chat, or a text that the answers go on."""
    answers: tuple[Answer, ...]
    reference: dict[str, Any] = {}
    """What a scorer needs to judge another answer (Prompt.reference); no model is ever shown it."""
    source_id: str = ""
    """As of a pair."""

    @classmethod
    def make(
        cls, prompt: str | Sequence[Message], answers: Sequence[Answer], *, reference: dict[str, Any] | None = None
    ) -> Self:
        """Build a group with its id. The reference is no part of the id."""
        asked = prompt if isinstance(prompt, str) else tuple(prompt)
        given = [item.model_dump(exclude_defaults=True) for item in answers]
        return cls(id=content_id(asked, given), prompt=asked, answers=tuple(answers), reference=reference or {})


class Dropped(Record):
    """A record that does not go on: nothing is lost without one of these."""

    id: str
    stage: str
    """Where it stopped: `read`, `generate`, `contrast`, a filter's name, `tokenize` ..."""
    reason: str
    """A short fixed phrase that can be counted: `no margin`, `empty answer`, `request failed` ..."""
    detail: str = ""
