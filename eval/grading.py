"""Answers that are there already, graded: by code at once, by models in dialogues side by side."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

from counterfoil.errors import ConfigError
from counterfoil.job import Run
from counterfoil.records import Completion, Prompt, Score
from decode.dialogue import converse
from decode.engine import require
from decode.speaker import Role, Speaker
from decode.steps import Steps
from eval.scorer import LocalScorer, Scorer

__all__ = ["check_roles", "grade_all"]


def check_roles(scorer: Scorer, roles: Mapping[str, Role]) -> None:
    """Raise EngineError or ConfigError where a scorer's models lack something, or one is given that it does not ask."""
    asks = scorer.asks()
    for role, needs in asks.items():
        require(_speaker(roles, role).engine, needs, where=f"roles.{role}.engine")
    for role in roles.keys() - asks.keys():
        allowed = ", ".join(sorted(asks)) or "none: this scorer asks no model"
        raise ConfigError(
            f"roles.{role}", given="a role that the scorer does not ask", allowed=allowed, do="Remove it."
        )


def grade_all(
    run: Run,
    scorer: Scorer,
    roles: Mapping[str, Role],
    answered: Mapping[str, Sequence[Completion]],
    prompts: Mapping[str, Prompt],
    *,
    seed: int = 0,
) -> Iterator[tuple[str, list[Score]]]:
    """Yield the scores of each prompt's answers under its id; a prompt without a verdict is dropped, by name.

    `answered` and `prompts` have the same keys: prompts' ids. Models that a scorer asks are `roles`, else the small one.
    """
    if isinstance(scorer, LocalScorer):
        for key, answers in answered.items():
            yield key, [scorer.score(prompts[key], item) for item in answers]
        return

    def make(prompt: Prompt) -> Steps[list[Score]]:
        return (yield from scorer.grade(prompt, answered[prompt.id]))

    speakers = {role: _speaker(roles, role) for role in scorer.asks()}
    own = (prompts[key] for key in answered)
    with closing(converse(run, speakers, own, make, seed=seed, total=len(answered), stage="judge")) as outcomes:
        for outcome in outcomes:
            if outcome.dropped is not None:
                run.drop(outcome.dropped)
                continue
            of = {item.completion_id: item for item in outcome.records if isinstance(item, Score)}
            yield outcome.prompt.id, [of[item.id] for item in answered[outcome.prompt.id]]


def _speaker(roles: Mapping[str, Role], role: str) -> Speaker:
    return roles[role].speak_for(Speaker()) if role in roles else Speaker()
