"""Thousands of dialogues with models side by side: each goes on when its answers are there, the slowest holds nobody.

    prompts -> (steps.py) what each asks -> a session for each model -> answers.py keeps -> outcomes in the prompts' order

One thread drives every session. A dialogue is begun when a session has room and nothing waits for it, so prompts are read
only as fast as they are answered; what a dialogue asks next goes before new ones. A model is opened when the first
question to it has no kept answer.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from counterfoil.config import fingerprint
from counterfoil.errors import RunError
from counterfoil.job import Run
from counterfoil.records import Completion, Dropped, Exchange, Prompt, Record
from decode.answers import Answers
from decode.bench import Bench, Done
from decode.engine import IMPOSSIBLE_NATS, Given, GivenLogprobs, Request, Result
from decode.generate import draw_seed
from decode.speaker import Speaker
from decode.steps import Answered, Ask, Refusal, Step, Steps, Weigh, Work

__all__ = ["Outcome", "converse"]

OPEN_DIALOGUES = 1024
"""Dialogues begun and not ended: several times what any engine computes at a time."""
ENDED_EARLY = 16_384
"""Outcomes that wait for a slower one before them, so that all come in order."""
OPEN_WORKS = 64
"""Computations that wait or are under way, where no model has anything to do, before one is waited for."""
WAIT_S = 0.05
"""For a computation, where no model has anything to do."""
ALL_FAIL = 64
"""Requests that fail, with none answered, before a run is given up."""


class Outcome(NamedTuple):
    """How a dialogue ended."""

    prompt: Prompt
    records: Sequence[Record]
    """What it kept on its way, and what it made."""
    exchanges: Sequence[Exchange]
    dropped: Dropped | None
    """Why it was refused, where it was."""
    is_fresh: bool
    """Whether anything was asked; else all answers were kept from before."""
    is_failed: bool
    """Whether a request of it failed, whatever it made without that answer."""


@dataclass(slots=True)
class _Dialogue:
    """A dialogue under way, and what it waits for."""

    number: int
    prompt: Prompt
    steps: Steps[Sequence[Record]]
    asks: Sequence[Step] = ()
    answers: list[Answered] = field(default_factory=list[Answered])
    missing: int = 0
    """Answers and results that are not there yet."""
    working: int = 0
    """Of those, results of computations of this process."""
    failure: str = ""
    error: BaseException | None = None
    num_asks: int = 0
    num_completions: int = 0
    is_fresh: bool = False
    is_failed: bool = False
    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    records: list[Record] = field(default_factory=list[Record])


@dataclass(slots=True)
class _Line:
    """A model with what waits for it; open once there is something to ask."""

    speaker: Speaker
    identity: str
    adapters: set[str | None]
    waiting: deque[Request | Given] = field(default_factory=deque[Request | Given])
    num_flying: int = 0
    replies: Generator[Result | GivenLogprobs | None] | None = None


class _Asked(NamedTuple):
    """Whose question a request is: the `at`th of what its dialogue asks now."""

    dialogue: _Dialogue
    at: int
    key: str
    start: int


def converse(
    run: Run,
    speakers: Mapping[str, Speaker],
    prompts: Iterator[Prompt | None],
    make: Callable[[Prompt], Steps[Sequence[Record]]],
    *,
    seed: int,
    total: int | None = None,
    stage: str = "generate",
    deadline: float = math.inf,
) -> Generator[Outcome]:
    """Yield how the dialogue of each prompt ended, in the prompts' order; closing it cancels what is in flight.

    `speakers` are the models by role, the main one under the empty name; it also answers for roles that have none. Each
    prompt's draws have a seed of their own, derived from `seed`. A None among the prompts says that none may begin at
    present; it may come only while an outcome is still to be taken. From `deadline` on (of time.monotonic) nothing is asked:
    dialogues that wait for an answer are dropped, those with kept answers go on. Raises RunError where every request fails.
    """
    with run.progress.stage(stage, total=total) as shown, ExitStack() as stack:
        hall = _Hall(run, speakers, prompts, make, stack, seed=seed, deadline=deadline)
        for outcome in hall.hold():
            if outcome.is_fresh:
                shown.advance(**hall.facts())
            else:
                shown.skip()
            yield outcome


class _Hall:
    """Where dialogues are held."""

    def __init__(
        self,
        run: Run,
        speakers: Mapping[str, Speaker],
        prompts: Iterator[Prompt | None],
        make: Callable[[Prompt], Steps[Sequence[Record]]],
        stack: ExitStack,
        *,
        seed: int,
        deadline: float,
    ) -> None:
        self._run, self._make, self._stack, self._seed, self._deadline = run, make, stack, seed, deadline
        self._answers = Answers(run.store)
        self._prompts, self._num_begun = prompts, 0
        self._all_begun = self._over = self._late = False
        lines: dict[str, _Line] = {}
        self._roles: dict[str, tuple[_Line, str | None]] = {}
        for role, speaker in speakers.items():
            name = fingerprint(speaker.model_copy(update={"adapter": None, "price": None}))
            identity = speaker.engine.identify(speaker.model)
            line = lines.setdefault(name, _Line(speaker, identity, set()))
            line.adapters.add(speaker.adapter)
            self._roles[role] = (line, speaker.adapter)
            run.facts["model" if not role else f"model of {role}"] = identity
        self._lines = list(lines.values())
        self._bench = stack.enter_context(closing(Bench()))
        self._open: dict[int, _Dialogue] = {}
        self._asked: dict[str, _Asked] = {}
        self._ended: dict[int, Outcome] = {}
        self._since, self._num_fresh, self._num_tokens = time.monotonic(), 0, 0
        run.facts["opening_s"] = 0.0
        self._num_answered = self._num_failed = 0
        self._failure = ""

    def facts(self) -> dict[str, Any]:
        """Return what is shown beside the bar."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        return {"prompts/s": round(self._num_fresh / seconds, 2), "tokens/s": round(self._num_tokens / seconds)}

    def hold(self) -> Iterator[Outcome]:
        """Hold all dialogues."""
        due = 0
        while True:
            while due in self._ended:
                yield self._ended.pop(due)
                due += 1
            if not self._late and time.monotonic() >= self._deadline:
                self._end_asking()
                continue  # it may have ended all that were open
            busy = [line for line in self._lines if line.waiting or line.num_flying]
            if len(busy) < len(self._lines) or not self._lines:  # one more may have something for an idle model
                begun = self._begin()
                while begun and not busy and 0 < self._bench.num_open < OPEN_WORKS:  # or for an idle thread
                    begun = self._begin()
                if not busy and not begun and not self._bench.num_open:
                    break
            for line in busy:
                reply = next(line.replies or self._connect(line))
                if reply is not None:
                    line.num_flying -= 1
                    self._take(reply)
            if self._bench.num_open:
                for done in self._bench.take(wait_s=0.0 if busy else WAIT_S):
                    self._take_work(done)
        self._over = True
        if self._num_failed and not self._num_answered:
            raise self._give_up()

    def _connect(self, line: _Line) -> Generator[Result | GivenLogprobs | None]:
        speaker, started = line.speaker, time.monotonic()
        methods = [speaker.method] if speaker.method else []
        session = speaker.engine.open(speaker.model, adapters=sorted(line.adapters, key=str), methods=methods)
        self._run.facts["opening_s"] = round(self._run.facts["opening_s"] + time.monotonic() - started, 2)
        if not self._num_tokens:
            self._since = time.monotonic()  # a rate is of the time in which there was something to answer with
        line.replies = self._stack.enter_context(
            closing(self._stack.enter_context(session).stream(self._feed(line), glance=True))
        )
        return line.replies

    def _feed(self, line: _Line) -> Iterator[Request | Given | None]:
        while not self._over:
            while not line.waiting and self._begin():
                pass
            if line.waiting:
                line.num_flying += 1
                yield line.waiting.popleft()
            else:
                yield None

    def _begin(self) -> bool:
        """Begin one more dialogue, unless enough are open or there is no prompt left."""
        if self._all_begun or len(self._open) >= OPEN_DIALOGUES or len(self._ended) >= ENDED_EARLY:
            return False
        prompt = next(self._prompts, "the end")
        if not isinstance(prompt, Prompt):
            self._all_begun = prompt is not None
            return False
        dialogue = self._open[self._num_begun] = _Dialogue(self._num_begun, prompt, self._make(prompt))
        self._num_begun += 1
        self._go_on(dialogue, lambda: next(dialogue.steps))
        return True

    def _go_on(self, dialogue: _Dialogue, step: Callable[[], Sequence[Step]]) -> None:
        """Take a dialogue's next steps, as far as they have kept answers."""
        while True:
            try:
                dialogue.asks = step()
            except StopIteration as stop:
                dialogue.records += stop.value
                self._end(dialogue, None)
                return
            except Refusal as refusal:
                self._end(dialogue, refusal)
                return
            dialogue.answers, dialogue.failure = [()] * len(dialogue.asks), ""
            for at, asked in enumerate(dialogue.asks):
                if isinstance(asked, Record):
                    dialogue.records.append(asked)
                elif isinstance(asked, Work):
                    self._bench.put(
                        (dialogue, at), partial(self._compute, dialogue, asked), lane=asked.lane, threads=asked.threads
                    )
                    dialogue.missing += 1
                    dialogue.working += 1
                else:
                    dialogue.missing += not self._ask(dialogue, at, asked)
            if dialogue.missing:
                if self._late and dialogue.missing > dialogue.working:
                    self._end(dialogue, Refusal("budget", "max_seconds reached"))
                return
            step = self._close_round(dialogue)

    def _ask(self, dialogue: _Dialogue, at: int, asked: Ask | Weigh) -> bool:
        """Take a kept answer, or else queue the question; return whether there was one."""
        line, adapter = self._roles[asked.role] if asked.role in self._roles else self._roles[""]
        prompt, start = dialogue.prompt, dialogue.num_completions
        name = f"{prompt.id}/{dialogue.num_asks}" if dialogue.num_asks else prompt.id
        dialogue.num_asks += 1
        if isinstance(asked, Ask):
            seed = draw_seed(self._seed, f"{prompt.id}/{asked.attempt}" if asked.attempt else prompt.id)
            sampling = asked.sampling.model_copy(update={"seed": seed if asked.sampling.temperature > 0 else 0})
            dialogue.num_completions += sampling.n
            item = Request(name, asked.prompt, sampling, adapter, line.speaker.method)
        else:
            dialogue.num_completions += 1
            item = Given(name, asked.prompt, asked.text, adapter, line.speaker.method)
        key = line.speaker.engine.key(item, line.identity)
        found = self._answers.find(key, prompt_id=prompt.id, start=start)
        if found is not None:
            dialogue.answers[at] = found
            self._num_answered += 1
            return True
        if self._late:
            return False
        dialogue.is_fresh = True
        self._asked[name] = _Asked(dialogue, at, key, start)
        if dialogue.exchanges:  # it has begun: it goes before new ones
            line.waiting.appendleft(item)
        else:
            line.waiting.append(item)
        return False

    def _take(self, reply: Result | GivenLogprobs) -> None:
        """Keep an answer; where it was the last that its dialogue waited for, go on with that."""
        dialogue, at, key, start = self._asked.pop(reply.id)
        dialogue.missing -= 1
        if reply.failure is not None:
            dialogue.failure = self._failure = reply.failure
            dialogue.is_failed = True
            self._num_failed += 1
            if self._num_failed >= ALL_FAIL and not self._num_answered:
                raise self._give_up()
        else:
            found = reply.completions if isinstance(reply, Result) else [_weighed(dialogue.asks[at], reply)]
            is_first = self._answers.keep(key, found)
            self._num_answered += 1
            self._num_tokens += sum(item.num_tokens for item in found)
            own = tuple(
                item.renumber(prompt_id=dialogue.prompt.id, index=start + number) for number, item in enumerate(found)
            )
            kept = None if is_first else self._answers.find(key, prompt_id=dialogue.prompt.id, start=start)
            dialogue.answers[at] = kept or own
        if not dialogue.missing:
            self._go_on(dialogue, self._close_round(dialogue))

    def _compute(self, dialogue: _Dialogue, work: Work) -> Any:
        """Compute, in a thread, unless the dialogue has ended meanwhile."""
        return work.call() if dialogue.number in self._open else None

    def _take_work(self, done: Done) -> None:
        """Take what was computed; where nothing else is waited for, go on with it."""
        dialogue, at = done.tag
        if dialogue.number not in self._open:  # its time was up
            return
        dialogue.missing -= 1
        dialogue.working -= 1
        dialogue.error = dialogue.error or done.error
        dialogue.answers[at] = (done.value,)
        if not dialogue.missing:
            self._go_on(dialogue, self._close_round(dialogue))

    def _close_round(self, dialogue: _Dialogue) -> Callable[[], Sequence[Step]]:
        """Note what was asked and answered; return the dialogue's next step."""
        for asked, answered in zip(dialogue.asks, dialogue.answers, strict=True):
            if (
                isinstance(asked, Work | Record) or not answered
            ):  # where another's request failed, an answer counts as well
                continue
            dialogue.exchanges.append(
                Exchange(
                    prompt_id=dialogue.prompt.id,
                    step=asked.step,
                    role=asked.role,
                    sent=asked.prompt,
                    completions=answered,
                )
            )
        error, dialogue.error = dialogue.error, None
        if dialogue.failure:
            refusal = Refusal("generate", "request failed", dialogue.failure)
            return lambda: dialogue.steps.throw(refusal)
        if error is not None:
            return lambda: dialogue.steps.throw(error)
        answers = dialogue.answers
        return lambda: dialogue.steps.send(answers)

    def _end_asking(self) -> None:
        """Cancel what is in flight, and drop the dialogues that wait for it."""
        self._late = True
        for line in self._lines:
            if line.replies is not None:
                line.replies.close()
            line.waiting.clear()
            line.num_flying = 0
        self._asked.clear()
        for dialogue in list(self._open.values()):
            if dialogue.missing > dialogue.working:  # else all is answered, and only to be judged
                self._end(dialogue, Refusal("budget", "max_seconds reached"))

    def _end(self, dialogue: _Dialogue, why: Refusal | None) -> None:
        prompt = dialogue.prompt
        dropped = why and Dropped(id=prompt.id, stage=why.stage, reason=why.reason, detail=why.detail[:2000])
        self._num_fresh += dialogue.is_fresh
        del self._open[dialogue.number]
        self._ended[dialogue.number] = Outcome(
            prompt, dialogue.records, dialogue.exchanges, dropped, dialogue.is_fresh, dialogue.is_failed
        )

    def _give_up(self) -> RunError:
        given = f"no request was answered; the last failed with: {self._failure}"
        do = "Mend what it names and run again: all are asked again."
        return RunError("generate", given=given, allowed="at least one answer", do=do)


def _weighed(asked: Step, reply: GivenLogprobs) -> Completion:
    assert isinstance(asked, Weigh)
    return Completion.make(
        prompt_id=reply.id,
        index=0,
        text=asked.text,
        finish_reason="stop",
        num_prompt_tokens=reply.num_prompt_tokens,
        num_tokens=len(reply.token_logprobs),
        token_logprobs=tuple(max(value, IMPOSSIBLE_NATS) for value in reply.token_logprobs),
    )
