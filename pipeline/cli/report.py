"""`sparring report` and `sparring inspect`: what a run has made, as a whole and prompt by prompt."""

from __future__ import annotations

from typing import Annotated

from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Run, Runs
from sparring.pipeline.report.data import ReportData
from sparring.pipeline.report.terminal import print_comparisons, print_report, stdout_console
from sparring.pipeline.runs import run_history
from sparring.pipeline.store.files import check_target, write_target, write_text
from sparring.stages.plain import printable


def report(
    run: Annotated[list[str], options.words("runs or arms; all are compared with the first one", "RUN")],
    to: options.Json = None,
    runs: Runs = RUNS,
) -> None:
    """Print the table of runs, and write them as one HTML file.

    All is read before anything is printed or written: an artifact that is damaged stops it.

    Example: sparring report myrun another --json figures.json
    """
    from sparring.pipeline.report.as_json import as_json
    from sparring.pipeline.report.details import details_of
    from sparring.pipeline.report.html.page import page

    names = run or ["default"]
    if to:
        check_target(to, "--json")
    arms = run_history.open_arms(runs, names)
    data = ReportData.of(arms)
    html, figures = page(data, details_of(arms)), as_json(data)
    for arm in data.arms:
        print_report(arm, stdout_console(), panel=True)
    print_comparisons(data.comparisons, stdout_console())
    if to:
        write_target(to, figures)
    path = runs / names[0] / "report.html"
    write_text(path, html)
    print(printable(str(path)))


def inspect_prompt(
    run: Run = "default",
    iteration: Annotated[int | None, options.value("T", "which iteration (default: the last one)", "--iter")] = None,
    prompt: Annotated[
        str | None, options.value("ID", "id of a prompt, or how it begins (default: list the prompts)")
    ] = None,
    full: Annotated[bool, options.flag("--full", "print whole responses")] = False,
    runs: Runs = RUNS,
) -> None:
    """Show one prompt: responses, who beats whom, gate, pair.

    Example: sparring inspect myrun --iter 2 --prompt 1f2e
    """
    from sparring.pipeline.report.inspect import print_list, print_prompt
    from sparring.pipeline.report.prompts import AnnotatedIteration

    history = run_history.open_run(runs, run)
    annotated = AnnotatedIteration.of(history, iteration)
    if prompt:
        print_prompt(annotated, prompt, full, stdout_console())
    else:
        print_list(annotated, stdout_console())
