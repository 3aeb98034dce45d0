"""Chat messages to token ids: what every in-process engine sends to its model."""

from pathlib import Path
from typing import Any

from counterfoil.errors import EngineError
from decode.engine import Content, is_token_ids

__all__ = ["check_end", "check_template", "check_vocabularies", "encode_prompt", "encode_text", "load_tokenizer"]


def load_tokenizer(folder: str) -> Any:
    """Load the tokenizer of a model's folder, left-padding, with a padding token."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token_id is None:
        check_end(tokenizer, folder)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_end(tokenizer: Any, folder: str) -> None:
    """Raise EngineError unless there is a token that ends a sequence."""
    if tokenizer.eos_token_id is None:
        given, allowed = "a tokenizer without an end-of-sequence token", "one that has one: without it no answer ends"
        do = "Set eos_token in tokenizer_config.json."
        raise EngineError(f"model: {folder}", given=given, allowed=allowed, do=do)


def check_vocabularies(first: Path, second: Path) -> None:
    """Raise EngineError unless two models' folders have the same tokens under the same numbers."""
    ours, theirs = (load_tokenizer(str(folder)).get_vocab() for folder in (first, second))
    if ours == theirs:
        return
    other = sum(theirs.get(token) != number for token, number in ours.items())
    raise EngineError(
        f"method: {second}",
        given=f"{len(theirs)} tokens against {len(ours)}, of which {other} are others",
        allowed="a second model with the same vocabulary",
        do="Take a model of the same family.",
    )


def encode_prompt(tokenizer: Any, prompt: Content) -> list[int]:
    """Encode chat messages through the model's template, up to where the assistant begins; plain text as it stands.

    Raises EngineError where the model has no chat template.
    """
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt))
    if is_token_ids(prompt):
        return list(prompt)
    check_template(tokenizer)
    return list(tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False))


def check_template(tokenizer: Any) -> None:
    """Raise EngineError unless there is a chat template."""
    if not tokenizer.chat_template:
        raise EngineError(
            "prompt",
            given="chat messages, but the model has no chat template",
            allowed="plain text for a base model, chat messages for a chat model",
            do="Use an instruction-tuned model.",
        )


def encode_text(tokenizer: Any, text: str | tuple[int, ...]) -> list[int]:
    """Encode text that goes on from a prompt: no special tokens are added."""
    return list(tokenizer.encode(text, add_special_tokens=False) if isinstance(text, str) else text)
