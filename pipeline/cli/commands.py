"""What the commands of the command line do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.pipeline import config
from sparring.pipeline.cli import options
from sparring.pipeline.cli.options import RUNS, Multirun, Overrides, Redo, Run, Runs
from sparring.pipeline.config.model import Config, judges_of
from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.execution.events import Events
from sparring.pipeline.execution.executor import Executor, tidy_after_kill
from sparring.pipeline.planning import estimate
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.planning.placement import check_placement, this_machine
from sparring.pipeline.planning.plan import Plan, State, Step, explain, inspect
from sparring.pipeline.report.data import ArmReport, ReportData
from sparring.pipeline.report.terminal import print_comparisons, print_report
from sparring.pipeline.runs import run_history, run_record
from sparring.pipeline.runs.stop import Watch
from sparring.pipeline.sources import Sources, check_policy, hub, judges
from sparring.pipeline.sources.prompt_count import dealt_again
from sparring.pipeline.store.code_digest import other_code, redone
from sparring.pipeline.store.files import (
    LEASES,
    check_folder,
    check_target,
    existing,
    make_folder,
    write_target,
    write_text,
)
from sparring.pipeline.store.lease import Lease, LeaseHeld
from sparring.pipeline.store.manifest import MANIFEST, Artifact, Manifest, fingerprint_of
from sparring.pipeline.store.parts import damaged_part
from sparring.stages import digests, model_folder
from sparring.stages.errors import ConfigError, DataError, RuleFired, SparringError
from sparring.stages.plain import printable
from sparring.stages.sample import embedded
from sparring.stages.step import Input
from sparring.stages.train.files import checkpoint


def arms_of(overrides: Sequence[str], multirun: bool) -> dict[str, list[str]]:
    """Return arm -> overrides; the arm of a single run is ''."""
    chosen = config.detect_hardware(overrides, ray_cluster.gpu_count())
    return dict(config.expand(chosen)) if multirun else {"": list(chosen)}


def plan_of(arms: dict[str, list[str]], assume: bool = False, pins: Mapping[str, str] | None = None) -> Plan:
    """Return the one plan of all arms; with `assume` one to look at, even where the hub does not answer.

    pins: what revisions of the hub are already resolved to, beside those that the run wrote down.
    """
    configs = {arm: config.load(overrides) for arm, overrides in arms.items()}
    for key in ("run", "paths"):
        if len({str(getattr(c, key)) for c in configs.values()}) > 1:
            raise ConfigError(f"{key} must be the same for all arms of a multirun.")
    sources = Sources({**pins_of(next(iter(configs.values()))), **(pins or {})}, assume)
    for c in configs.values():
        check_models(c, sources)
    return replace(build(configs, sources), pins=sources.hub.pins, assumed=sources.hub.assumed)


def check_models(chosen: Config, sources: Sources) -> None:
    """Refuse a policy, an encoder or a judge that is here and cannot be used as configured."""
    check_policy(chosen, sources.policy(chosen.policy))
    encoder = sources.encoder(chosen.encoder)
    if chosen.encoder.source != "embedded" and encoder.files:
        model_folder.check_loaded(encoder.root)
    for key, judge in (("oracle", chosen.oracle), ("judge", chosen.judge)):
        judges.check_folders(key, judge, sources)


def check_places(plan: Plan) -> None:
    """ConfigError where a folder cannot be written that a run of the plan writes into; nothing is written."""
    first = _first(plan)
    check_folder("paths.store", Path(first.paths.store))
    check_folder("paths.runs", Path(first.paths.runs))
    for arm in plan.configs:
        check_folder("run.name", _arm_folder(plan, arm))
    cache = digests.cache_folder()
    needed = any(c.policy.source == "embedded" for c in plan.configs.values()) and not embedded.is_prepared()
    if needed or not existing(cache).is_dir():  # one that may only be read is enough otherwise
        check_folder("SPARRING_CACHE", cache)
    if any(source.wanted for source in plan.externals.values()) and find_spec("huggingface_hub"):
        hub.check_cache()


def pins_of(first: Config) -> dict[str, str]:
    """Return what the run wrote down of the hub's revisions when it began."""
    folder = Path(first.paths.runs) / first.run.name
    arms = [run_history.RunHistory.at(path.parent) for path in run_record.records(folder)]
    return {key: commit for arm in arms for key, commit in arm.pins.items()}


def _first(plan: Plan) -> Config:
    return next(iter(plan.configs.values()))


def _arm_folder(plan: Plan, arm: str) -> Path:
    first = _first(plan)
    return Path(first.paths.runs) / first.run.name / arm


def run(
    overrides: Overrides,
    redo: Redo,
    multirun: Multirun = False,
) -> None:
    """Make what is missing of N iterations.

    What is done already, by whatever run of this store, is not done again. The report is printed at the end.

    Example: sparring run iterations=3 run.name=myrun experiment=sppo
    """
    begun = time.monotonic()
    arms = arms_of(overrides, multirun)
    plan = plan_of(arms)
    first = _first(plan)
    store, folder = Path(first.paths.store), Path(first.paths.runs) / first.run.name
    check_places(plan)
    again = redone(plan, redo)
    states = inspect(plan, store, again)
    todo = any(state.kind != "hit" for state in states.values())
    if todo:
        check_installed(plan)
        check_here(plan, states)
        check_servers(plan, states)
        _check_disk(plan, states, store)
    make_folder("paths.store", store)
    make_folder("paths.runs", Path(first.paths.runs))
    with ExitStack() as held:
        for arm in arms:
            held.enter_context(_run_lease(_arm_folder(plan, arm)))
        if todo:  # first: what stops here leaves the run as it was
            plan = prepare(plan, arms)
            _check_disk(plan, states, store)
        for arm, overrides in arms.items():
            _begin(plan, arm, overrides)
        if not todo:
            _link_all(plan, store, states)
            _print_other_code(plan, states)
            print(f"nothing to do: all {len(states)} steps are hits ({time.monotonic() - begun:.1f} s)")
        else:
            _execute(plan, store, folder, again)
    for history in run_history.recorded(Path(first.paths.runs), first.run.name):
        if history.arm in arms:
            print_report(ArmReport.of(history), _console())
    if text := _onward(plan, store):
        print(text)


ENOUGH = 3
"""Iterations of the starter prompts: one alone changes little."""


def _onward(plan: Plan, store: Path) -> str:
    """Return what is said after fewer iterations of the starter prompts: what it takes to go on."""
    first = _first(plan)
    if first.prompts.source != "starter" or first.iterations >= ENOUGH:
        return ""
    configs = {arm: replace(one, iterations=ENOUGH) for arm, one in plan.configs.items()}
    longer = build(configs, Sources(plan.pins))
    more = estimate.Estimate(longer, estimate.manifests(store)).total(inspect(longer, store))
    return (
        f"Few iterations on few prompts change little: iterations={ENOUGH} (make iter N={ENOUGH}) goes on from here, "
        f"about {more.seconds / 60:.0f} minutes."
    )


def check_installed(plan: Plan) -> None:
    """DataError where packages are missing that a run needs: the base dependencies are enough to plan and to report."""
    missing = [name for name in ("ray", "torch", "transformers") if find_spec(name) is None]
    if missing:
        raise DataError(
            f"{', '.join(missing)}: not installed, and a run needs them; `make setup` installs all in a checkout, "
            "else pip install 'sparring[cpu]' (or [cuda])."
        )
    if any(
        source.role == "encoder" and source.root == Path() and not source.wanted for source in plan.externals.values()
    ):
        embedded.encoder_folder()  # says that its package is not installed


def check_here(plan: Plan, states: dict[str, State]) -> None:
    """ConfigError where what is to do can never run: no cluster answers, or this machine cannot hold its workers."""
    todo = [step for name, step in plan.steps.items() if states[name].kind != "hit"]
    if todo and ray_cluster.joined():
        ray_cluster.check_address(os.environ["RAY_ADDRESS"])
    elif todo:
        check_placement(todo, this_machine(), "this machine", alone=True)


def check_servers(plan: Plan, states: Mapping[str, State]) -> None:
    """ConfigError where a step to do asks servers of which none answers."""
    todo = {plan.steps[name].spec.kind for name, state in states.items() if state.kind != "hit"}
    for chosen in plan.configs.values():
        if "sample" in todo and chosen.sampler.engine == "server":
            ray_cluster.check_servers("sampler.urls", chosen.sampler.urls)
        for key, judge in (*judges_of("oracle", chosen.oracle), *judges_of("judge", chosen.judge)):
            if "score" in todo and judge.urls:
                ray_cluster.check_servers(f"{key}.urls", judge.urls)


def _console() -> Console:
    """Return what tables are printed to: as wide as COLUMNS or the terminal, 160 where it is a pipe or a file."""
    columns = os.environ.get("COLUMNS", "")
    wide = int(columns) if columns.isdecimal() else 0
    return Console(width=wide or (shutil.get_terminal_size().columns if sys.stdout.isatty() else 160))


def _run_lease(folder: Path) -> Lease:
    lease = Lease(folder / ".lease.json", f"run {folder.name}")
    try:
        return lease.acquire(wait=False, waiting=partial(_say_held, folder))
    except LeaseHeld as error:
        raise LeaseHeld(
            f"{folder} is already being driven by {error}. Wait for it, stop it, or choose another run.name."
        ) from None


def _say_held(folder: Path, holder: str) -> None:
    print(printable(f"{folder} is held by {holder}"), file=sys.stderr)


def _begin(plan: Plan, arm: str, overrides: Sequence[str]) -> None:
    planned = {(use.iteration, use.label): step.fingerprint for use, step in plan.arm(arm)}
    resolved = plan.configs[arm]
    folder, entered = _arm_folder(plan, arm), [entry for entry in plan.entries if entry.arm == arm]
    planned |= {(1, entry.label): entry.manifest.fingerprint for entry in entered}
    run_record.begin(folder, planned, config.render(resolved), overrides, resolved.paths.store, plan.pins)
    for entry in entered:
        run_record.note(folder, Path(resolved.paths.store), (1, entry.label), entry.name, entry.manifest)


def prepare(plan: Plan, arms: dict[str, list[str]]) -> Plan:
    """Have the policy and the prompts here before anything starts; what was fetched is looked at in a new plan."""
    return plan_of(arms, pins=plan.pins) if fetch(plan) else plan


def fetch(plan: Plan) -> bool:
    """Have here what a plan takes from outside: the embedded policy, the hub's files; say whether it was not."""
    prepared = any(c.policy.source == "embedded" for c in plan.configs.values()) and not embedded.is_prepared()
    if prepared:
        print("preparing the embedded policy (once, about half a minute)", file=sys.stderr)
        done = subprocess.run([sys.executable, "-m", "sparring.stages.sample.embedded"], check=False)
        if done.returncode:
            raise DataError("the embedded policy could not be prepared (see above); run `make setup`.")
    return download(plan.externals.values()) or prepared


def download(inputs: Iterable[Input]) -> bool:
    """Fetch what is still to be had from the hub; say whether anything was."""
    missing = [source.wanted for source in inputs if source.wanted]
    for kind, repo, commit in missing:
        print(f"downloading the {kind} {repo} at {commit[:12]} (once)", file=sys.stderr)
        hub.download(kind, repo, commit)
    return bool(missing)


def _check_disk(plan: Plan, states: dict[str, State], store: Path) -> None:
    need = estimate.total(plan, states, []).peak_bytes
    free = shutil.disk_usage(existing(store)).free
    if free < need:
        raise DataError(
            f"{store}: {free / 2**30:.1f} GiB are free, this plan needs about {need / 2**30:.1f} GiB at its peak. "
            "Free space, or set paths.store to another disk."
        )


def _execute(plan: Plan, store: Path, folder: Path, redo: frozenset[str]) -> None:
    events = Events(folder / "events.jsonl")
    states = inspect(plan, store, redo)
    todo = sum(state.kind != "hit" for state in states.values())
    events(
        "message",
        text=f"{folder}: {len(plan.steps)} steps, {todo} to do; events in {folder / 'events.jsonl'}",
    )
    for line in _redealt(plan, states):
        events("message", text=line)
    if differs := other_code(plan, states):
        events("message", text=str(differs))
    watch = Watch(plan, folder, store, partial(_say, events))
    try:
        Executor(
            plan=plan,
            store=store,
            run=folder.name,
            scratch=folder / "logs",
            events=events,
            on_done=partial(_done, plan, store, watch),
            gpus=ray_cluster.gpu_count(),
            redo=redo,
            wanted=watch.wanted,
        ).execute()
        watch.end()
    except RuleFired as stop:
        events("stopped", text=str(stop))
        raise
    except SparringError as error:
        events("failed", text=str(error))
        raise
    except KeyboardInterrupt as stop:
        events("stopped", text=str(stop))
        raise
    finally:
        events.close()


def _say(events: Events, text: str) -> None:
    events("message", text=text)


def _done(plan: Plan, store: Path, watch: Watch, step: Step, manifest: Manifest) -> None:
    _link_step(plan, store, step, manifest)
    watch.look(step)


def _link_step(plan: Plan, store: Path, step: Step, manifest: Manifest) -> None:
    for use in step.uses:
        run_record.note(_arm_folder(plan, use.arm), store, (use.iteration, use.label), step.name, manifest)


def _link_all(plan: Plan, store: Path, states: dict[str, State]) -> None:
    for name, step in plan.steps.items():
        manifest = states[name].manifest
        assert manifest is not None
        artifact = Artifact(store, step.spec.kind, name)
        tidy_after_kill(artifact, manifest, "sparring", lambda holder: print(f"waiting for {holder}", file=sys.stderr))
        _link_step(plan, store, step, manifest)


def plan(
    overrides: Overrides,
    redo: Redo,
    multirun: Multirun = False,
    why: Annotated[bool, options.flag("--why", "say how a step differs from the nearest artifact")] = False,
    resolved: Annotated[bool, options.flag("--config", "print the resolved configuration instead")] = False,
) -> None:
    """Show the steps and their cost.

    Example: sparring plan -m experiment=sppo,s_sppo --why
    """
    arms = arms_of(overrides, multirun)
    if resolved:
        for arm in arms.values():
            print(config.render(config.load(arm)))
        return
    plan = plan_of(arms, assume=True)
    check_places(plan)
    _print_plan(plan, why, redone(plan, redo))


def status(
    run: Run = "default",
    why: Annotated[bool, options.flag("--why", "say why a step is not done")] = False,
    runs: Runs = RUNS,
) -> None:
    """Show the steps of a run.

    They are those of the overrides that the run recorded when it began.

    Example: sparring status myrun --why
    """
    arms = run_history.recorded(runs, run)
    _print_plan(plan_of({one.arm: one.overrides for one in arms}), why, to_run=False)
    run_history.check_undamaged(arms)


def _print_other_code(plan: Plan, states: Mapping[str, State]) -> None:
    if differs := other_code(plan, states):
        print(differs)


FEW, MANY = 5, 20
"""Iterations whose every policy met, and whose every step, has a row of its own."""


def _print_plan(plan: Plan, why: bool, redo: frozenset[str] = frozenset(), to_run: bool = True) -> None:
    """Print a plan; to_run: refuse what can never run here, else say so."""
    store = Path(_first(plan).paths.store)
    states, known = inspect(plan, store, redo), estimate.manifests(store)
    expected = estimate.Estimate(plan, known)
    table = Table("iteration", "step", "artifact", "state", "tokens", "minutes", "why", box=None)
    for entry in plan.entries:
        table.add_row("1", entry.label, entry.name, "given", "", "", _origin(entry.manifest))
    rows: dict[tuple[int, str, str, str], list[tuple[int, Step]]] = {}
    for name, step in plan.steps.items():
        state, use = states[name], step.uses[0]
        reason = state.why
        if why and state.kind == "miss":
            near = [m for m in known if m.step == step.spec.kind and not m.imported]
            reason = "; ".join(explain(plan, step, near))
        crossed, _, other = use.label.partition("_vs")  # N^2 of them: those of an iteration share a row
        more = f" (+{len(step.uses) - 1} uses)" if len(step.uses) > 1 else ""
        label = f"{crossed}_vs…" if other and use.iteration > FEW else use.label + more
        key = (min(use.iteration, MANY + 1), label, state.kind, reason)
        rows.setdefault(key, []).append((use.iteration, step))
    for (_, label, kind, reason), listed in rows.items():
        iterations, steps = sorted({t for t, _ in listed}), [step for _, step in listed]
        costs = [expected.cost(step) for step in steps] if kind != "hit" else []
        tokens = sum(cost.tokens for cost in costs)
        table.add_row(
            "-".join(map(str, dict.fromkeys((iterations[0], iterations[-1])))),
            label,
            steps[0].name if len(steps) == 1 else f"{len(steps)} of them",
            kind,
            f"{tokens:,.0f}" if tokens else "",
            f"{sum(cost.seconds for cost in costs) / 60:.1f}" if costs else "",
            Text(printable(reason)),
        )
    console = _console()
    console.print(table)
    total = expected.total(states)
    todo = sum(state.kind != "hit" for state in states.values())
    for line in _redealt(plan, states):
        console.print(line, markup=False)
    console.print(
        f"{len(states)} steps, {todo} to do: about {total.tokens:,.0f} tokens, {total.seconds / 60:.1f} minutes, "
        f"{total.peak_bytes / 2**30:.1f} GiB of disk at the peak ({total.kept_bytes / 2**30:.1f} GiB kept)"
    )
    billed = estimate.price(_first(plan), total) if todo else None
    if billed:
        console.print(billed, highlight=False)
    _print_other_code(plan, states)
    for line in _of_the_hub(plan):
        console.print(line, markup=False, highlight=False)
    try:
        check_here(plan, states)
    except ConfigError as error:
        if (
            to_run and _first(plan).hardware.name in config.DETECTED
        ):  # the profiles of whatever machine they are used on
            raise
        console.print(f"to look at, not to run here: {error}", markup=False, highlight=False)


def _of_the_hub(plan: Plan) -> list[str]:
    wanted = [f"the {kind} {repo}" for kind, repo, _ in (s.wanted for s in plan.externals.values() if s.wanted)]
    lines = [f"to be downloaded, and not in these figures: {', '.join(wanted)}"] if wanted else []
    if plan.assumed:
        lines.append(f"estimated as if nothing were made of it yet, since the hub does not answer: {plan.assumed[0]}")
    return lines


def _redealt(plan: Plan, states: Mapping[str, State]) -> list[str]:
    """Return a line for every arm that plays on a prompt more than once."""
    lines = []
    for arm, chosen in plan.configs.items():
        made = (states[step.fingerprint].manifest for use, step in plan.arm(arm) if use.label == "prompts")
        counts = [manifest.summary["train"] for manifest in made if manifest and "train" in manifest.summary]
        lines.append(dealt_again(chosen, counts[0] if counts else plan.train_prompts.get(arm)))
    return list(dict.fromkeys(filter(None, lines)))


def _origin(manifest: Manifest) -> str:
    return f"imported from {manifest.summary['provenance']['path']}" if manifest.imported else "of another run"


def report(
    run: Annotated[list[str], options.words("runs, or arms of them, that are compared with the first", "RUN")],
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
    shown, figures = page(data, details_of(arms)), as_json(data)
    for arm in data.arms:
        print_report(arm, _console(), panel=True)
    print_comparisons(data.comparisons, _console())
    if to:
        write_target(to, figures)
    path = runs / names[0] / "report.html"
    write_text(path, shown)
    print(printable(str(path)))


def inspect_prompt(
    run: Run = "default",
    iteration: Annotated[int | None, options.value("T", "the iteration (default: the last one)", "--iter")] = None,
    prompt: Annotated[
        str | None, options.value("ID", "the prompt, or how its id begins (default: a list of them)")
    ] = None,
    full: Annotated[bool, options.flag("--full", "print responses whole")] = False,
    runs: Runs = RUNS,
) -> None:
    """Show one prompt: responses, who beats whom, gate, pair.

    Example: sparring inspect myrun --iter 2 --prompt 1f2e
    """
    from sparring.pipeline.report.inspect import print_list, print_prompt
    from sparring.pipeline.report.prompts import AnnotatedIteration

    history = run_history.open_run(runs, run)
    found, console = AnnotatedIteration.of(history, iteration), _console()
    if prompt:
        print_prompt(found, prompt, full, console)
    else:
        print_list(found, console)


def verify(store: Annotated[Path, options.path("FOLDER", "the store (paths.store)", "--store")] = Path("store")) -> int:
    """Re-hash every file of the store; undo what is corrupt.

    The next run makes again what is undone.

    Example: sparring verify --store /data/store
    """
    if not store.is_dir():
        raise DataError(f"--store {store}: there is no such folder; name the store (paths.store).")
    bad = 0
    paths = sorted(p for p in store.glob("*-????????") if p.is_dir())
    if not paths and not (store / LEASES).is_dir():
        raise DataError(f"--store {store}: holds no artifacts; name the store (paths.store).")
    for path in paths:
        kind, _, _ = path.name.rpartition("-")
        bad += _verify_one(store, kind, path) if (path / MANIFEST).exists() else _verify_unfinished(path)
    print(f"{store}: {len(paths)} artifacts, {bad} corrupt")
    return 2 if bad else 0


def _verify_unfinished(path: Path) -> bool:
    """Say what of an unfinished step is there; the next run leaves out what is damaged by itself."""
    checkpoints, parts = sorted(path.glob("checkpoints.*/step-*")), sorted(path.glob("part-*.json"))
    damaged = {item.name: checkpoint.damage(item) for item in checkpoints}
    damaged |= {item.name: damaged_part(item) for item in parts}
    bad = {name: what for name, what in damaged.items() if what}
    print(f"{path.name}: not finished; {len(parts)} shards and {len(checkpoints)} checkpoints, {len(bad)} corrupt")
    for name, what in bad.items():
        print(printable(f"{path.name}/{name}: {what}; the next run does not go on from it"))
    return bool(bad)


def _verify_one(store: Path, kind: str, path: Path) -> bool:
    artifact = Artifact(store, kind, fingerprint_of(path / MANIFEST))
    artifact.path, artifact.lease = path, store / LEASES / f"{path.name}.json"
    if not _problems(artifact):
        return False
    with Lease(artifact.lease, "verify").acquire(wait=True, waiting=partial(_say_held, path)):
        problems = _problems(artifact)  # again: whoever held the lease may have made it anew
        for problem in problems:
            print(printable(f"{path.name}: {problem}; undone, the next run (or import) makes it again"))
        if problems:
            artifact.set_aside()
    return bool(problems)


def _problems(artifact: Artifact) -> list[str]:
    try:
        manifest = artifact.manifest()
    except DataError as error:
        return [str(error)]
    return artifact.corrupt_files(manifest) if manifest else []


def doctor(overrides: Annotated[list[str], options.words("those of the run, e.g. hardware=cpu")]) -> int:
    """Check what a run needs, list what is optional.

    The exit code is 1 when something is wrong.

    Example: sparring doctor hardware=cpu
    """
    from sparring.pipeline.cli.doctor import MARKS, checks

    chosen = config.load(config.detect_hardware(overrides, ray_cluster.gpu_count()))
    bad = 0
    for good, name, text in checks(chosen):
        bad += good is False
        print(printable(f"{MARKS[good]} {name}: {text}"))
    return 1 if bad else 0
