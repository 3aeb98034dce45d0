"""Conflicts(Job): questions whose context contradicts what the model would say without it.

The idea is of Longpre et al. 2021 (arXiv 2109.05052): the answer is replaced by another of its kind. A fact counts if the
model gives the true answer to the question alone; the context then says another one, and that is the answer wanted.
"""

import random
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from counterfoil.errors import ConfigError, InputError
from counterfoil.inputs import ModelName
from counterfoil.job import Job, Run
from counterfoil.records import Dropped, Prompt
from decode.engine import Engine, Request, Sampling, require
from decode.engines.vllm import Vllm
from decode.generate import ask
from eval.facts import RELATIONS
from eval.scorers.exact_answer import ExactAnswer

__all__ = ["Conflicts"]

BRIEF = "Answer with the answer alone, in one or two words."


class Conflicts(Job):
    """Ask which facts the model knows, and write contexts that say otherwise."""

    VERB: ClassVar[str] = "eval"

    model: ModelName = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    engine: Engine = Vllm()
    """What runs the model."""
    max_new_tokens: int = Field(default=16, ge=1)
    """Of an answer."""
    per_fact: int = Field(default=2, ge=1)
    """Other answers that a fact is contradicted with."""
    seed: int = 0
    """Of the choice of other answers."""

    def check(self) -> None:
        """Compare what is needed with what the engine gives, and `per_fact` with the answers that there are."""
        require(self.engine, {"chat"}, where="engine")
        most = min(len(set(relation.facts.values())) for relation in RELATIONS.values()) - 1
        if self.per_fact > most:
            allowed = f"at most {most}: so many other answers has every relation"
            raise ConfigError("per_fact", given=str(self.per_fact), allowed=allowed, do="Lower it.")

    def work(self, run: Run) -> None:
        """Write prompts.jsonl: `prompt` with the context, `negative` without, `reference` with `answer` and `original`."""
        run.facts["seeds"] = {"seed": self.seed}
        run.open_output("dropped.jsonl")
        questions = list(_list_questions())
        requests = [self._request(item) for item in questions]
        read = ask(run, self.engine, self.model, lambda: requests, total=len(requests), stage="what is known")
        scorer, rng = ExactAnswer(), random.Random(self.seed)
        for item, request in zip(questions, requests, strict=True):
            run.counts["read"] = run.counts.get("read", 0) + 1
            answer = read(request)
            if isinstance(answer, Dropped):
                run.drop(answer)
                continue
            if not scorer.score(item, answer[0]).value:
                run.drop(Dropped(id=item.id, stage="known", reason="another answer", detail=answer[0].text[:80]))
                continue
            relation = RELATIONS[item.tags["relation"]]
            original = item.reference["answer"]
            others = sorted(set(relation.facts.values()) - {original})
            for other in rng.sample(others, self.per_fact):
                context = relation.sentence.format(subject=item.tags["subject"], answer=other)
                question = item.messages[-1]["content"]
                row = {"prompt": f"{context}\n\n{question}", "negative": question}
                reference = {"answer": other, "original": original}
                run.write("prompts.jsonl", row | {"reference": reference, "tags": item.tags | {"fact": question}})
                run.counts["kept"] = run.counts.get("kept", 0) + 1
        if not run.counts.get("kept"):
            allowed = "a model that knows some fact"
            raise InputError(f"model: {self.model}", given="none is known", allowed=allowed, do="Take another model.")
        run.figures |= {"questions": run.counts["kept"], "known": run.counts["kept"] // self.per_fact}

    def _request(self, item: Prompt) -> Request:
        return Request(item.id, item.messages, Sampling(max_new_tokens=self.max_new_tokens))


def _list_questions() -> Iterator[Prompt]:
    for name, relation in RELATIONS.items():
        for subject, answer in relation.facts.items():
            text = f"{relation.question.format(subject=subject)} {BRIEF}"
            tags = {"relation": name, "subject": subject}
            yield Prompt.make(text, reference={"answer": answer}, tags=tags)
