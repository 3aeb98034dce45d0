"""What `counterfoil synth` costs beside the engine that it drives.

    python benchmarks/synth_overhead.py engine       # against vllm.LLM.chat on the same prompts and settings
    python benchmarks/synth_overhead.py bookkeeping  # the scripted engine, 100,000 and 1,000,000 prompts

`engine`: two processes, each with its own open engine, take turns on the same 256 prompts (2 samples of 32 tokens);
starting the engines is not counted. `bookkeeping`: a process a size, on one core; peak memory is the system's own account.
A prompt is six records: itself, what was asked and answered, two scores, the group of its answers, a pair.
"""

import json
import multiprocessing as mp
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [
    folder for folder in sys.path if folder != HERE
]  # files here are named like the packages `align`, `decode`

ROUNDS = 5
NUM_PROMPTS = 256
MAX_NEW_TOKENS = 32


def serve_bare(pipe: Connection) -> None:
    """Answer with vllm.LLM.chat alone."""
    from counterfoil.models import find_model
    from counterfoil.records import Prompt
    from decode.engines.vllm import Vllm
    from decode.generate import draw_seed
    from decode.vllm_process import prepare_environment
    from decode.vllm_records import make_sampling_params
    from eval.scorers.verifiable import Verifiable
    from synth.recipes.best_of_n import BestOfN

    prepare_environment()
    from vllm import LLM

    folder, engine = find_model("smollm2"), Vllm()
    llm = LLM(
        str(folder), dtype="float32", max_model_len=engine.max_model_len, max_num_seqs=engine.max_num_seqs,
        enforce_eager=True, enable_prefix_caching=True, enable_chunked_prefill=False, block_size=32,
        max_num_batched_tokens=2048, kv_cache_memory_bytes=2**30, disable_log_stats=True,
    )  # fmt: skip
    (asked,) = next(BestOfN(n=2, max_new_tokens=MAX_NEW_TOKENS).make(Prompt.make(""), Verifiable()))
    sampling = asked.sampling  # type: ignore[union-attr]

    def work(path: Path) -> int:
        prompts = [Prompt.model_validate_json(line) for line in path.read_text().splitlines()]
        chats: list[Any] = [list(item.messages) for item in prompts]  # vLLM has a message type of its own
        seeds = [sampling.model_copy(update={"seed": draw_seed(0, item.id)}) for item in prompts]
        outputs = llm.chat(chats, [make_sampling_params(item) for item in seeds], use_tqdm=False)
        llm.reset_prefix_cache()
        return sum(len(part.token_ids) for output in outputs for part in output.outputs)

    _serve(pipe, work)


def serve_synth(pipe: Connection) -> None:
    """Answer with counterfoil synth over an engine that is open already."""
    from decode.engine import Session
    from decode.engines.vllm import Vllm, VllmSession
    from decode.method import Method
    from eval.tasks.file import File
    from synth.recipes.best_of_n import BestOfN
    from synth.synthesize import Synthesize

    kept: list[VllmSession] = []

    class Kept(Vllm):
        """Opens once; leaving a session leaves it open."""

        def open(self, model: str, *, adapters: Sequence[str] = (), methods: Sequence[Method] = ()) -> Any:
            if not kept:
                kept.append(super().open(model, adapters=adapters, methods=methods))
                kept[0].close = lambda: None  # type: ignore[method-assign]
            return kept[0]

    engine = Kept()
    session: Session = engine.open("smollm2")
    assert isinstance(session, VllmSession)

    def work(path: Path) -> int:
        recipe = BestOfN(n=2, max_new_tokens=MAX_NEW_TOKENS)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["COUNTERFOIL_ANSWERS"] = f"{folder}/answers.sqlite"  # or the next round would find them
            job = Synthesize(task=File(path=path), recipe=recipe, engine=engine)
            done = job.run(Path(folder) / "run", quiet=True)
        session._engine.reset_prefix_cache()
        return done.manifest["tokens"]["generated"]

    _serve(pipe, work)


def _serve(pipe: Connection, work: Callable[[Path], int]) -> None:
    pipe.send("ready")
    while (path := pipe.recv()) is not None:
        started = time.perf_counter()
        tokens = work(path)
        pipe.send((time.perf_counter() - started, tokens))


def compare_engine() -> None:
    """Print the ratio of wall times, round by round."""
    from eval.tasks.constraints import Constraints

    spawn = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        prompts = [item.model_dump_json() for item in Constraints(count=NUM_PROMPTS).prompts("train")]
        path.write_text("\n".join(prompts) + "\n")
        pipes: dict[str, Connection] = {}
        children: list[Any] = []
        for name, target in (("bare", serve_bare), ("synth", serve_synth)):
            pipes[name], there = spawn.Pipe()
            children.append(spawn.Process(target=target, args=(there,), daemon=True))
            children[-1].start()
            assert pipes[name].recv() == "ready"
        times: dict[str, list[float]] = {"bare": [], "synth": []}
        tokens: set[int] = set()
        for number in range(ROUNDS + 1):  # the first round warms up and is not counted
            for name in ("bare", "synth") if number % 2 else ("synth", "bare"):
                pipes[name].send(path)
                seconds, count = pipes[name].recv()
                tokens.add(count)
                if number:
                    times[name].append(seconds)
        for pipe in pipes.values():
            pipe.send(None)
        for child in children:
            child.join(30)
    ratios = sorted(ours / bare for ours, bare in zip(times["synth"], times["bare"], strict=True))
    print(f"requests {2 * NUM_PROMPTS}, tokens {sorted(tokens)}")
    for name, found in times.items():
        print(f"{name}: median {statistics.median(found):.2f} s, {min(found):.2f} to {max(found):.2f}")
    print(f"synth / bare: median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")
    print(f"minimum / minimum: {min(times['synth']) / min(times['bare']):.3f}")


def book(count: int, pipe: Connection) -> None:
    """Synthesise `count` prompts with the scripted engine on one core; send seconds, records and peak memory in MB."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from decode.engines.scripted import Scripted
    from eval.tasks.file import File
    from synth.filters.length_only import LengthOnly
    from synth.recipes.best_of_n import BestOfN
    from synth.synthesize import Synthesize

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        os.environ["COUNTERFOIL_ANSWERS"] = f"{folder}/answers.sqlite"  # kept twice, as by a user, and found by nobody
        reference = {"constraints": [{"kind": "include_word", "word": "river"}]}
        with path.open("w") as stream:
            for number in range(count):
                stream.write(json.dumps({"prompt": f"Write about place {number}.", "reference": reference}) + "\n")
        started, cpu = time.perf_counter(), time.process_time()
        done = Synthesize(
            task=File(path=path),
            engine=Scripted(replies=("A river runs past {prompt}", "A hill stands over {prompt}")),
            recipe=BestOfN(n=2),
            filters=(LengthOnly(),),
        ).run(Path(folder) / "run", quiet=True)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        files = ("prompts", "exchanges", "scores", "groups", "pairs")
        records = sum(done.manifest["outputs"][f"{name}.jsonl"]["num_lines"] for name in files)
        assert records == 6 * count, done.manifest["counts"]
    pipe.send((seconds, cpu, records, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def measure_bookkeeping(sizes: Sequence[int]) -> None:
    """Print records a second and peak memory for each size."""
    spawn = mp.get_context("spawn")
    for size in sizes:
        here, there = spawn.Pipe()
        child = spawn.Process(target=book, args=(size, there))
        child.start()
        seconds, cpu, records, peak_mb = here.recv()
        child.join()
        print(
            f"{size:>9,} prompts, {records:,} records in {seconds:.1f} s ({cpu:.1f} CPU s): {size / seconds:,.0f} prompts, "
            f"{records / seconds:,.0f} records a second; peak {peak_mb:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["engine"]:
        compare_engine()
    elif sys.argv[1:2] == ["bookkeeping"]:
        measure_bookkeeping([int(size) for size in sys.argv[2:]] or [100_000, 1_000_000])
    else:
        sys.exit(__doc__)
