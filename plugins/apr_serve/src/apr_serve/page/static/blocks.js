// The blocks of a Markdown text: paragraphs, headings, lists, quotes, tables, code and formulas.
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( {1,4})(?=\S)| +|$)/;
const DIVIDER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const MATH = [
  ["$$", "$$"],
  ["\\[", "\\]"],
];
const LONGEST_FORMULA = 100; // lines
const LONGEST_DIVIDER = 1000; // characters

/** Lines of a text, as blocks are found in them. */
export function linesOf(text) {
  return text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n");
}

/** Blocks of lines: {type, start, end, ...}, where lines start..end-1 are the block's. */
export function blocksOf(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (isBlank(lines[at])) {
      at++;
      continue;
    }
    const block = READERS.reduce((found, read) => found ?? read(lines, at), null);
    blocks.push({ start: at, ...block });
    at = block.end;
  }
  return blocks;
}

const READERS = [
  readFence,
  readMath,
  readHeading,
  readRule,
  readQuote,
  readList,
  readTable,
  readParagraph,
];

function readFence(lines, at) {
  const opened = FENCE.exec(lines[at]);
  if (!opened) return null;
  const [, fence, info] = opened;
  const indent = indentOf(lines[at]);
  const closes = new RegExp(`^ {0,3}[${fence[0]}]{${fence.length},}[ \\t]*$`);
  let end = at + 1;
  while (end < lines.length && !closes.test(lines[end])) end++;
  const code = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent, indentOf(line))));
  const closed = end < lines.length;
  const language = info.trim().split(/\s+/)[0];
  return { type: "code", language, code: code.join("\n"), closed, end: closed ? end + 1 : end };
}

function readMath(lines, at) {
  const first = lines[at].trim();
  const marks = MATH.find(([open]) => first.startsWith(open));
  if (!marks) return null;
  const [open, close] = marks;
  const last = first.slice(open.length).endsWith(close) ? at : nextEnding(lines, close, at + 1);
  if (last > at + LONGEST_FORMULA) return null;
  const inside = lines.slice(at, last + 1);
  if (inside.some(isBlank)) return null;
  const text = inside.join("\n").trim().slice(open.length, -close.length).trim();
  return { type: "math", text, end: last + 1 };
}

const endings = new WeakMap(); // of lines: per mark, where the next line lies that ends with it

function nextEnding(lines, mark, at) {
  if (!endings.has(lines)) endings.set(lines, {});
  const known = endings.get(lines);
  if (!known[mark]) {
    known[mark] = new Array(lines.length + 1).fill(Infinity);
    for (let line = lines.length - 1; line >= 0; line--) {
      known[mark][line] = lines[line].trimEnd().endsWith(mark) ? line : known[mark][line + 1];
    }
  }
  return known[mark][at];
}

function readHeading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  const text = (found[2] ?? "").replace(/(?:^|[ \t])#+[ \t]*$/, "").trim();
  return { type: "heading", level: found[1].length, text, end: at + 1 };
}

function readRule(lines, at) {
  return RULE.test(lines[at]) ? { type: "rule", end: at + 1 } : null;
}

function readQuote(lines, at) {
  if (!QUOTE.test(lines[at])) return null;
  const inside = [];
  let end = at;
  for (; end < lines.length && !isBlank(lines[end]); end++) {
    if (!QUOTE.test(lines[end]) && interrupts(lines, end)) break;
    inside.push(lines[end].replace(QUOTE, ""));
  }
  return { type: "quote", inside, end };
}

function readList(lines, at) {
  const first = ITEM.exec(lines[at]);
  if (!first || RULE.test(lines[at])) return null;
  const kind = first[2].at(-1);
  const items = [];
  let end = at;
  let loose = false;
  while (end < lines.length) {
    const found = ITEM.exec(lines[end]);
    if (!found || found[2].at(-1) !== kind || RULE.test(lines[end])) break;
    const item = readItem(lines, end, found);
    loose ||= item.blankAfter && ITEM.exec(lines[item.next])?.[2].at(-1) === kind;
    items.push(item.inside);
    end = item.next;
    if (!item.blankAfter) continue;
    const more = ITEM.exec(lines[end] ?? "");
    if (!more || more[2].at(-1) !== kind || RULE.test(lines[end])) break;
  }
  while (isBlank(lines[end - 1])) end--;
  const ordered = /\d/.test(first[2]);
  return {
    type: "list",
    ordered,
    first: ordered ? Number.parseInt(first[2], 10) : 1,
    items,
    loose,
    end,
  };
}

/** One item: its lines without indentation, and where what follows begins. */
function readItem(lines, at, found) {
  const [, before, marker, after] = found;
  const width = before.length + marker.length + (after?.length ?? 1);
  const least = Math.min(width, before.length + 2); // models often indent by two below "1."
  const inside = [lines[at].slice(width)];
  let blank = false;
  let next = at + 1;
  for (; next < lines.length; next++) {
    const line = lines[next];
    if (isBlank(line)) {
      blank = true;
      inside.push("");
    } else if (indentOf(line) >= least) {
      blank = false;
      inside.push(line.slice(Math.min(width, indentOf(line))));
    } else if (!blank && !interrupts(lines, next) && !ITEM.test(line)) inside.push(line);
    else break;
  }
  while (inside.length > 1 && inside.at(-1) === "") inside.pop();
  return { inside, blankAfter: blank, next };
}

function readTable(lines, at) {
  if (!startsTable(lines, at)) return null;
  const header = cellsOf(lines[at]);
  const align = cellsOf(lines[at + 1]).map(alignment);
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && !isBlank(lines[end]); end++) {
    if (!lines[end].includes("|") && interrupts(lines, end)) break;
    const cells = cellsOf(lines[end]);
    rows.push(header.map((_, column) => cells[column] ?? ""));
  }
  return { type: "table", header, align, rows, end };
}

function startsTable(lines, at) {
  const divider = lines[at + 1] ?? "";
  if (!lines[at].includes("|") || divider.length > LONGEST_DIVIDER) return false;
  if (!divider.includes("-") || !DIVIDER.test(divider)) return false;
  return cellsOf(divider).length === cellsOf(lines[at]).length;
}

function alignment(cell) {
  if (!cell.endsWith(":")) return "";
  return cell.startsWith(":") ? "center" : "end";
}

/** The cells of a row. A bar is no border when it is escaped or in code. */
function cellsOf(line) {
  const trimmed = line.trim().replace(/^\|/, "");
  const cells = [""];
  let code = false;
  for (let at = 0; at < trimmed.length; at++) {
    const character = trimmed[at];
    if (character === "`") code = !code && trimmed.indexOf("`", at + 1) > 0;
    if (character === "\\" && trimmed[at + 1] === "|") cells[cells.length - 1] += trimmed[++at];
    else if (character === "|" && !code) cells.push("");
    else cells[cells.length - 1] += character;
  }
  if (cells.length > 1 && isBlank(cells.at(-1))) cells.pop();
  return cells.map((cell) => cell.trim());
}

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !interrupts(lines, end)) end++;
  const text = lines
    .slice(at, end)
    .map((line) => line.trimStart())
    .join("\n")
    .trimEnd();
  return { type: "paragraph", text, end };
}

/** Whether a line begins something other than more of a paragraph. */
function interrupts(lines, at) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  if (
    item &&
    line.trim() !== item[2] &&
    (!/\d/.test(item[2]) || Number.parseInt(item[2], 10) === 1)
  ) {
    return true;
  }
  return startsTable(lines, at) || readMath(lines, at) !== null;
}

function isBlank(line) {
  return line.trim() === "";
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}
