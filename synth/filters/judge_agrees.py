"""Drop pairs whose chosen answer a judge does not prefer in both orders.

Source: the swap of positions of Zheng et al. 2023 (arXiv 2306.05685, section 3.4), as a gate. Where the pair comes from
`pairwise` verdicts with the same judge, the question is the same and its kept answer is read: nothing is asked twice.
"""

from counterfoil.records import Completion, Dropped, Pair, Prompt
from decode.steps import Refusal, Steps
from eval.judging import PairJudge
from synth.filter import AskingFilter, drop

__all__ = ["JudgeAgrees"]


class JudgeAgrees(PairJudge, AskingFilter):
    """Keeps a pair where the judge says the same as its scores, whichever answer it sees first."""

    def judge_pair(self, prompt: Prompt, pair: Pair) -> Steps[Dropped | None]:
        """Compare the two as answers to the pair's own prompt, which a recipe may have made on the way from `prompt`."""
        asked = Prompt(id=pair.prompt_id, messages=pair.prompt)
        chosen, rejected = (
            Completion(
                id=key,
                prompt_id=asked.id,
                index=0,
                text=side[-1]["content"],
                finish_reason="stop",
                num_prompt_tokens=0,
                num_tokens=0,
            )
            for key, side in ((pair.chosen_id, pair.chosen), (pair.rejected_id, pair.rejected))
        )
        try:
            (found,) = yield from self.compare(asked, [(chosen, rejected)])
        except Refusal as refusal:
            return drop(pair, "judge_agrees", refusal.reason, refusal.detail)
        if found.winner == 0:
            return None
        if found.winner == 1:
            return drop(pair, "judge_agrees", "the rejected answer is preferred")
        reason = "a tie" if found.forward == found.backward else "the verdict changes with the order"
        return drop(pair, "judge_agrees", reason, f"{found.forward}, {found.backward}")
