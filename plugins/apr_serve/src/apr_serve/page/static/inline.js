// The inside of a paragraph: text with Markdown's marks in, DOM nodes out.
//
// Marks are resolved as CommonMark resolves them (a stack of delimiters and one of brackets), in
// time that grows with the text, however hostile. HTML is text, except a lone <br>.
import { element } from "./dom.js";

const DEEPEST = 16; // elements in each other; what is deeper stays text
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

const ESCAPED = /\\([!-/:-@[-`{-~])/y;
const TICKS = /`+/y;
const ENTITY = /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([a-z]{2,6}));/y;
const ANGLED =
  /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000}|[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,8})>/y;
const BREAK = /<br\s{0,4}\/?>/iy;
const BARE = /https?:\/\/[^\s<>`]{1,2000}/y;
const TARGET =
  /\(\s{0,8}(?:<([^<>\n]{0,2000})>|((?:[^\s()\\]|\\.|\([^\s()]{0,500}\)){0,2000}))(?:\s{1,8}(?:"[^"\n]{0,500}"|'[^'\n]{0,500}'))?\s{0,8}\)/y;
const PLAIN = /[^\\`*_~[\]!<&\nh$]+/y;
const MATH = /\\\(([^\n]{1,2000}?)\\\)|\$\$([^\n$]{1,2000})\$\$/y;

/** Whether a link may be followed: only what a browser opens as a page or a letter. */
export function safeAddress(address) {
  try {
    const url = new URL(address);
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null; // relative addresses would lead into this server
  }
}

export function renderInline(text) {
  return new Inline(text).nodes();
}

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.items = []; // {node, depth} | {text} | {mark, count, opens, closes} | {bracket}
    this.brackets = [];
    this.unclosedTicks = new Set();
  }

  nodes() {
    while (this.at < this.text.length) this.step();
    emphasize(this.items, 0);
    return this.items.map(nodeOf);
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  take(length, item) {
    this.at += length;
    this.items.push(item);
  }

  step() {
    const plain = this.match(PLAIN);
    if (plain) return this.take(plain[0].length, { text: plain[0] });
    const character = this.text[this.at];
    const special = this[SPECIAL[character]];
    if (!(special && special.call(this, character))) this.take(1, { text: character });
  }

  backslash() {
    const math = this.match(MATH);
    if (math) return this.math(math);
    if (this.text[this.at + 1] === "\n") return this.lineBreak(2);
    const escaped = this.match(ESCAPED);
    if (escaped) this.take(2, { text: escaped[1] });
    return Boolean(escaped);
  }

  dollar() {
    const math = this.match(MATH);
    return math ? this.math(math) : false;
  }

  math(found) {
    const formula = element("span", { class: "math" }, found[1] ?? found[2]);
    this.take(found[0].length, { node: formula, depth: 1 });
    return true;
  }

  code() {
    const ticks = this.match(TICKS)[0];
    const end = this.closingTicks(ticks.length);
    if (end < 0) this.take(ticks.length, { text: ticks });
    else {
      const inside = this.text.slice(this.at + ticks.length, end).replaceAll("\n", " ");
      const padded = /^ .*[^ ].* $/.test(inside) ? inside.slice(1, -1) : inside;
      const node = element("code", {}, padded);
      this.take(end + ticks.length - this.at, { node, depth: 1 });
    }
    return true;
  }

  closingTicks(length) {
    if (this.unclosedTicks.has(length)) return -1;
    const runs = /`+/g;
    runs.lastIndex = this.at + length;
    for (let run = runs.exec(this.text); run; run = runs.exec(this.text)) {
      if (run[0].length === length) return run.index;
    }
    this.unclosedTicks.add(length);
    return -1;
  }

  delimiter(mark) {
    let end = this.at;
    while (this.text[end] === mark) end++;
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[end] ?? " ";
    const left =
      !isSpace(after) && (!isPunctuation(after) || isSpace(before) || isPunctuation(before));
    const right =
      !isSpace(before) && (!isPunctuation(before) || isSpace(after) || isPunctuation(after));
    const word = mark === "_"; // not inside of words
    const opens = left && (!word || !right || isPunctuation(before));
    const closes = right && (!word || !left || isPunctuation(after));
    this.take(end - this.at, { mark, count: end - this.at, opens, closes });
    return true;
  }

  image() {
    if (this.text[this.at + 1] !== "[") return false;
    this.brackets.push({ index: this.items.length, image: true, active: true });
    this.take(2, { text: "![" });
    return true;
  }

  opening() {
    this.brackets.push({ index: this.items.length, image: false, active: true });
    this.take(1, { text: "[" });
    return true;
  }

  closing() {
    const opener = this.brackets.pop();
    if (!opener || !opener.active) return false;
    this.at += 1;
    const target = this.match(TARGET);
    this.at -= 1;
    if (!target) return false;
    this.link(opener, target);
    return true;
  }

  link(opener, target) {
    const label = this.items.splice(opener.index).slice(1);
    emphasize(label, 0);
    const nodes = label.map(nodeOf);
    const address = (target[1] ?? target[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1");
    // pictures are not loaded from anywhere: their description is a link to them
    if (opener.image) nodes.unshift("🖼 ");
    this.take(target[0].length + 1, { node: linkTo(address, nodes), depth: depthOf(label) + 1 });
    if (!opener.image) for (const outer of this.brackets) outer.active &&= outer.image;
  }

  angle() {
    const broken = this.match(BREAK);
    if (broken) return this.lineBreak(broken[0].length);
    const found = this.match(ANGLED);
    if (!found) return false;
    const address = /^(https?|mailto):/i.test(found[1]) ? found[1] : `mailto:${found[1]}`;
    this.take(found[0].length, { node: linkTo(address, [found[1]]), depth: 1 });
    return true;
  }

  bare() {
    const found = /\w/.test(this.text[this.at - 1] ?? " ") ? null : this.match(BARE);
    if (!found) return false;
    const address = withoutTrailing(found[0]);
    // inside of [..](..) the brackets decide, not the address in it
    if (this.brackets.some((bracket) => bracket.active)) return false;
    this.take(address.length, { node: linkTo(address, [address]), depth: 1 });
    return true;
  }

  entity() {
    const found = this.match(ENTITY);
    const character = found && characterOf(found);
    if (character) this.take(found[0].length, { text: character });
    return Boolean(character);
  }

  newline() {
    const last = this.items.at(-1);
    if (last?.text) last.text = last.text.trimEnd();
    return this.lineBreak(1);
  }

  lineBreak(length) {
    this.take(length, { node: element("br"), depth: 1 });
    return true;
  }
}

const SPECIAL = {
  "\\": "backslash",
  "`": "code",
  "*": "delimiter",
  _: "delimiter",
  "~": "delimiter",
  "!": "image",
  "[": "opening",
  "]": "closing",
  "<": "angle",
  "&": "entity",
  "\n": "newline",
  h: "bare",
  $: "dollar",
};

/** Wraps what lies between matching delimiters, in place. */
function emphasize(items, from) {
  const bottoms = {}; // below which a kind of closer has no opener: keeps the search linear
  for (let at = from; at < items.length; at++) {
    const closer = items[at];
    if (!closer.closes || !closer.count) continue;
    const kind = `${closer.mark}${closer.opens}${closer.count % 3}`;
    const found = openerOf(items, at, Math.max(from, bottoms[kind] ?? from));
    if (found < 0) {
      bottoms[kind] = at;
      continue;
    }
    wrap(items, found, at);
    for (const key of Object.keys(bottoms)) bottoms[key] = Math.min(bottoms[key], found + 1);
    at = found + 1; // the closer again, which may have marks left
  }
}

function openerOf(items, at, lowest) {
  const closer = items[at];
  for (let index = at - 1; index >= lowest; index--) {
    const opener = items[index];
    if (!opener.opens || !opener.count || opener.mark !== closer.mark) continue;
    if (closer.mark === "~" && (opener.count !== 2 || closer.count !== 2)) continue;
    const either = opener.closes || closer.opens;
    const third = (opener.count + closer.count) % 3 === 0 && opener.count % 3 !== 0;
    if (!(either && third)) return index;
  }
  return -1;
}

function wrap(items, found, at) {
  const opener = items[found];
  const closer = items[at];
  const width = opener.count >= 2 && closer.count >= 2 ? 2 : 1;
  const tag = opener.mark === "~" ? "del" : width === 2 ? "strong" : "em";
  const inside = items.splice(found + 1, at - found - 1);
  const depth = depthOf(inside) + 1;
  const nodes = inside.map(nodeOf);
  const node = depth > DEEPEST ? element("span", {}, plainText(nodes)) : element(tag, {}, nodes);
  opener.count -= width;
  closer.count -= width;
  items.splice(found + 1, 0, { node, depth: Math.min(depth, DEEPEST) });
}

function depthOf(items) {
  return items.reduce((deepest, item) => Math.max(deepest, item.depth ?? 0), 0);
}

function plainText(nodes) {
  return nodes.map((node) => (typeof node === "string" ? node : node.textContent)).join("");
}

function nodeOf(item) {
  if (item.node) return item.node;
  return item.mark ? item.mark.repeat(item.count) : item.text;
}

function linkTo(address, nodes) {
  const safe = safeAddress(address);
  if (!safe)
    return element("span", { class: "unsafe-link", title: "A link that is not opened" }, nodes);
  const rel = "noopener noreferrer nofollow";
  return element("a", { href: safe, rel, target: "_blank" }, nodes);
}

function withoutTrailing(address) {
  const trimmed = address.replace(/[.,:;"'!?*_~\]}]+$/, "");
  const unopened = trimmed.endsWith(")") && !trimmed.includes("(");
  return unopened ? trimmed.replace(/\)+$/, "") : trimmed;
}

function characterOf([, decimal, hexadecimal, name]) {
  if (name) return ENTITIES[name] ?? null;
  const code = decimal ? Number.parseInt(decimal, 10) : Number.parseInt(hexadecimal, 16);
  const valid = code > 31 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000);
  return valid ? String.fromCodePoint(code) : null;
}

function isSpace(character) {
  return /\s/.test(character);
}

function isPunctuation(character) {
  return /[!-/:-@[-`{-~]|\p{P}|\p{S}/u.test(character);
}
