"""Counterfoil's synthesis on the same work: every answer durable as it lands, records with provenance, then a data set.

python ours.py BASE_URL PROMPTS.jsonl FOLDER MAX_TOKENS
"""

import json
import sys
import time
from pathlib import Path

from datasets import load_dataset
from one_answer import OneAnswer

from decode.engines.openai_api import OpenaiApi
from eval.tasks.file import File
from synth.synthesize import Synthesize


def main(base_url: str, path: str, folder: str, max_tokens: int) -> None:
    """Time the call to the data set."""
    start = time.perf_counter()
    job = Synthesize(
        task=File(path=Path(path)),
        engine=OpenaiApi(base_url=base_url),
        recipe=OneAnswer(max_new_tokens=max_tokens),
        filters=(),
    )
    done = job.run(Path(folder) / "run", quiet=True)
    rows = load_dataset("json", data_files=str(done.path("groups.jsonl")), split="train", cache_dir=f"{folder}/cache")
    print(json.dumps({"seconds": time.perf_counter() - start, "rows": len(rows)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
