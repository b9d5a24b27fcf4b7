// The map of all features: a canvas that zooms, and on which a rectangle chooses some.
"use strict";

const PAD = 0.045; // of the map's width and height, beside the outermost values
const SPREAD = 0.034; // of the same, to either side of the first step, which many features share

/**
 * A map. given: site, x, y (names of NUMBERS), by ("kind" or "class"), shown (a Set of places, or
 * null for all), params (whose ranges are framed), brushed(changes), opened(place).
 */
function map(given) {
  const place = h("div", { class: "plot" });
  const canvas = h("canvas", {
    tabindex: 0, role: "img", "aria-describedby": "map-help", class: "map",
  });
  const tip = h("div", { class: "tip", hidden: true });
  const frame = h("div", { class: "frame" }, canvas, tip);
  const svg = s("svg", { class: "over", "aria-hidden": "true" });
  frame.append(svg);
  place.append(frame);
  const view = { x: [0, 1], y: [0, 1], mode: "choose" };
  let state = null;

  const set = (changes) => {
    Object.assign(given, changes);
    prepare();
    draw();
  };

  function prepare() {
    const { site } = given;
    const axis = (name) => {
      const values = numbers(site, name);
      const kind = NUMBERS[name].scale;
      let [low, high] = extent(values, kind);
      if (kind === "step") [low, high] = [0, Math.max(...site.steps, high)];
      if (kind === "index") [low, high] = [0.5, Math.max(...site.about.numbers) + 0.5];
      if (kind === "linear") [low, high] = name === "cosine" ? [Math.min(0, low), 1] : [0, 1];
      if (kind === "log") [low, high] = [low / 1.15, high * 1.15];
      return { name, values, scale: scale(kind, low, high), grain: grain(name, site) };
    };
    const [x, y] = [axis(given.x), axis(given.y)];
    const L = site.count;
    const at = { x: new Float32Array(L), y: new Float32Array(L) };
    for (const [which, one] of [["x", x], ["y", y]]) {
      // Values that many share lie beside each other, always in the same places.
      let seed = which === "x" ? 1 : 7;
      for (let p = 0; p < L; p++) {
        seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
        const aside = one.grain ? (seed / 4294967296 - 0.5) * 0.76 * one.grain : 0;
        const first = one.name === "onset" && one.values[p] <= site.steps[0];
        at[which][p] = PAD + (1 - 2 * PAD) * one.scale.to(one.values[p] + aside)
          + (first ? (seed / 4294967296 - 0.5) * 2 * SPREAD : 0);
      }
    }
    const by = groups(site, given.by);
    state = { x, y, at, by, order: Array.from({ length: by.names.length }, (_, i) => i) };
    const missing = at.x.reduce((n, u, p) => n + !(Number.isFinite(u) && Number.isFinite(at.y[p])), 0);
    canvas.setAttribute("aria-label",
      `Map of ${format.count(L - missing)} features: ${NUMBERS[given.x].axis} to the right, ${NUMBERS[given.y].axis} upwards, coloured by ${given.by}.`);
    given.missing?.(missing);
  }

  /** How far values that are counted lie apart. */
  function grain(name, site) {
    if (name === "peak") return 1;
    return name === "lifetime" ? 1 / site.steps.length : 0;
  }

  const margin = { left: 56, right: 8, top: 8, bottom: 34 };
  let size = { width: 0, height: 0 };

  function pixels(p) {
    const u = (state.at.x[p] - view.x[0]) / (view.x[1] - view.x[0]);
    const v = (state.at.y[p] - view.y[0]) / (view.y[1] - view.y[0]);
    return [margin.left + u * inner().width, margin.top + (1 - v) * inner().height];
  }

  const inner = () => ({
    width: size.width - margin.left - margin.right,
    height: size.height - margin.top - margin.bottom,
  });

  /** A place in pixels as shares of the axes. */
  const share = (x, y) => [
    view.x[0] + ((x - margin.left) / inner().width) * (view.x[1] - view.x[0]),
    view.y[0] + (1 - (y - margin.top) / inner().height) * (view.y[1] - view.y[0]),
  ];
  const value = (axis, u) => axis.scale.from((u - PAD) / (1 - 2 * PAD));

  function draw() {
    if (!place.isConnected || !state) return;
    const width = Math.floor(place.clientWidth);
    if (!width) return;
    const height = Math.round(Math.min(620, Math.max(300, width * 0.68)));
    const ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    size = { width, height };
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.save();
    pen.beginPath();
    pen.rect(margin.left, margin.top, inner().width, inner().height);
    pen.clip();
    const { site, shown: some } = given;
    const zoom = 1 / Math.sqrt((view.x[1] - view.x[0]) * (view.y[1] - view.y[0]));
    const dot = Math.min(7, (site.count > 30000 ? 1.5 : site.count > 4000 ? 2.2 : 3.6) * Math.sqrt(Math.min(6, zoom)));
    const half = dot / 2;
    const paint = (fill, alpha, test) => {
      pen.fillStyle = fill;
      pen.globalAlpha = alpha;
      pen.beginPath();
      for (let p = 0; p < site.count; p++) {
        if (!test(p)) continue;
        const [x, y] = pixels(p);
        if (!(x >= 0 && y >= 0 && x <= width && y <= height)) continue;
        if (site.count > 4000) pen.fillRect(x - half, y - half, dot, dot);
        else {
          pen.moveTo(x + half, y);
          pen.arc(x, y, half, 0, 7);
        }
      }
      pen.fill();
    };
    if (some) paint(ink("faint"), 0.7, (p) => !some.has(p));
    // The most frequent group first, so that it does not cover the others.
    const count = state.by.names.map(() => 0);
    for (const g of state.by.of) count[g]++;
    state.order.sort((a, b) => count[b] - count[a]);
    for (const g of state.order)
      paint(colour(site.about.colours[state.by.names[g]]), 0.85, (p) => state.by.of[p] === g && (!some || some.has(p)));
    pen.restore();
    overlay();
  }

  function overlay(box = null) {
    svg.replaceChildren();
    const { width, height } = size;
    const over = (axis, which) => {
      const [a, b] = view[which].map((u) => value(axis, Math.min(1 - PAD, Math.max(PAD, u))));
      const [low, high] = a < b ? [a, b] : [b, a];
      return axis.scale.ticks(low, high).map((tick) => [tick, PAD + (1 - 2 * PAD) * axis.scale.to(tick)]);
    };
    const group = s("g", { class: "axes" });
    let before = -Infinity;
    for (const [tick, u] of over(state.x, "x")) {
      const x = margin.left + ((u - view.x[0]) / (view.x[1] - view.x[0])) * inner().width;
      if (x < margin.left - 1 || x > width - margin.right + 1) continue;
      group.append(s("line", { x1: x, x2: x, y1: height - margin.bottom, y2: height - margin.bottom + 4 }));
      const text = state.x.scale.text(tick);
      if (x - before < 6 * text.length + 8) continue;
      before = x;
      group.append(s("text", { x, y: height - margin.bottom + 15, "text-anchor": "middle" }, text));
    }
    for (const [tick, v] of over(state.y, "y")) {
      const y = margin.top + (1 - (v - view.y[0]) / (view.y[1] - view.y[0])) * inner().height;
      if (y < margin.top - 1 || y > height - margin.bottom + 1) continue;
      group.append(s("line", { x1: margin.left - 4, x2: margin.left, y1: y, y2: y }),
        s("text", { x: margin.left - 6, y: y + 3.5, "text-anchor": "end" }, state.y.scale.text(tick)));
    }
    group.append(
      s("path", { d: `M${margin.left} ${margin.top}V${height - margin.bottom}H${width - margin.right}`, fill: "none" }),
      s("text", { class: "label", x: margin.left + inner().width / 2, y: height - 3, "text-anchor": "middle" }, NUMBERS[given.x].axis + (NUMBERS[given.x].scale === "step" ? ", log axis" : "")),
      s("text", { class: "label", x: 0, y: 0, "text-anchor": "middle", transform: `translate(11 ${margin.top + inner().height / 2}) rotate(-90)` }, NUMBERS[given.y].axis));
    svg.append(group);
    const turning = given.site.about.turning;
    const clamp = (x) => Math.min(width - margin.right, Math.max(margin.left, x));
    const across = (v) => margin.left + ((PAD + (1 - 2 * PAD) * state.x.scale.to(v) - view.x[0]) / (view.x[1] - view.x[0])) * inner().width;
    if (turning && (given.x === "onset" || given.x === "peak")) {
      const steps = given.site.steps;
      // Between the snapshots that bound it, on an axis of snapshots.
      const where = given.x === "onset" ? (v) => v : (v) => {
        const after = steps.findIndex((step) => step > v);
        if (after < 1) return after < 0 ? steps.length : 1;
        const [a, b] = [Math.log1p(steps[after - 1]), Math.log1p(steps[after])];
        return after + (Math.log1p(v) - a) / (b - a);
      };
      const [low, mid, high] = [turning.low, turning.step, turning.high].map((v) => across(where(v)));
      if (high > margin.left && low < width - margin.right)
        svg.append(s("rect", { class: "interval", x: clamp(low), y: margin.top, width: Math.max(1, clamp(high) - clamp(low)), height: inner().height }));
      if (mid >= margin.left && mid <= width - margin.right) {
        const left = mid > width - 120;
        svg.append(s("line", { class: "mark", x1: mid, x2: mid, y1: margin.top, y2: height - margin.bottom }),
          s("text", { class: "onplot", x: mid + (left ? -5 : 5), y: margin.top + 11, "text-anchor": left ? "end" : "start" }, "turning point"));
      }
    }
    const chosenBox = box || framed();
    if (chosenBox) {
      const [a, b, c, d] = chosenBox;
      const [x0, x1] = [clamp(Math.min(a, c)), clamp(Math.max(a, c))];
      const top = Math.max(margin.top, Math.min(b, d));
      const bottom = Math.min(height - margin.bottom, Math.max(b, d));
      if (x1 > x0 && bottom > top) svg.append(s("rect", { class: "brush", x: x0, y: top, width: x1 - x0, height: bottom - top }));
    }
  }

  /** The rectangle that the params' ranges of both axes are, in pixels. */
  function framed() {
    const [x, y] = [range(given.params.get(given.x)), range(given.params.get(given.y))];
    if (!x && !y) return null;
    const end = (axis, bounds, which, edge) => {
      if (!bounds || !Number.isFinite(bounds[edge])) return edge ? 1e6 : -1e6;
      const u = PAD + (1 - 2 * PAD) * axis.scale.to(bounds[edge] <= 0 && axis.scale.kind === "log" ? 1e-30 : bounds[edge]);
      const part = (u - view[which][0]) / (view[which][1] - view[which][0]);
      return which === "x" ? margin.left + part * inner().width : margin.top + (1 - part) * inner().height;
    };
    const down = (edge) => {
      const y_ = end(state.y, y, "y", edge);
      return Math.abs(y_) === 1e6 ? -y_ : y_;
    };
    return [end(state.x, x, "x", 0), down(0), end(state.x, x, "x", 1), down(1)];
  }

  /** Ranges of a rectangle in pixels, as params; counted values whole. */
  function ranges(a, b, c, d) {
    const [low, high] = [share(Math.min(a, c), Math.max(b, d)), share(Math.max(a, c), Math.min(b, d))];
    const found = {};
    [["x", 0], ["y", 1]].forEach(([which, i]) => {
      const axis = state[which];
      let [from, to] = [value(axis, low[i]), value(axis, high[i])];
      if (axis.name === "onset") {
        const first = given.site.steps[0];
        const edge = PAD + (1 - 2 * PAD) * axis.scale.to(first) + SPREAD;
        if (low[i] < edge) from = first;
        if (high[i] < edge) to = first;
      }
      if (axis.grain) {
        from = Math.ceil(from / axis.grain - 0.38) * axis.grain;
        to = Math.floor(to / axis.grain + 0.38) * axis.grain;
        // A little wider than the shares themselves, which are rounded.
        if (axis.name === "lifetime") [from, to] = [from - axis.grain / 4, to + axis.grain / 4];
      }
      const digits = (x) => Number(Math.max(axis.scale.kind === "step" ? 0 : -Infinity, x).toPrecision(4));
      found[axis.name] = `${digits(from)}..${digits(to)}`;
    });
    return found;
  }

  function nearestTo(x, y, most = 14) {
    let best = -1;
    let apart = most * most;
    for (let p = 0; p < given.site.count; p++) {
      if (given.shown && !given.shown.has(p)) continue;
      const [a, b] = pixels(p);
      const d = (a - x) ** 2 + (b - y) ** 2;
      if (d < apart) [best, apart] = [p, d];
    }
    return best;
  }

  function zoomBy(factor, x = size.width / 2, y = size.height / 2) {
    const [u, v] = share(x, y);
    for (const [which, middle] of [["x", u], ["y", v]]) {
      let width = (view[which][1] - view[which][0]) * factor;
      width = Math.min(1, Math.max(0.002, width));
      const part = (middle - view[which][0]) / (view[which][1] - view[which][0]);
      move(which, middle - part * width, width);
    }
    draw();
  }

  function move(which, low, width) {
    const from = Math.min(1 - width, Math.max(0, low));
    view[which] = [from, from + width];
  }

  function pan(dx, dy) {
    for (const [which, by] of [["x", dx], ["y", dy]]) {
      const width = view[which][1] - view[which][0];
      move(which, view[which][0] + by * width, width);
    }
    draw();
  }

  const whole = () => {
    view.x = [0, 1];
    view.y = [0, 1];
    draw();
  };

  const at = (event) => pointIn(canvas, event);

  let start = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const moving = view.mode === "move" || event.shiftKey;
    start = { at: at(event), x: [...view.x], y: [...view.y], moving, far: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (!start) return hover(x, y);
    const [x0, y0] = start.at;
    start.far ||= Math.hypot(x - x0, y - y0) > 5;
    if (!start.far) return;
    tip.hidden = true;
    if (start.moving) {
      move("x", start.x[0] - ((x - x0) / inner().width) * (start.x[1] - start.x[0]), start.x[1] - start.x[0]);
      move("y", start.y[0] + ((y - y0) / inner().height) * (start.y[1] - start.y[0]), start.y[1] - start.y[0]);
      draw();
    } else overlay([x0, y0, x, y]);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!start) return;
    const { at: [x0, y0], moving, far } = start;
    start = null;
    const [x, y] = at(event);
    if (!far) {
      const p = nearestTo(x, y);
      if (p >= 0) given.opened(p);
    } else if (!moving) given.brushed(ranges(x0, y0, x, y));
  });
  canvas.addEventListener("pointercancel", () => {
    start = null;
    overlay();
  });
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
  canvas.addEventListener("wheel", (event) => {
    if (!(event.ctrlKey || event.metaKey || document.activeElement === canvas)) return; // the page scrolls
    event.preventDefault();
    zoomBy(event.deltaY > 0 ? 1.2 : 1 / 1.2, ...at(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", whole);
  canvas.addEventListener("keydown", (event) => {
    const keys = {
      ArrowLeft: () => pan(-0.15, 0), ArrowRight: () => pan(0.15, 0),
      ArrowUp: () => pan(0, 0.15), ArrowDown: () => pan(0, -0.15),
      "+": () => zoomBy(1 / 1.4), "=": () => zoomBy(1 / 1.4), "-": () => zoomBy(1.4), 0: whole,
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });

  function hover(x, y) {
    const p = nearestTo(x, y);
    tip.hidden = p < 0;
    canvas.classList.toggle("over-point", p >= 0);
    if (p < 0) return;
    const { site } = given;
    const kind = kindOf(site, p);
    fill(tip, h("b", {}, `Feature ${site.columns.feature[p]}`), kind && kind !== "none" ? ` ${format.name(kind)}` : "",
      [given.x, given.y].map((name) => h("div", {}, `${NUMBERS[name].label} ${NUMBERS[name].show(numbers(site, name)[p])}`)));
    const [a, b] = pixels(p);
    tip.style.left = `${Math.min(a + 10, size.width - 150)}px`;
    tip.style.top = `${Math.max(0, b - 58)}px`;
  }

  const tools = h("div", { class: "tools" },
    choice("What dragging does", [["choose", "Select"], ["move", "Move"]], "choose", (mode) => {
      view.mode = mode;
      canvas.classList.toggle("moving", mode === "move");
    }),
    h("button", { type: "button", onclick: () => zoomBy(1 / 1.6), "aria-label": "Zoom in" }, "+"),
    h("button", { type: "button", onclick: () => zoomBy(1.6), "aria-label": "Zoom out" }, "−"),
    h("button", { type: "button", onclick: whole }, "Whole"));
  prepare();
  responsive(place, draw);
  return { element: place, tools, set, draw, canvas };
}

/** The page that holds the map. */
function mapPage(site) {
  const { about } = site;
  const names = RANGES.filter((name) => numbers(site, name)?.some(Number.isFinite));
  const able = (name, otherwise) => (names.includes(name) ? name : otherwise);
  const now = () => {
    const { params } = address();
    const by = params.get("by") === "class" || !site.columns.kind ? "class" : "kind";
    return { params, by, x: able(params.get("x"), "onset"), y: able(params.get("y"), "lifetime") };
  };
  const opened = (p) => (location.hash = hash(`feature/${site.columns.feature[p]}`, ofList(address().params)));
  const said = h("div", { class: "selection" });
  const notes = h("p", { class: "note", id: "map-help" });
  const view = map({
    site, ...now(), shown: null, opened,
    brushed: (changes) => change({ ...changes, page: "" }, true),
    missing: (count) => fill(notes,
      "Drag to select, click a feature to open it. With the map in focus: arrow keys move, + and − and the wheel zoom, 0 shows all. The table lists the same features.",
      count ? ` ${format.count(count)} features without one of the two numbers are not on the map.` : ""),
  });
  const axisOptions = names.map((name) => [name, NUMBERS[name].axis]);
  const controls = h("div", { class: "controls" });
  const key = h("ul", { class: "legend" });
  const element = h("div", { class: "map-page" },
    h("h1", { tabindex: -1, id: "map-title" }, "Map"),
    h("figure", { class: "panel", "aria-labelledby": "map-title" },
      h("figcaption", {}, controls, view.tools), key, view.element, said, notes));

  async function update() {
    const { params, by, x, y } = now();
    fill(controls,
      select("across", axisOptions, x, (name) => change({ x: name === "onset" ? "" : name }), { id: "axis-x" }),
      select("up", axisOptions, y, (name) => change({ y: name === "lifetime" ? "" : name }), { id: "axis-y" }),
      site.columns.kind && choice("Colour", [["kind", "kinds"], ["class", "classes"]], by, (name) => change({ by: name === "kind" ? "" : name })));
    fill(key, groups(site, by).names.map((name) => h("li", {}, swatch(site, name), term(format.name(name)))));
    const some = filters(params).length > 0;
    const found = await list(site, params);
    view.set({ x, y, by, params, shown: some ? new Set(found) : null });
    fill(said,
      h("p", { role: "status" }, h("b", {}, format.count(found.length)), some ? ` of ${format.count(site.count)} features selected ` : " living features ",
        h("a", { class: "button", href: hash("table", ofList(params)) }, some ? "Show them in the table" : "Table of all")),
      chips("map", params));
  }
  return { element, update, title: "Map" };
}
