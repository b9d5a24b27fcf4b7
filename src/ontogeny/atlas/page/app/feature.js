// One feature: its history, what it is active on, what it promotes, what hangs on it.
"use strict";

/** A link to a feature that keeps the list. */
function featureLink(site, place, text, given = {}) {
  return h("a", { href: hash(`feature/${site.columns.feature[place]}`, ofList(address().params)), ...given }, text || String(site.columns.feature[place]));
}

function featureFacts(one) {
  const { site, place } = one;
  const c = site.columns;
  const kind = kindOf(site, place);
  const { about } = site;
  const rows = [
    kind && ["kind", kindWord(site, place)],
    ["class", classOf(site, place).map((name, i) => [i ? " " : "", swatch(site, name), term(name)])],
    c.doubts && c.doubts[place] && ["doubtful", about.doubts.filter((_, i) => c.doubts[place] & (1 << i)).join("; ")],
    ["onset", `step ${format.step(c.onset[place])}`],
    ["settled", Number.isFinite(c.settled[place]) ? `step ${format.step(c.settled[place])}` : "nowhere"],
    ["peak", `snapshot ${c.peak[place]}, step ${format.step(stepOfPeak(site, place))}`],
    ["lifetime", `${format.fixed(c.lifetime[place])} of the snapshots`],
    ["strength", format.number(c.strength[place])],
    ["density", format.percent(c.density[place])],
    c.complexity && ["span", Number.isFinite(c.complexity[place]) ? `${format.number(c.complexity[place])} tokens` : "not measured"],
    about.seeds.length > 1 && ["matched", matchText(one)],
    one.contexts && ["activation", `mean ${format.number(one.mean)} at ${format.count(one.active)} position${one.active === 1 ? "" : "s"}`],
  ];
  return h("dl", { class: "facts" }, rows.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name === "activation" ? name : term(name)), h("dd", {}, value))));
}

/** The step of the peak: peaks are numbered among the experiment's snapshots. */
function stepOfPeak(site, place) {
  return site.about.numbers ? site.steps[site.about.numbers.indexOf(site.columns.peak[place])] : NaN;
}

function matchText(one) {
  const { site, place } = one;
  const cosine = site.columns.cosine[place];
  const named = one.partners.map((number, i) => (number >= 0 ? `seed ${site.about.seeds[i + 1]} has it as feature ${number}` : null)).filter(Boolean);
  return named.length
    ? `${named.join(", ")}, cosine ${format.fixed(cosine)}`
    : `no: best cosine ${format.fixed(cosine)}, below ${site.about.matched_cosine}`;
}

/** Strength through training, with the matching features of other seeds. */
function strengthFigure(one, tools) {
  const { site } = one;
  const { about } = site;
  const x = about.steps;
  const others = one.strength.slice(1).map((y, i) => ({ y, seed: about.seeds[i + 1] })).filter(({ y }) => y.some(Number.isFinite));
  const all = [one.strength[0], ...others.map(({ y }) => y)];
  const low = x.map((_, i) => Math.min(...all.map((y) => y[i])));
  const high = x.map((_, i) => Math.max(...all.map((y) => y[i])));
  const own = featureColour(site, one.place);
  const peak = Math.max(...one.strength[0]);
  const label = `Decoder norm of feature ${one.number} through training: ${format.number(one.strength[0][0])} at first, ${format.number(peak)} at its peak, ${format.number(one.strength[0][x.length - 1])} at last.`;
  return figure({
    title: "Strength",
    label,
    tools,
    note: others.length ? "Decoder norm; the band spans this feature and its matches in other seeds." : about.seeds.length > 1 ? "Decoder norm; no other seed has a matching feature." : "Decoder norm.",
    draw: (place, width) => lines(place, width, {
      label, linear: isLinear(), height: 220,
      y: { label: "decoder norm", low: 0 },
      bands: others.length ? [{ x, low, high, colour: own }] : [],
      series: [
        ...others.map(({ y, seed }) => ({ name: `seed ${seed}, matched`, x, y, colour: ink("thin"), dash: true })),
        { name: `seed ${about.seeds[0]}`, x, y: one.strength[0], colour: own, dots: true },
      ],
      marks: turningMarks(about),
    }),
    table: () => ({
      head: ["step", `seed ${about.seeds[0]}`, ...others.map(({ seed }) => `seed ${seed}`)],
      rows: x.map((step, i) => [format.step(step), ...all.map((y) => format.number(y[i], 4))]),
    }),
  });
}

function directionFigure(one) {
  const { about } = one.site;
  const steps = about.matrix.map((i) => about.steps[i]);
  const last = one.cosine[0][steps.length - 1];
  const label = `Cosines between the decoder's directions at ${steps.length} snapshots; ${Number.isFinite(last) ? `between the first and the last ${format.fixed(last)}` : "the first and the last are not compared"}.`;
  return figure({
    title: "Direction",
    label,
    note: `Cosine of the decoder between snapshots${steps.length < about.steps.length ? ` (${steps.length} of ${about.steps.length})` : ""}. Grey: too weak at either to have a direction.`,
    draw: (place, width) => matrix(place, width, { values: one.cosine, steps, label }),
    table: () => ({ head: ["step", ...steps.map(format.step)], rows: one.cosine.map((row, i) => [format.step(steps[i]), ...row.map((v) => format.fixed(v))]) }),
  });
}

function dimensionalityFigure(one) {
  const { about } = one.site;
  if (!one.dimensionality) return missingPart("Dimensionality", about.missing.dimensionality);
  const label = `Dimensionality of feature ${one.number} through training: ${format.fixed(one.dimensionality[0])} at first, ${format.fixed(one.dimensionality.at(-1))} at last.`;
  return figure({
    title: "Dimensionality",
    label,
    note: "1 where the feature shares its direction with none, 1/k where k share one.",
    draw: (place, width) => lines(place, width, {
      label, linear: isLinear(), height: 160,
      y: { label: "dimensions", low: 0, high: Math.max(0.2, ...one.dimensionality) * 1.06 },
      series: [{ name: "dimensionality", x: about.steps, y: one.dimensionality, colour: ink("first"), dots: true }],
      marks: turningMarks(about),
    }),
    table: () => ({ head: ["step", "dimensionality"], rows: about.steps.map((step, i) => [format.step(step), format.fixed(one.dimensionality[i])]) }),
  });
}

// Others than those of kinds and classes; with more tasks they come again.
const TASK_COLOURS = ["#1F3A5F", "#A65628", "#5AB4AC", "#AA4499", "#8FA3B8", "#C9B037", "#000000", "#999999"];

function attributionFigure(one) {
  const { about } = one.site;
  if (!about.tasks.length) return missingPart("Attribution", about.missing.circuits);
  if (!one.attribution.length)
    return missingPart("Attribution", "No task's attribution to this feature differs from zero.");
  const strongest = (values) => Math.max(...values.map((v) => Math.abs(v) || 0));
  const sorted = [...one.attribution].sort((a, b) => strongest(b.values) - strongest(a.values));
  const label = `Attribution to ${sorted.length} tasks through training; the largest to ${format.name(sorted[0].task)}, ${format.number(strongest(sorted[0].values))} nats.`;
  return figure({
    title: "Attribution to tasks",
    label,
    note: "What the feature adds to the logit difference of right and wrong answer, by integrated gradients, mean over pairs; tasks for which it differs from zero at some step.",
    draw: (place, width) => lines(place, width, {
      label, linear: isLinear(), height: 200,
      y: { label: "attribution (nats)" },
      series: sorted.map(({ task, values }) => ({
        name: format.name(task), x: about.steps, y: values, dots: true,
        colour: colour(TASK_COLOURS[about.tasks.findIndex((t) => t.name === task) % TASK_COLOURS.length]),
      })),
      levels: [{ name: "", y: 0, colour: ink("rule") }],
    }),
    table: () => ({ head: ["step", ...sorted.map(({ task }) => format.name(task))], rows: about.steps.map((step, i) => [format.step(step), ...sorted.map(({ values }) => format.number(values[i]))]) }),
  });
}

function missingPart(title, why) {
  return h("section", { class: "panel absent" }, h("h2", {}, title), h("p", { class: "missing" }, why));
}

/** A context's line: tokens shaded by activation, the position's own framed. */
function contextLine(one, threshold) {
  // A token that only goes on with a character shows with the token where the character begins.
  const owner = one.tokens.map((_, i) => i);
  one.tokens.forEach((token, i) => i > 0 && token.text === "" && (owner[i] = owner[i - 1]));
  const share = one.tokens.map(() => 0);
  one.tokens.forEach((token, i) => (share[owner[i]] = Math.max(share[owner[i]], Number.isFinite(token.share) ? token.share : 0)));
  const tokens = one.tokens.map((token, i) => {
    const own = i === owner[one.position];
    const part = own && i !== one.position ? "the active token is a later byte of this character" : null;
    const lit = share[i] > 0 && token.text !== "";
    const classes = ["token", lit && "lit", own && "own"].filter(Boolean).join(" ");
    return h("span", {
      class: classes,
      vars: lit ? { "--a": share[i].toFixed(3) } : null,
      title: [lit && `${format.fixed(share[i])} of the largest`, part].filter(Boolean).join("; ") || null,
    }, token.text);
  });
  const where = `block ${one.block}, token ${one.offset}`;
  return h("li", { class: "context" },
    h("span", { class: "value", title: where }, threshold ? format.fixed(one.value / threshold) : format.number(one.value),
      Number.isFinite(one.quantile) && !threshold ? h("small", {}, ` q ${format.fixed(one.quantile)}`) : null),
    h("span", { class: "line-of-text", dir: "ltr" }, tokens));
}

function contextsPart(one) {
  const { about } = one.site;
  if (!one.contexts) return missingPart("Contexts", about.missing.contexts);
  const parts = [
    ["top", "Strongest", "activation at the framed token; at most one context per block"],
    ["quantiles", "Quantiles", "from weak to strong, one of each; q: share of the active positions below"],
    ["near_misses", "Near misses", "where it nearly opens: score at the framed token, as a share of the threshold"],
  ];
  const key = h("p", { class: "shade-key" }, "activation over the feature's largest ", h("span", { class: "shades", "aria-hidden": "true" }, [0.1, 0.3, 0.5, 0.75, 1].map((a) => h("span", { class: "lit token", vars: { "--a": a } }, " "))), " ", h("span", { class: "token own" }, "position"));
  return h("section", { class: "panel contexts" }, h("h2", {}, "Contexts"), key,
    parts.map(([name, title, what]) => {
      const some = one.contexts[name];
      return h("div", {}, h("h3", {}, title, h("small", {}, ` ${some.length ? what : ""}`)),
        some.length ? h("ol", { class: "lines" }, some.map((c) => contextLine(c, name === "near_misses" ? one.threshold : 0))) : h("p", { class: "missing" }, "None in the held-out text."));
    }));
}

/** A token alone, whose spaces show. */
function lensToken(text) {
  return h("span", { class: "token" }, text.split(" ").flatMap((part, i) => [i > 0 && h("span", { class: "space", "aria-label": "space" }, "␣"), part]));
}

function lensPart(one) {
  const { about } = one.site;
  if (!one.contexts) return null;
  if (!one.lens.length)
    return missingPart("Promoted tokens", "This experiment has no logit lens: contexts.lens_snapshots is 0, or the stream has none.");
  const through = one.lens.filter((x) => !x.peak);
  const peak = one.lens.find((x) => x.peak);
  const columns = [...through, peak].filter(Boolean);
  const tokens = (side) => h("tbody", {}, Array.from({ length: columns[0][side].length }, (_, row) =>
    h("tr", {}, h("th", { scope: "row" }, String(row + 1)), columns.map((x) =>
      h("td", { title: `${format.number(x[side][row].value)} nats per unit of activation`, class: x.peak ? "at-peak" : null },
        lensToken(x[side][row].text))))));
  const tableOf = (side, title) => h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title} by feature ${one.number} of ${about.name}` },
    h("table", { class: "lens" }, h("caption", {}, title),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "step"), columns.map((x) =>
        h("th", { scope: "col", class: x.peak ? "at-peak" : null }, x.peak ? `peak, ${format.step(x.step)}` : format.step(x.step),
          h("small", { title: "decoder norm over its largest" }, ` ${format.fixed(x.strength, 2)}`))))),
      tokens(side)));
  return h("section", { class: "panel" }, h("h2", {}, "Promoted tokens through time"),
    h("p", { class: "note" }, "By the logit lens of the decoder at each step; the number beside a step is the decoder norm relative to its largest."),
    tableOf("promoted", "Promoted"), h("details", {}, h("summary", {}, "Suppressed"), tableOf("suppressed", "Suppressed")));
}

/** Other features beside this one: their places, and a value of each in the second column. */
function othersPart(one, heading, column, others, note) {
  const { site } = one;
  if (!others.length) return null;
  const rows = others.map(({ place, value }) => {
    const text = h("td", { class: "text" });
    site.text(place).then((found) => found && fill(text, found.contexts.length ? snippet(found.contexts[0]) : "–"));
    const kind = kindOf(site, place);
    return h("tr", {}, h("th", { scope: "row" }, featureLink(site, place)), h("td", { class: "number" }, value),
      h("td", { class: "number" }, format.step(site.columns.onset[place])),
      kind && h("td", {}, swatch(site, kind), format.name(kind)),
      site.about.contexts && text,
      h("td", {}, h("a", { href: hash("compare", `a=${one.number}&b=${site.columns.feature[place]}`), "aria-label": `Compare with feature ${site.columns.feature[place]}` }, "compare")));
  });
  return h("section", { class: "panel" }, h("h2", {}, heading),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": heading },
      h("table", { class: "features near" }, h("caption", { class: "unseen" }, heading),
        h("thead", {}, h("tr", {}, ["feature", column, "onset", site.columns.kind && "kind", site.about.contexts && "strongest context"].filter(Boolean).map((x) => h("th", { scope: "col" }, x)), h("th", { scope: "col" }, h("span", { class: "unseen" }, "compare")))),
        h("tbody", {}, rows))),
    h("p", { class: "note" }, note));
}

function nearPart(one) {
  const others = one.near.map(({ place, cosine }) => ({ place, value: format.fixed(cosine) }));
  return othersPart(one, "Nearest features", "cosine", others, "By the cosine of the decoders over all snapshots at once.");
}

function togetherPart(one) {
  const others = one.together.map(({ place, share }) => ({ place, value: format.percent(share) }));
  return othersPart(one, "Active together", "both active", others,
    "The share of the positions with either feature active at which both are, in the first 65,536 positions of the held-out text.");
}

function command(site) {
  return h("footer", { class: "command" }, h("p", {}, "Made by ", h("code", { tabindex: 0 }, site.about.command), ` with Ontogeny ${site.about.version}. Norms are exact to 1 in 65,000, cosines to 0.004, shades and dimensionality to 0.004 of their largest; the table's numbers to 7 digits.`));
}

function feature(site) {
  const element = h("div", { class: "feature-page" });
  let now = null;
  async function update() {
    const { rest, params } = address();
    const number = /^\d+$/.test(rest[0] || "") ? Number(rest[0]) : -1;
    const key = `${number}?${ofList(params)}`;
    if (key === now) {
      for (const one of element.querySelectorAll("figure")) one.redraw?.();
      return `Feature ${number}`;
    }
    const place = site.place(number);
    if (place < 0) {
      const why = number >= 0 && number < site.about.features
        ? `Feature ${number} is dead: it was silent over the last rows of training, and has no history.`
        : `There is no feature ${rest[0] || ""}; they are numbered 0 to ${site.about.features - 1}.`;
      fill(element, h("h1", { tabindex: -1 }, "No such feature"), h("p", { class: "missing" }, why), h("p", {}, h("a", { href: "#/table" }, "All features")));
      now = key;
      return "No such feature";
    }
    const [one, found] = await Promise.all([site.feature(place), list(site, params)]);
    if (address().rest[0] !== rest[0]) return null;
    now = key;
    const at = found.indexOf(place);
    const step = (by, text, label) => {
      const to = at < 0 ? undefined : found[at + by];
      return to === undefined ? h("span", { class: "button off" }, text) : featureLink(site, to, text, { class: "button", rel: by > 0 ? "next" : "prev", "aria-label": `${label}: feature ${site.columns.feature[to]}`, id: by > 0 ? "next" : "previous" });
    };
    const some = filters(params).length > 0 || params.get("sort");
    fill(element,
      h("div", { class: "heading" },
        h("h1", { tabindex: -1 }, "Feature ", h("span", { class: "figure-number" }, String(number)),
          nameOf(site, place) && h("span", { class: "name" }, nameOf(site, place))),
        h("p", { class: "walk" }, step(-1, "‹ previous", "Previous"), " ",
          h("span", {}, at < 0 ? "not in this list" : `${format.count(at + 1)} of ${format.count(found.length)}`), " ", step(1, "next ›", "Next"),
          " ", h("a", { href: hash("table", ofList(params)) }, some ? "this list" : "all features"),
          " ", h("a", { href: hash("compare", `a=${number}`) }, "compare"))),
      chips(`feature/${number}`, params),
      featureFacts(one),
      h("div", { class: "columns even life" },
        h("div", { class: "side-column" },
          h("div", { class: "panel comes-first" }, strengthFigure(one, axisChoice())),
          h("div", { class: "panel pair" }, directionFigure(one), dimensionalityFigure(one)),
          wrapped(attributionFigure(one)), nearPart(one), togetherPart(one)),
        h("div", { class: "side-column" }, contextsPart(one), lensPart(one))),
      command(site));
    for (const one_ of element.querySelectorAll("figure")) one_.redraw?.();
    return `Feature ${number}`;
  }
  function key(event) {
    const to = event.key === "ArrowLeft" ? "previous" : event.key === "ArrowRight" ? "next" : null;
    const link = to && document.getElementById(to);
    if (!link) return;
    event.preventDefault();
    location.replace(link.href); // the list is one step to go back to
  }
  return { element, update, key, title: "Feature" };
}

function wrapped(element) {
  return element.classList.contains("panel") ? element : h("div", { class: "panel" }, element);
}
