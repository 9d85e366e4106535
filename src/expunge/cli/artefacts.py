"""The commands `init` and `purge`: what a user has, and what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .common import Json, Trusted, print_result, read_config


def init(
    paths: Annotated[tuple[Path, ...], Parameter(help="Data, weights, a split.json, a list of ids; in any order.")],
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="The YAML file.")] = Path("run.yaml"),
    as_json: Json = False,
) -> None:
    """Write a configuration for the data and the model that you have; an existing file is never replaced."""
    from expunge.workflow.infer import write_configuration

    draft = write_configuration(paths, output)
    print_result(draft.to_json(), draft.text(), as_json)


def purge(
    paths: Annotated[tuple[Path, ...], Parameter(help="Model directories, recordings, further stores, reports.")] = (),
    *,
    ids: Annotated[Path | None, Parameter(help="A file of record ids.")] = None,
    subjects: Annotated[Path | None, Parameter(help="A file of subject ids; needs --config.")] = None,
    config: Annotated[Path | None, Parameter(help="A configuration, whose data has the subjects.")] = None,
    store: Annotated[str | None, Parameter(help="The store of finished stages, a folder.")] = None,
    delete: Annotated[bool, Parameter(negative="", help="Delete what was found; default: only list it.")] = False,
    trust: Trusted = (),
    as_json: Json = False,
) -> int:
    """List every stored artefact that saw given records, and delete them.

    Exit codes: 0 nothing is left; 3 something that --delete deletes is left; 4 only what you have to judge is left
    (unlearned models, files that name records, unknown ones); 2 bad input; 130 interrupted: run it again.
    """
    from expunge.workflow.purge import find_artefacts, read_purge_ids
    from expunge.workflow.purge import purge as run_purge

    loaded = None if config is None else read_config(config, (), trust)
    wanted = read_purge_ids(ids=ids, subjects=subjects, config=loaded)
    found = (run_purge if delete else find_artefacts)(wanted, store=store, paths=paths)
    print_result(found.to_json(), found.text(), as_json)
    return found.exit_code
