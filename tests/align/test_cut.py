"""A weak model out of a strong one: which layers stay, that it learns, that a kill changes nothing, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from align import cut as cut_module
from align.cut import Cut
from counterfoil.errors import InputError

LIBRARY: Any = transformers
SHAPES: dict[str, tuple[Any, str]] = {
    "llama": (LIBRARY.LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=2,
                                  num_key_value_heads=1, tie_word_embeddings=True), "model.layers.{}.mlp.up_proj.weight"),
    "gemma3_text": (LIBRARY.Gemma3TextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=5, head_dim=16,
                                             num_attention_heads=2, num_key_value_heads=1, sliding_window=8),
                    "model.layers.{}.mlp.up_proj.weight"),
    "smollm3": (LIBRARY.SmolLM3Config(hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=2,
                                      num_key_value_heads=1, no_rope_layers=[1, 1, 0, 1, 0]),
                "model.layers.{}.mlp.up_proj.weight"),
    "gpt2": (LIBRARY.GPT2Config(n_embd=32, n_layer=5, n_head=2), "transformer.h.{}.mlp.c_fc.weight"),
}  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write a text that is easily learnt."""
    lines = [
        " = A heading = ",
        *(f"The miller counts {n} sacks of corn by the river ." for n in range(200)),
        "A <unk> .",
    ]
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines))
    return path


def make_model(folder: Path, shape: str, tiny_model: Path) -> Path:
    config, _ = SHAPES[shape]
    tokenizer = LIBRARY.AutoTokenizer.from_pretrained(tiny_model)
    config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id = len(tokenizer), 1, 2, 2
    torch.manual_seed(0)
    LIBRARY.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_job(corpus: Path, model: Path, **changes: Any) -> Cut:
    settings: dict[str, Any] = {"layers": 3, "steps": 12, "row_tokens": 32, "batch_size": 4, "learning_rate": 1e-2}
    return Cut(corpus=corpus, model=str(model), **(settings | changes))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_and_the_last_layers_stay_and_learn(
    shape: str, corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    source = make_model(tmp_path / "whole", shape, tiny_model)
    still = make_job(corpus, source, steps=1, learning_rate=1e-12).run(tmp_path / "still", quiet=True)
    before, after = (load_file(path / "model.safetensors") for path in (source, still.folder / "model"))
    name = SHAPES[shape][1]
    for new, old in enumerate((0, 1, 4)):
        assert torch.allclose(after[name.format(new)], before[name.format(old)], atol=1e-9)
    assert name.format(3) not in after
    done = make_job(corpus, source).run(tmp_path / "run", quiet=True)
    assert done.figures["perplexity"] < 0.8 * done.figures["perplexity_cut"]
    assert 0 < done.figures["share_of_parameters"] < 1
    model = LIBRARY.AutoModelForCausalLM.from_pretrained(done.folder / "model")
    assert model.config.num_hidden_layers == 3
    assert len(getattr(model.config, "layer_types", None) or [0] * 3) == 3
    assert getattr(model.config, "no_rope_layers", [1, 1, 0]) == [1, 1, 0]
    ids = torch.arange(5, 25)[None]
    grown = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=2)
    again = ids
    for _ in range(4):  # without a cache: each layer keeps to its own place in it
        again = torch.cat([again, model(again, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(grown, again)


def test_resumed_equals_uninterrupted_bit_for_bit(
    corpus: Path, tiny_model: Path, tmp_path: Path, interrupt: Callable[..., None]
) -> None:
    source = make_model(tmp_path / "source", "llama", tiny_model)
    job = make_job(corpus, source, save_every=4)
    whole = job.run(tmp_path / "whole", quiet=True)
    interrupt(job, tmp_path / "broken", module=cut_module, step=7)
    assert not (tmp_path / "broken" / "model").exists()
    resumed = job.run(tmp_path / "broken", quiet=True)
    left, right = (load_file(each.folder / "model" / "model.safetensors") for each in (whole, resumed))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert whole.figures == resumed.figures


def test_what_cannot_be_cut_is_refused(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 of 2 layers"):
        make_job(corpus, tiny_model, layers=2).run(tmp_path / "a", quiet=True)
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(InputError, match="a text of at least 64 tokens"):
        make_job(tmp_path / "short.txt", tiny_model).run(tmp_path / "b", quiet=True)
    (tmp_path / "latin.txt").write_bytes("Öl".encode("latin-1"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("x")
    for name in ("latin.txt", "folder"):
        with pytest.raises(InputError, match="a text file in UTF-8"):
            make_job(tmp_path / name, tiny_model).run(tmp_path / f"run_{name}", quiet=True)


@pytest.mark.parametrize(
    "config",
    [
        LIBRARY.GPT2Config(n_embd=32, n_layer=5, n_head=2, scale_attn_by_inverse_layer_idx=True, initializer_range=0.3),
        LIBRARY.Qwen3MoeConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=1,
            mlp_only_layers=[4], num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=16,
        ),
    ],
    ids=["gpt2", "qwen3_moe"],
)  # fmt: skip
def test_a_model_that_its_cut_config_does_not_describe_is_refused(
    config: Any, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings that count layers otherwise than by a list of all: by a layer's number, by a list of numbers."""
    monkeypatch.setitem(SHAPES, "counting", (config, ""))
    source = make_model(tmp_path / "whole", "counting", tiny_model)
    with pytest.raises(InputError, match="config does not describe"):
        make_job(corpus, source).run(tmp_path / "run", quiet=True)


def test_rows_begin_as_the_tokenizer_begins_a_text(corpus: Path, tiny_model: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = LIBRARY.AutoTokenizer.from_pretrained(tiny_model)
    job = make_job(corpus, tiny_model)
    plain = job._read_rows(tokenizer)
    first = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A", pair=f"{first} $A $B", special_tokens=[(first, tokenizer.bos_token_id)]
    )
    begun = job._read_rows(tokenizer)
    assert {len(row) for row in plain + begun} == {job.row_tokens}
    assert {row[0] for row in begun} == {tokenizer.bos_token_id} != {row[0] for row in plain}
    assert [token for row in begun for token in row[1:]][:90] == [token for row in plain for token in row][:90]
