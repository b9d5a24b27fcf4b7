// The list of features that the address describes: what is filtered, and in which order.
"use strict";

// Numbers of a feature: how each is called, shown and drawn.
const NUMBERS = {
  feature: { label: "feature", show: (x) => String(x) },
  onset: { label: "onset", axis: "onset (training step)", scale: "step", show: format.step },
  settled: { label: "settled", axis: "settled (training step)", scale: "step", show: format.step },
  peak: { label: "peak", axis: "peak (snapshot)", scale: "index", show: (x) => String(x) },
  lifetime: { label: "lifetime", axis: "lifetime (share of the snapshots)", scale: "linear", show: (x) => format.fixed(x) },
  strength: { label: "strength", axis: "largest decoder norm", scale: "log", show: (x) => format.number(x) },
  density: { label: "density", axis: "density (share of held-out tokens)", scale: "log", show: format.percent },
  complexity: { label: "span", axis: "context span (tokens)", scale: "log", show: (x) => format.number(x) },
  cosine: { label: "matched", axis: "cosine with the match in other seeds", scale: "linear", show: (x) => format.fixed(x) },
};
const RANGES = Object.keys(NUMBERS).filter((name) => name !== "feature");
const OF_LIST = ["q", "class", "kind", "matched", "task", "least", "sort", ...RANGES];

/** Params of the list alone. */
function ofList(params) {
  const found = new URLSearchParams();
  for (const name of OF_LIST) if (params.get(name)) found.set(name, params.get(name));
  return found;
}

/** A number of every feature, or null where this experiment lacks it. */
function numbers(site, name) {
  return site.columns[name] || null;
}

/** [low, high] of "low..high", either of which may be missing. */
function range(text) {
  const match = /^(.*?)\.\.(.*)$/.exec(text || "");
  if (!match) return null;
  const [low, high] = [match[1], match[2]].map((x) => (x.trim() === "" ? NaN : Number(x)));
  return [Number.isNaN(low) ? -Infinity : low, Number.isNaN(high) ? Infinity : high];
}

function chosen(params, name) {
  return (params.get(name) || "").split(",").filter(Boolean);
}

const lists = new Map();

/** Places of the features that params describe, in order; a promise. */
function list(site, params) {
  const key = `${site.base}|${ofList(params)}`;
  if (!lists.has(key)) {
    if (lists.size > 20) lists.delete(lists.keys().next().value);
    const found = listed(site, ofList(params));
    lists.set(key, found);
    found.catch(() => lists.delete(key));
  }
  return lists.get(key);
}

async function listed(site, params) {
  const tests = [];
  for (const name of RANGES) {
    const bounds = range(params.get(name));
    const values = numbers(site, name);
    if (bounds && values) tests.push((p) => values[p] >= bounds[0] && values[p] <= bounds[1]);
  }
  const classes = chosen(params, "class").reduce((all, name) => all | classBit(site, name), 0);
  if (classes) tests.push((p) => site.columns.class[p] & classes);
  const kinds = chosen(params, "kind").map((name) => site.about.kinds.indexOf(name));
  if (kinds.length && site.columns.kind) tests.push((p) => kinds.includes(site.columns.kind[p]));
  const task = params.get("task") ? await site.task(params.get("task")) : null;
  if (task) {
    const least = Math.max(0, Number(params.get("least")) || 0);
    tests.push((p) => Math.abs(task[p]) >= least);
  }
  const cosine = site.columns.cosine;
  const matched = params.get("matched");
  if (matched) tests.push((p) => (cosine[p] >= site.about.matched_cosine) === (matched === "yes"));
  const words = params.get("q") || "";
  const found = words ? await site.search(words) : null;
  if (found) tests.push((p) => found.has(p));
  const places = [];
  for (let p = 0; p < site.count; p++) if (tests.every((test) => test(p))) places.push(p);
  const sort = /^(-?)(\w+)$/.exec(params.get("sort") || "");
  if (!sort) {
    const order = usual(site);
    return places.sort((a, b) => (found ? found.get(b).rank - found.get(a).rank : 0) || order[a] - order[b]);
  }
  const values = sort[2] === "attribution" ? task && task.map(Math.abs)
    : sort[2] === "kind" || sort[2] === "class" ? site.columns[sort[2]]
    : Object.hasOwn(NUMBERS, sort[2]) ? numbers(site, sort[2]) : null;
  if (!values) return places;
  const sign = sort[1] ? -1 : 1;
  const last = (x) => (Number.isNaN(x) ? 1 : 0);
  return places.sort((a, b) =>
    last(values[a]) - last(values[b]) || sign * (values[a] - values[b]) || a - b);
}

/**
 * Where each feature stands in the usual order: emergent ones that can be trusted, by onset, then
 * the other emergent ones, then those that are there at the first snapshot, by when they settle.
 */
function usual(site) {
  if (site.order) return site.order;
  const { trusted, onset, settled } = site.columns;
  const first = classBit(site, "initialisation");
  const group = (p) => (site.columns.class[p] & first ? 2 : trusted[p] ? 0 : 1);
  const late = (x) => (Number.isFinite(x) ? x : Infinity);
  const places = Array.from({ length: site.count }, (_, p) => p).sort((a, b) =>
    group(a) - group(b) || onset[a] - onset[b] || late(settled[a]) - late(settled[b]) || a - b);
  site.order = new Uint32Array(site.count);
  places.forEach((p, i) => (site.order[p] = i));
  return site.order;
}

/** What the list is of, in words: one [text, params without it] a filter. */
function filters(params) {
  const found = [];
  const without = (name) => {
    const less = new URLSearchParams(params);
    less.delete(name);
    less.delete("page");
    if (name === "task") less.delete("least");
    return less;
  };
  if (params.get("q")) found.push([`text has “${params.get("q")}”`, without("q")]);
  for (const name of ["class", "kind"])
    if (params.get(name))
      found.push([`${name}: ${chosen(params, name).map(format.name).join(" or ")}`, without(name)]);
  if (params.get("matched"))
    found.push([params.get("matched") === "yes" ? "found in another seed" : "in this seed alone", without("matched")]);
  for (const name of RANGES) {
    const bounds = range(params.get(name));
    if (!bounds) continue;
    const [low, high] = bounds.map((x) => (Number.isFinite(x) ? NUMBERS[name].show(x) : ""));
    const text = low && high ? `${low} to ${high}` : low ? `≥ ${low}` : `≤ ${high}`;
    found.push([`${NUMBERS[name].label} ${text}`, without(name)]);
  }
  if (params.get("task")) {
    const least = Number(params.get("least")) || 0;
    const text = `attribution to ${format.name(params.get("task"))}`;
    found.push([least ? `${text} ≥ ${format.short(least)}` : text, without("task")]);
  }
  return found;
}

/** Chips that name the filters; each takes one away. */
function chips(path, params) {
  const found = filters(params);
  if (!found.length) return null;
  return h("ul", { class: "chips", "aria-label": "Filters" },
    found.map(([text, less]) =>
      h("li", {}, h("a", { href: hash(path, less), "aria-label": `Remove filter: ${text}` }, text, h("span", { "aria-hidden": "true" }, " ×")))));
}

/** The bit of a class in the column of classes; 0 of one that this experiment does not have. */
function classBit(site, name) {
  const at = site.about.classes.indexOf(name);
  return at < 0 ? 0 : 1 << at;
}

function classOf(site, place) {
  const flags = site.columns.class[place];
  return site.about.classes.filter((name) => flags & classBit(site, name));
}

/** A feature's name by rule; "" where it has none. */
function nameOf(site, place) {
  return site.about.names?.[place] || "";
}

function kindOf(site, place) {
  return site.columns.kind ? site.about.kinds[site.columns.kind[place]] : null;
}

/** A feature's group on maps: its kind, or the one of the two classes that part the features. */
function groups(site, by) {
  if (by === "kind" && site.columns.kind)
    return { names: site.about.kinds, of: site.columns.kind };
  const first = classBit(site, "initialisation");
  return { names: ["initialisation", "emergent"], of: site.columns.class.map((flags) => (flags & first ? 0 : 1)) };
}
