"""Training on TRL with a tiny random model: what is dropped, what is kept, and that a kill changes nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from align import train as train_module
from align import trainers
from align.objective import Objective
from align.objectives.dpo import Dpo
from align.objectives.ipo import Ipo
from align.objectives.pairwise import Pairwise
from align.objectives.reward import Reward
from align.objectives.sft import Sft
from align.train import Lora, Train
from counterfoil.errors import InputError, RunError
from counterfoil.job import Finished
from counterfoil.records import Completion, Pair, Prompt
from decode.chat import load_tokenizer


def make_pairs(path: Path, count: int = 12) -> Path:
    """Write pairs in the form that synthesis writes."""
    with path.open("w") as stream:
        for number in range(count):
            prompt = Prompt.make(f"Say something about number {number}.")
            good, bad = (
                Completion.make(
                    prompt_id=prompt.id, index=at, text=text, finish_reason="stop", num_prompt_tokens=9, num_tokens=5
                )
                for at, text in enumerate((f"Number {number} is fine.", "No idea, " * (1 + number % 3)))
            )
            pair = Pair.make(prompt, good, bad, scores=(1.0, 0.0), recipe="test")
            stream.write(pair.model_dump_json() + "\n")
    return path


def make_job(pairs: Path, model: Path, **changes: Any) -> Train:
    settings: dict[str, Any] = {"batch_size": 2, "save_every": 2, "learning_rate": 1e-2, "lora": Lora(rank=4)}
    return Train(data=pairs, model=str(model), **(settings | changes))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_training_learns_the_pairs_and_writes_a_peft_adapter(tmp_path: Path, tiny_model: Path) -> None:
    done = make_job(make_pairs(tmp_path / "pairs.jsonl"), tiny_model, epochs=4).run(tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == done.figures["steps"] == 24
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "policy equals reference at the first step: ln 2"
    assert done.figures["loss"] < 0.6
    assert done.figures["accuracy"] > 0.7

    from peft import AutoPeftModelForCausalLM

    tuned = AutoPeftModelForCausalLM.from_pretrained(done.folder / "adapter")
    assert any(value.abs().sum() > 0 for name, value in tuned.named_parameters() if "lora_B" in name)
    assert make_job(make_pairs(tmp_path / "pairs.jsonl"), tiny_model, epochs=4).run(tmp_path / "run").fresh is False


def test_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, tiny_model: Path, interrupt: Callable[..., None]
) -> None:
    job = make_job(make_pairs(tmp_path / "pairs.jsonl"), tiny_model, epochs=2)
    whole = job.run(tmp_path / "whole", quiet=True)
    interrupt(job, tmp_path / "broken", module=train_module, step=7)
    assert not (tmp_path / "broken" / "manifest.json").exists()
    assert not (tmp_path / "broken" / "adapter").exists()
    resumed = job.run(tmp_path / "broken", quiet=True)
    left, right = read_weights(whole.folder), read_weights(resumed.folder)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (whole.folder / "metrics.jsonl").read_text().count("\n") == 12
    assert (resumed.folder / "metrics.jsonl").read_text().count("\n") == 12


@pytest.mark.parametrize("settings", [{"max_steps": 8}, {"epochs": 1.5}, {"epochs": 2}], ids=str)
def test_ended_between_the_last_step_and_its_adapter_it_trains_no_step_more(
    settings: dict[str, Any], tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the last step lies within a pass; the rate is the same throughout, so that a step more would be seen."""
    rate: dict[str, Any] = {"schedule": "constant_with_warmup", "save_every": 1} | settings
    job = make_job(make_pairs(tmp_path / "pairs.jsonl"), tiny_model, **rate)
    whole = job.run(tmp_path / "whole", quiet=True)

    def fail(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "save_whole", fail)
        with pytest.raises(KeyboardInterrupt):
            job.run(tmp_path / "broken", quiet=True)
    resumed = job.run(tmp_path / "broken", quiet=True)
    left, right = read_weights(whole.folder), read_weights(resumed.folder)
    assert all(torch.equal(left[name], right[name]) for name in left)
    first, second = (done.path("metrics.jsonl").read_text().splitlines() for done in (whole, resumed))
    assert [json.loads(line) for line in first] == [json.loads(line) for line in second]


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, tiny_model: Path, interrupt: Callable[..., None]) -> None:
    job = make_job(make_pairs(tmp_path / "pairs.jsonl"), tiny_model, epochs=2)
    whole = job.run(tmp_path / "whole", quiet=True)
    interrupt(job, tmp_path / "broken", module=train_module, step=7)
    folders = sorted((tmp_path / "broken/checkpoints/adapter").glob("checkpoint-*"))
    assert [path.name for path in folders] == ["checkpoint-4", "checkpoint-6"]
    (folders[1] / "trainer_state.json").write_text('{"global_step": ')
    resumed = job.run(tmp_path / "broken", quiet=True)
    left, right = read_weights(whole.folder), read_weights(resumed.folder)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_checkpoint_from_before_the_loss_was_no_number_is_kept(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of step 5 is made infinite: the weights of step 4 are there, and finite."""
    from trl.trainer.dpo_trainer import DPOTrainer

    real = DPOTrainer.compute_loss

    def compute(self: Any, *given: Any, **rest: Any) -> Any:
        found = real(self, *given, **rest)
        return found * math.inf if self.state.global_step == 4 else found

    monkeypatch.setattr(DPOTrainer, "compute_loss", compute)
    job = make_job(make_pairs(tmp_path / "pairs.jsonl"), tiny_model, epochs=2, save_every=1)
    with pytest.raises(RunError, match=r"step 5.*became inf"):
        job.run(tmp_path / "run", quiet=True)
    last = tmp_path / "run/checkpoints/adapter/checkpoint-4"
    assert all(torch.isfinite(value).all() for value in load_file(last / "adapter_model.safetensors").values())
    again = make_job(tmp_path / "pairs.jsonl", tiny_model, epochs=1, start=last, lora=Lora())
    monkeypatch.setattr(DPOTrainer, "compute_loss", real)
    fields = again.model_dump(exclude={"lora"}, exclude_defaults=True) | {"objective": Dpo()}
    assert Train.model_validate(fields).run(tmp_path / "again", quiet=True).fresh


def test_attention_drops_nothing_out_either(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models' configs set it, as a number; a policy would then differ from its reference at the first step."""
    from transformers import AutoModelForCausalLM

    config = json.loads((tiny_model / "config.json").read_text()) | {"attention_dropout": 0.5}
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path / "model")
    load_tokenizer(str(tiny_model)).save_pretrained(tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    for cached in (True, False):
        job = make_job(make_pairs(tmp_path / "pairs.jsonl"), tmp_path / "model", epochs=1, cache_reference=cached)
        done = job.run(tmp_path / str(cached), quiet=True)
        first = json.loads(done.path("metrics.jsonl").read_text().splitlines()[0])
        assert first["rewards/chosen"] == pytest.approx(0, abs=1e-5)


def test_each_chosen_answer_is_set_against_each_rejected_one(tmp_path: Path, tiny_model: Path) -> None:
    """By losses on pairs; others take the group as it is. Repeated pairs among them go once."""
    roles = [("a", "chosen"), ("b", "chosen"), ("c", "rejected"), ("d", "rejected"), ("d", "rejected")]
    answers = [{"text": f"Answer {text}.", "role": role} for text, role in roles]
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "Q"}], "answers": answers}) + "\n")
    done = make_job(path, tiny_model, epochs=1).run(tmp_path / "dpo", quiet=True)
    counts = done.manifest["counts"]
    assert (counts["read"], counts["kept"], counts["dropped"]) == (6, 4, {"data: repeated": 2})
    done = make_job(path, tiny_model, epochs=1, objective=Sft()).run(tmp_path / "sft", quiet=True)
    assert (done.manifest["counts"]["read"], done.manifest["counts"]["kept"]) == (1, 1)


@pytest.mark.parametrize("cached", [True, False])  # with the reference computed before, and in the step
def test_sharing_prompts_changes_no_figure_of_a_step(tmp_path: Path, tiny_model: Path, cached: bool) -> None:
    job = make_job(make_pairs(tmp_path / "pairs.jsonl"), tiny_model, batch_size=4, cache_reference=cached)
    ours = job.model_copy(update={"share_prompts": True}).run(tmp_path / "ours", quiet=True)
    plain = job.model_copy(update={"share_prompts": False}).run(tmp_path / "plain", quiet=True)
    check_same_steps(ours, plain)


def check_same_steps(one: Finished, other: Finished) -> None:
    first, second = (
        [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] for run in (one, other)
    )
    for row, twin in zip(first, second, strict=True):
        assert row.keys() == twin.keys()
        untrained = abs(row["rewards/margins"]) < 1e-6  # then which side is ahead is rounding
        for key in row.keys() - ({"rewards/accuracies"} if untrained else set()):
            assert row[key] == pytest.approx(twin[key], rel=1e-4, abs=1e-5), key


def test_what_cannot_teach_is_dropped_by_name(tmp_path: Path, tiny_model: Path) -> None:
    path = make_pairs(tmp_path / "pairs.jsonl", count=4)
    good = json.loads(path.read_text().splitlines()[0])
    bad = [
        good | {"id": "1", "chosen": [{"role": "assistant", "content": "  "}]},
        good | {"id": "2", "rejected": good["chosen"]},
        {"id": "3", "prompt": good["prompt"], "chosen": good["chosen"]},
        good | {"id": "4", "chosen": "a text beside message lists"},
        good | {"id": "5", "chosen": [{"role": "assistant", "content": "long " * 3000}]},
        good | {"id": "6"},
        good | {"id": "7", "chosen": [{"role": "assistant", "content": "half of a pair \ud800"}]},
    ]
    with path.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in bad)
        stream.write("{broken\n")
    done = make_job(path, tiny_model).run(tmp_path / "run", quiet=True)
    assert done.manifest["counts"]["read"] == 12
    assert done.manifest["counts"]["kept"] == 4
    assert done.manifest["counts"]["dropped"] == {
        "data: broken text": 1,
        "data: missing column": 1,
        "data: mixed texts and message lists": 1,
        "data: repeated": 1,
        "data: too long": 1,
        "objective: chosen equals rejected": 1,
        "objective: empty side": 1,
        "read: broken JSON": 1,
    }


@pytest.mark.parametrize("objective", [Dpo(), Sft()])
def test_steps_take_the_place_of_epochs(objective: Any, tmp_path: Path, tiny_model: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs.jsonl")
    once = make_job(pairs, tiny_model, objective=objective, epochs=1).run(tmp_path / "once", quiet=True)
    done = make_job(pairs, tiny_model, objective=objective, epochs=1, max_steps=7).run(tmp_path / "run", quiet=True)
    assert done.manifest["figures"]["steps"] == 7
    passes = 7 / once.manifest["figures"]["steps"]
    assert done.manifest["tokens"]["trained"] == pytest.approx(passes * once.manifest["tokens"]["trained"], abs=1)


def test_nothing_left_to_train_on_is_an_input_error(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}) + "\n")
    with pytest.raises(InputError, match="nothing left"):
        make_job(path, tiny_model).run(tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_target_that_is_no_module_is_an_input_error(tmp_path: Path, tiny_model: Path) -> None:
    pairs = make_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(InputError, match="no_proj") as raised:
        make_job(pairs, tiny_model, lora=Lora(targets=("q_proj", "no_proj"))).run(tmp_path / "run", quiet=True)
    assert "gate_proj" in raised.value.do
    with pytest.raises(InputError, match="one weight with the head"):
        make_job(pairs, tiny_model, lora=Lora(targets=("q_proj", "embed_tokens"))).run(tmp_path / "tied", quiet=True)
    with pytest.raises(ValueError, match="all-linear stands for every linear layer, and alone"):
        Lora(targets=("all-linear", "q_proj"))


@pytest.mark.parametrize("objective", [Dpo(), Sft(), Reward()])
def test_a_loss_that_is_no_number_stops_the_training_and_names_its_pairs(
    objective: Objective, tmp_path: Path, tiny_model: Path
) -> None:
    pairs = make_pairs(tmp_path / "pairs.jsonl")
    job = make_job(pairs, tiny_model, objective=objective, learning_rate=1e30, warmup_frac=0, epochs=3)
    with pytest.raises(RunError, match="the loss became") as raised:
        job.run(tmp_path / "run", quiet=True)
    named = str(raised.value.given).split(" on ")[1].split(", ")
    assert len(set(named)) == 2
    assert set(named) <= {json.loads(line)["id"] for line in pairs.read_text().splitlines()}


def test_pairs_load_as_they_are_in_datasets_and_in_trl(tmp_path: Path, tiny_model: Path) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    path = make_pairs(tmp_path / "pairs.jsonl", count=4)
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"prompt", "chosen", "rejected", "score_chosen", "score_rejected"} <= set(rows.column_names)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=DPOConfig(
            output_dir=str(tmp_path / "out"), max_steps=1, report_to="none", use_cpu=True, bf16=False,
            gradient_checkpointing=False, per_device_train_batch_size=2, save_strategy="no",
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )  # fmt: skip
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-3)


def test_sft_term_is_added_to_the_loss(tmp_path: Path, tiny_model: Path) -> None:
    """At the first step DPO's loss is ln 2; weight 1 adds the mean NLL of a random model, about ln 49152 = 10.8."""
    job = make_job(make_pairs(tmp_path / "pairs.jsonl", count=2), tiny_model, objective=Dpo(sft_weight=1.0))
    done = job.run(tmp_path / "run", quiet=True)
    first = json.loads((done.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.693 + 10.8, abs=0.4)


def test_normalised_by_length_is_plain_dpo_with_beta_a_token(tmp_path: Path, tiny_model: Path) -> None:
    """Where both answers have n tokens, beta x n of the normalised loss is beta of the plain one."""
    prompt = Prompt.make("Count.")
    texts = ("one two three", "three two one")
    answers = [
        Completion.make(
            prompt_id=prompt.id, index=at, text=text, finish_reason="stop", num_prompt_tokens=9, num_tokens=5
        )
        for at, text in enumerate(texts)
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(Pair.make(prompt, *answers, scores=(1.0, 0.0), recipe="test").model_dump_json() + "\n")
    tokenizer = load_tokenizer(str(tiny_model))
    asked = tokenizer.apply_chat_template(list(prompt.messages), add_generation_prompt=True, return_dict=False)
    lengths = {
        len(
            tokenizer.apply_chat_template([*prompt.messages, {"role": "assistant", "content": text}], return_dict=False)
        )
        - len(asked)
        for text in texts
    }
    (length,) = lengths
    settings: dict[str, Any] = {"batch_size": 1, "epochs": 6}
    plain = make_job(pairs, tiny_model, objective=Dpo(beta=0.2), **settings).run(tmp_path / "plain", quiet=True)
    normed = make_job(
        pairs, tiny_model, objective=Dpo(beta=0.2 * length, length_normalised=True), **settings
    ).run(tmp_path / "normed", quiet=True)  # fmt: skip
    losses = [
        [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        for run in (plain, normed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[0][-1] < 0.69
    with pytest.raises(ValueError, match="label_smoothing"):
        Dpo(length_normalised=True, label_smoothing=0.1)


def test_dropout_is_the_adapters_own_and_does_something(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's default would set it to 0 in silence; prompts are not shared with it."""
    from torch.nn import Dropout

    found: list[tuple[set[float], bool]] = []
    real = trainers.make_trainer

    def spy(*given: Any, **rest: Any) -> Any:
        trainer = real(*given, **rest)
        parts = [part for part in trainer.model.modules() if isinstance(part, Dropout)]
        shares = "forward" in vars(trainer.model.get_base_model().base_model)
        found.append(({part.p for part in parts} - {0.0}, shares))
        return trainer

    monkeypatch.setattr(trainers, "make_trainer", spy)
    job = make_job(make_pairs(tmp_path / "pairs.jsonl"), tiny_model, epochs=2)
    plain = job.run(tmp_path / "plain", quiet=True)
    dropping = job.model_copy(update={"lora": Lora(rank=4, dropout=0.3)}).run(tmp_path / "dropping", quiet=True)
    assert found == [(set(), True), ({0.3}, False)]
    assert plain.figures["loss"] != dropping.figures["loss"]


LOSSES = get_args(Pairwise.model_fields["loss_type"].annotation)
AT_REFERENCE = {"ipo": 25.0, "hinge": 1.0, "bco_pair": 2 * math.log(2), "nca_pair": 2 * math.log(2), "aot": math.log(2),
                "apo_zero": 1.0,
                "sppo_hard": 2 * (0.5 / 0.1) ** 2, "discopop": 0.5 * math.log(2) + 0.5, "robust": math.log(2),
                "aot_unpaired": math.log(2), "apo_down": 1.0,
                "exo_pair": -math.log(2) - 0.5 * math.log(0.9 * 0.1)}  # fmt: skip
"""What TRL's losses are where both log-ratios are 0, at beta 0.1 (robust: with any smoothing, exo_pair: with 0.1)."""


@pytest.mark.parametrize("loss", [*LOSSES, "ipo"])
def test_every_pair_loss_of_trl_trains(loss: Any, tmp_path: Path, tiny_model: Path) -> None:
    smoothing = 0.1 if loss in ("exo_pair", "robust") else 0.0
    objective = Ipo() if loss == "ipo" else Pairwise(loss_type=loss, label_smoothing=smoothing)
    pairs = make_pairs(tmp_path / "pairs.jsonl", count=4)
    done = make_job(pairs, tiny_model, objective=objective, batch_size=4, epochs=3).run(tmp_path / "run", quiet=True)
    rows = [json.loads(line)["loss"] for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0] == pytest.approx(AT_REFERENCE[loss], rel=1e-3)
    assert rows[-1] < rows[0]


def test_settings_that_a_loss_would_ignore_are_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing is known"):
        Pairwise(loss_type="hinge", label_smoothing=0.1)
    with pytest.raises(ValueError, match="exo_pair needs"):
        Pairwise(loss_type="exo_pair")
