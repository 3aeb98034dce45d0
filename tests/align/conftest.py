"""An interrupt in the middle of a training; a small embedder."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from align.training import watch
from counterfoil.job import Job
from counterfoil.models import find_model


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what runs a job in a folder and interrupts it after a step; the job's module calls `watch`."""

    def run(job: Job, folder: Any, *, module: ModuleType, step: int) -> None:
        def breaking(stage: Any, **rest: Any) -> Any:
            shown = watch(stage, **rest)
            inner = shown.on_log

            def on_log(args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
                inner(args, state, control, logs=logs, **rest)
                if state.global_step == step and "loss" in (logs or {}):
                    raise KeyboardInterrupt

            shown.on_log = on_log
            return shown

        with monkeypatch.context() as patch:
            patch.setattr(module, "watch", breaking)
            with pytest.raises(KeyboardInterrupt):
                job.run(folder, quiet=True)

    return run


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a BERT of two small layers and random weights, with dropout, that reads MiniLM's tokens."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    base, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("embedder")
    tokenizer = AutoTokenizer.from_pretrained(find_model("minilm"))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    SentenceTransformer(modules=[Transformer(str(base), max_seq_length=32), Pooling(24)], device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )
    return folder
