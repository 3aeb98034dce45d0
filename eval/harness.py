"""lm-evaluation-harness: any engine and decoding method as a model of its, on any of its tasks.

    lm_eval --model counterfoil --model_args config=contrastive_search,engine.batch_size=8 --tasks TASK

`config` is a config of `counterfoil decode` (a name, or a path), and every other key a change to it. lm_eval finds the model
by an entry point (its docs/plugins.md); releases up to 0.4.13 look for none: there `python -m eval.harness` takes the
place of `lm_eval`, with the same arguments. Tokens are those of lm_eval's own `hf` model, and so are windows and truncation.

`generate_until` decodes with the method. `loglikelihood` (multiple choice) and `loglikelihood_rolling` (perplexity) score
under it: each token's probability after the contrast, and -100 nats for one that its mask rules out; for multiple choice set
`method.threshold=0`, which rules out none. Contrastive search has no probabilities, and is refused there.
A method with two prompts takes as the other: the context without what the regular expression `cut` matches (which holds no
comma: that ends an argument), or, for `guided`, the context's last token alone (Sanchez et al. 2023, arXiv 2306.17806,
section 2.2).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError("lm-evaluation-harness is missing: install counterfoil[lm-eval]") from error

from counterfoil.errors import ConfigError, CounterfoilError
from counterfoil.models import find_model
from counterfoil.verbs import load_config
from decode.chat import load_tokenizer
from decode.engine import Given, Request, Sampling
from decode.engines.hf import Hf
from decode.engines.vllm import Vllm
from decode.generate import Generate

__all__ = ["CounterfoilLM", "main"]

LOG = logging.getLogger("lm_eval.counterfoil")
RULED_OUT = -100.0
"""Nats of a token that a method's mask rules out: lm_eval cannot work with minus infinity."""
SAMPLING = {"temperature", "top_p", "top_k", "min_p", "seed"}
"""Settings of a task that go to the engine; `until`, `do_sample` and the limit are read here."""


@register_model("counterfoil")
class CounterfoilLM(TemplateLM):
    """A model of lm_eval that a config of ours describes.

    Raises ConfigError or EngineError for a config that cannot be run, before any weight is read.
    """

    def __init__(
        self, config: str, cut: str | None = None, batch_size: Any = None, max_batch_size: Any = None,
        device: Any = None, **overrides: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        given = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]
        job, _ = load_config("decode", config, given, stand_in="/dev/null")
        assert isinstance(job, Generate)
        if not isinstance(job.engine, Hf | Vllm):
            allowed = "hf or vllm; for a server lm_eval has `local-completions`, which may be `counterfoil serve`"
            raise ConfigError("engine", given=type(job.engine).__name__, allowed=allowed, do="Choose one.")
        self._job, self._cut = job, None if cut is None else re.compile(cut, re.DOTALL)
        self._two_prompts = job.method is not None and "two_prompts" in job.method.needs
        job.check()
        if cut is not None and not self._two_prompts:
            raise ConfigError("cut", given=repr(cut), allowed="a method with two prompts", do="Leave it out.")
        fault = job.method and job.method.find_fault(temperature=0, n=1, has_negative=cut is not None)
        if fault:
            do = "Say by the regular expression cut=... what the other prompt has not."
            raise ConfigError("cut", given=fault, allowed="two prompts for this method", do=do)
        if batch_size not in (None, 1, "1") or device is not None:
            LOG.warning("batch_size and device are the engine's: engine.batch_size=..., engine.device=...")
        folder = find_model(job.model)
        self.tokenizer: Any = load_tokenizer(str(folder))
        methods = [job.method] if job.method else []
        adapters = [str(job.adapter)] if job.adapter else []
        self._session = job.engine.open(job.model, adapters=adapters, methods=methods)

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return the token that a text without a context goes on from."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def max_length(self) -> int:
        """Return how many tokens are read; vLLM wants room for one more, and a window holds one that is only scored."""
        assert isinstance(self._job.engine, Hf | Vllm)
        return self._job.engine.max_model_len - 2

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
        """Return messages as the text that the model's template makes of them."""
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations; each request holds the two texts and their token ids."""
        given: list[Given] = []
        for at, ((context, _text), prompt, text) in enumerate(requests):
            kept = (prompt + text)[-(self.max_length + 1) :]
            prompt = kept[: len(kept) - len(text)]
            negative = self._make_negative(context, prompt, room=self.max_length + 1 - len(text))
            given.append(
                Given(str(at), tuple(prompt), tuple(text[-len(kept) :]), self._adapter, self._job.method, negative)
            )
        found: dict[str, tuple[float, bool]] = {}
        for item in self._session.logprobs(given):
            _refuse_failure(item.failure)
            found[item.id] = (sum(max(value, RULED_OUT) for value in item.token_logprobs), item.is_greedy)
        answers = [found[str(at)] for at in range(len(requests))]
        for (texts, _prompt, _text), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, in windows where they are longer than the model reads."""
        windows: list[tuple[tuple[str, str], list[int], list[int]]] = []
        counts: list[int] = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            parts = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            made = [make_disjoint_window(part) for part in parts]
            windows += [(("", ""), prompt, text) for prompt, text in made]
            counts.append(len(made))
        scores = iter(score for score, _ in self._loglikelihood_tokens(windows))
        found = [sum(next(scores) for _ in range(count)) for count in counts]
        for request, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, score)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Decode with the config's method, each up to a string of its task's `until`."""
        asked: list[Request] = []
        for at, request in enumerate(requests):
            context, settings = request.args
            sampling = self._make_sampling(settings)
            room = max(self.max_length - sampling.max_new_tokens, 1)
            prompt = self.tok_encode(context)[-room:]
            negative = self._make_negative(context, prompt, room=room)
            asked.append(
                Request(str(at), tuple(prompt), sampling, self._adapter, method=self._job.method, negative=negative)
            )
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
        """Read a task's settings; the config's hold where it has none."""
        base = self._job.sampling
        asked: dict[str, Any] = dict(normalize_gen_kwargs(settings, default_max_gen_toks=base.max_new_tokens))
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
        return Sampling.model_validate(base.model_dump() | changes)

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
        if rest == context:
            LOG.warning("cut matches nothing in: %s", context[:200])
        return tuple((self.tok_encode(rest) or [self.prefix_token_id])[-room:])


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
