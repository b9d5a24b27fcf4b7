// Two features, or two experiments, side by side.
"use strict";

/**
 * The folder of another atlas, as text for `load`; null where it is on another host, since an
 * address that somebody sends must not have this page run what lies elsewhere.
 */
function otherBase(text) {
  if (!text) return null;
  const slashed = text.replace(/\/?(index\.html.*)?$/, "/");
  let found;
  try {
    found = new URL(slashed, document.baseURI);
  } catch {
    return null;
  }
  const here = new URL(document.baseURI);
  return found.protocol === here.protocol && found.host === here.host && !found.search && !found.hash ? found.href : null;
}

const sites = new Map();

function openSite(base) {
  if (!sites.has(base)) {
    const found = Site.open(base);
    sites.set(base, found);
    found.catch(() => sites.delete(base));
  }
  return sites.get(base);
}

function compare(site) {
  const element = h("div", { class: "compare-page" });
  let now = null;
  async function update() {
    const { params } = address();
    const key = ["a", "b", "other"].map((name) => params.get(name) || "").join("|");
    if (key === now) {
      for (const one of element.querySelectorAll("figure")) one.redraw?.();
      return "Compare";
    }
    now = key;
    const form = compareForm(params);
    const heading = h("h1", { tabindex: -1 }, "Compare");
    let second = site;
    if (params.get("other")) {
      const base = otherBase(params.get("other"));
      try {
        if (!base) throw new Error("only an atlas on the same disk or web server as this page can be compared with it");
        second = await openSite(base);
      } catch (error) {
        fill(element, heading, form, h("p", { class: "missing", role: "alert" }, `${params.get("other")}: ${error.message}`));
        return "Compare";
      }
    }
    const number = (name) => (/^\d+$/.test(params.get(name) || "") ? Number(params.get(name)) : null);
    const wanted = [[site, number("a")], [second, number("b")]];
    const parts = [heading, form];
    if (wanted.every(([, n]) => n === null))
      parts.push(second === site ? await example(site) : experimentsBeside(site, second));
    else if (second === site && wanted.filter(([, n]) => n !== null && site.place(n) >= 0).length === 1) {
      parts.push(await partners(site, wanted.find(([, n]) => n !== null)[1]));
    } else {
      const found = await Promise.all(wanted.map(async ([one, n]) => {
        if (n === null) return h("p", { class: "missing" }, "No feature is named.");
        const place = one.place(n);
        return place < 0 ? h("p", { class: "missing" }, `${one.about.name} has no living feature ${n}.`) : one.feature(place);
      }));
      parts.push(featuresBeside(found));
    }
    fill(element, parts);
    for (const one of element.querySelectorAll("figure")) one.redraw?.();
    return "Compare";
  }
  return { element, update, title: "Compare" };
}

/** The feature that the start page begins with, beside the one whose direction is nearest. */
async function example(site) {
  const { earliest, first } = site.about.start;
  const one = site.count ? await site.feature(earliest?.place ?? first ?? 0) : null;
  const ask = "Name two features of this experiment, or the folder of another one's atlas.";
  if (!one?.near.length) return h("p", { class: "missing" }, ask);
  const { place, cosine } = one.near[0];
  const link = (p) => h("a", { href: hash("compare", `a=${site.columns.feature[p]}`), title: "What else to compare it with" }, `feature ${site.columns.feature[p]}`);
  return [
    h("p", { class: "example" }, `${ask} As an example, `, link(one.place), earliest ? ", the earliest that emerges," : "", " beside ", link(place),
      `, whose direction is the nearest to it (cosine ${format.fixed(cosine)}).`),
    featuresBeside([one, await site.feature(place)]),
  ];
}

/** Which features a feature may well be compared with: the nearest, those active with it, and those of its name. */
async function partners(site, number) {
  const place = site.place(number);
  const one = await site.feature(place);
  const name = nameOf(site, place);
  const same = [];
  for (let p = 0; name && p < site.count && same.length < 8; p++)
    if (p !== place && nameOf(site, p) === name) same.push([p, "of the same name"]);
  const near = one.near.map(({ place: p, cosine }) => [p, `direction near, cosine ${format.fixed(cosine)}`]);
  const together = one.together.map(({ place: p, share }) => [p, `active together: both at ${format.percent(share)} of the positions with either`]);
  return h("section", { class: "panel" }, h("h2", {}, `Compare feature ${number} with`),
    h("ul", { class: "partners" }, [...near, ...together, ...same].map(([p, why]) => h("li", {},
      h("a", { href: hash("compare", `a=${number}&b=${site.columns.feature[p]}`) }, `feature ${site.columns.feature[p]}`),
      " ", h("span", { class: "name" }, nameOf(site, p)), " ", h("span", { class: "note" }, `${why}; onset ${format.step(site.columns.onset[p])}`)))));
}

function compareForm(params) {
  const input = (name, label, given) => {
    const field = h("input", { name, id: `compare-${name}`, value: params.get(name) || "", ...given });
    return [h("label", { class: "field" }, h("span", {}, label), field), field];
  };
  const [a, fieldA] = input("a", "feature", { type: "number", min: 0 });
  const [b, fieldB] = input("b", "with feature", { type: "number", min: 0 });
  const [other, fieldOther] = input("other", "of the atlas in", { type: "text", placeholder: "this folder, or such as ../../NAME/atlas", size: 36, spellcheck: "false" });
  return h("form", {
    class: "panel controls",
    onsubmit: (event) => {
      event.preventDefault();
      change({ a: fieldA.value, b: fieldB.value, other: fieldOther.value.trim() }, true);
    },
  }, a, b, other, h("button", { type: "submit" }, "Compare"));
}

function featuresBeside(found) {
  const both = found.filter((one) => !(one instanceof Node));
  const name = (one, i) => `${both.length > 1 && both[0].site !== both[1].site ? `${one.site.about.name}, ` : ""}feature ${one.number}`;
  const over = both.length > 1 && h("div", { class: "panel" }, figure({
    title: "Strength, over its largest",
    label: "Normalised decoder norms of both features",
    tools: axisChoice(),
    draw: (place, width) => lines(place, width, {
      label: "Normalised decoder norms of both features", linear: isLinear(), height: 220,
      y: { label: "norm over its largest", low: 0, high: 1.05 },
      series: both.map((one, i) => {
        const most = Math.max(...one.strength[0]);
        return { name: name(one, i), x: one.site.steps, y: one.strength[0].map((v) => v / most), colour: ink(i ? "second" : "first"), dots: true };
      }),
    }),
    table: () => ({
      head: ["step", ...both.map(name)],
      rows: [...new Set(both.flatMap((one) => one.site.steps))].sort((a, b) => a - b).map((step) => [format.step(step), ...both.map((one) => format.number(one.strength[0][one.site.steps.indexOf(step)], 4))]),
    }),
  }));
  return [over, h("div", { class: "columns even" }, found.map((one) => one instanceof Node ? h("div", {}, one)
    : h("section", { class: "side-column", "aria-label": `Feature ${one.number} of ${one.site.about.name}` },
      h("h2", {}, one.site.base ? `${one.site.about.name}: feature ${one.number}` : h("a", { href: hash(`feature/${one.number}`) }, `${one.site.about.name}: feature ${one.number}`)),
      featureFacts(one), h("div", { class: "panel" }, strengthFigure(one)), h("div", { class: "panel" }, directionFigure(one)), contextsPart(one), lensPart(one))))];
}

/** Shares of features by a number, in bins, as lines. */
function distribution(both, name) {
  const { scale: kind, axis, label: title } = NUMBERS[name];
  const all = both.map((site) => numbers(site, name));
  if (all.some((values) => !values)) return null;
  const extents = all.map((values) => extent(values, kind));
  const [low, high] = [Math.min(...extents.map((e) => e[0])), Math.max(...extents.map((e) => e[1]))];
  const x = kind === "step" ? scale("step", 0, high) : scale(kind, low, high);
  const bins = 24;
  const counts = all.map((values) => {
    const found = new Array(bins).fill(0);
    let sum = 0;
    for (const value of values) {
      const u = x.to(value);
      if (!Number.isFinite(u)) continue;
      found[Math.min(bins - 1, Math.floor(u * bins))]++;
      sum++;
    }
    return found.map((n) => n / (sum || 1));
  });
  const most = Math.max(...counts.flat());
  const label = `Distribution of ${axis} in both experiments`;
  return h("div", { class: "panel" }, figure({
    title: `Distribution of ${title}`, label,
    draw: (place, width) => {
      const height = 170;
      const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
      const y = scale("linear", 0, most * 1.05 || 1);
      const { px, py, m, inner } = axes(svg, width, height, x, y, { x: axis, y: "share" });
      counts.forEach((each, i) => {
        let path = `M${m.left} ${py(0)}`;
        each.forEach((share, b) => (path += `L${m.left + (b / bins) * inner.width} ${py(share)}H${m.left + ((b + 1) / bins) * inner.width}`));
        svg.append(s("path", { class: "line", d: path, vars: { stroke: ink(i ? "second" : "first") } }));
      });
      fill(place, legend(both.map((site, i) => ({ name: site.about.name, colour: ink(i ? "second" : "first") }))), svg);
    },
    table: () => ({ head: ["from", ...both.map((site) => site.about.name)], rows: counts[0].map((_, b) => [format.number(x.from(b / bins)), ...counts.map((each) => format.percent(each[b]))]) }),
  }));
}

function experimentsBeside(first, second) {
  const both = [first, second];
  const classes = first.about.classes.filter((name) => second.about.classes.includes(name));
  const all = both.map((site) => [
    ...facts(site),
    ["living features", format.count(site.count)],
    ["turning point", site.about.turning ? `step ${format.step(site.about.turning.step)} (${format.step(site.about.turning.low)} to ${format.step(site.about.turning.high)})` : "–"],
    ...classes.map((name) => [name, format.percent(site.columns.class.reduce((n, flags) => n + Boolean(flags & classBit(site, name)), 0) / site.count)]),
    ...site.about.kinds.map((name, i) => [`kind: ${format.name(name)}`, site.columns.kind ? format.percent(site.columns.kind.reduce((n, kind) => n + (kind === i), 0) / site.count) : "not judged"]),
  ]);
  return [
    h("div", { class: "panel" }, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Both experiments" }, h("table", { class: "grid plain wide" },
      h("caption", { class: "unseen" }, "Both experiments"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, ""), both.map((site, i) => h("th", { scope: "col" }, h("span", { class: "key", "aria-hidden": "true", vars: { "--c": ink(i ? "second" : "first") } }), site.about.name)))),
      h("tbody", {}, all[0].map(([name, value], i) => h("tr", { class: value === all[1][i][1] ? "same" : null }, h("th", { scope: "row" }, name), h("td", {}, value), h("td", {}, all[1][i][1]))))))),
    h("div", { class: "columns even" },
      h("div", { class: "panel" }, trainingCurve(both, axisChoice())),
      ["onset", "lifetime", "density", "complexity"].map((name) => distribution(both, name))),
  ];
}
