"""Groups for an embedder: chosen answers are one positive together, each by its weight, as retrieval writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from align.embed import Embed
from align.embed_trainer import OwnModule
from align.embedding.info_nce import InfoNce
from align.embedding.pooled import Pooled
from align.embedding_loss import Embedded, State, Vectors
from align.objective import Loss
from align.triplets import read_triplets
from counterfoil.errors import ConfigError
from counterfoil.records import Answer, Dropped, Group, Triplet

WORDS = ("river", "stone", "copper", "lantern", "orchard", "violin")


def make_group(word: str, *weights: float | None) -> dict[str, Any]:
    chosen = [
        Answer(text=f"{word} of kind {at}", role="chosen", score=weight) for at, weight in enumerate(weights, start=1)
    ]
    rejected = [Answer(text=f"no {word} {at}", role="rejected") for at in range(2)]
    return Group.make(f"what is a {word}", [*chosen, *rejected]).model_dump(mode="json")


def read(path: Path, *rows: dict[str, Any]) -> list[Triplet | Dropped]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_triplets(path))


def test_a_group_is_one_row(tmp_path: Path) -> None:
    rows = make_group("river", 0.2, 0.6), make_group("stone", 0.9), make_group("copper", None, None)
    found = read(tmp_path / "groups.jsonl", *rows)
    assert all(isinstance(row, Triplet) for row in found)
    first, second, third = (row for row in found if isinstance(row, Triplet))
    assert (first.anchor, first.positive, first.negative) == ("what is a river", "river of kind 2", "no river 0")
    assert first.shares == pytest.approx({"river of kind 1": 0.25, "river of kind 2": 0.75})
    assert (second.positive, second.shares) == ("stone of kind 1", {})
    (fourth,) = read(tmp_path / "groups.jsonl", make_group("river", 0.0, 0.5))
    assert isinstance(fourth, Triplet)
    assert fourth.shares == {"river of kind 2": 1.0}, "a weight of nothing is none"
    assert third.shares == pytest.approx({"copper of kind 1": 0.5, "copper of kind 2": 0.5})


NO_WEIGHT = "weights that are no weights"


@pytest.mark.parametrize(("weights", "reason"), [((), "no chosen answer"), ((0.5, -0.5), NO_WEIGHT)])
def test_a_group_that_cannot_teach_is_dropped_by_name(weights: tuple[float, ...], reason: str, tmp_path: Path) -> None:
    (found,) = read(tmp_path / "groups.jsonl", make_group("river", *weights))
    assert isinstance(found, Dropped)
    assert found.reason == reason


class Keep(Pooled):
    """Keeps what it was given."""

    def loss(self, batch: Embedded, state: State) -> Loss:
        """Note the vectors."""
        seen.append(batch.now.candidates_CD.detach())
        return super().loss(batch, state)


seen: list[Tensor] = []


def test_the_positive_is_the_weighted_mean_of_its_texts(tiny_embedder: Path) -> None:
    """Also where a row has fewer texts than another, whose columns it fills up with its first one at weight 0."""
    model = SentenceTransformer(str(tiny_embedder), device="cpu").eval()
    rows = [
        Triplet(id="0", anchor="a river", positive="stone", shares={"stone": 0.7, "copper": 0.3}),
        Triplet(id="1", anchor="an orchard", positive="violin"),
    ]
    job = Embed(data=Path("none"), loss=Keep())
    texts = [job.texts_of(row, num_positives=2) for row in rows]
    assert [*texts[1].values()] == ["an orchard", "violin", "violin"]
    module = OwnModule(model, Keep(), rows, batch_size=2)
    columns = [model.preprocess([row[name] for row in texts]) for name in ("anchor", "positive", "positive_1")]
    seen.clear()
    module(columns, torch.arange(2)).backward()
    stone, copper, violin = model.encode(["stone", "copper", "violin"], normalize_embeddings=True)
    mean = 0.7 * stone + 0.3 * copper
    np.testing.assert_allclose(seen[0].numpy(), [mean / np.linalg.norm(mean), violin], atol=1e-5)


def test_groups_are_learnt_from_and_the_lightest_texts_left_out(tmp_path: Path, tiny_embedder: Path) -> None:
    data = tmp_path / "groups.jsonl"
    read(data, *(make_group(word, 0.5, 0.3, 0.2) for word in WORDS))
    given: dict[str, Any] = {"data": data, "model": str(tiny_embedder), "batch_size": 3, "learning_rate": 1e-3}
    done = Embed(loss=Pooled(), neighbours=2, epochs=8, **given).run(tmp_path / "run", quiet=True)
    assert done.manifest["counts"]["kept"] == len(WORDS)
    rows = [json.loads(line) for line in done.path("metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    with pytest.raises(ConfigError, match="loss=pooled"):
        Embed(loss=InfoNce(), **given).run(tmp_path / "theirs", quiet=True)
    Embed(loss=InfoNce(), neighbours=1, **given).run(tmp_path / "nearest", quiet=True)


@pytest.mark.parametrize("negatives", [True, False])
def test_positives_are_told_from_all_else_in_both_directions(*, negatives: bool) -> None:
    """Against loops in NumPy."""
    size, tau, total = 5, 0.2, 0.0
    draw = np.random.default_rng(0)
    anchors, candidates = (draw.normal(size=(num, 8)) for num in (size, size * (1 + negatives)))
    anchors, candidates = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (anchors, candidates))
    positives = candidates[:size]
    for at in range(size):
        for own, target, others in (
            (anchors, positives, [*candidates, *np.delete(anchors, at, 0)]),
            (positives, anchors, [*anchors, *np.delete(positives, at, 0)]),
        ):
            scores = [np.exp(own[at] @ other / tau) for other in others]
            total -= np.log(np.exp(own[at] @ target[at] / tau) / sum(scores)) / (2 * size)
    now = Vectors(torch.from_numpy(anchors), torch.from_numpy(candidates))
    batch = Embedded(now, now, [], torch.arange(size))
    assert float(Pooled(temperature=tau).loss(batch, {}).value) == pytest.approx(total, rel=1e-9)
