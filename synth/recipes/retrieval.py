"""Triplets of texts out of an index: neighbours in meaning, and neighbours whose verified answer is another.

Source: semantic retrieval augmentation of Cui et al. 2025 (SRA-CL, arXiv 2503.04162), with the authors' code: who is
described alike is a positive, and the synthetic positive of a user u is the attention-pooled sum_v p_uv h_v over the
neighbours N(u), where p_uv = softmax_v LeakyReLU(a [W s_u; W s_v]). Differences: (1) texts in place of sequences of item ids;
(2) a pooled vector is no text and belongs to the encoder that is trained, so a group is written with the neighbours and their
weights, to be pooled in training: sum_v p_uv f(v); (3) the weights are softmax_v of cosine / temperature, since a and W are
learnt with the encoder; (4) neighbours with another verified answer are hard negatives; (5) no neighbour is of the same user
or a duplicate, and all are found by id, where the code counts rows from 0 and users from 1.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.records import Answer, Group, Prompt, Record, Triplet
from decode.steps import Refusal, Steps
from eval.judging import show_request
from eval.scorer import Scorer
from eval.scorers.final_answer import same_answer
from synth.recipe import Recipe
from synth.retrieval import Entry, Neighbour, Pool

__all__ = ["Retrieval"]


class Retrieval(Recipe):
    """Ask nobody: what a model had to say stands in the index (`synth index`), which the prompts must be in."""

    makes: ClassVar[type[Record]] = Triplet

    index: InputPath | None = None
    """Folder of the index, `index` in a run of `synth index`."""
    k: int = Field(default=10, ge=1)
    """Neighbours of a prompt that are looked at, positives and negatives together (the paper's k)."""
    positives: int = Field(default=2, ge=1)
    """Of the positives, the nearest so many make a triplet each."""
    answer: str = "answer"
    """Key of the verified answer in a reference: where a prompt has one, positives have the same and negatives another."""
    min_cosine: float = Field(default=0.3, ge=-1, le=1)
    """What is further away is no neighbour."""
    max_cosine: float = Field(default=0.98, ge=-1, le=1)
    """What is nearer is a duplicate."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the weights with which positives are pooled."""
    user_tag: str = "user"
    """The tag that names whose a prompt is; one's own are no neighbours."""

    def asks(self) -> Mapping[str, frozenset[str]]:
        """Nobody."""
        return {}

    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Look the neighbours up; keep them as a group with weights, return triplets."""
        if prompt.id not in self._pool:
            raise Refusal("retrieval", "not in the index")
        user = prompt.tags.get(self.user_tag)

        def is_stranger(entry: Entry) -> bool:
            return user is None or entry.prompt.tags.get(self.user_tag) != user

        limits = (self.min_cosine, self.max_cosine)
        near = self._pool.neighbours(prompt.id, self.k, cosines=limits, wanted=is_stranger)
        same, other = self._part(prompt, near)
        if not same:
            raise Refusal("retrieval", "no positive among the neighbours" if near else "no neighbours")
        yield [self._gather(prompt, same, other)]
        text = show_request(prompt)
        return [
            Triplet.make(text, _show(one), _show(other[at % len(other)]) if other else None, **self._stub(prompt))
            for at, one in enumerate(same[: self.positives])
        ]

    def _part(self, prompt: Prompt, near: Sequence[Neighbour]) -> tuple[list[Neighbour], list[Neighbour]]:
        """Part the neighbours by their answers; where the prompt has none all of them are positives."""
        own = self._list_answers(prompt)
        if own is None:
            raise Refusal("retrieval", "reference is no answer", f"{self.answer}: {prompt.reference[self.answer]!r}")
        if not own:
            return list(near), []
        told = [(item, answers) for item in near if (answers := self._list_answers(item.entry.prompt))]
        agrees = [any(same_answer(one, other) for one in own for other in answers) for _, answers in told]
        same = [item for (item, _), fits in zip(told, agrees, strict=True) if fits]
        return same, [item for (item, _), fits in zip(told, agrees, strict=True) if not fits]

    def _list_answers(self, prompt: Prompt) -> list[str] | None:
        """Return the verified answers, any of which is right; None where something else stands in their place."""
        value: Any = prompt.reference.get(self.answer)
        listed: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in listed):
            return None
        return [str(item) for item in listed if str(item)]

    def _gather(self, prompt: Prompt, same: Sequence[Neighbour], other: Sequence[Neighbour]) -> Group:
        """Return the synthetic positive: the chosen, each with its weight, all weights together 1; then the negatives."""
        shares = [math.exp((item.cosine - same[0].cosine) / self.temperature) for item in same]
        chosen = [
            Answer(text=_show(item), role="chosen", score=round(share / sum(shares), 6))
            for item, share in zip(same, shares, strict=True)
        ]
        return Group.make(
            show_request(prompt), [*chosen, *(Answer(text=_show(item), role="rejected") for item in other)]
        )

    def _stub(self, prompt: Prompt) -> dict[str, str]:
        return {"prompt_id": prompt.id, "recipe": "retrieval"}

    @cached_property
    def _pool(self) -> Pool:
        if self.index is None:
            allowed, do = "the folder of an index", "Run `counterfoil synth index`, and give recipe.index=RUN/index."
            raise InputError("recipe.index", given="nothing", allowed=allowed, do=do)
        return Pool(self.index)


def _show(item: Neighbour) -> str:
    return show_request(item.entry.prompt)
