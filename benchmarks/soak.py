"""Many streaming clients on one server for minutes: nothing lost, nothing crossed, nothing leaked.

    python -m benchmarks.soak [--clients 64] [--seconds 180] [--slots 16]

Every client asks for greedy answers, one after the other; one request in four is left in the middle
of its stream. Each answer must be what the same request gave alone, before, on the same server;
what was heard of one that was left must be how it began. At the end the server must hold no slot
and no byte of a sequence, have failed nobody, and answer as before. Ends with 1 if anything is
wrong.
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
from tests.serve import serving

QUIET = ("apr_running", "apr_prefilling", "apr_queue_length", "apr_state_bytes",
         "apr_reserved_bytes")  # fmt: skip
SETTLE_S = 10.0
LEAST = 2  # requests of a client, however short the time


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
    requests = []
    for _ in range(count):
        messages = [{"role": "user", "content": f"{rng.randrange(50)}+{rng.randrange(50)}="}]
        for _ in range(rng.choice((0, 0, 1, 4))):
            past = f"{rng.randrange(50)}+{rng.randrange(50)}="
            answer = {"role": "assistant", "content": str(rng.randrange(99))}
            messages = [{"role": "user", "content": past}, answer, *messages]
        requests.append({
            "model": "sums", "messages": messages, "temperature": 0,
            "max_tokens": rng.choice((4, 16, 48)), "stream": True, "presence_penalty": 1.5,
            "logit_bias": {str(id_): -100 for id_ in stops},
        })  # fmt: skip
    return requests


async def ask(
    client: httpx.AsyncClient, body: dict[str, object], leave_after: int | None, tally: Tally
) -> tuple[str, bool]:
    """What was heard of an answer, and whether it was left after that many chunks of it."""
    text, started, chunks = "", time.perf_counter(), 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            piece = _piece(line)
            if not piece:
                continue
            if not chunks:
                tally.first_s.append(time.perf_counter() - started)
            text, chunks = text + piece, chunks + 1
            if leave_after is not None and chunks >= leave_after:
                return text, True
    tally.tokens += chunks
    return text, False


def _piece(line: str) -> str:
    """What a line of the stream adds. Raises RuntimeError for an error event."""
    if not line.startswith("data: {"):
        return ""
    event = json.loads(line.removeprefix("data: "))
    if "error" in event:
        raise RuntimeError(str(event["error"]))
    return (event["choices"][0]["delta"].get("content") or "") if event["choices"] else ""


async def one_client(
    number: int,
    client: httpx.AsyncClient,
    requests: Sequence[dict[str, object]],
    alone: Sequence[str],
    until: float,
    tally: Tally,
) -> None:
    """Ask until the time is over, a few times at least."""
    rng, asked = random.Random(number), 0
    while time.monotonic() < until or asked < LEAST:
        asked += 1
        at = rng.randrange(len(requests))
        leave = rng.randrange(1, 4) if rng.random() < 0.25 else None
        try:
            text, left = await ask(client, requests[at], leave, tally)
        except (httpx.HTTPError, RuntimeError) as error:
            tally.wrong.append(f"request {at}: {error!r}")
            continue
        if not (alone[at].startswith(text) if left else text == alone[at]):
            tally.wrong.append(f"request {at}: {text!r}, alone {alone[at]!r}")
        elif left:
            tally.left += 1
        else:
            tally.complete += 1


async def soak(
    url: str, clients: int, seconds: float, requests: Sequence[dict[str, object]]
) -> Tally:
    """All clients at once, after each request was asked alone; one of them again in the end."""
    tally = Tally()
    limits = httpx.Limits(max_connections=clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        alone = [(await ask(client, body, None, Tally()))[0] for body in requests]
        until = time.monotonic() + seconds
        await asyncio.gather(
            *(one_client(i, client, requests, alone, until, tally) for i in range(clients))
        )
        again, _ = await ask(client, requests[0], None, Tally())
    if again != alone[0]:
        tally.wrong.append(f"afterwards: {again!r}, before {alone[0]!r}")
    return tally


def figures(running: serving.Running) -> dict[str, float]:
    """The server's gauges that must be 0 when nobody asks anything."""
    return {name: running.metric(name) for name in QUIET}


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
        failed, cancelled = (
            running.metric(f"apr_answers_{how}_total") for how in ("failed", "cancelled")
        )
    if failed or cancelled > tally.left:
        tally.wrong.append(f"{failed:g} failed, {cancelled:g} cancelled of {tally.left} left")
    print(
        f"{options.clients} clients, {options.seconds:g} s, {options.slots} slots: "
        f"{tally.complete} answers as alone, {tally.left} left in their midst, "
        f"{len(tally.wrong)} wrong; {tally.tokens / options.seconds:.0f} chunks/s, "
        f"first after {statistics.median(tally.first_s):.2f} s (median)"
    )
    print(f"held afterwards: {held or 'nothing'}")
    for line in tally.wrong[:10]:
        print(line)
    enough = tally.complete > options.clients and tally.left > 0
    return 0 if enough and not tally.wrong and not held else 1


if __name__ == "__main__":
    sys.exit(main())
