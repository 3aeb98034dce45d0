"""The probability of given text on a model that transformers loaded: the model's own in one pass, or a method's.

Under a method the text is what the method is made to write, so that its probabilities are those of decoding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from counterfoil.config import fingerprint
from counterfoil.errors import EngineError, InputError, first_line
from decode.chat import encode_prompt, encode_text
from decode.engine import Given, GivenLogprobs
from decode.loaded import Loaded

__all__ = ["score"]


@dataclass
class _Row:
    """A given text as token ids: what it goes on from, and what is scored."""

    given: Given
    prompt: list[int]
    text: list[int]
    negative: list[int] | None


def score(
    loaded: Loaded, batch: Sequence[Given], *, gives: frozenset[str], max_model_len: int
) -> Iterator[GivenLogprobs]:
    """Score a batch; one that cannot be scored fails alone."""
    rows: list[_Row] = []
    for item in batch:
        try:
            rows.append(_encode(loaded, item, gives, max_model_len))
        except (EngineError, ValueError) as error:
            yield GivenLogprobs(item.id, failure=first_line(error))
    rows.sort(key=_key)
    for _, group in itertools.groupby(rows, key=_key):
        alike = list(group)
        try:
            found = _read(loaded, alike) if alike[0].given.method is None else _force(loaded, alike)
        except (EngineError, InputError) as error:
            found = [GivenLogprobs(row.given.id, failure=first_line(error)) for row in alike]
        yield from found


def _key(row: _Row) -> tuple[str, ...]:
    """Rows of one pass share all but their texts."""
    given = row.given
    method = fingerprint(given.method) if given.method else ""
    return given.adapter or "", method, str(given.negative is None)


def _encode(loaded: Loaded, given: Given, gives: frozenset[str], max_model_len: int) -> _Row:
    if fault := given.find_fault(gives):
        raise ValueError(fault)
    prompt = encode_prompt(loaded.tokenizer, given.prompt) if given.prompt else []
    text = encode_text(loaded.tokenizer, given.text)
    if not prompt:
        prompt, text = text[:1], text[1:]
    negative = None if given.negative is None else encode_prompt(loaded.tokenizer, given.negative)
    length = max(len(prompt), len(negative or [])) + len(text)
    if length > max_model_len:
        raise ValueError(f"{length} tokens, over {max_model_len}")
    return _Row(given, prompt, text, negative)


def _find(row: _Row, logprobs: tuple[float, ...], greedy: bool) -> GivenLogprobs:
    return GivenLogprobs(row.given.id, logprobs, is_greedy=greedy, num_prompt_tokens=len(row.prompt))


def _read(loaded: Loaded, rows: Sequence[_Row]) -> list[GivenLogprobs]:
    """Score texts that share an adapter, in one pass: what they begin with once, the head on their own tokens alone."""
    import torch

    from decode.head import find_head, score_labels
    from decode.prefixes import shared_prefixes

    device, pad = loaded.device, loaded.tokenizer.pad_token_id
    whole = [row.prompt + row.text for row in rows]
    longest = max(1, *map(len, whole))
    ids_BT = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in whole], device=device)
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in whole], device=device)
    at_B, at_T = (
        torch.tensor([place[side] for place in _places(rows)], device=device, dtype=torch.long) for side in (0, 1)
    )
    labels_N = ids_BT[at_B, at_T + 1]
    with torch.inference_mode(), loaded.use_adapter(rows[0].given.adapter):
        model = loaded.bare_model
        head = find_head(model) if loaded.reads_states else "not alone"
        if isinstance(head, str):  # not linear, or has an adapter, or is not all that follows: the whole model says it
            logits_NV = loaded.model(input_ids=ids_BT, attention_mask=mask_BT).logits[at_B, at_T].float()
            logps_N = logits_NV.log_softmax(-1).gather(1, labels_N[:, None])[:, 0]
            best_N = logits_NV.argmax(-1) == labels_N
        else:
            with shared_prefixes(model):
                states_BTD = model.base_model(ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
            scores = score_labels(states_BTD[at_B, at_T], labels_N, head)
            logps_N, best_N = scores.log_probs, scores.is_top1
    logps, best = iter(logps_N.tolist()), iter(best_N.tolist())
    found: list[GivenLogprobs] = []
    for row in rows:
        count = len(row.text)
        own = tuple(itertools.islice(logps, count))
        found.append(_find(row, own, all([*itertools.islice(best, count)])))
    return found


def _places(rows: Sequence[_Row]) -> list[tuple[int, int]]:
    """List, row by row, where the state before each token of a text is."""
    return [
        (at, place)
        for at, row in enumerate(rows)
        for place in range(len(row.prompt) - 1, len(row.prompt) + len(row.text) - 1)
    ]


def _force(loaded: Loaded, rows: Sequence[_Row]) -> list[GivenLogprobs]:
    """Score texts that share a method: it decodes, and is made to write them."""
    import torch
    from transformers import GenerationConfig

    from decode.draw import Force

    empty = [_find(row, (), True) for row in rows if not row.text]
    rows = [row for row in rows if row.text]
    if not rows:
        return empty
    ids_BT, mask_BT = loaded.pad_left([row.prompt for row in rows])
    force = Force([row.text for row in rows], prompt_length=ids_BT.shape[1], device=loaded.device)
    config = GenerationConfig(
        max_new_tokens=max(len(row.text) for row in rows), do_sample=False, eos_token_id=None,
        pad_token_id=loaded.tokenizer.pad_token_id,
    )  # fmt: skip
    method = loaded.bind_method(rows[0].given.method, [row.negative for row in rows])
    with torch.inference_mode(), loaded.use_adapter(rows[0].given.adapter):
        loaded.model.generate(
            input_ids=ids_BT, attention_mask=mask_BT, generation_config=config, custom_generate=method,
            logits_processor=[force],
        )  # fmt: skip
    found: list[GivenLogprobs] = []
    for at, row in enumerate(rows):
        logprobs, greedy = force.read(at, len(row.text))
        found.append(_find(row, logprobs, greedy))
    return empty + found
