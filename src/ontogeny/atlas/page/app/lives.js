// The range chart: one row per feature, as thick and as dark as the feature is strong at each step.
"use strict";

const SPINDLE = 5; // pixels of a row from which on it is drawn as a spindle, not as a strip
const FADE = 2.2; // the power of the strength that a strip's darkness is
const LABELLED = 10; // and from which on it has its name

/**
 * The chart. given: site, opened(place). The element's set({places, by}) draws some features, the
 * first on top.
 */
function livesChart(given) {
  const { site } = given;
  const n = site.steps.length;
  const place = h("div", { class: "plot" });
  const canvas = h("canvas", { class: "map", tabindex: 0, role: "img", "aria-describedby": "lives-help" });
  const svg = s("svg", { class: "over", "aria-hidden": "true" });
  const tip = h("div", { class: "tip", hidden: true });
  place.append(h("div", { class: "frame" }, canvas, svg, tip));
  const margin = { left: 8, right: 150, top: 18, bottom: 34 };
  const x = scale("step", 0, site.steps[n - 1]);
  let size = { width: 0, height: 0 };
  let rows = { places: [], levels: new Uint8Array(0), rgb: new Uint8Array(0) };
  let view = [0, 1]; // rows, from which to which

  const inner = () => ({ width: size.width - margin.left - margin.right, height: size.height - margin.top - margin.bottom });
  const count = () => rows.places.length;
  const tall = () => inner().height / (view[1] - view[0]);
  const px = (step) => margin.left + x.to(step) * inner().width;
  const rowAt = (y) => Math.floor(view[0] + (y - margin.top) / tall());

  async function set({ places, by, usual }) {
    const levels = new Uint8Array(places.length * n);
    const parts = new Map();
    const files = site.about.text_features;
    for (const p of places) parts.set(Math.floor(p / files), null);
    await Promise.all([...parts.keys()].map(async (number) => parts.set(number, await site.curves(number))));
    const { names, of } = groups(site, by);
    const colours = names.map((name) => components(colour(site.about.colours[name])));
    const rgb = new Uint8Array(places.length * 3);
    places.forEach((p, i) => {
      const own = (p % files) * n;
      levels.set(parts.get(Math.floor(p / files)).subarray(own, own + n), i * n);
      rgb.set(colours[of[p]], 3 * i);
    });
    const same = places.length === count() && places.every((p, i) => p === rows.places[i]);
    rows = { places, levels, rgb, usual };
    if (!same) view = [0, Math.max(1, count())];
    canvas.setAttribute("aria-label", `Range chart of ${format.count(count())} features: one row each, training steps to the right on a log axis, as dark as the feature is strong, coloured by ${by}.`);
    draw();
  }

  /** Red, green and blue of a colour of the style sheet's forms. */
  function components(text) {
    return text.startsWith("#") ? [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16)) : text.match(/\d+/g).map(Number);
  }

  function draw() {
    if (!place.isConnected) return;
    const width = Math.floor(place.clientWidth);
    if (!width) return;
    margin.right = width > 700 ? 150 : 84;
    const height = Math.max(420, Math.min(1000, window.innerHeight - 230));
    const ratio = window.devicePixelRatio || 1;
    size = { width, height };
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (count()) {
      if (tall() >= SPINDLE) spindles(pen);
      else strips(pen, ratio);
      sections(pen);
    }
    overlay();
  }

  /** Rows too thin to tell apart: the mean of those that share a pixel. */
  function strips(pen, ratio) {
    const columns = Math.round(inner().width * ratio);
    const lines = Math.round(inner().height * ratio);
    const image = pen.createImageData(columns, lines);
    const at = site.steps.map((step) => x.to(step) * (columns - 1));
    const sums = new Float32Array(4 * n);
    for (let line = 0; line < lines; line++) {
      const low = view[0] + (line / lines) * (view[1] - view[0]);
      const first = Math.floor(low);
      const last = Math.max(first + 1, Math.min(count(), Math.floor(low + (view[1] - view[0]) / lines)));
      if (first >= count()) break;
      sums.fill(0);
      for (let row = first; row < last; row++)
        for (let i = 0; i < n; i++) {
          const level = (rows.levels[row * n + i] / 255) ** FADE;
          for (let c = 0; c < 3; c++) sums[4 * i + c] += level * rows.rgb[3 * row + c];
          sums[4 * i + 3] += level;
        }
      let i = 0;
      for (let column = 0; column < columns; column++) {
        while (i < n - 2 && at[i + 1] <= column) i++;
        const part = n < 2 ? 0 : Math.min(1, Math.max(0, (column - at[i]) / (at[i + 1] - at[i] || 1)));
        const mix = (c) => sums[4 * i + c] * (1 - part) + (n < 2 ? 0 : sums[4 * i + 4 + c] * part);
        const level = mix(3);
        const pixel = 4 * (line * columns + column);
        if (level > 0) {
          for (let c = 0; c < 3; c++) image.data[pixel + c] = mix(c) / level;
          image.data[pixel + 3] = (255 * level) / (last - first);
        }
      }
    }
    pen.putImageData(image, Math.round(margin.left * ratio), Math.round(margin.top * ratio));
  }

  function spindles(pen) {
    const half = (tall() / 2) * 0.88;
    const c = site.columns;
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    pen.textBaseline = "middle";
    pen.save();
    pen.beginPath();
    pen.rect(0, margin.top, size.width, inner().height);
    pen.clip();
    for (let row = Math.max(0, Math.floor(view[0])); row < Math.min(count(), view[1]); row++) {
      const p = rows.places[row];
      const y = margin.top + (row + 0.5 - view[0]) * tall();
      const edge = (i) => (rows.levels[row * n + i] / 255) * half;
      pen.fillStyle = `rgb(${rows.rgb.subarray(3 * row, 3 * row + 3).join(",")})`;
      pen.beginPath();
      for (let i = 0; i < n; i++) pen.lineTo(px(site.steps[i]), y - edge(i));
      for (let i = n - 1; i >= 0; i--) pen.lineTo(px(site.steps[i]), y + edge(i));
      pen.fill();
      pen.fillStyle = ink("ink");
      if (c.onset[p] > site.steps[0]) pen.fillRect(px(c.onset[p]) - 0.75, y - half, 1.5, 2 * half);
      if (Number.isFinite(c.settled[p])) {
        pen.beginPath();
        pen.arc(px(c.settled[p]), y, Math.min(3, half), 0, 7);
        pen.fillStyle = ink("card");
        pen.fill();
        pen.strokeStyle = ink("ink");
        pen.stroke();
      }
      if (tall() < LABELLED) continue;
      pen.fillStyle = ink("ink");
      pen.fillText(shown(`${c.feature[p]}  ${nameOf(site, p)}`), size.width - margin.right + 6, y, margin.right - 8);
    }
    pen.restore();
  }

  /** What each part of the usual order is, beside it, while rows have no names. */
  function sections(pen) {
    if (!rows.usual || tall() >= LABELLED) return;
    const first = classBit(site, "initialisation");
    const name = (p) => (site.columns.class[p] & first ? "at initialisation" : site.columns.trusted[p] ? "emergent, trusted" : "other emergent");
    pen.fillStyle = ink("soft");
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    pen.textBaseline = "top";
    rows.places.forEach((p, row) => {
      if (row > 0 && name(rows.places[row - 1]) === name(p)) return;
      const y = margin.top + (row - view[0]) * tall();
      if (y < margin.top - 1 || y > size.height - margin.bottom - 12) return;
      pen.fillRect(margin.left, y - 0.5, size.width - margin.left - 4, 1);
      pen.fillText(name(p), size.width - margin.right + 6, y + 3, margin.right - 10);
    });
  }

  function overlay() {
    svg.replaceChildren();
    const { width, height } = size;
    const bottom = height - margin.bottom;
    const group = s("g", { class: "axes" });
    for (const tick of x.ticks())
      group.append(s("line", { x1: px(tick), x2: px(tick), y1: bottom, y2: bottom + 4 }), s("text", { x: px(tick), y: bottom + 15, "text-anchor": "middle" }, x.text(tick)));
    group.append(s("path", { d: `M${margin.left} ${bottom}H${width - margin.right}`, fill: "none" }),
      s("text", { class: "label", x: margin.left + inner().width / 2, y: height - 3, "text-anchor": "middle" }, "training step (log axis)"));
    svg.append(group);
    const { levels, turning } = site.about;
    const marks = [
      ...["unigram", "bigram"].map((name) => [levels[`${name}_crossing_step`], `${name} level`, "end"]),
      turning && [turning.step, "turning point", "end"],
    ].filter((mark) => mark && Number.isFinite(mark[0])).sort((a, b) => a[0] - b[0]);
    let until = -Infinity;
    for (const [step, name] of marks) {
      svg.append(s("line", { class: "mark", x1: px(step), x2: px(step), y1: margin.top - 4, y2: bottom }));
      const left = Math.max(px(step) - 3 * name.length, until + 6);
      if (left > px(step) + 6) continue; // no room
      svg.append(s("text", { class: "onplot", x: left, y: 11 }, name));
      until = left + 6 * name.length;
    }
  }

  function move(from, span) {
    const whole = Math.max(1, count());
    span = Math.min(whole, Math.max(Math.min(4, whole), span));
    from = Math.min(whole - span, Math.max(0, from));
    view = [from, from + span];
    draw();
  }

  function zoomBy(factor, y = margin.top + inner().height / 2) {
    const share = Math.min(1, Math.max(0, (y - margin.top) / inner().height));
    const span = view[1] - view[0];
    const next = Math.min(Math.max(1, count()), Math.max(4, span * factor));
    move(view[0] + share * (span - next), next);
  }

  const whole = () => move(0, count());
  const at = (event) => pointIn(canvas, event);
  let start = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = { y: at(event)[1], from: view[0], far: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const y = at(event)[1];
    if (!start) return hover(...at(event));
    start.far ||= Math.abs(y - start.y) > 5;
    tip.hidden = true;
    if (start.far) move(start.from - (y - start.y) / tall(), view[1] - view[0]);
  });
  canvas.addEventListener("pointerup", (event) => {
    const { far } = start || { far: true };
    start = null;
    const row = rowAt(at(event)[1]);
    if (!far && row >= 0 && row < count()) given.opened(rows.places[row]);
  });
  canvas.addEventListener("pointercancel", () => (start = null));
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
  canvas.addEventListener("wheel", (event) => {
    if (!(event.ctrlKey || event.metaKey || document.activeElement === canvas)) return; // the page scrolls
    event.preventDefault();
    zoomBy(event.deltaY > 0 ? 1.25 : 0.8, at(event)[1]);
  }, { passive: false });
  canvas.addEventListener("dblclick", whole);
  canvas.addEventListener("keydown", (event) => {
    const span = view[1] - view[0];
    const keys = {
      ArrowUp: () => move(view[0] - 0.15 * span, span), ArrowDown: () => move(view[0] + 0.15 * span, span),
      PageUp: () => move(view[0] - span, span), PageDown: () => move(view[0] + span, span),
      "+": () => zoomBy(0.6), "=": () => zoomBy(0.6), "-": () => zoomBy(1 / 0.6), 0: whole,
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });

  function hover(left, y) {
    const row = rowAt(y);
    const there = y > margin.top && y < size.height - margin.bottom && row >= 0 && row < count();
    tip.hidden = !there;
    canvas.classList.toggle("over-point", there);
    if (!there) return;
    const p = rows.places[row];
    const kind = kindOf(site, p);
    fill(tip, h("b", {}, `Feature ${site.columns.feature[p]}`), ` ${nameOf(site, p)}`,
      h("div", {}, kind && `${format.name(kind)}, `, classOf(site, p).join(", ")),
      h("div", {}, `onset ${format.step(site.columns.onset[p])}, settled ${format.step(site.columns.settled[p])}`));
    tip.style.left = `${Math.max(0, Math.min(left + 14, size.width - 190))}px`;
    tip.style.top = `${Math.min(y + 10, size.height - 70)}px`;
  }

  const tools = h("div", { class: "tools" },
    h("button", { type: "button", onclick: () => zoomBy(0.5), "aria-label": "Zoom in" }, "+"),
    h("button", { type: "button", onclick: () => zoomBy(2), "aria-label": "Zoom out" }, "−"),
    h("button", { type: "button", onclick: whole }, "Whole"));
  responsive(place, draw);
  return { element: place, tools, set, canvas };
}

function lives(site) {
  const { about } = site;
  const chart = livesChart({ site, opened: (p) => (location.hash = hash(`feature/${site.columns.feature[p]}`, ofList(address().params))) });
  const controls = h("div", { class: "controls" });
  const key = h("ul", { class: "legend" });
  const said = h("div", { class: "selection" });
  const orders = [["", "emergent first, by onset"], ["onset", "onset"], ["settled", "settled"], ["peak", "peak"], site.columns.kind && ["kind", "kind"], ["-lifetime", "lifetime"]].filter(Boolean);
  const element = h("div", { class: "lives-page" },
    h("h1", { tabindex: -1, id: "lives-title" }, "Lives of all features"),
    h("figure", { class: "panel", "aria-labelledby": "lives-title" },
      h("figcaption", {}, controls, chart.tools), key, chart.element, said,
      h("p", { class: "note", id: "lives-help" },
        "One row per feature; the darker the row, the stronger the feature relative to its own peak. Zoomed in, the thickness shows the strength, with a stroke at its ", term("onset"), " and a ring where its direction has ", term("settled"), ". ", term("trusted", "Trusted"), " features come first. Click a row to open the feature, drag to move, zoom with + and − or the wheel (with the chart in focus); 0 shows all. The table lists the same features in the same order.")));

  async function update() {
    const { params } = address();
    const by = params.get("by") === "class" || !site.columns.kind ? "class" : "kind";
    const now = params.get("sort") || "";
    fill(controls,
      select("order", orders.some(([name]) => name === now) ? orders : [...orders, [now, now]], now, (name) => change({ sort: name }), { id: "order" }),
      site.columns.kind && choice("Colour", [["kind", "kinds"], ["class", "classes"]], by, (name) => change({ by: name === "kind" ? "" : name })));
    fill(key, groups(site, by).names.map((name) => h("li", {}, swatch(site, name), term(format.name(name)))));
    const places = await list(site, params);
    await chart.set({ places, by, usual: !now && !params.get("q") });
    fill(said,
      h("p", { role: "status" }, h("b", {}, format.count(places.length)), ` of ${format.count(site.count)} living features `,
        h("a", { class: "button", href: hash("table", ofList(params)) }, filters(params).length ? "Change the selection in the table" : "Choose some in the table"), " ",
        h("button", { type: "button", onclick: () => saveCurves(places) }, "CSV")),
      chips("lives", params));
  }

  /** Strengths over their largest of the features shown, as a CSV file. */
  async function saveCurves(places) {
    const rows = await Promise.all(places.map(async (p) => [site.columns.feature[p], ...Array.from(await site.curve(p), (level) => (level / 255).toFixed(3))]));
    download(`${about.name}-lives.csv`, "text/csv", csv(["feature", ...site.steps.map((step) => `step ${step}`)], rows));
  }
  return { element, update, title: "Lives" };
}
