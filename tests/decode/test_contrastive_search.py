"""Contrastive search against a brute-force reference: float64, no cache, one row and one candidate at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from counterfoil.errors import InputError
from decode import contrastive_search

NEW = 14
KINDS = [
    "llama", "mistral in a window", "gemma", "gemma2, whole and in a window, soft caps", "gemma3, whole and in a window",
    "qwen3", "granite, scaled logits", "mixtral", "gpt2", "t5",
]  # fmt: skip
Make = Callable[..., Any]
Draw = Callable[[int], list[list[int]]]


def search(model: Any, prompt: list[int], *, alpha: float, k: int, num: int = NEW) -> list[int]:
    """Decode one row by the definition; `model` is in float64."""

    def read(ids: list[int]) -> tuple[Tensor, Tensor]:
        tokens = torch.tensor([ids])
        if model.config.is_encoder_decoder:
            result = model(input_ids=torch.tensor([prompt]), decoder_input_ids=tokens, output_hidden_states=True)
            return result.decoder_hidden_states[-1][0], result.logits[0, -1]
        result = model(input_ids=tokens, output_hidden_states=True, use_cache=False)
        return result.hidden_states[-1][0], result.logits[0, -1]

    ids = [0] if model.config.is_encoder_decoder else list(prompt)
    start = len(ids)
    for _ in range(num):
        before, logits = read(ids)
        probs, candidates = logits.softmax(-1).topk(k)
        scores: list[float] = []
        for prob, token in zip(probs.tolist(), candidates.tolist(), strict=True):
            states, _ = read([*ids, token])
            cosine = torch.cosine_similarity(states[-1][None], before, dim=-1).max().item()
            scores.append((1 - alpha) * prob - alpha * cosine)
        ids.append(candidates.tolist()[max(range(k), key=scores.__getitem__)])
    return ids[start:]


def run(model: Any, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    found = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW, custom_generate=contrastive_search, **settings
    )
    start = 1 if model.config.is_encoder_decoder else longest
    return found[:, start:].tolist()


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.3, 8), (0.9, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_definition(
    kind: str, alpha: float, k: int, rows: int, make_model: Make, draw_prompts: Draw
) -> None:
    model, prompts = make_model(kind), draw_prompts(rows)
    if kind == "t5" and rows > 1:
        prompts = [row[:3] for row in prompts]  # the reference encodes without padding
    found = run(model, prompts, alpha=alpha, k=k)
    model.double()
    assert found == [search(model, prompt, alpha=alpha, k=k) for prompt in prompts]


@pytest.mark.parametrize("zero_pad", [False, True])
@pytest.mark.parametrize("form", ["one_row", "replicated"])
@pytest.mark.parametrize("kind", ["llama", "mistral in a window", "gpt2"])
def test_left_padding_changes_nothing_whatever_it_is_embedded_to(
    kind: str, form: str, zero_pad: bool, make_model: Make, draw_prompts: Draw
) -> None:
    model = make_model(kind, seed=1, zero_pad=zero_pad)
    prompts = [*draw_prompts(3), list(range(3, 40))]
    together = run(model, prompts, alpha=0.7, k=5, form=form)
    assert together == [run(model, [prompt], alpha=0.7, k=5, form=form)[0] for prompt in prompts]
    greedy = [run(model, [prompt], alpha=0.0, k=5, form=form)[0] for prompt in prompts]
    assert together != greedy


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("t5", "gemma2, whole and in a window, soft caps")]
)
def test_both_forms_are_the_same(kind: str, make_model: Make, draw_prompts: Draw) -> None:
    model, prompts = make_model(kind, seed=2), draw_prompts(4)
    forms = [run(model, prompts, alpha=0.5, k=3, form=form) for form in ("one_row", "replicated")]
    assert forms[0] == forms[1]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_penalty_or_a_choice_it_is_greedy(kind: str, make_model: Make, draw_prompts: Draw) -> None:
    model, prompts = make_model(kind, seed=3), draw_prompts(3)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = (ids != 0).long()
    greedy = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    for settings in ({"alpha": 0.0, "k": 5}, {"alpha": 0.8, "k": 1}):
        found = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=NEW, custom_generate=contrastive_search, **settings
        )
        assert found.tolist() == greedy.tolist()


def test_a_long_text_makes_room_and_leaves_a_window(make_model: Make) -> None:
    """More tokens than there is room for at the start, and more than a window keeps, in both kinds of layer."""
    model = make_model("gemma3, whole and in a window", seed=4)
    ids = torch.tensor([list(range(3, 20))])
    found = [
        model.generate(input_ids=ids, max_new_tokens=330, custom_generate=contrastive_search, alpha=0.6, k=3, form=form)
        for form in ("one_row", "replicated")
    ]
    assert found[0].tolist() == found[1].tolist()


def test_outputs_streamer_and_criteria_are_those_of_generate(make_model: Make, draw_prompts: Draw) -> None:
    model = make_model("llama", seed=5)
    ids = torch.tensor(draw_prompts(2)[0:1])
    pieces: list[int] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            pieces.extend(value.reshape(-1).tolist())

        def end(self) -> None:
            pieces.append(-1)

    result = model.generate(
        input_ids=ids, max_new_tokens=6, custom_generate=contrastive_search, alpha=0.6, k=4, streamer=Streamer(),
        return_dict_in_generate=True, output_scores=True, output_logits=True, bad_words_ids=[[7]],
    )  # fmt: skip
    assert pieces == [*result.sequences[0].tolist(), -1]
    assert len(result.scores) == len(result.logits) == 6
    assert result.scores[0].shape == (1, 61)
    assert 7 not in result.sequences[0, ids.shape[1] :].tolist()
    model.generation_config.eos_token_id = int(result.sequences[0, ids.shape[1] + 2])
    short = model.generate(
        input_ids=ids, max_new_tokens=6, custom_generate=contrastive_search, alpha=0.6, k=4, bad_words_ids=[[7]]
    )
    assert short[0].tolist() == result.sequences[0, : ids.shape[1] + 3].tolist()


def test_what_it_cannot_do_is_refused_by_name(make_model: Make) -> None:
    model = make_model("llama")
    ids = torch.tensor([[3, 4, 5]])
    for settings, given in (
        ({"do_sample": True}, "do_sample"),
        ({"num_beams": 2}, "num_beams"),
        ({"cache_implementation": "static"}, "static"),
        ({"past_key_values": model(ids, use_cache=True).past_key_values}, "past_key_values"),
    ):
        with pytest.raises((InputError, ValueError), match=given):
            model.generate(
                input_ids=ids, max_new_tokens=3, custom_generate=contrastive_search, alpha=0.6, k=4, **settings
            )
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    with pytest.raises(InputError, match="state"):
        mamba.generate(input_ids=ids, max_new_tokens=3, custom_generate=contrastive_search, alpha=0.6, k=4)
    with pytest.raises(InputError, match="replicated"):
        make_model("gemma2, whole and in a window, soft caps").generate(
            input_ids=ids, max_new_tokens=3, custom_generate=contrastive_search, form="one_row"
        )


def test_a_forbidden_token_is_never_chosen(make_model: Make) -> None:
    """Not even where fewer tokens are allowed than there are candidates, or more candidates than tokens."""
    model = make_model("llama")
    ids = torch.tensor([[3, 4, 5, 6]])
    settings: dict[str, Any] = {"max_new_tokens": 8, "custom_generate": contrastive_search, "alpha": 0.95}
    found = model.generate(input_ids=ids, k=6, prefix_allowed_tokens_fn=lambda *_: [7, 8], **settings)
    assert set(found[0, 4:].tolist()) <= {7, 8}
    assert model.generate(input_ids=ids, k=200, **settings).shape == (1, 12)


def test_a_head_that_leaves_its_backbone_out_is_refused() -> None:
    """OPT's head calls the decoder inside of the backbone: its states would go through all layers twice."""
    config = transformers.OPTConfig(
        vocab_size=61, hidden_size=24, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=24,
        pad_token_id=0, eos_token_id=None, max_position_embeddings=64,
    )  # fmt: skip
    model: Any = transformers.OPTForCausalLM(config).eval()
    ids = torch.tensor([[3, 4, 5, 6]])
    with pytest.raises(InputError, match="head"):
        model.generate(input_ids=ids, max_new_tokens=3, custom_generate=contrastive_search, form="one_row")
    greedy = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    found = model.generate(
        input_ids=ids, max_new_tokens=3, custom_generate=contrastive_search, alpha=0.0, form="replicated"
    )
    assert found.tolist() == greedy.tolist()


def test_an_encoder_decoder_needs_no_mask(make_model: Make) -> None:
    model = make_model("t5")
    ids = torch.tensor([[3, 4, 5]])
    settings: dict[str, Any] = {"max_new_tokens": 5, "custom_generate": contrastive_search}
    with_mask = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    assert model.generate(input_ids=ids, **settings).tolist() == with_mask.tolist()
