"""Methods that contrast logits, against the definition: float64, no cache, one row at a time; and their identities."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from torch import Tensor

from counterfoil.errors import InputError
from decode import context_aware, contrastive, contrastive_search, decoupled, dola, guided
from decode.contrast import contrast, log_ratio, plausible
from decode.methods.dola import _diverge

NEW = 12
KINDS = [
    "llama", "mistral in a window", "gemma", "gemma2, whole and in a window, soft caps", "gemma3, whole and in a window",
    "qwen3", "granite, scaled logits", "mixtral", "gpt2",
]  # fmt: skip
Make = Callable[..., Any]
Draw = Callable[[int], list[list[int]]]


def pad(prompts: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in prompts]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts]),
    }


def run(model: Any, prompts: list[list[int]], method: Any, **settings: Any) -> list[list[int]]:
    inputs = pad(prompts)
    found = model.generate(**inputs, max_new_tokens=NEW, custom_generate=method, **settings)
    return found[:, inputs["input_ids"].shape[1] :].tolist()


def logits_of(model: Any, ids: list[int], **more: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False, **more).logits[0, -1]


def define(prompts: list[list[int]], score: Callable[[int, list[int]], Tensor]) -> list[list[int]]:
    """Decode greedily by `score(row, tokens so far)`."""
    found: list[list[int]] = []
    for row in range(len(prompts)):
        new: list[int] = []
        for _ in range(NEW):
            new.append(int(score(row, new).argmax()))
        found.append(new)
    return found


def mask_by(positive: Tensor, score: Tensor, threshold: float) -> Tensor:
    probs = positive.softmax(-1)
    return score.masked_fill(probs < threshold * probs.max(), -math.inf)


@pytest.mark.parametrize("form", ["logits", "log_ratio"])
@pytest.mark.parametrize("kind", KINDS)
def test_contrastive_is_its_definition(kind: str, form: str, make_model: Make, draw_prompts: Draw) -> None:
    expert, amateur, prompts = make_model(kind), make_model("llama", seed=9), draw_prompts(4)
    settings = {"strength": 0.8, "threshold": 0.05, "amateur_temperature": 0.8}
    found = run(expert, prompts, contrastive, amateur=amateur, form=form, **settings)
    expert.double(), amateur.double()

    def score(row: int, new: list[int]) -> Tensor:
        first, second = (logits_of(model, prompts[row] + new) for model in (expert, amateur))
        second = second / 0.8
        both = 1.8 * first - 0.8 * second
        if form == "log_ratio":
            both = first.log_softmax(-1) - 0.8 * second.log_softmax(-1)
        return mask_by(first, both, 0.05)

    assert found == define(prompts, score)


@pytest.mark.parametrize("kind", KINDS)
def test_context_aware_is_its_definition(kind: str, make_model: Make, draw_prompts: Draw) -> None:
    """The second prompts are shorter in some rows and longer in others, so both are padded, each its own way."""
    model, prompts = make_model(kind), draw_prompts(4)
    seconds = [prompts[0][-2:], prompts[1] * 3, prompts[2][1:], [5]]
    second = pad(seconds)
    found = run(
        model, prompts, context_aware, strength=0.6, negative_input_ids=second["input_ids"],
        negative_attention_mask=second["attention_mask"],
    )  # fmt: skip
    model.double()

    def score(row: int, new: list[int]) -> Tensor:
        return 1.6 * logits_of(model, prompts[row] + new) - 0.6 * logits_of(model, seconds[row] + new)

    assert found == define(prompts, score)


@pytest.mark.parametrize("kind", KINDS)
def test_guided_is_transformers_guidance(kind: str, make_model: Make, draw_prompts: Draw) -> None:
    model = make_model(kind, seed=1)
    ids, negative = torch.tensor([draw_prompts(1)[0]]), torch.tensor([[8, 9, 10, 11, 12, 13, 14]])
    theirs = model.generate(input_ids=ids, negative_prompt_ids=negative, guidance_scale=2.5, max_new_tokens=NEW)
    ours = model.generate(
        input_ids=ids, negative_input_ids=negative, scale=2.5, max_new_tokens=NEW, custom_generate=guided
    )
    assert ours.tolist() == theirs.tolist()
    alone = model.generate(input_ids=ids, guidance_scale=2.5, max_new_tokens=NEW)
    assert (
        model.generate(input_ids=ids, scale=2.5, max_new_tokens=NEW, custom_generate=guided).tolist() == alone.tolist()
    )


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_dola_is_its_definition(kind: str, norm: bool, make_model: Make, draw_prompts: Draw) -> None:
    model, prompts = make_model(kind), draw_prompts(3)
    found = run(model, prompts, dola, layers=(0, 1, 2), norm=norm, threshold=0.1)
    model.double()
    last = getattr(model.base_model, "norm", None) or model.base_model.ln_f

    def head(state: Tensor) -> Tensor:
        scale = getattr(model.config, "logits_scaling", 1.0)
        logits = model.get_output_embeddings()(state) / scale
        cap = getattr(model.config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    def score(row: int, new: list[int]) -> Tensor:
        ids = torch.tensor([prompts[row] + new])
        with torch.no_grad():
            result = model(input_ids=ids, output_hidden_states=True, use_cache=False)
            early = [result.hidden_states[layer][0, -1] for layer in (0, 1, 2)]
            logps = [head(last(state) if norm else state).log_softmax(-1) for state in early]
        final = result.logits[0, -1].log_softmax(-1)

        def diverge(other: Tensor) -> float:
            mean = 0.5 * (final.exp() + other.exp())
            return float(0.5 * sum((p.exp() * (p - mean.log())).sum() for p in (final, other)))

        return mask_by(final, final - max(logps, key=diverge), 0.1)

    assert found == define(prompts, score)


def make_adapted(base: Any, kind: str) -> Any:
    tuned: Any = base
    for name, rank in (("positive", 4), ("negative", 3)):
        targets = ["c_attn", "c_proj"] if kind == "gpt2" else ["q_proj", "down_proj"] if rank == 4 else "all-linear"
        lora = LoraConfig(
            r=rank, lora_alpha=8, target_modules=targets, fan_in_fan_out=kind == "gpt2", task_type="CAUSAL_LM"
        )
        tuned = get_peft_model(base, lora, adapter_name=name) if tuned is base else tuned
        if name not in tuned.peft_config:
            tuned.add_adapter(name, lora)
    for key, value in tuned.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(value, std=0.3)
    return tuned.eval()


@pytest.mark.parametrize("mode", ["pos_neg", "neg_only", "anchored"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral in a window"])
def test_decoupled_is_its_definition(kind: str, mode: str, make_model: Make, draw_prompts: Draw) -> None:
    model, prompts = make_adapted(make_model(kind, seed=2), kind), draw_prompts(4)
    found = run(model, prompts, decoupled, mode=mode, strength=0.7, threshold=0.02)
    model.double()

    def read(name: str | None, ids: list[int]) -> Tensor:
        if name is None:
            with model.disable_adapter():
                return logits_of(model, ids)
        model.set_adapter(name)
        return logits_of(model, ids)

    def score(row: int, new: list[int]) -> Tensor:
        base, good, bad = (read(name, prompts[row] + new) for name in (None, "positive", "negative"))
        if mode == "anchored":
            return mask_by(base, base + 0.7 * (good - bad), 0.02)
        first = base if mode == "neg_only" else good
        return mask_by(first, 1.7 * first - 0.7 * bad, 0.02)

    assert found == define(prompts, score)
    again = run(model.float(), prompts, decoupled, mode=mode, strength=0.7, threshold=0.02)
    assert again == found, "the model is left as it was"


def test_strength_zero_is_greedy_and_an_equal_amateur_is_no_amateur(make_model: Make, draw_prompts: Draw) -> None:
    model, prompts = make_model("llama"), draw_prompts(4)
    inputs = pad(prompts)
    greedy = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[:, inputs["input_ids"].shape[1] :].tolist()
    other = make_model("llama", seed=5)
    second = {"negative_input_ids": inputs["input_ids"], "negative_attention_mask": inputs["attention_mask"]}
    assert run(model, prompts, contrastive, amateur=other, strength=0.0) == greedy
    assert run(model, prompts, contrastive, amateur=model, strength=3.0) == greedy
    assert run(model, prompts, context_aware, strength=0.0, negative_input_ids=torch.tensor([[5]] * 4)) == greedy
    assert run(model, prompts, context_aware, strength=5.0, **second) == greedy
    assert run(model, prompts, guided, scale=1.0, negative_input_ids=torch.tensor([[5]] * 4)) == greedy


def test_a_constant_added_to_the_amateur_changes_nothing_and_a_mask_is_never_empty() -> None:
    torch.manual_seed(0)
    positive, negative = torch.randn(50, 30), 3 * torch.randn(50, 30)
    shifted = negative + torch.randn(50, 1) * 10
    for strength in (0.1, 1.0, 4.0):
        first, second = (contrast(positive, item, strength=strength, threshold=0.1) for item in (negative, shifted))
        torch.testing.assert_close(first.softmax(-1), second.softmax(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        log_ratio(positive, negative).softmax(-1), log_ratio(positive, shifted).softmax(-1), rtol=1e-4, atol=1e-6
    )
    assert plausible(positive, 1.0).sum(-1).tolist() == [1] * 50
    half = positive.bfloat16()
    assert contrast(half, half, strength=9.0).dtype == torch.float32
    assert torch.equal(contrast(half, half, strength=9.0), half.float())


def test_draws_follow_the_computed_distribution(make_model: Make) -> None:
    """20,000 first tokens by the chi-square test, cells of fewer than 5 expected draws put together."""
    expert, amateur = make_model("llama", seed=1), make_model("llama", seed=2)
    prompt = [3, 4, 5, 6]
    first, second = logits_of(expert, prompt), logits_of(amateur, prompt)
    probs = (mask_by(first, 1.5 * first - 0.5 * second, 0.01) / 1.3).softmax(-1)
    torch.manual_seed(0)
    found = expert.generate(
        input_ids=torch.tensor([prompt] * 20_000), max_new_tokens=1, custom_generate=contrastive, amateur=amateur,
        strength=0.5, threshold=0.01, do_sample=True, temperature=1.3, top_k=0,
    )[:, -1]  # fmt: skip
    counts = torch.bincount(found, minlength=61).double()
    expected = probs.double() / probs.double().sum() * 20_000
    large = expected >= 5
    seen = [*counts[large].tolist(), float(counts[~large].sum())]
    due = [*expected[large].tolist(), float(expected[~large].sum())]
    if due[-1] < 5:
        seen[-2:], due[-2:] = [sum(seen[-2:])], [sum(due[-2:])]
    assert len(due) > 3
    assert chisquare(seen, due, sum_check=False).pvalue > 0.001


def test_what_is_missing_is_named(make_model: Make, draw_prompts: Draw) -> None:
    model, prompts = make_model("llama"), draw_prompts(2)
    for method, settings, named in (
        (contrastive, {}, "amateur"),
        (context_aware, {}, "negative_input_ids"),
        (context_aware, {"negative_input_ids": torch.tensor([[4]])}, "1 rows beside 2"),
        (dola, {"layers": (7,)}, "layers"),
        (decoupled, {}, "adapter"),
    ):
        with pytest.raises(InputError, match=named):
            run(model, prompts, method, **settings)


@pytest.mark.parametrize("sampled", [False, True])
def test_what_is_forbidden_is_left_out_before_the_plausible_is_chosen(
    sampled: bool, make_model: Make, draw_prompts: Draw
) -> None:
    """With a threshold of 1 one token is plausible; where that is forbidden, it is the likeliest of the others."""
    model, prompts = make_model("llama"), draw_prompts(3)
    inputs = pad(prompts)
    first = [int(logits_of(model, prompt).argmax()) for prompt in prompts]
    found = model.generate(
        **inputs, max_new_tokens=1, custom_generate=contrastive, amateur=make_model("llama", seed=4), threshold=1.0,
        bad_words_ids=[[token] for token in set(first)], do_sample=sampled,
    )[:, -1]  # fmt: skip
    for prompt, token in zip(prompts, found.tolist(), strict=True):
        logits = logits_of(model, prompt)
        logits[list(set(first))] = -math.inf
        assert token == int(logits.argmax())


def test_a_model_without_a_cache_that_grows_is_refused(make_model: Make, draw_prompts: Draw) -> None:
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    model, prompts = make_model("llama"), draw_prompts(1)
    with pytest.raises(InputError, match="gone back"):
        run(model, prompts, contrastive, amateur=mamba)
    with pytest.raises(InputError, match="encoder"):
        make_model("t5").generate(input_ids=torch.tensor([[3, 4]]), max_new_tokens=2, custom_generate=dola)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"num_beams": 3}, "num_beams=3"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
        ({"position_ids": torch.tensor([[4, 5, 6]])}, "position_ids of its own"),
        ({"token_type_ids": torch.tensor([[0, 0, 1]])}, "token_type_ids"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
    ],
)
def test_what_no_method_has_a_use_for_is_refused(given: dict[str, Any], named: str, make_model: Make) -> None:
    model, ids = make_model("llama"), torch.tensor([[3, 4, 5]])
    if "token_type_ids" in given:  # transformers itself asks whether the model takes them
        model = make_model("gpt2")
    for method in (guided, contrastive_search):
        with pytest.raises(InputError, match=named):
            model.generate(input_ids=ids, max_new_tokens=2, custom_generate=method, **given)


def test_an_amateur_of_another_size_of_vocabulary_is_refused(make_model: Make, draw_prompts: Draw) -> None:
    config = transformers.LlamaConfig(
        vocab_size=61 + 1025, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    with pytest.raises(InputError, match="vocabulary of 1086 beside 61"):
        run(make_model("llama"), draw_prompts(1), contrastive, amateur=transformers.LlamaForCausalLM(config))


def test_the_divergence_of_what_underflows_is_a_number() -> None:
    final = torch.tensor([[0.0, -110.0, -torch.inf]])
    early = torch.tensor([[[0.0, -120.0, -torch.inf]], [[-0.7, -0.7, -torch.inf]]])
    found = _diverge(final, early)
    assert found.isfinite().all()
    assert found[0, 0] < 1e-6 < found[1, 0] <= math.log(2)


def test_adapters_that_are_more_than_two_products_are_refused(make_model: Make, draw_prompts: Draw) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    tuned: Any = get_peft_model(make_model("llama"), lora, adapter_name="positive")
    tuned.add_adapter("negative", lora)
    with pytest.raises(InputError, match="DoRA"):
        run(tuned, draw_prompts(1), decoupled)
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    tuned = get_peft_model(make_model("llama"), lora, adapter_name="positive")
    tuned.add_adapter("negative", lora)
    with pytest.raises(InputError, match="trained whole"):
        run(tuned, draw_prompts(1), decoupled)
