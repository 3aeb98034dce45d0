"""The same work by bespokelabs-curator 0.1.31, through litellm.

python run_curator.py BASE_URL PROMPTS.jsonl FOLDER MAX_TOKENS
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"CURATOR_DISABLE_RICH_DISPLAY": "1", "TELEMETRY_ENABLED": "false", "HOSTED_VLLM_API_KEY": "none"}
os.environ["CURATOR_CACHE_DIR"] = sys.argv[3]

from bespokelabs import curator
from datasets import Dataset


class Answerer(curator.LLM):
    """One answer a row."""

    def prompt(self, row: dict) -> str:
        """Return what is asked."""
        return row["prompt"]

    def parse(self, row: dict, response: str) -> dict:
        """Return a row."""
        return {"prompt": row["prompt"], "answer": response}


def main(base_url: str, path: str, max_tokens: int) -> None:
    """Time the call to the data set."""
    rows = [{"prompt": json.loads(line)["prompt"]} for line in Path(path).read_text().splitlines()]
    start = time.perf_counter()
    answerer = Answerer(
        model_name="hosted_vllm/smollm2",
        backend="litellm",
        generation_params={"temperature": 0, "max_tokens": max_tokens},
        backend_params={
            "base_url": base_url, "max_concurrent_requests": 64, "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**9, "require_all_responses": False, "invalid_finish_reasons": [],
        },
    )  # fmt: skip
    found = answerer(Dataset.from_list(rows))
    found = getattr(found, "dataset", found)
    print(json.dumps({"seconds": time.perf_counter() - start, "rows": len(found)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[4]))
