"""The same work by distilabel 1.5.3 (with requests and beautifulsoup4, which it imports and does not name).

python run_distilabel.py BASE_URL PROMPTS.jsonl FOLDER MAX_TOKENS
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def main(base_url: str, path: str, folder: str, max_tokens: int) -> None:
    """Time the call to the data set."""
    rows = [{"instruction": json.loads(line)["prompt"]} for line in Path(path).read_text().splitlines()]
    start = time.perf_counter()
    with Pipeline(name="answers", cache_dir=folder) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=64)
        settings = {"temperature": 0.0, "max_new_tokens": max_tokens}
        model = OpenAILLM(model="smollm2", base_url=base_url, api_key="none", generation_kwargs=settings)
        load >> TextGeneration(llm=model, input_batch_size=64)
    found = pipeline.run(use_cache=False)["default"]["train"]
    print(json.dumps({"seconds": time.perf_counter() - start, "rows": len(found)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
