// Passages as every snapshot reads them: tokens in a row, what is active under each, a scrubber.
"use strict";

const SHOWN_FEATURES = 3; // under a token; the chosen one has all that are kept

/** All that is known of a passage at its tokens and snapshots; a promise. */
async function readPassage(site, number) {
  const part = await load(site.base, `passages/${number}`);
  if (part.tokens) return part.tokens;
  const n = site.steps.length;
  const k = part.predictions;
  const [word, loss, next, probability, active, place, value] =
    ["word", "loss", "next", "probability", "active", "place", "value"].map((name) => unpack(part[name]));
  const first = starts(Array.from(active));
  const tokens = Array.from(word, (number, t) => ({
    text: part.words[number],
    loss: Array.from(loss.slice(t * n, (t + 1) * n)),
    at: site.steps.map((_, i) => {
      const here = t * n + i;
      return {
        next: Array.from({ length: k }, (_, j) => ({ text: part.words[next[here * k + j]], p: probability[here * k + j] / 255 })),
        features: Array.from({ length: active[here] }, (_, j) => ({
          place: place[first[here] + j],
          value: (value[first[here] + j] / 65534) * part.scale,
        })),
      };
    }),
  }));
  Object.defineProperty(part, "tokens", { value: tokens });
  return tokens;
}

/** Mean of the losses that are known. */
function meanLoss(tokens, i) {
  const known = tokens.map((token) => token.loss[i]).filter(Number.isFinite);
  return known.reduce((sum, x) => sum + x, 0) / known.length;
}

/** A token in which a run of spaces alone shows. */
function spaced(text) {
  return /[^ ↵]/.test(text) ? text : text.replaceAll(" ", "␣");
}

function passages(site) {
  const heading = h("h1", { tabindex: -1 }, "Passages");
  const element = h("div", { class: "passages" }, heading);
  let list = null; // of the passages
  let drawn = ""; // which passage the parts below are of
  const parts = {};

  function build(params) {
    const steps = site.steps;
    const options = list.map((one, i) => [String(i), `${format.name(one.source)}: ${one.begins}`]);
    parts.slider = h("input", {
      type: "range", id: "snapshot", min: 0, max: steps.length - 1, step: 1,
      oninput: () => change({ at: parts.slider.value }),
    });
    parts.now = h("output", { for: "snapshot" });
    parts.tokens = h("ol", { class: "gloss" });
    parts.token = h("section", { class: "panel chosen", "aria-live": "off" });
    fill(element, heading,
      h("p", { class: "note" }, "Each token with its loss (the deeper its colour, the larger), the features that contribute most to its activation at the chosen snapshot, and the token that the model then expects next. Click a token to see everything that is recorded about it."),
      h("div", { class: "controls" },
        select("passage", options, params.get("text") || "0", (text) => change({ text, token: "" })),
        h("label", { class: "field scrub" }, h("span", {}, "snapshot"), parts.slider), parts.now),
      parts.tokens, parts.token);
  }

  function gloss(token, t, i, chosen) {
    const here = token.at[i];
    const share = Number.isFinite(token.loss[i]) ? Math.min(1, token.loss[i] / 8) : 0;
    return h("li", {},
      h("button", {
        type: "button", class: "word token", "data-token": t, "aria-pressed": String(t === chosen),
        vars: { "--much": `${Math.round(38 * share)}%` }, onclick: () => change({ token: t === chosen ? "" : String(t) }),
      }, spaced(token.text)),
      h("span", { class: "loss" }, h("span", { class: "unseen" }, "loss "), format.fixed(token.loss[i])),
      h("ul", {}, here.features.slice(0, SHOWN_FEATURES).map(({ place }) => h("li", {}, labelled(place)))),
      h("span", { class: "next" }, h("span", { class: "unseen" }, "expected next: "), h("span", { "aria-hidden": "true" }, "→ "),
        here.next.length ? [h("span", { class: "token" }, spaced(here.next[0].text)), ` ${Math.round(100 * here.next[0].p)}%`] : "–"));
  }

  /** A link to a feature, by its name where it has one, with its kind's colour. */
  function labelled(place) {
    const kind = kindOf(site, place);
    const number = site.columns.feature[place];
    return [
      kind && h("span", { class: "swatch", "aria-hidden": "true", vars: { "--c": colour(site.about.colours[kind]) } }),
      featureLink(site, place, nameOf(site, place) || `#${number}`, { title: `feature ${number}${kind ? `, ${format.name(kind)}` : ""}` }),
    ];
  }

  function showToken(tokens, t, i) {
    const token = tokens[t];
    const here = token.at[i];
    const label = `Loss of the token through training: ${format.fixed(token.loss[0])} nats at first, ${format.fixed(token.loss.at(-1))} at last.`;
    const rows = here.features.map(({ place, value }) => [
      featureLink(site, place), nameOf(site, place) || "–", kindOf(site, place) ? format.name(kindOf(site, place)) : "–", format.fixed(value),
    ]);
    fill(parts.token,
      h("h2", {}, "Token ", h("span", { class: "token" }, spaced(token.text))),
      h("div", { class: "columns even" },
        h("div", {},
          h("h3", {}, `Features at step ${format.step(site.steps[i])}`),
          rows.length ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Features of the token" },
            grid({ head: ["feature", "name", "kind", "contribution"], rows }, "Features of the token")) : h("p", { class: "missing" }, "No feature that has a page is active on it."),
          h("p", { class: "note" }, "Contribution: activation times decoder norm at this snapshot, in units in which activations have the mean norm √d."),
          h("p", {}, "Expected next: ", here.next.map(({ text, p }, j) => [j ? ", " : "", h("span", { class: "token" }, spaced(text)), ` ${Math.round(100 * p)}%`]))),
        figure({
          title: "Loss through training", label,
          draw: (place, width) => lines(place, width, {
            label, height: 180, y: { label: "nats", low: 0 },
            series: [{ name: "loss", x: site.steps, y: token.loss, colour: ink("first"), dots: true }],
            marks: [{ x: site.steps[i], low: NaN, high: NaN, name: "the chosen snapshot" }],
          }),
          table: () => ({ head: ["step", "loss"], rows: site.steps.map((step, j) => [format.step(step), format.fixed(token.loss[j], 3)]) }),
        })));
    for (const one of parts.token.querySelectorAll("figure")) one.redraw();
  }

  const bounded = (text, most, none) => (/^\d+$/.test(text || "") ? Math.min(most, Number(text)) : none);

  async function update() {
    const { params } = address();
    if (site.about.missing.passages) {
      fill(element, heading, missingPart("Passages", site.about.missing.passages));
      return "Passages";
    }
    list ||= await load(site.base, "passages");
    const number = bounded(params.get("text"), list.length - 1, 0);
    const i = bounded(params.get("at"), site.steps.length - 1, site.steps.length - 1);
    const tokens = await readPassage(site, number);
    const t = bounded(params.get("token"), tokens.length - 1, -1);
    if (drawn !== String(number)) build(params);
    drawn = String(number);
    const said = `step ${format.step(site.steps[i])}, mean loss ${format.fixed(meanLoss(tokens, i))} nats`;
    parts.slider.value = i;
    parts.slider.setAttribute("aria-valuetext", said);
    parts.now.textContent = said;
    const focused = document.activeElement?.dataset?.token;
    fill(parts.tokens, tokens.map((token, j) => gloss(token, j, i, t)));
    if (focused !== undefined) parts.tokens.querySelector(`[data-token="${focused}"]`)?.focus({ preventScroll: true });
    parts.token.hidden = t < 0;
    if (t >= 0) showToken(tokens, t, i);
    return "Passages";
  }

  /** Arrows change the snapshot from anywhere on the page. */
  function key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !parts.slider) return;
    event.preventDefault();
    const to = Number(parts.slider.value) + by;
    if (to >= 0 && to < site.steps.length) change({ at: String(to) });
  }

  return { element, update, key, title: "Passages" };
}
