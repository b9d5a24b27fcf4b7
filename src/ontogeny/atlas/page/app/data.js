// Data files: each is one call of atlas(key, value). What stands in which: ontogeny/atlas/__init__.py.
"use strict";

const waiting = new Map(); // by address, of files that are asked for
const kept = new Map(); // the same, of those that are there, the oldest first
const MOST_KEPT = 40;

/** What data files call. */
function atlas(key, value) {
  const address = document.currentScript && document.currentScript.src;
  const asked = waiting.get(address);
  if (asked && asked.key === key) asked.resolve(value);
}

/** The value of a data file of the site at `base`; a promise. */
function load(base, key) {
  const address = new URL(`${base}data/${key}.js`, document.baseURI).href;
  if (kept.has(address)) {
    const found = kept.get(address);
    kept.delete(address);
    kept.set(address, found);
    return found;
  }
  const found = new Promise((resolve, reject) => {
    waiting.set(address, { key, resolve });
    const script = document.createElement("script");
    const end = (why) => {
      waiting.delete(address);
      script.remove();
      reject(new Error(why)); // nothing, where it is resolved already
    };
    script.onload = () => end(`${key} is not a file of this atlas`);
    script.onerror = () => end(`${base}data/${key}.js cannot be read`);
    script.src = address;
    document.head.append(script);
  });
  kept.set(address, found);
  found.catch(() => kept.delete(address));
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  return found;
}

const ARRAYS = {
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array,
  i1: Int8Array, i2: Int16Array, f4: Float32Array,
};

/** The typed array that a packed one holds. */
function unpack(packed) {
  const text = atob(packed.d);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new ARRAYS[packed.t](bytes.buffer);
}

/** An experiment's atlas. */
class Site {
  static FORMAT = "ontogeny-atlas-3";

  static async open(base) {
    const [about, columns] = await Promise.all([load(base, "experiment"), load(base, "features")]);
    if (about.format !== Site.FORMAT)
      throw new Error(`${base || "this folder"} is an atlas of another version: ${about.format}`);
    return new Site(base, about, columns);
  }

  constructor(base, about, columns) {
    this.base = base;
    this.about = about;
    this.columns = {};
    for (const name of Object.keys(columns)) this.columns[name] = unpack(columns[name]);
    this.count = about.living;
    this.steps = about.steps;
  }

  /** The place of a feature's number among the living, or −1. */
  place(number) {
    const all = this.columns.feature;
    let low = 0;
    let high = all.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (all[middle] < number) low = middle + 1;
      else high = middle;
    }
    return all[low] === number ? low : -1;
  }

  /** Largest attributions of a task by place (NaN where a feature has none); a promise. */
  async task(name) {
    if (!this.about.tasks.some((task) => task.name === name)) return null;
    const all = await load(this.base, "tasks");
    const values = new Float32Array(this.count).fill(NaN);
    if (!Object.hasOwn(all, name)) return values;
    const place = unpack(all[name].place);
    const value = unpack(all[name].value);
    place.forEach((p, i) => (values[p] = value[i]));
    return values;
  }

  /** Strengths of a feature over its largest, from 0 to 255; a promise. */
  async curve(place) {
    const n = this.steps.length;
    const part = await this.curves(Math.floor(place / this.about.text_features));
    const i = place % this.about.text_features;
    return part.subarray(i * n, (i + 1) * n);
  }

  /** Those of a whole file of features; a promise. */
  async curves(number) {
    const part = await load(this.base, `curves/${number}`);
    if (!part.levels) Object.defineProperty(part, "levels", { value: unpack(part) });
    return part.levels;
  }

  /** Text to search in and to show of features, by place; a promise. */
  async text(place) {
    if (!this.about.contexts) return null;
    const size = this.about.text_features;
    const part = await load(this.base, `text/${Math.floor(place / size)}`);
    const i = place % size;
    return { promoted: part.promoted[i], contexts: part.contexts[i] };
  }

  /**
   * What a string is found in, whatever the case; a promise.
   *
   * Returns a Map from place to {rank, context}: the better the match, the larger the rank; context
   * is the number of the context that shows it, or −1. First come features whose number it is or
   * whose own token it is exactly, then names, then contexts, by how strong the feature is there.
   */
  async search(words) {
    const found = new Map();
    const wanted = words.toLowerCase();
    const bare = wanted.trim();
    const size = this.about.text_features;
    for (let first = 0; first < this.count; first += size) {
      const part = this.about.contexts ? await load(this.base, `text/${first / size}`) : null;
      if (part) part.lower ||= part.contexts.map((lines) => lines.map((line) => line.toLowerCase()));
      for (let p = first; p < Math.min(first + size, this.count); p++) {
        const match = this.match(p, part, p - first, wanted, bare);
        if (match) found.set(p, match);
      }
    }
    return found;
  }

  match(place, part, i, wanted, bare) {
    if (String(this.columns.feature[place]) === bare) return { rank: 10, context: -1 };
    const name = nameOf(this, place).toLowerCase();
    let best = null;
    const take = (rank, context) => {
      if (!best || rank > best.rank) best = { rank, context };
    };
    (part ? part.lower[i] : []).forEach((line, j) => {
      const [before, own] = line.split("\t");
      const strong = part.values[i][j] / part.values[i][0]; // at most 1
      if (own.trim() === bare && bare) take(8 + 0.5 * strong, j);
      const text = line.replaceAll("\t", "");
      if (!text.includes(wanted)) return;
      // Nearer to the feature's own token is better: it is where the feature is active.
      const touches = text.slice(Math.max(0, before.length - wanted.length + 1), before.length + own.length + wanted.length - 1).includes(wanted);
      take(touches ? 3 + strong : 1 + strong, j);
    });
    if (bare && name.trim() === bare) take(9, best ? best.context : -1);
    else if (name.includes(wanted)) take(6 + (best && best.rank >= 3 ? 0.5 : 0), best ? best.context : -1);
    if (!best && part && part.promoted[i].toLowerCase().includes(wanted)) take(0, -1);
    return best;
  }

  /** All that is known of a feature; a promise. */
  async feature(place) {
    const size = this.about.shard;
    const part = await load(this.base, `shards/${Math.floor(place / size)}`);
    const words = part.contexts ? await load(this.base, "words") : [];
    return unshard(this, part, words, place % size, place);
  }
}

/** The numbers of a list of arrays that begin where those before end. */
function starts(counts) {
  const found = [0];
  for (const count of counts) found.push(found[found.length - 1] + count);
  return found;
}

/** Arrays of a shard, unpacked once. */
function unpacked(part) {
  if (part.arrays) return part.arrays;
  const arrays = {};
  const go = (value, into) => {
    for (const [name, one] of Object.entries(value)) {
      if (one && typeof one === "object" && typeof one.d === "string") into[name] = unpack(one);
      else if (one && typeof one === "object" && !Array.isArray(one)) go(one, (into[name] = {}));
      else into[name] = one;
    }
  };
  go(part, arrays);
  const c = arrays.contexts;
  if (c) {
    c.firstOfFeature = starts(
      Array.from({ length: c.found.length / 3 }, (_, i) =>
        c.found[3 * i] + c.found[3 * i + 1] + c.found[3 * i + 2]),
    );
    c.firstToken = starts(c.size);
    c.firstLit = starts(c.lit);
  }
  Object.defineProperty(part, "arrays", { value: arrays });
  return arrays;
}

function unshard(site, part, words, i, place) {
  const { about } = site;
  const a = unpacked(part);
  const n = about.steps.length;
  const S = about.seeds.length;
  const found = { site, place, number: site.columns.feature[place] };

  found.strength = about.seeds.map((_, seed) =>
    Array.from(a.strength.slice((i * S + seed) * n, (i * S + seed + 1) * n), (level) =>
      level === 65535 ? NaN : (level / 65534) * part.scale[i]));
  found.partners = part.partner[i];

  const m = about.matrix.length;
  const pairs = (m * (m - 1)) / 2;
  found.cosine = Array.from({ length: m }, () => new Array(m).fill(1));
  let at = i * pairs;
  for (let row = 0; row < m; row++)
    for (let column = row + 1; column < m; column++, at++) {
      const value = a.cosine[at] === -128 ? NaN : a.cosine[at] / 127;
      found.cosine[row][column] = found.cosine[column][row] = value;
    }

  found.dimensionality = a.dimensionality
    ? Array.from(a.dimensionality.slice(i * n, (i + 1) * n), (level) => level / 255)
    : null;

  const k = about.near;
  found.near = Array.from({ length: k }, (_, j) => ({
    place: a.near[i * k + j],
    cosine: a.near_cosine[i * k + j] / 32767,
  }));

  found.attribution = [];
  if (a.attribution)
    a.attribution.feature.forEach((owner, j) => {
      if (owner !== i) return;
      const values = Array.from(a.attribution.value.slice(j * n, (j + 1) * n), (value) =>
        value === -32768 ? NaN : (value / 32767) * a.attribution.scale[j]);
      found.attribution.push({ task: about.tasks[a.attribution.task[j]].name, values });
    });

  found.contexts = null;
  found.lens = [];
  found.together = [];
  if (a.contexts) {
    found.active = part.active[i];
    found.mean = part.mean[i];
    found.threshold = part.threshold[i];
    const { found: counts, place: places, share } = a.together;
    for (let j = 0, at = starts(counts)[i]; j < counts[i]; j++, at++)
      found.together.push({ place: places[at], share: share[at] / 65534 });
    found.contexts = { top: [], quantiles: [], near_misses: [] };
    let one = a.contexts.firstOfFeature[i];
    Object.keys(found.contexts).forEach((name, list) => {
      for (let j = 0; j < a.contexts.found[3 * i + list]; j++, one++)
        found.contexts[name].push(context(a.contexts, words, one));
    });
  }
  if (a.lens) {
    const l = a.lens;
    const P = l.site.length / part.scale.length;
    const t = l.tokens;
    for (let p = 0; p < P; p++) {
      const side = (which) =>
        Array.from({ length: t }, (_, j) => {
          const from = ((i * P + p) * 2 + which) * t + j;
          return { text: words[l.word[from]], value: (l.value[from] / 32767) * l.scale[i] };
        });
      found.lens.push({
        step: about.sites[l.site[i * P + p]],
        strength: l.strength[i * P + p] / 255,
        peak: p === P - 1,
        promoted: side(0),
        suppressed: side(1),
      });
    }
  }
  return found;
}

function context(c, words, one) {
  const first = c.firstToken[one];
  const size = c.size[one];
  const tokens = Array.from({ length: size }, (_, j) => {
    const word = c.word[first + j];
    return { text: words[c.words ? c.words[word] : word], share: 0 };
  });
  for (let j = c.firstLit[one]; j < c.firstLit[one + 1]; j++)
    tokens[c.where[j]].share = c.how[j] === 255 ? NaN : c.how[j] / 254;
  return {
    block: c.block[one],
    offset: c.offset[one],
    position: c.position[one],
    value: c.value[one],
    quantile: c.quantile[one] === 65535 ? NaN : c.quantile[one] / 65534,
    tokens,
  };
}
