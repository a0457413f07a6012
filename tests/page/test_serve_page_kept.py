"""What the chat page keeps in the browser: over tabs, deletions and ways back to the page."""

from __future__ import annotations

import pytest

from tests.page import pages_seen

pytest.importorskip("apr_serve")
pytest.importorskip("playwright", reason="the tests' requirements are not installed")
from playwright.sync_api import expect

pytestmark = pytest.mark.needs_plugins

if not pages_seen.CHROMIUM:
    pytest.skip("there is no chromium: apt-get install chromium", allow_module_level=True)

expect.set_options(timeout=30_000)
KEPT = """() => Object.entries(localStorage).filter(([key]) => key.startsWith("apr.chat."))
    .map(([, chat]) => JSON.parse(chat).messages.map((message) => message.content)).sort()"""
AS_PEOPLE_HAVE_IT = {"ignore_default_args": ["--disable-back-forward-cache"]}


@pytest.fixture(scope="module")
def address():
    with pages_seen.scripted(SCRIPTED_PAUSE="0.03") as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with pages_seen.browser(**AS_PEOPLE_HAVE_IT) as browser:
        yield browser


@pytest.fixture
def tab(chromium, address):
    """Opens tabs of one browser, which share what it keeps."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})

    def opened():
        page = context.new_page()
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(address)
        expect(page.get_by_label("Model", exact=True)).to_be_enabled()
        return page

    yield opened
    context.close()


def say(page, text):
    page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.get_by_role("button", name="Stop answering")).to_be_visible()


def answered(page, text):
    say(page, text)
    ended(page)


def ended(page):
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


@pytest.mark.parametrize("button", ["Delete chat: markdown", "Delete all chats"])
def test_what_is_deleted_while_it_is_answered_stays_deleted(tab, button):
    page = tab()
    say(page, "markdown")
    expect(page.locator(".answer h4")).to_be_visible()
    page.get_by_role("button", name=button).click()
    ended(page)
    page.wait_for_timeout(1500)  # the page keeps what comes once a second
    assert page.evaluate(KEPT) == []


def test_a_second_tab_shows_the_same_chat_and_takes_nothing_from_it(tab):
    first = tab()
    answered(first, "one")
    second = tab()
    answered(first, "two")
    expect(second.locator(".answer")).to_have_count(2)
    second.close()
    answered(first, "three")
    texts = ["one", "You said: one", "two", "You said: two", "three", "You said: three"]
    assert first.evaluate(KEPT) == [texts]


def test_two_tabs_that_go_on_with_one_chat_keep_both(tab):
    first = tab()
    answered(first, "one")
    second = tab()
    say(first, "long")
    say(second, "markdown")
    ended(second)
    first.get_by_role("button", name="Stop answering").click()
    ended(first)
    assert {chat[2] for chat in first.evaluate(KEPT)} == {"long", "markdown"}


def test_what_one_tab_deletes_is_gone_from_the_other(tab):
    first = tab()
    answered(first, "one")
    second = tab()
    first.get_by_role("button", name="Delete chat: one").click()
    expect(second.locator("#welcome")).to_be_visible()
    expect(second.locator("#chats li")).to_have_count(0)


def test_a_page_the_browser_brings_back_goes_on(tab):
    page = tab()
    answered(page, "one")
    page.evaluate("addEventListener('pageshow', (event) => window.restored = event.persisted)")
    page.get_by_role("link", name="Status of the server").click()
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    other = tab()
    answered(other, "two")
    page.go_back(wait_until="commit")
    page.wait_for_function("window.restored")
    answered(page, "three")
    texts = ["one", "You said: one", "two", "You said: two", "three", "You said: three"]
    assert page.evaluate(KEPT) == [texts]


def test_only_the_last_answer_is_tried_again(tab):
    page = tab()
    answered(page, "dies")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    answered(page, "one")
    expect(page.locator(".error").first).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    assert page.evaluate(KEPT)[0][2:] == ["one", "You said: one"]


def test_settings_that_cannot_be_sent_are_told(tab):
    page = tab()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("-3")
    page.get_by_label("Tools, as JSON").fill("[{]")
    page.keyboard.press("Escape")
    answered(page, "one")
    expect(page.locator("#notice")).to_contain_text("Temperature; Tools, as JSON. See Settings")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset all").click()
    page.keyboard.press("Escape")
    answered(page, "two")
    expect(page.locator("#notice")).to_be_hidden()


def test_settings_that_were_reset_do_not_come_back(tab):
    page = tab()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_role("button", name="Reset all").click()
    page.wait_for_timeout(200)
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Temperature")).to_have_value("")


def test_the_model_that_was_chosen_outlives_other_settings(tab):
    page = tab()
    two = {"data": [{"id": "one"}, {"id": "two"}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=two))
    page.reload()
    page.get_by_label("Model", exact=True).select_option("two")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_role("button", name="Done").click()
    page.reload()
    expect(page.get_by_label("Model", exact=True)).to_have_value("two")
