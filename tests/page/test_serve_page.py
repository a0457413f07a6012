"""The chat page in headless Chromium, with a model that says what a test wants."""

from __future__ import annotations

import re

import pytest

from tests.page import pages_seen
from tests.page.page_checks import low_contrasts, nameless, repeated_ids, scrolls_sideways
from tests.page.pages_seen import answered, ended, say
from tests.page.scripted_replies import HOSTILE, MARKDOWN

pytest.importorskip("apr_serve")
pytest.importorskip("playwright", reason="the tests' requirements are not installed")
from playwright.sync_api import expect

pytestmark = pytest.mark.needs_plugins

if not pages_seen.CHROMIUM:
    pytest.skip("there is no chromium: apt-get install chromium", allow_module_level=True)

expect.set_options(timeout=30_000)  # milliseconds: other tests may be at work beside these


@pytest.fixture(scope="module")
def address():
    with pages_seen.scripted() as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with pages_seen.browser() as browser:
        yield browser


@pytest.fixture
def open_page(chromium, address):
    """Opens a page in a browser of its own; at the end nothing may have gone wrong in it."""
    with pages_seen.visits(chromium, address) as opened:
        yield opened


@pytest.fixture
def page(open_page):
    return ready(open_page())


def ready(page):
    expect(page.get_by_label("Model", exact=True)).to_have_value("demo")
    return page


def test_an_answer_is_seen_while_it_comes(page):
    say(page, "long")
    answer = page.locator(".answer .prose").last
    expect(answer).to_contain_text("Line 3 of many.")
    expect(page.get_by_role("button", name="Stop answering")).to_be_visible()
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "true")
    assert "Line 399" not in answer.inner_text()


def test_escape_stops_it_and_the_server_is_told(page):
    say(page, "long")
    expect(page.locator(".answer .prose").last).to_contain_text("Line 2 of many.")
    page.keyboard.press("Escape")
    expect(ended(page)).to_contain_text("Stopped.")
    for _ in range(600):
        if {"disconnected": True} in page.request.get(page.url + "seen").json():
            return
        page.wait_for_timeout(50)
    raise AssertionError("the server went on")


def test_the_button_stops_it_too(page):
    say(page, "long")
    expect(page.locator(".answer .prose").last).to_contain_text("Line 1 of many.")
    page.get_by_role("button", name="Stop answering").click()
    expect(ended(page)).to_contain_text("Stopped.")


def test_thoughts_are_open_while_they_come_and_folded_when_the_answer_begins(page):
    say(page, "think")
    thoughts = page.locator("details.reasoning")
    expect(thoughts).to_have_attribute("open", "")
    expect(thoughts).to_contain_text("The person wants")
    expect(thoughts).not_to_have_attribute("open", "")
    expect(thoughts.locator("summary")).to_contain_text("Thought for")
    expect(ended(page).locator("strong")).to_have_text("42")
    thoughts.locator("summary").click()
    expect(thoughts.locator("li").first).to_have_text("tens: 10 + 30 = 40")


def test_a_reader_who_folds_the_thoughts_is_not_overruled(page):
    say(page, "think")
    page.locator("details.reasoning summary").click()
    expect(page.locator("details.reasoning")).not_to_have_attribute("open", "")
    page.locator("details.reasoning summary").click()
    ended(page)
    expect(page.locator("details.reasoning")).to_have_attribute("open", "")


def test_markdown_is_rendered(page):
    answer = answered(page, "markdown").locator(".prose").last
    expect(answer.locator("h4")).to_have_text("Sorting, compared")
    expect(answer.locator("strong")).to_have_text("in place")
    expect(answer.locator("th")).to_have_text(["Algorithm", "Average", "Worst", "Stable"])
    expect(answer.locator("tbody tr").last.locator("td").nth(2)).to_have_text("n²")
    expect(answer.locator("ol > li > ul > li")).to_have_text(
        ["the first element is simple", "a random one is safer"]
    )
    expect(answer.locator("blockquote")).to_contain_text("Premature")
    expect(answer.locator("hr")).to_have_count(1)
    expect(answer.locator("del")).to_have_text("bubble sort")
    expect(answer.locator("pre .token-keyword").first).to_have_text("def")
    link = answer.get_by_role("link", name="the article")
    assert link.get_attribute("href") == "https://example.org/sorting"
    assert "noopener" in link.get_attribute("rel")


def test_code_is_copied_as_it_is(open_page):
    page = ready(open_page(permissions=["clipboard-read", "clipboard-write"]))
    answered(page, "markdown").get_by_role("button", name="Copy code, python").click()
    expect(page.get_by_role("button", name="Copy code, python")).to_have_text("Copied")
    code = MARKDOWN.split("```python\n")[1].split("\n```")[0]
    assert page.evaluate("navigator.clipboard.readText()") == code


def test_hostile_text_does_nothing(page):
    answer = answered(page, "hostile")
    bad = "script, style, iframe, img, svg, form, input, b, [onerror], [onclick], [onmouseover]"
    for place in (answer.locator(".prose").first, answer.locator(".prose").last):
        assert place.locator(bad).count() == 0
        links = place.locator("a").evaluate_all("all => all.map((a) => a.href)")
        assert all(re.match(r"https://(evil\.example|example\.org)/", link) for link in links), (
            links
        )
    expect(answer.locator(".prose").last).to_contain_text("<script>window.hacked = 1</script>")
    for link in answer.locator(".unsafe-link").all():
        if link.is_visible():
            link.click()
    assert page.evaluate("window.hacked") is None


def test_what_a_person_writes_is_text(page):
    answered(page, HOSTILE)
    expect(page.locator(".bubble")).to_have_text(HOSTILE.strip(), use_inner_text=True)
    assert page.locator(".bubble *").count() == 0
    assert page.evaluate("window.hacked") is None


def test_chats_survive_a_reload_until_they_are_deleted(page):
    answered(page, "markdown")
    before = page.locator(".answer").inner_text()
    page.reload()
    assert page.locator(".answer").inner_text() == before
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#welcome")).to_be_visible()
    page.get_by_role("button", name="markdown", exact=True).click()
    expect(page.locator(".answer table")).to_be_visible()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete all chats").click()
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()
    assert page.evaluate("Object.keys(localStorage).filter((k) => k.includes('chat'))") == []


def test_an_answer_cut_off_by_a_reload_says_so(page):
    say(page, "long")
    expect(page.locator(".answer .prose").last).to_contain_text("Line 2 of many.")
    page.reload()
    expect(page.locator(".answer")).to_contain_text("Line 1 of many.")
    expect(page.locator(".answer")).to_contain_text("The page was left")


def test_settings_go_with_the_request_and_survive(page):
    page.get_by_role("button", name="Settings").click()
    for label, value in {
        "System prompt": "Be brief.",
        "Temperature": "0.5",
        "Top p": "0.9",
        "Top k": "20",
        "Seed": "7",
        "Maximum answer length": "64",
    }.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("Thinking").select_option("off")
    page.get_by_role("button", name="Done").click()
    page.reload()
    answered(ready(page), "hello")
    sent = page.request.get(page.url + "seen").json()[-1]
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
    ]
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    numbers = {"temperature": 0.5, "top_p": 0.9, "top_k": 20, "seed": 7, "max_tokens": 64}
    assert {name: sent[name] for name in numbers} == numbers


def test_nothing_is_sent_that_was_not_set(page):
    answered(page, "hello")
    sent = page.request.get(page.url + "seen").json()[-1]
    assert set(sent) == {"model", "messages", "stream", "stream_options"}


def test_speed_and_cached_tokens_are_told(page):
    answer = answered(page, "markdown")
    expect(answer).to_contain_text(
        re.compile(r"\d tok/s · first token .* · \d+ tokens · prompt 1,310, 1,204 cached")
    )


def test_the_last_message_can_be_edited_and_the_answer_regenerated(page):
    answered(page, "one")
    answered(page, "two")
    page.get_by_role("button", name="Edit this message").last.click()
    page.get_by_role("textbox", name="Message").fill("three")
    page.keyboard.press("Enter")
    expect(ended(page)).to_contain_text("You said: three")
    expect(page.locator(".bubble")).to_have_text(["one", "three"])
    page.get_by_role("button", name="Generate this answer anew").last.click()
    expect(ended(page)).to_contain_text("You said: three")
    expect(page.locator(".turn")).to_have_count(4)
    sent = page.request.get(page.url + "seen").json()[-1]
    assert [message["content"] for message in sent["messages"]] == ["one", "You said: one", "three"]


def test_a_refusal_is_shown_in_the_servers_words(page):
    answer = answered(page, "full")
    expect(answer.get_by_role("alert")).to_contain_text("The queue is full: 64 requests wait")
    answer.get_by_role("button", name="Try again").click()
    expect(ended(page).get_by_role("alert")).to_contain_text("The queue is full")
    expect(page.locator(".answer")).to_have_count(1)


def test_an_error_in_midstream_keeps_what_came(page):
    answer = answered(page, "dies")
    expect(answer).to_contain_text("Half an ans")
    expect(answer.get_by_role("alert")).to_contain_text("The engine ran out of memory")


def test_an_answer_at_its_limit_says_so(page):
    expect(answered(page, "cut")).to_contain_text("reached its token limit")


def test_a_call_of_a_tool_is_readable_and_can_be_answered(page):
    answer = answered(page, "weather")
    expect(answer.locator(".call")).to_contain_text("get_weather")
    expect(answer.locator(".call dt")).to_have_text(["city", "days"])
    expect(answer.locator(".call dd")).to_have_text(["Zürich", "3"])
    page.get_by_label("Result of get_weather").fill("21 °C and sunny")
    page.get_by_role("button", name="Send result").click()
    expect(ended(page)).to_contain_text("It is sunny in Zürich")
    call, result = page.request.get(page.url + "seen").json()[-1]["messages"][1:]
    assert call["tool_calls"][0]["id"] == result["tool_call_id"] == "call_0"
    assert call["reasoning_content"] == "I need the weather."


def test_text_that_arrives_does_not_move_a_reader_who_scrolled_up(page):
    say(page, "long")
    expect(page.locator(".answer .prose").last).to_contain_text("Line 30 of many.")
    at_end = "s => s.scrollHeight - s.scrollTop - s.clientHeight < 70"
    assert page.locator("#scroller").evaluate(at_end)
    page.locator("#scroller").hover()
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(200)
    before = page.locator("#scroller").evaluate("s => s.scrollTop")
    page.wait_for_timeout(400)
    assert page.locator("#scroller").evaluate("s => s.scrollTop") == before
    page.get_by_role("button", name="Newest").click()
    page.wait_for_timeout(200)
    assert page.locator("#scroller").evaluate(at_end)
    page.keyboard.press("Escape")


def test_the_keyboard_is_enough(page):
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(ended(page)).to_contain_text("You said: one")
    expect(page.locator(".bubble")).to_have_text("one\ntwo", use_inner_text=True)
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    page.reload()
    ready(page)
    wanted = [
        "Skip to the message field", "Model", "Theme: as the system", "Settings", "New chat",
        "Edit this message", "Copy answer", "Generate this answer anew", "Message", "Send",
    ]  # fmt: skip
    assert [name for name in tabbed_through(page) if name in wanted] == wanted
    page.get_by_role("button", name="Settings").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Settings")).to_be_focused()


def tabbed_through(page, first="Skip to the message field"):
    """What Tab comes by, once round."""
    names = []
    focused = "document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()"
    for _ in range(60):
        page.keyboard.press("Tab")
        names.append(page.evaluate(focused))
        if names.count(first) == 2:
            return names[names.index(first) : -1]
    raise AssertionError(f"no way round: {names}")


def test_a_finished_answer_is_announced_and_a_growing_one_is_not(page):
    say(page, "think")
    expect(page.locator(".answer .prose").last).to_contain_text("12")
    ended(page)
    expect(page.locator("#announcer")).to_have_text("Answer: 12 + 30 = **42**.")
    assert page.locator("#announcer").get_attribute("aria-live") == "polite"
    assert page.locator("[aria-live]").count() == 1


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_scrolls_sideways_on_a_phone(open_page, width):
    page = open_page(viewport={"width": width, "height": 800}, has_touch=True, is_mobile=True)
    answered(ready(page), "markdown")
    answered(page, "W" * 300)
    assert not scrolls_sideways(page)
    for button in page.locator(".top button:visible").all():
        box = button.bounding_box()
        assert box["x"] + box["width"] <= width and min(box["width"], box["height"]) >= 40
    page.get_by_role("button", name="Chats").click()
    expect(page.locator("#chats button.open")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#chats button.open")).not_to_be_visible()
    page.get_by_role("button", name="Settings").click()
    assert not scrolls_sideways(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/status"])
def test_everything_has_a_name_and_enough_contrast(open_page, scheme, path):
    page = open_page(path, color_scheme=scheme)
    if path == "/":
        answered(ready(page), "think")
        answered(page, "weather")
        answered(page, "full")
        answered(page, "markdown")
        page.locator("summary").first.click()
    else:
        expect(page.locator("#model-rows th")).to_have_text("demo")
    assert low_contrasts(page) == []
    assert nameless(page) == []
    assert repeated_ids(page) == []
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("h1").count() == 1 and page.locator("main").count() == 1


def test_the_theme_follows_the_system_until_it_is_switched(open_page):
    page = open_page(color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert light != dark
    page.get_by_role("button", name="Theme").click()
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) == light
    page.reload()
    assert page.evaluate(background) == light
    page.get_by_role("button", name="Theme: light").click()
    assert page.evaluate(background) == dark


def test_nothing_moves_for_those_who_asked_for_that(open_page):
    page = ready(open_page(reduced_motion="reduce"))
    say(page, "think")
    moving = "document.getAnimations().filter((a) => a.playState === 'running').length"
    assert page.evaluate(moving) == 0


def test_a_server_with_a_key_is_asked_with_one(open_page):
    with pages_seen.scripted(SCRIPTED_KEY="open-sesame") as address:
        page = open_page(at=address)
        page.get_by_role("textbox", name="API key").fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("dialog")).to_contain_text("This server wants an API key.")
        page.get_by_role("textbox", name="API key").fill("open-sesame")
        page.get_by_role("button", name="Use this key").click()
        expect(answered(ready(page), "hello")).to_contain_text("You said: hello")
        assert "open-sesame" not in page.evaluate("JSON.stringify(localStorage)")
        page.goto(address + "/status")
        expect(page.locator("#model-rows th")).to_have_text("demo")


def test_a_server_that_is_gone_is_told_in_words(open_page):
    with pages_seen.scripted() as address:
        page = ready(open_page(at=address))
    page.route("**/*", lambda route: route.abort())
    say(page, "hello")
    expect(ended(page).get_by_role("alert")).to_contain_text("The server cannot be reached.")


def test_the_status_page_draws_what_happens(open_page):
    page = ready(open_page())
    status = open_page("/status")
    expect(status.locator(".chart")).to_have_count(5)
    answered(page, "think")
    speed = status.get_by_role("img", name="Tokens per second, now:")
    expect(
        status.get_by_role("img", name=re.compile("Time to first token, now: median [0-9]"))
    ).to_be_visible()
    expect(speed.locator("path.line")).to_have_count(3)
    figure = status.locator(".chart", has=status.get_by_role("heading", name="Between tokens"))
    figure.locator("summary").click()
    expect(figure.locator("tbody td").nth(1)).to_have_text(re.compile(r"\d+ ms"))
    expect(status.locator(".tile", has_text="Generated")).to_contain_text("so far")
    status.get_by_role("button", name="Pause").click()
    expect(status.locator("#state")).to_have_text("Paused")


def test_the_status_page_waits_for_a_server_that_is_away(open_page):
    status = open_page("/status")
    expect(status.locator("#state")).to_contain_text("Up for")
    status.route("**/status.json", lambda route: route.abort())
    expect(status.locator("#state")).to_contain_text("cannot be reached")
    status.unroute("**/status.json")
    expect(status.locator("#state")).to_contain_text("Up for")


@pytest.mark.parametrize("width", [320, 390])
def test_the_status_page_fits_a_phone(open_page, width):
    status = open_page("/status", viewport={"width": width, "height": 800}, is_mobile=True)
    expect(status.locator("#model-rows th")).to_have_text("demo")
    assert not scrolls_sideways(status)


def test_a_message_sent_before_the_models_are_known_goes_out_once(page):
    held = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    say(page, "Hello")
    page.get_by_role("textbox", name="Message").press("Enter")
    page.wait_for_timeout(100)
    assert len(held) == 1
    held[0].continue_()
    expect(ended(page)).not_to_be_empty()
    expect(page.locator(".answer")).to_have_count(1)
    expect(page.get_by_role("textbox", name="Message")).to_have_value("")
