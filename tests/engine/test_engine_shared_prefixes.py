"""Prompts that begin alike and come together: read once, and nobody depends on who reads."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from apr_core.generate.sampling import SamplingParams
from tests.engine.engine_rig import Client, by_hand, random_ids, running

pytestmark = pytest.mark.needs_plugins

COMMON = random_ids(600, seed=4)  # cut at 256 and 512


class Read:
    """What forwards of prompts read: `parts` are their tokens. Some fail if a test says so."""

    def __init__(self, model):
        self.parts, self.fails = [], lambda ids: False
        self.between = lambda: None
        self._original = model.forward_slices

    def __call__(self, parts, hidden=False):
        self.parts += [len(ids) for _, ids in parts]
        if any(self.fails(ids) for _, ids in parts):
            raise MemoryError("no memory for this prompt")
        rows = self._original(parts, hidden)
        self.between()
        return (yield from rows)


@contextmanager
def watched(model, **options):
    """An engine that moves only while somebody waits: all that was asked before comes together."""
    read = Read(model)
    options = {"slots": 5, "snapshot_every": 256, "memory_bytes": 256 << 20} | options
    with running(model, by_hand, **options) as engine:
        model.forward_slices = read
        try:
            yield engine, read
        finally:
            del model.forward_slices


def alone(model, ids):
    return model.generate(ids, params=SamplingParams(), max_tokens=8).ids


def test_prompts_that_come_together_are_read_once(model):
    asked = [COMMON, COMMON, [*COMMON, 1, 2, 3], [*COMMON[:520], *random_ids(90)]]
    with watched(model) as (engine, read):
        clients = [
            Client(engine, ids, max_tokens=8, tenant=f"{i % 2}") for i, ids in enumerate(asked)
        ]
        assert [client.ids() for client in clients] == [alone(model, ids) for ids in asked]
        cached = [client.last().usage.cached_tokens for client in clients]
    assert cached[0] == 0 and min(cached[1:]) >= 512
    assert sum(read.parts) == sum(map(len, asked)) - sum(cached), "cached is what was not read"


def test_who_comes_while_it_is_read_waits_for_the_rest(model):
    later = []
    with watched(model) as (engine, read):

        def come():
            if not later:
                later.append(Client(engine, COMMON, max_tokens=8))

        read.between = come
        first = Client(engine, COMMON, max_tokens=8)
        assert first.ids() == later[0].ids() == alone(model, COMMON)
        assert later[0].last().usage.cached_tokens >= 512


def test_who_waits_goes_on_when_the_reader_is_cancelled(model):
    with watched(model) as (engine, read):
        first = Client(engine, COMMON, max_tokens=8)
        others = [Client(engine, COMMON, max_tokens=8) for _ in range(2)]
        read.between = lambda: len(read.parts) > 1 and first.ticket.cancel()
        assert [client.ids() for client in others] == [alone(model, COMMON)] * 2
        assert first.last().finish_reason == "cancelled"
    assert sum(read.parts) < 2 * len(COMMON), "what the first one left was taken over"


def test_who_waits_goes_on_when_the_reader_fails(model):
    with watched(model) as (engine, read):
        clients = [Client(engine, COMMON, max_tokens=8) for _ in range(3)]
        failures = iter([True])
        read.fails = lambda ids: next(failures, False)
        assert clients[0].last().finish_reason == "error"
        assert [client.ids() for client in clients[1:]] == [alone(model, COMMON)] * 2


@pytest.mark.parametrize("cache_bytes", [0, 5000])
def test_where_nothing_can_be_kept_everybody_reads(model, cache_bytes):
    with watched(model, cache_bytes=cache_bytes) as (engine, read):
        clients = [Client(engine, COMMON, max_tokens=8) for _ in range(3)]
        assert [client.ids() for client in clients] == [alone(model, COMMON)] * 3
        assert not any(client.last().usage.cached_tokens for client in clients)
    assert sum(read.parts) == 3 * len(COMMON)


def test_who_wants_no_cache_neither_waits_nor_is_waited_for(model):
    with watched(model) as (engine, read):
        clients = [Client(engine, COMMON, max_tokens=8, use_cache=False) for _ in range(2)]
        assert [client.ids() for client in clients] == [alone(model, COMMON)] * 2
    assert sum(read.parts) == 2 * len(COMMON)


def test_who_waits_gives_its_turns_to_the_reader(model):
    """A tenant with one prompt is not held up by the many of whom it waits for."""
    order = []
    with watched(model, slots=8) as (engine, _):

        def note(client):
            if client.deltas[-1].finish_reason:
                order.append(client.request.tenant)

        busy = [random_ids(700, seed=i) for i in range(5)]
        clients = [
            Client(engine, ids, max_tokens=1, tenant="many", on_delta=note, ignore_stop_tokens=True)
            for ids in [*busy, COMMON]
        ]
        clients.append(Client(engine, COMMON, max_tokens=1, tenant="one", on_delta=note))
        for client in clients:
            client.wait()
    assert "one" in order[:3], order
