"""The commands of `expunge`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter

from expunge import __version__
from expunge.core.errors import printable
from expunge.core.trust import Trust, trusting

from .artefacts import init, purge
from .common import Json, Trusted
from .common import print_result as _print
from .common import read_config as _load_config
from .errors import flush_output, report_error

DEFAULT_STORE = ".expunge"

app = App(
    name="expunge",
    version=__version__,
    help="Make a trained classifier forget given training records, and compare it with a retrained one.",
    help_format="plaintext",
)
bench = App(name="bench", help="Run plans: parameter grids with claims, cached and resumable.")
app.command(bench)
app.command(init)
app.command(purge)

Config = Annotated[Path, Parameter(help="A YAML file (docs/tutorial.md).")]
Override = Annotated[str, Parameter(help="Keys of the configuration, as dotted.key=value.")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"], help="Directory for the results.")]
StoreDir = Annotated[str, Parameter(help="Completed stages: a folder, or a URL (s3://...); plans may share it.")]
Ids = Annotated[bool, Parameter(negative="", help="Print the record ids in the report; they are personal data.")]
Overwrite = Annotated[bool, Parameter(negative="", help="Replace the result of another method or request.")]
Scheduler = Annotated[str, Parameter(help="processes, dask, dask://HOST:PORT, ray, ray://HOST:PORT (docs/engines.md).")]
Workers = Annotated[int, Parameter(help="Number of processes; the cores are divided among them.")]


def _make_bar(title: str) -> Any:
    from expunge.experiments import PlanBar

    return PlanBar(title)


def _load_plan(plan: Path, overrides: Sequence[str], trust: Sequence[str]) -> Any:
    from expunge.core.trust import read_user_trust
    from expunge.experiments import load_plan

    return load_plan(plan, overrides, trust=read_user_trust(trust))


def _output_path(config: Any, path: Path, output: Path | None, name: str) -> Path:
    base = Path(config.output) if config.output else Path("runs") / path.stem
    return output if output is not None else base / name


@app.command
def demo(*, output: Output = None, as_json: Json = False) -> None:
    """Train, prune, forget and report on scikit-learn's digits, in about a minute."""
    from expunge.experiments import render_table
    from expunge.workflow import run_demo

    directory = output or Path("demo")
    with _make_bar("demo") as bar:
        results = run_demo(directory, reporter=bar)
    _print(results, f"{render_table(results)}\n\nreport: {directory / 'report.html'}", as_json)


@app.command
def train(
    config: Config, *overrides: Override, output: Output = None, store: StoreDir = DEFAULT_STORE,
    trust: Trusted = (), as_json: Json = False,
) -> None:  # fmt: skip
    """Train the original, dense model of a configuration."""
    _make_original(config, overrides, output, store, trust, as_json, pruned=False)


@app.command
def prune(
    config: Config, *overrides: Override, output: Output = None, store: StoreDir = DEFAULT_STORE,
    trust: Trusted = (), as_json: Json = False,
) -> None:  # fmt: skip
    """Prune the original model as configured in the section `sparsity`; train it first if it is not cached."""
    _make_original(config, overrides, output, store, trust, as_json, pruned=True)


def _make_original(
    config: Path, overrides: Sequence[str], output: Path | None, store: str, trust: Sequence[str], as_json: bool,
    *, pruned: bool,
) -> None:  # fmt: skip
    from expunge.workflow import make_original_model

    run = _load_config(config, overrides, trust)
    name = "pruned" if pruned else "trained"
    with _make_bar(name) as bar:
        paths = make_original_model(
            run, _output_path(run, config, output, name), pruned=pruned, store=store, reporter=bar
        )
    _print(paths.to_json(), f"{name} model: {paths.directory}", as_json)


@app.command
def forget(
    config: Config, *overrides: Override, output: Output = None, store: StoreDir = DEFAULT_STORE,
    ids: Ids = False, overwrite: Overwrite = False, trust: Trusted = (), as_json: Json = False,
) -> None:  # fmt: skip
    """Unlearn: write an unlearned model, its scores next to a retrained reference, and a report."""
    from expunge.workflow import forget as run_forget

    run = _load_config(config, [*overrides, *(["report.ids=true"] if ids else [])], trust)
    target = _output_path(run, config, output, "unlearned")
    with _make_bar("forget") as bar:
        result = run_forget(run, target, store=store, reporter=bar, overwrite=overwrite)
    _print(result.to_json(), result.text(), as_json)


@app.command
def evaluate(
    config: Config,
    *overrides: Override,
    model: Annotated[Path, Parameter(help="Directory of the unlearned model, written by `forget`.")],
    reference: Annotated[
        Path | None, Parameter(help="Directory of the retrained model, or its scores.json; default: no gaps.")
    ] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="Write the scores to this file.")] = None,
    trust: Trusted = (),
    as_json: Json = False,
) -> None:
    """Score an unlearned model again, for its own request."""
    from expunge.core.reading.file_names import check_format
    from expunge.workflow import rescore

    if output is not None:
        check_format(output, "JSON")
    run = _load_config(config, overrides, trust)
    scores = rescore(model, run, reference=reference)
    if output is not None:
        scores.save(output)
    _print(scores.to_json(), scores.text(), as_json)


@app.command
def certify(
    config: Config,
    *overrides: Override,
    model: Annotated[Path, Parameter(help="Directory of the patched model, written by `forget`.")],
    output: Output = None,
    inputs: Annotated[
        Path | None, Parameter(help="Also write the forgotten, retained and test records here, for the check.")
    ] = None,
    trust: Trusted = (),
    as_json: Json = False,
) -> None:
    """Write the certificate of a patched model (method `patch`), for expunge-check."""
    from expunge.workflow import certify as write_certificate

    run = _load_config(config, overrides, trust)
    found = write_certificate(model, run, _output_path(run, config, output, "certificate"), inputs=inputs)
    _print(found.to_json(), found.text(), as_json)


@app.command
def export(
    model: Annotated[Path, Parameter(help="Directory of the model, written by `train`, `prune` or `forget`.")],
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="The safetensors file; with hf, a folder.")],
    format: Annotated[
        Literal["dense", "torch-prune", "small", "hf"],
        Parameter(help="Dense with zeros; torch.nn.utils.prune names; pruned channels removed; a folder."),
    ] = "dense",
    backend: Annotated[
        Literal["slots", "torch-pruning"], Parameter(help="How channels are removed (format small).")
    ] = "slots",
    prefix: Annotated[
        str | None, Parameter(help="What the names begin with (model.); default: as in the imported file.")
    ] = None,
    trust: Trusted = (),
    as_json: Json = False,
) -> None:
    """Export a model as one safetensors file, or as a Hugging Face folder."""
    from expunge.core.trust import read_user_trust
    from expunge.workflow import export_model

    found = export_model(model, output, format=format, backend=backend, prefix=prefix, trust=read_user_trust(trust))
    _print(found.to_json(), found.text(), as_json)


@app.command
def check(
    config: Annotated[Path, Parameter(help="A configuration (docs/tutorial.md), or a plan (docs/plans.md).")],
    *overrides: Override,
    probe: Annotated[bool, Parameter(help="Time a few batches, to estimate what methods and stages cost.")] = True,
    store: StoreDir = DEFAULT_STORE, workers: Workers = 1,
    trust: Trusted = (), as_json: Json = False,
) -> int:  # fmt: skip
    """Check a configuration or a plan before anything runs: errors, methods that would work, time and memory."""
    from expunge.experiments import is_plan
    from expunge.workflow import check_plan_cells, check_run

    if is_plan(config):
        found = check_plan_cells(_load_plan(config, overrides, trust), store=store, workers=workers, probe=probe)
    else:
        found = check_run(_load_config(config, overrides, trust), costs=True, probe=probe, store=store)
    _print(found.to_json(), found.text(), as_json)
    return found.exit_code


@app.command
def methods(
    *names: Annotated[str, Parameter(help="Only these; default: all.")],
    style: Annotated[Literal["text", "markdown"], Parameter(help="markdown: the page docs/methods.md.")] = "text",
    as_json: Json = False,
) -> None:  # fmt: skip
    """List the methods: guarantee, source, options."""
    from expunge.core.registry import METHODS
    from expunge.core.registry.tables import choose_rows
    from expunge.methods import method_table
    from expunge.methods.docs_page import method_table_markdown

    rows = choose_rows(method_table(), names, METHODS)
    lines = []
    for row in rows:
        options = ", ".join(f"{k}={v}" for k, v in row["options"].items())
        lines += [f"{row['name']}  [{row['guarantee']}: {row['meaning']}]", f"    {row['summary']}"]
        lines += [f"    citation: {row['citation']}", f"    options: {options}", ""]
    text = method_table_markdown() if style == "markdown" else "\n".join(lines)
    _print(rows, text.rstrip(), as_json)


@app.command
def scores(
    *names: Annotated[str, Parameter(help="Only these; default: all. The table of style markdown has all.")],
    style: Annotated[Literal["text", "markdown"], Parameter(help="markdown: the table of docs/scores.md.")] = "text",
    as_json: Json = False,
) -> None:  # fmt: skip
    """List the scores: unit, direction, what they need, meaning."""
    from expunge.core.registry import SCORES
    from expunge.core.registry.tables import choose_rows
    from expunge.evaluation.registry.docs_page import list_scores, score_table_markdown, score_table_text

    rows = choose_rows(list_scores(), names, SCORES)
    text = score_table_markdown() if style == "markdown" else score_table_text(rows)
    _print(rows, text.rstrip(), as_json)


@bench.command(name="run")
def bench_run(
    plan: Annotated[Path, Parameter(help="A plan (docs/plans.md).")], *overrides: Override,
    store: StoreDir = DEFAULT_STORE, workers: Workers = 1, scheduler: Scheduler = "processes",
    results: Annotated[Path | None, Parameter(help="The result file; default: next to the plan.")] = None,
    only: Annotated[list[str] | None, Parameter(help="axis=label: run only these cells; may be repeated.")] = None,
    trust: Trusted = (), as_json: Json = False,
) -> int:  # fmt: skip
    """Run the stages of a plan that are not in the store, and write the result file next to the plan."""
    from expunge.experiments import render_table, run_plan
    from expunge.experiments.config.selections import read_selection

    loaded = _load_plan(plan, overrides, trust)
    with _make_bar(loaded.name) as bar:
        run = run_plan(
            loaded, store=store, workers=workers, scheduler=scheduler, results=results, reporter=bar,
            only=read_selection(only or ()),
        )  # fmt: skip
    text = f"{render_table(run.results)}\n\n{run.computed} of {run.total} stages computed; results: {run.path}"
    for label, message in run.failures:
        text += f"\nfailed: {label}: {message}"
    _print(run.results, text, as_json)
    return run.exit_code


@bench.command(name="status")
def bench_status(
    plan: Path, *overrides: Override, store: StoreDir = DEFAULT_STORE, workers: Workers = 1,
    trust: Trusted = (), as_json: Json = False,
    explain: Annotated[bool, Parameter(negative="", help="Explain why stages would run.")] = False,
) -> None:  # fmt: skip
    """Show which stages and cells of a plan are finished, and forecast time and memory of the others."""
    from expunge.experiments import explain_plan, get_plan_status

    loaded = _load_plan(plan, overrides, trust)
    status = get_plan_status(loaded, store=store, workers=workers)
    reasons = explain_plan(loaded, store=store) if explain else []
    _print({**status.to_json(), "explain": reasons}, "\n".join([status.render(), *reasons]), as_json)


@bench.command(name="tune")
def bench_tune(
    plan: Annotated[Path, Parameter(help="A plan (docs/plans.md).")], *overrides: Override,
    trials: Annotated[int, Parameter(help="Trials of each method; the first has the defaults.")] = 10,
    seed: Annotated[int, Parameter(help="Of the draws and of the proxy requests.")] = 0,
    sampler: Annotated[str, Parameter(help="random, optuna:tpe or optuna:random.")] = "random",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="The file of the search.")] = None,
    store: StoreDir = DEFAULT_STORE, workers: Workers = 1, scheduler: Scheduler = "processes",
    trust: Trusted = (), as_json: Json = False,
) -> None:  # fmt: skip
    """Search for options of the methods, with equally many trials for each, on a proxy of every request."""
    from expunge.core.trust import read_user_trust
    from expunge.experiments import tune_plan

    with _make_bar(f"tune {plan.stem}") as bar:
        run = tune_plan(
            plan, overrides, store=store, trials=trials, seed=seed, sampler=sampler, output=output, workers=workers,
            scheduler=scheduler,
            reporter=bar, trust=read_user_trust(trust),
        )  # fmt: skip
    _print(run.body, f"{run.text()}\n\n{run.computed} stages computed; the search: {run.path}", as_json)


@bench.command(name="table")
def bench_table(
    plan: Annotated[Path, Parameter(help="A plan with its result file next to it, or a result file.")],
    *, style: Annotated[str, Parameter(help="text or markdown.")] = "text", as_json: Json = False,
) -> None:  # fmt: skip
    """Print the tables and claims of a result file."""
    from expunge.experiments import load_plan, read_results, render_table

    path = plan if plan.suffix == ".json" else load_plan(plan).results_path
    results = read_results(path)
    _print(results, render_table(results, style=style), as_json)


@bench.command(name="figure")
def bench_figure(
    plan: Annotated[Path, Parameter(help="A plan with its result file next to it, or a result file.")],
    *, score: Annotated[str, Parameter(help="A score by name, or gap:NAME.")],
    output: Annotated[Path, Parameter(help="The SVG file.")],
    only: Annotated[list[str] | None, Parameter(help="axis=label: show only these labels; may be repeated.")] = None,
    curves: Annotated[bool, Parameter(negative="", help="Lines over passes: `curves` of the plan.")] = False,
    over: Annotated[str, Parameter(help="Lines over the labels of an axis, such as sparsity.")] = "",
    log: Annotated[list[Literal["x", "y"]] | None, Parameter(help="A logarithmic axis of the lines.")] = None,
    ranks: Annotated[bool, Parameter(negative="", help="Mean ranks of the methods, with passes beside.")] = False,
    also: Annotated[list[Path] | None, Parameter(help="A further result file for the ranks; may be repeated.")] = None,
) -> None:  # fmt: skip
    """Draw one score of every method, seed by seed, as lines over passes or an axis, or as ranks, as an SVG file."""
    from expunge.core.errors import ConfigError
    from expunge.core.files import write_text
    from expunge.core.reading.file_names import check_format
    from expunge.experiments import load_plan, read_results, render_curves, render_figure, render_ranks, render_sweep
    from expunge.experiments.config.selections import read_selection

    check_format(output, "SVG")
    loaded = None if plan.suffix == ".json" else load_plan(plan)
    path = plan if loaded is None else loaded.results_path
    chosen = read_selection(only or ())
    parts = [path.name, f"score={score}", *(f"{axis}={label}" for axis, labels in chosen.items() for label in labels)]
    results = read_results(path)
    if sum((curves, ranks, bool(over))) > 1:
        raise ConfigError("--curves, --over and --ranks are different figures", hint="choose one of them")
    if log and not (curves or over):
        raise ConfigError("--log is an option of --curves and --over", where="--log", hint="add --curves")
    if also and not ranks:
        raise ConfigError("--also is an option of --ranks", where="--also", hint="add --ranks")
    if ranks:
        comment = "; ".join([*parts, "ranks", *(f"also={other.name}" for other in also or ())])
        files = [results, *map(read_results, also or ())]
        svg = render_ranks(files, score, only=chosen, comment=comment)
    elif curves:
        lines = None if loaded is None else loaded.curves
        comment = "; ".join([*parts, "curves", *(f"log={axis}" for axis in log or ())])
        svg = render_curves(results, score, curves=lines, only=chosen, log=log or (), comment=comment)
    elif over:
        comment = "; ".join([*parts, f"over={over}", *(f"log={axis}" for axis in log or ())])
        svg = render_sweep(results, score, over, only=chosen, log=log or (), comment=comment)
    else:
        svg = render_figure(results, score, only=chosen, comment="; ".join(parts))
    write_text(output, printable(svg))
    _print({"figure": str(output)}, f"{output}", False)


def run(arguments: Sequence[str] | None = None, command: Callable[..., Any] | None = None) -> int:
    """Run a command and return its exit code; errors are printed on standard error (see `report_error`).

    Args:
        arguments: the command line after `expunge`; None: `sys.argv[1:]`.
        command: the cyclopts application; None: that of `expunge`.
    """
    try:
        with trusting(Trust(command_line=True)):  # inside a command no name counts as given by a Python caller
            found = (command or app)(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return found if isinstance(found, int) else 0
    except cyclopts.CycloptsError as error:
        print(f"expunge: {printable(str(error))}", file=sys.stderr)
        return 2
    except BaseException as error:  # SystemExit too: custom code that ends the process is an error
        code = report_error(error)
        flush_output()
        return code
