"""transformers inside this process: batches of like length, the same records as vLLM; runs wherever torch does.

Source: `model.generate` of transformers, greedy or sampled. Sampling is by the Gumbel-max identity (the argmax of logits
plus Gumbel noise is a sample of their softmax; Gumbel 1954, Maddison et al. 2014, arXiv 1411.0030) with a generator for
each row, so that a request's text depends on its seed and never on what else is in the batch.
"""

import gc
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from counterfoil.config import fingerprint
from counterfoil.errors import EngineError, InputError, first_line
from counterfoil.models import find_model
from counterfoil.records import Completion
from decode.chat import check_vocabularies, encode_prompt
from decode.engine import Content, Engine, Given, GivenLogprobs, Request, Result, Sampling, Session
from decode.given import score
from decode.loaded import Loaded, find_second, limit_length
from decode.method import Method

__all__ = ["Hf"]


class Hf(Engine):
    """The portable engine."""

    gives: ClassVar[frozenset[str]] = frozenset(
        {"chat", "text", "n", "stop", "seed", "logprobs", "given_logprobs", "adapters", "cancel", "num_tokens", "beams"}
        | {"states", "layers", "two_models", "two_prompts", "two_adapters"}
    )

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    batch_size: int = Field(default=16, ge=1)
    """Rows computed at a time."""
    max_model_len: int = Field(default=2048, ge=16)
    """Tokens of prompt and answer together; never more than the models have positions."""
    packed: bool = True
    """On a CPU in float32, hold linear layers' weights a second time, as passes over few rows read them fastest."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` takes a GPU where there is one."""

    def open(self, model: str, *, adapters: Sequence[str | None] = (), methods: Sequence[Method] = ()) -> "HfSession":
        """Load the model. Adapters, and methods' second models, are loaded when first asked for.

        Raises EngineError for a second model of another vocabulary, before any weight is read.
        """
        seconds = [find_second(method.second_model) for method in methods if method.second_model]
        folder = find_model(model)
        for second in seconds:
            check_vocabularies(folder, second)
        limit = limit_length(self.max_model_len, folder, *seconds)
        return HfSession(self.model_copy(update={"max_model_len": limit}), folder)


Watch = Callable[[str, int, Sequence[int], Callable[[Sequence[int]], str]], None]
"""Called at each token with a request's id, a sample's index, its token ids so far, and what turns those into text."""


@dataclass
class _Row:
    """One row of a batch: sample `index` of a request."""

    request: Request
    ids: list[int]
    negative: list[int] | None
    index: int


class HfSession(Session):
    """A loaded model."""

    def __init__(self, engine: Hf, folder: Path) -> None:
        self._loaded = Loaded(folder, device=engine.device, dtype=engine.dtype, packed=engine.packed)
        self._tokenizer = self._loaded.tokenizer
        self._engine = engine
        self._cancelled: set[str] = set()
        self.max_model_len = engine.max_model_len
        self.watch: Watch | None = None

    def stream(
        self, items: Iterable[Request | Given | None], *, glance: bool = False
    ) -> Generator[Result | GivenLogprobs | None]:
        """Answer in batches of like length, out of a window of four batches; score in batches; see Session."""
        source, more = iter(items), True
        while more:
            window: list[Request | Given] = []
            while more and len(window) < 4 * self._engine.batch_size:
                item = next(source, "the end")
                if not isinstance(item, Request | Given):
                    more = item is None
                    break
                window.append(item)
            yield from self._complete([item for item in window if isinstance(item, Request)])
            given = [item for item in window if isinstance(item, Given)]
            for start in range(0, len(given), self._engine.batch_size):
                batch = given[start : start + self._engine.batch_size]
                yield from score(
                    self._loaded, batch, gives=self._engine.gives, max_model_len=self._engine.max_model_len
                )
            self._cancelled.difference_update(item.id for item in window)
            if more and not window:
                yield None

    def _complete(self, requests: Sequence[Request]) -> Iterator[Result]:
        ready: list[_Row] = []
        for request in requests:
            try:
                ready.append(self._encode(request))
            except (EngineError, ValueError) as error:
                yield Result(request.id, failure=first_line(error))
        ready.sort(key=lambda row: (self._batch_key(row), len(row.ids)))
        for _, group in itertools.groupby(ready, key=self._batch_key):
            yield from self._answer(list(group))

    def _batch_key(self, row: _Row) -> tuple[str, ...]:
        """Rows of one batch share all but the seed, and how many tokens they may get, whatever else is in it."""
        request = row.request
        shared: Sampling = request.sampling.model_copy(update={"seed": 0, "n": 1})
        method = fingerprint(request.method) if request.method else ""
        limit, negative = str(self._count_new(row)), str(request.negative is None)
        return request.adapter or "", shared.model_dump_json(), method, negative, limit

    def _encode(self, request: Request) -> _Row:
        """Return the first row of a request. Raises ValueError or EngineError for one that cannot be answered."""
        if fault := request.find_fault(self._engine.gives):
            raise ValueError(fault)
        ids = encode_prompt(self._tokenizer, request.prompt)
        negative = None if request.negative is None else encode_prompt(self._tokenizer, request.negative)
        if not ids or negative == []:
            raise ValueError(
                f"{'a negative' if ids else 'a'} prompt without a token: this model adds none to an empty text"
            )
        longest = max(len(ids), len(negative or []))
        if longest + 1 > self._engine.max_model_len:
            raise ValueError(f"{longest + 1} tokens, over max_model_len {self._engine.max_model_len}")
        return _Row(request, ids, negative, 0)

    def _answer(self, items: list[_Row]) -> Iterator[Result]:
        rows = [replace(item, index=index) for item in items for index in range(item.request.sampling.n)]
        left = {item.request.id: item.request.sampling.n for item in items}
        done: dict[str, list[Completion]] = {item.request.id: [] for item in items}
        for start in range(0, len(rows), self._engine.batch_size):
            batch = rows[start : start + self._engine.batch_size]
            try:
                completions = self._generate(batch)
            except (EngineError, InputError) as error:
                # An adapter or a second model that is none: all of this group name it.
                failure = first_line(error)
                yield from (Result(name, failure=failure) for name, count in left.items() if count)
                return
            for row, completion in zip(batch, completions, strict=True):
                name = row.request.id
                done[name].append(completion)
                left[name] -= 1
                if left[name] == 0:
                    failure = "cancelled" if name in self._cancelled else None
                    self._cancelled.discard(name)
                    yield Result(name, () if failure else tuple(done.pop(name)), failure)

    def _generate(self, rows: list[_Row]) -> list[Completion]:
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        from decode.draw import Draw, Show, Stop

        sampling = rows[0].request.sampling
        ids_BT, mask_BT = self._loaded.pad_left([row.ids for row in rows])
        prompt_length = ids_BT.shape[1]
        draw = Draw(sampling, seeds=[_row_seed(row) for row in rows], device=self._loaded.device)
        stop = Stop(
            self._tokenizer,
            sampling.stop,
            prompt_length=prompt_length,
            cancelled=lambda: [row.request.id in self._cancelled for row in rows],
        )
        criteria = StoppingCriteriaList([stop])
        if self.watch is not None and sampling.num_beams == 1:
            criteria.append(Show(lambda at, ids: self._show(rows[at], ids), prompt_length=prompt_length))
        config = GenerationConfig(
            max_new_tokens=self._count_new(rows[0]),
            do_sample=False,
            num_beams=sampling.num_beams,
            eos_token_id=self._loaded.eos_ids,
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=self._tokenizer.bos_token_id,
        )
        method = self._loaded.bind_method(rows[0].request.method, [row.negative for row in rows])
        with torch.inference_mode(), self._loaded.use_adapter(rows[0].request.adapter):
            out_BT = self._loaded.model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                generation_config=config,
                custom_generate=method,
                logits_processor=[draw] if sampling.num_beams == 1 else [],
                stopping_criteria=criteria,
            )
        new_BT = out_BT[:, prompt_length:].tolist()
        return [
            self._finish(row, new, logprobs)
            for row, new, logprobs in zip(rows, new_BT, draw.logprobs(out_BT), strict=True)
        ]

    def _show(self, row: _Row, ids: Sequence[int]) -> None:
        if self.watch is not None:
            self.watch(
                row.request.id, row.index, ids, lambda ids: self._tokenizer.decode(ids, skip_special_tokens=True)
            )

    def _count_new(self, row: _Row) -> int:
        """Return how many tokens a row may get, whatever else is in the batch."""
        longest = max(len(row.ids), len(row.negative or []))
        return min(row.request.sampling.max_new_tokens, self._engine.max_model_len - longest)

    def _finish(self, row: _Row, new: list[int], logprobs: list[float]) -> Completion:
        """Cut a row at its first end-of-sequence token or stop string."""
        sampling, reason = row.request.sampling, "length"
        ends = [at for at, token in enumerate(new) if token in self._loaded.eos_ids]
        if ends:
            new, reason = new[: ends[0] + 1], "stop"
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        found = [at for stop in sampling.stop if (at := text.find(stop)) >= 0]
        if found:
            new = _shorten(self._tokenizer, new, sampling.stop)
            text, reason = text[: min(found)], "stop"
        return Completion.make(
            prompt_id=row.request.id,
            index=row.index,
            text=text,
            finish_reason=reason,
            num_prompt_tokens=len(row.ids),
            num_tokens=len(new),
            token_ids=tuple(new) if sampling.logprobs else None,
            token_logprobs=tuple(logprobs[: len(new)]) if sampling.logprobs else None,
        )

    def cancel(self, request_id: str) -> None:
        """Stop a request; its row ends at the next token, or before its batch begins."""
        self._cancelled.add(request_id)

    def num_tokens(self, prompt: Content) -> int:
        """Count a prompt's tokens."""
        return len(encode_prompt(self._tokenizer, prompt))

    def close(self) -> None:
        """Free the model."""
        self._loaded.close()
        gc.collect()


def _row_seed(row: _Row) -> int | None:
    seed = row.request.sampling.seed
    return None if seed is None else seed + row.index


def _shorten(tokenizer: Any, ids: list[int], stops: Sequence[str]) -> list[int]:
    """Keep the tokens up to the one that completed a stop string."""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        if any(stop in text for stop in stops):
            return ids[:end]
    return ids
