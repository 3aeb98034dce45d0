"""New prompts out of old ones: a share of the items gives way to neighbours in meaning.

Source: the item side of Cui et al. 2025 (SRA-CL, arXiv 2503.04162), with the authors' code: a view of a user's sequence has
20 % of its items, drawn at random, each replaced by one drawn evenly from its k nearest in meaning; two views are a positive
pair. Differences: (1) items are texts: demonstrations, lines of histories or of constraints, marked entities; (2) one or more
give way, and never to what the prompt holds already; (3) what was verified of the old text is not kept for the new one, but
where only demonstrations changed.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import InputPath
from counterfoil.records import Prompt, Record, Triplet
from decode.steps import Refusal, Steps
from eval.judging import show_request
from eval.scorer import Scorer
from synth.items import ItemKind, list_items, replace_items
from synth.recipe import Recipe
from synth.retrieval import Entry, Pool

__all__ = ["Substitution"]


class Substitution(Recipe):
    """Ask nobody; neighbours come from an index of such items (`synth index items=...`)."""

    makes: ClassVar[type[Record]] = Prompt

    items: ItemKind = "demonstrations"
    """What is replaced."""
    index: InputPath | None = None
    """Folder of the index of items, `index` in a run of `synth index`; an item that is not in it stays."""
    share: float = Field(default=0.2, gt=0, le=1)
    """Of a prompt's items."""
    k: int = Field(default=10, ge=1)
    """Neighbours of an item, of which one is drawn."""
    views: int = Field(default=1, ge=1)
    """New prompts out of one."""
    triplets: bool = False
    """Also write positive pairs for an embedder: each view with the next; one view with the prompt itself."""
    min_cosine: float = Field(default=0.3, ge=-1, le=1)
    """What is further away is no neighbour."""
    max_cosine: float = Field(default=0.98, ge=-1, le=1)
    """What is nearer is a duplicate."""

    def asks(self) -> Mapping[str, frozenset[str]]:
        """Nobody."""
        return {}

    def make(self, prompt: Prompt, scorer: Scorer) -> Steps[Sequence[Record]]:
        """Draw the views; each is a prompt, tagged with the id of the one that it is of."""
        there = list_items(prompt, self.items)
        texts = {show_request(item) for item in there}
        question = prompt.messages[-1]["content"]

        def is_new(entry: Entry) -> bool:
            asked = entry.prompt.messages[0]["content"]  # a demonstration of the question itself would give it away
            return show_request(entry.prompt) not in texts and asked.strip() != question.strip()

        limits = (self.min_cosine, self.max_cosine)
        near = {
            item.id: self._pool.neighbours(item.id, self.k, cosines=limits, wanted=is_new)
            for item in there
            if item.id in self._pool
        }
        open_ids = [name for name, found in near.items() if found]
        if not open_ids:
            reason = "no item with a neighbour" if near else "no item in the index" if there else f"no {self.items}"
            raise Refusal("substitution", reason)
        views: dict[str, Prompt] = {}
        for number in range(self.views):
            rng = self.draw(prompt.id, number)
            wanted = min(len(open_ids), max(1, round(self.share * len(there))))
            changes: dict[str, Prompt] = {}
            taken: set[str] = set()
            for name in rng.sample(open_ids, len(open_ids)):
                free = [item.entry.prompt for item in near[name] if show_request(item.entry.prompt) not in taken]
                if free and len(changes) < wanted:
                    changes[name] = rng.choice(free)
                    taken.add(show_request(changes[name]))
            view = replace_items(prompt, self.items, changes)
            views.setdefault(view.id, view.model_copy(update={"tags": view.tags | {"substituted": prompt.id}}))
        if self.triplets:
            forms = [show_request(item) for item in ([prompt] if len(views) == 1 else []) + list(views.values())]
            stub = {"prompt_id": prompt.id, "recipe": "substitution"}
            yield [Triplet.make(one, other, **stub) for one, other in pairwise(forms) if one != other]
        return list(views.values())

    @cached_property
    def _pool(self) -> Pool:
        if self.index is None:
            allowed, do = "the folder of an index of items", "Run `counterfoil synth index items=...`."
            raise InputError("recipe.index", given="nothing", allowed=allowed, do=do)
        return Pool(self.index)
