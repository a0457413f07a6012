"""Requests as clients really send them: every field of their SDK, a benchmark's, a crowd's.

The crowd is a short soak; `python -m benchmarks.soak` is the long one. $APR_CROWD_S sets for how
many seconds.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import soak
from tests.serve.serving import serving, shared

pytestmark = pytest.mark.needs_plugins

AREAS = ("smoke", "gsm8k", "truthfulqa-mc1", "hellaswag", "code", "forge", "ds4-eval")
SECONDS = os.environ.get("APR_CROWD_S", "8")
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages?beta=true"
SUM = [{"role": "user", "content": "2+2="}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
NULLS = {
    CHAT: "audio frequency_penalty function_call functions logit_bias logprobs max_tokens n "
    "max_completion_tokens metadata modalities moderation parallel_tool_calls prediction "
    "presence_penalty prompt_cache_key prompt_cache_options reasoning_effort response_format "
    "safety_identifier seed service_tier stop store stream stream_options temperature tools "
    "tool_choice top_logprobs top_p user verbosity web_search_options",
    "/v1/responses": "background context_management conversation include instructions metadata "
    "max_output_tokens max_tool_calls parallel_tool_calls previous_response_id "
    "prompt prompt_cache_key reasoning safety_identifier service_tier store "
    "stream stream_options temperature text tool_choice tools top_logprobs top_p "
    "truncation user",
    MESSAGES: "cache_control container context_management diagnostics inference_geo mcp_servers "
    "metadata output_config service_tier speed stop_sequences stream system temperature "
    "thinking tool_choice tools top_k top_p",
    "/v1/completions": "best_of echo frequency_penalty logit_bias logprobs max_tokens n seed stop "
    "presence_penalty stream stream_options suffix temperature top_p user",
    "/v1/embeddings": "dimensions encoding_format user",
}
ASKED = {
    CHAT: {"messages": SUM}, "/v1/responses": {"input": "2+2="},
    MESSAGES: {"messages": SUM, "max_tokens": 9}, "/v1/completions": {"prompt": "2+2="},
    "/v1/embeddings": {"input": "2+2="},
}  # fmt: skip
AGENT = {  # as Claude Code asks
    "model": "sums", "max_tokens": 32000, "stream": False, "output_config": {"effort": "high"},
    "system": [{"type": "text", "text": "You are an agent.",
                "cache_control": {"type": "ephemeral", "scope": "global", "ttl": "1h"}}],
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "<system-reminder>Be brief.</system-reminder>"},
            {"type": "text", "text": "2+2=", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Search.", "signature": "s"},
            {"type": "tool_use", "id": "t1", "name": "ToolSearch", "input": {"query": "sh"},
             "caller": {"type": "direct"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "is_error": False,
             "content": [{"type": "tool_reference", "tool_name": "Bash"}]}]},
    ],
    "tools": [
        {"name": name, "description": "", "defer_loading": later, "eager_input_streaming": True,
         "input_schema": {"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMA}}
        for name, later in (("ToolSearch", False), ("Bash", True))
    ],
    "metadata": {"user_id": "u", "session_id": "s"}, "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "speed": "fast",
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    return shared()


@pytest.mark.parametrize("path", NULLS)
def test_a_null_is_nothing_that_was_asked_for(server, path):
    nulls = dict.fromkeys(NULLS[path].split())
    answer = server.post(path, {**ASKED[path], **nulls})
    assert answer.status_code == 200, answer.text
    assert "x-apr-ignored" not in answer.headers


@pytest.mark.parametrize("path", ASKED)
def test_what_nobody_here_knows_is_ignored_and_named(server, path):
    plain = server.post(path, ASKED[path])
    asked = {**ASKED[path], "frobnicate": {"a": 1}, "mirostat": 2}
    answer = server.post(path, asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-apr-ignored"] == "frobnicate, mirostat"
    assert answer.json().keys() == plain.json().keys()
    while not any("ignored='frobnicate, mirostat'" in line for line in server.err):
        time.sleep(0.05)


def test_a_strict_server_refuses_it():
    with serving("--strict-parameters") as server:
        for path, asked in ASKED.items():
            answer = server.post(path, {**asked, "frobnicate": 1, "extra": None})
            assert answer.status_code == 400, answer.text
            assert "unknown parameter: frobnicate" in answer.json()["error"]["message"]


THINKS, SILENT = (True, False)
EXTENSIONS = {  # fields that other servers have, and whether the model then thinks
    "thinking": ({"thinking": {"type": "disabled"}}, SILENT),
    "thinking true": ({"thinking": True}, THINKS),
    "thinking on": ({"thinking": {"type": "enabled", "budget_tokens": 64}}, THINKS),
    "enable_thinking": ({"enable_thinking": True}, THINKS),
    "reasoning": ({"reasoning": {"effort": "low"}}, THINKS),
    "reasoning off": ({"reasoning": {"enabled": False}}, SILENT),
    "others": ({"repeat_penalty": 1.0, "skip_special_tokens": True, "cache_prompt": False,
                "n_predict": 9, "best_of": 1, "add_generation_prompt": True, "min_tokens": 0,
                "ignore_eos": False}, SILENT),
}  # fmt: skip


@pytest.mark.parametrize("fields", EXTENSIONS)
def test_fields_of_other_servers_do_what_they_do_there(server, fields):
    more, thinks = EXTENSIONS[fields]
    answer = server.post(CHAT, {"messages": SUM, "max_tokens": 200, **more})
    assert answer.status_code == 200 and "x-apr-ignored" not in answer.headers, answer.text
    assert ("reasoning_content" in answer.json()["choices"][0]["message"]) == thinks


def test_tokens_that_end_an_answer_wait_for_the_least_number(server):
    def count(**fields):
        answer = server.post(CHAT, {"messages": SUM, "max_tokens": 40, **fields}).json()
        return answer["usage"]["completion_tokens"], answer["choices"][0]["apr_ended_by"]

    usual = count()[0]
    assert usual < 12 and count(n_predict=1) == (1, "max_tokens")
    assert count(min_tokens=12)[0] >= 12
    assert count(ignore_eos=True, min_tokens=0)[0] > usual


def test_control_tokens_are_text_only_if_that_is_asked_for(server):
    asked = {"messages": SUM, "max_tokens": 20, "ignore_eos": True, "temperature": 0}

    def text(**fields):
        return server.post(CHAT, asked | fields).json()["choices"][0]["message"]["content"]

    assert "<|im_end|>" not in text() and "<|im_end|>" not in text(skip_special_tokens=True)
    assert "<|im_end|>" in text(skip_special_tokens=False)
    assert text(skip_special_tokens=False).replace("<|im_end|>", "").startswith(text()[:4])


def test_stop_strings_wait_for_the_least_number_of_tokens(server):
    asked = {"messages": SUM, "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    usual = server.post(CHAT, asked).json()["choices"][0]["message"]["content"]
    stop = usual.strip()[0]
    first = server.post(CHAT, asked | {"stop": [stop]}).json()
    assert first["choices"][0]["apr_ended_by"] == "stop_string"
    later = server.post(CHAT, asked | {"stop": [stop], "min_tokens": 8}).json()
    assert later["usage"]["completion_tokens"] > 8
    assert stop in later["choices"][0]["message"]["content"]
    refused = server.post(CHAT, asked | {"min_tokens": 31})
    assert refused.status_code == 400 and "min_tokens is 31" in refused.json()["error"]["message"]


def test_a_prompt_can_be_scored(server):
    path, text = "/v1/completions", "2+2=4"
    ids = server.post("/tokenize", {"text": text}).json()["tokens"]
    asked = {"prompt": [text, text], "echo": True, "logprobs": 2, "max_tokens": 0}
    first, second = server.post(path, asked).json()["choices"]
    (same,) = server.post(path, {**asked, "prompt": ids}).json()["choices"]
    assert first["text"] == second["text"] == text and first["finish_reason"] == "length"
    scores = first["logprobs"]
    assert scores == second["logprobs"] == same["logprobs"]
    assert "".join(scores["tokens"]) == text and scores["token_logprobs"][0] is None
    assert all(value <= 0 for value in scores["token_logprobs"][1:])
    assert all(len(rivals) in (2, 3) for rivals in scores["top_logprobs"][1:])
    # each token scores what it scores as an answer to what stands before it
    for at in range(1, len(ids)):
        one = {"prompt": ids[:at], "max_tokens": 1, "logprobs": 20, "temperature": 0}
        rivals = server.post(path, one).json()["choices"][0]["logprobs"]["top_logprobs"][0]
        token = scores["tokens"][at]
        if token in rivals:
            assert abs(rivals[token] - scores["token_logprobs"][at]) < 2e-4
    before = {**asked, "max_tokens": 1, "prompt": ids[:-1], "temperature": 0}
    longer = server.post(path, before).json()["choices"][0]["logprobs"]
    assert longer["token_logprobs"][:-1] == scores["token_logprobs"][:-1]
    assert longer["tokens"][:-1] == scores["tokens"][:-1] and len(longer["tokens"]) == len(ids)


def test_what_only_other_servers_do_is_accepted_where_no_answer_depends_on_it(server):
    answer = server.post(
        CHAT,
        {
            "messages": SUM,
            "reasoning_effort": "max",
            "prompt_cache_options": {"ttl": "30m"},
            "top_logprobs": 0,
            "tools": [{**WEATHER, "cache_control": {"type": "ephemeral"}}],
            "max_tokens": 9,
        },
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["reasoning_content"]
    answer = server.post(
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": "2+2="},
                {"type": "reasoning", "summary": [], "content": [{"type": "text", "text": "Add."}]},
                {"role": "assistant", "content": "4"},
                {"role": "user", "content": "1+1="},
            ],
            "include": ["web_search_call.action.sources", "code_interpreter_call.outputs"],
            "client_metadata": {"a": "b"},
            "access_programs": {},
            "prompt_cache_options": {},
        },
    )
    assert answer.status_code == 200, answer.text


def test_an_agent_of_the_other_protocol_is_answered(server):
    answer = server.post(MESSAGES, AGENT, headers={"anthropic-beta": "effort-2025-11-24"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["context_management"] == {"applied_edits": []}


def test_only_the_tools_that_are_allowed_are_called(server):
    named = {"type": "function", "function": {"name": "clock"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    asked = {"messages": SUM, "tools": [WEATHER, CLOCK], "tool_choice": choice, "max_tokens": 99}
    message = server.post(CHAT, asked).json()["choices"][0]["message"]
    assert {call["function"]["name"] for call in message["tool_calls"]} == {"clock"}
    asked["tools"] = [WEATHER]
    assert "'clock', which is no tool here" in server.post(CHAT, asked).text


def test_a_schema_may_stand_beside_json_object(server):
    form = {"type": "json_object", "schema": {"const": {"a": 1}}}
    asked = {"messages": SUM, "response_format": form, "temperature": 1, "max_tokens": 900}
    choice = server.post(CHAT, asked).json()["choices"][0]
    assert choice["finish_reason"] == "stop", choice
    assert json.loads(choice["message"]["content"]) == {"a": 1}


@pytest.mark.parametrize(
    "key", ["99999999", "-1", "1_0", "１２", " 7", "word", "9" * 9999], ids=range(7)
)
def test_a_bias_of_what_is_no_token_is_refused(server, key):
    for path in (CHAT, "/v1/completions"):
        answer = server.post(path, {**ASKED[path], "logit_bias": {key: 1}})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "logit_bias"


def test_an_error_about_tools_names_them(server):
    for path, tools in ((CHAT, [CLOCK, CLOCK]), (MESSAGES, [AGENT["tools"][0]] * 2)):
        answer = server.post(path, {**ASKED[path], "tools": tools})
        assert answer.status_code == 400 and "another tool named" in answer.text
    assert server.post(CHAT, {"messages": SUM, "tools": [CLOCK, CLOCK]}).json()["error"][
        "param"
    ] == ("tools")


def test_as_many_texts_as_a_request_may_have_are_embedded(server):
    """Ten times as many as may wait in the engine's queue, in one request as some clients do."""
    response = server.post("/v1/embeddings", {"input": [f"{i}+1=" for i in range(1280)]})
    assert response.status_code == 200 and len(response.json()["data"]) == 1280


@pytest.mark.parametrize("think", ["--no-think", "--think"])
def test_every_question_of_a_benchmark_client_is_answered(tmp_path, think):
    """It is as published, and none of what it sends is refused."""
    pytest.importorskip("lucebench")
    server = shared()
    before = len(server.err)
    done = subprocess.run(
        [sys.executable, "-m", "lucebench.cli", "--base-url", server.url, "--areas",
         ",".join(AREAS), "--questions", "1", "--name", "run", think],
        cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "sweep complete" in done.stdout, done.stdout + done.stderr
    for area in AREAS:
        rows = json.loads((tmp_path / "snapshots" / "run" / f"{area}.json").read_text())["rows"]
        assert rows, area
        for row in rows:
            assert row.get("http_status", 200) == 200, row
    asked = [line for line in server.err[before:] if "method=POST" in line]
    assert len(asked) >= len(AREAS)
    assert [line for line in asked if "status=200" not in line] == []


def test_a_crowd_of_clients_hears_what_each_would_alone(capsys):
    code = soak.main(["--clients", "64", "--seconds", SECONDS, "--slots", "16"])
    assert code == 0, capsys.readouterr().out
