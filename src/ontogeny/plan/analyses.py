"""What the jobs of the analyses cost: memory and work, upper bounds. Formulas only, as in cost.py.

A named size that a stage's own module sets is repeated here, since those modules import torch; a
test holds the two together. Constants that no module sets are marked as measured: seconds of real
runs, as bytes at the rate of a host's memory.

Letters beside cost.py's: E (position, feature) pairs of the held-out text at which a feature acts.
"""

from __future__ import annotations

from dataclasses import dataclass

from ontogeny.plan.cost import (
    AHEAD,
    Dictionary,
    Job,
    Sizes,
    Terms,
    Work,
    base,
    crosscoder_tensors,
    fidelity_piece,
    forward_memory,
    job,
    weight_tensors,
)

KINDS_POSITIONS = 1 << 16  # kinds.MOST_POSITIONS
COLLECTED_ENTRIES = 1 << 22  # collect.PIECE_ENTRIES
CONTEXTS_VALUES = 1 << 23  # contexts.PIECE_VALUES
CONTEXTS_SAMPLE = 8  # contexts.SAMPLE
LENS_BLOCKS = 8  # contexts.LENS_BLOCKS
LENS_ENTRIES = 1 << 25  # lens.PIECE_ENTRIES
SPAN_TOKENS = 1 << 14  # span.BATCH_TOKENS
PRESENCE_FOLDS = 8  # presence.FOLDS
PRESENCE_ENTRIES = 1 << 26  # presence.BLOCK_ENTRIES
HEADS_CONTEXT = 1024  # heads.MOST_CONTEXT
HEADS_ENTRIES = 1 << 26  # heads.BATCH_ENTRIES
HEADS_DISTANCES = 5  # len(heads.EIGHTHS)
HEADS_SAMPLES = 32  # induction.SAMPLES
PROMPTS_ENTRIES = 1 << 26  # attribution.PIECE_ENTRIES
PROMPTS_READ = 4096  # tokens of a pass that reads prompts
PROMPTS_TOKENS = {False: 2048, True: 16384}  # downstream.BATCH_TOKENS, on a GPU or not
LONGEST_PROMPTS = {"induction": 33, "copying": 145}  # tokens; of the other tasks OTHER_PROMPTS
OTHER_PROMPTS = 48
LONG_PROMPTS = 64  # tasks.LONG
ATLAS_ENTRIES = 1 << 24  # build.NEAR_ENTRIES
ATLAS_BYTES = 1e7  # measured: 1 to 2 ms a feature
COMPLEXITY_PERMUTATIONS = 9_999  # complexity.PERMUTATIONS
COMPLEXITY_ENTRIES = 1 << 22  # complexity.PIECE_ENTRIES

HELD_OUT_L0 = 1.5  # assumed: L0 on held-out text over that in training, at most
GROUPED = 16  # assumed: entries of sums by group of tokens, over those that are summed, at most


@dataclass(frozen=True)
class HeldOut:
    """A crosscoder's features on the first held-out positions, as kinds.held_out gives them.

    Attributes
    ----------
    positions : of the held-out text. active : entries that are not 0. read : bytes from disk.
    flops : of encoding. host, device : memory, the crosscoder itself included.
    """

    positions: int
    active: float
    read: float
    flops: float
    host: Terms
    device: Terms


def crosscoder_memory(d: Dictionary) -> Terms:
    """A trained crosscoder in use: as it was trained, and its decoders in all dimensions."""
    full = (4.0 * d.full if d.dimensions else 0.0) + (4.0 * d.full if d.gates > 1 else 0.0)
    weights = weight_tensors(d) + 4.0 * d.inputs * d.width * (d.dimensions or 1)
    return {"weights": weights, "full decoders": full}


def held_out(z: Sizes, d: Dictionary) -> HeldOut:
    """Encoding the held-out rows, a piece at a time, and what is active of them."""
    piece, columns = fidelity_piece(d), d.inputs * d.width
    positions = min(z.held_out_rows, KINDS_POSITIONS)
    active = positions * min(float(d.c.features), HELD_OUT_L0 * d.l0 * d.gates)
    rows = min(piece, positions)
    host: Terms = {
        "pieces read ahead": AHEAD * 4.0 * rows * columns,
        "active positions": 16.0 * active,
    }
    if z.gpu:
        host["weights as they load"] = crosscoder_tensors(d)
    device = crosscoder_memory(d)
    device["rows of a piece"] = 8.0 * rows * columns
    device["pre-activations"] = rows * d.c.features * (8.0 + 12.0 * d.gates)
    flops = 2.0 * positions * d.I * d.c.features
    if d.dimensions is not None:
        flops += 2.0 * positions * columns * d.dimensions
        flops += 2.0 * d.c.features * d.outputs * d.width * d.dimensions
    read = positions * columns * z.item + crosscoder_tensors(d)
    return HeldOut(positions, active, read, flops, host, device)


def _loads(z: Sizes, run_bytes: int, kept: float) -> Terms:
    """The host's part of loading a snapshot, without the `kept` bytes that stay where it is run."""
    size = z.model.parameters * (run_bytes + z.file_bytes) - (0 if z.gpu else kept)
    return {"a snapshot as it loads": size}


def _larger(*choices: Terms) -> Terms:
    """The terms whose sum is the largest, of what is never there together."""
    return max(choices, key=lambda terms: sum(terms.values()))


def judge_kinds(z: Sizes, d: Dictionary) -> Job:
    """Kinds of features, with their nulls: permutations of sparse activations, on the host."""
    f, a, F = held_out(z, d), z.s.analysis, d.c.features
    sums = min(float(min(z.model.vocabulary + 3, f.positions)) * F, GROUPED * f.active)
    host = f.host | {
        "active positions": 100.0 * f.active,  # twelve bytes each of all that is made of them
        "sums by group": 40.0 * sums,
        "nulls": 120.0 * a.permutations * F,
    }
    work = Work(
        products32=f.flops,
        read=f.read,
        # measured: 0.35 µs a permutation and active position; a permuted twin is judged too
        host_moved=2 * a.permutations * 1500.0 * f.active,
    )
    return job(z, work, host, f.device)


def measure_dimensionality(z: Sizes, d: Dictionary) -> Job:
    """Dimensionality of all seeds' features, one seed after the other; NumPy, on the host."""
    F, n, width = d.c.features, d.outputs, d.width
    full, seeds = 4.0 * d.full, len(d.c.seeds)
    host: Terms = {
        "full decoders": 3 * full + weight_tensors(d),
        "a snapshot's decoders": 40.0 * F * width + 8.0 * width * width,
    }
    work = Work(
        products32=seeds * (n * 4.0 * F * width**2 + 2.0 * F * n * width * (d.dimensions or 0)),
        read=seeds * crosscoder_tensors(d),
        host_moved=seeds * 10 * full,
    )
    return Job(work, base(False)[0] | host)


def gather_contexts(z: Sizes, d: Dictionary) -> Job:
    """Contexts of all held-out text, and the logit lens of some snapshots."""
    c, m, F = z.s.contexts, z.model, d.c.features
    columns, window = d.inputs * d.width, 2 * c.window + 1
    rows = max(z.s.corpus.context, CONTEXTS_VALUES // max(F, columns))
    kept = F * (c.top + CONTEXTS_SAMPLE * c.quantiles)
    positions = F * (c.top + c.quantiles + c.near_misses)
    active = z.held_out_rows * min(float(F), HELD_OUT_L0 * d.l0)
    entry = 28.0 + 2 * window
    host: Terms = {
        "pieces read ahead": AHEAD * 4.0 * rows * columns,
        "contexts": 5 * (entry * kept + 28.0 * F * c.near_misses)
        + 150.0 * rows * min(float(F), HELD_OUT_L0 * d.l0)
        + 24.0 * positions * window,
    }
    collecting: Terms = {
        "rows of a piece": 8.0 * rows * columns,
        "pre-activations": 12.0 * rows * F + 60.0 * max(COLLECTED_ENTRIES, rows),
    }
    work = Work(
        products32=2.0 * z.held_out_rows * F * d.I,
        read=z.held_out_rows * columns * z.item + crosscoder_tensors(d),
        moved=60.0 * z.held_out_rows * F,
        host_moved=600.0 * active + 200.0 * positions * window,
    )
    if d.dimensions is not None:
        also = 2.0 * columns * d.dimensions * (z.held_out_rows + F)
        work = _with(work, products32=also)
    lens: Terms = {}
    if c.lens_snapshots:
        k = min(c.lens_tokens, m.vocabulary)
        lenses = c.lens_snapshots + 1
        host["logit lens"] = 40.0 * F * lenses * k
        host |= _loads(z, 4, 4.0 * m.parameters)
        lens = {
            "model": 4.0 * m.parameters,
            "logit lens": 12.0 * m.vocabulary * m.width
            + 12.0 * min(max(LENS_ENTRIES, m.vocabulary), F * m.vocabulary)
            + 12.0 * F * d.width,
            "forward pass": forward_memory(z, z.s.corpus.context, 4, True),
        }
        tokens = LENS_BLOCKS * z.s.corpus.context
        work = _with(
            work,
            forward32=d.snapshots * 2 * tokens * m.flops_per_token(z.s.corpus.context),
            products32=2.0 * F * lenses * m.vocabulary * d.width,
            read=d.snapshots * m.parameters * z.file_bytes,
        )
    if z.gpu:
        host["weights as they load"] = crosscoder_tensors(d)
    return job(z, work, host, crosscoder_memory(d) | _larger(collecting, lens))


def contexts_record(z: Sizes) -> float:
    """Bytes of a feature's record in contexts.h5."""
    c = z.s.contexts
    window, shown = 2 * c.window + 1, c.top + c.quantiles
    ids = 2 if z.model.vocabulary <= 2**16 else 4
    found = 290.0 + (shown + c.near_misses) * (12 + ids * window)
    found += 4 * c.quantiles + 2 * window * shown
    if c.lens_snapshots:
        k = min(c.lens_tokens, z.model.vocabulary)
        found += (c.lens_snapshots + 1) * (8 + 16 * k)
    return found


def _with(work: Work, **more: float) -> Work:
    """Work and more of some of its kinds."""
    return Work(**{k: v + more.get(k, 0) for k, v in vars(work).items()})


def suffixes(longest: int) -> list[int]:
    """Lengths of span.grid."""
    lengths = [1, 2, 3]
    while lengths[-1] < longest:
        lengths.append(max(4, lengths[-1] // 4 * 8))
    return sorted({min(length, longest) for length in lengths})


def measure_span(z: Sizes, d: Dictionary) -> Job:
    """Context span: every snapshot, cut off after its last layer, on suffixes of contexts."""
    f, p, m = held_out(z, d), z.s.span, z.model
    features = min(d.c.features, p.features)
    places = min(f.positions, features * p.contexts)
    lengths = suffixes(min(p.longest, z.s.corpus.context - 1))
    pairs = places * f.active / max(1, f.positions)
    at_once = min(1.0, SPAN_TOKENS / max(1, places)) * pairs
    reach = 3 * lengths[-1]  # a suffix after another text, twice as long as the longest
    layers = max(z.s.activations.layers) + 1
    device = crosscoder_memory(d) | _larger(
        {k: f.device[k] for k in ("rows of a piece", "pre-activations")},
        {
            "model": z.truncated,
            "forward pass": forward_memory(z, SPAN_TOKENS, z.run_bytes, False),
            "keys and values": 6.0 * SPAN_TOKENS * m.key_value_width * layers * z.run_bytes,
            "encoders of a site": 4.0 * features * (d.I + 2 * d.width * z.places),
            "pairs on suffixes": 12.0 * at_once * d.width + 16.0 * len(lengths) * pairs,
        },
    )
    host = f.host | {
        "active positions": 60.0 * f.active,
        "contexts of features": 1000.0 * pairs + 32.0 * sum(lengths) * places,
    }
    host |= _loads(z, z.run_bytes, z.truncated)
    tokens = 2.0 * sum(lengths) * places
    work = Work(
        forward=d.snapshots * tokens * m.flops_per_token(reach, layers - 1),
        products32=f.flops + 2.0 * features * d.I * d.inputs * d.width,
        moved=d.inputs * 2 * len(lengths) * pairs * 12.0 * d.width,
        host_moved=400.0 * f.active + 4000.0 * pairs,
        read=f.read + d.snapshots * m.parameters * z.file_bytes,
    )
    return job(z, work, host, device)


def measure_presence(z: Sizes, d: Dictionary) -> Job:
    """Latent scaling of every feature at every snapshot, and linear probes of some."""
    f, p, a = held_out(z, d), z.s.presence_tests, z.s.analysis
    F, D, n, N = d.c.features, d.width, d.outputs, f.positions
    labels = 3 * min(F, p.features)
    block = min(float(F) * PRESENCE_FOLDS * D, PRESENCE_ENTRIES + PRESENCE_FOLDS * D)
    device = crosscoder_memory(d) | _larger(
        {k: f.device[k] for k in ("rows of a piece", "pre-activations")},
        {
            "rows of a site": 24.0 * N * D,
            "scalings": 20.0 * block + 12.0 * F * D + 16.0 * PRESENCE_FOLDS * F,
            "active positions": 40.0 * f.active,
            "probes": 12.0 * D * D + 12.0 * labels * D + 4.0 * labels * N,
        },
    )
    host = f.host | {
        "active positions": 100.0 * f.active,
        "rows read": 16.0 * N * D,
        "probes' scores": 8.0 * labels * N,
        "table of features": 500.0 * F * n,
        "bootstrap samples": 12.0 * a.bootstrap * F,
    }
    work = Work(
        products32=f.flops + n * (2.0 * N * D * D + 4.0 * N * labels * D + 2.0 * D**3),
        pairs=n * 10.0 * f.active * D,
        moved=n * (48.0 * F * PRESENCE_FOLDS * D + 40.0 * N * D),
        # measured: rank correlations of every bootstrap sample
        host_moved=24 * 60.0 * a.bootstrap * F * n + 60.0 * n * f.active,
        read=f.read + n * N * D * z.item,
    )
    return job(z, work, host, device)


def heads_arrays(z: Sizes) -> tuple[int, float]:
    """Tokens of a block that heads are looked at in, and entries of the sums by block."""
    s, m = z.s, z.model
    scores = 2 + 3 * HEADS_DISTANCES
    blocks = min(s.heads.blocks, s.corpus.held_out_blocks)
    return min(s.corpus.context, HEADS_CONTEXT), z.snapshots * scores * m.layers * m.heads * blocks


def measure_heads(z: Sizes) -> Job:
    """Attention of every head of every snapshot, in whole blocks, and losses on copies."""
    s, m = z.s, z.model
    context, sums = heads_arrays(z)
    blocks = min(s.heads.blocks, s.corpus.held_out_blocks)
    heads = m.layers * m.heads
    entries = max(heads * context, m.vocabulary) * context
    step = max(1, min(8, HEADS_ENTRIES // entries))
    square = float(step * context * context)
    device: Terms = {
        "model": z.run_bytes * m.parameters,
        "attention": square * heads * (z.run_bytes + 4.0 / 8)
        + square * m.heads * (3 * z.run_bytes + 40.0)
        + 60.0 * square,
        "forward pass": forward_memory(z, step * context, z.run_bytes, False)
        + step * context * m.vocabulary * (z.run_bytes + 8.0),
    }
    host = _loads(z, z.run_bytes, z.run_bytes * m.parameters)
    host["table of heads"] = sums * 40.0 + 250.0 * sums / blocks
    passes = 1 + 2 * (1 + HEADS_DISTANCES)
    tokens = float(z.snapshots * blocks * context)
    work = Work(
        forward=tokens * passes * m.flops_per_token(context),
        moved=tokens * context * heads * ((passes + 1) / 2 * 6 * z.run_bytes + 60.0)
        + tokens * context * 100.0,
        read=z.snapshots * m.parameters * z.file_bytes,
        host_moved=20.0 * tokens * m.vocabulary,
    )
    return job(z, work, host, device)


def order_onsets(z: Sizes) -> Job:
    """The order of onsets, from sums by block; a bootstrap over blocks."""
    _, sums = heads_arrays(z)
    heads = z.model.layers * z.model.heads * z.snapshots
    samples = z.s.analysis.bootstrap
    host: Terms = {
        "table of heads": 32.0 * sums,
        "bootstrap samples": 8.0 * HEADS_SAMPLES * heads * 4 * HEADS_DISTANCES,
    }
    events = 3 + 2 * HEADS_DISTANCES
    work = Work(
        host_moved=samples * heads * events * (100.0 + 4.0 * z.s.heads.blocks), read=16.0 * sums
    )
    return Job(work, base(False)[0] | host)


def prompts(z: Sizes) -> dict[str, tuple[int, int]]:
    """Pairs of prompts and tokens of each, by task, at most."""
    c = z.s.circuits
    found: dict[str, tuple[int, int]] = {}
    for name in c.tasks:
        tokens = min(z.s.corpus.context, LONGEST_PROMPTS.get(name, OTHER_PROMPTS))
        half = tokens > LONG_PROMPTS
        found[name] = (max(16, c.pairs // 2) if half else c.pairs, tokens)
    return found


def _circuits(z: Sizes, d: Dictionary) -> tuple[float, float, Terms]:
    """Positions of all prompts, features that differ in one task at most, and models in use.

    A backward pass to the site keeps what every later block's gradient needs.
    """
    m, every = z.model, prompts(z)
    longest = max(pairs * tokens for pairs, tokens in every.values())
    positions = float(sum(pairs * tokens for pairs, tokens in every.values()))
    features = min(float(d.c.features), 2 * HELD_OUT_L0 * d.l0 * longest)
    batch = min(PROMPTS_TOKENS[z.gpu], longest)
    later = m.layers - min(z.s.activations.layers)
    device: Terms = {
        "model": 4.0 * m.parameters,
        "values of a task": 4.0 * longest * d.width * 8,
        "gradients of a pass": 4.0
        * batch
        * later
        * (m.block_matrix_parameters / m.width + 4 * m.width)
        + 12.0 * batch * d.width,
        "forward pass": forward_memory(z, batch, 4, False) + 8.0 * batch * m.vocabulary / 4,
    }
    return positions, features, device


def attribution(z: Sizes, d: Dictionary) -> Job:
    """Integrated gradients of every task at every snapshot."""
    c, m = z.s.circuits, z.model
    positions, features, device = _circuits(z, d)
    columns, F = d.inputs * d.width, d.c.features
    entries = positions * min(float(F), 2 * HELD_OUT_L0 * d.l0)
    piece = min(PROMPTS_ENTRIES // max(F * d.gates, columns) + 1.0, positions)
    pairs = max(pairs for pairs, _ in prompts(z).values())
    at_once = min(entries, PROMPTS_ENTRIES / d.width)
    reading: Terms = {
        "snapshots on the device": z.truncated * 4 / z.run_bytes,
        "forward pass": forward_memory(z, PROMPTS_READ, 4, False),
        "rows of a piece": 12.0 * piece * columns,
        "pre-activations": piece * F * (24.0 + 24.0 * d.gates),
    }
    device |= {
        "decoders of a site": 8.0 * features * d.width,
        "attributions": 12.0 * at_once * d.width + 32.0 * pairs * features + 40.0 * entries,
    }
    tasks = len(c.tasks)
    host = _loads(z, 4, 4.0 * m.parameters) | {
        "rows of the prompts": 8.0 * positions * columns,
        "differences": entries * (70.0 + 8.0 * d.gates),
        "attributions": 24.0 * pairs * features + 200.0 * d.outputs * tasks * features,
    }
    context = max(tokens for _, tokens in prompts(z).values())
    later = m.flops_per_token(context) - m.flops_per_token(context, min(z.s.activations.layers))
    token = m.flops_per_token(context)
    work = Work(
        forward32=d.outputs * positions * (6 * token + (2 + 3 * c.path_steps) * later),
        products32=4.0 * positions * (d.I * F + columns * (d.dimensions or 0)),
        moved=d.outputs * 30.0 * entries * d.width / max(1, tasks),
        host_moved=d.outputs * tasks * 400.0 * features + 16.0 * positions * columns,
        read=2 * d.snapshots * m.parameters * z.file_bytes,
        written=8.0 * positions * columns,
    )
    return job(z, work, host, crosscoder_memory(d) | _larger(reading, device))


def ablation(z: Sizes, d: Dictionary) -> Job:
    """Curves of necessity and sufficiency of every task at some snapshots."""
    c, m = z.s.circuits, z.model
    positions, features, device = _circuits(z, d)
    longest = max(pairs * tokens for pairs, tokens in prompts(z).values())
    entries = longest * min(float(d.c.features), 2 * HELD_OUT_L0 * d.l0)
    device["gradients of a pass"] = 0.0
    device |= {
        "decoders of a site": 8.0 * features * d.width,
        "differences": 60.0 * entries + 4.0 * 6 * longest * d.width,
    }
    tasks = len(c.tasks)
    host = _loads(z, 4, 4.0 * m.parameters) | {
        "differences": entries * (40.0 + 8.0 * d.gates),
        "attributions": 200.0 * d.outputs * tasks * features,
    }
    context = max(tokens for _, tokens in prompts(z).values())
    later = m.flops_per_token(context) - m.flops_per_token(context, min(z.s.activations.layers))
    snapshots = min(c.curve_snapshots, d.outputs)
    sets = c.curve_points * 2 * (1 + c.draws) + 3
    passes = snapshots * 2 * sets * positions
    work = Work(
        forward32=passes * later + snapshots * 4 * positions * m.flops_per_token(context),
        pairs=snapshots * tasks * sets * 2.0 * entries * d.width,
        moved=passes * 24.0 * d.width,
        host_moved=snapshots * tasks * sets * (4e6 + 2000.0 * features),
        read=snapshots * m.parameters * z.file_bytes,
    )
    return job(z, work, host, crosscoder_memory(d) | device)


def correlate_complexity(z: Sizes, d: Dictionary) -> Job:
    """Correlations of spans with peak and onset, with permutations."""
    features = min(d.c.features, z.s.span.features)
    samples = min(COMPLEXITY_ENTRIES, z.s.analysis.bootstrap * features)
    host = _larger(
        {"permutations": 40.0 * min(COMPLEXITY_ENTRIES, COMPLEXITY_PERMUTATIONS * features)},
        {"bootstrap samples": 112.0 * samples},
    )
    grades = 2 if z.s.grader else 1
    drawn = COMPLEXITY_PERMUTATIONS + 2.0 * z.s.analysis.bootstrap
    # measured: two spans, each with peak and onset, in six groups of features
    return Job(Work(host_moved=24 * grades * drawn * features * 250.0), base(False)[0] | host)


def grade_features(z: Sizes, d: Dictionary, answers: float) -> Job:
    """Passages of some features for a language model elsewhere, whose answers take seconds."""
    f = held_out(z, d)
    host = f.host | {"active positions": 60.0 * f.active}
    moved = 600.0 * f.active + 4e9 * answers  # seconds, as bytes at the rate of a host
    work = Work(products32=f.flops, read=f.read, host_moved=moved)
    return job(z, work, host, f.device)


def compare(z: Sizes, d: Dictionary, replicates: int) -> Job:
    """Features of the experiment matched with each replicate's, by correlation."""
    f, F = held_out(z, d), float(d.c.features)
    host = f.host | {"active positions": 60.0 * f.active, "matching": 48.0 * F * F}
    work = Work(
        products32=2 * replicates * f.flops,
        read=2 * replicates * f.read,
        host_moved=replicates * (f.active * 40.0 * min(F, HELD_OUT_L0 * d.l0) + 60.0 * F * F),
        assigned=replicates**0.4 * F,
    )
    return job(z, work, host, f.device)


def atlas(z: Sizes, d: Dictionary) -> Job:
    """The static site: one seed's decoders and, one at a time, another's; nearest features."""
    F, n, full = float(d.c.features), d.outputs, 4.0 * d.full
    flat = F * 4.0 * min(d.dimensions or d.outputs * d.width, d.outputs * d.width)
    host: Terms = {
        "full decoders of two seeds": 3 * full + 2 * crosscoder_tensors(d),
        "stacked decoders": 2 * flat,
        "nearest features": 12.0 * ATLAS_ENTRIES,
        "texts": 2e3 * F,
    }
    work = Work(
        read=len(d.c.seeds) * crosscoder_tensors(d), written=8e3 * F,
        products32=F * flat / 2 + 2.0 * F * n * n * d.width,
        host_moved=F * ATLAS_BYTES + 40.0 * d.full, starts=1,
    )  # fmt: skip
    return Job(work, base(False)[0] | host)


def light() -> Job:
    """What takes seconds and little: tasks, tables of tables, figures."""
    return Job(Work(host_moved=2e10), {"Python": 0.7e9})
