"""Trainings by losses of our own, on a tiny random model: they learn, resume bit for bit, and name what broke them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from align import train as train_module
from align.objective import Objective
from align.objectives.copg import Copg
from align.objectives.decoupled import Decoupled
from align.objectives.distill import Distill
from align.objectives.reward import Reward
from align.objectives.sft import Sft
from align.objectives.thought_path import ThoughtPath
from align.objectives.unlikelihood import Unlikelihood
from align.train import Lora, Train
from counterfoil.cli import main
from counterfoil.config import list_family
from counterfoil.errors import ConfigError, InputError, RunError
from counterfoil.job import Finished
from counterfoil.records import Answer, Completion, Group, Message, Prompt, Span
from decode.engine import Sampling
from decode.engines.hf import Hf
from decode.generate import Generate
from decode.methods.decoupled import Decoupled as Contrast
from eval.scorers.reward_model import RewardModel

CONFIGS = Path(__file__).parents[2] / "configs" / "align"


def ask(number: int) -> list[Message]:
    return [Message(role="system", content="Be brief."), Message(role="user", content=f"What is number {number}?")]


def write(path: Path, groups: list[Group]) -> Path:
    path.write_text("".join(group.model_dump_json() + "\n" for group in groups))
    return path


def make_scored(path: Path, count: int = 8) -> Path:
    """Write groups of three answers of which the one with more `yes` scores higher."""
    made = [
        Group.make(ask(number), [Answer(text="yes " * (1 + at) + str(number % 3), score=at / 2) for at in range(3)])
        for number in range(count)
    ]
    return write(path, made)


def make_marked(path: Path) -> Path:
    made = [
        Group.make(ask(number), [Answer(text="It is fine."), Answer(text="It is bad.", spans=(Span(start=6, stop=9),))])
        for number in range(6)
    ]
    return write(path, made)


def make_rationales(path: Path) -> Path:
    made = [
        Group.make(
            ask(number),
            [
                Answer(text="So it is two.", role="chosen", score=0.9),
                Answer(text="Because it is two.", role="chosen"),
                Answer(text="Nobody knows.", role="rejected"),
                Answer(text="2", prompt=[Message(role="user", content=f"Only say number {number}.")]),
            ],
        )
        for number in range(6)
    ]
    return write(path, made)


def make_twins(path: Path) -> Path:
    def argue(number: int, final: str) -> Answer:
        text = "".join(f"{name} is {'right' if name == final else 'wrong'}. " for name in "ABC")
        spans = [Span(start=text.index(name), stop=text.index(name) + 11, label=name) for name in "ABC"]
        asked = [Message(role="user", content=f"Number {number}, {final}?")]
        return Answer(text=text, spans=tuple(spans), final=final, prompt=asked)

    return write(path, [Group.make(ask(number), [argue(number, "A"), argue(number, "B")]) for number in range(6)])


def make_pairs(path: Path) -> Path:
    made = [
        Group.make(ask(number), [Answer(text="yes yes", role="chosen"), Answer(text="no no no", role="rejected")])
        for number in range(8)
    ]
    return write(path, made)


MAKERS: dict[str, tuple[Objective, Callable[[Path], Path], str]] = {
    "copg": (Copg(beta=0.5), make_scored, "score_error"),
    "unlikelihood": (Unlikelihood(), make_marked, "prob_in_spans"),
    "ascent": (Unlikelihood(way="ascent", floor=1e-6), make_marked, "prob_in_spans"),
    "distill": (Distill(delta_nats=20), make_rationales, "positive"),
    "thought_path": (ThoughtPath(), make_twins, "contrast"),
    "sft": (Sft(), make_pairs, "loss"),
    "reward": (Reward(), make_pairs, "loss"),
}


def make_job(kind: str, folder: Path, model: Path, **changes: Any) -> Train:
    objective, maker, _ = MAKERS[kind]
    settings: dict[str, Any] = {
        "batch_size": 2,
        "save_every": 3,
        "learning_rate": 2e-2,
        "lora": Lora(rank=4),
        "epochs": 4,
    }
    if "start" in changes:
        del settings["lora"]
    return Train(data=maker(folder / f"{kind}.jsonl"), model=str(model), objective=objective, **(settings | changes))


def read_steps(done: Finished) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]


def read_weights(done: Finished, name: str = "adapter") -> dict[str, torch.Tensor]:
    return load_file(done.folder / name / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", MAKERS)
def test_what_it_minimises_falls(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    rate = 5e-3 if kind == "thought_path" else 2e-2  # cosines of a tiny model's states leap about at the larger one
    done = make_job(kind, tmp_path, tiny_model, learning_rate=rate).run(tmp_path / "run", quiet=True)
    rows = read_steps(done)
    name = MAKERS[kind][2]
    first, last = (sum(row[name] for row in part) / len(part) for part in (rows[:3], rows[-3:]))
    assert last < first * 0.99, (first, last)
    assert any(value.abs().sum() > 0 for key, value in read_weights(done).items() if "lora_B" in key)


def read_objectives() -> dict[str, str]:
    """Map the configs that train a language model to their objectives; the folder has an embedder's and others as well."""
    found = {path.stem: yaml.safe_load(path.read_text()).get("objective") for path in CONFIGS.glob("*.yaml")}
    return {name: item if isinstance(item, str) else item["name"] for name, item in sorted(found.items()) if item}


def test_every_objective_has_a_config() -> None:
    assert set(read_objectives().values()) == set(list_family(Objective))


@pytest.mark.parametrize("name", read_objectives())
def test_each_config_of_an_objective_trains_by_its_name(name: str, tmp_path: Path, tiny_model: Path) -> None:
    maker = MAKERS[name][1] if name in MAKERS else make_pairs
    data = maker(tmp_path / "data.jsonl")
    given = [f"data={data}", f"model={tiny_model}", "max_steps=2", "--to", str(tmp_path / "run"), "--quiet"]
    assert main(["align", name, *given]) == 0
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["tokens"]["trained"] > 0
    trained = {path.parent.name for path in (tmp_path / "run").glob("*/adapter_model.safetensors")}
    assert trained == ({"positive", "negative"} if name == "decoupled" else {"adapter"})


def test_answers_of_one_kind_alone_train_decoupled(tmp_path: Path, tiny_model: Path) -> None:
    """Unpaired: other prompts have good answers than have bad ones."""
    sides = [Group.make(ask(at), [Answer(text=f"It is {at}.", role=("chosen", "rejected")[at % 2])]) for at in range(6)]
    job = Train(data=write(tmp_path / "data.jsonl", sides), model=str(tiny_model), objective=Decoupled(), batch_size=2)
    done = job.run(tmp_path / "run", quiet=True)
    assert (done.manifest["counts"]["positive"], done.manifest["counts"]["negative"]) == (3, 3)
    one, other = (read_weights(done, name) for name in ("positive", "negative"))
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_copg_begins_at_the_reference_and_moves_by_score(tmp_path: Path, tiny_model: Path) -> None:
    done = make_job("copg", tmp_path, tiny_model).run(tmp_path / "run", quiet=True)
    rows = read_steps(done)
    assert rows[0]["loss"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["log_ratio/chosen"] == pytest.approx(0, abs=1e-4)
    assert done.figures["chosen_log_ratio"] > done.figures["rejected_log_ratio"] + 0.2


@pytest.mark.parametrize("kind", ["copg", "distill", "thought_path"])
def test_sharing_prompts_and_caching_change_no_figure(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    job = make_job(kind, tmp_path, tiny_model, epochs=2, learning_rate=5e-3)
    plain = job.model_copy(update={"share_prompts": False, "cache_reference": False}).run(
        tmp_path / "plain", quiet=True
    )
    ours = job.model_copy(update={"share_prompts": True}).run(tmp_path / "ours", quiet=True)
    for row, twin in zip(read_steps(ours), read_steps(plain), strict=True):
        assert row.keys() == twin.keys()
        for key in row:
            assert row[key] == pytest.approx(twin[key], rel=1e-4, abs=2e-5), key


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", MAKERS)
def test_resumed_equals_uninterrupted_bit_for_bit(
    kind: str, dropout: float, tmp_path: Path, tiny_model: Path, interrupt: Callable[..., None]
) -> None:
    """With dropout the random states go on as well; of a reward model the head, which is trained whole."""
    job = make_job(kind, tmp_path, tiny_model, epochs=3, lora=Lora(rank=4, dropout=dropout))
    whole = job.run(tmp_path / "whole", quiet=True)
    interrupt(job, tmp_path / "broken", module=train_module, step=5)
    resumed = job.run(tmp_path / "broken", quiet=True)
    left, right = read_weights(whole), read_weights(resumed)
    assert left.keys() == right.keys()
    assert any("score" in name for name in left) == (kind == "reward")
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert read_steps(resumed) == read_steps(whole)


def test_a_loss_that_is_no_number_names_its_records(tmp_path: Path, tiny_model: Path) -> None:
    job = make_job("copg", tmp_path, tiny_model, learning_rate=1e30, warmup_frac=0)
    with pytest.raises(RunError, match="the loss became") as raised:
        job.run(tmp_path / "run", quiet=True)
    ids = {json.loads(line)["id"] for line in (tmp_path / "copg.jsonl").read_text().splitlines()}
    named = str(raised.value.given).split(" on ")[1].split(", ")
    assert len(named) == 2
    assert set(named) <= ids


def test_decoupled_writes_two_adapters_that_differ_by_their_data_alone(
    tmp_path: Path, tiny_model: Path, interrupt: Callable[..., None]
) -> None:
    data = make_pairs(tmp_path / "pairs.jsonl")
    settings: dict[str, Any] = {
        "model": str(tiny_model), "batch_size": 2, "learning_rate": 1e-2, "lora": Lora(rank=4), "save_every": 2,
    }  # fmt: skip
    job = Train(data=data, objective=Decoupled(), **settings)
    done = job.run(tmp_path / "run", quiet=True)
    one, other = (read_weights(done, name) for name in ("positive", "negative"))
    assert one.keys() == other.keys()
    assert any(not torch.equal(one[key], other[key]) for key in one)
    rows = read_steps(done)
    assert [row["part"] for row in rows] == ["positive"] * 4 + ["negative"] * 4
    alone = Train(data=data, objective=Sft(), **settings).run(tmp_path / "alone", quiet=True)
    assert all(torch.equal(value, read_weights(alone)[key]) for key, value in one.items())
    interrupt(job, tmp_path / "broken", module=train_module, step=3)
    resumed = job.run(tmp_path / "broken", quiet=True)
    assert all(torch.equal(value, read_weights(resumed, "negative")[key]) for key, value in other.items())


def test_what_decoupled_trained_is_what_decoupled_decodes_with(tmp_path: Path, tiny_model: Path) -> None:
    """Loaded in plain PEFT as well: at strength 0 the answers are the positive adapter's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from decode.chat import encode_prompt, load_tokenizer

    settings: dict[str, Any] = {"model": str(tiny_model), "epochs": 4, "batch_size": 2, "learning_rate": 2e-2}
    done = Train(data=make_pairs(tmp_path / "p.jsonl"), objective=Decoupled(), **settings).run(
        tmp_path / "a", quiet=True
    )
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(Prompt.make(ask(at)).model_dump_json() + "\n" for at in range(6)))
    folders = {"positive": str(done.path("positive")), "negative": str(done.path("negative"))}
    common: dict[str, Any] = {
        "prompts": asked, "model": str(tiny_model), "engine": Hf(), "sampling": Sampling(max_new_tokens=8),
    }  # fmt: skip
    texts = {
        strength: [
            json.loads(line)["text"]
            for line in Generate(method=Contrast(**folders, strength=strength), **common)
            .run(tmp_path / str(strength), quiet=True)
            .path("completions.jsonl")
            .read_text()
            .splitlines()
        ]
        for strength in (0.0, 4.0)
    }
    assert texts[0.0] != texts[4.0]
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folders["positive"])
    tokenizer = load_tokenizer(str(tiny_model))
    for at, text in enumerate(texts[0.0]):
        ids = torch.tensor([encode_prompt(tokenizer, ask(at))])
        found = tuned.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert tokenizer.decode(found, skip_special_tokens=True) == text


def test_a_start_goes_on_from_an_adapter_and_may_be_the_reference(tmp_path: Path, tiny_model: Path) -> None:
    first = make_job("sft", tmp_path, tiny_model).run(tmp_path / "first", quiet=True)
    changes: dict[str, Any] = {"start": first.path("adapter"), "epochs": 1}
    base = make_job("copg", tmp_path, tiny_model, **changes).run(tmp_path / "base", quiet=True)
    own = make_job("copg", tmp_path, tiny_model, reference="start", **changes).run(tmp_path / "own", quiet=True)
    in_step = make_job("copg", tmp_path, tiny_model, reference="start", cache_reference=False, **changes)
    again = in_step.run(tmp_path / "again", quiet=True)
    assert abs(read_steps(base)[0]["log_ratio/chosen"]) > 0.1
    for run in (own, again):
        assert read_steps(run)[0]["log_ratio/chosen"] == pytest.approx(0, abs=1e-4)
        assert not (run.folder / "adapter" / "ref").exists()
    for row, twin in zip(read_steps(own), read_steps(again), strict=True):
        assert row["loss"] == pytest.approx(twin["loss"], rel=1e-3, abs=1e-5)
    from align.objectives.dpo import Dpo

    pairs = make_pairs(tmp_path / "pairs.jsonl")
    settings: dict[str, Any] = {"model": str(tiny_model), "start": first.path("adapter"), "batch_size": 4}
    for cached in (True, False):
        job = Train(data=pairs, objective=Dpo(), reference="start", cache_reference=cached, **settings)
        done = job.run(tmp_path / f"dpo{cached}", quiet=True)
        assert read_steps(done)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert not (done.folder / "adapter" / "ref").exists()
    away = Train(data=pairs, objective=Dpo(), **settings).run(tmp_path / "away", quiet=True)
    assert read_steps(away)[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)


def test_a_reward_model_scores_what_it_learnt_to_prefer(tmp_path: Path, tiny_model: Path) -> None:
    done = make_job("reward", tmp_path, tiny_model).run(tmp_path / "run", quiet=True)
    scorer = RewardModel(model=str(tiny_model), adapter=done.path("adapter"))
    prompt = Prompt.make(ask(99))
    answers = [
        Completion.make(
            prompt_id=prompt.id, index=0, text=text, finish_reason="stop", num_prompt_tokens=1, num_tokens=1
        )
        for text in ("yes yes", "no no no")
    ]
    good, bad = (scorer.score(prompt, item).value for item in answers)
    assert good > bad
    chances = scorer.model_copy(update={"probability": True}).score_all(prompt, answers)
    assert [item.value for item in chances] == pytest.approx([1 / (1 + math.exp(-value)) for value in (good, bad)])


def test_a_model_without_a_reward_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    tuned = make_job("sft", tmp_path, tiny_model).run(tmp_path / "sft", quiet=True).path("adapter")
    answer = Completion.make(prompt_id="p", index=0, text="a", finish_reason="stop", num_prompt_tokens=1, num_tokens=1)
    for scorer, reason in (
        (RewardModel(model=str(tiny_model)), "no weights for score.weight"),
        (RewardModel(model=str(tiny_model), adapter=tuned), "an adapter for CAUSAL_LM"),
    ):
        with pytest.raises(InputError, match=reason):
            scorer.score(Prompt.make(ask(1)), answer)
    with pytest.raises(InputError, match="an adapter for CAUSAL_LM"):
        make_job("reward", tmp_path, tiny_model, start=tuned).run(tmp_path / "reward", quiet=True)


def test_scored_groups_are_learnt_by_their_best_answer(tmp_path: Path, tiny_model: Path) -> None:
    job = Train(data=make_scored(tmp_path / "s.jsonl"), model=str(tiny_model), objective=Sft(), batch_size=2)
    done = job.run(tmp_path / "run", quiet=True)
    assert done.manifest["counts"]["kept"] == 8
    assert len(read_steps(done)) == 4
    assert done.manifest["tokens"]["trained"] > 0


def test_what_a_part_has_nothing_of_is_said_before_the_first_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    good = [Group.make(ask(at), [Answer(text="yes", role="chosen")]) for at in range(3)]
    job = Train(data=write(tmp_path / "a.jsonl", good), model=str(tiny_model), objective=Decoupled())
    with pytest.raises(InputError, match="nothing left to train on"):
        job.run(tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "positive").exists()
    mixed = [good[0], Group.make("Is it?", [Answer(text="yes", role="chosen")])]
    with pytest.raises(InputError, match="texts and conversations"):
        Train(data=write(tmp_path / "b.jsonl", mixed), model=str(tiny_model), objective=Sft()).run(
            tmp_path / "mixed", quiet=True
        )
    start = tmp_path / "start" / "adapter"
    start.mkdir(parents=True)
    (start / "adapter_config.json").write_text(
        '{"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}'
    )
    Train(data=tmp_path / "b.jsonl", start=start.parent, lora=Lora(rank=16)).check()
    for settings, reason in (
        ({"reference": "start"}, "reference"),
        ({"start": start, "lora": Lora(rank=8)}, "rank"),
        ({"start": start, "reference": "start", "objective": Sft()}, "no reference"),
        ({"start": tmp_path}, r"no adapter_config\.json"),
        ({"report_to": ("nonsense",)}, "which is none"),
        ({"report_to": ("neptune",)}, "whose package is not there"),
    ):
        with pytest.raises((ConfigError, InputError), match=reason):
            Train(data=tmp_path / "b.jsonl", model=str(tiny_model), **settings).run(tmp_path / reason, quiet=True)
