"""Many streaming clients on one server for minutes: nothing lost, nothing crossed, nothing leaked.

    python -m benchmarks.soak [--clients 64] [--seconds 180] [--slots 16]

Every client asks for greedy answers, one after the other; one request in four is left in the middle
of its stream. Each answer must be what the same request gave alone, before, on the same server, and
at the end the server must hold no slot and no byte of a sequence. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from apr_core import load
from tests import serving

QUIET = ("apr_running", "apr_prefilling", "apr_queue_length", "apr_state_bytes",
         "apr_reserved_bytes")  # fmt: skip
SETTLE_S = 10.0


@dataclass
class Tally:
    """What came of all requests."""

    complete: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    tokens: int = 0
    first_s: list[float] = field(default_factory=list)


def bodies(count: int, stops: Sequence[int]) -> list[dict[str, object]]:
    """Different greedy requests, with and without a history. `stops` are kept from ending them."""
    rng = random.Random(7)
    made = []
    for _ in range(count):
        messages = [{"role": "user", "content": f"{rng.randrange(50)}+{rng.randrange(50)}="}]
        for _ in range(rng.choice((0, 0, 1, 4))):
            past = f"{rng.randrange(50)}+{rng.randrange(50)}="
            answer = {"role": "assistant", "content": str(rng.randrange(99))}
            messages = [{"role": "user", "content": past}, answer, *messages]
        made.append({
            "model": "sums", "messages": messages, "temperature": 0,
            "max_tokens": rng.choice((4, 16, 48)), "stream": True, "presence_penalty": 1.5,
            "logit_bias": {str(id_): -100 for id_ in stops},
        })  # fmt: skip
    return made


async def ask(
    client: httpx.AsyncClient, body: dict[str, object], leave_after: int | None, tally: Tally
) -> str | None:
    """The text of an answer, None if it was left after that many chunks of it."""
    text, started, chunks = "", time.perf_counter(), 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            piece = event["choices"][0]["delta"].get("content") if event["choices"] else None
            if not piece:
                continue
            if not chunks:
                tally.first_s.append(time.perf_counter() - started)
            text, chunks = text + piece, chunks + 1
            if leave_after is not None and chunks >= leave_after:
                return None
    tally.tokens += chunks
    return text


async def one_client(
    number: int, client: httpx.AsyncClient, requests: Sequence[dict[str, object]],
    alone: Sequence[str | None], until: float, tally: Tally,
) -> None:  # fmt: skip
    """Ask until the time is over."""
    rng = random.Random(number)
    while time.monotonic() < until:
        at = rng.randrange(len(requests))
        leave = rng.randrange(1, 4) if rng.random() < 0.25 else None
        try:
            text = await ask(client, requests[at], leave, tally)
        except (httpx.HTTPError, RuntimeError) as error:
            tally.wrong.append(f"request {at}: {error!r}")
            continue
        if text is None:
            tally.left += 1
        elif text == alone[at]:
            tally.complete += 1
        else:
            tally.wrong.append(f"request {at}: {text!r}, alone {alone[at]!r}")


async def soak(
    url: str, clients: int, seconds: float, requests: Sequence[dict[str, object]]
) -> Tally:
    """All clients at once, after each request was asked alone."""
    tally = Tally()
    limits = httpx.Limits(max_connections=clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        alone = [await ask(client, body, None, Tally()) for body in requests]
        until = time.monotonic() + seconds
        await asyncio.gather(
            *(one_client(i, client, requests, alone, until, tally) for i in range(clients))
        )
    return tally


def figures(running: serving.Running) -> dict[str, float]:
    """The server's gauges that must be 0 when nobody asks anything."""
    lines = running.get("/metrics").text.splitlines()
    named = (line.rpartition(" ") for line in lines if line.startswith(QUIET))
    return {name: float(value) for name, _, value in named}


def settled(running: serving.Running) -> dict[str, float]:
    """The gauges once clients that left have been noticed; what is not 0."""
    until = time.monotonic() + SETTLE_S
    while True:
        held = {name: value for name, value in figures(running).items() if value}
        if not held or time.monotonic() > until:
            return held
        time.sleep(0.1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--requests", type=int, default=40, help="different ones")
    options = parser.parse_args(arguments)
    with load(serving.demo_model()) as model:
        stops = sorted({*model.tokenizer.stop_ids, *model.config.stop_ids})
    requests = bodies(options.requests, stops)
    with serving.serving("--slots", options.slots) as running:
        before = figures(running)
        assert before and not any(before.values()), before
        tally = asyncio.run(soak(running.url, options.clients, options.seconds, requests))
        held = settled(running)
    print(f"{options.clients} clients, {options.seconds:g} s, {options.slots} slots: "
          f"{tally.complete} answers as alone, {tally.left} left in their midst, "
          f"{len(tally.wrong)} wrong; {tally.tokens / options.seconds:.0f} chunks/s, "
          f"first after {statistics.median(tally.first_s):.2f} s (median)")  # fmt: skip
    print(f"held afterwards: {held or 'nothing'}")
    for line in tally.wrong[:10]:
        print(line)
    return 1 if tally.wrong or held or not tally.complete or not tally.left else 0


if __name__ == "__main__":
    sys.exit(main())
