"""Stage `forget`: run one method for one request on one model."""

from __future__ import annotations

from pathlib import Path

from expunge.core.files import write_json
from expunge.core.seeds import derive
from expunge.experiments.objects.method import make_method
from expunge.experiments.objects.request import read_stand_in
from expunge.methods.stand_in import forget_with_stand_in
from expunge.models import load_trained, write_trained
from expunge.training.context import Context

from .registry import StageInputs, register_stage
from .stage_inputs import hash_trained, make_stage_request, make_stage_runtime, read_stage_records


@register_stage("forget", version=1)
def run(inputs: StageInputs, out: Path) -> str:
    """Run the method, and save the unlearned model and the outcome.

    Raises:
        RequestError: the forget set is empty.
    """
    config = inputs.config
    records = read_stage_records(inputs)
    trained = load_trained(inputs.directories["trained"])
    request = make_stage_request(inputs, records, trained.split)
    method = make_method(config["method"], drop_unused=True)  # a configuration of one run was checked before
    context = Context(
        records=records,
        runtime=make_stage_runtime(inputs),
        seed=derive(config["seed"], "forget"),
        checkpoint=inputs.work_dir / "forget.safetensors",
        progress=inputs.progress,
    )
    stand_in = read_stand_in(
        config["forget"], inputs.data_dir, records, trained.split, request,
        expected=inputs.output_hashes.get("stand_in"),
    )  # fmt: skip
    if stand_in is None:
        outcome = method.forget(trained, request, context)
    else:
        outcome = forget_with_stand_in(method, trained, request, context, stand_in)
    write_trained(outcome.trained, out)
    write_json(out / "outcome.json", "expunge.outcome", 2, outcome.to_json())
    return hash_trained(outcome.trained)
