"""The engine hf scores given texts: prompts computed once, the head on the texts alone, against whole logits row by row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from align.logps import install_head
from counterfoil.errors import InputError
from decode.chat import encode_prompt, encode_text, load_tokenizer
from decode.engine import Given
from decode.engines.hf import Hf
from decode.head import reads_states

PROMPTS = [({"role": "user", "content": text},) for text in ("Name a colour, please.", "What is a river?")]
TEXTS = ["Blue.", "Blue, as the sea is.", "A long way of water.", "Red", ""]


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an adapter that does something."""
    torch.manual_seed(0)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for name, value in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.3)
    folder = tmp_path_factory.mktemp("given") / "adapter"
    tuned.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_it_is_what_whole_logits_say(tiny_model: Path, adapter: Path, batch_size: int) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected: dict[str, tuple[list[float], bool]] = {}
    given: list[Given] = []
    for tuned in (None, str(adapter)):
        if tuned is not None:
            from peft import PeftModel

            plain = PeftModel.from_pretrained(plain, tuned).eval()
        for prompt in PROMPTS:
            for text in TEXTS:
                name = f"{tuned}/{prompt[0]['content']}/{text}"
                given.append(Given(name, prompt, text, tuned))
                before, own = encode_prompt(tokenizer, prompt), encode_text(tokenizer, text)
                with torch.inference_mode():
                    logits_LV = plain(input_ids=torch.tensor([before + own])).logits[0, len(before) - 1 : -1].float()
                logps = logits_LV.log_softmax(-1)[range(len(own)), own].tolist() if own else []
                expected[name] = (logps, not own or logits_LV.argmax(-1).tolist() == own)
    with Hf(batch_size=batch_size).open(str(tiny_model)) as session:
        found = list(session.logprobs(given))
        again = list(session.logprobs(given[:3]))
    assert {item.id for item in found} == set(expected)
    for item in found:
        assert item.failure is None
        assert item.token_logprobs == pytest.approx(expected[item.id][0], abs=2e-5)
        assert item.is_greedy == expected[item.id][1]
    for one, other in zip(again, found, strict=False):
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=2e-5)


def test_what_texts_share_goes_through_the_layers_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight answers of a prompt are one row of it and of them; a session generates as before afterwards."""
    seen: list[int] = []
    with Hf(batch_size=8).open(str(tiny_model)) as session:
        loaded: Any = session._loaded  # pyright: ignore[reportAttributeAccessIssue]
        assert loaded.reads_states
        layer = loaded.bare_model.base_model.layers[0]
        layer.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:2].numel()))
        list(session.logprobs(Given(str(at), PROMPTS[0], f"It is {at}.") for at in range(8)))
        num_prompt = session.num_tokens(PROMPTS[0])
        whole = [len(encode_text(loaded.tokenizer, f"It is {at}.")) for at in range(8)]
    assert len(seen) == 1
    assert seen[0] < num_prompt + sum(whole)
    assert seen[0] >= num_prompt + max(whole)


def test_a_model_with_a_layer_between_its_states_and_its_head_says_all_by_itself(
    tiny_model: Path, tmp_path: Path
) -> None:
    """ModernBERT's decoder has one: the head on the backbone's states would say something else."""
    from transformers import ModernBertDecoderConfig

    tokenizer = load_tokenizer(str(tiny_model))
    torch.manual_seed(0)
    config = ModernBertDecoderConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    assert not reads_states(model)
    with pytest.raises(InputError, match="not the head's"):
        install_head(model.requires_grad_(False))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    before, own = encode_prompt(tokenizer, PROMPTS[0]), encode_text(tokenizer, TEXTS[1])
    with torch.inference_mode():
        logits_LV = model(input_ids=torch.tensor([before + own])).logits[0, len(before) - 1 : -1].float()
    expected = logits_LV.log_softmax(-1)[range(len(own)), own].tolist()
    with Hf(max_model_len=128).open(str(tmp_path)) as session:
        (found,) = session.logprobs([Given("a", PROMPTS[0], TEXTS[1])])
    assert found.token_logprobs == pytest.approx(expected, abs=2e-5)
