"""Figures about written texts, against values by hand, by brute force, and of the authors' own code."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from counterfoil.errors import ConfigError, InputError
from decode.chat import load_tokenizer
from decode.engine import Sampling
from decode.engines.hf import Hf
from decode.generate import Generate
from decode.loaded import Loaded
from decode.methods.decoupled import Decoupled
from eval.continuations import Continuations
from eval.mauve import area, mauve
from eval.prefixes import Prefixes, cut_text, join_words, read_paragraphs
from eval.reading import read_text
from eval.repetition import ORDERS, count_ngrams, diversity, repetition, resample_repetition


def test_repetition_by_hand() -> None:
    """`a b a b a`: the bigrams ab ba ab ba, two of four new; trigrams aba bab aba; four-grams abab baba."""
    text = "a b a b a"
    assert [count_ngrams(text, n) for n in ORDERS] == [(2, 4), (2, 3), (2, 2)]
    assert repetition([text], 2) == 50 and repetition([text], 3) == pytest.approx(100 / 3)
    assert diversity([text]) == pytest.approx(0.5 * 2 / 3)
    assert repetition([text, "c d"], 2) == pytest.approx(100 * (1 - 3 / 5)), "counts are added up, not shares"
    assert repetition(["", "word"], 2) == 0 and diversity([]) == 1


def test_the_authors_counter_leaves_out_a_texts_last_ngram() -> None:
    """And rounds before it multiplies."""
    assert count_ngrams("a b a b a", 2, compat=True) == (2, 3)
    assert count_ngrams("a b", 2, compat=True) == (0, 0)
    assert repetition(["a b a b a"], 2, compat=True) == 33.33
    assert diversity(["a b a b a"], compat=True) == pytest.approx((1 - 0.3333) * 1 * 1)


def test_resampled_repetition_is_that_of_the_drawn_texts() -> None:
    texts = ["a b a b a", "c d e f g", "a a a a a a a"]
    counts = np.array([[count_ngrams(text, n) for n in ORDERS] for text in texts])
    picks = np.array([[0, 1, 2], [2, 2, 0]])
    found = resample_repetition(counts, picks)
    for at, pick in enumerate(picks):
        drawn = [texts[index] for index in pick]
        assert found["diversity"][at] == pytest.approx(diversity(drawn))
        assert found["rep-3"][at] == pytest.approx(repetition(drawn, 3))
    none = resample_repetition(np.zeros((1, 3, 2), int), np.array([[0]]))
    assert {key: float(value[0]) for key, value in none.items()} == {"rep-2": 0, "rep-3": 0, "rep-4": 0, "diversity": 1}


def test_the_area_under_mauves_curve_is_the_authors() -> None:
    """Values of mauve-text 0.4.0 (compute_mauve.py) for these histograms."""
    p, q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])
    assert area(p, q) == pytest.approx(0.2711696522515651, abs=1e-12)
    assert area(q, p) == pytest.approx(area(p, q), abs=1e-12)
    assert area(p, p) == pytest.approx(1.0, abs=1e-6)
    assert area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) < 0.01
    assert area(np.stack([p, q]), np.stack([q, q])).tolist() == pytest.approx([float(area(p, q)), 1.0], abs=1e-6)


def test_mauve_falls_as_distributions_part() -> None:
    rng = np.random.default_rng(0)
    near, far = (mauve(rng.normal(size=(200, 20)), rng.normal(size=(200, 20)) + shift, seed=1) for shift in (0.0, 0.6))
    assert near > 0.85 and far < 0.3


def test_a_reading_by_brute_force(tiny_model: Path) -> None:
    loaded = Loaded(tiny_model, device="cpu", dtype="float32", packed=False)
    found = read_text(loaded, "The river behind", " the mill is")
    ids = loaded.tokenizer.encode("The river behind") + loaded.tokenizer.encode(" the mill is")
    with torch.inference_mode():
        out = loaded.model(torch.tensor([ids]), output_hidden_states=True)
    logps = out.logits[0].log_softmax(-1)
    start = len(ids) - 3
    expected = sum(float(logps[at - 1, ids[at]]) for at in range(start, len(ids)))
    assert found.logprob == pytest.approx(expected, abs=1e-4) and found.num_tokens == 3
    states = out.hidden_states[-1][0]
    pairs = list(itertools.permutations(range(len(ids)), 2))
    cosines = sum(float(torch.cosine_similarity(states[i], states[j], dim=0)) for i, j in pairs)
    assert found.cosines == pytest.approx(cosines, abs=1e-3) and found.num_pairs == len(pairs)
    assert found.state == pytest.approx(states[-1].tolist(), abs=1e-4)
    assert read_text(loaded, "The", "").num_tokens == 0


def test_wikitexts_words_are_joined() -> None:
    given = "He had a guest @-@ starring role in \" The Bill \" , which ( in 2000 ) cost $ 1 @,@ 000 ; it 's the men ' own ."
    wanted = "He had a guest-starring role in \"The Bill\", which (in 2000) cost $1,000; it's the men' own."
    assert join_words(given) == wanted


def test_a_corpus_is_joined_where_it_has_wikitexts_marks(tmp_path: Path) -> None:
    """Once for the whole of it; ordinary prose is left alone."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(' = A heading = \n a <unk> b <unk> , c \n\n he " came " here\n')
    assert list(read_paragraphs(corpus)) == [("a b, c", "a"), ('he "came" here', 'he "came" here')]
    prose = ['Some "yes" and then "no" again.', "It uses .NET and a :smile: face", 'the 5 " disk ,  and']
    corpus.write_text("\n".join(prose))
    assert [item.text for item in read_paragraphs(corpus)] == [item.known for item in read_paragraphs(corpus)] == prose
    corpus.write_bytes("Öl".encode("latin-1"))
    for path in (corpus, tmp_path):
        with pytest.raises(InputError, match="a text file in UTF-8"):
            list(read_paragraphs(path))


def test_no_cut_parts_a_character(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the place: prefix and text are what stands in the corpus, which holds a broken character of its own."""
    monkeypatch.setenv("COUNTERFOIL_RUNS", str(tmp_path / "runs"))
    corpus, line = tmp_path / "corpus.txt", "x 🜂🝆 y\ufffd 🜁 " * 4
    corpus.write_text(line)
    for length in range(4, 8):
        done = Prefixes(corpus=corpus, prefix_tokens=length, text_tokens=length, model=str(tiny_model)).run()
        row = json.loads(done.path("prompts.jsonl").read_text())
        whole = row["prompt"] + row["reference"]["text"]
        assert line.startswith(whole) and row["prompt"] and row["reference"]["text"], length
    tokenizer = load_tokenizer(str(tiny_model))
    assert cut_text(tokenizer, line, 2) == "x" and cut_text(tokenizer, line, 9999) == line


def test_prefixes_texts_and_their_comparison(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record's whole way: corpus, prefixes, two methods, one of them with two seeds, the table."""
    monkeypatch.setenv("COUNTERFOIL_RUNS", str(tmp_path / "runs"))
    words = [
        "river",
        "stone",
        "bird",
        "cloud",
        "garden",
        "letter",
        "music",
        "winter",
        "bread",
        "glass",
        "wolf",
        "candle",
    ]
    lines = [" ".join(words[(at + 5 * place) % 12] for place in range(30)) for at in range(12)]
    corpus = tmp_path / "corpus.txt"
    more = ["too short", "an <unk> word " * 20, f"wolf {lines[0]} , <unk> on", f"{lines[0]} on"]
    corpus.write_text("\n".join([" = A heading = ", *more, *lines]))
    small = {"model": str(tiny_model)}
    prefixes = Prefixes(corpus=corpus, count=10, prefix_tokens=6, text_tokens=12, **small).run()
    assert prefixes.figures["prefixes"] == 10
    every = Prefixes(corpus=corpus, count=99, prefix_tokens=6, text_tokens=12, **small).run()
    assert every.figures["prefixes"] == 13, every.manifest["counts"]
    assert every.manifest["counts"]["dropped"] == {
        "prefixes: came before": 1, "prefixes: too short": 1, "prefixes: unknown word": 1,
    }  # fmt: skip
    reasons = [json.loads(line)["reason"] for line in every.path("dropped.jsonl").read_text().splitlines()]
    assert sorted(reasons) == ["came before", "too short", "unknown word"]
    prompts = prefixes.path("prompts.jsonl")
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    assert all("<unk>" not in row["prompt"] and row["reference"]["text"] for row in rows)
    engine = Hf(batch_size=5)
    texts = {
        "beam": Sampling(num_beams=3, max_new_tokens=8),
        "plain_0": Sampling(temperature=1.0, max_new_tokens=8, seed=0),
        "plain_1": Sampling(temperature=1.0, max_new_tokens=8, seed=1),
    }
    parts: list[Path] = []
    for name, sampling in texts.items():
        done = Generate(prompts=prompts, chat=False, engine=engine, sampling=sampling, **small).run()
        parts.append(done.folder.rename(tmp_path / name))
    job = Continuations(prompts=prompts, parts=tuple(parts), embedder=str(tiny_model), baseline="plain", **small)
    done = job.run()
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary["seeds"] == {"human": 1, "beam": 1, "plain": 2} and summary["num_prefixes"] == 10
    for name, row in summary["methods"].items():
        for key, value in row.items():
            assert value["low"] <= value["mean"] <= value["high"], (name, key)
        assert -1 <= row["coherence, embedded"]["mean"] <= 1
    human = [row["reference"]["text"] for row in rows]
    assert summary["methods"]["human"]["diversity"]["mean"] == pytest.approx(diversity(human), abs=1e-4)
    assert set(summary["differences"]) == {"human", "beam"}
    assert 0 < summary["isotropy"]["mean"] <= 2
    table = (done.folder / "table.md").read_text().splitlines()
    assert len(table) == 5 and table[2].startswith("| human | 1 | 0 |")


def test_beams_are_refused_where_they_make_no_sense(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    with pytest.raises(Exception, match="beams"):
        Generate(prompts=prompts, sampling=Sampling(num_beams=2)).check()
    with pytest.raises(ConfigError, match="beam search with a temperature"):
        Generate(prompts=prompts, engine=Hf(), sampling=Sampling(num_beams=2, temperature=1.0)).check()
    with pytest.raises(ConfigError, match="an adapter beside"):
        method = Decoupled(positive=str(tmp_path), negative=str(tmp_path))
        Generate(prompts=prompts, engine=Hf(), adapter=tmp_path, method=method).check()
    from decode.engine import Request

    wrong = Request("a", "b", Sampling(num_beams=2, temperature=1.0))
    assert "temperature" in (wrong.find_fault(Hf.gives) or "")
    assert "does not give" in (wrong.find_fault(frozenset()) or "")
