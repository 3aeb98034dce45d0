"""Make an amateur for contrastive decoding out of the embedded model: six of its thirty layers, briefly trained on a text.

    python benchmarks/amateur.py CORPUS.txt FOLDER      # CORPUS: a paragraph a line, such as WikiText-2's valid.txt

Prints the perplexity on the last tenth of the corpus, which is not trained on, before and after, beside the expert's.
"""

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import torch

from counterfoil.models import find_model
from decode.chat import load_tokenizer
from eval.prefixes import join_words

KEPT = (0, 1, 2, 27, 28, 29)
LENGTH, ROWS, RATE = 128, 8, 1e-3


def cut(folder: Path) -> Any:
    """Load the model and leave out all layers but a few."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList([layers[at] for at in KEPT])
    for at, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = at
    model.config.num_hidden_layers = len(KEPT)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(KEPT)]
    return model


def read_blocks(corpus: Path, tokenizer: Any) -> torch.Tensor:
    """Return the corpus as rows of tokens, (N, LENGTH)."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    text = "\n\n".join(join_words(line) for line in lines if line.strip() and "<unk>" not in line)
    ids = tokenizer.encode(text)
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)


def measure(model: Any, blocks: torch.Tensor) -> float:
    """Return the perplexity of rows of tokens."""
    with torch.inference_mode():
        losses = [float(model(input_ids=rows, labels=rows).loss) for rows in blocks.split(ROWS)]
    return math.exp(sum(losses) / len(losses))


def main() -> None:
    """Cut, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    source = find_model("smollm2")
    tokenizer, model = load_tokenizer(str(source)), cut(source)
    blocks = read_blocks(given.corpus, tokenizer)
    held_out = blocks[-len(blocks) // 10 :][:64]
    blocks = blocks[: -len(blocks) // 10]
    before = measure(model, held_out)
    torch.manual_seed(given.seed)
    draw = random.Random(given.seed)
    model.get_input_embeddings().requires_grad_(False)  # the expert's, and the head's
    tuned = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=RATE, weight_decay=0.01)
    start, steps = time.monotonic(), 0
    while (spent := (time.monotonic() - start) / 60 / given.minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 20 * spent) * (1 - spent)
        rows = blocks[draw.sample(range(len(blocks)), ROWS)]
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    model.eval()
    model.save_pretrained(given.folder)
    tokenizer.save_pretrained(given.folder)
    from transformers import AutoModelForCausalLM

    expert = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    sizes = [sum(value.numel() for value in each.parameters()) for each in (expert, model)]
    print(
        f"{steps} steps of {ROWS} x {LENGTH} tokens; perplexity: cut {before:.1f}, trained {measure(model, held_out):.1f}, "
        f"expert {measure(expert, held_out):.1f}; {sizes[1] / 1e6:.1f}M of {sizes[0] / 1e6:.1f}M parameters"
    )


if __name__ == "__main__":
    main()
