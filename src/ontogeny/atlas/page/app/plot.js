// Plots: lines in SVG, matrices on a canvas; each with its numbers as a table beside it.
"use strict";

let plots = 0;

/**
 * A figure that is drawn again at its width.
 *
 * given: title; label, what a screen reader is told; draw(place, width); table(), called once it
 * is asked for, {head, rows}; note; tools, elements beside the title.
 */
function figure(given) {
  const place = h("div", { class: "plot" });
  const id = `plot-${++plots}`;
  const numbers = given.table && h("details", { class: "numbers" },
    h("summary", {}, "Numbers"));
  if (numbers)
    numbers.addEventListener("toggle", () => {
      if (numbers.open && !numbers.querySelector("table"))
        numbers.append(keep(given, place), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Numbers of: ${given.title}` }, grid(given.table(), given.title)));
    });
  const element = h("figure", { "aria-labelledby": id, class: given.class },
    h("figcaption", {}, h("h2", { id }, given.title), given.tools),
    place, given.note && h("p", { class: "note" }, given.note), numbers);
  const again = responsive(place, (width) => given.draw(place, width));
  element.redraw = again;
  return element;
}

/** Buttons that keep a figure's numbers and its picture as files. */
function keep(given, place) {
  const name = given.title.toLowerCase().replace(/\W+/g, "-");
  return h("p", { class: "tools" },
    h("button", {
      type: "button",
      onclick: () => {
        const { head, rows } = given.table();
        // As numbers are written in files: no signs or marks of their own.
        const plain = (x) => (x === "–" ? "" : String(x).replaceAll("−", "-").replace(/(\d),(?=\d{3})/g, "$1"));
        download(`${name}.csv`, "text/csv", csv(head, rows.map((row) => row.map(plain))));
      },
    }, "CSV"),
    place.querySelector("svg[role=img]") && h("button", { type: "button", onclick: () => download(`${name}.svg`, "image/svg+xml", drawing(place.querySelector("svg[role=img]"))) }, "SVG"));
}

const STYLED = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "font-family", "font-size", "text-anchor"];

/** A plot as a file of its own, its style written into its elements' attributes. */
function drawing(svg) {
  const copy = svg.cloneNode(true);
  const all = [svg, ...svg.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((one, i) => {
    const style = getComputedStyle(all[i]);
    one.removeAttribute("style");
    for (const name of STYLED) one.setAttribute(name, style.getPropertyValue(name)); // the page's policy forbids style=""
  });
  copy.setAttribute("xmlns", SVG);
  return new XMLSerializer().serializeToString(copy);
}

/** A table of {head, rows}; the first column names the row. */
function grid({ head, rows }, caption) {
  return h("table", { class: "grid" },
    h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows.map((row) =>
      h("tr", {}, row.map((cell, i) => (i ? h("td", {}, cell) : h("th", { scope: "row" }, cell)))))));
}

/** A scale from [low, high] to 0 … 1, with ticks. Kinds: step, index, linear, log. */
function scale(kind, low, high) {
  if (kind === "step") {
    const top = Math.log1p(Math.max(high, 1));
    const ticks = [0];
    for (let decade = 1; decade <= high; decade *= 10) ticks.push(decade);
    return {
      kind,
      to: (x) => Math.log1p(x) / top,
      from: (u) => Math.expm1(u * top),
      ticks: (a = 0, b = high) =>
        b > 3 * (a + 1) ? ticks.filter((x) => x >= a * 0.999 && x <= b) : nice(a, b, 4),
      text: (x) => (x >= 1e4 ? `${format.short(x / 1000)}k` : format.short(x, 5)),
    };
  }
  if (kind === "log") {
    const bottom = Math.log10(low);
    const height = Math.log10(high) - bottom || 1;
    return {
      kind,
      to: (x) => (x > 0 ? (Math.log10(x) - bottom) / height : NaN),
      from: (u) => 10 ** (bottom + u * height),
      ticks: (a = low, b = high) => {
        const found = [];
        for (let e = Math.floor(Math.log10(a)); e <= Math.log10(b); e++)
          for (const m of b / a > 300 ? [1] : b / a > 8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8])
            if (m * 10 ** e >= a && m * 10 ** e <= b) found.push(m * 10 ** e);
        return found.length > 1 ? found : nice(a, b, 4);
      },
      text: (x) => format.short(x, 2),
    };
  }
  const width = high - low || 1;
  return {
    kind,
    to: (x) => (x - low) / width,
    from: (u) => low + u * width,
    ticks: (a = low, b = high) => {
      const found = nice(a, b, 5);
      return kind === "index" ? found.filter(Number.isInteger) : found;
    },
    text: (x) => (kind === "index" ? String(x) : format.short(Number(x.toPrecision(10)), 6)),
  };
}

/** Round numbers between two, about so many. */
function nice(low, high, count) {
  const rough = (high - low) / count;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * power >= rough * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
    found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** Values' extent; of a log axis, of those above 0. */
function extent(values, kind) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values)
    if (Number.isFinite(value) && (kind !== "log" || value > 0)) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  return low <= high ? [low, high] : [0, 1];
}

/** Axes in an SVG: given x and y scales and labels; the plot's own group, and x and y in pixels. */
function axes(svg, width, height, x, y, labels, margins = {}) {
  const longest = Math.max(...y.ticks().map((tick) => y.text(tick).length));
  const m = { left: 28 + 6 * longest, right: 10, top: 8, bottom: 34, ...margins };
  const inner = { width: width - m.left - m.right, height: height - m.top - m.bottom };
  const px = (value) => m.left + x.to(value) * inner.width;
  const py = (value) => m.top + (1 - y.to(value)) * inner.height;
  const group = s("g", { class: "axes", "aria-hidden": "true" });
  let before = -Infinity;
  for (const tick of x.ticks()) {
    const at = px(tick);
    group.append(s("line", { x1: at, x2: at, y1: height - m.bottom, y2: height - m.bottom + 4 }));
    const text = x.text(tick);
    if (at - before < 6 * text.length + 8) continue;
    before = at;
    group.append(s("text", { x: at, y: height - m.bottom + 15, "text-anchor": "middle" }, text));
  }
  for (const tick of y.ticks()) {
    const at = py(tick);
    group.append(s("line", { class: "rule", x1: m.left, x2: width - m.right, y1: at, y2: at }));
    group.append(s("text", { x: m.left - 6, y: at + 3.5, "text-anchor": "end" }, y.text(tick)));
  }
  group.append(
    s("line", { x1: m.left, x2: width - m.right, y1: height - m.bottom, y2: height - m.bottom }),
    s("text", { class: "label", x: m.left + inner.width / 2, y: height - 3, "text-anchor": "middle" }, labels.x),
    s("text", { class: "label", x: 0, y: 0, "text-anchor": "middle", transform: `translate(11 ${m.top + inner.height / 2}) rotate(-90)` }, labels.y),
  );
  svg.append(group);
  return { px, py, inner, m };
}

/**
 * Lines over training steps.
 *
 * given: series [{name, x, y, colour, dash, dots, thin}], bands [{x, low, high, colour}], levels
 * [{name, y, colour}], marks [{x, low, high, name}], y {label, low, high}, linear, height.
 */
function lines(place, width, given) {
  const height = given.height || 210;
  const last = Math.max(1, ...given.series.flatMap((one) => one.x));
  const x = given.linear ? scale("linear", 0, last) : scale("step", 0, last);
  const all = [...given.series.flatMap((one) => one.y), ...(given.levels || []).map((one) => one.y)];
  const [low, high] = extent(all);
  const bottom = given.y.low ?? low - 0.04 * (high - low);
  const top = given.y.high ?? high + 0.06 * (high - bottom || 1);
  const y = scale("linear", bottom, top);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": given.label });
  const { px, py, m } = axes(svg, width, height, x, y, {
    x: given.linear ? "training step" : "training step (log axis)", y: given.y.label,
  });
  for (const mark of given.marks || []) {
    if (Number.isFinite(mark.low))
      svg.append(s("rect", { class: "interval", x: px(mark.low), y: m.top, width: Math.max(1, px(mark.high) - px(mark.low)), height: height - m.top - m.bottom }));
    svg.append(s("line", { class: "mark", x1: px(mark.x), x2: px(mark.x), y1: m.top, y2: height - m.bottom }, s("title", {}, mark.name)));
  }
  for (const band of given.bands || []) {
    const forth = band.x.map((v, i) => `${px(v)},${py(band.high[i])}`);
    const back = band.x.map((v, i) => `${px(v)},${py(band.low[i])}`).reverse();
    svg.append(s("polygon", { class: "band", points: [...forth, ...back].join(" "), vars: { fill: band.colour } }));
  }
  for (const level of given.levels || [])
    svg.append(s("line", { class: "level", x1: m.left, x2: width - m.right, y1: py(level.y), y2: py(level.y), vars: { stroke: level.colour } }));
  for (const one of given.series) {
    let path = "";
    one.y.forEach((value, i) => {
      if (Number.isFinite(value))
        path += `${path === "" || !Number.isFinite(one.y[i - 1]) ? "M" : "L"}${px(one.x[i]).toFixed(1)} ${py(value).toFixed(1)}`;
    });
    svg.append(s("path", { class: `line${one.dash ? " dash" : ""}${one.thin ? " thin" : ""}`, d: path, vars: { stroke: one.colour } }));
    if (one.dots)
      one.y.forEach((value, i) => Number.isFinite(value) &&
        svg.append(s("circle", { cx: px(one.x[i]).toFixed(1), cy: py(value).toFixed(1), r: 2.4, vars: { fill: one.colour } },
          s("title", {}, `${one.name}: step ${format.step(one.x[i])}, ${format.number(value)}`))));
  }
  // At the left, where a training's curve is far above, and over the curves.
  for (const level of given.levels || [])
    svg.append(s("text", { class: "onplot", x: m.left + 4, y: py(level.y) - 4, vars: { fill: `color-mix(in srgb, ${level.colour} 70%, ${ink("ink")})` } }, level.name));
  fill(place, legend(given.series.filter((one) => one.name && given.series.length > 1)), svg);
}

/** Names of series beside a sample of each line. */
function legend(series) {
  if (!series.length) return null;
  return h("ul", { class: "legend" }, series.map((one) =>
    h("li", {}, h("span", { class: `key${one.dash ? " dash" : ""}`, vars: { "--c": one.colour }, "aria-hidden": "true" }), one.name)));
}

/** Red, green and blue of a cosine: orange below 0, the page's own at 0, blue above. */
function cosineColour(value) {
  const paper = theme.dark ? [30, 35, 40] : [255, 255, 255];
  const end = value < 0 ? [213, 94, 0] : theme.dark ? [110, 190, 240] : [0, 78, 134];
  const share = Math.min(1, Math.abs(value)) ** 0.85;
  return paper.map((x, i) => Math.round(x + (end[i] - x) * share));
}

/** A square matrix of cosines between snapshots. */
function matrix(place, width, given) {
  const m = given.values.length;
  const side = Math.min(width - 44, given.most || 300);
  const cell = Math.max(1, Math.floor(side / m));
  const size = cell * m;
  const ratio = Math.max(1, Math.ceil(window.devicePixelRatio || 1));
  const canvas = h("canvas", { width: size * ratio, height: size * ratio, role: "img", "aria-label": given.label, vars: { width: `${size}px`, height: `${size}px` } });
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  given.values.forEach((row, i) => row.forEach((value, j) => {
    pen.fillStyle = Number.isFinite(value) ? `rgb(${cosineColour(value).join(",")})` : ink("none");
    pen.fillRect(j * cell, i * cell, cell, cell);
  }));
  const read = h("p", { class: "read" });
  const rest = () => fill(read, "snapshot by snapshot, the first at the top left");
  rest();
  canvas.addEventListener("pointermove", (event) => {
    const [j, i] = pointIn(canvas, event).map((x) => Math.min(m - 1, Math.max(0, Math.floor(x / cell))));
    const value = given.values[i][j];
    fill(read, `step ${format.step(given.steps[i])} and ${format.step(given.steps[j])}: ${Number.isFinite(value) ? format.fixed(value) : "too weak to compare"}`);
  });
  canvas.addEventListener("pointerleave", rest);
  const shownSteps = [0, Math.floor((m - 1) / 4), Math.floor((m - 1) / 2), Math.floor((3 * (m - 1)) / 4), m - 1];
  const side_ = s("svg", { width: 40, height: size, class: "side", "aria-hidden": "true" },
    [...new Set(shownSteps)].map((i) => s("text", { x: 36, y: (i + 0.5) * cell + 3.5, "text-anchor": "end" }, scale("step", 0, 1).text(given.steps[i]))));
  const key = h("div", { class: "ramp", "aria-hidden": "true" },
    h("span", {}, "−1"), h("span", { class: "strip", vars: { background: `linear-gradient(to right, ${[-1, -0.5, 0, 0.25, 0.5, 0.75, 1].map((v) => `rgb(${cosineColour(v).join(",")})`).join(",")})` } }), h("span", {}, "1"));
  fill(place, h("div", { class: "matrix" }, side_, h("div", {}, canvas, key, read)));
}

/** Whether axes over steps are linear, and the buttons that choose. */
function axisChoice() {
  const now = address().params.get("axis") === "linear" ? "linear" : "log";
  return choice("Axis of training steps", [["log", "log"], ["linear", "linear"]], now, (value) =>
    change({ axis: value === "log" ? "" : value }));
}

function isLinear() {
  return address().params.get("axis") === "linear";
}
