// The status page: asks the server how it stands once a second and draws what changed.
import { ask, storeKey } from "./api.js";
import { Chart } from "./charts.js";
import { element } from "./dom.js";

const EVERY = 1000; // milliseconds
const SPAN = 300; // seconds of charts
const WINDOW = 30; // seconds that percentiles are taken over
const COUNTS = [
  "slots",
  "running",
  "prefilling",
  "queued",
  "memory_bytes",
  "reserved_bytes",
  "memory_limit",
  "cache_bytes",
  "cache_entries",
  "prompt_tokens",
  "cached_tokens",
  "generated_tokens",
  "finished",
  "cancelled",
  "failed",
  "steps",
];

const byId = (id) => document.getElementById(id);
const taken = []; // {at, sum, latency}: what the server said, oldest first
const shown = []; // what it means, for the charts
let paused = false;
let timer = 0;

const charts = {
  speed: new Chart({
    title: "Tokens per second",
    series: ["generated", "prompt", "from cache"],
    words: number,
    least: 10,
  }),
  slots: new Chart({
    title: "Sequences",
    series: ["generating", "reading", "queued"],
    words: number,
    least: 4,
  }),
  first: new Chart({
    title: "Time to first token",
    series: ["median", "95th percentile"],
    words: duration,
    least: 0.05,
  }),
  next: new Chart({
    title: "Between tokens",
    series: ["median", "95th percentile"],
    words: duration,
    least: 0.01,
  }),
  memory: new Chart({
    title: "Memory",
    series: ["sequences", "kept prefixes"],
    words: bytes,
    least: 1e6,
    stacked: true,
  }),
};
byId("charts").append(...Object.values(charts).map((chart) => chart.root));

const tiles = Object.fromEntries(
  ["Slots", "Queue", "Generated", "Prompts", "Memory", "Prefixes kept"].map((title) => {
    const value = element("p", { class: "value" }, "–");
    const detail = element("p", { class: "detail" });
    byId("tiles").append(
      element("div", { class: "tile" }, element("h2", {}, title), value, detail),
    );
    return [title, { value, detail }];
  }),
);

async function poll() {
  clearTimeout(timer);
  try {
    const answer = await (await ask("status.json")).json();
    take(answer);
    draw(answer);
    state(`Up for ${duration(answer.uptime_s)}`);
  } catch (error) {
    if (error.status === 401) return askForKey();
    state(`${error.message} Trying again.`, true);
  }
  return again();
}

function again() {
  clearTimeout(timer);
  // a page that nobody looks at asks less often
  if (!paused) timer = setTimeout(poll, document.hidden ? EVERY * 5 : EVERY);
}

function state(text, problem = false) {
  const line = byId("state");
  if (line.dataset.kind !== String(problem)) line.setAttribute("role", "status");
  else line.removeAttribute("role"); // the clock alone is not worth saying every second
  line.dataset.kind = String(problem);
  line.textContent = text;
  line.classList.toggle("problem", problem);
}

function take({ uptime_s, models, latency }) {
  if (taken.length && uptime_s < taken.at(-1).at) {
    taken.length = 0; // the server began anew
    shown.length = 0;
  }
  const sum = Object.fromEntries(
    COUNTS.map((name) => [name, models.reduce((total, model) => total + model.stats[name], 0)]),
  );
  taken.push({ at: uptime_s, sum, latency });
  if (taken.length > 1) shown.push(meaning(taken.at(-1), taken.at(-2)));
  while (taken[0].at < uptime_s - SPAN) taken.shift();
  while (shown.length && shown[0].at < uptime_s - SPAN) shown.shift();
}

function meaning({ at, sum, latency }, before) {
  const seconds = Math.max(at - before.at, 0.001);
  const rate = (name) => (sum[name] - before.sum[name]) / seconds;
  const earlier = taken.find((one) => one.at >= at - WINDOW);
  const percentiles = (name) =>
    [0.5, 0.95].map((part) => percentile(latency[name], earlier.latency[name], part));
  return {
    at,
    speed: [
      rate("generated_tokens"),
      rate("prompt_tokens") - rate("cached_tokens"),
      rate("cached_tokens"),
    ],
    slots: [sum.running, sum.prefilling, sum.queued],
    memory: [sum.memory_bytes, sum.cache_bytes],
    first: percentiles("first_token"),
    next: percentiles("inter_token"),
    limit: sum.memory_limit,
  };
}

/** Of what a histogram counted since `before`, linear within a bucket; null if that is nothing. */
function percentile(now = [], before = [], part = 0.5) {
  const counts = now.map(([bound, below], index) => [bound, below - (before[index]?.[1] ?? 0)]);
  const total = counts.at(-1)?.[1] ?? 0;
  if (!total) return null;
  let [lower, under] = [0, 0];
  for (const [bound, below] of counts) {
    if (below >= total * part) {
      return bound === null
        ? lower
        : lower + ((bound - lower) * (total * part - under)) / (below - under);
    }
    [lower, under] = [bound ?? lower, below];
  }
  return lower;
}

function draw({ models }) {
  const { sum } = taken.at(-1);
  drawTiles(sum, shown.at(-1)?.speed ?? [0, 0, 0]);
  for (const [name, chart] of Object.entries(charts)) {
    const samples = shown.map((one) => ({
      at: one.at,
      values: one[name],
      limit: name === "memory" ? one.limit : 0,
    }));
    chart.update(samples);
  }
  byId("model-rows").replaceChildren(...models.map(row));
}

function drawTiles(sum, [generated, computed, cached]) {
  const busy = sum.running + sum.prefilling;
  tile("Slots", busy, `of ${sum.slots}`, slots(sum));
  tile(
    "Queue",
    sum.queued,
    sum.queued === 1 ? "request" : "requests",
    `${number(sum.finished)} finished, ${number(sum.failed)} failed`,
  );
  tile("Generated", number(generated), "tok/s", `${number(sum.generated_tokens)} so far`);
  const share = sum.prompt_tokens ? Math.round((100 * sum.cached_tokens) / sum.prompt_tokens) : 0;
  tile(
    "Prompts",
    number(computed + cached),
    "tok/s",
    `${share} % of ${number(sum.prompt_tokens)} cached`,
  );
  tile(
    "Memory",
    bytes(sum.memory_bytes + sum.cache_bytes),
    sum.memory_limit ? `of ${bytes(sum.memory_limit)}` : "",
    `${bytes(sum.reserved_bytes)} reserved`,
  );
  tile("Prefixes kept", number(sum.cache_entries), "", bytes(sum.cache_bytes));
}

function tile(title, value, unit, detail) {
  tiles[title].value.replaceChildren(String(value), element("span", { class: "unit" }, ` ${unit}`));
  tiles[title].detail.replaceChildren(detail);
}

/** A box a slot: generating, reading a prompt, or free. */
function slots({ slots: all, running, prefilling }) {
  if (all > 32) return `${running} generating, ${prefilling} reading`;
  const kind = (index) => (index < running ? "runs" : index < running + prefilling ? "reads" : "");
  const boxes = Array.from({ length: all }, (_, index) => element("i", { class: kind(index) }));
  return element(
    "span",
    { class: "slots", role: "img", "aria-label": `${running} generating, ${prefilling} reading` },
    boxes,
  );
}

function row({ id, stats }) {
  const cells = [
    `${stats.running + stats.prefilling} of ${stats.slots}`,
    ...[
      "queued",
      "prompt_tokens",
      "cached_tokens",
      "generated_tokens",
      "finished",
      "cancelled",
      "failed",
    ].map((name) => number(stats[name])),
  ];
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, id),
    cells.map((cell) => element("td", {}, cell)),
  );
}

function number(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e5) return `${(value / 1e3).toFixed(0)} k`;
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = value < 1 ? 0 : Math.min(Math.floor(Math.log2(value) / 10), units.length - 1);
  return `${number(value / 1024 ** power)} ${units[power]}`;
}

function duration(seconds) {
  if (seconds < 1) return `${Number((seconds * 1000).toPrecision(2))} ms`;
  if (seconds < 60) return `${number(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400)
    return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

function askForKey() {
  state("Waiting for a key", true);
  byId("key-form").hidden = false;
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  storeKey(byId("key").value.trim());
  byId("key-form").hidden = true;
  poll();
});
byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  if (paused) {
    clearTimeout(timer);
    state("Paused");
  } else poll();
});
document.addEventListener("visibilitychange", () => !document.hidden && !paused && poll());
poll();
