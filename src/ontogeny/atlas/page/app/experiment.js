// The experiment in a line, its training curve, how many features there are of what, its tasks.
"use strict";

/** Terms and numbers of an experiment, in the order of a line. */
function facts(site) {
  const { about } = site;
  const steps = about.steps;
  const of = about.seeds.length > 1 ? `, mean of ${about.seeds.length} seeds` : "";
  return [
    ["model", about.model],
    ["site", `${format.name(about.stream)} stream, layer ${about.layer}`],
    ["snapshots", `${steps.length}, steps ${format.step(steps[0])} to ${format.step(steps[steps.length - 1])}`],
    ["tokens", format.count(about.tokens)],
    ["dictionary", `${about.crosscoder}, ${format.count(site.count)} living features of ${format.count(about.features)}`],
    ["explained variance", format.fixed(about.explained_variance, 3) + of],
    ["L0", format.fixed(about.l0, 1) + of],
  ];
}

function factList(site) {
  return h("dl", { class: "facts" }, facts(site).map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** The training curve, of one site or of several over each other. */
function trainingCurve(sites, tools) {
  const [{ about }] = sites;
  const said = sites.map((site) => {
    const { curve } = site.about;
    return `held-out loss from ${format.fixed(curve.loss[0])} to ${format.fixed(curve.loss[curve.loss.length - 1])} nats`;
  });
  const level = (name) => ({
    name: `${name} ${format.fixed(about.levels[`${name}_cross_entropy`])}`,
    y: about.levels[`${name}_cross_entropy`],
    colour: colour(about.colours[name]),
  });
  return figure({
    title: "Training",
    label: `Training curve: ${said.join("; ")}`,
    tools,
    note: sites.length > 1 ? null : crossings(about),
    draw: (place, width) => lines(place, width, {
      label: `Training curve: ${said.join("; ")}`,
      linear: isLinear(),
      height: 230,
      y: { label: "loss (nats per token)" },
      series: sites.length > 1
        ? sites.map((site, i) => ({ name: site.about.name, x: site.about.curve.step, y: site.about.curve.loss, colour: ink(i ? "second" : "first"), dots: true }))
        : [
            ...(about.log ? [{ name: "batches", x: about.log.step, y: about.log.loss, colour: ink("thin"), thin: true }] : []),
            { name: "held-out text", x: about.curve.step, y: about.curve.loss, colour: ink("ink"), dots: true },
          ],
      levels: sites.length > 1 ? [] : ["unigram", "bigram"].filter((n) => Number.isFinite(about.levels[`${n}_cross_entropy`])).map(level),
      marks: sites.length > 1 ? [] : turningMarks(about),
    }),
    table: () => ({
      head: ["step", ...sites.map((site) => `loss, ${site.about.name}`)],
      rows: [...new Set(sites.flatMap((site) => site.about.curve.step))].sort((a, b) => a - b).map((step) => [
        format.step(step),
        ...sites.map((site) => format.fixed(site.about.curve.loss[site.about.curve.step.indexOf(step)], 3)),
      ]),
    }),
  });
}

function turningMarks({ turning, out_of_place: apart }) {
  return [
    ...(turning ? [{ x: turning.step, low: turning.low, high: turning.high, name: "turning point" }] : []),
    ...(apart || []).map((step) => ({ x: step, low: step, high: step, name: "out of place" })),
  ];
}

/** Where the loss crosses the n-gram levels, and the directions turn, in a sentence. */
function crossings(about) {
  const words = ["unigram", "bigram"].map((name) => {
    const step = about.levels[`${name}_crossing_step`];
    return Number.isFinite(step) ? `the ${name} level at step ${format.step(step)}` : `the ${name} level nowhere`;
  });
  const turn = about.turning
    ? ` Directions turn at step ${format.step(about.turning.step)} (95% ${format.step(about.turning.low)} to ${format.step(about.turning.high)}): mean cosine ${format.fixed(about.turning.within)} within the two blocks of snapshots, ${format.fixed(about.turning.between)} between them.`
    : "";
  const steps = (about.out_of_place || []).map(format.step).join(", ");
  const apart = steps ? ` The loss at step ${steps} lies far outside its neighbours': these may be the weights of another step.` : "";
  return `The loss crosses ${words.join(", ")}.${turn}${apart}`;
}

/** How many features there are of each kind and class; each leads to them. */
function census(site) {
  const parts = [["kind", site.about.kinds], ["class", site.about.classes]];
  const share = (count) => count / Math.max(1, site.count);
  return parts.map(([by, names]) => {
    if (by === "kind" && !site.columns.kind)
      return h("p", { class: "missing" }, site.about.missing.kinds);
    const counts = names.map((name, i) => {
      let count = 0;
      for (let p = 0; p < site.count; p++)
        count += by === "kind" ? site.columns.kind[p] === i : Boolean(site.columns.class[p] & classBit(site, name));
      return count;
    });
    // The first two classes part the features; others lie across them.
    const note = by === "kind" ? `of ${format.count(site.count)} living features, each of one kind`
      : "each living feature is of one of the first two; the others overlap with them";
    return h("section", { class: "census" },
      h("h2", {}, term(by, by === "kind" ? "Kinds" : "Classes"), h("small", {}, ` ${note}`)),
      h("ul", {}, names.map((name, i) => {
        const width = `${(100 * share(counts[i])).toFixed(2)}%`;
        const from = by === "class" && i === 1 ? `${(100 * share(counts[0])).toFixed(2)}%` : "0%";
        return h("li", {},
          swatch(site, name), term(format.name(name)),
          h("span", { class: "bar-of", "aria-hidden": "true" }, h("span", { vars: { "--w": width, "--from": from, "--c": colour(site.about.colours[name]) } })),
          h("a", { class: "much", href: hash("table", `${by}=${name}`), "aria-label": `${format.count(counts[i])} ${format.name(name)} features, ${format.percent(share(counts[i]))}` },
            format.count(counts[i])),
          h("span", { class: "percent" }, `${Math.round(100 * share(counts[i]))}%`));
      })));
  });
}

function tasks(site) {
  const { about } = site;
  if (!about.tasks.length) return h("p", { class: "missing" }, about.missing.circuits || "No task could be made of this experiment's tokens.");
  return h("section", { class: "census" }, h("h2", {}, "Tasks", h("small", {}, " at the last snapshot; each leads to its features")),
    h("table", { class: "grid plain" },
      h("caption", { class: "unseen" }, "Tasks"),
      h("thead", {}, h("tr", {}, ["task", "accuracy", "logit difference"].map((x) => h("th", { scope: "col" }, x)))),
      h("tbody", {}, about.tasks.map((task) => {
        const to = new URLSearchParams({ task: task.name, sort: "-attribution" });
        return h("tr", {}, h("th", { scope: "row" }, h("a", { href: hash("table", to), title: "Features by attribution to it" }, format.name(task.name))),
          h("td", {}, format.fixed(task.accuracy)), h("td", {}, format.fixed(task.difference)));
      }))));
}
