"""The scripted server in a process of its own, and a browser that looks at its pages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
DESKTOP = {"width": 1280, "height": 800}
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@contextmanager
def scripted(**environment):
    """The address of a scripted server; `SCRIPTED_...` variables say how it is."""
    port = free_port()
    command = [
        sys.executable, "-m", "granian", "--interface", "asgi", "--no-log",
        "--port", str(port), "tests.page.scripted_chat:app",
    ]  # fmt: skip
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment})
    try:
        wait_for(f"http://127.0.0.1:{port}/page/icon.svg", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def wait_for(address, server):
    for _ in range(200):
        assert server.poll() is None, "the scripted server ended at once"
        try:
            httpx.get(address).raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"nothing answers at {address}")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def browser(**options):
    """Headless Chromium; options are of playwright's `launch`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, **options)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def visits(browser, address):
    """Opens pages, each in a context of its own; at the end nothing may have gone wrong in any."""
    contexts, problems = [], []

    def opened(path="/", viewport=DESKTOP, at=address, **options):
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if _is_problem(m) else None)
        page.goto(at + path)
        return page

    try:
        yield opened
    finally:
        for context in contexts:
            context.close()
    assert not problems


def _is_problem(message):
    """The browser's own line about a request that failed is no problem: tests make them fail."""
    mentions = message.text.startswith("Failed to load resource")
    return message.type in ("error", "warning") and not mentions


def say(page, text):
    """Send a message."""
    page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def ended(page):
    """The answer, once it has ended."""
    from playwright.sync_api import expect

    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    return page.locator(".answer").last


def answered(page, text):
    """The answer to a message."""
    say(page, text)
    return ended(page)
