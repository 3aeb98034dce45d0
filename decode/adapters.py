"""LoRA adapters added to the weights that they were trained on."""

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["merged_model"]


@contextmanager
def merged_model(folder: Path, adapter: str | None) -> Generator[Path]:
    """Yield a folder of the model with the adapter added to its weights, for as long as the block lasts.

    Without an adapter that is the model's own folder. W + alpha / rank x B A, by PEFT, in the model's own precision.
    """
    if adapter is None:
        yield folder
        return
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="counterfoil-merged-") as target:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(folder).save_pretrained(target)
        for name in ("chat_template.jinja", "generation_config.json"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, Path(target) / name)
        del model
        yield Path(target)
