"""The page's Markdown: the same in pieces as in one, whatever comes, and never slow."""

from __future__ import annotations

import pytest

from tests.page import pages_seen
from tests.page.scripted_replies import HOSTILE, MARKDOWN

pytest.importorskip("apr_serve")
pytest.importorskip("playwright", reason="the tests' requirements are not installed")
if not pages_seen.CHROMIUM:
    pytest.skip("there is no chromium: apt-get install chromium", allow_module_level=True)

WHOLE = """async (text) => {
  const { renderMarkdown } = await import("./page/markdown.js");
  const box = document.createElement("div");
  box.append(...renderMarkdown(text));
  return box.innerHTML;
}"""
IN_PIECES = """async ([text, size]) => {
  const { MarkdownStream } = await import("./page/markdown.js");
  const box = document.createElement("div");
  const stream = new MarkdownStream(box);
  for (let at = 0; at < text.length; at += size) {
    stream.push(text.slice(at, at + size));
    stream.render(false);
  }
  stream.finish();
  return box.innerHTML;
}"""
SECONDS = """async (text) => {
  const { renderMarkdown } = await import("./page/markdown.js");
  const began = performance.now();
  renderMarkdown(text);
  return (performance.now() - began) / 1000;
}"""
KEPT = """async (text) => {
  const { MarkdownStream } = await import("./page/markdown.js");
  const box = document.createElement("div");
  const stream = new MarkdownStream(box);
  stream.push("first\\n\\nsecond\\n\\nthird ");
  stream.render(false);
  const [first, second, third] = box.children;
  stream.push("goes on");
  stream.render(false);
  const same = [box.children[0] === first, box.children[1] === second, box.children[2] === third];
  stream.push("\\nand on");
  stream.render(false);
  return [...same, stream.pending];
}"""


@pytest.fixture(scope="module")
def page():
    with pages_seen.scripted() as address, pages_seen.browser() as browser:
        opened = browser.new_page()
        opened.goto(address)
        yield opened


@pytest.mark.parametrize(
    ("text", "html"),
    [
        (
            "*a* **b** ***c*** _d_ __e__ f_g_h",
            "<em>a</em> <strong>b</strong> <em><strong>c</strong></em> <em>d</em> "
            "<strong>e</strong> f_g_h",
        ),
        ("2 * 3 * 4 and a*b*c", "2 * 3 * 4 and a<em>b</em>c"),
        ("**bold *both* bold**", "<strong>bold <em>both</em> bold</strong>"),
        ("`a*b*` ``c`d`` `open", "<code>a*b*</code> <code>c`d</code> `open"),
        (r"\*not\* \`not\`", "*not* `not`"),
        ("~~gone~~ ~here~", "<del>gone</del> ~here~"),
        ("a<br>b &lt; c &#65; &unknown;", "a<br>b &lt; c A &amp;unknown;"),
        ("one\ntwo", "one<br>two"),
        ("5 < 6 > 4 & 3", "5 &lt; 6 &gt; 4 &amp; 3"),
        (
            r"\(a_b_c\) and $$x*y*z$$",
            '<span class="math">a_b_c</span> and <span class="math">x*y*z</span>',
        ),
        ("costs $5 or $6", "costs $5 or $6"),
    ],
)
def test_the_inside_of_a_paragraph(page, text, html):
    assert page.evaluate(WHOLE, text) == f'<p dir="auto">{html}</p>'


@pytest.mark.parametrize(
    ("text", "href"),
    [
        ("[a](https://example.org/a_(b))", "https://example.org/a_(b)"),
        ("[a](<https://example.org/a b>)", "https://example.org/a%20b"),
        ("<https://example.org/?a=1&b=2>", "https://example.org/?a=1&b=2"),
        ("see https://example.org/x_y_z.", "https://example.org/x_y_z"),
        ("(https://example.org/)", "https://example.org/"),
        ("<someone@example.org>", "mailto:someone@example.org"),
        ("[**bold** `code`](http://example.org)", "http://example.org/"),
    ],
)
def test_links(page, text, href):
    link = page.evaluate('(html) => /href="([^"]*)"/.exec(html)?.[1]', page.evaluate(WHOLE, text))
    assert link.replace("&amp;", "&") == href


@pytest.mark.parametrize(
    ("text", "html"),
    [
        (
            "- a\n- b\n  - c\n\n    more of c\n- d",
            "<ul><li>a</li><li>b<ul><li><p>c</p><p>more of c</p></li></ul></li><li>d</li></ul>",
        ),
        ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
        ("3. x\n4. y", '<ol start="3"><li>x</li><li>y</li></ol>'),
        ("1. x\n  - y", "<ol><li>x<ul><li>y</li></ul></li></ol>"),
        ("- a\n\n1. b", "<ul><li>a</li></ul><ol><li>b</li></ol>"),
        (
            "- [x] a\n- [ ] b",
            '<ul><li><input type="checkbox" disabled="" checked="" aria-label="done">a</li>'
            '<li><input type="checkbox" disabled="" aria-label="to do">b</li></ul>',
        ),
        (
            "> a\n> > b\nlazy",
            "<blockquote><p>a</p><blockquote><p>b<br>lazy</p></blockquote></blockquote>",
        ),
        ("# a #\n#no\n####### no", "<h3>a</h3><p>#no<br>####### no</p>"),
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("text 1\n2. is no list", "<p>text 1<br>2. is no list</p>"),
        (
            "a | b\n--|--\n1 | `x|y`\n2 \\| 3 |",
            '<div class="wide" tabindex="0" role="region" aria-label="Table"><table>'
            "<thead><tr><th>a</th><th>b</th></tr></thead><tbody>"
            "<tr><td>1</td><td><code>x|y</code></td></tr>"
            "<tr><td>2 | 3</td><td></td></tr></tbody></table></div>",
        ),
    ],
)
def test_blocks(page, text, html):
    assert page.evaluate(WHOLE, text).replace(' dir="auto"', "") == html


CORPUS = [
    MARKDOWN,
    HOSTILE,
    "1. a\n\n2. b\n\n3. c\n   ```py\n   x = 1\n   ```\n4. d\n\ntext\n- x\n* y\n+ z\n",
    "a\n\n```\nnever closed\n\n# not a heading\n",
    "```js\nlet a = `x`;\n```\n~~~\n```\n~~~\n````md\n```\n````\nend",
    "| a | b |\n|---|---|\n| 1 | 2 |\ntext\n\n| no | table |\n",
    "> quote\n> - list\n>   more\n\n> again\n\n---\n***\n\\[ x_1 \\]\n\n$$\na\n$$\n",
    "- a\n\n\n  b\n\n\n\nc\r\nd\r\n\r\n\te\n",
    "# h\n## h2\ntext *open\n\nclosed* **x\n",
]


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("text", CORPUS)
def test_in_pieces_it_becomes_the_same(page, text, size):
    assert page.evaluate(IN_PIECES, [text, size]) == page.evaluate(WHOLE, text)


def test_comments_and_strings_of_several_lines_have_one_colour(page):
    html = page.evaluate(WHOLE, '```py\n"""a\nb"""\nx = 1  # c\n```\n```js\n/* a\nb */ let y\n```')
    for piece in ('string">"""a\nb"""</span>', 'comment"># c</span>', 'comment">/* a\nb */</span>'):
        assert f'<span class="token-{piece}' in html
    assert '<span class="token-keyword">let</span>' in html


def test_what_is_complete_is_not_rendered_again(page):
    first, second, third, pending = page.evaluate(KEPT, "")
    assert (first, second, third) == (True, True, False)
    assert pending == "third goes on\nand on"


@pytest.mark.parametrize(
    "text",
    [
        "*a " * 30_000, "**a_ " * 20_000, "[" * 60_000, "![a](" * 20_000, "`" * 60_000,
        " ".join("`" * n for n in range(1, 400)), ">" * 60_000, "> " * 30_000, "- " * 30_000,
        "&" * 60_000, "<" * 60_000, "<a@" * 20_000, "\\(" * 30_000, "$$a\n" * 20_000,
        "|" * 30_000 + "\n" + "|-" * 400, "| a " * 5_000 + "\n" + "|---" * 5_000,
        "a" + " " * 60_000 + "b", "#" * 60_000, "# " + " #" * 30_000, "https://" * 8_000,
        "1. " * 20_000, "~~a" * 20_000, "\n" * 60_000, "```\n" * 20_000, "_a_" * 20_000,
        "".join("  " * n + "- x\n" for n in range(300)),
    ],
    ids=lambda text: repr(text[:8]),
)  # fmt: skip
def test_no_text_makes_the_page_hang(page, text):
    assert page.evaluate(SECONDS, text) < 2.0
