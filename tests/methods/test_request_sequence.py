"""Requests in sequence: what each adds to provenance and outcome does not grow with the number before it."""

from __future__ import annotations

import itertools
import json

import expunge


def test_each_request_adds_the_same_to_the_files() -> None:
    records = expunge.load_records("digits")
    split = expunge.make_split(records, seed=0)
    network = expunge.architecture("mlp", records, split, widths=(4,))
    recipe = expunge.get_recipe("one-cycle", epochs=1, batch_size=256)
    trained = expunge.train(records, split, network, recipe=recipe)
    method = expunge.get_method("GA", epochs=1, learning_rate=1e-6)
    context = expunge.Context(records)
    sizes = []
    for name in split.retain[:12]:
        outcome = method.forget(trained, expunge.forget_ids(records, trained.split, [str(name)]), context)
        trained = outcome.trained
        sizes.append((len(json.dumps(trained.provenance.to_json())), len(json.dumps(outcome.to_json()))))
    added = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(sizes[2:])]
    assert len(trained.provenance.history) == 13  # a line for training and for each request
    assert max(provenance for provenance, _ in added) - min(provenance for provenance, _ in added) <= 2
    assert max(abs(outcome) for _, outcome in added) < 200  # one line of history, and the digits of numbers
