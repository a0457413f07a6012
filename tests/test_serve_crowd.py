"""Many clients at once: nobody gets what is another's, and who leaves leaves nothing behind.

$APR_CROWD_S sets for how many seconds (default 8).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time

import httpx
import pytest

from tests.serving import serving

pytestmark = pytest.mark.needs_plugins

CHAT = "/v1/chat/completions"
CLIENTS = 64
SECONDS = float(os.environ.get("APR_CROWD_S", "8"))
LEAVING = 0.25  # of all requests
QUESTIONS = [f"What is {a}+{b}?" for a in range(6) for b in range(6)] + ["Hello", "Who are you?"]


def body(question):
    message = {"role": "user", "content": question}
    return {"messages": [message], "stream": True, "max_tokens": 40, "temperature": 0}


def text(line):
    """What a line of the stream adds. An error event is a failure."""
    if not line.startswith("data: {"):
        return ""
    event = json.loads(line.removeprefix("data: "))
    assert "error" not in event, event
    return event["choices"][0]["delta"].get("content") or ""


def alone(server, question):
    return "".join(map(text, server.post(CHAT, body(question)).text.splitlines()))


async def client(http, number, expected, until, counts):
    """Ask until the time is up; every fourth time leave after a few words."""
    chance = random.Random(number)
    while time.monotonic() < until:
        question = chance.choice(QUESTIONS)
        leaves = chance.random() < LEAVING
        heard = ""
        async with http.stream("POST", CHAT, json=body(question)) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                heard += text(line)
                if leaves and heard:
                    break
        assert leaves or heard == expected[question], (question, heard)
        assert expected[question].startswith(heard)
        counts["left" if leaves else "whole"] += 1


async def crowd(server, expected, counts):
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
        until = time.monotonic() + SECONDS
        await asyncio.gather(*(client(http, i, expected, until, counts) for i in range(CLIENTS)))


def gauge(server, name):
    lines = server.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


def test_a_crowd_of_clients_hears_what_each_would_alone():
    counts = {"left": 0, "whole": 0}
    with serving("--slots", "16") as server:
        expected = {question: alone(server, question) for question in QUESTIONS}
        asyncio.run(crowd(server, expected, counts))
        deadline = time.monotonic() + 5
        held = ("apr_running", "apr_prefilling", "apr_queue_length", "apr_reserved_bytes",
                "apr_state_bytes")  # fmt: skip
        while any(left := {name: gauge(server, name) for name in held}.values()):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        assert gauge(server, "apr_answers_failed_total") == 0
        assert gauge(server, "apr_answers_cancelled_total") <= counts["left"]
        assert alone(server, "Hello") == expected["Hello"]
    assert counts["whole"] > CLIENTS and counts["left"] > 0, counts
    print(counts)
