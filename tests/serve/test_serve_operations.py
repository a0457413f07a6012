"""A server as its operator sees it: keys, signals, sockets, limits, settings, logs."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import httpx
import pytest

from tests.serve.serving import demo_model, serving, start, wait_until_ready

pytestmark = pytest.mark.needs_plugins

CHAT = "/v1/chat/completions"
KEY, OTHER = "key-of-the-first", "key-of-the-second"
LONG = {
    "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 1200,
    "temperature": 3.0, "seed": 1, "logit_bias": {},
}  # fmt: skip
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def ends(code, words, *arguments, **options):
    """A server that cannot start: one clear error and the exit code."""
    running = start(*arguments, **options)
    try:
        assert running.process.wait(60) == code, running.err
    finally:
        running.process.kill()
    time.sleep(0.1)
    message = "\n".join(running.err)
    assert message.startswith("error:") and words in message and "Traceback" not in message, message
    return message


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def never_ending(server):
    """A request whose answer is long: what would end it is banned."""
    ids = server.post("/tokenize", {"text": "<|im_end|><|endoftext|>", "allow_special": True})
    return LONG | {"logit_bias": {str(id_): -100 for id_ in ids.json()["tokens"]}}


def test_keys_open_everything_and_health_is_open_to_all(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# for clients\n{OTHER}\n\n")
    with serving("--api-key-file", file, APR_API_KEY=KEY) as server:
        for path in ("/health/live", "/health/ready", "/openapi.json", "/"):
            assert server.get(path).status_code == 200, path
        for path in ("/v1/models", "/metrics", "/status.json"):
            for headers in ({}, bearer("wrong-key-here"), {"Authorization": KEY}, bearer("''")):
                refused = server.get(path, headers=headers)
                assert refused.status_code == 401, (path, headers)
                assert refused.json()["error"]["code"] == "invalid_api_key"
                assert refused.headers["www-authenticate"] == "Bearer"
                known = "is not known here" in refused.json()["error"]["message"]
                assert known == ("wrong" in str(headers) or "''" in str(headers))
            assert server.get(path, headers=bearer(KEY)).status_code == 200
            assert server.get(path, headers={"x-api-key": OTHER}).status_code == 200
        assert server.post(CHAT, HELLO).status_code == 401
        assert server.post(CHAT, HELLO, headers=bearer(OTHER)).status_code == 200
        assert server.terminate() == 0
    output = "\n".join([*server.out, *server.err])
    assert KEY not in output and OTHER not in output


def test_keys_that_protect_nothing_are_refused(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    ends(2, "no API key", "--api-key-file", file)
    ends(2, "not usable", "--api-key", "short")
    ends(2, "is empty", "--api-key", "")
    ends(2, "is empty", APR_API_KEY=" ,")
    ends(7, "cannot be read", "--api-key-file", tmp_path / "missing")


def test_a_server_that_others_reach_without_a_key_says_so():
    for arguments, warned in (((), True), (("--api-key", KEY), False)):
        with serving("--host", "0.0.0.0", *arguments) as server:
            warnings = [line for line in server.err if "no API key" in line]
            assert bool(warnings) == warned


def test_sigterm_lets_sixteen_streams_end_in_order():
    with serving("--slots", "16", "--drain-timeout", "3") as server:
        body, ends_seen, started = never_ending(server), [], threading.Barrier(17)

        def client(max_tokens):
            options = body | {"max_tokens": max_tokens}
            with httpx.stream("POST", server.url + CHAT, json=options, timeout=60) as answer:
                lines = (line for line in answer.iter_lines() if line.startswith("data:"))
                for _ in range(min(max_tokens, 100) - 5):  # short ones end soon on any machine
                    next(lines)
                started.wait(600)
                rest = list(lines)
            ends_seen.append((max_tokens, rest[-2:]))

        threads = [threading.Thread(target=client, args=(n,)) for n in [40] * 4 + [1500] * 12]
        for thread in threads:
            thread.start()
        started.wait(600)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        while server.process.poll() is None:  # what comes now is turned away
            try:
                late = server.post(CHAT, HELLO)
            except httpx.HTTPError:
                break
            assert late.status_code == 503 and late.headers["retry-after"]
            assert late.json()["error"]["code"] == "shutting_down"
            assert server.get("/health/ready").status_code == 503
            assert server.get("/health/live").status_code == 200
            break
        for thread in threads:
            thread.join(600)
        assert server.process.wait(600) == 0
    assert len(ends_seen) == 16
    for max_tokens, (last, done) in ends_seen:
        assert done == "data: [DONE]"
        content = json.loads(last.removeprefix("data: "))
        if max_tokens == 40:
            assert content["choices"][0]["finish_reason"] == "length"
        elif "error" in content:
            assert content["error"]["code"] == "shutting_down"
        else:
            assert content["choices"][0]["finish_reason"] in ("length", "stop")


def test_a_second_signal_ends_at_once():
    with (
        serving("--drain-timeout", "60") as server,
        httpx.stream("POST", server.url + CHAT, json=never_ending(server)) as answer,
    ):
        lines = answer.iter_lines()  # held: without it the client would have left
        next(lines)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == 130


def test_after_kill_9_the_next_start_works(tmp_path):
    path = tmp_path / "apr.sock"
    with serving("--unix-socket", path) as server:
        server.process.kill()
        server.process.wait()
    assert path.exists()
    with serving("--unix-socket", path) as server:
        assert server.url == f"unix:{path}"


def test_a_full_queue_says_when_to_come_back():
    with serving("--slots", "1", "--queue", "1") as server:
        body, answers = never_ending(server), []

        def client():
            answers.append(
                httpx.post(server.url + CHAT, json=body | {"max_tokens": 300}, timeout=60)
            )

        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        full = [answer for answer in answers if answer.status_code == 429]
        assert full and len(full) < 8
        assert full[0].headers["retry-after"] == "1"
        assert full[0].json()["error"]["type"] == "rate_limit_error"
        served = [answer for answer in answers if answer.status_code == 200]
        assert len(served) + len(full) == 8
        assert server.post(CHAT, HELLO).status_code == 200


def test_a_unix_socket_serves_its_owner_only(tmp_path):
    path = tmp_path / "apr.sock"
    with serving("--unix-socket", path) as server:
        assert path.stat().st_mode & 0o007 == 0
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            answer = client.post("http://apr" + CHAT, json=HELLO, timeout=60)
            assert answer.json()["choices"][0]["message"]["content"].startswith("Hello!")
            with client.stream("POST", "http://apr" + CHAT, json=HELLO | {"stream": True}) as s:
                assert list(s.iter_lines())[-2] == "data: [DONE]"
        ends(7, "in use", "--unix-socket", path)
        assert server.terminate() == 0
    assert not path.exists()
    ends(7, "cannot listen", "--unix-socket", tmp_path / "missing" / "apr.sock")
    file = tmp_path / "file"
    file.write_text("mine")
    ends(7, "cannot listen", "--unix-socket", file)
    assert file.read_text() == "mine"


def test_a_port_in_use_is_known_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = ends(7, f"127.0.0.1:{port} is already in use", "--port", port)
        assert "--port" in message
    ends(7, "cannot listen on 192.0.2.1", "--host", "192.0.2.1")


def test_what_cannot_be_served_is_said(tmp_path):
    ends(3, "no such file", files=[tmp_path / "nothing.apr"])
    ends(2, "no file to serve", files=[])
    ends(2, "would be called 'sums'", files=[demo_model(), demo_model()])
    ends(2, "ALIAS=NAME", "--alias", "gpt=other")
    ends(2, "go together", "--tls-cert", tmp_path / "c.pem")
    broken = tmp_path / "broken.apr"
    broken.write_bytes(demo_model().read_bytes()[:-1000])
    ends(4, "broken.apr", files=[broken])


def test_two_models_are_served_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setenv("APR_STORE", str(tmp_path))
    other = tmp_path / f"other-0.5B.q4k.{16 * '0'}.apr"
    other.write_bytes(demo_model().read_bytes())
    arguments = ("--model-name", "first", "--alias", "gpt-4o=other-0.5B")
    with serving(*arguments, files=[demo_model(), "other-0.5B"]) as server:
        models = {m["id"]: m for m in server.get("/v1/models").json()["data"]}
        assert list(models) == ["first", "other-0.5B"]
        assert models["other-0.5B"]["aliases"] == ["gpt-4o"]
        for name, status in (("first", 200), ("gpt-4o", 200), ("sums", 404), (None, 404)):
            assert server.post(CHAT, HELLO | {"model": name}).status_code == status
        limits = [
            float(line.split()[-1])
            for line in server.get("/metrics").text.splitlines()
            if line.startswith("apr_memory_limit_bytes{")
        ]
        assert len(limits) == 2 and limits[0] == pytest.approx(limits[1])


def test_other_sites_may_ask_only_if_allowed():
    asking = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    with serving() as server:
        answer = httpx.options(server.url + CHAT, headers=asking)
        assert answer.status_code == 405
        assert "access-control-allow-origin" not in server.get("/v1/models", headers=asking).headers
    with serving("--cors-origin", "https://chat.example", "--api-key", KEY) as server:
        answer = httpx.options(server.url + CHAT, headers=asking)
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        other = httpx.options(
            server.url + CHAT, headers=asking | {"Origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in other.headers
        refused = server.post(CHAT, HELLO, headers=asking)
        assert refused.status_code == 401  # and the page may read why
        assert refused.headers["access-control-allow-origin"] == "https://chat.example"


def test_a_body_that_does_not_come_is_not_waited_for():
    with serving("--body-timeout", "0.3", "--header-timeout", "0.5") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n"
                b"content-type: application/json\r\n\r\n{"
            )
            assert b" 408 " in slow.recv(4096).splitlines()[0]
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n")
            reply = slow.recv(4096)
            assert not reply or b" 408 " in reply.splitlines()[0]


def test_connections_that_say_nothing_do_not_keep_others_out():
    with serving("--header-timeout", "0.5") as server, ExitStack() as stack:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (100, 100))
        host, port = server.url.removeprefix("http://").split(":")
        for number in range(150):
            silent = socket.create_connection((host, int(port)), timeout=10)
            stack.enter_context(silent).sendall(b"" if number % 2 else b"P")
        assert server.get("/health/live").status_code == 200
        assert silent.recv(1) == b""


def test_an_answer_that_takes_too_long_ends():
    with serving("--request-timeout", "0.2") as server:
        body = never_ending(server)
        answer = server.post(CHAT, body | {"stream": False})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        events = server.post(CHAT, body).text.split("\n\n")
        assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "timeout"
        assert events[-2] == "data: [DONE]"


def test_logs_are_json_and_hold_no_prompt_unless_asked():
    secret = "Hello my secret"
    body = {"messages": [{"role": "user", "content": secret}], "max_tokens": 3}
    for arguments, shown in (((), False), (("--log-prompts",), True)):
        with serving("--log-format", "json", *arguments) as server:
            sent = server.post(CHAT, body, headers={"X-Request-Id": "r-1"})
            assert sent.headers["x-request-id"] == "r-1"
            server.post(CHAT, {"messages": secret})
            assert server.terminate() == 0
            time.sleep(0.1)
        lines = [json.loads(line) for line in server.err]
        done = next(line for line in lines if line.get("ended_by"))
        assert done["request_id"] == "r-1" and done["status"] == 200 and done["model"] == "sums"
        assert done["completion_tokens"] == 3 and done["prompt_tokens"] > 10 and done["ms"] > 0
        ids = [line["request_id"] for line in lines if secret in line.get("body", "")]
        assert (ids[:1] == ["r-1"]) == shown
        assert (secret in "\n".join(server.err)) == shown


def test_every_flag_may_stand_in_a_file_and_says_who_set_it(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('[serve]\nslots = 3\nmodel-name = ["adder"]\nmax-body = 0.01\nport = 0\n')
    environment = os.environ | {"APR_CONFIG": str(tmp_path / "none.toml")}

    def show(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "apr_core.cli", "serve", *map(str, arguments)],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip

    shown = show("--config", file, "--slots", "5", "--api-key", KEY, "--show-config")
    rows = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert "5" in rows["slots"] and "command line" in rows["slots"]
    assert "adder" in rows["model-name"] and str(file) in rows["model-name"]
    assert "default" in rows["queue"] and KEY not in shown.stdout
    with serving("--config", file) as server:
        assert server.get("/v1/models").json()["data"][0]["id"] == "adder"
        assert 'apr_slots{model="adder"} 3.0' in server.get("/metrics").text
        assert server.post(CHAT, {"messages": "x" * 20_000}).status_code == 413
    with serving(APR_CONFIG=str(file)) as server:  # one's own file
        assert server.get("/v1/models").json()["data"][0]["id"] == "adder"
    for content, words in (("[serve]\nslot = 3\n", "Did you mean slots"),
                           ('[serve]\nslots = "3"\n', "a whole number"),
                           ("[serve]\nslots = 0\n", "slots")):  # fmt: skip
        file.write_text(content)
        done = show("--config", file, demo_model())
        assert done.returncode == 2 and words in done.stderr, done.stderr
    assert show("--config", tmp_path / "missing").returncode == 3


def test_flags_and_the_keys_of_the_file_are_the_same():
    from apr_serve.cli.command import command
    from apr_serve.hooks import SETTINGS

    flags = {p.name.replace("_", "-") for p in command.params} - {"config", "show-config"}
    assert flags == set(dict(SETTINGS))


def test_tls_is_served_with_a_certificate(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    openssl = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        capture_output=True,
    )  # fmt: skip
    assert openssl.returncode == 0, openssl.stderr
    with serving("--tls-cert", cert, "--tls-key", key) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        answer = httpx.post(server.url + CHAT, json=HELLO, verify=context, timeout=60)
        assert answer.status_code == 200
    ends(2, "TLS certificate or key", "--tls-cert", cert, "--tls-key", cert)


def test_a_long_prefill_is_not_silent():
    prompt = {"messages": [{"role": "user", "content": "1+1= " * 380}], "max_tokens": 1}
    with serving("--heartbeat", "0.05", "--slots", "1", "--threads", "1") as server:
        body = never_ending(server) | {"max_tokens": 600}
        first = threading.Thread(target=lambda: server.post(CHAT, body))
        first.start()
        time.sleep(0.1)
        events = server.post(CHAT, prompt | {"stream": True}).text
        first.join(60)
    assert ": waiting\n\n" in events and events.endswith("data: [DONE]\n\n")


def test_the_first_line_says_where_and_the_next_what():
    running = start()
    try:
        wait_until_ready(running)
        time.sleep(0.1)
        assert running.out[0].startswith("serving on http://127.0.0.1:")
        assert running.out[1].startswith("  sums: cpu, 8 slots, context 2048")
        assert f"  chat: {running.url}/  API: {running.url}/v1" in running.out[2]
    finally:
        running.process.kill()
        running.process.wait()
