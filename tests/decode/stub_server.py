"""A server that speaks OpenAI's protocol and computes nothing: it is quick, it refuses, or it queues, as it is told.

    python stub_server.py --latency-s 0.1 --limit 16 --refuse

It prints its port, and ends with the process that started it: when its standard input is closed. `GET /stats` has what it
counted: requests that were asked, refused, under way at most.
"""

import argparse
import asyncio
import json
import sys
import threading
from collections import Counter
from typing import Any

ANSWER = {"index": 0, "finish_reason": "stop", "message": {"content": "ok"}, "text": "ok"}
USAGE = {"prompt_tokens": 1, "completion_tokens": 1}


class Stub:
    """What it has been told, and what it counted."""

    def __init__(self, told: argparse.Namespace) -> None:
        self.told, self.counts, self.busy = told, Counter[str](), 0
        self.places = asyncio.Semaphore(told.limit)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what one connection asks, one after the other."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
                await reader.readexactly(int(lines.get("content-length", 0)))
                status, answer = await self.answer(head.split(" ")[1])
                body = json.dumps(answer).encode()
                more = f"retry-after: {self.told.retry_after}\r\n" if status == 429 and self.told.retry_after else ""
                writer.write(f"HTTP/1.1 {status} x\r\n{more}content-length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return a status and a body."""
        if path.endswith("/models"):
            return 200, {"data": [{"id": "stub"}]}
        if path.endswith("/stats"):
            return 200, dict(self.counts)
        self.counts["asked"] += 1
        if self.told.refuse and self.busy >= self.told.limit:
            self.counts["refused"] += 1
            return 429, {"error": {"message": "too many at a time"}}
        self.busy += 1
        self.counts["at most"] = max(self.counts["at most"], self.busy)
        try:
            async with self.places:
                await asyncio.sleep(self.told.latency_s)
        finally:
            self.busy -= 1
        return 200, {"choices": [ANSWER], "usage": USAGE}


async def serve(told: argparse.Namespace) -> None:
    """Serve until standard input ends."""
    server = await asyncio.start_server(Stub(told).connect, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)), daemon=True).start()
    await ended.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=10**6, help="how many it computes at a time")
    parser.add_argument("--refuse", action="store_true", help="answer 429 beyond the limit; else they wait")
    parser.add_argument("--retry-after", default="", help="the header that goes with a 429")
    asyncio.run(serve(parser.parse_args()))
