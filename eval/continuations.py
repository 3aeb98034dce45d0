"""Continuations(Job): how texts that methods wrote after real prefixes compare with what people wrote, with intervals.

    rep-2 .. rep-4, diversity    how much a text repeats itself                                (eval/repetition.py)
    MAUVE                        closeness to the human texts as a distribution                (eval/mauve.py)
    coherence, embedded          cosine of prefix and text under a sentence embedder     (Su et al. 2022, arXiv 2202.06417)
    coherence, log-prob          mean log-probability a token given the prefix, by text  (Su and Collier 2022, 2210.14140)
    perplexity                   of all tokens together, given the prefixes
    isotropy                     of the model's states over the human texts                    (eval/reading.py)

Of several seeds of one method (eval/parts.py) figures are means. Intervals resample prefixes, the same for all methods:
differences are paired. Texts without a word (`empty` in the summary) have no coherence and no perplexity, and are left out of
both; a figure that no text has is null.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from counterfoil.errors import EngineError, InputError, first_line
from counterfoil.inputs import InputPath, ModelName
from counterfoil.job import Job, Run
from counterfoil.jsonl import read_jsonl, write_json
from counterfoil.models import find_model
from counterfoil.records import Completion, Dropped, content_id
from decode.chat import load_tokenizer
from decode.generate import read_prompts
from decode.loaded import Loaded
from eval.mauve import area, quantise
from eval.parts import check_parts, list_parts, name_method, name_part
from eval.prefixes import cut_text
from eval.reading import Reading, read_text
from eval.repetition import ORDERS, count_ngrams, resample_repetition

__all__ = ["Continuations"]

HUMAN = "human"
RESAMPLES = 1000
Floats = NDArray[Any]


class Continuations(Job):
    """Compare finished `decode` runs on the prompts of a `prefixes` run."""

    VERB: ClassVar[str] = "eval"

    prompts: InputPath
    """JSONL with the prefixes and, in `reference.text`, what people wrote."""
    parts: tuple[Path, ...] = Field(min_length=1)
    """Folders of finished decode runs."""
    model: ModelName = "smollm2"
    """The language model that reads the texts: a name, a folder, a GGUF file or a hub id."""
    embedder: str | None = None
    """A sentence-transformers model, by folder or hub id; None leaves the embedded coherence out."""
    baseline: str | None = None
    """The method that others are compared with; None is the first part's."""
    max_tokens: int = Field(default=128, ge=1)
    """Of `model`: texts are cut here before anything is measured, human ones too."""
    compat: bool = False
    """Count n-grams as the authors' code does, without each text's last one."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0
    """Of the resampling and of MAUVE's k-means."""

    def inputs(self) -> dict[str, Path]:
        """Return the prompts and each part's texts."""
        return super().inputs() | list_parts(self.parts)

    def check(self) -> None:
        """Raise InputError for parts that cannot be compared, and for a baseline or an embedder that is none."""
        check_parts(self.parts)
        methods = [HUMAN, *dict.fromkeys(map(name_method, self.parts))]
        if HUMAN in methods[1:]:
            do = "Rename that folder."
            raise InputError("parts", given=f"a part named {HUMAN}", allowed="a name that no figure has", do=do)
        if self.baseline is not None and self.baseline not in methods:
            raise InputError("baseline", given=repr(self.baseline), allowed=", ".join(methods), do="Name a method.")
        name = self.embedder or ""
        if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).expanduser().is_dir():
            allowed = "the folder of a sentence-transformers model, or a hub id"
            raise InputError("embedder", given=f"no folder {name}", allowed=allowed, do="Check the path.")

    def work(self, run: Run) -> None:
        """Read every text once, then compare."""
        texts, prefixes = self._collect(run)
        ids: list[str] = []
        for key in sorted(prefixes):
            if missing := [name for name, found in texts.items() if key not in found]:
                run.drop(Dropped(id=key, stage="compare", reason="not in all parts", detail=", ".join(missing)))
            else:
                ids.append(key)
        if not ids:
            raise InputError("parts", given="no prefix that all parts have", allowed="runs on `prompts`", do="Check.")
        run.counts["kept"] = len(ids)
        cosines = self._embed(run, texts, prefixes, ids)
        readings = self._read(run, texts, prefixes, ids)
        rng = np.random.default_rng(self.seed)
        picks = np.concatenate([np.arange(len(ids))[None], rng.integers(len(ids), size=(RESAMPLES, len(ids)))])
        columns: dict[str, list[dict[str, Floats]]] = defaultdict(list)
        empty: Counter[str] = Counter()
        for name, found in texts.items():
            own = [found[key] for key in ids]
            method = name_method(Path(name))
            columns[method].append(self._measure(own, readings[name], readings[HUMAN], cosines.get(name), picks))
            empty[method] += sum(not text.strip() for text in own)
        figures = {
            method: {key: np.mean([seed[key] for seed in seeds], 0) for key in seeds[0]}
            for method, seeds in columns.items()
        }
        counts: dict[str, Any] = {
            "seeds": {method: len(seeds) for method, seeds in columns.items()},
            "empty": dict(empty),
        }
        summary = {"num_prefixes": len(ids), "compat": self.compat} | counts | self._summarise(figures)
        summary["isotropy"] = self._interval("isotropy", _resample_isotropy(readings[HUMAN], picks))
        write_json(run.folder / "summary.json", summary)
        run.open_output("table.md").write("\n".join(_list_rows(summary)) + "\n")
        run.figures |= {
            f"{method}: {key}": value["mean"]
            for method, row in summary["methods"].items()
            for key, value in row.items()
        }

    def _collect(self, run: Run) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """Return each part's texts by prompt, cut to `max_tokens`, the human ones first, and the prefixes."""
        prefixes: dict[str, str] = {}
        human: dict[str, str] = {}
        for prompt in read_prompts(self.prompts, column="prompt", where="prompts"):
            if isinstance(prompt, Dropped):
                run.drop(prompt)
            elif not isinstance(prompt.reference.get("text"), str):
                run.drop(_drop(prompt.id, "no reference text"))
            elif prompt.id in prefixes:
                run.drop(_drop(prompt.id, "duplicate prompt"))
            else:
                prefixes[prompt.id], human[prompt.id] = prompt.messages[-1]["content"], prompt.reference["text"]
        texts = {HUMAN: human}
        for folder in self.parts:
            own = texts.setdefault(name_part(folder), {})
            for item in read_jsonl(folder / "completions.jsonl", Completion, where=str(folder)):
                if isinstance(item, Dropped):
                    run.drop(item)
                elif item.prompt_id not in prefixes:
                    run.drop(_drop(item.id, "answer to another prompt"))
                elif item.index > 0:
                    run.drop(_drop(item.id, "not the first sample"))
                else:
                    own[item.prompt_id] = item.text
        run.counts["read"] = sum(map(len, texts.values()))
        tokenizer = load_tokenizer(str(find_model(self.model)))
        cut = {
            name: {key: cut_text(tokenizer, text, self.max_tokens) for key, text in own.items()}
            for name, own in texts.items()
        }
        return cut, prefixes

    def _read(
        self, run: Run, texts: dict[str, dict[str, str]], prefixes: dict[str, str], ids: list[str]
    ) -> dict[str, list[Reading]]:
        folder = find_model(self.model)
        todo = [(prefixes[key], found[key]) for found in texts.values() for key in ids]
        names = [content_id(prefix, text) for prefix, text in todo]
        loaded: Loaded | None = None
        with run.progress.stage("read", total=len(todo)) as shown:
            for name, (prefix, text) in zip(names, todo, strict=True):
                if run.store.get("reading", name) is None:
                    loaded = loaded or Loaded(folder, device="auto", dtype="auto", packed=False)
                    found = read_text(loaded, prefix, text)
                    run.store.put("reading", name, found.dump())
                shown.advance()
        all_readings = iter([Reading.load(run.store.get("reading", name) or "") for name in names])
        return {name: [next(all_readings) for _ in ids] for name in texts}

    def _embed(
        self, run: Run, texts: dict[str, dict[str, str]], prefixes: dict[str, str], ids: list[str]
    ) -> dict[str, Floats]:
        if self.embedder is None:
            return {}
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            allowed = "counterfoil[text-metrics]"
            raise EngineError("embedder", given=str(error), allowed=allowed, do="Install it.") from error

        try:
            model = SentenceTransformer(self.embedder)
        except (OSError, ValueError) as error:
            allowed, do = "a sentence-transformers model, by folder or hub id", "Check the name."
            raise InputError("embedder", given=first_line(error), allowed=allowed, do=do) from error
        before = model.encode([prefixes[key] for key in ids], normalize_embeddings=True)
        found: dict[str, Floats] = {}
        with run.progress.stage("embed", total=len(texts)) as shown:
            for name, own in texts.items():
                after = model.encode([own[key] for key in ids], normalize_embeddings=True)
                found[name] = np.einsum("nd,nd->n", before, after)
                shown.advance()
        return found

    def _measure(
        self, texts: list[str], readings: list[Reading], human: list[Reading], cosines: Floats | None,
        picks: NDArray[np.intp],
    ) -> dict[str, Floats]:  # fmt: skip
        """Return each figure of all texts and of every resample, (1 + RESAMPLES,); NaN where all texts are empty."""
        counts = np.array([[count_ngrams(text, n, compat=self.compat) for n in ORDERS] for text in texts])
        found: dict[str, Floats] = resample_repetition(counts, picks)
        written = np.array([float(bool(text.strip())) for text in texts])
        logprob = np.array([item.logprob for item in readings]) * written
        tokens = np.array([item.num_tokens for item in readings])
        with np.errstate(invalid="ignore"):
            num_written = written[picks].sum(1)
            if cosines is not None:
                found["coherence, embedded"] = (cosines * written)[picks].sum(1) / num_written
            found["coherence, log-prob"] = (logprob / np.maximum(tokens, 1))[picks].sum(1) / num_written
            found["perplexity"] = np.exp(-logprob[picks].sum(1) / (tokens * written)[picks].sum(1))
        found["tokens"] = tokens[picks].mean(1)
        if readings is not human:
            states = [np.array([item.state for item in side]) for side in (human, readings)]
            ours, theirs, buckets = quantise(*states, seed=self.seed)
            one_hot = np.eye(buckets)
            p, q = (np.stack([one_hot[labels[pick]].mean(0) for pick in picks]) for labels in (ours, theirs))
            found["MAUVE"] = area(p, q)
        return found

    def _summarise(self, figures: dict[str, dict[str, Floats]]) -> dict[str, Any]:
        baseline = self.baseline or next(name for name in figures if name != HUMAN)
        base = figures[baseline]
        methods = {
            name: {key: self._interval(key, column) for key, column in row.items()} for name, row in figures.items()
        }
        differences = {
            name: {
                key: self._interval(key, column - base[key], difference=True)
                for key, column in row.items()
                if key in base
            }
            for name, row in figures.items()
            if name != baseline
        }
        return {"level": self.level, "baseline": baseline, "methods": methods, "differences": differences}

    def _interval(self, key: str, column: Floats, *, difference: bool = False) -> dict[str, float | None]:
        """Return the figure, the first of a column, and the percentiles of the resamples', or null for none.

        A resample of MAUVE holds some texts twice and others not at all, so that its two histograms share less than those
        of all texts: its resamples lie too low as a whole, and are moved up to have the figure as their mean. The buckets
        are not resampled: of 145 or 500 Gaussian texts, intervals at 0.95 held what fresh ones have on average in 97 to 100
        of 100 cases where that is above 0.8, and in 80 to 87 where it is below 0.5; of differences, in 91 to 100.
        """
        resamples = column[1:]
        if key == "MAUVE":
            resamples = resamples - resamples.mean() + column[0]
            resamples = resamples if difference else resamples.clip(0, 1)
        if np.isnan(column[0]):
            return dict.fromkeys(("mean", "low", "high"))
        low, high = np.nanquantile(resamples, [(1 - self.level) / 2, (1 + self.level) / 2])
        return {"mean": round(float(column[0]), 5), "low": round(float(low), 5), "high": round(float(high), 5)}


def _resample_isotropy(readings: list[Reading], picks: NDArray[np.intp]) -> Floats:
    cosines, pairs = np.array([item.cosines for item in readings]), np.array([item.num_pairs for item in readings])
    return 1 - cosines[picks].sum(1) / pairs[picks].sum(1)


def _drop(name: str, reason: str) -> Dropped:
    return Dropped(id=name, stage="read", reason=reason)


def _list_rows(summary: dict[str, Any]) -> Iterator[str]:
    """Yield the summary as the rows of a Markdown table."""
    coherence = ["coherence, embedded", "coherence, log-prob"]
    keys = ["diversity", *[f"rep-{n}" for n in ORDERS], "MAUVE", *coherence, "perplexity"]
    yield "| method | seeds | empty | " + " | ".join(keys) + " |"
    yield "|---" * (len(keys) + 3) + "|"
    for name, row in summary["methods"].items():
        cells = [_write(row[key], key) if key in row else "" for key in keys]
        yield f"| {name} | {summary['seeds'][name]} | {summary['empty'][name]} | " + " | ".join(cells) + " |"


def _write(value: dict[str, float | None], key: str) -> str:
    if value["mean"] is None:
        return ""
    digits = 1 if key.startswith("rep") or key == "perplexity" else 3
    mean, low, high = (f"{value[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
