"""The atlas: a folder of static files that shows every living feature and its life.

It opens from disk (file://) or from any web server: no network, no server code, no build step.
`build` writes it whole or not at all; `gather` reads the experiment's results; `start` chooses what
the start page names; `pack` has the encodings; `page/` holds the page's own files, which are
copied unchanged.

    index.html, atlas.css, app/*.js     the page
    data/experiment.js                  the experiment in short                    first view
    data/features.js                    columns of numbers, one entry per feature  first view
    data/tasks.js                       attribution, one entry per task            on demand
    data/curves/N.js                    strengths, TEXT_FEATURES features each     on demand
    data/words.js                       strings that tokens are shown as           on demand
    data/text/N.js                      text to search in, TEXT_FEATURES each      on demand
    data/shards/N.js                    the rest of a feature, SHARD features each on demand
    data/passages.js                    passages that every snapshot has read      on demand
    data/passages/N.js                  one of them                                on demand

A page from disk may load scripts but no JSON, so each file under data/ is one call,
`atlas(KEY, VALUE)`. KEY is its path without data/ and .js, VALUE is JSON in ASCII.

Letters: L living features, n snapshots, S seeds of the crosscoder, m ≤ n snapshots of the
direction matrix. A *place* is a feature's index among the living ones, in ascending order, from 0;
place p is in shard p // SHARD. An array is {"t": TYPE, "d": base64}, little-endian, where TYPE is
one of u1, u2, u4, i1, i2, f4. Its shape is not stored: it follows from the counts, as listed below.
Where no type is given, it is the smallest of u1, u2, u4 that holds the values.

experiment
    format; name, model, layer, stream, crosscoder, activation, seeds; steps (n), numbers (n, index
    of each snapshot among all, from 1); tokens (training rows), held_out (rows); features
    (including dead ones), living; explained_variance, l0, dead (as in summary.json);
    matched_cosine, presence, settled_cosine (thresholds), kinds_loss, kinds_active (thresholds, if
    there are kinds); start (see atlas.start.choose; `curve` is a feature's row of curves/N,
    `context` a line as in text/N, but of the whole window); curve {step, loss} of held-out text,
    log {step, loss} of batches, or null; out_of_place (steps whose loss is far from that of their
    neighbours); levels (levels.json), turning (group `all` of turning_point.json) or null; kinds,
    tasks (names, and what the model does with each), sites (of the lens), matrix (m indices of
    snapshots), classes, doubts (why a feature's births and deaths are doubtful); names (L strings,
    '' if a feature has none), if there are names; colours; shard, text_features, near;
    contexts {top, quantiles, near_misses, window} or null;
    missing {ANALYSIS: why it is missing}; command; version
features, (L,) each; float32 as in the tables, NaN if unknown
    feature u4, peak u2 (index from 1), onset f4 (step), settled f4 (step), lifetime f4, strength f4
    (at the peak), density f4, class u1 (one bit for each of `classes`), doubts u1 (one bit for each
    of `doubts`), trusted u1 (see atlas.start.trusted), cosine f4 (matched), kind u1 (of `kinds`),
    complexity f4 (context span with the preceding tokens replaced)
tasks
    for each name, the features whose attribution differs from zero: place u4, value f4 (attribution
    at the snapshot where its absolute value is largest), at u2 (that snapshot, from 0)
words
    a list of strings in which every character is visible, see corpus/pieces.visible
curves/N
    strength u1 (…, n) divided by the feature's largest [1/255]
text/N
    promoted: one string of tokens per feature; contexts: one list of strings per feature, with tabs
    before and after the token at the position; values: the activations there
shards/N, of C features; the unit in which a quantity is stored is in brackets
    strength u2 (C, S, n), divided by `scale` [C numbers], 65535 for a seed without a match [1/65534
    of the scale]; partner (C, S − 1) numbers of the matching features, −1 for none
    cosine i1 (C, m (m − 1) / 2), row by row above the diagonal, −128 if not compared [1/127]
    dimensionality u1 (C, n) [1/255]
    near u4 (C, k) places of the nearest features; near_cosine i2 (C, k) [1/32767]
    attribution: feature u1 (of the shard), task u1, scale f4, value i2 (…, n), −32768 if missing
    [1/32767 of the scale]
    contexts: found (C, 3) counts of top, quantiles, near misses; then one entry per context: block
    u4, offset, position (of the position in the window), size (tokens), value f4, quantile u2
    [1/65534], 65535 for none; word u2 (tokens of all contexts), through `words` u4 if there are
    more than 65,536; lit (number of active tokens of each context), and for each of these where (in
    the window) and how u1 [1/254 of the feature's largest], 255 if the activation is unknown
    active, mean, threshold: C numbers each
    together: found (C,) counts; then place u4 and share u2 [1/65534] of each feature that is active
    at the same positions
    lens: site u2 (C, P), strength u1 (C, P) [1/255], word (C, P, 2, k), value i2 (C, P, 2, k),
    divided by `scale` [1/32767]
passages
    a list; for each passage source (held-out text or a task), begins (its first characters), size
passages/N, of T tokens, in the order of tokens, then of snapshots
    words (strings), word (T, through `words`), loss f4 (T, n) nats, next (T, n, `predictions`)
    through `words`, probability u1 of each [1/255]; active (T, n) number of features listed, then
    one entry for each of them: place, value u2 (contribution), divided by `scale` [1/65534]
"""
