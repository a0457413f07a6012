// Markdown to DOM nodes, for text that a model writes while it is read.
//
// Only nodes are built, never markup from strings. `MarkdownStream` keeps what is complete and
// renders anew only the last block, at most once a frame.
import { blocksOf, linesOf } from "./blocks.js";
import { copyButton, element } from "./dom.js";
import { highlighted } from "./highlight.js";
import { renderInline } from "./inline.js";

const DEEPEST = 8; // lists and quotes in each other; what is deeper stays text

/** The node of a block. */
export function renderBlock(block, depth = 0) {
  return RENDERERS[block.type](block, depth);
}

const RENDERERS = {
  // below the page's own headings, so that its outline stays one
  heading: ({ level, text }) =>
    element(`h${Math.min(level + 2, 6)}`, { dir: "auto" }, renderInline(text)),
  rule: () => element("hr"),
  math: ({ text }) => element("p", { class: "math", tabindex: "0" }, text),
  paragraph: ({ text }) => element("p", { dir: "auto" }, renderInline(text)),
  quote: ({ inside }, depth) => element("blockquote", {}, renderInside(inside, depth)),
  list: renderList,
  table: renderTable,
  code: renderCode,
};

function renderInside(lines, depth) {
  if (depth >= DEEPEST) return [element("p", {}, lines.join("\n"))];
  return blocksOf(lines).map((block) => renderBlock(block, depth + 1));
}

function renderList({ ordered, first, items, loose }, depth) {
  const start = ordered && first !== 1 ? first : undefined;
  const tasks = items.map((lines) => /^\[([ xX])\] +/.exec(lines[0]));
  const insides = items.map((lines, index) => [
    lines[0].slice(tasks[index]?.[0].length ?? 0),
    ...lines.slice(1),
  ]);
  const spaced = loose || (depth < DEEPEST && insides.some(isSpaced));
  const rows = insides.map((lines, index) => {
    const nodes = renderInside(lines, depth).flatMap((node) => tight(node, spaced));
    return element("li", { dir: "auto" }, tasks[index] && checkbox(tasks[index][1] !== " "), nodes);
  });
  return element(ordered ? "ol" : "ul", { start }, rows);
}

/** Whether a blank line lies between two blocks of an item, rather than within one of them. */
function isSpaced(lines) {
  const blocks = blocksOf(lines);
  return blocks.some((block, index) => index > 0 && block.start > blocks[index - 1].end);
}

function tight(node, loose) {
  return !loose && node.tagName === "P" && !node.className ? [...node.childNodes] : [node];
}

function checkbox(checked) {
  const label = checked ? "done" : "to do";
  return element("input", { type: "checkbox", disabled: true, checked, "aria-label": label });
}

function renderTable({ header, align, rows }) {
  const cell = (tag, text, column) =>
    element(tag, { class: align[column] || undefined, dir: "auto" }, renderInline(text));
  const head = header.map((text, column) => cell("th", text, column));
  const body = rows.map((row) =>
    element(
      "tr",
      {},
      row.map((text, column) => cell("td", text, column)),
    ),
  );
  const table = element(
    "table",
    {},
    element("thead", {}, element("tr", {}, head)),
    element("tbody", {}, body),
  );
  return element(
    "div",
    { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" },
    table,
  );
}

function renderCode({ language, code, closed }) {
  const inside = element("code", {}, closed ? highlighted(code, language) : code);
  const name = language || "text";
  const copy = copyButton(() => inside.textContent, `Copy code, ${name}`);
  const pre = element(
    "pre",
    { tabindex: "0", role: "region", "aria-label": `Code, ${name}` },
    inside,
  );
  return element(
    "div",
    { class: "code" },
    element("div", { class: "code-head" }, element("span", {}, name), copy),
    pre,
  );
}

export function renderMarkdown(text) {
  return blocksOf(linesOf(text)).map((block) => renderBlock(block));
}

/** Renders into `container` what is pushed, once a frame. */
export class MarkdownStream {
  constructor(container) {
    this.container = container;
    this.pending = ""; // from the first block on that may still change
    this.tail = []; // its blocks on the page: {source, block, node}
    this.frame = 0;
  }

  push(text) {
    this.pending += text;
    this.frame ||= requestAnimationFrame(() => this.render(false));
  }

  finish() {
    cancelAnimationFrame(this.frame);
    this.render(true);
  }

  render(final) {
    this.frame = 0;
    const lines = linesOf(this.pending);
    const blocks = blocksOf(lines);
    const tail = blocks.map((block, index) => {
      const source = lines.slice(block.start, block.end).join("\n");
      const shown = final && block.type === "code" ? { ...block, closed: true } : block;
      return this.show(this.tail[index], source, shown);
    });
    for (const left of this.tail.slice(tail.length)) left.node.remove();
    this.tail = tail;
    this.commit(lines);
  }

  show(old, source, block) {
    if (old && old.source === source && old.block.closed === block.closed) {
      return { ...old, block };
    }
    if (old && growsCode(old.block, block)) {
      old.node.querySelector("code").firstChild.appendData(block.code.slice(old.block.code.length));
      return { source, block, node: old.node };
    }
    const node = renderBlock(block);
    if (old) old.node.replaceWith(node);
    else this.container.append(node);
    return { source, block, node };
  }

  /** Forgets blocks that nothing can change: all but the last, if that is more than half a line. */
  commit(lines) {
    const last = this.tail.at(-1)?.block;
    if (!last) return;
    const half = last.start === lines.length - 1;
    const kept = this.tail.slice(half ? -2 : -1);
    const start = kept[0].block.start;
    if (!start || kept.length === this.tail.length) return;
    this.pending = lines.slice(start).join("\n");
    for (const one of kept) one.block = { ...one.block, start: 0, end: 0 };
    this.tail = kept;
  }
}

function growsCode(old, block) {
  const both = old.type === "code" && block.type === "code" && !old.closed && !block.closed;
  return (
    both && old.language === block.language && old.code !== "" && block.code.startsWith(old.code)
  );
}
