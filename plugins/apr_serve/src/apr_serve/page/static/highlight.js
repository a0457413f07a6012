// Colours for code: comments, strings, numbers and words of the language, nothing finer.
import { element } from "./dom.js";

const LONGEST = 60000; // characters; what is longer stays plain

const C_LIKE = `
  as async auto await bool break byte case catch char class const constexpr continue default
  defer delete do double else enum export extends extern final finally float fn for from func
  function go goto if impl implements import in inline instanceof int interface let long loop
  match mod module mut namespace new nil null nullptr package private protected pub public
  range ref return self short signed sizeof static string struct super switch template this
  throw throws trait true try type typedef typeof union unsafe unsigned use using var virtual
  void volatile where while yield false undefined usize i32 i64 u8 u32 u64 f32 f64`;
const PYTHON = `
  and as assert async await break case class continue def del elif else except False finally
  for from global if import in is lambda match None nonlocal not or pass raise return True try
  while with yield self`;
const SHELL = `
  if then else elif fi for while until do done case esac in function return export local set
  unset echo cd exit source sudo`;
const SQL = `
  select from where and or not in is null insert into values update set delete create table
  drop alter add primary key foreign references join left right inner outer full on group by
  order having limit offset as distinct union all exists between like case when then else end
  with index view`;

const SLASHED = String.raw`\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`;
const HASHED = String.raw`#[^\n]*`;
const QUOTED = String.raw`"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?`;
const TICKED = "`(?:[^`\\\\]|\\\\.)*`?";
const TRIPLE = String.raw`"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)`;

const LANGUAGES = {
  c: language(C_LIKE, SLASHED, `${QUOTED}|${TICKED}`),
  python: language(PYTHON, HASHED, `${TRIPLE}|${QUOTED}`),
  shell: language(SHELL, String.raw`(?<=^|\s)#[^\n]*`, QUOTED),
  sql: language(SQL, String.raw`--[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`, QUOTED, "i"),
  data: language("true false null yes no", HASHED, QUOTED),
  markup: language("", String.raw`<!--[\s\S]*?(?:-->|$)`, QUOTED),
};

const NAMES = {
  python: "python py python3",
  shell: "bash sh shell zsh console",
  sql: "sql sqlite postgresql",
  data: "json yaml yml toml ini conf jsonc",
  markup: "html xml svg vue",
  c:
    "c cpp c++ cc h hpp cs csharp java kotlin swift go golang rust rs php scala dart zig " +
    "js javascript ts typescript jsx tsx css scss",
};
const KINDS = new Map(
  Object.entries(NAMES).flatMap(([kind, names]) => names.split(" ").map((name) => [name, kind])),
);

function language(words, comment, string, flags = "") {
  const number = String.raw`\b0[xX][0-9a-fA-F_]+\b|\b\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?\b`;
  const parts = [`(?<comment>${comment})`, `(?<string>${string})`, `(?<number>${number})`];
  const pattern = new RegExp([...parts, String.raw`(?<word>[A-Za-z_]\w*)`].join("|"), "g");
  const known = new Set(words.trim().split(/\s+/));
  return { pattern, isKeyword: (word) => known.has(flags ? word.toLowerCase() : word) };
}

/** Nodes of a piece of code: text and spans of class comment, string, number and keyword. */
export function highlighted(code, name) {
  const kind = KINDS.get(name.toLowerCase());
  if (!kind || code.length > LONGEST) return [code];
  const { pattern, isKeyword } = LANGUAGES[kind];
  const nodes = [];
  let plain = 0;
  for (const found of code.matchAll(pattern)) {
    const { word } = found.groups;
    if (word !== undefined && !isKeyword(word)) continue;
    const style =
      word !== undefined
        ? "keyword"
        : ["comment", "string", "number"].find((part) => found.groups[part] !== undefined);
    if (found.index > plain) nodes.push(code.slice(plain, found.index));
    nodes.push(element("span", { class: `token-${style}` }, found[0]));
    plain = found.index + found[0].length;
  }
  if (plain < code.length) nodes.push(code.slice(plain));
  return nodes;
}
