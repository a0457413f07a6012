"""A server whose model says what a test wants, for the page: the message names the reply.

It has the real pages router, and an answer of its own to chat requests.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from types import SimpleNamespace

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Histogram

from apr_serve.engine.interface import EngineStats
from apr_serve.http.sse import EventStream
from apr_serve.page import routes as pages
from tests.page.scripted_replies import REPLIES

KEY = os.environ.get("SCRIPTED_KEY")
PAUSE = float(os.environ.get("SCRIPTED_PAUSE", "0.01"))  # seconds between tokens
registry = CollectorRegistry()
first_token = Histogram(
    "apr_time_to_first_token_seconds", "", ["model"], buckets=(0.1, 0.25, 0.5, 1), registry=registry
)
inter_token = Histogram(
    "apr_inter_token_latency_seconds", "", ["model"], buckets=(0.01, 0.02, 0.05), registry=registry
)
counts = {"running": 0, "prompt_tokens": 0, "cached_tokens": 0, "generated_tokens": 0}
seen: list[dict] = []  # requests, and "disconnected" where the client went away


class Engine:
    """What the status page asks an engine: `BUSY` makes it look like one at work."""

    def stats(self):
        return EngineStats(slots=8, memory_limit=4_000_000_000, finished=len(seen), **counts)


class BusyEngine:
    def stats(self):
        now = time.time()
        wave = 1 + math.sin(now / 9)
        total = now % 100_000
        return EngineStats(
            slots=8,
            running=round(2.4 * wave),
            prefilling=round(wave) % 2,
            queued=round(wave * 2) % 4,
            memory_bytes=int(6e8 * wave),
            reserved_bytes=1_900_000_000,
            memory_limit=4_000_000_000,
            cache_bytes=int(9e8 + 2e8 * math.sin(now / 23)),
            cache_entries=212,
            prompt_tokens=int(total * 640 + 1500 * math.sin(now / 7)),
            cached_tokens=int(total * 470 + 900 * math.sin(now / 7)),
            generated_tokens=int(total * 96 + 300 * math.sin(now / 5)),
            finished=412,
            cancelled=9,
            failed=1,
            steps=int(total * 40),
        )


busy = bool(os.environ.get("SCRIPTED_BUSY"))
app = FastAPI()
engine = BusyEngine() if busy else Engine()
app.include_router(pages.router({"demo": SimpleNamespace(engine=engine)}, registry))


@app.middleware("http")
async def key(request: Request, call_next):
    wanted = KEY and not pages.is_public(request.url.path)
    if wanted and request.headers.get("authorization") != f"Bearer {KEY}":
        return JSONResponse({"error": {"message": "This server wants an API key."}}, 401)
    return await call_next(request)


@app.get("/v1/models")
async def models():
    return {"object": "list", "data": [{"id": "demo", "object": "model"}]}


@app.get("/seen")
async def what_was_seen():
    return seen


@app.post("/v1/chat/completions")
async def chat(request: Request):
    body = await request.json()
    seen.append(body)
    last = body["messages"][-1]["content"]
    reply = REPLIES.get(last, {"text": f"You said: {last}"})
    if "status" in reply:
        return JSONResponse({"error": {"message": reply["text"]}}, reply["status"])
    return EventStream(stream(reply))


async def stream(reply):
    started = time.monotonic()
    counts["running"] += 1
    counts["prompt_tokens"] += 1310
    counts["cached_tokens"] += 1204
    try:
        await asyncio.sleep(PAUSE * 4)
        first_token.labels("demo").observe(time.monotonic() - started)
        sent = 0
        yield b": a comment, as proxies like it\n\n"
        for delta in deltas(reply):
            yield chunk({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            await asyncio.sleep(reply.get("pause", PAUSE))
            inter_token.labels("demo").observe(reply.get("pause", PAUSE))
            counts["generated_tokens"] += 1
            sent += 1
        if "dies" in reply:
            yield chunk({"error": {"message": reply["dies"], "type": "server_error"}})
            return
        reason = reply.get("reason", "tool_calls" if "calls" in reply else "stop")
        yield chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        usage = {
            "prompt_tokens": 1310, "completion_tokens": sent, "total_tokens": 1310 + sent,
            "prompt_tokens_details": {"cached_tokens": 1204},
        }  # fmt: skip
        yield chunk({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"
    except (asyncio.CancelledError, GeneratorExit):  # while it waits, or while a piece is sent
        seen.append({"disconnected": True})
        raise
    finally:
        counts["running"] -= 1


def deltas(reply):
    yield {"role": "assistant"}
    for piece in pieces(reply.get("reasoning", "")):
        yield {"reasoning_content": piece}
    for piece in pieces(reply.get("text", "")):
        yield {"content": piece}
    for index, (name, arguments) in enumerate(reply.get("calls", [])):
        head = {"index": index, "id": f"call_{index}", "type": "function"}
        yield {"tool_calls": [{**head, "function": {"name": name, "arguments": ""}}]}
        for piece in pieces(arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def pieces(text):
    """As tokens fall: never where Markdown would like it."""
    return [text[at : at + 4] for at in range(0, len(text), 4)]


def chunk(data):
    whole = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "demo", **data}
    return f"data: {json.dumps(whole)}\n\n".encode()
