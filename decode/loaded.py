"""A model that transformers loaded, with what comes to stand beside it: adapters, second models, packed weights.

torch and transformers are imported on loading, as a config names the engine before anything heavy is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from counterfoil.errors import EngineError, InputError
from counterfoil.models import find_model
from decode.chat import check_vocabularies, load_tokenizer
from decode.method import Method

__all__ = ["Loaded", "find_second", "limit_length"]


class Loaded:
    """A model in memory; `device` and `dtype` may be auto: a GPU and bfloat16 where there is one, else float32.

    Of its generation_config.json only the tokens that end an answer are kept, in `eos_ids`: `generate` fills what it is not
    told from there (a repetition penalty, say, or an end where given text must go on), and we do only what is asked for.
    """

    def __init__(self, folder: Path, *, device: str, dtype: str, packed: bool) -> None:
        import torch
        from transformers import GenerationConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.device = _choose_device(device)
        half = dtype == "auto" and self.device == "cuda"
        self._dtype = torch.bfloat16 if half else getattr(torch, "float32" if dtype == "auto" else dtype)
        self._folder, self._packed = folder, packed
        self._packing = ExitStack()
        self.model: Any = self._load(folder)
        self.tokenizer = load_tokenizer(str(folder))
        self.eos_ids = _find_eos_ids(self.model, self.tokenizer)
        self.model.generation_config = GenerationConfig()
        self._seconds: dict[str, Any] = {}
        self._adapters: dict[str, str] = {}

    def _load(self, folder: Path) -> Any:
        from transformers import AutoModelForCausalLM

        from decode.packing import packed_linears

        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=self._dtype)
        model = model.to(self.device).eval().requires_grad_(False)
        if self._packed:
            self._packing.enter_context(packed_linears(model))
        return model

    @property
    def bare_model(self) -> Any:
        """The model of transformers itself, in which PEFT has put its layers where an adapter is loaded."""
        from peft import PeftModel

        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @cached_property
    def reads_states(self) -> bool:
        """Whether the head alone says what the model says of its backbone's states."""
        from decode.head import reads_states

        return reads_states(self.bare_model)

    def close(self) -> None:
        """Free all. Calling it twice is harmless."""
        self._packing.close()
        self.model = None
        self._seconds.clear()

    def pad_left(self, ids: Sequence[list[int]]) -> tuple[Any, Any]:
        """Return token ids and mask, (B, T), padded on the left."""
        import torch

        longest, pad = max(map(len, ids)), self.tokenizer.pad_token_id
        padded = [[pad] * (longest - len(row)) + row for row in ids]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in ids]
        return torch.tensor(padded, device=self.device), torch.tensor(mask, device=self.device)

    def bind_method(self, method: Method | None, negatives: Sequence[list[int] | None]) -> Any:
        """Return the method of rows with all that it takes, or None for transformers' own loop.

        It may load weights: call it outside of inference mode. Raises EngineError or InputError for what cannot be loaded.
        """
        if method is None:
            return None
        given: dict[str, Any] = {}
        if method.second_model:
            given["amateur"] = self._load_second(method.second_model)
        names = {key: self._load_adapter(folder) for key, folder in method.adapters.items()}
        method = method.model_copy(update=names)
        present = [ids for ids in negatives if ids is not None]
        if present:
            given["negative_input_ids"], given["negative_attention_mask"] = self.pad_left(present)
        return partial(method, **given)

    def use_adapter(self, adapter: str | None) -> ExitStack:
        """Switch to an adapter's folder, or to the bare model, for as long as the block lasts."""
        from peft import PeftModel

        stack = ExitStack()
        if adapter is not None:
            name = self._load_adapter(adapter)  # which may put another object in the model's place
            self.model.set_adapter(name)
        elif isinstance(self.model, PeftModel):
            stack.enter_context(self.model.disable_adapter())
        return stack

    def _load_adapter(self, adapter: str) -> str:
        """Load an adapter's folder once; return its name in the model."""
        from peft import PeftModel

        if adapter not in self._adapters:
            name = f"adapter{len(self._adapters)}"
            try:
                if isinstance(self.model, PeftModel):
                    self.model.load_adapter(adapter, adapter_name=name)
                else:
                    self.model = PeftModel.from_pretrained(self.model, adapter, adapter_name=name).eval()
            except (ValueError, OSError) as error:
                raise EngineError(
                    f"adapter: {adapter}", given=str(error), allowed="a PEFT adapter's folder", do="Check the path."
                ) from error
            self._adapters[adapter] = name
        return self._adapters[adapter]

    def _load_second(self, name: str) -> Any:
        """Load the second model of a method once. Raises EngineError where its tokens are others."""
        from transformers import GenerationConfig

        if name not in self._seconds:
            folder = find_second(name)
            check_vocabularies(self._folder, folder)
            self._seconds[name] = self._load(folder)
            self._seconds[name].generation_config = GenerationConfig()
        return self._seconds[name]


def find_second(name: str) -> Path:
    """Find the second model of a method. Raises InputError that says so where it is nowhere."""
    try:
        return find_model(name)
    except InputError as error:
        raise InputError(
            f"method: second {error.where}", given=error.given, allowed=error.allowed, do=error.do
        ) from error


def limit_length(limit: int, *folders: Path) -> int:
    """Return `limit`, or fewer tokens where the models in these folders have fewer positions."""
    from transformers import AutoConfig

    auto: Any = AutoConfig
    known = [getattr(auto.from_pretrained(path).get_text_config(), "max_position_embeddings", None) for path in folders]
    return min([limit, *(count for count in known if count is not None)])


def _choose_device(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _find_eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Collect what ends an answer: the model's own list and the tokenizer's token."""
    known = model.generation_config.eos_token_id
    ids = set(known if isinstance(known, list) else [known]) | {tokenizer.eos_token_id}
    return sorted(token for token in ids if token is not None)
