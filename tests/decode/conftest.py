"""Tiny random models of many kinds, and prompts for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

SMALL: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mistral in a window": lambda: transformers.MistralConfig(**SMALL, sliding_window=6),
    "gemma": lambda: transformers.GemmaConfig(**SMALL),
    "gemma2, whole and in a window, soft caps": lambda: transformers.Gemma2Config(**SMALL, sliding_window=6),
    "gemma3, whole and in a window": lambda: transformers.Gemma3TextConfig(
        **SMALL, sliding_window=6, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL),
    "granite, scaled logits": lambda: transformers.GraniteConfig(**SMALL, logits_scaling=3.0),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=2),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=61, n_embd=24, n_layer=3, n_head=4, n_positions=512, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
    "t5": lambda: transformers.T5Config(
        vocab_size=61, d_model=24, d_ff=40, d_kv=6, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=0, dropout_rate=0.0,
    ),
}  # fmt: skip


def make_model(kind: str, *, seed: int = 0, zero_pad: bool = False) -> Any:
    """Build a random model whose predictions are peaked, so that nothing hangs on rounding."""
    torch.manual_seed(seed)
    config = CONFIGS[kind]()
    cls = transformers.T5ForConditionalGeneration if kind == "t5" else transformers.AutoModelForCausalLM
    model: Any = cls(config) if kind == "t5" else cls.from_config(config)
    if kind == "mixtral":
        model.set_experts_implementation("eager")  # the grouped product takes no float64
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.35)
    if zero_pad:
        with torch.no_grad():
            model.get_input_embeddings().weight[0] = 0
    model.generation_config.eos_token_id = None  # every row runs to its length
    return model.eval()


def draw_prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(3, 14, (count,), generator=generator).tolist()
    return [torch.randint(3, 61, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(name="make_model", scope="session")
def give_model_maker() -> Callable[..., Any]:
    """Return the maker of models: (kind, seed=, zero_pad=)."""
    return make_model


@pytest.fixture(name="draw_prompts", scope="session")
def give_prompts() -> Callable[[int], list[list[int]]]:
    """Return the drawer of prompts: how many -> token ids of different lengths."""
    return draw_prompts
