"""Embedders: rows are read or dropped by name, an interrupted training ends as a whole one, what is saved is an embedder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as library

from align import embed as embed_module
from align.embed import Embed
from align.embed_trainer import OwnModule, make_trainer
from align.embedding.guided import Guided
from align.embedding.hard_mixing import HardMixing
from align.embedding.info_nce import InfoNce
from align.embedding.inverse_propensity import InversePropensity
from align.embedding.momentum_queue import MomentumQueue
from align.embedding.own_temperatures import OwnTemperatures
from align.embedding.weighted_targets import WeightedTargets
from align.embedding.whitened import Whitened
from align.embedding_loss import EmbeddingLoss
from align.train import Lora
from align.triplets import read_triplets
from counterfoil.config import build
from counterfoil.errors import ConfigError, InputError, RunError
from counterfoil.records import Dropped, Triplet
from decode.embedders.sentence_transformers import SentenceTransformers

WORDS = [
    "river", "stone", "copper", "lantern", "orchard", "violin", "harbour", "meadow", "granite", "pepper", "saddle", "thunder",
    "walnut", "cotton",
]  # fmt: skip


def write(path: Path, count: int = 14, *, pairs: int = 4) -> Path:
    """Write triplets, pairs without a negative, and two rows of one anchor."""
    rows: list[dict[str, Any]] = [
        {"anchor": f"what is a {word}", "positive": f"a {word} is a thing", "negative": f"no {word} is here"}
        for word in WORDS[:count]
    ]
    rows += [{"anchor": f"where is the {word}", "positive": f"the {word} lies there"} for word in WORDS[:pairs]]
    rows += [{**rows[0], "positive": "another thing entirely"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_job(folder: Path, model: Path, loss: EmbeddingLoss | None = None, **changes: Any) -> Embed:
    data = folder / "triplets.jsonl"
    settings: dict[str, Any] = {"batch_size": 4, "epochs": 2, "save_every": 2, "learning_rate": 1e-3}
    return Embed(
        data=data if data.is_file() else write(data), model=str(model), loss=loss or InfoNce(), **(settings | changes)
    )


def read(path: Path, *rows: Any) -> list[Triplet | Dropped]:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return list(read_triplets(path))


GOOD = {"anchor": "a", "positive": "b", "negative": "c"}
BAD: dict[str, tuple[Any, str]] = {
    "no positive": ({"anchor": "a"}, "missing column"),
    "an empty one": ({**GOOD, "positive": " "}, "empty text"),
    "no text": ({**GOOD, "anchor": 5}, "not a text"),
    "null": ({"anchor": "a", "positive": None}, "not a text"),
    "anchor as positive": ({**GOOD, "positive": "a "}, "equal texts"),
    "positive as negative": ({**GOOD, "negative": "b"}, "equal texts"),
    "half a character": ('{"anchor": "\\ud800", "positive": "b"}', "broken text"),
    "again": (GOOD, "repeated"),
    "a negative as positive": ({"anchor": "a", "positive": "c"}, "says the opposite of an earlier row"),
    "a positive as negative": ({"anchor": "a", "positive": "d", "negative": "b"}, "says the opposite of an earlier row"),
    "broken": ("{", "broken JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD.values(), ids=BAD)
def test_a_row_that_cannot_teach_is_dropped_by_name(row: Any, reason: str, tmp_path: Path) -> None:
    first, second = read(tmp_path / "t.jsonl", GOOD, row)
    assert isinstance(first, Triplet)
    assert isinstance(second, Dropped)
    assert second.reason == reason


def test_what_synthesis_writes_and_what_others_write_is_read(tmp_path: Path) -> None:
    made = Triplet.make("a", "b", "c", prompt_id="p", recipe="retrieval")
    found = read(tmp_path / "t.jsonl", made.model_dump(), {"anchor": "a", "positive": "d", "margin": 0.5})
    assert found[0] == made
    assert isinstance(found[1], Triplet)
    assert (found[1].positive, found[1].negative) == ("d", None)


def test_rows_in_are_rows_kept_and_rows_dropped(tmp_path: Path, tiny_embedder: Path) -> None:
    path = write(tmp_path / "triplets.jsonl")
    with path.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in ({"anchor": "x"}, {"anchor": "x", "positive": "x"}))
    done = make_job(tmp_path, tiny_embedder, epochs=1).run(tmp_path / "run", quiet=True)
    counts = done.manifest["counts"]
    assert (counts["read"], counts["kept"], sum(counts["dropped"].values())) == (21, 19, 2)
    reasons = [json.loads(line)["reason"] for line in done.path("dropped.jsonl").read_text().splitlines()]
    assert reasons == ["missing column", "equal texts"]


def test_a_single_row_is_too_few(tmp_path: Path, tiny_embedder: Path) -> None:
    (tmp_path / "triplets.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n")
    with pytest.raises(InputError, match="1 rows left to train on"):
        make_job(tmp_path, tiny_embedder).run(tmp_path / "run", quiet=True)


def test_no_batch_has_a_text_twice_nor_rows_of_both_kinds(tmp_path: Path, tiny_embedder: Path) -> None:
    job = make_job(tmp_path, tiny_embedder)
    rows = [row for row in read_triplets(job.data) if isinstance(row, Triplet)]
    model = SentenceTransformer(str(tiny_embedder), device="cpu")
    trainer = make_trainer(job, rows, model=model, checkpoints=tmp_path / "checkpoints")
    seen: list[int] = []
    for batch in trainer.get_train_dataloader():
        members = [rows[at] for at in batch["label"].tolist()]
        texts = [text for row in members for text in (row.anchor, row.positive, row.negative) if text is not None]
        assert len(set(texts)) == len(texts)
        assert len({row.negative is None for row in members}) == 1
        tokens = model.tokenizer([row.anchor for row in members], padding=True, return_tensors="pt")["input_ids"]
        assert torch.equal(batch["anchor_input_ids"], tokens), "a row's number is that of its text"
        seen += batch["label"].tolist()
    assert sorted(seen) == list(range(len(rows)))


LOSSES: dict[str, tuple[EmbeddingLoss, int]] = {
    "cached": (InfoNce(sides="both", mini_batch=2), 3),
    "queue": (MomentumQueue(queue=16, momentum=0.9), 7),
    "temperatures": (OwnTemperatures(rho=1.0), 7),
    "propensity": (InversePropensity(negatives=2), 3),
    "mixing": (HardMixing(after=3), 7),
    "targets": (WeightedTargets(), 3),
    "whitened": (Whitened(group_width=3), 3),
}
"""And the step after which it is interrupted: of the first pass or the second, between checkpoints."""


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "step"), LOSSES.values(), ids=LOSSES)
def test_an_interrupted_training_ends_with_the_same_weights(
    loss: EmbeddingLoss, step: int, tmp_path: Path, tiny_embedder: Path, interrupt: Callable[..., None]
) -> None:
    """The model has dropout, some losses draw, some keep tensors between steps."""
    job = make_job(tmp_path, tiny_embedder, loss)
    whole = job.run(tmp_path / "whole", quiet=True)
    interrupt(job, tmp_path / "broken", module=embed_module, step=step)
    assert (tmp_path / "broken" / "checkpoints" / f"checkpoint-{step - 1}").is_dir()
    again = job.run(tmp_path / "broken", quiet=True)
    one, other = (load_file(done.path("model") / "model.safetensors") for done in (whole, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    first = load_file(tiny_embedder / "model.safetensors")
    assert any(not torch.equal(value, first[name]) for name, value in one.items())
    lines = [
        [json.loads(line) for line in done.path("metrics.jsonl").read_text().splitlines()] for done in (whole, again)
    ]
    assert [row["loss"] for row in lines[0]] == [row["loss"] for row in lines[1]]


def test_temperatures_of_rows_are_in_the_checkpoint(
    tmp_path: Path, tiny_embedder: Path, interrupt: Callable[..., None]
) -> None:
    job = make_job(tmp_path, tiny_embedder, OwnTemperatures(rho=1.0))
    interrupt(job, tmp_path / "run", module=embed_module, step=5)
    kept = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-4" / "loss.safetensors")
    assert kept.keys() == {"tau", "slope", "log_mean"}
    assert kept["tau"].shape == (19,)
    assert 8 <= int((kept["tau"] != 0.07).sum()) <= 16, "of the rows of four batches"


@pytest.mark.slow
def test_an_adapter_is_trained_alone_and_merged(
    tmp_path: Path, tiny_embedder: Path, interrupt: Callable[..., None]
) -> None:
    """What is saved has no adapter; the embeddings of tokens, which none was put on, are as they were."""
    job = make_job(tmp_path, tiny_embedder, MomentumQueue(queue=8), lora=Lora(rank=2))
    whole = job.run(tmp_path / "whole", quiet=True)
    interrupt(job, tmp_path / "broken", module=embed_module, step=3)
    weights = [
        load_file(done.path("model") / "model.safetensors")
        for done in (whole, job.run(tmp_path / "broken", quiet=True))
    ]
    first = load_file(tiny_embedder / "model.safetensors")
    assert first.keys() == weights[0].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    changed = {name for name, value in first.items() if not torch.equal(value, weights[0][name])}
    assert changed
    assert all(name.endswith("weight") and "embeddings" not in name for name in changed)


@pytest.mark.slow
def test_what_is_saved_is_an_embedder_of_ours(tmp_path: Path, tiny_embedder: Path) -> None:
    """Without a pickle, with the model's own limit of tokens, and nearer to what it was trained on."""
    done = make_job(tmp_path, tiny_embedder, epochs=6, save_every=100, max_tokens=8).run(tmp_path / "run", quiet=True)
    folder = done.path("model")
    assert not list(folder.rglob("*.bin"))
    assert SentenceTransformer(str(folder), device="cpu").max_seq_length == 32
    rows = [row for row in read_triplets(tmp_path / "triplets.jsonl") if isinstance(row, Triplet)][: len(WORDS)]

    def rank(model: Path) -> float:
        embed = SentenceTransformers(model=str(model)).open()
        left, right = (embed([getattr(row, side) for row in rows]) for side in ("anchor", "positive"))
        cosines = left @ right.T
        return float(np.mean((cosines > cosines.diagonal()[:, None]).sum(1)))

    assert rank(folder) < rank(tiny_embedder)


def test_what_is_cut_off_is_counted(tmp_path: Path, tiny_embedder: Path) -> None:
    done = make_job(tmp_path, tiny_embedder, epochs=1, max_tokens=8).run(tmp_path / "run", quiet=True)
    tokenizer = SentenceTransformer(str(tiny_embedder), device="cpu").tokenizer
    rows = [row for row in read_triplets(tmp_path / "triplets.jsonl") if isinstance(row, Triplet)]
    texts = {text for row in rows for text in (row.anchor, row.positive, row.negative) if text}
    assert done.manifest["counts"]["cut"] == sum(len(tokenizer(text)["input_ids"]) > 8 for text in texts)


def test_rows_without_a_seat_are_counted(tmp_path: Path, tiny_embedder: Path) -> None:
    """Nine rows of one anchor need nine batches; three steps have room for three of them."""
    rows = [{"anchor": "one question", "positive": f"answer {word}"} for word in WORDS[:9]]
    (tmp_path / "triplets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = make_job(tmp_path, tiny_embedder, epochs=1).run(tmp_path / "run", quiet=True)
    assert done.figures["steps"] == 3
    assert done.manifest["counts"]["left_out_of_first_pass"] == 6


def test_a_loss_that_is_no_number_stops_with_the_rows(tmp_path: Path, tiny_embedder: Path) -> None:
    job = make_job(tmp_path, tiny_embedder, learning_rate=1e30, max_grad_norm=1e30, warmup_frac=0.0)
    with pytest.raises(RunError, match="became nan"):
        job.run(tmp_path / "run", quiet=True)


def test_a_loss_that_does_not_fit_is_refused_before_training(tmp_path: Path, tiny_embedder: Path) -> None:
    with pytest.raises(ConfigError, match="group_width"):
        make_job(tmp_path, tiny_embedder, Whitened(group_width=7)).run(tmp_path / "run", quiet=True)


def test_prefixes_are_read_before_texts(tmp_path: Path, tiny_embedder: Path) -> None:
    job = make_job(tmp_path, tiny_embedder, anchor_prefix="query: ", text_prefix="passage: ")
    model = SentenceTransformer(str(tiny_embedder), device="cpu")
    rows = [row for row in read_triplets(job.data) if isinstance(row, Triplet)]
    trainer = make_trainer(job, rows, model=model, checkpoints=tmp_path / "checkpoints")
    batch = next(iter(trainer.get_train_dataloader()))
    for column, prefix in (("anchor", "query :"), ("positive", "passage :")):
        said = model.tokenizer.batch_decode(batch[f"{column}_input_ids"], skip_special_tokens=True)
        assert all(text.startswith(prefix) for text in said)


# The library's losses are what their names say.


def test_settings_reach_the_librarys_modules(tiny_embedder: Path) -> None:
    model = SentenceTransformer(str(tiny_embedder), device="cpu")

    def make(loss: EmbeddingLoss) -> Any:
        return loss.build(model, [], batch_size=4)

    plain = make(InfoNce(temperature=0.1))
    assert type(plain) is library.MultipleNegativesRankingLoss
    assert plain.scale == pytest.approx(10)
    both = make(InfoNce(sides="both", mini_batch=2))
    assert type(both) is library.CachedMultipleNegativesRankingLoss
    assert (both.mini_batch_size, both.directions, both.partition_mode) == (
        2,
        ("query_to_doc", "doc_to_query"),
        "per_direction",
    )
    hard = make(InfoNce(sides="all", hardness=5.0, hardness_of="hard_negatives"))
    assert (len(hard.directions), hard.hardness_mode, hard.hardness_strength) == (4, "hard_negatives", 5.0)
    guided = make(Guided(guide=str(tiny_embedder), temperature=0.02, margin=0.1, margin_of="relative", own_kind=False))
    assert type(guided) is library.GISTEmbedLoss
    assert (guided.temperature, guided.margin, guided.margin_strategy) == (0.02, 0.1, "relative")
    assert (guided.contrast_anchors, guided.contrast_positives) == (False, False)
    assert not any(value.requires_grad for value in guided.guide.parameters())
    assert type(make(Guided(guide=str(tiny_embedder), mini_batch=2))) is library.CachedGISTEmbedLoss


def test_a_choice_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(ConfigError, match="hardness_of says nothing"):
        build(EmbeddingLoss, {"name": "info_nce", "hardness_of": "hard_negatives"}, source="test")


def test_an_empty_queue_is_the_librarys_info_nce(tiny_embedder: Path) -> None:
    """Value and gradients of the whole model."""
    model = SentenceTransformer(str(tiny_embedder), device="cpu").eval()
    rows = [Triplet.make(f"what {word}", f"a {word}", f"no {word}", prompt_id="", recipe="") for word in WORDS[:4]]
    columns = [[getattr(row, name) for row in rows] for name in ("anchor", "positive", "negative")]
    found: list[tuple[float, torch.Tensor]] = []
    for loss in (InfoNce(), MomentumQueue(queue=0)):
        module = loss.build(model, rows, batch_size=4)
        model.zero_grad()
        value = module([model.preprocess(column) for column in columns], torch.arange(4))
        value.backward()
        slopes = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
        found.append((float(value.detach()), torch.cat(slopes)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.75, 1.0])
def test_the_slow_copy_moves_by_its_momentum(momentum: float, tiny_embedder: Path) -> None:
    model = SentenceTransformer(str(tiny_embedder), device="cpu")
    rows = [Triplet.make(f"what {word}", f"a {word}", prompt_id="", recipe="") for word in WORDS[:4]]
    module = MomentumQueue(queue=4, momentum=momentum).build(model, rows, batch_size=4)
    assert isinstance(module, OwnModule)
    before = [value.clone() for value in module.copy.parameters()]
    with torch.no_grad():
        for value in model.parameters():
            value += 1
    module([model.preprocess([getattr(row, name) for row in rows]) for name in ("anchor", "positive")], torch.arange(4))
    for value, first in zip(module.copy.parameters(), before, strict=True):
        torch.testing.assert_close(value, first + (1 - momentum), rtol=1e-5, atol=1e-5)
    assert not any(value.requires_grad for value in module.copy.parameters())
