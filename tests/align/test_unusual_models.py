"""Models and tokenizers that are not as most are: trained the same, or refused by name before anything is trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from safetensors.torch import load_file

from align.logps import can_share
from align.objective import Fresh, Objective
from align.objectives.copg import Copg
from align.objectives.distill import Distill
from align.objectives.dpo import Dpo
from align.objectives.sft import Sft
from align.train import Lora, Train
from counterfoil.errors import EngineError, InputError
from counterfoil.job import Finished
from counterfoil.models import find_model
from counterfoil.records import Answer, Completion, Group, Message, Prompt, Score
from eval.scorer import LocalScorer
from eval.scorers.chance import Chance

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Return the maker of a random model by the name of its classes, with changes to its config and its tokenizer."""

    def make(family: str, *, tokenizer: dict[str, Any] | None = None, **config: Any) -> Path:
        import torch
        import transformers

        torch.manual_seed(0)
        folder = tmp_path / family
        found: Any = transformers.AutoTokenizer.from_pretrained(find_model("smollm2"))
        for name, value in (tokenizer or {}).items():
            setattr(found, name, value)
        settings = getattr(transformers, f"{family}Config")(vocab_size=len(found), **({**SIZES, **config}))
        head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
        getattr(transformers, f"{family}{head}")(settings).save_pretrained(folder)
        found.save_pretrained(folder)
        return folder

    return make


class Reward(LocalScorer):
    """A score of no fixed scale, as a reward model's."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Give five."""
        return Score(completion_id=completion.id, scorer="reward", value=5.0)


def ask(text: str, *, system: bool = False) -> tuple[Message, ...]:
    first: tuple[Message, ...] = ({"role": "system", "content": "Be brief."},) if system else ()
    return (*first, {"role": "user", "content": text})


def write(path: Path, groups: list[Group]) -> Path:
    path.write_text("".join(group.model_dump_json() + "\n" for group in groups))
    return path


def make_groups(path: Path, *, count: int = 6, length: int = 1) -> Path:
    """Write pairs of unlike lengths, with scores."""
    sides: list[tuple[Literal["chosen", "rejected"], str, float]] = [
        ("chosen", "It is fine.", 1.0), ("rejected", "No idea, none at all.", 0.0)
    ]  # fmt: skip
    return write(
        path,
        [
            Group.make(
                ask(f"Tell me of number {at}. " + "And more. " * at * length),
                [Answer(text=text, role=role, score=score) for role, text, score in sides],
            )
            for at in range(count)
        ],
    )


def train(model: Path, data: Path, objective: Objective, **more: Any) -> Finished:
    settings = {"batch_size": 2, "lora": Lora(rank=2), "learning_rate": 1e-2} | more
    folder = data.parent / f"run{len(list(data.parent.glob('run*')))}"
    return Train(data=data, model=str(model), objective=objective, **settings).run(folder, quiet=True)


def read_losses(done: Finished) -> list[float]:
    return [json.loads(line)["loss"] for line in done.path("metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", [Dpo(), Copg(beta=0.5)], ids=["dpo", "copg"])
def test_a_reference_is_the_policys_where_positions_depend_on_the_batch(
    objective: Objective, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    """Rows beyond the original length turn by the longest beside them: nothing may be computed in another batch."""
    from transformers import AutoModelForCausalLM

    model = make_model(
        "Llama", max_position_embeddings=64, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    )
    assert not can_share(AutoModelForCausalLM.from_pretrained(model))
    data = make_groups(tmp_path / "groups.jsonl", length=8)
    found = [read_losses(train(model, data, objective, cache_reference=kept, max_tokens=512)) for kept in (True, False)]
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern")
@pytest.mark.parametrize("objective", [Dpo(), Sft()], ids=["dpo", "sft"])
def test_experts_are_trained_by_default(objective: Objective, tmp_path: Path, make_model: Callable[..., Path]) -> None:
    """TRL asks for what the router said of each place of the batch, which a batch without its repetitions has not."""
    model, data = make_model("Mixtral", num_local_experts=4), make_groups(tmp_path / "groups.jsonl")
    found = [read_losses(train(model, data, objective, share_prompts=shared)) for shared in (None, False)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_training_of_one_step_changes_the_adapter(tmp_path: Path, tiny_model: Path) -> None:
    done = train(tiny_model, make_groups(tmp_path / "groups.jsonl"), Dpo(), batch_size=6)
    assert done.figures["steps"] == 1
    weights = load_file(done.path("adapter") / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)


def test_answers_that_a_template_makes_equal_are_dropped(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    strips = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}{% endfor %}"
    model = make_model("Llama", tokenizer={"chat_template": strips})
    groups = [
        Group.make(ask(f"Number {at}?"), [Answer(text="yes", role="chosen"), Answer(text=other, role="rejected")])
        for at, other in enumerate(("no", "no", "yes\n"))
    ]
    for objective in (Dpo(), Copg()):
        done = train(model, write(tmp_path / "groups.jsonl", groups), objective)
        assert done.manifest["counts"]["dropped"] == {"data: answers alike in tokens": 1}


def test_a_row_that_the_template_refuses_is_dropped(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    """Gemma's template has no system's turn."""
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    )
    model = make_model("Llama", tokenizer={"chat_template": refuses})
    sides = [Answer(text="yes", role="chosen"), Answer(text="no", role="rejected")]
    data = write(tmp_path / "groups.jsonl", [Group.make(ask("Is it?", system=at > 1), sides) for at in range(3)])
    rows = data.read_text().splitlines()
    data.write_text("\n".join([rows[0], rows[2]]) + "\n")
    done = train(model, data, Dpo())
    assert done.manifest["counts"]["dropped"] == {"data: refused by the chat template": 1}
    bare = make_model("Qwen2", tokenizer={"chat_template": None})
    with pytest.raises(EngineError, match="no chat template"):
        train(bare, data, Dpo())


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    """Else `None`, in letters, would be learnt as the end of a text."""
    sides = [Answer(text=" yes", role="chosen"), Answer(text=" no", role="rejected")]
    data = write(tmp_path / "groups.jsonl", [Group.make("Is it?", sides)])
    for tokens in ({"eos_token": None, "pad_token": "<|im_end|>"}, {"eos_token": None, "pad_token": None}):
        model = make_model("Llama", tokenizer=tokens)
        with pytest.raises(EngineError, match="without an end-of-sequence token"):
            train(model, data, Copg())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_what_is_longer_than_the_model_is_dropped(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    """GPT-2 has a fixed number of positions; fresh answers need theirs as well."""
    model = make_model("GPT2", n_positions=80, n_embd=32, n_layer=2, n_head=2)
    data = make_groups(tmp_path / "groups.jsonl", count=8, length=2)
    done = train(model, data, Dpo())
    dropped = done.manifest["counts"]["dropped"]["data: too long"]
    assert 0 < dropped < 8
    fresh = Fresh(every=1, n=2, max_new_tokens=30, scorer=Chance())
    done = train(model, data, Copg(fresh=fresh))
    assert dropped < done.manifest["counts"]["dropped"]["data: too long"] < 8


def test_modules_that_cannot_be_adapted_are_named(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    import transformers

    assert transformers.MambaConfig
    model = make_model("Mamba", state_size=4, conv_kernel=2)
    data = make_groups(tmp_path / "groups.jsonl")
    with pytest.raises(InputError, match="in_proj") as raised:
        train(model, data, Dpo())
    assert raised.value.where == "lora.targets"
    train(model, data, Dpo(), lora=Lora(rank=2, targets=("in_proj", "x_proj")))


def test_an_adapter_of_a_run_is_started_from_and_one_of_another_model_is_refused(
    tmp_path: Path, tiny_model: Path, make_model: Callable[..., Path]
) -> None:
    data = make_groups(tmp_path / "groups.jsonl")
    first = train(tiny_model, data, Sft())
    again = train(tiny_model, data, Dpo(), start=first.folder, reference="start", lora=Lora())
    assert read_losses(again)[0] == pytest.approx(0.6931, abs=1e-3), "held to what it starts from"
    other = make_model("Llama", hidden_size=48, intermediate_size=96)
    with pytest.raises(InputError, match="size mismatch"):
        train(other, data, Dpo(), start=first.folder, lora=Lora())


def test_answers_that_are_left_out_of_a_group_are_counted(tmp_path: Path, tiny_model: Path) -> None:
    answers = [
        Answer(text="yes", role="chosen"), Answer(text="yes, because", role="chosen", is_cut=True),
        Answer(text=" ", role="chosen"), Answer(text="no", role="rejected", is_cut=True),
    ]  # fmt: skip
    data = write(tmp_path / "groups.jsonl", [Group.make(ask("Is it?"), answers)])
    assert train(tiny_model, data, Sft()).figures["answers left out"] == {"cut off": 1, "empty": 1}


def test_a_scorer_whose_scores_an_objective_does_not_take_stops_it(tmp_path: Path, tiny_model: Path) -> None:
    data = make_groups(tmp_path / "groups.jsonl")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        for item in row["answers"]:
            item.pop("score")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fresh = Fresh(every=1, n=2, max_new_tokens=8, role="rejected", scorer=Reward())
    with pytest.raises(InputError, match=r"a quality outside of 0\.\.1 5\.0"):
        train(tiny_model, data, Distill(fresh=fresh))
