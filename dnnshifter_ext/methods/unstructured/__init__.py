"""Unstructured pruning: what is a weight worth (one file per method), how many go when, and which.

    score(model, mask, setting, **options) -> {name of each prunable tensor: scores of its shape}

Larger is kept. The model is the score's own copy, its pruned weights at zero; the mask says which those are, and
whatever is returned for them is ignored. Options are keyword-only, with the published values as defaults. A score
prints nothing, reads no files, and leaves the global random generators as they were.

    schedule.py   how many weights are left after each round
    select.py     which of them go, given the scores
    pipeline.py   the rounds: score, select, repeat
    registry.py   the methods by name, with the examples each looks at
    random_layerwise.py  grasp.py  synflow.py  ntk_sap.py  prospr.py     scores; the others are open_lth.pruning.scores
    data.py  cost.py  job.py  oneshot.py  iterative.py  lottery.py       the rim: examples, commands, files
"""

# The scores that make sense on trained weights, for `lottery --pruning_strategy=...`; magnitude is the engine's own.
LOTTERY_STRATEGIES = ('random', 'snip', 'synflow')
