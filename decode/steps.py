"""A dialogue with models, written as plain control flow: a generator that yields what it asks and gets what was answered.

    def make(self, prompt):
        (drafts,) = yield [Ask(prompt.messages, Sampling(n=4, temperature=1))]
        (verdict,) = yield [Ask(self._judge(prompt, drafts), Sampling(), step="judge", role="judge")]
        yield [Score(...)]
        ...
        return pairs

Each `yield` may ask several things at once; the next goes on when all of them are answered. A record that is yielded is kept,
whatever becomes of the dialogue. `dialogue.py` runs thousands of these side by side. One must ask the same again when it is
run again with the same answers: it draws chance from the prompt's id alone, and keeps nothing between prompts.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from counterfoil.records import Record
from decode.engine import Content, Sampling

__all__ = ["Answered", "Ask", "Refusal", "Step", "Steps", "Weigh", "Work", "ask_for"]

RETRY_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to a model."""

    prompt: Content
    sampling: Sampling
    step: str = "answer"
    """What it is in the dialogue, for people who read how a record was made."""
    role: str = ""
    """Which of the job's models is asked; empty for the one whose answers are learnt."""
    attempt: int = 0
    """Another attempt draws other samples."""


@dataclass(frozen=True, slots=True)
class Weigh:
    """A text whose log-probability under a model is asked for; answered by a completion that has it, token by token."""

    prompt: Content
    text: str
    step: str = "weigh"
    role: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """A computation of this process that takes long, done in a thread; answered by its one result.

    What it raises is raised at the `yield`. It is not kept: it must come to the same when it is done again.
    """

    call: Callable[[], Any]
    lane: str
    """Works of one lane share its threads, and are done in order: a library that bears one caller at a time has a lane."""
    threads: int = 1


Answered = tuple[Any, ...]
"""A question's n completions in order, numbered through the whole dialogue; the result of a computation; none to a record."""

AnswerT = TypeVar("AnswerT", bound=BaseModel)
ReturnT = TypeVar("ReturnT")
Step = Ask | Weigh | Work | Record
Steps = Generator[Sequence[Step], list[Answered], ReturnT]


class Refusal(Exception):  # noqa: N818  (no error: it ends one record's way)
    """Ends a dialogue: its prompt is dropped, with these words. It is raised at a `yield` whose request failed."""

    def __init__(self, stage: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage, self.reason, self.detail = stage, reason, detail


def ask_for(
    wanted: type[AnswerT],
    prompts: Sequence[Content],
    sampling: Sampling,
    *,
    step: str,
    role: str = "",
    retries: int = 2,
) -> Steps[list[AnswerT]]:
    """Ask each prompt at once for a JSON document of the type `wanted`, whose schema the engine holds the model to.

    What cannot be read all the same (it was cut off, a rule of the type's own is broken) is asked again, sampled, `retries`
    times. Raises Refusal with the last raw text after that.
    """
    found: dict[int, AnswerT] = {}
    text = ""
    for attempt in range(retries + 1):
        changes: dict[str, Any] = {"json_schema": wanted.model_json_schema(), "n": 1}
        if attempt and sampling.temperature == 0:
            changes["temperature"] = RETRY_TEMPERATURE  # greedily it would say the same again
        asked = sampling.model_copy(update=changes)
        left = [at for at in range(len(prompts)) if at not in found]
        answers = yield [Ask(prompts[at], asked, step, role, attempt) for at in left]
        for at, (answered,) in zip(left, answers, strict=True):
            try:
                found[at] = wanted.model_validate_json(answered.text)
            except ValidationError:
                text = answered.text
        if len(found) == len(prompts):
            return [found[at] for at in range(len(prompts))]
    raise Refusal(step, "not as the schema asks", text)
