"""Configurations, plans and results of commands print a few lines that agree with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import expunge
from expunge.evaluation import Score, Scores
from expunge.evaluation.predictions import Parts, Predictions
from expunge.experiments.scheduler.run import PlanRun
from expunge.models.inspect import Finding
from expunge.workflow.check import Check
from expunge.workflow.forget import ForgetResult
from expunge.workflow.output import RunPaths


def test_a_configuration_shows_what_differs_from_the_defaults(tmp_path: Path) -> None:
    text = (
        "data: {source: digits}\nmodel: {name: mlp}\ntraining: {recipe: one-cycle, epochs: 3}\n"
        "forget: {by: subjects, subjects: [Ann]}\nmethod: {name: FT}\n"
    )
    (tmp_path / "run.yaml").write_text(text)
    config = expunge.load_config(tmp_path / "run.yaml", ["seed=7"])
    assert repr(config) == str(config)
    assert repr(config).split("\n") == [
        "RunConfig: mlp on digits, method FT, seed 7",
        "  data      source 'digits'",
        "  model     name 'mlp'",
        "  training  recipe 'one-cycle', epochs 3",
        "  forget    by 'subjects', subjects <1 item>",
        "  method    name 'FT'",
    ]


def test_results_of_commands_show_their_counts(tmp_path: Path) -> None:
    findings = (Finding("ok", "data", "read"), Finding("warning", "model", "m"), Finding("error", "method", "m"))
    assert repr(Check(findings)).split("\n") == [
        "Check: this would not run, 3 findings",
        "  errors    method",
        "  warnings  model",
    ]
    assert "  errors    none" in repr(Check(findings[:2]))
    run = PlanRun(3, 12, (("train mlp", "no memory"),), {"cells": [1] * 500}, Path("p.results.json"))
    assert repr(run).split("\n") == [
        "PlanRun: 12 stages, 3 computed in this run, 1 failed",
        "  failed   train mlp",
        "  results  p.results.json",
    ]
    outcome = {
        "request": {"records": 20, "record_ids": [f"r{number}" for number in range(20)]},
        "method": {"name": "FT", "guarantee": "empirical"},
        "cost": {
            "trained_records": 90,
            "forward_records": 0,
            "retain_records": 45,
            "seconds": 0.5,
            "optimiser_steps": 6,
        },
        "state": {"carried": ["mask", "normalisation"]},
    }
    scores = Scores((Score("TA", 90.0, "%", "higher", ""),))
    result = ForgetResult(RunPaths(Path("out"), ("a",)), outcome, scores.to_json(), {})
    assert repr(result).split("\n") == [
        "ForgetResult: FT, 20 records forgotten",
        "  guarantee  empirical",
        "  cost       2.00 passes over 45 retained records, 6 optimiser steps, 0.50 s",
        "  carried    mask, normalisation",
        "  scores     1: see text()",
        "  directory  out",
    ]
    assert "90.00 %" in result._repr_html_()


def test_predictions_show_how_many_there_are() -> None:
    some = Predictions(np.zeros((4, 2)), np.zeros(4, dtype=np.int64), np.asarray(["a", "b", "c", "d"]))
    assert repr(some) == "Predictions(logits=float64[4, 2], labels=int64[4], record_ids=<U1[4])"
    parts = Parts(some, some.take(np.arange(3)), some, some, some.take(np.arange(0)), ("no", "yes"))
    assert repr(parts) == "<Parts: 3 retain, 4 forget, 4 validation, 4 test, 0 non_members>"


def test_a_plan_shows_its_axes(tmp_path: Path) -> None:
    text = (
        "name: small\nbase:\n  data: {source: digits}\n  model: {name: mlp}\n  training: {recipe: one-cycle}\n"
        "  forget: {by: random, fraction: 0.1}\ngrid:\n  method: [{name: Retrain}, {name: FT}]\n  seed: [0, 1, 2]\n"
    )
    (tmp_path / "plan.yaml").write_text(text)
    plan = expunge.load_plan(tmp_path / "plan.yaml")
    lines = repr(plan).split("\n")
    assert lines[:3] == ["Plan: small, 6 cells", "  axes       method (2), seed (3)", "  reference  Retrain"]
    assert lines[-1] == f"  hash       {plan.hash[:12]}"
