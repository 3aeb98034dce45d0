"""Answers drawn in the middle of a training: by the policy of then, the same after a resume."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from align import train as train_module
from align.fresh import Sampler
from align.objective import Fresh, Objective
from align.objectives.copg import Copg
from align.objectives.distill import Distill
from align.train import Lora, Train
from counterfoil.job import Finished
from counterfoil.records import Answer, Completion, Group, Message, Prompt, Score
from counterfoil.store import Store
from decode.chat import load_tokenizer
from eval.scorer import LocalScorer


class Yes(LocalScorer):
    """The share of words that are `yes`; a test's own scorer."""

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """Count."""
        words = completion.text.split()
        return Score(completion_id=completion.id, scorer="yes", value=words.count("yes") / max(len(words), 1))


def make_job(folder: Path, model: Path, objective: Objective) -> Train:
    """Eight questions, each with a chosen answer that scores 1 and a rejected one that scores 0."""
    asked = [[Message(role="user", content=f"What is number {number}?")] for number in range(8)]
    sides = [Answer(text="yes yes", role="chosen", score=1.0), Answer(text="no yes", role="rejected", score=0.0)]
    data = folder / "groups.jsonl"
    data.write_text("".join(Group.make(prompt, sides).model_dump_json() + "\n" for prompt in asked))
    settings: dict[str, Any] = {"batch_size": 2, "save_every": 3, "learning_rate": 2e-2, "epochs": 2}
    return Train(data=data, model=str(model), objective=objective, lora=Lora(rank=4), **settings)


def read_fresh(done: Finished) -> dict[str, Any]:
    with contextlib.closing(Store(done.folder / "state.sqlite")) as store:
        return {key: json.loads(value) for key, value in store.items("fresh")}


def test_fresh_answers_are_the_policys_own_and_resume_bit_for_bit(
    tmp_path: Path, tiny_model: Path, interrupt: Callable[..., None]
) -> None:
    fresh = Fresh(every=3, n=3, max_new_tokens=6, scorer=Yes(), temperature=1.5)
    job = make_job(tmp_path, tiny_model, Copg(fresh=fresh))
    whole = job.run(tmp_path / "whole", quiet=True)
    kept = read_fresh(whole)
    assert {int(key.split()[0]) for key in kept} == set(range(8))
    assert len(kept) == 16
    assert not {"yes yes", "no yes"} & {answer["text"] for group in kept.values() for answer in group["answers"]}
    interrupt(job, tmp_path / "broken", module=train_module, step=5)
    resumed = job.run(tmp_path / "broken", quiet=True)
    assert read_fresh(resumed) == kept
    left, right = (load_file(done.folder / "adapter" / "adapter_model.safetensors") for done in (whole, resumed))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_negatives_of_a_past_self_resume_bit_for_bit(
    tmp_path: Path, tiny_model: Path, interrupt: Callable[..., None]
) -> None:
    """Copies of several ages lie beside the checkpoint."""
    fresh = Fresh(every=1, lag=2, n=2, max_new_tokens=4, scorer=Yes(), role="rejected")
    job = make_job(tmp_path, tiny_model, Distill(fresh=fresh, delta_nats=20))
    whole = job.run(tmp_path / "whole", quiet=True)
    interrupt(job, tmp_path / "broken", module=train_module, step=5)
    resumed = job.run(tmp_path / "broken", quiet=True)
    assert read_fresh(resumed) == read_fresh(whole)
    left, right = (load_file(done.folder / "adapter" / "adapter_model.safetensors") for done in (whole, resumed))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_copy_answers_and_a_groups_answers_depend_on_nothing_beside_them(tiny_model: Path) -> None:
    """Rollouts that ignored the adapter would be the bare model's; others in the batch, or a batch less, change nothing."""
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    own = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    made = torch.Generator().manual_seed(0)
    large = {name: torch.randn(value.shape, generator=made) for name, value in own.items()}
    tokenizer = load_tokenizer(str(tiny_model))
    sampler = Sampler(Fresh(n=2, max_new_tokens=8), Copg(), tokenizer, None, seed=0)  # pyright: ignore[reportArgumentType]
    groups = [Group.make([Message(role="user", content=text)], []) for text in ("Hi.", "How many are there of them?")]

    def draw(copy: dict[str, Any], asked: list[Group]) -> list[list[tuple[int, ...] | None]]:
        sampler._copies = [copy]
        return [[answer.token_ids for answer in found] for found in sampler._draw(model, asked, 3)]

    bare, moved = draw(own, groups), draw(large, groups)
    with model.disable_adapter():
        assert draw(large, groups) == bare != moved
    assert [draw(large, [group])[0] for group in groups] == moved
    assert draw(large, groups[::-1]) == moved[::-1]
    assert moved[0][0] != moved[0][1], "two draws of a prompt are two"
    assert all(torch.equal(value, own[name]) for name, value in model.named_parameters() if value.requires_grad)


def test_a_models_own_generation_settings_stay_out_of_what_is_drawn(tmp_path: Path, tiny_model: Path) -> None:
    """One that ships `min_p: 1.0` would draw its likeliest token alone, and so the same answer four times."""
    greedy = shutil.copytree(tiny_model, tmp_path / "greedy")
    GenerationConfig(do_sample=True, min_p=1.0, eos_token_id=2, pad_token_id=2).save_pretrained(greedy)
    fresh = Fresh(every=1, n=4, max_new_tokens=6, scorer=Yes())
    done = make_job(tmp_path, greedy, Copg(fresh=fresh)).run(tmp_path / "run", quiet=True)
    for group in read_fresh(done).values():
        assert len({answer["text"] for answer in group["answers"]}) > 1


def test_negatives_of_a_past_self_stand_beside_the_datas_answers(tmp_path: Path, tiny_model: Path) -> None:
    fresh = Fresh(every=1, lag=2, n=2, max_new_tokens=4, scorer=Yes(), role="rejected")
    done = make_job(tmp_path, tiny_model, Distill(fresh=fresh)).run(tmp_path / "run", quiet=True)
    for group in read_fresh(done).values():
        texts = [answer["text"] for answer in group["answers"]]
        assert "yes yes" in texts
        assert sum(answer["role"] == "rejected" for answer in group["answers"]) >= 2


def test_copies_are_as_old_as_they_are_said_to_be(tmp_path: Path) -> None:
    """Weights that count steps: with every=2 and lag=1 the copy used at steps 0..7 is of steps 0, 0, 0, 0, 2, 2, 4, 4."""

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

    model, seen = Counting(), []
    sampler = Sampler(Fresh(every=2, lag=1), Copg(), None, None, seed=0)  # pyright: ignore[reportArgumentType]

    def draw(model: Any, groups: Any, step: int) -> list[Any]:
        seen.append(float(sampler._copies[-1]["weight"]))
        return []

    sampler._draw = draw  # type: ignore[method-assign]  (no model here draws)
    for step in range(8):
        model.weight.data.fill_(step)
        sampler.renew(model, [], step=step)
        sampler.renew(model, [], step=step)  # a second batch of the same step
        if step == 4:
            sampler.save(tmp_path)
            again = Sampler(Fresh(every=2, lag=1), Copg(), None, None, seed=0)  # pyright: ignore[reportArgumentType]
            again.load(tmp_path)
            assert [copy["weight"].item() for copy in again._copies] == [4.0, 2.0]
            assert again._copied_at == 4
    assert seen[::2] == [0, 0, 0, 0, 2, 2, 4, 4]
