"""A bare asynchronous client, 64 requests in flight, then a data set: what a framework is measured against.

python bare.py BASE_URL PROMPTS.jsonl FOLDER MAX_TOKENS
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from datasets import Dataset
from openai import AsyncOpenAI


async def answer(base_url: str, prompts: list[str], max_tokens: int) -> list[str]:
    """Ask all prompts; keep nothing on disk."""
    client = AsyncOpenAI(base_url=base_url, api_key="none")
    gate = asyncio.Semaphore(64)

    async def ask(prompt: str) -> str:
        async with gate:
            reply = await client.chat.completions.create(
                model="smollm2", messages=[{"role": "user", "content": prompt}], max_tokens=max_tokens, temperature=0
            )
        return reply.choices[0].message.content or ""

    return list(await asyncio.gather(*map(ask, prompts)))


def main(base_url: str, path: str, max_tokens: int) -> None:
    """Time the call to the data set."""
    prompts = [json.loads(line)["prompt"] for line in Path(path).read_text().splitlines()]
    start = time.perf_counter()
    answers = asyncio.run(answer(base_url, prompts, max_tokens))
    rows = Dataset.from_list([{"prompt": one, "answer": two} for one, two in zip(prompts, answers, strict=True)])
    print(json.dumps({"seconds": time.perf_counter() - start, "rows": len(rows)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[4]))
