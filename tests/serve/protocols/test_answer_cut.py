"""Calls that a limit or a stop string cut off: half a value is never taken for a whole one."""

from __future__ import annotations

import json
import time

import pytest

from tests.serve.protocols.test_answer_parser import CALL, MADE, answer, text
from tests.serve.serving import shared

SHELL = {"type": "function", "function": {"name": "shell", "parameters": {
    "type": "object", "properties": {"command": {"type": "string", "enum": ["rm -rf /tmp/x"]}},
    "required": ["command"]}}}  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "ended_by"), [("length", "max_tokens"), ("stop", "stop_string")]
)
def test_a_call_that_was_cut_off_is_left_open(reason, ended_by):
    whole, closed = json.dumps(MADE[1]), CALL.index("</function>") + len("</function>")
    for size in range(len(CALL) + 1):
        prose, _, calls, why = text(CALL[:size], reason=reason, ended_by=ended_by)
        assert not (calls and prose) and CALL.startswith(prose) and "=f>" not in prose
        if size >= closed:
            assert calls == [MADE]
            assert why == ("tool_calls" if reason == "stop" else reason)
        else:
            assert why == reason
            for _, arguments in calls:
                assert isinstance(arguments, str) and whole.startswith(arguments)


def test_json_that_was_cut_off_is_no_call():
    call = '<tool_call>\n{"name": "f", "arguments": {"n": 12, "s": "hi"}}'
    for size in range(len(call)):
        assert text(call[:size], reason="length", ended_by="max_tokens")[2] == []
    assert text(call, reason="length", ended_by="max_tokens")[2] == [MADE]


def test_a_name_without_end_costs_no_more_with_every_piece():
    def seconds(length):
        endless = "<tool_call>\n<function=f>\n<parameter=" + "k" * length
        parts = [("text", endless[at : at + 4]) for at in range(0, len(endless), 4)]
        started = time.process_time()
        prose, _, calls, _ = answer(parts)
        assert calls == [("f", {})] and prose == endless[endless.index("<parameter") :]
        return time.process_time() - started

    assert seconds(160_000) < 4 * 8 * seconds(20_000)  # 64 times if each piece cost what all do


@pytest.mark.needs_plugins
@pytest.mark.parametrize("stream", [False, True])
def test_a_command_that_a_stop_string_cut_off_is_not_made(stream):
    asked = {
        "messages": [{"role": "user", "content": "2+2="}], "stop": ["tmp"], "max_tokens": 200,
        "tools": [SHELL], "tool_choice": "required", "temperature": 0, "stream": stream,
    }  # fmt: skip
    answer = shared().post("/v1/chat/completions", asked)
    assert '"finish_reason":"stop"' in answer.text
    assert '"finish_reason":"tool_calls"' not in answer.text
    if not stream:
        [choice] = answer.json()["choices"]
        [call] = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "stop"
        with pytest.raises(ValueError, match="Unterminated"):
            json.loads(call["function"]["arguments"])
