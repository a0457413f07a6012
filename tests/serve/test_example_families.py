"""Families in an engine: windows, other norms and an own decoder change nothing for it."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from pathlib import Path

import httpx
import numpy as np
import pytest

pytest.importorskip("apr_backend_cpu", reason="the backend")
pytest.importorskip("apr_gemma3", reason="one of them")

from apr_core import load
from apr_core.declarations import HOOKS
from apr_core.discovery import PluginRow
from apr_core.generate.sampling import SamplingParams
from apr_core.registry import Registry, get_registry
from apr_devkit.tiny import tiny_apr
from apr_serve.chat.service import ChatService
from apr_serve.http.app import create_app
from apr_serve.http.options import ServerOptions
from tests.engine.engine_rig import ENDLESS, Client, random_ids, running

EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"
FAMILIES = {"gemma3": "", "unet_demo": "apr_decoder_unet"}  # and the example it is in
GREEDY = SamplingParams(temperature=0.0)
TOKENS = 40  # beyond the window of Gemma's tiny model


def registry_with(package):
    """What is installed, and an example beside it."""
    if not package:
        return get_registry()
    source = str(EXAMPLES / package / "src")
    if source not in sys.path:
        sys.path.append(source)
    hooks = vars(import_module(f"{package}.hooks"))
    declared = [each for name in HOOKS if name in hooks for each in hooks[name]()]
    row = PluginRow(
        package.replace("_", "-"), "0", package, f"{package}.hooks", declarations=tuple(declared)
    )
    return Registry([*get_registry().plugins, row])


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    registry = registry_with(FAMILIES[request.param])
    path = tiny_apr(request.param, tmp_path_factory.mktemp("example"), "q8_0", registry=registry)
    with load(path, "cpu", threads=1, registry=registry) as model:
        yield model


def alone(model, ids):
    """Greedy tokens, one forward after the other: no engine, no chunks."""
    slot, tokens = model.new_slot(), []
    logits = model.forward([(slot, ids)])
    while len(tokens) < TOKENS:
        tokens.append(int(np.argmax(logits[0, : model.tokenizer.valid_size])))
        logits = model.forward([(slot, tokens[-1:])])
    model.free_slot(slot)
    return tokens


def test_answers_in_a_crowd_are_those_of_each_alone(model):
    prompts = [random_ids(count, seed) for seed, count in enumerate((3, 70, 150, 24, 25, 1))]
    prompts.append([*prompts[2], *random_ids(9, 7)])  # a prefix of it may be in the cache
    expected = [alone(model, ids) for ids in prompts]
    with running(model, slots=4, memory_bytes=256 << 20) as engine:
        for _ in range(2):  # the second time from the prefix cache
            clients = [Client(engine, ids, GREEDY, max_tokens=TOKENS, **ENDLESS) for ids in prompts]
            assert [client.ids() for client in clients] == expected


def test_a_chat_is_answered_over_http(model):
    async def ask(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://apr") as client:
            body = {
                "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0,
            }  # fmt: skip
            answer = await client.post("/v1/chat/completions", json=body)
        return answer.json()

    with running(model, slots=2, memory_bytes=256 << 20) as engine:
        app = create_app({"tiny": ChatService(model, engine, "tiny")}, ServerOptions())
        answer = asyncio.run(ask(app))
    assert answer["usage"]["completion_tokens"] >= 1, answer
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
