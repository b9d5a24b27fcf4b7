// The table of the features that the address describes.
"use strict";

const ROWS = 50;
const BEFORE = 18; // letters of a context before its own token, in a row

const INDENT = / {4,}/g; // takes a row's room and says little

/** Text of a context around its own token, which is marked, and so is what was searched for. */
function snippet(line, most = BEFORE, wanted = "") {
  const [before, own, after] = line.split("\t");
  const text = before + own + after;
  const at = wanted ? text.toLowerCase().indexOf(wanted.toLowerCase()) : -1;
  // From where it is shown: most letters before the token, or before what was searched for.
  const from = Math.max(0, Math.min(before.length - most, at < 0 ? Infinity : at - 4));
  const edges = [from, before.length, before.length + own.length, text.length, at, at + wanted.length]
    .filter((x) => x >= from && x <= text.length).sort((a, b) => a - b);
  const found = [from > 0 && h("span", {}, "…")];
  edges.forEach((low, i) => {
    const high = edges[i + 1];
    if (!(high > low)) return;
    const hit = at >= 0 && low >= at && high <= at + wanted.length;
    const active = low >= before.length && high <= before.length + own.length;
    found.push(h(active ? "mark" : "span", { class: hit ? "hit" : null }, text.slice(low, high).replace(INDENT, "   ")));
  });
  return found;
}

/** Text in which what was searched for is marked. */
function highlighted(text, wanted) {
  const at = wanted ? text.toLowerCase().indexOf(wanted.toLowerCase()) : -1;
  if (at < 0) return text;
  return [text.slice(0, at), h("span", { class: "hit" }, text.slice(at, at + wanted.length)), text.slice(at + wanted.length)];
}

function table(site) {
  const { about } = site;
  const body = h("tbody");
  const head = h("tr");
  const said = h("p", { class: "count", role: "status" });
  const chipPlace = h("div");
  const paging = h("nav", { class: "paging", "aria-label": "Pages of the table" });
  const search = h("input", {
    type: "search", id: "search", placeholder: about.contexts ? "text of contexts, promoted tokens, or a number" : "a feature's number",
    autocomplete: "off", spellcheck: "false",
  });
  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => change({ q: search.value, page: "" }), 200);
  });
  const filtersPlace = h("div", { class: "controls" });
  const ranges = h("details", { class: "ranges" });

  function toggles(by, names, params) {
    const now = chosen(params, by);
    return h("div", { class: "toggles", role: "group", "aria-label": by === "kind" ? "Kinds" : "Classes" },
      names.map((name) => h("button", {
        type: "button", "aria-pressed": String(now.includes(name)),
        onclick: () => change({ [by]: (now.includes(name) ? now.filter((one) => one !== name) : [...now, name]).join(","), page: "" }), "data-term": format.name(name),
      }, swatch(site, name), format.name(name))));
  }

  function rangeFields(params, names) {
    return names.filter((name) => numbers(site, name)).map((name) => {
      const [low, high] = range(params.get(name)) || [-Infinity, Infinity];
      const field = (text, value) => h("input", { type: "number", step: "any", "aria-label": `${NUMBERS[name].axis}, ${text}`, placeholder: text, value: Number.isFinite(value) ? value : "" });
      const [from, to] = [field("least", low), field("most", high)];
      const set = () => change({ [name]: from.value || to.value ? `${from.value}..${to.value}` : "", page: "" });
      from.addEventListener("change", set);
      to.addEventListener("change", set);
      return h("fieldset", {}, h("legend", {}, NUMBERS[name].axis), from, " to ", to);
    });
  }

  const columns = [
    ["feature", "feature"], ["curve", "strength"], ["class", "class"], site.columns.kind && ["kind", "kind"], ["onset", "onset", "step"],
    ["settled", "settled", "step"], ["peak", "peak", "snapshot"], ["lifetime", "lifetime"], ["density", "density"], ["strength", "largest", "norm"],
    site.columns.complexity && ["complexity", "span", "tokens"], ["cosine", "matched", "cosine"],
  ].filter(Boolean);
  const MINOR = new Set(["class", "lifetime", "strength", "cosine", "peak", "complexity", "curve", "settled"]);

  function header(name, text, unit, sort) {
    const [, down, by] = /^(-?)(\w+)$/.exec(sort) || [, "", ""];
    if (name === "curve") return h("th", { scope: "col", class: "minor col-curve" }, term("strength"));
    const now = by === name;
    // The largest first where that is what one looks for.
    const first = ["density", "strength", "cosine", "attribution", "complexity"].includes(name) ? "-" : "";
    const next = now ? (down ? "" : "-") : first;
    return h("th", {
      scope: "col", class: `${MINOR.has(name) ? "minor " : ""}col-${name}`,
      "aria-sort": now ? (down ? "descending" : "ascending") : null,
    }, h("button", { type: "button", "data-term": ONE_NAME[name] || name, onclick: () => change({ sort: `${next}${name}`, page: "" }) },
      text, unit && h("small", {}, unit), h("span", { "aria-hidden": "true", class: "arrow" }, now ? (down ? " ↓" : " ↑") : "")));
  }

  const element = h("div", { class: "table-page" },
    h("h1", { tabindex: -1 }, "Features"),
    h("div", { class: "panel" },
      h("label", { class: "search", for: "search" }, h("span", {}, "Search"), search),
      filtersPlace, ranges, chipPlace),
    h("div", { class: "above" }, said, paging),
    h("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": "Table of features" },
      h("table", { class: "features" }, h("caption", { class: "unseen" }, "Features"), h("thead", {}, head), body)),
    about.contexts
      ? h("p", { class: "note" }, "Search covers a feature's own token (marked), its name, its four strongest contexts, from 12 tokens before to 4 after the position, and its promoted tokens. It ignores case, and the best matches come first.")
      : h("p", { class: "missing" }, about.missing.contexts),
    Object.keys(about.missing).filter((name) => ["kinds", "complexity", "circuits"].includes(name)).map((name) => h("p", { class: "missing" }, about.missing[name])));

  let asked = 0;
  async function update() {
    const { params } = address();
    const turn = ++asked;
    if (document.activeElement !== search) search.value = params.get("q") || "";
    fill(filtersPlace,
      site.columns.kind && toggles("kind", about.kinds, params),
      toggles("class", site.about.classes, params),
      about.seeds.length > 1 && select("another seed", [["", "any"], ["yes", "has it too"], ["no", "does not"]], params.get("matched") || "", (value) => change({ matched: value, page: "" }), { id: "matched", "data-term": "matched" }),
      rangeFields(params, ["onset"]),
      about.tasks.length > 0 && select("attribution to", [["", "any task or none"], ...about.tasks.map(({ name }) => [name, format.name(name)])], params.get("task") || "",
        (name) => change({ task: name, sort: name ? "-attribution" : "", least: "", page: "" }), { id: "task" }),
      params.get("task") && h("label", { class: "field" }, h("span", {}, "at least"),
        h("input", { type: "number", step: "any", min: 0, value: params.get("least") || "", onchange: (event) => change({ least: event.target.value, page: "" }) })));
    const open = ranges.open;
    fill(ranges, h("summary", {}, "More ranges"), h("div", { class: "fields" }, rangeFields(params, RANGES.filter((name) => name !== "onset"))));
    ranges.open = open;
    fill(chipPlace, chips("table", params));

    const task = params.get("task") ? await site.task(params.get("task")) : null;
    const found = await list(site, params);
    if (turn !== asked) return;
    const pages = Math.max(1, Math.ceil(found.length / ROWS));
    const page = Math.min(pages, Math.max(1, Math.floor(Number(params.get("page"))) || 1));
    const first = (page - 1) * ROWS;
    const rows = found.slice(first, first + ROWS);
    const wanted = (params.get("q") || "").trim();
    const matches = wanted ? await site.search(params.get("q")) : null;
    if (turn !== asked) return;
    fill(said, h("b", {}, format.count(found.length)), ` of ${format.count(site.count)} features`,
      found.length > ROWS ? `, ${format.count(first + 1)} to ${format.count(first + rows.length)} shown` : "",
      params.get("sort") ? "" : wanted ? ", the best match first" : ", emergent ones first, by onset, and doubtful ones after them", " ",
      h("button", { type: "button", onclick: () => saveList(found, task) }, "CSV"));
    const to = (number, text, label) => number >= 1 && number <= pages
      ? h("a", { href: hash("table", with_(params, "page", number > 1 ? number : "")), "aria-label": label }, text)
      : h("span", { "aria-hidden": "true" }, text);
    fill(paging, pages > 1 && [to(page - 1, "‹ before", "Page before"), h("span", {}, ` ${page} of ${pages} `), to(page + 1, "next ›", "Next page")]);
    const sort = params.get("sort") || "";
    fill(head, columns.map(([name, text, unit]) => header(name, text, unit, sort)),
      task && header("attribution", "attribution", "nats", sort),
      about.contexts && h("th", { scope: "col", class: "col-text" }, about.names ? "name, strongest context" : "strongest context"));
    const cells = [];
    const curves = [];
    fill(body, rows.map((p) => {
      const text = about.contexts && h("td", { class: "col-text text" });
      if (text) cells.push([p, text]);
      return h("tr", {}, columns.map(([name]) => {
        const given = { class: `${MINOR.has(name) ? "minor " : ""}col-${name}` };
        if (name === "feature")
          return h("th", { scope: "row", ...given }, h("a", { href: hash(`feature/${site.columns.feature[p]}`, ofList(params)) }, String(site.columns.feature[p])));
        if (name === "curve") {
          const cell = h("td", given);
          curves.push([p, cell]);
          return cell;
        }
        if (name === "class") return h("td", given, classOf(site, p).map((one) => h("span", { title: one }, swatch(site, one), h("span", { class: "unseen" }, `${one} `))));
        if (name === "kind") return h("td", given, swatch(site, kindOf(site, p)), format.name(kindOf(site, p)));
        return h("td", { ...given, class: `number ${given.class}` }, NUMBERS[name].show(numbers(site, name)[p]));
      }), task && h("td", { class: "number" }, format.number(task[p])), text);
    }));
    if (!rows.length) fill(body, h("tr", {}, h("td", { colspan: columns.length + 2, class: "missing" }, "No feature matches. Remove a filter.")));
    await Promise.all([...cells.map(async ([p, cell]) => {
      const { promoted, contexts } = await site.text(p);
      const match = matches?.get(p);
      const line = contexts[match && match.context >= 0 ? match.context : 0];
      const told = match && match.rank === 0 ? ["promotes ", highlighted(promoted, wanted)]
        : line ? snippet(line, BEFORE, wanted)
        : h("span", { class: "missing" }, promoted ? `promotes ${promoted}` : "active nowhere in the held-out text");
      fill(cell, nameOf(site, p) && h("b", { class: "name" }, highlighted(nameOf(site, p), wanted), " "), told);
    }), ...curves.map(async ([p, cell]) => fill(cell, sparkline(site, await site.curve(p), featureColour(site, p))))]);
  }

  /** The whole list as a CSV file. */
  function saveList(places, task) {
    const names = ["feature", ...RANGES.filter((name) => numbers(site, name))];
    const head = [...names.map((name) => NUMBERS[name].label), "class", "kind", "name", ...(task ? ["attribution"] : [])];
    const exact = (x) => (Number.isFinite(x) ? Number(x.toPrecision(7)) : null);
    download(`${about.name}-features.csv`, "text/csv", csv(head, places.map((p) => [
      ...names.map((name) => exact(numbers(site, name)[p])), classOf(site, p).join(" "), kindOf(site, p), nameOf(site, p), ...(task ? [exact(task[p])] : []),
    ])));
  }
  return { element, update, title: "Features" };
}

function with_(params, name, value) {
  const found = new URLSearchParams(params);
  found.set(name, value);
  return found;
}
