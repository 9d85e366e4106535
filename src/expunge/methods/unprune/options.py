"""Values of the options of un-pruning."""

from __future__ import annotations

#: Rules for recomputing the mask.
RULES: dict[str, str] = {
    "magnitude": "regrow the pruned weights that are largest after re-initialisation, unlearn, re-prune ([Xiao2025])",
    "gradient": "regrow the pruned weights with the largest gradients on D_r, unlearn, re-prune (as in RigL)",
    "influence": "estimate the pruning scores without D_f, threshold them, unlearn; the network never gets denser",
    "random": "regrow random pruned weights, unlearn, re-prune: a control",
    "dense": "regrow all pruned weights, unlearn, re-prune: a control",
    "unchanged": "do not change the mask: only the inner method, for comparison",
}
INITIAL = ("original", "random", "zero")
REPRUNE = ("once", "each")
REINITIALISE = ("pruned", "grown")
