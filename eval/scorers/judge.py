"""A judge's mark for an answer by a rubric, each answer by itself.

Source: single answer grading of Zheng et al. 2023 (arXiv 2306.05685, section 3.1); by `likelihood` the mean of the marks
under the judge's own probabilities, as G-Eval does (Liu et al. 2023, arXiv 2303.16634, section 2.3). Differences: (1) marks
are mapped to 0..1; (2) a mark is written by a JSON schema, so that none is lost to a format.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model

from counterfoil.records import Completion, Message, Prompt, Score
from decode.engine import Content, Sampling
from decode.steps import Steps, Weigh, ask_for
from eval.judging import disarm, draw_mark, show_request
from eval.scorer import Scorer

__all__ = ["Judge"]

MARK = """{rubric}

<{mark} request>
{request}
</{mark} request>

<{mark} answer>
{answer}
</{mark} answer>

Mark the answer from 1 to {scale}, where {scale} is best. Its length does not count."""
REASONED = MARK + " Give a short reason first."
ONE_DIGIT = MARK + " Reply with the number alone."


class Judge(Scorer):
    """A mark from 1 to `scale`, as a share: (mark - 1) / (scale - 1)."""

    role: str = "judge"
    """Which of the job's models judges."""
    rubric: str = "You mark an answer to a request: does it do what the request asks, and is it right?"
    """What makes an answer good; the judge reads it first."""
    scale: int = Field(default=5, ge=2, le=9)
    """The best mark."""
    by: Literal["written", "likelihood"] = "written"
    """`written` is one mark by a JSON schema, `likelihood` the mean mark under the judge's probabilities."""
    explain: bool = True
    """A written mark comes after a reason."""
    max_new_tokens: int = Field(default=256, ge=16)
    """Cut a written mark off after this many tokens."""

    def asks(self) -> Mapping[str, frozenset[str]]:
        """The judge."""
        return {self.role: frozenset({"chat", "schema" if self.by == "written" else "given_logprobs"})}

    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Steps[list[Score]]:
        """Mark all answers at once. Raises Refusal where a written mark cannot be read."""
        asked = [self._render(prompt, item) for item in completions]
        if self.by == "written":
            sampling = Sampling(max_new_tokens=self.max_new_tokens)
            told = yield from ask_for(self._form(), asked, sampling, step="mark", role=self.role)
            details = [item.model_dump() for item in told]
            marks = [float(detail["mark"]) for detail in details]
        else:
            numbers = range(1, self.scale + 1)
            weighed = yield [Weigh(prompt, str(number), "mark", self.role) for prompt in asked for number in numbers]
            sums = [sum(found[0].token_logprobs or ()) for found in weighed]
            rows = [sums[at : at + self.scale] for at in range(0, len(sums), self.scale)]
            marks = [_average(row) for row in rows]
            details = [{"mark": round(mark, 4)} for mark in marks]
        scores = [
            Score(completion_id=item.id, scorer="judge", value=(mark - 1) / (self.scale - 1), detail=detail)
            for item, mark, detail in zip(completions, marks, details, strict=True)
        ]
        yield scores
        return scores

    def _form(self) -> type[BaseModel]:
        """Return what is written, in this order: a model fills a schema in from its first field to its last."""
        reason: dict[str, Any] = {"reason": (str, Field(max_length=400))} if self.explain else {}
        mark: dict[str, Any] = {"mark": (int, Field(ge=1, le=self.scale))}
        return create_model("Mark", **reason, **mark)

    def _render(self, prompt: Prompt, completion: Completion) -> Content:
        request, answer = disarm(show_request(prompt)), disarm(completion.text)
        form = ONE_DIGIT if self.by == "likelihood" else REASONED if self.explain else MARK
        mark = draw_mark(request, answer)
        text = form.format(rubric=self.rubric, mark=mark, request=request, answer=answer, scale=self.scale)
        return (Message(role="user", content=text),)


def _average(log_probs: Sequence[float]) -> float:
    """Return the mean of 1, 2, ... under probabilities that these are the logarithms of, up to a factor."""
    top = max(log_probs)
    weights = [1.0 if value == top else math.exp(value - top) for value in log_probs]  # all impossible: all alike
    return sum(mark * weight for mark, weight in enumerate(weights, start=1)) / sum(weights)
