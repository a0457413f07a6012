"""Many requests at once: the same bits as alone, fair turns, nothing left behind, no harm done."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest

from apr_core.errors import AprError
from apr_core.generate.sampling import SamplingParams
from apr_serve.engine.engine import Engine
from apr_serve.engine.interface import Busy, EngineRequest
from tests.engine.engine_rig import (
    ENDLESS,
    Client,
    ask,
    assert_nothing_left,
    by_hand,
    chat,
    random_ids,
    running,
)

pytestmark = pytest.mark.needs_plugins


def prompts(model):
    """Prompts that share beginnings, of lengths that cross boundaries and chunks."""
    system = "s" * 90
    return [
        chat(model, system, "a" * 30, "b" * 70),
        chat(model, system, "a" * 30, "c" * 7),
        chat(model, system),
        chat(model, "x" * 600),
        random_ids(3, seed=1),
        random_ids(64, seed=2),
        random_ids(520, seed=3),
        random_ids(700, seed=3),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_any_mix_gives_each_request_what_it_gets_alone(model, seed):
    asked = prompts(model)
    alone = [model.generate(ids, params=SamplingParams(), max_tokens=16) for ids in asked]
    rng = random.Random(seed)
    engine = Engine(model, slots=3, memory_bytes=(8, 64, 24)[seed] << 20, queue_limit=100)
    clients, given_up = [], []
    try:
        for _ in range(30):
            i = rng.randrange(len(asked))
            client = Client(
                engine,
                asked[i],
                max_tokens=16,
                n=rng.choice([1, 1, 2]),
                use_cache=rng.random() < 0.8,
                tenant=rng.choice("ab"),
            )
            if rng.random() < 0.25:
                given_up.append(client)
                threading.Timer(rng.random() / 4, client.ticket.cancel).start()
            else:
                clients.append((client, i))
            time.sleep(rng.random() / 30)
        for client, i in clients:
            for index in range(client.request.n):
                assert client.ids(index) == alone[i].ids, (seed, i, index)
                assert client.last(index).finish_reason == alone[i].finish_reason
        for client in given_up:
            assert client.last().finish_reason in ("cancelled", "length", "stop")
        assert_nothing_left(engine)
        stats = engine.stats()
        assert stats.cancelled + stats.finished == 30 and stats.failed == 0
        assert stats.cache_bytes + stats.reserved_bytes <= stats.memory_limit
    finally:
        engine.close()
    assert model.state_bytes() == 0


def test_sampled_answers_are_those_of_their_seeds_in_any_company(model, engine):
    params = [SamplingParams(temperature=1.5, top_k=20, seed=s) for s in range(8)]
    alone = [model.generate(random_ids(20), params=p, max_tokens=12).ids for p in params]
    clients = [Client(engine, random_ids(20), p, max_tokens=12) for p in params]
    assert [client.ids() for client in clients] == alone


def test_a_cancelled_answer_ends_within_one_step_and_tells_what_it_had(engine):
    at = {}

    def stop_at_five(client):
        if len([i for d in client.deltas for i in d.ids]) >= 5 and "steps" not in at:
            at["steps"] = engine.stats().steps
            client.ticket.cancel()

    client = Client(engine, random_ids(10), max_tokens=900, on_delta=stop_at_five, **ENDLESS)
    last = client.last()
    assert (last.finish_reason, last.ended_by) == ("cancelled", "cancelled")
    assert engine.stats().steps <= at["steps"] + 1
    assert last.usage.completion_tokens == len(client.ids())
    assert engine.stats().cancelled == 1


def test_cancelling_a_prefill_frees_it_between_slices(model, engine_by_hand):
    """The first slice of the forward cancels; the forward of 512 tokens does not go on."""
    slices, original = [], model.forward_slices

    def watched(parts, hidden=False):
        rows = original(parts, hidden)
        while True:
            try:
                next(rows)
            except StopIteration as end:
                return end.value
            slices.append(len(parts))
            client.ticket.cancel()
            yield

    model.forward_slices = watched
    try:
        client = Client(engine_by_hand, random_ids(600), max_tokens=5)
        assert client.last().finish_reason == "cancelled"
        assert len(slices) == 1
    finally:
        del model.forward_slices


def test_one_of_two_prompts_in_a_forward_can_be_cancelled(model, engine_by_hand):
    original = model.forward_slices

    def watched(parts, hidden=False):
        rows = original(parts, hidden)
        assert len(parts) == 2
        clients[0].ticket.cancel()
        return (yield from rows)

    alone = model.generate(random_ids(90, seed=5), params=SamplingParams(), max_tokens=6).ids
    clients = [
        Client(engine_by_hand, random_ids(90, seed=4), max_tokens=6, tenant="a"),
        Client(engine_by_hand, random_ids(90, seed=5), max_tokens=6, tenant="b"),
    ]
    model.forward_slices = watched
    try:
        assert clients[1].ids() == alone
        assert clients[0].last().finish_reason == "cancelled"
    finally:
        del model.forward_slices


def test_what_waits_can_be_cancelled(model):
    with running(model, by_hand, slots=1) as engine:
        first = Client(engine, random_ids(10), max_tokens=900, **ENDLESS)
        waiting = Client(engine, random_ids(10), max_tokens=5, n=1)
        waiting.ticket.cancel()
        assert waiting.last().finish_reason == "cancelled"
        assert waiting.last().usage.completion_tokens == 0
        first.ticket.cancel()
        first.wait()


def test_tenants_take_turns_however_many_requests_they_have(model):
    ended = []
    with running(model, by_hand, slots=1) as engine:
        clients = [
            Client(
                engine,
                random_ids(5),
                max_tokens=2,
                tenant=tenant,
                on_delta=lambda c: ended.append(c.request.tenant) if c.deltas[-1].usage else None,
                **ENDLESS,
            )
            for tenant in ["greedy"] * 6 + ["modest"] * 2
        ]
        for client in clients:
            client.wait()
    assert ended[:4] == ["greedy", "modest", "greedy", "modest"] and len(ended) == 8


def test_a_short_prompt_is_not_stuck_behind_a_long_one(model, engine_by_hand):
    order, original = [], model.forward_slices

    def watched(parts, hidden=False):
        order.append([len(ids) for _, ids in parts])
        return (yield from original(parts, hidden))

    clients = [
        Client(engine_by_hand, random_ids(length), max_tokens=1, tenant=tenant)
        for length, tenant in ((1000, "long"), (20, "short"))
    ]
    model.forward_slices = watched
    try:
        for client in clients:
            client.wait()
    finally:
        del model.forward_slices
    assert order[0] == [20, 448]


def test_a_full_queue_is_busy(model):
    with running(model, by_hand, slots=1, queue_limit=2) as engine:
        first = Client(engine, random_ids(10), max_tokens=900, **ENDLESS)
        while not engine.stats().running:
            engine.turn()
        waiting = [Client(engine, random_ids(4), max_tokens=1) for _ in range(2)]
        assert engine.stats().queued == 2
        with pytest.raises(Busy, match="2 requests are waiting"):
            ask(engine, random_ids(4))
        for tenant in "ab":  # nobody's crowd keeps everybody else out
            waiting.append(Client(engine, random_ids(4), max_tokens=1, tenant=tenant))
            with pytest.raises(Busy):
                Client(engine, random_ids(4), max_tokens=1, tenant=tenant)
        with pytest.raises(Busy, match="4 requests are waiting"):  # but not without end
            Client(engine, random_ids(4), max_tokens=1, tenant="c")
        first.ticket.cancel()
        for client in waiting:
            client.wait()


def test_memory_admits_one_after_the_other_and_the_cache_gives_way(model):
    each, most = model.sequence_bytes(700), []
    with running(model, by_hand, slots=4, memory_bytes=each + each // 2) as engine:
        clients = [
            Client(
                engine,
                random_ids(680, seed=i),
                max_tokens=20,
                **ENDLESS,
                on_delta=lambda c: most.append(engine.stats()),
            )
            for i in range(4)
        ]
        for client in clients:
            client.wait()
    assert max(s.running + s.prefilling for s in most) == 1
    assert all(s.reserved_bytes + s.cache_bytes <= s.memory_limit for s in most)
    assert all(s.memory_bytes <= s.reserved_bytes for s in most)


def test_reserved_bytes_are_what_a_sequence_grows_to(model):
    for length in (1, 256, 257, 700, 1024):
        slot = model.new_slot()
        model.forward([(slot, random_ids(length))])
        assert model.state_bytes() == model.sequence_bytes(length)
        model.free_slot(slot)


class Failing:
    """Raises where it is told to."""

    complete = False

    def __init__(self, where):
        self.where = where

    def mask(self, scores):
        if self.where == "mask":
            raise RuntimeError("mask fails")
        return scores

    def accept(self, token):
        if self.where == "accept":
            raise RuntimeError("accept fails")


@pytest.mark.parametrize("where", ["mask", "accept"])
def test_a_failing_request_ends_with_its_error_and_harms_nobody(model, engine, where):
    alone = model.generate(random_ids(30), params=SamplingParams(), max_tokens=30).ids
    neighbour = Client(engine, random_ids(30), max_tokens=30)
    failing = ask(engine, random_ids(9), constraint=lambda: Failing(where), max_tokens=9)
    last = failing.last()
    assert (last.finish_reason, last.ended_by) == ("error", "error")
    assert str(last.error) == f"{where} fails"
    assert neighbour.ids() == alone
    assert engine.stats().failed == 1


def test_a_caller_who_cannot_be_told_is_dropped(model, engine_by_hand):
    def broken(deltas):
        raise OSError("gone")

    engine = engine_by_hand
    alone = model.generate(random_ids(30), params=SamplingParams(), max_tokens=30).ids
    engine.submit(EngineRequest(random_ids(10), max_tokens=900, **ENDLESS), broken)
    assert ask(engine, random_ids(30), max_tokens=30).ids() == alone
    while engine.turn():
        pass
    assert engine.stats().failed == 1 and engine.stats().steps < 200


def test_logits_that_are_not_finite_fail_their_row_only(model, engine_by_hand):
    engine = engine_by_hand
    original = model.forward_last

    def poisoned(parts):
        logits = original(parts)
        if len(parts) == 2:
            logits.download()[0] = np.nan
        return logits

    alone = model.generate(random_ids(30), params=SamplingParams(), max_tokens=60).ids
    model.forward_last = poisoned
    try:
        first = Client(engine, random_ids(9), max_tokens=900, **ENDLESS)
        while not engine.stats().running:
            engine.turn()
        second = Client(engine, random_ids(30), max_tokens=60)
        assert second.ids() == alone
        assert isinstance(first.last().error, AprError)
        assert "not finite" in str(first.last().error)
    finally:
        del model.forward_last


@pytest.mark.parametrize("method", ["forward_last", "forward_slices"])
def test_a_forward_that_fails_ends_its_requests_and_the_engine_goes_on(model, engine, method):
    def fails(*args, **options):
        raise MemoryError("no memory for activations")

    setattr(model, method, fails)
    try:
        client = ask(engine, random_ids(9), max_tokens=4)
        assert client.last().finish_reason == "error"
        assert "no memory for activations" in str(client.last().error)
    finally:
        delattr(model, method)
    assert_nothing_left(engine)
    assert ask(engine, random_ids(9), max_tokens=4).last().finish_reason == "length"


def test_draining_lets_what_was_taken_finish_and_takes_no_more(model):
    engine = Engine(model, slots=2)
    clients = [Client(engine, random_ids(10), max_tokens=20, **ENDLESS) for _ in range(6)]
    assert engine.drain(60)
    assert all(len(client.ids()) == 20 for client in clients)
    with pytest.raises(Busy, match="stopping"):
        ask(engine, random_ids(4))
    engine.close()
    assert_nothing_left(engine)


def test_what_does_not_finish_in_time_is_cancelled(model):
    engine = Engine(model, slots=2)
    clients = [Client(engine, random_ids(10), max_tokens=1000, **ENDLESS) for _ in range(4)]
    assert not engine.drain(0.05)
    assert {client.last().finish_reason for client in clients} == {"cancelled"}
    engine.close()
    assert_nothing_left(engine)


def test_closing_cancels_everything(model):
    engine = Engine(model, slots=2)
    clients = [Client(engine, random_ids(400), max_tokens=500, **ENDLESS) for _ in range(5)]
    engine.close()
    assert {client.last().finish_reason for client in clients} == {"cancelled"}
    assert_nothing_left(engine)
    assert engine.stats().cache_bytes == 0
    engine.close()
