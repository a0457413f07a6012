"""Pictures of the pages in `docs/images/`: `python -m docs.screenshots`, with chromium installed.

The model that answers is scripted (tests/page/scripted_chat.py), so that they change only
with the page.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.page import pages_seen

IMAGES = Path(__file__).parent / "images"
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
QUESTIONS = ("What is 12 plus 30?", "Compare two sorting algorithms in a table.")
SECONDS_OF_CHARTS = 45


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    looks = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]
    with pages_seen.browser() as browser:
        with pages_seen.scripted(SCRIPTED_PAUSE="0.004") as address:
            for look in looks:
                chat(browser, address, *look)
        with pages_seen.scripted(SCRIPTED_BUSY="1") as address, ThreadPoolExecutor() as clients:
            for number in range(3):
                clients.submit(traffic, address, number)
            pages = [opened(browser, address + "/status", *look) for look in looks]
            pages[0].wait_for_timeout(SECONDS_OF_CHARTS * 1000)
            for page, look in zip(pages, looks, strict=True):
                page.bring_to_front()
                page.wait_for_timeout(2500)
                page.screenshot(path=IMAGES / f"status-{'-'.join(look)}.png")


def opened(browser, address, size, scheme):
    phone = {"is_mobile": True, "has_touch": True} if size == "phone" else {}
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, **phone)
    page = context.new_page()
    page.goto(address)
    return page


def chat(browser, address, size, scheme) -> None:
    page = opened(browser, address, size, scheme)
    page.wait_for_selector("#model:enabled")
    for question in QUESTIONS:
        page.fill("#message", question)
        page.click("#send")
        page.wait_for_selector("#send:not(.stop)")
    page.locator(".bubble").last.evaluate("bubble => bubble.scrollIntoView()")
    page.wait_for_timeout(300)
    page.screenshot(path=IMAGES / f"chat-{size}-{scheme}.png")


def traffic(address: str, number: int) -> None:
    """Requests one after another, so that the latencies have something to show."""
    body = {"messages": [{"role": "user", "content": "markdown" if number else "think"}]}
    for _ in range(24):
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)


if __name__ == "__main__":
    main()
