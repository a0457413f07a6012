"""What operators and their tools see: health, the log, who asks, and which settings hold."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

pytest.importorskip("fastapi", reason="serving is an extra: apr-core[serve]")
from apr_core.errors import UsageError
from apr_serve.http.layers.proxies import Proxies
from apr_serve.http.logs import ForPeople, JsonLines
from tests.serve.serving import serving, shared

FORGED = "/x status=200 client=6.6.6.6"


def record(**fields):
    entry = logging.LogRecord("apr.server", logging.INFO, "", 0, "request", (), None)
    entry.__dict__.update(fields)
    return entry


def client(trusted, peer, *lines):
    headers = [(b"x-forwarded-for", line.encode()) for line in lines]
    scope = {"type": "http", "client": peer and (peer, 1), "headers": headers}
    return Proxies(trusted).client(scope)


@pytest.mark.parametrize(
    ("trusted", "peer", "lines", "expected"),
    [
        ([], "10.0.0.1", ["9.9.9.9"], "10.0.0.1"),
        (["10.0.0.1"], "10.0.0.1", ["9.9.9.9"], "9.9.9.9"),
        (["10.0.0.1"], "10.0.0.2", ["9.9.9.9"], "10.0.0.2"),
        (["10.0.0.0/8"], "10.0.0.1", ["6.6.6.6, 9.9.9.9, 10.1.1.1"], "9.9.9.9"),
        (["10.0.0.0/8"], "10.0.0.1", ["6.6.6.6", "9.9.9.9"], "9.9.9.9"),
        (["10.0.0.0/8"], "10.0.0.1", ["6.6.6.6, nonsense"], "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", [], "10.0.0.1"),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", ["9.9.9.9:4711"], "9.9.9.9"),
        (["::1"], "::1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ([], "", ["9.9.9.9"], "9.9.9.9"),
        ([], "", ["6.6.6.6, 9.9.9.9"], "9.9.9.9"),
        ([], None, [], "local"),
    ],
)
def test_the_client_is_the_nearest_that_no_trusted_proxy_is(trusted, peer, lines, expected):
    assert client(trusted, peer, *lines) == expected


def test_a_proxy_that_is_no_address_is_refused():
    with pytest.raises(UsageError, match="nowhere"):
        Proxies(["nowhere"])


def test_no_path_looks_like_other_fields_of_a_log_line():
    pretty = ForPeople(colours=False).format(record(path=FORGED, status=404))
    assert pretty.split(" ", 1)[1] == f"request path='{FORGED}' status=404"
    fields = json.loads(JsonLines().format(record(path=FORGED, status=404)))
    assert fields["path"] == FORGED and fields["status"] == 404 and "client" not in fields


def test_an_error_in_the_log_cannot_reach_the_terminal():
    try:
        raise ValueError("\x1b[31mred")
    except ValueError:
        failed = record()
        failed.exc_info = sys.exc_info()
    assert "\x1b" not in ForPeople(colours=False).format(failed)


@pytest.mark.needs_plugins
def test_health_is_told_to_those_who_only_ask_for_heads():
    for path in ("/health/live", "/health/ready"):
        answer = httpx.head(shared().url + path)
        assert answer.status_code == 200 and not answer.content


@pytest.mark.needs_plugins
def test_the_log_names_clients_behind_a_trusted_proxy(tmp_path):
    path = tmp_path / "apr.sock"
    for arguments, expected in (
        (("--trusted-proxy", "127.0.0.0/8"), "9.9.9.9"),
        ((), "127.0.0.1"),
        (("--unix-socket", path), "9.9.9.9"),
    ):
        with serving("--log-format", "json", *arguments) as server:
            unix = server.url.startswith("unix:")
            transport = httpx.HTTPTransport(uds=str(path) if unix else None)
            with httpx.Client(transport=transport) as asking:
                url = ("http://apr" if unix else server.url) + "/nothing"
                asking.get(url, headers={"X-Forwarded-For": "6.6.6.6, 9.9.9.9"})
            assert server.terminate() == 0
            time.sleep(0.1)
        (line,) = [json.loads(line) for line in server.err]
        assert line["client"] == expected


@pytest.mark.needs_plugins
def test_the_log_tells_a_client_that_left_from_an_answer_that_ended():
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
    banned = {"logit_bias": {str(id_): -100 for id_ in stops()}, "max_tokens": 2000}
    with serving("--log-format", "json") as server:
        server.post("/v1/chat/completions", body)
        with httpx.stream("POST", server.url + "/v1/chat/completions", json=body | banned) as sent:
            next(sent.iter_bytes())
        while server.metric("apr_answers_cancelled_total") < 1:
            time.sleep(0.02)
        assert server.terminate() == 0
        time.sleep(0.1)
    ends = [json.loads(line).get("ended_by") for line in server.err]
    assert ends == ["stop_token", "client_left"]


@pytest.mark.needs_plugins
def test_who_leaves_before_the_answer_is_counted_as_that():
    server = shared()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as leaving:
        leaving.sendall(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        time.sleep(0.2)
    deadline = time.monotonic() + 10
    while 'status="499"' not in (counted := server.get("/metrics").text):
        assert time.monotonic() < deadline
    assert 'status="0"' not in counted


def stops():
    asked = {"text": "<|im_end|><|endoftext|>", "allow_special": True}
    return shared().post("/tokenize", asked).json()["tokens"]


def test_keys_of_the_environment_are_among_the_settings():
    given = {"APR_CONFIG": os.devnull, "APR_API_KEY": "of-the-environment,another-one"}
    shown = subprocess.run(
        [sys.executable, "-m", "apr_core.cli", "serve", "--show-config"],
        capture_output=True,
        text=True,
        env=os.environ | given,
    ).stdout
    (row,) = [line.split() for line in shown.splitlines() if "APR_API_KEY" in line]
    assert row == ["$APR_API_KEY", "2", "given", "environment"]
    assert "of-the-environment" not in shown
