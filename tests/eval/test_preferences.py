"""Preferences of held-out pairs: log-probabilities as transformers and PEFT have them, figures as they are defined."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from counterfoil.errors import EngineError, InputError
from counterfoil.job import Finished
from decode.chat import encode_prompt, encode_text, load_tokenizer
from decode.engines.hf import Hf
from decode.engines.scripted import Scripted
from decode.methods.decoupled import Decoupled
from eval.preferences import Preferences
from eval.prompts import Prompts
from eval.tasks.constraints import Constraints

PAIRS = [
    {"prompt": [{"role": "user", "content": "Say hello."}], "chosen": "Hello there!", "rejected": "No."},
    {
        "prompt": [{"role": "user", "content": "Say hello."}],
        "chosen": "Hello to you, and a good day.",
        "rejected": "Why?",
    },
    {"prompt": [{"role": "user", "content": "Name a fruit."}], "chosen": "An apple.", "rejected": "A stone, I think."},
]


def message(row: dict[str, Any]) -> dict[str, Any]:
    return row | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [*map(message, PAIRS), message(PAIRS[0]), {"prompt": "x", "completion": "y"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs with one that changes nothing, and two seeds of one that changes much."""
    found: dict[str, Path] = {}
    for seed, (name, scale) in enumerate((("none", 0.0), ("far_0", 0.3), ("far_1", 0.3))):
        found[name] = tmp_path_factory.mktemp("runs") / name
        make_adapter(found[name] / "adapter", scale=scale, seed=seed)
    return found


def measure(folder: Path, model: Path, pairs: Path, **given: Any) -> Finished:
    return Preferences(pairs=pairs, model=str(model), engine=Hf(), **given).run(folder, quiet=True)


def read(tmp_path: Path, model: Path, adapter: Path | None, row: dict[str, Any], side: str) -> tuple[float, int]:
    """Sum the answer's log-probabilities in one pass, in double precision, and count its tokens."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, adapter / "adapter")
    tokenizer = load_tokenizer(str(model))
    prompt, text = encode_prompt(tokenizer, row["prompt"]), encode_text(tokenizer, row[side])
    with torch.no_grad():
        logps = loaded.double().eval()(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
    return float(sum(logps[len(prompt) - 1 + at, token] for at, token in enumerate(text))), len(text)


def test_the_figures_are_those_of_the_models(
    tmp_path: Path, tiny_model: Path, pairs: Path, adapters: dict[str, Path]
) -> None:
    done = measure(tmp_path / "run", tiny_model, pairs, adapters=tuple(adapters.values()))
    methods = json.loads(done.path("summary.json").read_text())["methods"]
    assert [*methods] == ["base", "none", "far"]
    rows = [json.loads(line) for line in done.path("preferences.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 3
    expected: dict[str, list[dict[str, float]]] = {}
    for name in ("far_0", "far_1"):
        expected[name] = []
        for at, row in enumerate(PAIRS):
            own = {side: read(tmp_path, tiny_model, adapters[name], row, side) for side in ("chosen", "rejected")}
            base = {side: read(tmp_path, tiny_model, None, row, side) for side in own}
            moved = {side: own[side][0] - base[side][0] for side in own}
            said = [item for item in rows if item["policy"] == name][at]
            for side in own:
                assert said[f"logprob_{side}"] == pytest.approx(own[side][0], abs=1e-3)
                assert said[side] == pytest.approx(moved[side], abs=1e-3)
            per_token = {side: total / count for side, (total, count) in own.items()}
            figures = {
                "reward_accuracy": float(moved["chosen"] > moved["rejected"]),
                "ranking_accuracy": float(per_token["chosen"] > per_token["rejected"]),
                "fell": float(moved["chosen"] < 0),
            }
            assert {key: said[key] for key in figures} == figures
            expected[name].append(figures | moved)
    for key in ("reward_accuracy", "chosen", "fell"):  # seeds first, then the pairs of a prompt, then prompts
        each = [sum(expected[name][at][key] for name in expected) / 2 for at in range(3)]
        assert methods["far"][key]["mean"] == pytest.approx(((each[0] + each[1]) / 2 + each[2]) / 2, abs=1e-3)
    assert methods["none"]["chosen"]["mean"] == pytest.approx(0, abs=1e-4)
    assert methods["base"].keys() == {"ranking_accuracy"}
    gap = methods["far"]["chosen"]["mean"] - methods["none"]["chosen"]["mean"]
    assert methods["far"]["difference"]["chosen"]["mean"] == pytest.approx(gap, abs=1e-4)
    counts = done.manifest["counts"]
    assert (counts["read"], counts["kept"]) == (5, 3)
    assert counts["dropped"] == {"preferences: duplicate pair": 1, "preferences: no chosen or no rejected": 1}


def test_a_method_is_a_policy(tmp_path: Path, tiny_model: Path, pairs: Path, adapters: dict[str, Path]) -> None:
    """The contrast of an adapter with itself is that adapter, at any strength."""
    folder = str(adapters["far_0"] / "adapter")
    same = Decoupled(positive=folder, negative=folder, strength=2, threshold=0)
    given = {"adapters": (adapters["far_0"],), "methods": {"same": same}}
    done = measure(tmp_path / "run", tiny_model, pairs, **given)
    rows = [json.loads(line) for line in done.path("preferences.jsonl").read_text().splitlines()]
    mine, alone = ([row["chosen"] for row in rows if row["policy"] == name] for name in ("same", "far_0"))
    assert mine == pytest.approx(alone, abs=1e-3)
    assert len(mine) == 3 and max(map(abs, mine)) > 0.1


def test_bad_input_is_named(tmp_path: Path, tiny_model: Path, pairs: Path, adapters: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="none"):
        measure(tmp_path / "a", tiny_model, pairs)
    with pytest.raises(InputError, match="near"):
        measure(tmp_path / "b", tiny_model, pairs, adapters=(adapters["none"],), baseline="near")
    with pytest.raises(InputError, match="a name each"):
        measure(tmp_path / "c", tiny_model, pairs, adapters=(adapters["none"], adapters["none"]))
    for name in ("far", "base_1"):
        with pytest.raises(InputError, match="seeds of one policy"):
            Preferences(pairs=pairs, adapters=(adapters["far_0"],), methods={name: Decoupled()}).check()
    with pytest.raises(EngineError, match="two_adapters"):
        Preferences(pairs=pairs, methods={"both": Decoupled()}, engine=Scripted()).check()
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": "x", "completion": "y"}\n')
    with pytest.raises(InputError, match="no chosen or no rejected"):
        measure(tmp_path / "d", tiny_model, empty, adapters=(adapters["none"],))


def test_held_out_prompts_are_written_as_they_are(tmp_path: Path) -> None:
    task = Constraints(count=7, difficulty="easy")
    done = Prompts(task=task).run(tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in done.path("prompts.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [item.id for item in task.prompts("heldout")]
    assert not {row["id"] for row in rows} & {item.id for item in task.prompts("train")}
