"""What the stages of topology leakage make from their inputs: the requests and the shadow models of a game."""

from __future__ import annotations

from expunge.core.files import read_json
from expunge.core.request import ForgetRequest
from expunge.core.split import Split
from expunge.data import Records
from expunge.evaluation.leakage.games import ShadowGame, draw_shadow_game
from expunge.experiments.objects.request import make_request

from .registry import StageInputs
from .stage_inputs import read_ranking


def make_other_request(
    inputs: StageInputs, records: Records, split: Split, request: ForgetRequest
) -> ForgetRequest | None:
    """The other set of the game `two-requests`, selected from the records outside D_f; None in other games."""
    section = inputs.config["shadow_models"].get("other")
    if section is None:
        return None
    return make_request(section, records, request.apply(split), read_ranking(inputs))


def read_shadow_requests(inputs: StageInputs) -> tuple[ForgetRequest, ForgetRequest | None]:
    """The request of the stage `shadow_models`, and the other set or None."""
    body = read_json(inputs.directories["shadow_models"] / "request.json", "expunge.shadow_models", 1)
    other = body.get("other")
    return ForgetRequest.from_json(body["request"]), None if other is None else ForgetRequest.from_json(other)


def draw_stage_game(
    inputs: StageInputs, records: Records, split: Split, request: ForgetRequest, other: ForgetRequest | None
) -> ShadowGame:
    """The shadow models of a stage: what each is trained on, and what it forgets."""
    section = inputs.config["shadow_models"]
    settings = {key: section[key] for key in ("models", "initial", "game") if key in section}
    return draw_shadow_game(records, split, request, other=other, seed=inputs.config["seed"], **settings)
