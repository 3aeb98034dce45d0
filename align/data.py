"""A prompt with its answer, to tokens, of which some are scored."""

from typing import Any, NamedTuple

from counterfoil.records import Message
from decode.chat import check_template

__all__ = ["Encoded", "encode"]

Prompt = str | tuple[Message, ...]


class Encoded(NamedTuple):
    """A prompt with one answer, in tokens."""

    ids: list[int]
    start: int
    """The first token that is scored: what comes before it is the prompt's."""
    offsets: list[tuple[int, int]]
    """Of each token from `start` on, where it lies in the answer's text, in characters; negative or beyond it for a
    template's."""


def encode(tokenizer: Any, prompt: Prompt, answer: str) -> Encoded:
    """Encode a prompt with its answer as one text, by the chat template or with an end-of-sequence token after it.

    The prompt is what the tokens of the whole have in common with those of the prompt alone, so that a token which
    changes when the answer is glued on is the answer's.
    """
    if not isinstance(prompt, str):
        check_template(tokenizer)
    if isinstance(prompt, str):
        asked, whole = prompt, f"{prompt}{answer}{tokenizer.eos_token}"
        special = True
    else:
        turns: list[Any] = list(prompt)
        asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
        special = False
    alone = tokenizer(asked, add_special_tokens=special)["input_ids"]
    glued = tokenizer(whole, add_special_tokens=special, return_offsets_mapping=True)
    ids: list[int] = glued["input_ids"]
    start = next(
        (at for at, pair in enumerate(zip(alone, ids, strict=False)) if pair[0] != pair[1]), min(len(alone), len(ids))
    )
    # A template may strip the answer; what is left of it is looked for where the prompt ends, or from the end.
    begin = whole.find(answer.strip(), len(asked)) if whole.startswith(asked) else whole.rfind(answer.strip())
    begin = len(whole) if begin < 0 else begin - (len(answer) - len(answer.lstrip()))
    return Encoded(ids, start, [(first - begin, last - begin) for first, last in glued["offset_mapping"][start:]])
