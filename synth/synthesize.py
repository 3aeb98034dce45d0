r"""Synthesize(Job): prompts to preference pairs.

    prompts -> (engine) candidates -> (scorer) scores -> (recipe) pairs -> (filters) pairs.jsonl
                                               \\-> groups.jsonl: all answers to a prompt, with their scores
                                                   whatever stops on the way -> dropped.jsonl

Every candidate and every score is kept in the run's folder. Two passes: the first asks the
engine and keeps answers as they land; the second walks the prompts in order and writes, so that the output is the same
however often the run was interrupted.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import ClassVar

from counterfoil.job import Job, Run
from counterfoil.jsonl import read_jsonl
from counterfoil.records import Answer, Completion, Dropped, Group, Pair, Prompt
from decode.engine import Engine, Request, Sampling, require
from decode.engines.vllm import Vllm
from decode.generate import ask, draw_seed, read_answer, refuse_none
from eval.scorer import Scorer
from eval.task import Task
from eval.tasks.constraints import Constraints
from synth.filter import Filter
from synth.filters.length_only import LengthOnly
from synth.filters.near_duplicate import NearDuplicate
from synth.recipe import Candidate, Recipe
from synth.recipes.best_of_n import BestOfN

__all__ = ["Synthesize"]


class Synthesize(Job):
    """Write preference pairs with an engine."""

    VERB: ClassVar[str] = "synth"

    task: Task = Constraints()
    """Where the prompts come from: its training split."""
    model: str = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    engine: Engine = Vllm()
    """What runs the model."""
    recipe: Recipe = BestOfN()
    """How contrasts are made."""
    scorer: Scorer | None = None
    """What tells a good answer from a bad one; None takes the task's own."""
    filters: tuple[Filter, ...] = (NearDuplicate(), LengthOnly())
    """What a pair must pass, in this order."""
    seed: int = 0
    """Of all draws; each prompt derives its own."""

    def check(self) -> None:
        """Compare what the recipe needs with what the engine gives."""
        require(self.engine, self.recipe.needs, where="engine")

    def work(self, run: Run) -> None:
        """Ask, then contrast."""
        run.facts["seeds"] = {"seed": self.seed}
        run.open_output("dropped.jsonl")
        requests = (request for prompt in self._unique(run) for request in self._requests(prompt))
        size = self.task.size("train")
        total = None if size is None else size * len(self._samplings)
        ask(run, self.engine, self.model, lambda: requests, total=total)
        for _ in requests:  # where nothing was left to ask, the prompts were not all walked
            pass
        refuse_none(run.counts["prompts"], run.dropped, where="task")
        prompts = run.close_output("prompts.jsonl")
        for name in ("completions.jsonl", "scores.jsonl", "groups.jsonl", "pairs.jsonl"):
            run.open_output(name)
        judges = [item.open() for item in self.filters]
        scorer = self.scorer or self.task.scorer()
        counts: Counter[str] = Counter()
        with run.progress.stage("contrast", total=counts["prompts"] or run.counts["prompts"]) as shown:
            for prompt in read_jsonl(prompts, Prompt, where="prompts"):
                assert isinstance(prompt, Prompt)
                self._contrast(run, prompt, scorer, judges, counts)
                shown.advance()
        run.counts |= {"completions": counts["completions"], "pairs": counts["pairs"], "kept": counts["pairs"]}
        run.tokens |= {"prompt": counts["prompt_tokens"], "generated": counts["tokens"]}
        run.figures |= {
            "pairs": counts["pairs"],
            "mean_score": round(counts["score_millionths"] / 1e6 / max(counts["completions"], 1), 4),
        }

    @cached_property
    def _samplings(self) -> tuple[Sampling, ...]:
        return self.recipe.samplings()

    def _unique(self, run: Run) -> Iterator[Prompt]:
        """Yield each prompt once, keeping it in prompts.jsonl; the ids seen lie in a temporary table, not in memory."""
        run.open_output("prompts.jsonl")
        seen = run.store.open_set("prompts")
        run.counts |= {"read": 0, "prompts": 0}
        for item in run.sift(self.task.prompts("train")):
            if not seen(item.id):
                run.drop(Dropped(id=item.id, stage="read", reason="duplicate prompt"))
            else:
                run.counts["prompts"] += 1
                run.write("prompts.jsonl", item)
                yield item

    def _requests(self, prompt: Prompt) -> Iterator[Request]:
        """Yield a request for each of the recipe's samplings; the first bears the prompt's id."""
        for number, sampling in enumerate(self._samplings):
            seeded = sampling.model_copy(update={"seed": draw_seed(self.seed, prompt.id)})
            yield Request(f"{prompt.id}/{number}" if number else prompt.id, prompt.messages, seeded)

    def _read_answers(self, run: Run, prompt: Prompt) -> list[Completion] | Dropped:
        """Return a prompt's answers, numbered through all its requests, or why one of them failed."""
        found: list[Completion] = []
        for request in self._requests(prompt):
            answer = read_answer(run, self.engine, self.model, request)
            if isinstance(answer, Dropped):
                return answer.model_copy(update={"id": prompt.id})
            start = len(found)
            for item in answer:
                if start:  # not of the first request, which bears the prompt's id
                    rest = item.model_dump(exclude={"id", "prompt_id", "index"})
                    found.append(Completion.make(prompt_id=prompt.id, index=start + item.index, **rest))
                else:
                    found.append(item)
        return found

    def _contrast(
        self,
        run: Run,
        prompt: Prompt,
        scorer: Scorer,
        judges: list[Callable[[Pair], Dropped | None]],
        counts: Counter[str],
    ) -> None:
        answer = self._read_answers(run, prompt)
        if isinstance(answer, Dropped):
            run.counts["failed"] = run.counts.get("failed", 0) + 1
            run.drop(answer)
            return
        candidates: list[Candidate] = []
        for completion in answer:
            score = scorer.score(prompt, completion)
            run.write("completions.jsonl", completion)
            run.write("scores.jsonl", score)
            candidates.append(Candidate(completion, score.value))
            counts["tokens"] += completion.num_tokens
            counts["score_millionths"] += round(score.value * 1e6)
        counts["prompt_tokens"] += answer[0].num_prompt_tokens
        counts["completions"] += len(answer)
        answers = [
            Answer(text=item.completion.text, score=item.score, is_cut=item.completion.finish_reason == "length")
            for item in candidates
        ]
        run.write("groups.jsonl", Group.make(prompt.messages, answers, reference=prompt.reference))
        found = self.recipe.contrast(prompt, candidates)
        if isinstance(found, Dropped):
            run.drop(found)
            return
        for pair in found:
            why = next((dropped for judge in judges if (dropped := judge(pair)) is not None), None)
            if why is not None:
                run.drop(why)
            else:
                counts["pairs"] += 1
                run.write("pairs.jsonl", pair)
