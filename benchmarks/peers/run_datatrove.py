"""The same work by datatrove 0.10.1's inference runner, with its checkpoints.

python run_datatrove.py BASE_URL PROMPTS.jsonl FOLDER MAX_TOKENS
"""

import json
import sys
import time
from pathlib import Path

from datasets import load_dataset
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.writers import JsonlWriter


async def roll_out(document, generate):
    """Ask once."""
    return await generate({"messages": [{"role": "user", "content": document.text}]})


def main(base_url: str, path: str, folder: str, max_tokens: int) -> None:
    """Time the call to the data set."""
    prompts = [json.loads(line)["prompt"] for line in Path(path).read_text().splitlines()]
    start = time.perf_counter()
    config = InferenceConfig(
        server_type="endpoint",
        endpoint_url=base_url.removesuffix("/v1"),
        model_name_or_path="smollm2",
        max_concurrent_generations=64,
        default_generation_params={"temperature": 0, "max_tokens": max_tokens},
    )
    runner = InferenceRunner(
        roll_out,
        config,
        JsonlWriter(f"{folder}/out", output_filename="${chunk_index}_${rank}.jsonl", compression=None),
        checkpoints_local_dir=f"{folder}/checkpoints",
        records_per_chunk=500,
    )
    documents = [Document(text=prompt, id=str(number)) for number, prompt in enumerate(prompts)]
    LocalPipelineExecutor([documents, runner], logging_dir=f"{folder}/logs").run()
    files = [str(item) for item in Path(folder, "out").glob("*.jsonl")]
    rows = load_dataset("json", data_files=files, split="train", cache_dir=f"{folder}/cache")
    print(json.dumps({"seconds": time.perf_counter() - start, "rows": len(rows)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
