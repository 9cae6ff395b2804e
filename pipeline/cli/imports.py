"""`sparring import`: responses or pairs that exist become artifacts of the store, where a run can enter.

    sparring import pairs train.parquet policy=qwen2.5-0.5b prompts=ultrafeedback
    sparring run entry.pairs=pairs-1f2e3d4c policy=qwen2.5-0.5b prompts=ultrafeedback

The overrides are those of the run: its policy tokenizes, and its held-out prompts are left out, for which the step
`prompts` is made first where it is missing. An import is a plan like any other, executed in this process without Ray:
a kill costs the part in flight, the same import again does nothing.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from sparring.pipeline.cli import options
from sparring.pipeline.cli.prepare import arms_of, check_places, plan_of, prepare
from sparring.pipeline.config.model import Config
from sparring.pipeline.execution.executor import execute_alone
from sparring.pipeline.planning.iteration import build_import
from sparring.pipeline.planning.plan import Plan, Step, inspect
from sparring.pipeline.runs.references import IMPORTS
from sparring.pipeline.sources import Sources
from sparring.pipeline.store.files import make_folder
from sparring.pipeline.store.manifest import Manifest, find
from sparring.pipeline.store.remote import opened
from sparring.stages.plain import counts_text, printable
from sparring.stages.sample.config import ImportSettings


def run(
    what: Annotated[
        Literal["responses", "pairs"],
        typer.Argument(help="what each row has: responses to a prompt, or a pair of them"),
    ],
    file: Annotated[Path, typer.Argument(parser=options.place, help="a file or a folder; its columns tell the layout")],
    overrides: Annotated[list[str], options.words("overrides of the run that will use it: policy, prompts")],
    prompt_column: options.PromptColumn = None,
    split: options.Split = None,
    cut: Annotated[bool, options.flag("--cut", "the responses were cut: append no end-of-turn token")] = False,
    drop_empty: options.DropEmpty = False,
) -> None:
    """Bring existing responses or pairs into the store.

    Prints what was imported and dropped, and the command of a run that uses it.

    Example: sparring import pairs train.parquet policy=qwen2.5-0.5b
    """
    from sparring.stages.sample.imported import check, paths_of

    begun = time.monotonic()
    planned = partial(_planned, what, file, prompt_column, split, cut, drop_empty)
    arms = arms_of(overrides, multirun=False)
    run_plan = plan_of(arms)
    check_places(run_plan)
    store = opened(run_plan.configs[""].paths.store)
    plan = planned(run_plan)
    if all(state.kind == "hit" for state in inspect(plan, store).values()):
        print(f"nothing to do: all of it is in {store} ({time.monotonic() - begun:.1f} s)")
    else:
        step = _step(plan, "sample")
        check(paths_of(plan.externals[step.inputs["source"]]), step.settings)  # before anything is fetched or written
        run_plan = prepare(run_plan, arms)
        plan = planned(run_plan)
        _check_with_policy(plan, store)
        make_folder("paths.store", store)
        execute_alone(plan, store, "import", store / IMPORTS)
    made = {step.spec.kind: find(store, step.name)[1] for step in plan.steps.values()}
    print(printable("\n".join(described(made, plan.configs[""], overrides))))


def _planned(
    what: str, file: Path, prompt_column: str | None, split: str | None, cut: bool, drop_empty: bool, run_plan: Plan
) -> Plan:
    from sparring.stages.sample.layouts import recognise

    config, sources = run_plan.configs[""], Sources(run_plan.pins)
    source = sources.imported(file, split)
    layout = recognise([source.root / one.path for one in source.files], what, prompt_column)
    settings = ImportSettings(
        layout=layout.name,
        prompt=layout.prompt,
        columns=layout.columns,
        cut=cut,
        on_empty="drop" if drop_empty else "refuse",
        max_tokens=config.prompts.max_tokens,
        shard_rows=config.sampler.shard_rows,
    )
    return build_import(config, sources, source, settings)


def _check_with_policy(plan: Plan, store: Path) -> None:
    """DataError where no row is left that is not held out and fits; nothing is written."""
    from sparring.stages.chat import load_chat
    from sparring.stages.sample.imported import check, paths_of
    from sparring.stages.sample.prompts import heldout_ids

    step, prompts = _step(plan, "sample"), _step(plan, "prompts")
    if inspect(plan, store)[prompts.fingerprint].kind == "hit":
        artifact, manifest = find(store, prompts.name)
        heldout = frozenset(artifact.as_input("prompts", manifest).table(0, ["id"])["id"].to_pylist())
    else:
        inputs = {role: plan.externals[name] for role, name in prompts.inputs.items()}
        heldout = heldout_ids(inputs, prompts.settings)
    chat = load_chat(plan.externals[step.inputs["policy"]].folder())
    check(paths_of(plan.externals[step.inputs["source"]]), step.settings, heldout, chat)


def _step(plan: Plan, kind: str) -> Step:
    return next(step for step in plan.steps.values() if step.spec.kind == kind)


def described(made: dict[str, Manifest], config: Config, overrides: Sequence[str]) -> list[str]:
    """Return the lines that an import ends with: names, counts, drops, what was assumed, the next command."""
    samples, pairs = made["sample"], made.get("pairs")
    summary, rows = samples.summary, samples.rows
    given = summary["provenance"]
    lines = [
        f"{given['path']} ({given['layout']}): {rows['out']:,} of {rows['in']:,} rows{_dropped(samples)}",
        f"  {samples.name}: {summary['prompts']:,} prompts, {summary['responses']:,} responses "
        f"of {summary['length_mean']:.0f} tokens on average",
    ]
    if pairs:
        lines.append(f"  {pairs.name}: {pairs.rows['out']:,} pairs{_dropped(pairs)}")
    if summary["sequence_max"] > config.trainer.max_length:
        does = "cuts responses" if config.trainer.truncate == "keep_end" else "drops pairs"
        lines.append(
            f"  prompt + response: {summary['sequence_p95']:,.0f} tokens at the 95th percentile, "
            f"{summary['sequence_max']:,} at most; training {does} above trainer.max_length="
            f"{config.trainer.max_length}"
        )
    lines += [f"  assumed: {text}" for text in given["assumed"]]
    entry = f"entry.pairs={pairs.name}" if pairs else f"entry.samples={samples.name}"
    return [*lines, f"next: {shlex.join(['sparring', 'run', entry, *overrides])}"]


def _dropped(manifest: Manifest) -> str:
    dropped = counts_text(manifest.rows["dropped"])
    return f"; dropped: {dropped}" if dropped else ""
