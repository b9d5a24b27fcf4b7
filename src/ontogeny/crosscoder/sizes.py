"""Sizes that the crosscoder's stages and the formulas of their cost share, without torch."""

LOG_EVERY = 50  # steps from one look at the losses, the dead and the weights to the next
SAVE_SECONDS = 60.0  # from one state to the next, at least
NORM_GRID = [round(10 ** (e / 8), 4) for e in range(-20, 5)]  # decoder norms to begin with, by √N
JUDGED_ROWS = 128  # that the norm to begin with is chosen on
ROOM = 3  # candidates that a GPU looks at, for each active feature of a token
SPREAD = 2.0  # assumed: features with a gate open somewhere, for each that is active at a site

LEAST_AVERAGED = 500  # steps from which the running mean of thresholds has forgotten the first
MEASURED_BATCHES = 32  # that a shorter training's threshold is measured on at its end

PIECE_ROWS = 2048  # held-out rows that fidelity has in memory at a time
PIECE_ENTRIES = 1 << 27  # of their feature activations, at most
PCA_ROWS = 8192  # training rows that PCA is fitted to where there is no basis
DECODERS_AT_A_TIME = 4096  # features whose full decoders are made where all are not needed
BATCH_TOKENS = 4096  # that a language model predicts at a time


def measured_batches(activation: str, steps: int) -> int:
    """Batches that a training of so many steps measures its threshold on at its end."""
    return MEASURED_BATCHES if activation == "batch_topk" and steps < LEAST_AVERAGED else 0
