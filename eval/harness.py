"""lm-evaluation-harness: any engine and decoding method as a model of its, on any of its tasks.

    lm_eval --model counterfoil --model_args config=contrastive_search,engine.batch_size=8 --tasks TASK

`config` is a config of `counterfoil decode` (a name, or a path), and every other key a change to it. lm_eval finds the model
by an entry point (its docs/plugins.md); releases up to 0.4.13 look for none: there `python -m eval.harness` takes the
place of `lm_eval`, with the same arguments. Tokens, windows and truncation are those of lm_eval's own `hf` model whose
`max_length` is two tokens less than `engine.max_model_len`, or than the model has positions where these are fewer.

`generate_until` decodes with the method; a request's seed is of its context and of how often that came before, so that
`repeats` differ and a run says the same again. `loglikelihood` (multiple choice) and `loglikelihood_rolling` (perplexity)
score under it: each token's probability after the contrast, and -100 nats for one that its mask rules out; for multiple
choice set `method.threshold=0`, which rules out none. Contrastive search has no probabilities, and is refused there.
A method with two prompts takes as the other: the context without what the regular expression `cut` matches (which holds no
comma: that ends an argument), or, for `guided`, the context's last token alone (Sanchez et al. 2023, arXiv 2306.17806,
section 2.2).
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError("lm-evaluation-harness is missing: install counterfoil[lm-eval]") from error

from counterfoil.config import build
from counterfoil.errors import ConfigError, CounterfoilError
from counterfoil.models import find_model
from counterfoil.records import content_id
from counterfoil.verbs import load_config
from decode.chat import load_tokenizer
from decode.engine import Given, Request, Sampling
from decode.engines.hf import Hf
from decode.engines.vllm import Vllm
from decode.generate import Generate, draw_seed
from decode.loaded import find_second, limit_length

__all__ = ["CounterfoilLM", "main"]

LOG = logging.getLogger("lm_eval.counterfoil")
RULED_OUT = -100.0
"""Nats of a token that a method's mask rules out: lm_eval cannot work with minus infinity."""
SAMPLING = {"temperature", "top_p", "top_k", "min_p", "seed"}
"""Settings of a task that go to the engine; `until`, `do_sample` and the limit are read here."""
Scored = tuple[tuple[str, str] | None, list[int], list[int]]
"""Context and text as they are (None for a window of a longer text), and as token ids."""


@register_model("counterfoil")
class CounterfoilLM(TemplateLM):
    """A model of lm_eval that a config of ours describes.

    Raises ConfigError or EngineError for a config that cannot be run, before any weight is read.
    """

    def __init__(
        self, config: str | None = None, cut: str | None = None, batch_size: Any = None, max_batch_size: Any = None,
        device: Any = None, **overrides: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if config is None:
            allowed, do = "a config of `counterfoil decode`: a name, or a path", "Write --model_args config=answer."
            raise ConfigError("model_args: config", given="none", allowed=allowed, do=do)
        given = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]
        job, _ = load_config("decode", config, given, stand_in="/dev/null")
        assert isinstance(job, Generate)
        if not isinstance(job.engine, Hf | Vllm):
            allowed = "hf or vllm; for a server lm_eval has `local-completions`, which may be `counterfoil serve`"
            raise ConfigError("engine", given=type(job.engine).__name__, allowed=allowed, do="Choose one.")
        self._job, self._cut = job, None if cut is None else _compile(cut)
        self._two_prompts = job.method is not None and "two_prompts" in job.method.needs
        job.check()
        if cut is not None and not self._two_prompts:
            raise ConfigError("cut", given=repr(cut), allowed="a method with two prompts", do="Leave it out.")
        fault = job.method and job.method.find_fault(temperature=0, n=1, has_negative=cut is not None)
        if fault:
            do = "Say by the regular expression cut=... what the other prompt has not."
            raise ConfigError("cut", given=fault, allowed="two prompts for this method", do=do)
        if batch_size not in (None, 1, "1") or max_batch_size is not None or device not in (None, "cuda:0"):
            LOG.warning("batch_size and device are the engine's: engine.batch_size=..., engine.device=...")
        folder = find_model(job.model)
        self.tokenizer: Any = load_tokenizer(str(folder))
        methods = [job.method] if job.method else []
        seconds = [find_second(method.second_model) for method in methods if method.second_model]
        self._limit = limit_length(job.engine.max_model_len, folder, *seconds)
        adapters = [str(job.adapter)] if job.adapter else []
        self._session = job.engine.open(job.model, adapters=adapters, methods=methods)

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return the token that a text without a context goes on from. Raises ConfigError where there is none."""
        known = [token for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if token is not None]
        if not known:
            allowed, do = "a tokenizer with a beginning or an end of sequence", "Take another model, or other tasks."
            raise ConfigError("model", given="an empty context, and nothing to go on from", allowed=allowed, do=do)
        return int(known[0])

    @property
    def max_length(self) -> int:
        """Return how many tokens are read; vLLM wants room for one more, and a window holds one that is only scored."""
        return self._limit - 2

    @property
    def tokenizer_name(self) -> str:
        """Return a name for lm_eval's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return a text's token ids, without a second beginning where it has one."""
        if add_special_tokens is None:
            first = self.tokenizer.bos_token
            add_special_tokens = not (first and string.startswith(first))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return messages as the text that the model's template makes of them. Raises ConfigError without a template."""
        if not self.tokenizer.chat_template:
            allowed, do = "a model with a chat template", "Leave it out, or take an instruction-tuned model."
            raise ConfigError("--apply_chat_template", given=f"{self._job.model} has none", allowed=allowed, do=do)
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    def _loglikelihood_tokens(self, requests: Sequence[Scored], **_: Any) -> list[tuple[float, bool]]:
        """Score continuations. Raises ConfigError for one that no window holds, or a method without probabilities."""
        given: list[Given] = []
        num_cut = 0
        for at, (texts, prompt, text) in enumerate(requests):
            if len(text) > self.max_length:
                self._refuse_length(f"a continuation of {len(text)} tokens", over=len(text) - self.max_length)
            room = self.max_length + 1 - len(text)
            num_cut += len(prompt) > room
            prompt = (prompt or [self.prefix_token_id])[-room:]
            # White space at a context's end belongs to the continuation by now.
            negative = self._make_negative(texts[0].rstrip() if texts else "", prompt, room=room)
            given.append(Given(str(at), tuple(prompt), tuple(text), self._adapter, self._job.method, negative))
        if given and (fault := given[0].find_fault(self._job.engine.gives)):
            do = "Choose another method, or tasks that generate."
            raise ConfigError("method", given=fault, allowed="a method that gives probabilities", do=do)
        self._warn_cut(num_cut, len(given))
        found: dict[str, tuple[float, bool]] = {}
        for item in self._session.logprobs(given):
            _refuse_failure(item.failure)
            found[item.id] = (sum(max(value, RULED_OUT) for value in item.token_logprobs), item.is_greedy)
            if (texts := requests[int(item.id)][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", texts, found[item.id])
        return [found[str(at)] for at in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, in windows where they are longer than the model reads."""
        windows: list[Scored] = []
        counts: list[int] = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            parts = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            made = [make_disjoint_window(part) for part in parts]
            windows += [(None, prompt, text) for prompt, text in made]
            counts.append(len(made))
        scores = iter(score for score, _ in self._loglikelihood_tokens(windows))
        found = [sum(next(scores) for _ in range(count)) for count in counts]
        for request, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, score)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Decode with the config's method, each up to a string of its task's `until`."""
        asked: list[Request] = []
        came: Counter[str] = Counter()
        num_cut = 0
        for at, request in enumerate(requests):
            context, settings = request.args
            sampling = self._make_sampling(settings)
            key = content_id(context, json.dumps(settings, sort_keys=True, default=str))
            if sampling.seed is not None:
                seed = draw_seed(sampling.seed, content_id(context, came[key]))
                sampling = sampling.model_copy(update={"seed": seed})
            came[key] += 1
            room = self.max_length - sampling.max_new_tokens
            if room < 1:
                self._refuse_length(f"max_gen_toks={sampling.max_new_tokens} and a prompt", over=1 - room)
            prompt = self.tok_encode(context) or [self.prefix_token_id]
            num_cut += len(prompt) > room
            prompt = prompt[-room:]
            negative = self._make_negative(context, prompt, room=room)
            asked.append(
                Request(str(at), tuple(prompt), sampling, self._adapter, method=self._job.method, negative=negative)
            )
        self._warn_cut(num_cut, len(asked))
        found: dict[str, str] = {}
        for result in self._session.complete(asked):
            _refuse_failure(result.failure)
            request = requests[int(result.id)]
            text = postprocess_generated_text(result.completions[0].text, self._list_stops(request.args[1]), None)
            found[result.id] = text
            self.cache_hook.add_partial("generate_until", request.args, text)
        return [found[str(at)] for at in range(len(requests))]

    @property
    def _adapter(self) -> str | None:
        return str(self._job.adapter) if self._job.adapter else None

    def _make_sampling(self, settings: dict[str, Any]) -> Sampling:
        """Read a task's settings; the config's hold where it has none. Raises ConfigError for what no engine takes."""
        base = self._job.sampling
        try:
            asked: dict[str, Any] = dict(normalize_gen_kwargs(settings, default_max_gen_toks=base.max_new_tokens))
        except (ValueError, TypeError) as error:
            allowed = "numbers for the limit and the temperature"
            raise ConfigError("gen_kwargs", given=str(error), allowed=allowed, do="Change the value.") from error
        limit, sample = asked.pop("max_gen_toks"), asked.pop("do_sample")
        asked.pop("until", None)
        if not settings.keys() & {"do_sample", "temperature"}:
            asked["temperature"] = base.temperature
        else:
            asked.setdefault("temperature", 1.0 if sample else 0.0)
        if left := sorted(asked.keys() - SAMPLING):
            allowed = f"until, do_sample, max_gen_toks, {', '.join(sorted(SAMPLING))}"
            raise ConfigError("gen_kwargs", given=", ".join(left), allowed=allowed, do="Leave them out (--gen_kwargs).")
        changes = asked | {"max_new_tokens": limit, "stop": tuple(self._list_stops(settings)), "n": 1}
        return build(Sampling, base.model_dump() | changes, source="gen_kwargs")

    def _list_stops(self, settings: dict[str, Any]) -> list[str]:
        until = settings.get("until") or []
        return [text for text in ([until] if isinstance(until, str) else until) if text]

    def _make_negative(self, context: str, prompt: Sequence[int], *, room: int) -> tuple[int, ...] | None:
        """Return the other prompt of a method that has two, of at most `room` tokens."""
        if not self._two_prompts:
            return None
        if self._cut is None:
            return tuple(prompt[-1:])
        rest = self._cut.sub("", context)
        if rest == context != "":
            LOG.warning("cut matches nothing in: %s", context[:200])
        return tuple((self.tok_encode(rest) or [self.prefix_token_id])[-room:])

    def _refuse_length(self, given: str, *, over: int) -> NoReturn:
        do = f"Raise it by {over}, where the model has as many positions, or take what asks for less."
        raise ConfigError(f"engine.max_model_len: {self._limit}", given=given, allowed=f"{over} tokens fewer", do=do)

    def _warn_cut(self, number: int, total: int) -> None:
        if number:
            LOG.warning("%d of %d contexts are cut at the left: engine.max_model_len is %d", number, total, self._limit)


def _compile(cut: str) -> re.Pattern[str]:
    try:
        return re.compile(cut, re.DOTALL)
    except re.error as error:
        allowed, do = "a regular expression", "Mend it."
        raise ConfigError("cut", given=f"{cut!r}: {error}", allowed=allowed, do=do) from error


def _refuse_failure(failure: str | None) -> None:
    """Raise RuntimeError: a figure over what was answered alone would be wrong."""
    if failure is not None:
        raise RuntimeError(f"counterfoil: a request failed: {failure}")


def main(arguments: Iterable[str] | None = None) -> None:
    """Run lm_eval's own command line with this model known to it."""
    import sys

    from lm_eval.__main__ import cli_evaluate

    if arguments is not None:
        sys.argv[1:] = list(arguments)
    try:
        cli_evaluate()
    except CounterfoilError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
