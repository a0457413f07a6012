"""What goes wrong in one request stays there: panics, bad ids, no memory, floods, endless chats.

And how much memory there is: what a container or a unit of systemd leaves.
"""

from __future__ import annotations

import itertools
import sys

import pytest

from apr_core.errors import AprError, UsageError
from apr_core.generate.boundaries import CHUNK, GRID
from apr_core.generate.sampling import SamplingParams
from apr_serve.engine.groups import GenerationGroup
from apr_serve.engine.interface import EngineRequest
from apr_serve.engine.memory import _groups, available
from apr_serve.engine.prefill import take_turns
from apr_serve.engine.prefix_cache import PrefixCache
from apr_serve.engine.shared_prefixes import readers
from tests.engine.engine_rig import Client, ask, assert_nothing_left, by_hand, random_ids, running

pytestmark = pytest.mark.needs_plugins


class Panic(BaseException):
    """As native code raises: no Exception."""


class Panicking:
    """A constraint whose native code panics."""

    complete = False

    def mask(self, scores):
        raise Panic("unreachable code was reached")

    def accept(self, token):
        raise AssertionError("nothing was chosen")


def test_a_panic_of_native_code_ends_its_answer_only(model, engine):
    alone = model.generate(random_ids(30), params=SamplingParams(), max_tokens=30).ids
    neighbour = Client(engine, random_ids(30), max_tokens=30)
    last = ask(engine, random_ids(9), constraint=Panicking).last()
    assert last.finish_reason == "error" and isinstance(last.error, AprError)
    assert str(last.error) == "Panic: unreachable code was reached"
    assert neighbour.ids() == alone
    assert ask(engine, random_ids(30), max_tokens=30).ids() == alone


def test_a_caller_who_panics_is_dropped(engine):
    def broken(deltas):
        raise Panic("gone")

    engine.submit(EngineRequest(random_ids(10), max_tokens=900), broken)
    assert ask(engine, random_ids(30), max_tokens=3).last().finish_reason == "length"


def test_ids_that_cannot_be_embedded_are_refused_before_they_meet_others(engine):
    with pytest.raises(UsageError, match="512 is outside the vocabulary of 512"):
        engine.embed([5, 512], lambda result: None)


@pytest.mark.parametrize("method", ["restore", "snapshot"])
def test_answers_that_cannot_be_forked_leave_no_slot(model, engine, method):
    def fails(*args):
        raise MemoryError("no memory for a copy")

    setattr(model, method, fails)
    try:
        client = ask(engine, random_ids(9), max_tokens=4, n=3, use_cache=False)
    finally:
        delattr(model, method)
    assert {client.last(i).finish_reason for i in range(3)} == {"error"}
    assert_nothing_left(engine)


def test_a_slot_that_cannot_be_opened_leaves_no_state(model):
    last = model._states[-1]

    def fails(slot):
        raise MemoryError("no memory for a layer")

    last.open = fails
    try:
        with pytest.raises(MemoryError):
            model.new_slot()
    finally:
        del last.open
    assert model.state_bytes() == 0
    model.free_slot(model.new_slot())


@pytest.mark.parametrize("token_budget", [GRID, CHUNK])
@pytest.mark.parametrize("tenants", [1, 5])
def test_a_long_prompt_is_read_however_many_short_ones_come(token_budget, tenants):
    """Whenever one has been read, the next has come."""
    number = itertools.count()

    def group(length, tenant):
        request = EngineRequest(random_ids(length), tenant=tenant)
        return GenerationGroup(request, print, print, 1, "max_tokens")

    long, waited = group(2000, "long"), 0
    groups = [long]
    while long in groups:
        while len(groups) < 8:
            groups.append(group(60, f"short {next(number) % tenants}"))
        chunks = take_turns(groups, token_budget, readers(groups))
        waited = 0 if long in dict(chunks) else waited + 1
        assert waited < len(groups)
        assert len(chunks) > 1 or token_budget == GRID, (
            "where the budget allows, short ones share it"
        )
        for read, stop in chunks:
            read.position = stop
        groups = [each for each in groups if not each.done]


def test_a_chat_of_a_thousand_turns_is_answered_again(model, monkeypatch):
    header = tuple(model.tokenizer.encode("<|im_start|>", allow_special=True))
    ids = [*header, 65] * 1100
    monkeypatch.setattr(model, "max_len", 4096)
    with running(model, by_hand, slots=1, memory_bytes=1 << 30) as engine:
        monkeypatch.setattr(engine._boundaries, "answer", header)
        first = ask(engine, ids, max_tokens=2)
        again = ask(engine, ids, max_tokens=2)
        assert first.last().finish_reason == again.last().finish_reason == "length"
        assert again.last().usage.cached_tokens >= len(ids) - 3
        assert again.ids() == first.ids()


def test_thousands_of_kept_prefixes_do_not_keep_answers_waiting(model):
    cache = PrefixCache(model, lambda: 1 << 33)
    common, slot = random_ids(400), model.new_slot()
    model.forward([(slot, common + random_ids(100))])
    for i in range(3000):
        cache._root.pins += 1
        cache.unpin(cache.keep(cache._root, common + random_ids(100, seed=i), slot))
    model.free_slot(slot)
    slot, calls = model.new_slot(), itertools.count()
    sys.setprofile(lambda frame, event, _: next(calls) if event == "call" else None)
    try:
        node = cache.restore(common + [300] * 50, slot)
    finally:
        sys.setprofile(None)
    assert next(calls) < 300, "kept prefixes are looked up, not walked through"
    assert model.length(slot) == (400 if all(model.states_in_rows) else 0)
    cache.unpin(node)
    model.free_slot(slot)
    cache.clear()
    assert cache.nbytes == 0


VERSIONS = {
    2: ("0::", "", "memory.max", "memory.current", ""),
    1: ("7:cpu,memory:", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


class Groups:
    """Folders as the kernel shows them."""

    def __init__(self, folder, version):
        self.folder = folder
        self.line, base, self.limit, self.used, self.prefix = VERSIONS[version]
        self.base = folder / base

    def group(self, name, limit, used, file=0):
        place = self.base / name
        place.mkdir(parents=True, exist_ok=True)
        (place / self.limit).write_text(f"{limit}\n")
        (place / self.used).write_text(f"{used}\n")
        stat = {"anon": used, "active_file": file, "inactive_file": file}
        (place / "memory.stat").write_text(
            "".join(f"{self.prefix}{name} {value}\n" for name, value in stat.items())
        )

    def left(self, name):
        own = self.folder / "own"
        own.write_text(f"9:name=systemd:/x\n{self.line}/{name}\n")
        return min(_groups(own, self.folder))


@pytest.fixture(params=VERSIONS)
def groups(request, tmp_path):
    return Groups(tmp_path, request.param)


def test_the_limit_of_a_unit_counts(groups):
    groups.group("system.slice/apr.service", 1000, 300)
    assert groups.left("system.slice/apr.service") == 700


def test_the_narrowest_of_the_groups_around_counts(groups):
    groups.group("a", 500, 450)
    groups.group("a/b", 1000, 300)
    groups.group("a/b/c", "max", 10)
    assert groups.left("a/b/c") == 50


def test_pages_of_files_are_free_as_the_weights_are_counted_apart(groups):
    groups.group("a", 1000, 900, file=300)
    assert groups.left("a") == 700


def test_no_limit_and_no_groups(groups):
    assert groups.left("gone") == sys.maxsize
    assert min(_groups(groups.folder / "nothing", groups.folder)) == sys.maxsize
    assert 0 < available() < sys.maxsize
