"""What contrast costs beside what users have today: ratios of CPU seconds, in float32 on one torch thread.

    python benchmarks/decode.py search --old PYTHON   # contrastive search against transformers 4.55.4, PYTHON's version
    python benchmarks/decode.py greedy                # contrastive search against greedy decoding
    python benchmarks/decode.py forms                 # what `form=auto` chose against both forms, contexts of 16 to 4,096
    python benchmarks/decode.py memory                # bytes of keys and values against greedy's
    python benchmarks/decode.py products              # all products of a few rows with the weights, plain and packed
    python benchmarks/decode.py guided                # against transformers' guidance_scale
    python benchmarks/decode.py contrastive           # with an amateur of 1/7 the size, against greedy of the expert
    python benchmarks/decode.py dola                  # against greedy
    python benchmarks/decode.py decoupled             # two adapters against one, greedy

Variants take turns, at least 5 rounds, the minimum of each counts. A text is timed from its first new token to its last
(decode-only) and as a whole (total). Where two variants must write the same tokens, that is asserted in the same run.
`packed` is ours under `decode.packed_linears`, which holds the linear layers' weights a second time.
`PYTHON` is an interpreter with transformers 4.55.4 and torch: the last version with contrastive search of its own.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [folder for folder in sys.path if folder != HERE]  # this file's own name would hide the package `decode`

ROUNDS = 5
NEW_TOKENS = 48
KEPT = ExitStack()


class Timing(NamedTuple):
    """CPU seconds of one text."""

    decode: float
    total: float
    tokens: list[list[int]]


def load(folder: str) -> Any:
    """Load the embedded model in float32, never to stop by itself."""
    from transformers import AutoModelForCausalLM, __version__

    more: dict[str, Any] = {"dtype": torch.float32}
    if __version__.startswith("4."):  # it looks for the rotary base where version 5 does not write it
        kept = json.loads((Path(folder) / "config.json").read_text())
        more = {"torch_dtype": torch.float32, "rope_theta": kept["rope_parameters"]["rope_theta"]}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, **more).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def load_packed(folder: str) -> Any:
    """Load it once more, with its linear layers packed from now on."""
    from decode import packed_linears

    model = load(folder)
    KEPT.enter_context(packed_linears(model))
    return model


def draw_prompt(length: int, *, rows: int = 1, vocabulary: int = 40_000) -> torch.Tensor:
    """Draw a prompt of random tokens: (rows, length)."""
    return torch.randint(1000, vocabulary, (rows, length), generator=torch.Generator().manual_seed(length))


def time_text(model: Any, ids: torch.Tensor, *, new: int = NEW_TOKENS, **settings: Any) -> Timing:
    """Generate `new` tokens, noting the process's CPU clock at each."""
    from transformers import StoppingCriteriaList

    marks: list[float] = []

    def note(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        marks.append(time.process_time())
        return torch.zeros(len(input_ids), dtype=torch.bool)

    start = time.process_time()
    found = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        stopping_criteria=StoppingCriteriaList([note]),
        **settings,
    )
    total = time.process_time() - start
    return Timing(marks[-1] - marks[0], total, found[:, ids.shape[1] :].tolist())


def compare(variants: dict[str, Callable[[], Timing]], *, rounds: int = ROUNDS, same: bool = True) -> dict[str, Timing]:
    """Run the variants in turn; return the minimum of each. Asserts equal tokens where `same`."""
    best: dict[str, Timing] = {}
    for number in range(rounds + 1):  # the first round warms up
        for name, run in variants.items():
            timing = run()
            if number == 0:
                continue
            before = best.get(name, timing)
            assert timing.tokens == before.tokens, f"{name} does not repeat itself"
            best[name] = Timing(min(before.decode, timing.decode), min(before.total, timing.total), timing.tokens)
    if same:
        first, *others = best
        for name in others:
            assert best[name].tokens == best[first].tokens, f"{name} and {first} write different tokens"
    return best


def show(title: str, best: dict[str, Timing], over: str, under: str) -> None:
    """Print one variant's time as a multiple of another's."""
    upper, lower = best[over], best[under]
    each = [f"{timing.decode / (NEW_TOKENS - 1) * 1e3:.1f}" for timing in (upper, lower)]
    print(
        f"{title}: {over} / {under}: decode-only {upper.decode / lower.decode:.2f}, "
        f"total {upper.total / lower.total:.2f} ({' and '.join(each)} ms a token)",
        flush=True,
    )


class Old:
    """Another interpreter's contrastive search, asked a text at a time."""

    def __init__(self, python: str, folder: str) -> None:
        command = [python, __file__, "worker", folder]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def __call__(self, length: int, k: int) -> Timing:
        """Time a text of NEW_TOKENS tokens after a drawn prompt."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([length, k]) + "\n")
        self._process.stdin.flush()
        return Timing(*self._read())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve_old(folder: str) -> None:
    """Answer [length, k] lines with timings, in the old interpreter."""
    import transformers

    model = load(folder)
    print(json.dumps(transformers.__version__), flush=True)
    for line in sys.stdin:
        length, k = json.loads(line)
        print(json.dumps(time_text(model, draw_prompt(length), penalty_alpha=0.6, top_k=k)), flush=True)


def compare_search(folder: str, old: str) -> None:
    """Against transformers 4.55.4."""
    from decode import contrastive_search

    model, packed, other = load(folder), load_packed(folder), Old(old, folder)
    print(f"transformers {other.version}", flush=True)
    for length in (64, 512, 1536):
        for k in (4, 8):
            ids = draw_prompt(length)
            best = compare(
                {
                    "transformers": lambda length=length, k=k: other(length, k),
                    "ours": lambda ids=ids, k=k: time_text(
                        model, ids, custom_generate=contrastive_search, alpha=0.6, k=k
                    ),
                    "packed": lambda ids=ids, k=k: time_text(
                        packed, ids, custom_generate=contrastive_search, alpha=0.6, k=k
                    ),
                }
            )
            for name in ("ours", "packed"):
                show(f"context {length}, k {k}", best, "transformers", name)
    other.close()


def compare_greedy(folder: str) -> None:
    """Against greedy decoding; k = 1 and alpha = 0 must write what greedy writes."""
    from decode import contrastive_search

    models = {"": load(folder), " packed": load_packed(folder)}
    for length in (64, 512, 1536):
        ids = draw_prompt(length)
        variants = {"greedy": lambda ids=ids: time_text(models[""], ids, do_sample=False)}
        for name, model in models.items():
            for k in (4, 8):
                variants[f"k {k}{name}"] = lambda ids=ids, k=k, model=model: time_text(
                    model, ids, custom_generate=contrastive_search, alpha=0.0, k=k
                )
        best = compare(variants)
        for name in list(variants)[1:]:
            show(f"context {length}", best, name, "greedy")


def compare_forms(folder: str) -> None:
    """The form that `auto` chose against each form."""
    from decode import contrastive_search

    model = load(folder)
    for rows in (1, 8):
        for length in (16, 64, 256, 1024, 4096) if rows == 1 else (16, 256):
            for k in (4, 8):
                ids = draw_prompt(length, rows=rows)
                best = compare(
                    {
                        form: lambda ids=ids, k=k, form=form: time_text(
                            model, ids, new=24, custom_generate=contrastive_search, alpha=0.6, k=k, form=form
                        )
                        for form in ("auto", "one_row", "replicated")
                    }
                )
                least = min(best["one_row"].decode, best["replicated"].decode)
                print(
                    f"rows {rows}, context {length}, k {k}: auto / better {best['auto'].decode / least:.3f}, "
                    f"replicated / one_row {best['replicated'].decode / best['one_row'].decode:.2f}",
                    flush=True,
                )


def compare_memory(folder: str) -> None:
    """Bytes of keys and values, at their largest, against greedy decoding's."""
    from transformers import DynamicCache

    from decode import contrastive_search
    from decode.branch_cache import BranchCache

    model = load(folder)
    kept: list[BranchCache] = []
    start = BranchCache.start

    def spy(self: BranchCache, *given: Any, **more: Any) -> None:
        kept.append(self)
        start(self, *given, **more)

    BranchCache.start = spy  # type: ignore[method-assign]
    for length, k in ((512, 4), (1536, 4), (1536, 8)):
        ids = draw_prompt(length)
        cache = DynamicCache(config=model.config)
        model.generate(input_ids=ids, max_new_tokens=NEW_TOKENS, past_key_values=cache, do_sample=False)
        plain = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
        model.generate(input_ids=ids, max_new_tokens=NEW_TOKENS, custom_generate=contrastive_search, alpha=0.6, k=k)
        ours = sum(part.nbytes for layer in kept[-1].layers for part in (layer.keys, layer.values))
        print(f"context {length}, k {k}: {ours / plain:.4f} of greedy's; 1 + k / context is {1 + k / length:.4f}")


def compare_products(folder: str) -> None:
    """What one pass of 1, 2, 4 and 8 rows spends in the linear layers, one after the other, and nothing else."""
    models = {"plain": load(folder), "packed": load_packed(folder)}
    parts = {
        name: [part for part in model.modules() if type(part) is torch.nn.Linear] for name, model in models.items()
    }
    best: dict[tuple[str, int], float] = {}
    with torch.no_grad():
        for _ in range(ROUNDS + 1):
            for rows in (1, 2, 4, 8):
                inputs = {size: torch.randn(rows, size) for size in {part.in_features for part in parts["plain"]}}
                for name, layers in parts.items():
                    start = time.process_time()
                    for layer in layers:
                        layer(inputs[layer.in_features])
                    best[name, rows] = min(best.get((name, rows), 1e9), time.process_time() - start)
    for rows in (1, 2, 4, 8):
        shown = ", ".join(f"{name} {best[name, rows] * 1e3:.1f} ms" for name in models)
        over = best["packed", rows] / best["plain", 1]
        print(f"{rows} rows: {shown}; packed / one row plain {over:.2f}", flush=True)


def compare_guided(folder: str) -> None:
    """Against transformers' guidance_scale."""
    from decode import guided

    model, packed = load(folder), load_packed(folder)
    for length, negative in ((64, 64), (512, 512), (512, 16), (16, 512)):
        ids, other = draw_prompt(length), draw_prompt(negative + 1)[:, 1:]
        best = compare(
            {
                "transformers": lambda ids=ids, other=other: time_text(
                    model, ids, negative_prompt_ids=other, guidance_scale=1.5
                ),
                "ours": lambda ids=ids, other=other: time_text(
                    model, ids, custom_generate=guided, negative_input_ids=other, scale=1.5
                ),
                "packed": lambda ids=ids, other=other: time_text(
                    packed, ids, custom_generate=guided, negative_input_ids=other, scale=1.5
                ),
            }
        )
        for name in ("ours", "packed"):
            show(f"prompt {length}, negative {negative}", best, "transformers", name)


def compare_contrastive(folder: str) -> None:
    """A random amateur of a seventh of the expert's parameters; only its time matters here."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from decode import contrastive

    model = load(folder)
    config = AutoConfig.from_pretrained(folder)
    config.update({"num_hidden_layers": 6, "hidden_size": 288, "intermediate_size": 768, "num_attention_heads": 9})
    config.num_key_value_heads, config.head_dim = 3, 32
    amateur = AutoModelForCausalLM.from_config(config).eval()
    sizes = [sum(part.numel() for part in each.parameters()) for each in (model, amateur)]
    print(f"amateur: {sizes[1] / 1e6:.1f}M parameters, 1/{sizes[0] / sizes[1]:.1f} of the expert")
    for length in (64, 512):
        ids = draw_prompt(length)
        best = compare(
            {
                "greedy": lambda ids=ids: time_text(model, ids, do_sample=False),
                "ours": lambda ids=ids: time_text(
                    model, ids, custom_generate=contrastive, amateur=amateur, strength=1e-6
                ),
            }
        )
        show(f"context {length}", best, "ours", "greedy")


def compare_dola(folder: str) -> None:
    """Against greedy decoding; it writes its own tokens."""
    from decode import dola

    model = load(folder)
    for length in (64, 512):
        ids = draw_prompt(length)
        runs = {"greedy": lambda ids=ids: time_text(model, ids, do_sample=False)}
        runs["ours"] = lambda ids=ids: time_text(model, ids, custom_generate=dola)
        show(f"context {length}", compare(runs, same=False), "ours", "greedy")


def compare_decoupled(folder: str) -> None:
    """Two random adapters on one base against one of them."""
    from peft import LoraConfig, get_peft_model

    from decode import decoupled, packed_linears

    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(load(folder), lora, adapter_name="positive")
    model.add_adapter("negative", lora)
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.01)
    model.eval()

    def run_packed(ids: torch.Tensor) -> Timing:
        with packed_linears(model):  # its weights are packed anew, before the first token is noted
            return time_text(model, ids, custom_generate=decoupled, strength=1e-6)

    for length in (64, 512):
        ids = draw_prompt(length)
        best = compare(
            {
                "greedy": lambda ids=ids: time_text(model, ids, do_sample=False),
                "ours": lambda ids=ids: time_text(model, ids, custom_generate=decoupled, strength=1e-6),
                "packed": lambda ids=ids: run_packed(ids),
            }
        )
        for name in ("ours", "packed"):
            show(f"context {length}", best, name, "greedy")


def main(arguments: Sequence[str]) -> None:
    """Run one comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runs = {name.removeprefix("compare_"): run for name, run in globals().items() if name.startswith("compare_")}
    parser.add_argument("which", choices=[*runs, "worker"])
    parser.add_argument("folder", nargs="?", help="of the model; by default the embedded one")
    parser.add_argument("--old", help="an interpreter with transformers 4.55.4")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.which == "worker":
        return serve_old(given.folder)
    from counterfoil.models import find_model

    folder = given.folder or str(find_model("smollm2"))
    if given.which == "search":
        if not given.old:
            parser.error("--old PYTHON is needed")
        return compare_search(folder, given.old)
    return runs[given.which](folder)


if __name__ == "__main__":
    main(sys.argv[1:])
