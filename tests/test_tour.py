"""docs/explanation/tour.md names what calls really pass through: a run and a request are traced."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from apr_core import cli, load
from tests.serve.serving import demo_model
from tests.tracing import traced

pytestmark = pytest.mark.needs_plugins

PAGE = Path(__file__).parents[1] / "docs/explanation/tour.md"
STOP = re.compile(r"^(\d+)\. `(apr_[\w.]+:[\w.<>]+)`: \S", re.MULTILINE)
SERVE, BACK, RUN = "From the socket", "And back", "From `apr run`"
HANDED_OVER = "apr_serve.engine.engine:Engine._enqueue"
TURN = "apr_serve.engine.engine:Engine.turn"
STEP = "apr_core.generate.sequence:decode_step"
TOKENS = 4  # the first step is recorded, the next ones are replayed


def stops(heading):
    """The stops of a section, in order."""
    (section,) = [s for s in PAGE.read_text().split("\n## ") if s.startswith(heading)]
    numbered = STOP.findall(section)
    assert [int(number) for number, _ in numbered] == list(range(1, len(numbered) + 1))
    assert section.count("\n1. ") == 1 and len(numbered) == len(re.findall(r"\n\d+\. ", section))
    return [name for _, name in numbered]


def first_unvisited(wanted, calls):
    """The first stop that is not called after those before it; None if all are."""
    remaining = iter(calls)
    return next((stop for stop in wanted if stop not in remaining), None)


def stack_of_a_step(trace, kernel):
    """What is on the stack when the kernel of a recorded step is called."""
    stacks = [stack for stack in trace.stacks[kernel] if STEP in stack]
    assert len(stacks) == TOKENS - 1, "a step is one call of machine code"
    return stacks[-1]


@pytest.fixture(scope="module")
def run():
    kernel = stops(RUN)[-1]
    asked = ["run", str(demo_model()), "--raw", "a b c d", "--backend", "cpu"]
    with traced({kernel}) as trace:
        assert cli.run([*asked, "--max-tokens", str(TOKENS)]) == 0
    return trace


@pytest.fixture(scope="module")
def request_():
    httpx = pytest.importorskip("httpx")
    from apr_serve.chat.service import ChatService
    from apr_serve.engine.engine import Engine
    from apr_serve.http.app import create_app
    from apr_serve.http.options import ServerOptions

    body = {
        "messages": [{"role": "user", "content": "12+30="}], "stream": True,
        "max_tokens": TOKENS, "ignore_eos": True,
    }  # fmt: skip

    async def ask(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://apr") as client:
            answer = await client.post("/v1/chat/completions", json=body, timeout=600)
        assert answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")

    with load(demo_model(), "cpu") as model, traced({stops(SERVE)[-1], HANDED_OVER, TURN}) as trace:
        engine = Engine(model, slots=2)
        app = create_app({"sums": ChatService(model, engine, "sums")}, ServerOptions())
        trace.calls.clear()
        asyncio.run(ask(app))
        engine.close()
    return trace


def test_there_are_no_more_stops_than_can_be_read():
    assert len(stops(SERVE)) <= 30 and len(stops(RUN)) <= 25 and len(stops(BACK)) <= 10


def test_a_run_visits_the_stops_in_order(run):
    assert first_unvisited(stops(RUN), run.calls) is None


def test_all_that_is_on_the_stack_of_a_run_is_a_stop(run):
    stack = stack_of_a_step(run, stops(RUN)[-1])
    assert [name for name in stack if name not in stops(RUN)] == []
    assert stack == [name for name in stops(RUN) if name in stack], "in the page's order"


def test_a_request_visits_the_stops_in_order(request_):
    assert first_unvisited([*stops(SERVE), *stops(BACK)], request_.calls) is None


def test_all_that_is_on_the_stacks_of_a_request_is_a_stop(request_):
    """That of the event loop where it hands a request over, and the engine's at the kernel."""
    wanted = stops(SERVE)
    (handed_over,) = request_.stacks[HANDED_OVER]
    stack = [*handed_over, *stack_of_a_step(request_, wanted[-1])]
    assert [name for name in stack if name not in wanted] == []
    assert stack == [name for name in wanted if name in stack], "in the page's order"


def test_a_trace_tells_what_is_missing_from_a_page(run):
    """The checks above can fail."""
    wanted = stops(RUN)
    assert first_unvisited([wanted[0], wanted[-1], wanted[1]], run.calls) == wanted[1]
    assert first_unvisited(["apr_core.cli:gone"], run.calls) == "apr_core.cli:gone"
    assert STEP in stack_of_a_step(run, wanted[-1])
