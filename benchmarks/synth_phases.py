"""Generation and judging that overlap, against one after the other: wall time of `synth` with two servers.

    python benchmarks/synth_phases.py

Two vLLM servers with the embedded model, each on a core of its own: one writes two answers to each of 128 prompts, the other
marks them by a JSON schema. Overlapping is one run. Strict phases are two: the first asks for the answers alone, the second
finds them kept and asks for the marks. Both write the same records: asserted. 6 rounds, the first warms up, the order turns.
"""

import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE / "peers"), *(folder for folder in sys.path if folder != str(HERE))]

ROUNDS = 6
PROMPTS = 128


def synthesise(address: str, judge: str, folder: Path, *, marks: bool) -> bytes:
    """Write answers, and marks where they are wanted; return what was scored."""
    from decode.engines.openai_api import OpenaiApi
    from decode.speaker import Role
    from eval.scorers.judge import Judge
    from eval.scorers.verifiable import Verifiable
    from eval.tasks.constraints import Constraints
    from synth.recipes.best_of_n import BestOfN
    from synth.synthesize import Synthesize

    job = Synthesize(
        task=Constraints(count=PROMPTS),
        model="smollm2",
        engine=OpenaiApi(base_url=address),
        roles={"judge": Role(model="smollm2", engine=OpenaiApi(base_url=judge))} if marks else {},
        recipe=BestOfN(n=2, max_new_tokens=48, margin=0.01),
        scorer=Judge(explain=False, max_new_tokens=16) if marks else Verifiable(),
    )
    return job.run(folder, quiet=True).path("scores.jsonl").read_bytes()


def time_both(address: str, judge: str, folder: Path, *, strict_first: bool) -> dict[str, float]:
    """Time both ways, with an empty cache of answers each."""
    took: dict[str, float] = {}
    made: dict[str, bytes] = {}
    for way in ("strict", "overlapping") if strict_first else ("overlapping", "strict"):
        os.environ["COUNTERFOIL_ANSWERS"] = str(folder / f"{way}.sqlite")
        start = time.perf_counter()
        if way == "strict":
            synthesise(address, judge, folder / "answers", marks=False)
        made[way] = synthesise(address, judge, folder / way, marks=True)
        took[way] = time.perf_counter() - start
    assert sorted(made["strict"].splitlines()) == sorted(made["overlapping"].splitlines())
    return took


def main() -> None:
    """Start two servers, take turns."""
    from synth_server import serve

    cores = sorted(os.sched_getaffinity(0))[:2]
    with ExitStack() as stack:
        address, judge = (stack.enter_context(serve("server", cores=(core,))) for core in cores)
        rows: list[dict[str, float]] = []
        for number in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(time_both(address, judge, Path(folder), strict_first=bool(number % 2)))
    for way in ("strict", "overlapping"):
        own = [row[way] for row in rows[1:]]
        print(f"{way:12s} {statistics.median(own):.2f} s ({min(own):.2f} to {max(own):.2f})")
    ratios = [row["strict"] / row["overlapping"] for row in rows[1:]]
    print(f"strict / overlapping {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
