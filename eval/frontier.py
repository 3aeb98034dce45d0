"""Frontier(Job): what adapters gain and how far they went for it: score against KL to the base model.

Each adapter answers the held-out prompts by sampling at temperature 1. The score is the task's; the divergence KL(policy ||
base) of an answer is estimated without bias by log pi(y | x) - log ref(y | x) of the policy's own samples, summed over
tokens, in nats. A method is better than another where it scores higher at the same divergence (Gao et al. 2022, arXiv
2210.10760, figure 1).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from counterfoil.errors import InputError
from counterfoil.inputs import ModelName
from counterfoil.job import Job, Run
from counterfoil.jsonl import write_json
from counterfoil.records import Completion, Dropped, Prompt
from decode.engine import Engine, Given, Request, Sampling, Session, require
from decode.engines.hf import Hf
from decode.engines.vllm import Vllm
from decode.generate import ask, draw_seed, refuse_none
from eval.parts import find_adapter, name_method, name_part
from eval.report_plots import plot_frontier
from eval.seeds import check_runs, read_runs
from eval.stats import Interval, mean_interval, paired_difference
from eval.task import Task
from eval.tasks.constraints import Constraints

__all__ = ["Frontier"]

Values = dict[str, dict[str, float]]
"""Of each prompt, by its id, what is measured."""
MEASURED = ("score", "kl", "tokens")


class Frontier(Job):
    """Score adapters and measure how far they are from the base model."""

    VERB: ClassVar[str] = "eval"

    adapters: tuple[Path, ...] = ()
    """Folders of adapters, or of runs with an `adapter` in them. Names that differ in a number at the end (`copg_10_0`,
    `copg_10_1`) are seeds of one; of these, names that begin alike up to the first `_` are one curve."""
    runs: tuple[Path, ...] = ()
    """Instead of adapters: finished runs of this job, of the same methods with other seeds. Their samples stand."""
    task: Task = Constraints()
    """Where the prompts and the scorer come from."""
    model: ModelName = "smollm2"
    """A name, a folder, a GGUF file or a hub id."""
    engine: Engine = Vllm()
    """What draws the samples."""
    reader: Engine | None = None
    """What reads the base model's probability of them; None is `engine`, or transformers where that runs the model on this
    machine: it computes a prompt once for all that answers it, which vLLM's log-probabilities of given texts do not."""
    n: int = Field(default=4, ge=1)
    """Samples a prompt."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Cut an answer off after this many tokens."""
    baseline: str | None = None
    """The method that others are compared with; None is the base model."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals, over prompts."""
    seed: int = 0
    """Of the samples and the resampling."""

    def inputs(self) -> dict[str, Path]:
        """Return the adapters' weights, or the runs' samples."""
        drawn = {f"runs[{at}]": folder / "samples.jsonl" for at, folder in enumerate(self.runs)}
        folders = {
            f"adapters[{at}] {name_part(folder)}": find_adapter(folder) for at, folder in enumerate(self.adapters)
        }
        return super().inputs() | drawn | {key: path / "adapter_model.safetensors" for key, path in folders.items()}

    def check(self) -> None:
        """Compare what is needed with what the engine gives. Raises InputError for both or neither of adapters and runs."""
        asked = ("task", "model", "n", "max_new_tokens")
        check_runs(self.runs, instead_of="adapters", given=self.adapters, same=asked)
        require(self.engine, {"chat", "adapters", "n"}, where="engine")
        require(self._reader, {"chat", "given_logprobs"}, where="reader" if self.reader else "engine")
        names = [name_part(folder) for folder in self.adapters]
        if len(set(names)) < len(names):
            raise InputError("adapters", given=", ".join(names), allowed="a name each", do="Rename a folder.")

    @property
    def _reader(self) -> Engine:
        return self.reader or (Hf(batch_size=32) if isinstance(self.engine, Vllm | Hf) else self.engine)

    def work(self, run: Run) -> None:
        """Take the runs' samples, or draw them; summarise."""
        run.facts["seeds"] = {"seed": self.seed}
        values = _read_values(self.runs) if self.runs else self._draw(run)
        methods = self._summarise(values)
        num_prompts = len({item for found in values.values() for item in found})
        whole = {"num_prompts": num_prompts, "level": self.level, "baseline": self.baseline or "base"}
        write_json(run.folder / "summary.json", whole | {"methods": methods, "seeds": _average_each(values)})
        curves: dict[str, list[tuple[float, Interval]]] = defaultdict(list)
        for name, row in methods.items():
            curves[name.split("_")[0]].append((row["kl"]["mean"], Interval(**row["score"])))
        plot_frontier("divergence from the base model (nats an answer)", "score", curves, run.folder / "frontier.svg")
        run.figures |= {name: {"score": row["score"]["mean"], "kl": row["kl"]["mean"]} for name, row in methods.items()}
        run.counts["kept"] = len(values)

    def _draw(self, run: Run) -> dict[str, Values]:
        """Sample from each, and score the samples by the base as well."""
        run.open_output("dropped.jsonl")
        run.open_output("samples.jsonl")
        prompts = list(run.sift(self.task.prompts("heldout")))
        refuse_none(len(prompts), run.dropped, where="task")
        policies: dict[str, str | None] = {"base": None} | {
            name_part(item): str(find_adapter(item)) for item in self.adapters
        }
        answers = {name: self._sample(run, name, adapter, prompts) for name, adapter in policies.items()}
        given = [
            Given(f"{name}/{item.id}", prompt.messages, item.token_ids or ())
            for prompt in prompts
            for name, found in answers.items()
            if name != "base"
            for item in found.get(prompt.id, ())
        ]
        missing = [item for item in given if not run.store.has("base", item.id)]
        if missing:
            with self._reader.open(self.model) as session:
                _score(run, missing, session)
        return {name: self._judge(run, name, prompts, found) for name, found in answers.items()}

    def _sample(
        self, run: Run, name: str, adapter: str | None, prompts: Sequence[Prompt]
    ) -> dict[str, tuple[Completion, ...]]:
        requests = [self._request(prompt, adapter) for prompt in prompts]
        read = ask(run, self.engine, self.model, lambda: requests, total=len(requests), stage=name, adapter=adapter)
        found: dict[str, tuple[Completion, ...]] = {}
        for prompt, request in zip(prompts, requests, strict=True):
            answer = read(request)
            if isinstance(answer, Dropped):
                run.drop(answer)
            else:
                found[prompt.id] = answer
        return found

    def _request(self, prompt: Prompt, adapter: str | None) -> Request:
        sampling = Sampling(
            n=self.n,
            temperature=1,
            max_new_tokens=self.max_new_tokens,
            logprobs=True,
            seed=draw_seed(self.seed, prompt.id),
        )
        return Request(prompt.id, prompt.messages, sampling, adapter)

    def _judge(
        self, run: Run, name: str, prompts: Sequence[Prompt], answers: dict[str, tuple[Completion, ...]]
    ) -> Values:
        """Return score, divergence and length of each prompt's answers, averaged over its samples."""
        scorer = self.task.scorer()
        found: Values = {}
        for prompt in prompts:
            own: list[dict[str, float]] = []
            for item in answers.get(prompt.id, ()):
                policy, base = sum(item.token_logprobs or ()), run.store.get("base", f"{name}/{item.id}")
                if name != "base" and base is None:
                    run.drop(Dropped(id=item.id, stage="frontier", reason="no probability under the base model"))
                    continue
                distance = policy - float(base) if base is not None else 0.0
                row = {"score": scorer.score(prompt, item).value, "kl": distance, "tokens": float(item.num_tokens)}
                facts = {"policy": name, "prompt_id": prompt.id, "text": item.text, "token_ids": item.token_ids}
                run.write("samples.jsonl", facts | row)
                own.append(row)
            if own:
                found[prompt.id] = _average(own)
        return found

    def _summarise(self, values: dict[str, Values]) -> dict[str, Any]:
        """Average over seeds, then over the prompts that all answered."""
        shared = sorted(set.intersection(*map(set, values.values())))
        if not shared:
            raise InputError(
                "task", given="no prompt that all answered", allowed="one at least", do="See dropped.jsonl."
            )
        seeds: dict[str, list[Values]] = defaultdict(list)
        for name, found in values.items():
            seeds[name_method(Path(name))].append(found)
        if (self.baseline or "base") not in seeds:
            raise InputError("baseline", given=repr(self.baseline), allowed=", ".join(seeds), do="Name a method.")

        def column(method: str, key: str) -> list[float]:
            return [sum(found[item][key] for found in seeds[method]) / len(seeds[method]) for item in shared]

        methods: dict[str, Any] = {}
        for method in seeds:
            row = {
                key: mean_interval(column(method, key), level=self.level, seed=self.seed).round() for key in MEASURED
            }
            if method != (self.baseline or "base"):
                pair = column(self.baseline or "base", "score"), column(method, "score")
                row["difference"] = paired_difference(*pair, level=self.level, seed=self.seed).round()
            methods[method] = row
        return methods


def _read_values(runs: Sequence[Path]) -> dict[str, Values]:
    """Return what runs found, each run's as another seed: `copg_a` of the first is `copg_a_0`, of the second `copg_a_1`."""
    rows: dict[tuple[int, str], dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for at, row in read_runs(runs, "samples.jsonl"):
        rows[at, row["policy"]][row["prompt_id"]].append({key: row[key] for key in MEASURED})
    found: dict[str, Values] = {}
    numbers: Counter[str] = Counter()
    for (_, policy), answered in rows.items():
        method = name_method(Path(policy))
        found[f"{method}_{numbers[method]}"] = {item: _average(own) for item, own in answered.items()}
        numbers[method] += 1
    return found


def _average(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in MEASURED}


def _average_each(values: dict[str, Values]) -> dict[str, dict[str, float]]:
    """Return the means of each seed by itself."""
    return {
        name: {key: round(value, 5) for key, value in _average(list(found.values())).items()}
        for name, found in values.items()
        if found
    }


def _score(run: Run, given: Sequence[Given], session: Session) -> None:
    with run.progress.stage("base: samples", total=len(given)) as shown:
        for result in session.logprobs(given):
            if result.failure is None:
                run.store.put("base", result.id, repr(sum(result.token_logprobs)))
            shown.advance()
