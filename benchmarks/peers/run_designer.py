"""The same work by DataDesigner 0.9.7.

python run_designer.py BASE_URL PROMPTS.jsonl FOLDER MAX_TOKENS
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"NEMO_TELEMETRY_ENABLED": "false", "HF_HUB_OFFLINE": "1"}

import data_designer.config as dd
import pandas as pd
from data_designer.interface import DataDesigner


def main(base_url: str, path: str, folder: str, max_tokens: int) -> None:
    """Time the call to the data set."""
    prompts = [json.loads(line)["prompt"] for line in Path(path).read_text().splitlines()]
    start = time.perf_counter()
    designer = DataDesigner(
        artifact_path=folder, model_providers=[dd.ModelProvider(name="local", endpoint=base_url, api_key="none")]
    )
    settings = dd.ChatCompletionInferenceParams(temperature=0.0, max_tokens=max_tokens, max_parallel_requests=64)
    model = dd.ModelConfig(
        alias="main", model="smollm2", provider="local", inference_parameters=settings, skip_health_check=True
    )
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(dd.DataFrameSeedSource(df=pd.DataFrame({"asked": prompts})))
    builder.add_column(dd.LLMTextColumnConfig(name="answer", prompt="{{ asked }}", model_alias="main"))
    rows = designer.create(builder, num_records=len(prompts)).load_dataset()
    print(json.dumps({"seconds": time.perf_counter() - start, "rows": len(rows)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
