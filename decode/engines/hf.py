"""transformers inside this process: batches of like length, the same records as vLLM; runs wherever torch does.

Source: `model.generate` of transformers, greedy or sampled. Sampling is by the Gumbel-max identity (the argmax of logits
plus Gumbel noise is a sample of their softmax; Gumbel 1954, Maddison et al. 2014, arXiv 1411.0030) with a generator for
each row, so that a request's text depends on its seed and never on what else is in the batch.
"""

import gc
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from counterfoil.errors import EngineError
from counterfoil.models import find_model, fingerprint_model
from counterfoil.records import Completion, Message
from decode.chat import encode_prompt, encode_text, load_tokenizer
from decode.engine import Engine, Given, GivenLogprobs, Request, Result, Sampling, Session

__all__ = ["Hf"]


class Hf(Engine):
    """The portable engine."""

    gives: ClassVar[frozenset[str]] = frozenset(
        {"chat", "text", "n", "stop", "seed", "logprobs", "given_logprobs", "adapters", "cancel", "num_tokens"}
    )

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is bfloat16 on a GPU and float32 on a CPU."""
    batch_size: int = Field(default=16, ge=1)
    """Rows computed at a time."""
    max_model_len: int = Field(default=2048, ge=16)
    """Tokens of prompt and answer together."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` takes a GPU where there is one."""

    def open(self, model: str, *, adapters: Sequence[str] = ()) -> "HfSession":
        """Load the model. Adapters are loaded when first asked for."""
        return HfSession(self, find_model(model))


@dataclass
class _Row:
    """One row of a batch: sample `index` of a request."""

    request: Request
    ids: list[int]
    index: int
    logprobs: list[float] = field(default_factory=list[float])


class HfSession(Session):
    """A loaded model."""

    def __init__(self, engine: Hf, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._device = _choose_device(engine.device)
        half = engine.dtype == "auto" and self._device == "cuda"
        dtype = torch.bfloat16 if half else getattr(torch, "float32" if engine.dtype == "auto" else engine.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model: Any = model.to(self._device).eval()
        self._tokenizer = load_tokenizer(str(folder))
        self._engine = engine
        self._adapters: dict[str, str] = {}
        self._cancelled: set[str] = set()
        self.model_id = fingerprint_model(folder)
        self._eos_ids = _find_eos_ids(self._model, self._tokenizer)

    def complete(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Answer requests in batches of like length; a window of four batches is sorted at a time."""
        source = iter(requests)
        while window := list(itertools.islice(source, 4 * self._engine.batch_size)):
            ready: list[tuple[Request, list[int]]] = []
            for request in window:
                ids, failure = self._encode(request)
                if failure is not None:
                    yield Result(request.id, failure=failure)
                else:
                    ready.append((request, ids))
            ready.sort(key=lambda item: (self._batch_key(*item), len(item[1])))
            for _, group in itertools.groupby(ready, key=lambda item: self._batch_key(*item)):
                yield from self._answer(list(group))

    def _batch_key(self, request: Request, ids: list[int]) -> tuple[str, str, int]:
        """Requests of one batch share all but the seed, and how many tokens they may get, whatever else is in it."""
        shared: Sampling = request.sampling.model_copy(update={"seed": 0, "n": 1})
        return request.adapter or "", shared.model_dump_json(), self._count_new(request, ids)

    def _count_new(self, request: Request, ids: list[int]) -> int:
        return min(request.sampling.max_new_tokens, self._engine.max_model_len - len(ids))

    def _encode(self, request: Request) -> tuple[list[int], str | None]:
        try:
            ids = encode_prompt(self._tokenizer, request.prompt)
        except EngineError as error:
            return [], str(error).splitlines()[0]
        if len(ids) + 1 > self._engine.max_model_len:
            return [], f"{len(ids) + 1} tokens, over max_model_len {self._engine.max_model_len}"
        return ids, None

    def _answer(self, items: list[tuple[Request, list[int]]]) -> Iterator[Result]:
        rows = [_Row(request, ids, index) for request, ids in items for index in range(request.sampling.n)]
        left = {request.id: request.sampling.n for request, _ in items}
        done: dict[str, list[Completion]] = {request.id: [] for request, _ in items}
        for start in range(0, len(rows), self._engine.batch_size):
            batch = rows[start : start + self._engine.batch_size]
            try:
                completions = self._generate(batch)
            except EngineError as error:  # an adapter that is none: all of these requests name it
                failure = str(error).splitlines()[0]
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

        from decode.draw import Draw, Stop

        sampling = rows[0].request.sampling
        longest = max(len(row.ids) for row in rows)
        pad = self._tokenizer.pad_token_id
        ids_BT = torch.tensor([[pad] * (longest - len(row.ids)) + row.ids for row in rows], device=self._device)
        mask_BT = torch.tensor(
            [[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows], device=self._device
        )
        draw = Draw(sampling, seeds=[_row_seed(row) for row in rows], device=self._device)
        stop = Stop(
            self._tokenizer,
            sampling.stop,
            prompt_length=longest,
            cancelled=lambda: [row.request.id in self._cancelled for row in rows],
        )
        config = GenerationConfig(
            max_new_tokens=self._count_new(rows[0].request, rows[0].ids),
            do_sample=False,
            num_beams=1,
            eos_token_id=self._eos_ids,
            pad_token_id=pad,
            bos_token_id=self._tokenizer.bos_token_id,
        )
        with torch.inference_mode(), self._adapter(rows[0].request.adapter):
            out_BT = self._model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                generation_config=config,
                logits_processor=[draw],
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        new_BT = out_BT[:, longest:].tolist()
        return [
            self._finish(row, new, draw.logprobs(at)) for at, (row, new) in enumerate(zip(rows, new_BT, strict=True))
        ]

    def _finish(self, row: _Row, new: list[int], logprobs: list[float]) -> Completion:
        """Cut a row at its first end-of-sequence token or stop string."""
        sampling, reason = row.request.sampling, "length"
        ends = [at for at, token in enumerate(new) if token in self._eos_ids]
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

    def logprobs(self, given: Iterable[Given]) -> Iterator[GivenLogprobs]:
        """Score given text in batches of its order."""
        source = iter(given)
        while window := list(itertools.islice(source, self._engine.batch_size)):
            window.sort(key=lambda item: item.adapter or "")
            for adapter, group in itertools.groupby(window, key=lambda item: item.adapter):
                yield from self._score(list(group), adapter)

    def _score(self, items: list[Given], adapter: str | None) -> Iterator[GivenLogprobs]:
        import torch

        ready: list[tuple[Given, list[int], int]] = []
        for item in items:
            prefix = encode_prompt(self._tokenizer, item.prompt) if item.prompt else []
            ids = prefix + encode_text(self._tokenizer, item.text)
            if len(ids) > self._engine.max_model_len:
                yield GivenLogprobs(item.id, failure=f"{len(ids)} tokens, over {self._engine.max_model_len}")
            else:
                ready.append((item, ids, max(len(prefix), 1)))
        if not ready:
            return
        longest = max(len(ids) for _, ids, _ in ready)
        pad = self._tokenizer.pad_token_id
        ids_BT = torch.tensor([ids + [pad] * (longest - len(ids)) for _, ids, _ in ready], device=self._device)
        mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for _, ids, _ in ready]).to(self._device)
        with torch.inference_mode(), self._adapter(adapter):
            logits_BTV = self._model(input_ids=ids_BT, attention_mask=mask_BT).logits
        for (item, ids, start), logits_TV in zip(ready, logits_BTV, strict=True):
            rows_TV = logits_TV[start - 1 : len(ids) - 1].float()
            targets_T = torch.tensor(ids[start:], device=self._device)
            logps_T = rows_TV.gather(1, targets_T[:, None])[:, 0] - rows_TV.logsumexp(-1)
            yield GivenLogprobs(item.id, tuple(logps_T.tolist()))

    def cancel(self, request_id: str) -> None:
        """Stop a request; its row ends at the next token, or before its batch begins."""
        self._cancelled.add(request_id)

    def num_tokens(self, prompt: tuple[Message, ...] | str) -> int:
        """Count a prompt's tokens."""
        return len(encode_prompt(self._tokenizer, prompt))

    def close(self) -> None:
        """Free the model."""
        self._model = None
        gc.collect()

    def _adapter(self, adapter: str | None) -> ExitStack:
        """Switch to an adapter, or to the bare model, for as long as the block lasts."""
        from peft import PeftModel

        stack = ExitStack()
        if adapter is not None and adapter not in self._adapters:
            name = f"adapter{len(self._adapters)}"
            try:
                if isinstance(self._model, PeftModel):
                    self._model.load_adapter(adapter, adapter_name=name)
                else:
                    self._model = PeftModel.from_pretrained(self._model, adapter, adapter_name=name).eval()
            except (ValueError, OSError) as error:
                raise EngineError(
                    f"adapter: {adapter}", given=str(error), allowed="a PEFT adapter's folder", do="Check the path."
                ) from error
            self._adapters[adapter] = name
        if adapter is not None:
            self._model.set_adapter(self._adapters[adapter])
        elif isinstance(self._model, PeftModel):
            stack.enter_context(self._model.disable_adapter())
        return stack


def _choose_device(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _find_eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Collect what ends an answer: the model's own list and the tokenizer's token."""
    known = model.generation_config.eos_token_id
    ids = set(known if isinstance(known, list) else [known]) | {tokenizer.eos_token_id}
    return sorted(token for token in ids if token is not None)


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
