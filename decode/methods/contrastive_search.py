"""Contrastive search: of the k likeliest tokens, the one that is likely and unlike all that came before.

Source: Su et al. 2022 (arXiv 2202.06417), equation 5:
    argmax over v in the top k of  (1 - alpha) p(v | x) - alpha max_j cos(h_v, h_j),
h_v the last layer's state of v appended to x, h_j those of all tokens before it, prompt included.
Differences: (1) the k candidates are k positions of one forward pass over one cache (`decode.branch_cache`) where the
model's attention allows it, instead of k rows over k copies of it; (2) padding is left out of the maximum, whatever it is
embedded to; (3) states are normalised once, when they are made.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from counterfoil.errors import InputError
from decode.method import Method, Output, expose, refuse_decoding

__all__ = ["ContrastiveSearch", "contrastive_search"]


class ContrastiveSearch(Method):
    """Deterministic: it has no sampling on top."""

    needs: ClassVar[frozenset[str]] = frozenset({"states"})
    samples: ClassVar[bool] = False

    alpha: float = Field(default=0.6, ge=0, le=1)
    """Weight of the penalty for likeness; 0 is greedy. The authors take 0.5 to 0.8, and 0.4 for code."""
    k: int = Field(default=4, ge=1, le=256)
    """Candidates a step; 1 is greedy. The authors take 3 to 10; a step's memory grows with the square."""
    form: Literal["auto", "one_row", "replicated"] = "auto"
    """How candidates are tried: as positions of one row, or as k rows. `auto` takes the first where the model allows it."""

    def decode(
        self, model: Any, output: Output, logits_processor: Any, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> None:
        """Try k tokens, keep one; see Method. Refuses sampling, beams and models without a cache that can branch."""
        from decode.branch import open_branch

        _refuse(model, generation_config)
        input_ids = output.input_ids
        room = generation_config.max_length - input_ids.shape[1]
        form, k = self._choose_form(model), min(self.k, model.config.get_text_config(decoder=True).vocab_size)
        with open_branch(model, input_ids, model_kwargs, k=k, room=room, form=form) as branch:
            logits = branch.logits
            while output.goes_on():
                scores = logits_processor(output.input_ids, logits.float().clone())
                probs, candidates = scores.softmax(-1).topk(k, dim=-1)
                likeness = branch.try_tokens(candidates)
                found = (1 - self.alpha) * probs - self.alpha * likeness
                # Where fewer than k tokens are allowed, others fill the k up.
                found = found.masked_fill(scores.gather(1, candidates).isneginf(), float("-inf"))
                chosen = found.argmax(-1)
                output.append(candidates.gather(1, chosen[:, None])[:, 0], scores=scores, logits=logits)
                if output.needs_step():
                    logits = branch.keep(chosen)

    def _choose_form(self, model: Any) -> str:
        from decode.attention import list_obstacles

        obstacles = list_obstacles(model)
        if self.form == "one_row" and obstacles:
            refuse_decoding(model, what=", ".join(obstacles), do="Use form=replicated.")
        return "replicated" if self.form == "replicated" or obstacles else "one_row"


def _refuse(model: Any, config: Any) -> None:
    if config.do_sample:
        raise InputError(
            "contrastive_search", given="do_sample=True", allowed="a deterministic search",
            do="Pass do_sample=False (the model's generation_config may set it); for sampling choose another method.",
        )  # fmt: skip
    from decode.attention import ENCODER, list_cache_obstacles

    if obstacles := [item for item in list_cache_obstacles(model) if item != ENCODER]:
        refuse_decoding(model, what=", ".join(obstacles))


contrastive_search = expose(ContrastiveSearch)
