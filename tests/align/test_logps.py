"""Sharing prefixes changes no state and no gradient: each model against its own plain forward, one row at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor

from align.logps import can_share, install_head, share_prefixes
from align.objectives.copg import copg_loss
from counterfoil.errors import InputError
from decode.prefixes import Trie, _attend

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mistral in a window": lambda: transformers.MistralConfig(**SMALL, sliding_window=5),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL),
    "gemma": lambda: transformers.GemmaConfig(**SMALL),
    "gemma3, whole and in a window": lambda: transformers.Gemma3TextConfig(
        **SMALL, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "phi3": lambda: transformers.Phi3Config(**SMALL),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=128, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
}
TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"]}


def make_model(kind: str, *, seed: int = 0) -> Any:
    """Build a random model in which nothing is near zero, with a LoRA adapter that does something."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    lora = LoraConfig(
        r=4, target_modules=TARGETS.get(kind, "all-linear"), fan_in_fan_out=kind == "gpt2", task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(model, lora)
    for name, value in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.2)
    return tuned.eval()


def make_rows(shape: str) -> list[list[int]]:
    """List rows of tokens that share prefixes in one way or another."""
    torch.manual_seed(len(shape))

    def draw(count: int) -> list[int]:
        return torch.randint(3, 97, (count,)).tolist()

    system, first, second = draw(6), draw(5), draw(9)
    return {
        "two pairs": [
            system + first + draw(4), system + second + draw(7), system + first + draw(8), system + second + draw(1),
        ],
        "k completions": [system + first + draw(count) for count in (3, 1, 9, 5, 2)],
        "nothing shared": [[3, *draw(8)], [4, *draw(2)], [5, *draw(5)]],
        "a row twice": [first + second, first + second, first + draw(3)],
        "one row begins another": [first + second, first, first + second + draw(3)],
        "one row": [system + first],
    }[shape]  # fmt: skip


SHAPES = ["two pairs", "k completions", "nothing shared", "a row twice", "one row begins another", "one row"]


def pad(rows: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    gaps = [[0] * (length - len(row)) for row in rows]
    ids = [row + gap if side == "right" else gap + row for row, gap in zip(rows, gaps, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = [one + gap if side == "right" else gap + one for one, gap in zip(ones, gaps, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def read_gradients(model: Any) -> dict[str, Tensor]:
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_states_and_gradients_are_those_of_the_plain_form(kind: str, shape: str, side: str) -> None:
    model = make_model(kind)
    backbone = model.get_base_model().base_model
    rows = make_rows(shape)
    weights = [torch.randn(len(row), 32, generator=torch.Generator().manual_seed(7)) for row in rows]
    expected = [backbone(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0] for row in rows]
    sum((state * weight).sum() for state, weight in zip(expected, weights, strict=True)).backward()  # pyright: ignore
    gradients = read_gradients(model)

    share_prefixes(model.get_base_model(), least_saved=0)
    ids, mask = pad(rows, side)
    states = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert states.shape == (*ids.shape, 32)
    found = [state[keep.bool()] for state, keep in zip(states, mask, strict=True)]
    sum((state * weight).sum() for state, weight in zip(found, weights, strict=True)).backward()  # pyright: ignore
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)
    shared = read_gradients(model)
    assert shared.keys() == gradients.keys()
    assert gradients
    for name, value in gradients.items():
        assert (shared[name] - value).norm() <= 1e-4 * value.norm(), name


def find_losses(log_probs_N: Tensor, *, size: int = 2) -> dict[str, Tensor]:
    """DPO's loss of rows that are pairs in turn, and contrastive policy gradient's of groups, by numbers that may well be."""
    reference_N = torch.linspace(-30, -10, len(log_probs_N))
    ratio_N = log_probs_N - reference_N
    groups = torch.arange(len(log_probs_N)) // size
    scores = torch.linspace(0, 1, len(log_probs_N))
    found = {"copg": copg_loss(ratio_N, scores, groups, beta=0.1).mean()}
    if size == 2:
        found["dpo"] = -torch.nn.functional.logsigmoid(0.1 * (ratio_N[::2] - ratio_N[1::2])).mean()
    return found


def make_scored(shape: str) -> tuple[list[list[int]], list[int], int]:
    """List rows, where what is scored of each begins, and how many are a group.

    `glued`: the last token of a pair's prompt is another one in one of its rows, as where an answer is glued on to it; what
    is scored then begins at different places. `cut off`: rows end at a limit, before or in what is scored.
    """
    if shape in ("two pairs", "glued", "cut off"):
        rows = make_rows("two pairs")
        rows = [rows[0], rows[2], rows[1], rows[3]]  # pairs in turn: each two begin alike
        starts = [len(rows[0]) - 4, len(rows[0]) - 4, len(rows[2]) - 7, len(rows[2]) - 7]
        if shape == "glued":
            rows[1] = [*rows[1][: starts[1] - 1], 90, *rows[1][starts[1] :]]
            starts[1] -= 1
        if shape == "cut off":
            rows = [row[:13] for row in rows]
        return rows, starts, 2
    rows = make_rows(shape)
    start = {"k completions": 11, "a row twice": 5, "one row begins another": 10}[shape]
    return rows, [start] * len(rows), len(rows)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "shape", ["two pairs", "glued", "cut off", "k completions", "a row twice", "one row begins another"]
)
@pytest.mark.parametrize("kind", CONFIGS)
def test_losses_are_those_of_whole_logits_row_by_row(kind: str, shape: str, side: str) -> None:
    """Prefixes shared and the head on answers alone: losses to 1e-5, the adapter's gradients to 1e-4 of their norm."""
    model = make_model(kind)
    rows, starts, size = make_scored(shape)
    expected_N: list[Tensor] = []
    for row, start in zip(rows, starts, strict=True):
        logps_LV = model(input_ids=torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        expected_N.append(logps_LV.gather(1, torch.tensor(row[1:])[:, None])[start - 1 :].sum())
    expected = find_losses(torch.stack(expected_N), size=size)
    gradients: dict[str, dict[str, Tensor]] = {}
    for name, loss in expected.items():
        loss.backward(retain_graph=True)
        gradients[name] = read_gradients(model)

    install_head(model.get_base_model())
    share_prefixes(model.get_base_model(), least_saved=0)
    ids, mask = pad(rows, side)
    labels = ids.clone()
    for at, (row, start) in enumerate(zip(rows, starts, strict=True)):
        first = (ids.shape[1] - len(row) if side == "left" else 0) + start
        labels[at, :first] = -100
    labels[mask == 0] = -100
    read = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    assert int(read.label_mask.sum()) == sum(max(0, len(row) - start) for row, start in zip(rows, starts, strict=True))
    found = find_losses(read.log_probs.sum(1), size=size)
    for name, loss in found.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-5), name
        loss.backward(retain_graph=True)
        own = read_gradients(model)
        assert own.keys() == gradients[name].keys()
        for key, value in gradients[name].items():
            assert (own[key] - value).norm() <= 1e-4 * value.norm(), (name, key)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_trie_has_a_node_for_each_different_prefix(shape: str) -> None:
    rows = make_rows(shape)
    ids, mask = pad(rows, "right")
    trie = Trie.build(ids, mask)
    prefixes = {tuple(row[: end + 1]) for row in rows for end in range(len(row))}
    assert len(trie.source) == len(trie.positions) == len(prefixes) == sum(t.stop - t.start for t in trie.tails)
    tokens = ids.reshape(-1)[trie.source]
    for row, nodes in zip(rows, trie.target, strict=True):
        assert tokens[nodes[: len(row)]].tolist() == row
        assert trie.positions[nodes[: len(row)]].tolist() == list(range(len(row)))


def test_a_tokens_change_in_one_branch_reaches_no_other() -> None:
    model = make_model("llama").get_base_model()
    share_prefixes(model, least_saved=0)
    rows = make_rows("two pairs")
    before = model.base_model(*pad(rows, "right"), use_cache=False).last_hidden_state
    changed = [rows[0], rows[1], [*rows[2][:-3], 90, 91, 92], rows[3]]
    after = model.base_model(*pad(changed, "right"), use_cache=False).last_hidden_state
    for at in (0, 1, 3):
        torch.testing.assert_close(after[at, : len(rows[at])], before[at, : len(rows[at])], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after[2, len(rows[2]) - 3 : len(rows[2])], before[2, len(rows[2]) - 3 : len(rows[2])])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_plain_form_is_chosen_where_too_little_is_saved(kind: str, side: str) -> None:
    """Learnt positions do not count the padding either: GPT-2 reads a row as it would alone."""
    model = make_model(kind).get_base_model()
    apart = [[first, *range(10, 10 + length)] for first, length in ((3, 39), (4, 39), (5, 38))]  # one of 120 is padding
    alone = [model.base_model(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0] for row in apart]
    share_prefixes(model)
    seen: list[int] = []
    layers = model.base_model.h if kind == "gpt2" else model.base_model.layers
    layers[0].register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:2].numel()))
    ids, mask = pad(apart, side)
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert seen == [ids.numel()]
    for row, keep, expected in zip(states, mask, alone, strict=True):
        torch.testing.assert_close(row[keep.bool()], expected, rtol=1e-5, atol=2e-5)
    ids, mask = pad(make_rows("two pairs"), side)
    model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert seen[1:] == [len(Trie.build(ids, mask).source)]
    assert seen[1] < ids.numel()


def test_a_whole_model_without_a_cache_says_the_same() -> None:
    """Its own forward hands the backbone what was not given as None."""
    model = make_model("llama").get_base_model()
    rows = make_rows("two pairs")
    expected = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in rows]
    share_prefixes(model, least_saved=0)
    ids, mask = pad(rows, "right")
    found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for row, logits, wanted in zip(rows, found, expected, strict=True):
        torch.testing.assert_close(logits[: len(row)], wanted, rtol=1e-4, atol=1e-4)


def test_calls_of_another_form_go_through_as_before() -> None:
    model = make_model("llama").get_base_model()
    ids = torch.tensor(make_rows("one row"))
    plain = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    logits = model(input_ids=ids, output_hidden_states=True).hidden_states
    rows = torch.tensor([[*make_rows("one row")[0], 9], [*make_rows("one row")[0], 12]])
    cached = model(input_ids=rows).past_key_values
    share_prefixes(model)
    assert model.generate(input_ids=ids, max_new_tokens=6, do_sample=False).tolist() == plain.tolist()
    again = model(input_ids=rows).past_key_values  # a cache is wanted by default, and it is that of the rows
    torch.testing.assert_close(again.layers[1].keys, cached.layers[1].keys)
    for one, other in zip(model(input_ids=ids, output_hidden_states=True).hidden_states, logits, strict=True):
        torch.testing.assert_close(one, other)


def test_gradient_checkpointing_changes_nothing() -> None:
    results: list[dict[str, Tensor]] = []
    for checkpoint in (False, True):
        model = make_model("llama").train()
        base = model.get_base_model()
        share_prefixes(base, least_saved=0)
        if checkpoint:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        ids, mask = pad(make_rows("two pairs"), "right")
        (base.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state ** 2).sum().backward()
        results.append(read_gradients(model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)


def test_models_whose_states_need_more_than_a_prefix_are_refused_by_name() -> None:
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    soft = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SMALL))
    mixed = transformers.Qwen3NextForCausalLM(
        transformers.Qwen3NextConfig(**SMALL, layer_types=["linear_attention", "full_attention", "linear_attention"])
    )
    sinks = transformers.GptOssForCausalLM(transformers.GptOssConfig(**SMALL, num_local_experts=2))
    for model, reason in (
        (mamba, "cannot be replaced"),
        (soft, "soft-capped"),
        (mixed, "linear_attention"),
        (sinks, "attention sinks"),
    ):
        assert not can_share(model)
        with pytest.raises(InputError, match=reason):
            share_prefixes(model)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [None, 3])
def test_the_mask_in_two_comparisons_is_that_of_prefixes(shape: str, side: str, window: int | None) -> None:
    """Node q sees kv if kv stands on some row at or before q: looked up row by row."""
    rows = make_rows(shape)
    trie = Trie.build(*pad(rows, side))
    size = len(trie.source)
    expected = torch.zeros(size, size, dtype=torch.bool)
    for nodes, keep in zip(trie.target, pad(rows, side)[1], strict=True):
        row = nodes[keep.bool()].tolist()
        for at, q in enumerate(row):
            for near in range(at + 1):
                expected[q, row[near]] = window is None or at - near < window
    index = torch.arange(size)
    found = trie.sees(window)(0, 0, index[:, None], index[None])
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without")  # the unfused form is what a reference wants
@pytest.mark.parametrize("window", [None, 3])
def test_flex_attention_with_that_mask_is_the_attention_of_rows(window: int | None) -> None:
    """What a GPU computes, uncompiled; its gradients are not to be had on a CPU."""
    from torch.nn.attention.flex_attention import flex_attention

    torch.manual_seed(0)
    rows = make_rows("two pairs")
    trie = Trie.build(*pad(rows, "right"))
    size = len(trie.source)
    given = [torch.randn(1, heads, size, 8) for heads in (4, 2, 2)]
    found: Any = flex_attention(*given, block_mask=trie.block_mask(window), enable_gqa=True)
    expected, _ = _attend(None, *given, None, trie=trie, sliding_window=window)
    torch.testing.assert_close(found.transpose(1, 2), expected, rtol=1e-5, atol=1e-5)
