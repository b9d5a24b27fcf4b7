// The first page: the earliest emergent feature, ten telling ones of each phase, the experiment.
"use strict";

const CURVE = { width: 96, height: 22 };

/** A small curve of strengths from 0 to 255 over training steps, on a log axis. */
function sparkline(site, levels, c = "") {
  const { width, height } = CURVE;
  const last = Math.log1p(site.steps[site.steps.length - 1]) || 1;
  const points = Array.from(levels, (level, i) =>
    `${((Math.log1p(site.steps[i]) / last) * (width - 2) + 1).toFixed(1)} ${(height - 2 - (level / 255) * (height - 4)).toFixed(1)}`);
  return s("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", vars: c ? { "--c": c } : null },
    s("path", { class: "under", d: `M1 ${height - 1}L${points.join("L")}L${width - 1} ${height - 1}Z` }),
    s("path", { class: "line", d: `M${points.join("L")}` }));
}

/** The colour of a feature: that of its kind, or of its class. */
function featureColour(site, place) {
  const name = kindOf(site, place) || classOf(site, place)[0];
  return colour(site.about.colours[name]);
}

function kindWord(site, place) {
  const kind = kindOf(site, place);
  return kind && [swatch(site, kind), term(format.name(kind))];
}

/** A feature's name; without one, the token that it is most active on. */
function called(site, entry) {
  return nameOf(site, entry.place) || "";
}

/** The answer to what comes first, in sentences. */
function earliest(site) {
  const { about } = site;
  const { start } = about;
  const one = start.earliest;
  const c = site.columns;
  if (!one)
    return h("section", { class: "panel lead" }, h("h2", {}, "The earliest emergent feature"),
      h("p", { class: "missing" }, "No emergent feature is weak at first, found again in another seed, and frequent enough to be trusted."));
  const p = one.place;
  const kind = kindOf(site, p);
  const { first } = start;
  const emergent = classBit(site, "emergent");
  const others = Array.from(c.onset).filter((onset, place) => c.class[place] & emergent && onset < c.onset[p]).length - 1;
  const before = (step, earlier) => others > 0
    ? ` has the earliest onset of all, step ${earlier}, but neither it nor ${others === 1 ? "the other feature" : `the ${others} other features`} that emerged before step ${step} ${others === 1 ? "meets" : "meet"} these conditions.`
    : ` has an earlier onset, step ${earlier}, but does not meet these conditions.`;
  return h("section", { class: "panel lead" },
    h("h2", {}, "The earliest ", term("emergent"), " feature"),
    h("div", { class: "answer" },
      h("p", {}, h("b", {}, featureLink(site, p, `Feature ${c.feature[p]}`)),
        called(site, one) && [" is named ", h("span", { class: "name" }, called(site, one)), "."],
        kind && [called(site, one) ? " It is of the " : " is of the ", term("kind"), " ", kindWord(site, p), "."],
        ` It appears at step ${format.step(c.onset[p])} (its `, term("onset"), ")",
        Number.isFinite(c.settled[p]) && [` and keeps its final direction from step ${format.step(c.settled[p])} (`, term("settled"), ")"],
        c.class[p] & classBit(site, "transient") ? [`. It is `, term("transient"), ": its strength falls below half of its peak before the training ends."] : "."),
      sparkline(site, unpack(one.curve), featureColour(site, p)),
      one.context && h("p", { class: "sentence" }, "It is most active on ", h("q", { class: "text whole" }, snippet(one.context, Infinity)))),
    h("p", { class: "note" }, about.seeds.length > 1
      ? ["Earliest of the emergent features that are ", term("matched"), `, not doubtful, active at ${start.often} held-out tokens or more, and at the first snapshot no stronger than ${start.weak} of their peak.`]
      : `Earliest of the emergent features that are active at ${start.often} held-out tokens or more and at the first snapshot no stronger than ${start.weak} of their peak; with one seed, nothing says which would come again.`,
      first !== null && [" ", featureLink(site, first, `Feature ${c.feature[first]}`), before(format.step(c.onset[p]), format.number(c.onset[first], 2))]));
}

/** A phase in words: [heading, what it is]. */
function phaseWords({ low, high, until, after }) {
  const level = (name) => term(`${name} level`);
  const from = (x) => format.step(x);
  if (until === "first") return ["Present at the first snapshot", "Random weights have features too; training turns most of them into something else."];
  if (high !== null && low === null) return [`Emerged before step ${from(high)}`, ["until the loss passes the ", level(until)]];
  if (high !== null) return [`Emerged from step ${from(low)} to ${from(high)}`, ["between the ", level(after), " and the ", level(until)]];
  if (low !== null) return [`Emerged after step ${from(low)}`, ["once the loss is below the ", level(after)]];
  return ["Emerged", "the loss passes no level"];
}

function phaseSection(site, phase) {
  const c = site.columns;
  const [heading, what] = phaseWords(phase);
  const params = new URLSearchParams(phase.until === "first" ? "class=initialisation"
    : `class=emergent&onset=${phase.low === null ? "" : phase.low.toPrecision(6)}..${phase.high === null ? "" : phase.high.toPrecision(6)}`);
  const shown = phase.features;
  return h("section", { class: "panel phase" },
    h("h2", {}, heading, h("small", {}, " ", what)),
    shown.length ? h("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": heading },
      h("table", { class: "features telling" },
        h("caption", { class: "unseen" }, `${heading}: telling features`),
        h("thead", {}, h("tr", {}, [
          ["feature", term("feature")], ["curve", term("strength")], ["name", term("name")], c.kind && ["kind", term("kind")],
          ["onset", term("onset")], ["settled", term("settled")], site.about.contexts && ["text", "most active on"],
        ].filter(Boolean).map(([name, word]) => h("th", { scope: "col", class: `of-${name}` }, word)))),
        h("tbody", {}, shown.map((one) => h("tr", {},
          h("th", { scope: "row", class: "of-feature" }, featureLink(site, one.place)),
          h("td", { class: "of-curve" }, sparkline(site, unpack(one.curve), featureColour(site, one.place))),
          h("td", { class: "of-name name" }, called(site, one)),
          c.kind && h("td", { class: "of-kind" }, swatch(site, kindOf(site, one.place)), format.name(kindOf(site, one.place))),
          h("td", { class: "number of-onset" }, format.step(c.onset[one.place])),
          h("td", { class: "number of-settled" }, format.step(c.settled[one.place])),
          site.about.contexts && h("td", { class: "text of-text" }, one.context ? snippet(one.context, 26) : "–"))))))
      : h("p", { class: "missing" }, "No feature."),
    h("p", { class: "note" }, shown.length < phase.count ? `${shown.length} of ` : "all ",
      h("a", { href: hash("table", params) }, `${format.count(phase.count)} features`), " of this phase"));
}

function start(site) {
  const { about } = site;
  const curve = trainingCurve([site], axisChoice());
  const aside = h("div", { class: "panel" });
  const element = h("div", { class: "start" },
    h("h1", { tabindex: -1 }, "When the model's features appear"),
    factList(site),
    h("div", { class: "columns start-columns" },
      h("div", { class: "side-column" },
        earliest(site),
        about.start.phases.map((phase) => phaseSection(site, phase)),
        h("p", { class: "note" }, "Chosen by rule: features that are matched, not doubtful and frequent come first, then those with a kind and a name, and among equals those with the better match. No two features of a phase share both name and kind. They are shown in order of onset.",
          !about.contexts && ` ${about.missing.contexts}`)),
      h("div", { class: "side-column" }, h("div", { class: "panel" }, curve), aside)),
    command(site));

  async function update() {
    fill(aside, census(site, new URLSearchParams()), tasks(site));
    curve.redraw();
  }
  return { element, update, title: "Start" };
}
