"""What a model's folder says of generation is not done unless asked for, and no row is longer than its positions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from decode.engine import Given, GivenLogprobs, Request, Sampling
from decode.engines.hf import Hf
from decode.loaded import limit_length
from decode.methods.contrastive import Contrastive
from decode.methods.guided import Guided

PROMPT, END = (5000, 6000, 5000, 7000), 2


def score(model: Path, *texts: tuple[int, ...], method: Any = None) -> list[GivenLogprobs]:
    with Hf(packed=False, max_model_len=64).open(str(model)) as session:
        given = [Given(str(at), PROMPT, text, method=method) for at, text in enumerate(texts)]
        return sorted(session.logprobs(given), key=lambda item: item.id)


def test_given_text_goes_on_after_an_end_of_sequence_token(tiny_model: Path) -> None:
    """Under guidance of scale 1, which is the model itself."""
    ended, longer = (5000, END, 8000, 5000, END, 9000), (5000, 9, 8000, 5000, 9000, 77, 88)
    for texts in ((ended,), (ended, longer)):
        plain, forced = score(tiny_model, *texts), score(tiny_model, *texts, method=Guided(scale=1.0))
        for one, other in zip(plain, forced, strict=True):
            assert other.token_logprobs == pytest.approx(one.token_logprobs, abs=1e-4)


def test_settings_of_the_models_folder_are_not_applied(tiny_model: Path, tmp_path: Path) -> None:
    """Neither to text nor to probabilities; its end-of-sequence tokens stay known."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "set"))
    settings = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 5, "eos_token_id": [END, 9]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    text = (5000, 6000, 5000, 6000)
    found: list[Any] = []
    for model in (tiny_model, folder):
        forced = score(model, text, method=Guided(scale=1.0))[0].token_logprobs
        with Hf(packed=False, max_model_len=64).open(str(model)) as session:
            asked = [
                Request("plain", PROMPT, Sampling(max_new_tokens=12, logprobs=True)),
                Request("beams", PROMPT, Sampling(max_new_tokens=12, num_beams=3)),
                Request("guided", PROMPT, Sampling(max_new_tokens=12, logprobs=True), method=Guided(scale=1.2)),
            ]
            answers = {item.id: item.completions[0] for item in session.complete(asked)}
            found.append((forced, {key: (item.text, item.token_ids) for key, item in answers.items()}))
            assert (session._loaded.eos_ids == [END, 9]) == (model == folder)
    assert found[0][1] == found[1][1] and found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert found[0][0] == pytest.approx(score(tiny_model, text)[0].token_logprobs, abs=1e-4)


def test_no_row_is_longer_than_the_models_have_positions(tiny_model: Path, tmp_path: Path) -> None:
    """Rows that fit are answered, one that does not fails alone, though `max_model_len` would let it through."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    config: Any = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=24, bos_token_id=1, eos_token_id=None
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert limit_length(512, tiny_model, tmp_path) == 24 and limit_length(8, tmp_path) == 8
    with Hf(packed=False, max_model_len=512).open(str(tmp_path)) as session:
        short, long = tuple(range(10, 30)), tuple(range(10, 40))
        sampling = Sampling(max_new_tokens=100)
        answers = {
            item.id: item for item in session.complete([Request("s", short, sampling), Request("l", long, sampling)])
        }
        assert answers["s"].completions[0].num_tokens <= 4 and "max_model_len 24" in (answers["l"].failure or "")
        scores = {item.id: item for item in session.logprobs([Given("s", short, (3, 4)), Given("l", short, (3,) * 9)])}
        assert len(scores["s"].token_logprobs) == 2 and "over 24" in (scores["l"].failure or "")
    method = Contrastive(amateur=str(tmp_path))
    with Hf(packed=False, max_model_len=512).open(str(tiny_model), methods=[method]) as session:
        (answer,) = session.complete([Request("a", short, sampling, method=method)])
        assert answer.completions[0].num_tokens <= 4
