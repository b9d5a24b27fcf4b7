"""Sizes shared by the crosscoder's stages and the formulas of their cost; nothing imports torch."""

LOG_EVERY = 50  # steps between two checks of the losses, the dead features and the weights
SAVE_SECONDS = 60.0  # least time between two saved states
NORM_GRID = [round(10 ** (e / 8), 4) for e in range(-20, 5)]  # initial decoder norms to try, by √N
JUDGED_ROWS = 128  # rows on which the initial norm is chosen
ROOM = 3  # candidates that a GPU processes per active feature of a token
SPREAD = 2.0  # assumed: features open at some site per feature that is active at a given site

LEAST_AVERAGED = 500  # steps after which the running mean of thresholds has forgotten its start
MEASURED_BATCHES = 32  # batches for measuring the threshold at the end of a shorter training

PIECE_ROWS = 2048  # held-out rows that fidelity holds in memory at a time
PIECE_ENTRIES = 1 << 27  # most entries of their feature activations
PCA_ROWS = 8192  # training rows that PCA is fitted to if there is no basis
DECODERS_AT_A_TIME = 4096  # features whose full decoders are computed at a time
BATCH_TOKENS = 4096  # tokens that a language model predicts at a time


def measured_batches(activation: str, steps: int) -> int:
    """Batches on which a training of the given length measures its threshold at its end."""
    return MEASURED_BATCHES if activation == "batch_topk" and steps < LEAST_AVERAGED else 0
