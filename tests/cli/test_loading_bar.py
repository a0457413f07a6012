"""A load that takes long shows how far it is: on a terminal only, and not before a second."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import contextmanager

import pytest

from apr_core.cli import console

SLOW = """
import sys, time
from apr_core.cli import console
console.PATIENCE = 0.05
with console.upload_progress() as uploaded:
    print(uploaded is None)
    for done in range(0, 101, 20):
        if uploaded:
            uploaded(done << 20, 100 << 20)
        time.sleep(0.1)
"""


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def monotonic(self):
        return self.now


class Bar:
    """Remembers what it is told."""

    def __init__(self):
        self.totals, self.places, self.open = [], [], False

    @contextmanager
    def __call__(self, description, total):
        assert description == "Loading"
        self.totals.append(total)
        self.open = True
        yield self
        self.open = False

    def describe(self, text, done):
        assert text == "Loading"
        self.places.append(done)


@pytest.fixture
def clock(monkeypatch):
    fake_clock = Clock()
    monkeypatch.setattr(console, "time", fake_clock)
    return fake_clock


@pytest.fixture
def bar(monkeypatch):
    fake_bar = Bar()
    monkeypatch.setattr(console, "progress", fake_bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    return fake_bar


def test_a_quick_load_shows_nothing(clock, bar):
    with console.upload_progress() as uploaded:
        for done in range(11):
            uploaded(done, 10)
            clock.now += 0.09
    assert bar.totals == []


def test_a_slow_load_shows_a_bar_from_where_it_is(clock, bar):
    with console.upload_progress() as uploaded:
        for done in (0, 10, 20, 50, 60):
            uploaded(done, 60)
            clock.now += 0.4
            assert bar.open == (done >= 50)
    assert not bar.open
    assert (bar.totals, bar.places) == ([60], [50, 60])


def test_time_before_the_first_matrix_does_not_count(clock, bar):
    """Modules are imported and kernels are found by then: those are no uploads."""
    with console.upload_progress() as uploaded:
        clock.now += 30
        uploaded(0, 10)
        uploaded(5, 10)
    assert bar.totals == []


def test_what_ends_late_shows_no_bar_in_its_last_moment(clock, bar):
    with console.upload_progress() as uploaded:
        uploaded(0, 10)
        clock.now += 5
        uploaded(10, 10)
    assert bar.totals == []


def test_a_pipe_gets_nothing():
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_terminal_gets_a_bar_in_bytes():
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", 0) as terminal:
        done = subprocess.Popen(
            [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=slave,
            env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(slave)
        shown = read_all(terminal)
        assert done.communicate() == (b"False\n", None)
    assert done.returncode == 0
    assert "Loading" in shown
    assert "100.0 MiB" in shown or "100.0/100.0 MiB" in shown


def read_all(terminal):
    """What is written to a terminal until its last writer is gone."""
    shown = b""
    while True:
        try:
            part = terminal.read(4096)
        except OSError:  # so Linux says that nobody is left
            break
        if not part:
            break
        shown += part
    return shown.decode()
