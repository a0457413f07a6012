"""The pages of the real server, with the bundled model, in headless Chromium."""

from __future__ import annotations

import re

import pytest

from tests.page import pages_seen
from tests.page.pages_seen import answered
from tests.serve import serving

pytest.importorskip("apr_serve")
pytest.importorskip("playwright", reason="the tests' requirements are not installed")
from playwright.sync_api import expect

pytestmark = pytest.mark.needs_plugins

if not pages_seen.CHROMIUM:
    pytest.skip("there is no chromium: apt-get install chromium", allow_module_level=True)

expect.set_options(timeout=30_000)  # milliseconds: other tests may be at work beside these


@pytest.fixture
def open_page():
    with pages_seen.browser() as browser, pages_seen.visits(browser, "") as opened:
        yield opened


def test_the_bundled_model_is_chatted_with_through_the_real_server(open_page):
    page = open_page(at=serving.shared().url)
    expect(page.get_by_label("Model", exact=True)).to_have_value("sums")
    expect(answered(page, "What is 12 plus 30?")).to_contain_text("42")
    expect(answered(page, "What is 7 plus 8?")).to_contain_text(re.compile(r"\d+ cached"))
    page.goto(serving.shared().url + "/status")
    expect(page.locator("#model-rows tr")).to_contain_text("sums")
    expect(page.locator(".tile", has_text="Slots")).to_contain_text("of 8")


def test_the_real_server_lets_the_pages_ask_for_its_key(open_page):
    with serving.serving(APR_API_KEY="open-sesame-1234") as server:
        page = open_page(at=server.url)
        page.get_by_role("textbox", name="API key").fill("open-sesame-1234")
        page.get_by_role("button", name="Use this key").click()
        expect(answered(page, "What is 2 plus 3?")).to_contain_text("5")


def test_the_api_is_described_without_anything_from_elsewhere(open_page):
    with serving.serving(APR_API_KEY="open-sesame-1234") as server:
        page, asked = open_page("/docs", at=server.url), []
        page.on("request", lambda request: asked.append(request.url))
        page.reload()
        page.get_by_role("button", name="Authorize").first.click()
        page.get_by_label("auth-bearer-value").fill("open-sesame-1234")
        page.get_by_role("button", name="Apply credentials").click()
        page.get_by_role("button", name="Close").click()
        models = page.locator(".opblock", has_text="/v1/models").first
        models.get_by_role("button", name=re.compile("get")).first.click()
        models.get_by_role("button", name="Try it out").click()
        models.get_by_role("button", name="Execute").click()
        expect(models.locator(".live-responses-table")).to_contain_text('"id": "sums"')
        assert {"openapi.json", "swagger-ui.css"} <= {url.rsplit("/")[-1] for url in asked}
        assert not [url for url in asked if not url.startswith((server.url, "data:"))]
