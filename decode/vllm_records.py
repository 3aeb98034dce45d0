"""What goes into vLLM's engine and what comes out of it, from and to our records."""

from collections.abc import Sequence
from typing import Any

from counterfoil.records import Completion
from decode.engine import Given, GivenLogprobs, Request, Result, Sampling

__all__ = ["make_sampling_params", "read_given", "read_result"]


def read_result(request: Request, done: Any, num_prompt_tokens: int) -> Result:
    """Turn a finished output into completions in order of index."""
    wanted = request.sampling.logprobs
    completions = tuple(
        Completion.make(
            prompt_id=request.id,
            index=part.index,
            text=part.text,
            finish_reason=part.finish_reason or "stop",
            num_prompt_tokens=num_prompt_tokens,
            num_tokens=len(part.token_ids),
            token_ids=tuple(part.token_ids) if wanted else None,
            token_logprobs=_chosen(part.token_ids, part.logprobs) if wanted else None,
        )
        for part in sorted(done.outputs, key=lambda part: part.index)
    )
    return Result(request.id, completions)


def read_given(given: Given, done: Any, start: int) -> GivenLogprobs:
    """Turn the log-probabilities of a prompt, from its token `start` on, into those of a given text."""
    ids, rows = done.prompt_token_ids[start:], done.prompt_logprobs[start:]
    greedy = all(row[token].rank == 1 for token, row in zip(ids, rows, strict=True))
    return GivenLogprobs(given.id, _chosen(ids, rows), is_greedy=greedy, num_prompt_tokens=start)


def _chosen(token_ids: Sequence[int], logprobs: Any) -> tuple[float, ...]:
    return tuple(row[token].logprob for token, row in zip(token_ids, logprobs, strict=True))


def make_sampling_params(sampling: Sampling) -> Any:
    """Say in vLLM's words how tokens are drawn."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    return SamplingParams(
        n=sampling.n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        max_tokens=sampling.max_new_tokens,
        seed=sampling.seed if sampling.temperature > 0 else None,
        stop=list(sampling.stop) or None,
        logprobs=0 if sampling.logprobs else None,
        structured_outputs=StructuredOutputsParams(json=sampling.json_schema) if sampling.json_schema else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
