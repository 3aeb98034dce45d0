"""Two answers set side by side by a judge that is a model, in both orders: only what it says in both is believed.

Source: Zheng et al. 2023 (arXiv 2306.05685), sections 3.3 and 3.4: judges prefer what is shown first, or what is long, and a
win counts where it stays one with the two swapped. By `likelihood` the verdict's own probability is read in place of a
written one, as Liu et al. 2023 (arXiv 2303.16634) read scores: a small model is a poor writer of verdicts. Differences: (1)
the two answers are marked by a name that no text shown holds, so that an answer cannot end where it likes and go on as the
other, and `<|`, with which most models' control tokens begin, is taken apart in texts; (2) equal texts are a tie and ask
nobody. An answer may still argue with the judge, as any text that a model reads.
"""

import math
from collections.abc import Sequence
from itertools import count
from typing import Any, Literal

from pydantic import BaseModel, Field

from counterfoil.config import Config
from counterfoil.records import Comparison, Completion, Message, Prompt, content_id
from decode.engine import Content, Sampling
from decode.steps import Steps, Weigh, ask_for

__all__ = ["PairJudge", "disarm", "draw_mark", "show_request"]

COMPARE = """{criteria}

<{mark} request>
{request}
</{mark} request>

<{mark} answer A>
{first}
</{mark} answer A>

<{mark} answer B>
{second}
</{mark} answer B>

Which answer is better, A or B? Neither the order nor the length of the answers counts."""
REASONED = COMPARE + " Give a short reason first; say tie where they are equally good."
BARE = COMPARE + " Say A, B or tie."
ONE_LETTER = COMPARE + " Reply with one letter."


class _Bare(BaseModel):
    better: Literal["A", "B", "tie"]


class _Reasoned(BaseModel):
    reason: str = Field(max_length=400)
    better: Literal["A", "B", "tie"]


class PairJudge(Config):
    """How a model compares two answers; scorers and filters that do are one, so that their YAML is flat."""

    role: str = "judge"
    """Which of the job's models judges."""
    criteria: str = "You compare two answers to a request. The better one does what the request asks, and is right."
    """What makes an answer good; the judge reads it first."""
    by: Literal["written", "likelihood"] = "written"
    """`written` is a verdict by a JSON schema, `likelihood` the log-probabilities of A and B."""
    explain: bool = True
    """A written verdict comes after a reason."""
    tie_band: float = Field(default=0.1, ge=0, lt=1)
    """By likelihood, a tie where the probabilities of A and B, of their sum, differ by no more than this."""
    max_new_tokens: int = Field(default=256, ge=16)
    """Cut a written verdict off after this many tokens."""

    def asks(self) -> dict[str, frozenset[str]]:
        """Return the judge's role, and what its engine must give."""
        return {self.role: frozenset({"chat", "schema" if self.by == "written" else "given_logprobs"})}

    def compare(self, prompt: Prompt, pairs: Sequence[tuple[Completion, Completion]]) -> Steps[list[Comparison]]:
        """Compare answers to `prompt`, all pairs at once; all comparisons are returned, those that the judge made yielded.

        Raises Refusal where a written verdict cannot be read.
        """
        unlike = [pair for pair in pairs if pair[0].text.strip() != pair[1].text.strip()]
        orders = [
            self._render(prompt, *shown) for first, second in unlike for shown in ((first, second), (second, first))
        ]
        if self.by == "written":
            wanted = _Reasoned if self.explain else _Bare
            sampling = Sampling(max_new_tokens=self.max_new_tokens)
            told = yield from ask_for(wanted, orders, sampling, step="compare", role=self.role)
            leans = [{"A": 1.0, "B": -1.0, "tie": 0.0}[item.better] for item in told]
        else:
            weighed = yield [Weigh(order, letter, "compare", self.role) for order in orders for letter in "AB"]
            sums = [sum(found[0].token_logprobs or ()) for found in weighed]
            # P(A) - P(B) of their sum; where both are impossible, as a method may make them, there is no difference.
            leans = [0.0 if a == b else math.tanh((a - b) / 2) for a, b in zip(sums[::2], sums[1::2], strict=True)]
        told_of = dict(
            zip(((one.id, two.id) for one, two in unlike), zip(leans[::2], leans[1::2], strict=True), strict=True)
        )
        found = [self._conclude(prompt, one, two, *told_of.get((one.id, two.id), (0.0, 0.0))) for one, two in pairs]
        yield [item for item, (one, two) in zip(found, pairs, strict=True) if (one.id, two.id) in told_of]
        return found

    def _conclude(
        self, prompt: Prompt, first: Completion, second: Completion, forward: float, swapped: float
    ) -> Comparison:
        """Note how far the judge leant to what it saw first, in either order."""
        return Comparison(
            id=content_id(prompt.id, *sorted((first.id, second.id)), self._settings),
            prompt_id=prompt.id,
            judge=self.role,
            completion_ids=(first.id, second.id),
            chars=(len(first.text), len(second.text)),
            forward=self._read(forward),
            backward=self._read(-swapped),
            preference=round((forward - swapped) / 2, 6),
        )

    @property
    def _settings(self) -> dict[str, Any]:
        """What makes a judge the same one, whether a scorer or a filter is it."""
        return self.model_dump(include=set(PairJudge.model_fields))

    def _read(self, lean: float) -> Literal["first", "second", "tie"]:
        if abs(lean) <= (self.tie_band if self.by == "likelihood" else 0):
            return "tie"
        return "first" if lean > 0 else "second"

    def _render(self, prompt: Prompt, first: Completion, second: Completion) -> Content:
        request, one, two = map(disarm, (show_request(prompt), first.text, second.text))
        mark = draw_mark(request, one, two)
        form = ONE_LETTER if self.by == "likelihood" else REASONED if self.explain else BARE
        text = form.format(criteria=self.criteria, mark=mark, request=request, first=one, second=two)
        return (Message(role="user", content=text),)


def draw_mark(request: str, *answers: str) -> str:
    """Return a name that neither a request nor its answers hold: the same for all answers, unless one of them holds it."""
    marks = (content_id(request, number)[:8] for number in count())
    return next(mark for mark in marks if not any(mark in text for text in (request, *answers)))


def disarm(text: str) -> str:
    """Return a text that spells no control token such as `<|im_end|>`, which a judge's tokenizer would take for one."""
    return text.replace("<|", "< |")


def show_request(prompt: Prompt) -> str:
    """Return what a prompt asks, as one text for a judge."""
    if len(prompt.messages) == 1:
        return prompt.messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)
