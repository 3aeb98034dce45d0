"""How likely an answer is under a model, alone or against another model: the implicit reward of preference learning.

Source: with `against`, log p(y|x) - log q(y|x) is DPO's implicit reward up to its beta (Rafailov et al. 2023, arXiv
2305.18290, equation 5); alone, by the token, it is the length-normalised reward of SimPO (Meng et al. 2024, arXiv 2405.14734,
equation 4). Differences: (1) the end of the answer is not part of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import model_validator

from counterfoil.records import Completion, Prompt, Score
from decode.steps import Refusal, Steps, Weigh
from eval.scorer import Scorer

__all__ = ["LogLikelihood"]


class LogLikelihood(Scorer):
    """Natural-log probability of the answer, in nats, or in nats a token; less that under a second model."""

    role: str = ""
    """The model; the empty name is the main one."""
    against: str | None = None
    """The model whose log-probability is taken away; None takes nothing away."""
    per_token: bool = True
    """Divide by the answer's tokens, as `role` counts them."""

    @model_validator(mode="after")
    def check_roles(self) -> Self:
        """Refuse a model against itself, which tells nothing."""
        if self.against == self.role:
            raise ValueError(f"against: the model {self.role!r} itself")
        return self

    def asks(self) -> Mapping[str, frozenset[str]]:
        """The models."""
        roles = [self.role] if self.against is None else [self.role, self.against]
        return dict.fromkeys(roles, frozenset({"chat", "given_logprobs"}))

    def grade(self, prompt: Prompt, completions: Sequence[Completion]) -> Steps[list[Score]]:
        """Weigh all answers at once; one without text counts as the least likely of the others.

        Raises Refusal where none has text.
        """
        said = [item for item in completions if item.text]
        if not said:
            raise Refusal("log_likelihood", "empty answers alone")
        roles = list(self.asks())
        weighed = yield [Weigh(prompt.messages, item.text, role=role) for role in roles for item in said]
        sums = [sum(found[0].token_logprobs or ()) for found in weighed]
        counts = [len(found[0].token_logprobs or ()) for found in weighed]
        size = len(said)
        known: dict[str, tuple[float, dict[str, Any]]] = {}
        for at, item in enumerate(said):
            value = sums[at] - (sums[size + at] if self.against is not None else 0.0)
            detail: dict[str, Any] = {"nats": round(value, 4), "tokens": counts[at]}
            value /= max(counts[at], 1) if self.per_token else 1
            known[item.id] = (value, detail)
        nothing = (min(value for value, _ in known.values()), {"empty": True})
        scores: list[Score] = []
        for item in completions:
            value, detail = known.get(item.id, nothing)
            scores.append(Score(completion_id=item.id, scorer="log_likelihood", value=value, detail=detail))
        yield scores
        return scores
