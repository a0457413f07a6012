"""What `apr serve` refuses before it serves, and what it leaves when it ends early."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import time
from contextlib import ExitStack

import httpx
import pytest

from apr_core import load
from apr_serve.cli.command import _signals_held
from apr_serve.engine.warming import warm_up
from tests.serve.serving import demo_model, serving, start, wait_until_ready

pytestmark = pytest.mark.needs_plugins

TWO = ("--model-name", "one", "--model-name", "two")


def refused(*arguments, files=None):
    """All that a server says which cannot start: it is a mistake of who started it."""
    running = start(*arguments, files=files)
    try:
        assert running.process.wait(60) == 2, running.err
    finally:
        running.process.kill()
    time.sleep(0.1)
    message = "\n".join(running.err)
    assert "bug in apr" not in message and not running.out
    return message


@pytest.mark.parametrize(
    "option",
    ["--max-body", "--max-header", "--memory", "--cache", "--header-timeout", "--body-timeout",
     "--request-timeout", "--heartbeat", "--drain-timeout"],
)  # fmt: skip
def test_numbers_that_are_none_are_refused(option):
    from click import BadParameter

    from apr_serve.cli.command import command

    (parameter,) = [p for p in command.params if option in p.opts]
    for text in ("nan", "inf", "1e30", "-1"):
        with pytest.raises(BadParameter):
            parameter.type.convert(text, parameter, None)
    assert parameter.type.convert("20", parameter, None) == 20


def test_a_number_that_is_none_is_said_on_the_command_line():
    assert "--memory" in refused("--memory", "nan")


def test_an_alias_hides_no_model():
    files = [demo_model(), demo_model()]
    for aliases in (("one=two",), ("x=one", "x=two")):
        pairs = [word for alias in aliases for word in ("--alias", alias)]
        assert "a model's name already" in refused(*TWO, *pairs, files=files)
    assert "name is empty" in refused("--model-name", " ")


def test_a_site_that_no_browser_would_name_is_refused():
    for origin in ("https://chat.example/", "chat.example", "https://Chat.example", ""):
        assert "is no site" in refused("--cors-origin", origin)


def test_memory_that_holds_no_sequence_is_refused():
    message = refused("--memory", "0.0001")
    assert "sums gets 104" in message and "256 tokens" in message


def test_a_key_that_is_encrypted_is_refused_before_anything_is_loaded(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    openssl = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:secret", "-subj",
         "/CN=localhost", "-keyout", key, "-out", cert],
        capture_output=True,
    )  # fmt: skip
    assert openssl.returncode == 0, openssl.stderr
    nothing = tmp_path / "nothing.apr"
    nothing.write_bytes(b"")
    message = refused("--tls-cert", cert, "--tls-key", key, files=[nothing])
    assert "the TLS key is encrypted" in message


def test_who_asks_without_saying_which_model_is_told_so():
    with serving(*TWO, files=[demo_model(), demo_model()]) as server:
        answer = server.post(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}
        )
        assert answer.json()["error"]["message"] == "say which model; served: one, two"


def test_an_address_is_named_with_what_is_wrong_about_it(tmp_path):
    for arguments, words in (
        (("--unix-socket", tmp_path / ("x" * 150)), "path too long"),
        (("--host", "192.0.2.1"), "Choose a --host"),
    ):
        running = start(*arguments)
        assert running.process.wait(60) == 7
        time.sleep(0.1)
        assert words in "\n".join(running.err)


def test_of_two_servers_that_start_on_one_socket_file_one_serves(tmp_path):
    path = tmp_path / "apr.sock"
    first = start("--unix-socket", path)
    while not path.exists():
        time.sleep(0.01)
    second = start("--unix-socket", path)
    try:
        while first.process.poll() is None and second.process.poll() is None:
            time.sleep(0.01)
        refused, serves = sorted((first, second), key=lambda server: server.process.poll() is None)
        assert refused.process.wait() == 7
        time.sleep(0.1)
        assert "in use" in "\n".join(refused.err) and not refused.out
        wait_until_ready(serves)
        assert path.exists()
        assert serves.terminate() == 0 and not path.exists()
    finally:
        first.process.kill()
        second.process.kill()


@pytest.fixture
def many_files():
    """This process may have 2,000 files open, as servers may."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_than_a_thousand_connections_are_open_at_once(many_files):
    with serving("--header-timeout", "30") as server, ExitStack() as stack:
        host, port = server.url.removeprefix("http://").split(":")
        for _ in range(1100):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        assert httpx.get(server.url + "/health/live", timeout=10).status_code == 200


def test_a_body_that_never_comes_does_not_hold_up_the_end():
    with serving("--drain-timeout", "0.2", "--body-timeout", "900") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            slow.sendall(
                b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n"
                b"content-type: application/json\r\n\r\n{"
            )
            time.sleep(0.2)
            assert server.terminate() == 0
        time.sleep(0.1)
        assert "Traceback" not in "\n".join(server.err)


def test_a_signal_between_taking_an_address_and_noting_it_is_heard_afterwards():
    class Ended(BaseException):
        pass

    def end(number, frame):
        raise Ended

    before, noted = signal.signal(signal.SIGTERM, end), []
    try:
        with pytest.raises(Ended), _signals_held():
            os.kill(os.getpid(), signal.SIGTERM)
            noted.append("the socket")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert noted


def test_a_server_ended_while_it_loads_leaves_no_socket_file(tmp_path):
    path = tmp_path / "apr.sock"
    running = start("--unix-socket", path)
    while not path.exists():
        time.sleep(0.01)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 143
    assert not path.exists() and not running.out


@pytest.mark.parametrize("max_len", [16, None])
def test_warming_up_leaves_nothing_behind(max_len):
    """What is compiled at first use is compiled before a server says that it is ready."""
    with load(demo_model(), max_len=max_len) as model:
        seen = []
        forward = model.forward_last
        model.forward_last = lambda parts: (
            seen.append([len(ids) for _, ids in parts]) or forward(parts)
        )
        warm_up(model)
        assert model.state_bytes() == 0
        assert seen[1:] == [[1], [1, 1]] and seen[0][0] > 1
