"""The share of a prompt's constraints that an answer meets, checked by code."""

from typing import Any, cast

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.records import Completion, Prompt, Score
from eval.constraints.kinds import KINDS
from eval.constraints.text import distinct_share, words
from eval.scorer import LocalScorer

__all__ = ["Verifiable"]

_LEAST_WORDS = 12  # fewer words repeat too little by chance to tell a loop from a list


class Verifiable(LocalScorer):
    """Constraints met divided by constraints; an empty or looping text scores 0.

    The detail holds a bool for each kind (`kind#2` where the second constraint is of the same kind again) and `all`;
    `cut_off` or `degenerate` is there, and true, where the answer was stopped by its length or loops. A cut-off answer
    keeps its checks.
    """

    min_distinct: float = Field(default=0.3, ge=0, le=1)
    """Distinct words divided by words below which an answer of 12 words or more counts as looping."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Check the constraints of `prompt.reference`. Raises InputError where they are missing or of no known kind."""
        detail: dict[str, bool] = {}
        for number, constraint in enumerate(_read(prompt), start=1):
            name = str(constraint.get("kind"))
            key = name if name not in detail else f"{name}#{number}"
            detail[key] = _check(prompt, constraint, completion.text)
        met = list(detail.values())
        degenerate = len(words(completion.text)) >= _LEAST_WORDS and distinct_share(completion.text) < self.min_distinct
        detail["all"] = all(met) and not degenerate
        if degenerate:
            detail["degenerate"] = True
        if completion.finish_reason == "length":
            detail["cut_off"] = True
        value = 0.0 if degenerate else sum(met) / len(met)
        return Score(completion_id=completion.id, scorer="verifiable", value=value, detail=dict(detail))


def _read(prompt: Prompt) -> list[dict[str, Any]]:
    given: object = prompt.reference.get("constraints")
    entries = cast(list[object], given) if isinstance(given, list) else []
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f"prompt {prompt.id}: reference.constraints",
            given="missing" if given is None else repr(entries or cast(object, given))[:100],
            allowed='a list such as [{"kind": "max_words", "n": 20}], with one constraint or more',
            do="Use prompts of a task whose scorer is `verifiable`, or choose another scorer.",
        )
    return cast(list[dict[str, Any]], entries)


def _check(prompt: Prompt, constraint: dict[str, Any], text: str) -> bool:
    kind = KINDS.get(str(constraint.get("kind")))
    if kind is None:
        raise InputError(
            f"prompt {prompt.id}: reference.constraints",
            given=f"kind {constraint.get('kind')!r}",
            allowed=", ".join(sorted(KINDS)),
            do="Name one of these kinds.",
        )
    params = {key: value for key, value in constraint.items() if key != "kind"}
    try:
        return kind.check(text, params)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"prompt {prompt.id}: reference.constraints: {kind.name}",
            given=f"{params} ({type(error).__name__}: {error})",
            allowed=f"the parameters of: {kind.wordings[0]}",
            do="Give every parameter of this kind, with its right type.",
        ) from error
