"""Retention: what is dropped, what stays, and what is made again because something needs it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.execution.events import Events
from sparring.pipeline.execution.executor import Executor, tidy_after_kill
from sparring.pipeline.planning.estimate import Estimate
from sparring.pipeline.planning.plan import Plan, Step, Use, inspect
from sparring.pipeline.planning.redo import redone
from sparring.pipeline.runs import run_record
from sparring.pipeline.runs.keep import Retention
from sparring.pipeline.runs.references import register
from sparring.pipeline.store.lease import Lease
from sparring.pipeline.store.manifest import Artifact, Manifest
from sparring.stages.step import Job, Part, Shard, StepSpec
from tests.pipeline.plans import finish, labels, plan_of
from tests.pipeline.report.fabricated import Run, duel
from tests.refusals import named

SHORT = ("evaluate.kl=false", "evaluate.crossplay=false")


def artifact(plan: Plan, store: Path, t: int, label: str) -> Artifact:
    step = plan.steps[labels(plan)[t, label]]
    return Artifact(store, step.spec.kind, step.fingerprint)


def dropped(plan: Plan, store: Path) -> set[tuple[int, str]]:
    return {key for key, name in labels(plan).items() if (inspect(plan, store)[name]).dropped}


def retention(plan: Plan, root: Path) -> tuple[Retention, list[str]]:
    said: list[str] = []
    return Retention(plan, root / "runs" / "mine", root / "store", said.append), said


def judged(step: Step, manifest: Manifest, rates: dict[int, float]) -> Manifest:
    rows = [{"judge": "second", "opponent": "base", "win_rate": rates.get(step.uses[0].iteration)}]
    return replace(manifest, summary={"comparisons": rows}) if step.spec.kind == "evaluate" else manifest


def run_through(plan: Plan, root: Path, rates: dict[int, float] | None = None) -> list[str]:
    """Finish every step in order; at no time is anything gone that a step to come reads."""
    kept, said = retention(plan, root)
    todo = dict(plan.steps)
    for name, step in plan.steps.items():
        manifest = finish(plan, step, root / "store")
        todo.pop(name)
        before = len(said)
        kept.step_done(step, judged(step, manifest, rates or {}))
        if len(said) == before:
            continue
        read = {source for one in todo.values() for source in one.inputs.values() if source in plan.steps}
        for source in read - todo.keys():
            one = Artifact(root / "store", plan.steps[source].spec.kind, source)
            made = one.manifest()
            assert made and not one.dropped(made), (step.name, one.path.name)
    return said


@pytest.fixture(autouse=True)
def place(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)


@pytest.mark.parametrize(
    ("choices", "rates", "gone"),
    [
        (["keep.policies=last", "keep.samples=last"], {}, [(1, "train"), (2, "train"), (1, "sample"), (2, "sample")]),
        (["keep.policies=best"], {1: 0.60, 2: 0.50, 3: 0.55}, [(2, "train")]),
        (["keep.policies=best"], {1: 0.50, 2: 0.50, 3: 0.55}, [(1, "train"), (2, "train")]),
        (["keep.policies=best"], {}, []),
    ],
)
def test_what_is_not_kept_is_dropped_and_stays_a_hit(
    tmp_path: Path, choices: list[str], rates: dict[int, float], gone: list[tuple[int, str]]
) -> None:
    plan = plan_of("iterations=3", *SHORT, *choices)
    said = run_through(plan, tmp_path, rates)
    assert dropped(plan, tmp_path / "store") == set(gone) and len(said) == len(gone)
    assert {state.kind for state in inspect(plan, tmp_path / "store").values()} == {"hit"}
    assert not list(artifact(plan, tmp_path / "store", 1, "evaluate").path.glob("dropped.json"))
    assert main(["verify", "--store", str(tmp_path / "store")]) == 0


def test_what_another_run_refers_to_stays(tmp_path: Path) -> None:
    plan = plan_of("iterations=2", *SHORT, "keep.policies=last")
    other = tmp_path / "elsewhere" / "runs" / "other"
    run_record.begin(other, {(1, "train"): labels(plan)[1, "train"]}, "", [], str(tmp_path / "store"), {})
    (tmp_path / "store").mkdir()
    register(tmp_path / "store", other.parent)
    assert run_through(plan, tmp_path) == []
    assert dropped(plan, tmp_path / "store") == set()
    shutil.rmtree(tmp_path / "elsewhere")
    kept, said = retention(plan, tmp_path)
    for step in plan.steps.values():  # what other runs need is not known any more
        made = Artifact(tmp_path / "store", step.spec.kind, step.fingerprint).manifest()
        assert made
        kept.step_done(step, made)
    assert dropped(plan, tmp_path / "store") == set() and len(said) == 1


def test_what_a_missing_step_reads_is_made_again_with_what_that_reads(tmp_path: Path) -> None:
    plan = plan_of("iterations=2", *SHORT, "keep.policies=last", "keep.samples=last")
    store = tmp_path / "store"
    run_through(plan, tmp_path)
    assert dropped(plan, store) == {(1, "train"), (1, "sample")}
    artifact(plan, store, 2, "sample").set_aside()
    states = {key: inspect(plan, store)[name] for key, name in labels(plan).items()}
    stale = {key for key, state in states.items() if state.kind == "stale" and not state.follows}
    assert stale == {(1, "train"), (1, "sample")}
    named(states[1, "train"].why, "keep.policies=last", artifact(plan, store, 2, "sample").path.name)
    assert states[1, "pairs"].kind == states[1, "evaluate"].kind == "hit"


def test_a_step_may_be_named_to_be_made_again(tmp_path: Path) -> None:
    plan = plan_of("iterations=2")
    name = labels(plan)[1, "train"]
    assert redone(plan, [plan.steps[name].name]) == {name}


def test_what_a_kill_left_beside_a_dropped_artifact_goes_and_it_stays_dropped(tmp_path: Path) -> None:
    plan = plan_of()
    step = next(iter(plan.steps.values()))
    manifest, one = finish(plan, step, tmp_path), Artifact(tmp_path, step.spec.kind, step.fingerprint)
    one.drop(manifest, [manifest.files[0].name], "keep.samples=last")
    (one.path / "left").touch()
    Lease(one.lease, "run").acquire(wait=False)._stop.set()
    one.lease.write_text(one.lease.read_text().replace('"pid": ', '"pid": 9'))
    tidy_after_kill(one, manifest, "run", lambda text: None)
    assert one.dropped(manifest) == "keep.samples=last" and not (one.path / "left").exists()
    assert not list(one.damaged_files(manifest, rehash=True))


def test_the_plan_counts_the_policies_that_are_there_at_once(tmp_path: Path) -> None:
    sizes = {}
    for kept in ("all", "best", "last"):
        plan = plan_of("iterations=5", f"keep.policies={kept}")
        total = Estimate(plan, []).total(inspect(plan, tmp_path))
        train = Estimate(plan, []).cost(plan.steps[labels(plan)[1, "train"]])
        sizes[kept] = (total.kept_bytes / train.kept_bytes, total.peak_bytes - total.kept_bytes)
    assert sizes["all"][0] - sizes["best"][0] == pytest.approx(2)
    assert sizes["all"][0] - sizes["last"][0] == pytest.approx(3)
    assert len({peak for _, peak in sizes.values()}) == 1


# By the executor

HERE = "tests.pipeline.test_keep"
ROWS, TRAINED, JUDGED = "a1" * 32, "b2" * 32, "c3" * 32


def shards(job: Job) -> list[Shard]:
    """One shard."""
    return [Shard(index=0)]


class Worker:
    """Counts up from what it reads."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, shard: Shard) -> Part:
        read = [source.table(0)["x"].to_pylist()[0] for source in self.job.inputs.values()]
        return Part(table=pa.table({"x": [sum(read) + 1]}), rows_in=1)


def summed(job: Job, tables: Iterator[pa.Table], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Nothing."""
    return {}


def chain() -> Plan:
    """Three steps, each of which reads the one before."""
    steps = {}
    for kind, name, inputs in (
        ("sample", ROWS, {}),
        ("train", TRAINED, {"rows": ROWS}),
        ("pairs", JUDGED, {"of": TRAINED}),
    ):
        spec = StepSpec(
            kind=kind,
            version=1,
            pool="in_process",
            worker=f"{HERE}:Worker",
            shards=f"{HERE}:shards",
            finish=f"{HERE}:summed",
        )
        use = Use(arm="", iteration=1, label=kind)
        steps[name] = Step(spec=spec, settings={}, inputs=inputs, fingerprint=name, uses=[use])
    return Plan(steps=steps, externals={}, configs={})


def execute(plan: Plan, root: Path) -> int:
    events = Events(root / "events.jsonl", (root / "log").open("a"))
    try:
        return Executor(
            plan=plan, store=root / "store", run="mine", scratch=root / "logs", events=events, on_done=lambda *_: None
        ).execute()
    finally:
        events.close()


def test_the_executor_makes_a_dropped_step_again_only_where_it_is_read(tmp_path: Path) -> None:
    plan, store = chain(), tmp_path / "store"
    assert execute(plan, tmp_path) == 3
    before = {name: state.manifest for name, state in inspect(plan, store).items()}
    for name in (ROWS, TRAINED):
        manifest = before[name]
        assert manifest
        one = Artifact(store, manifest.step, name)
        assert one.drop(manifest, [file.name for file in manifest.files], "keep.policies=last") > 0
        assert not list(one.path.glob("*.parquet"))
    assert execute(plan, tmp_path) == 0
    Artifact(store, "pairs", JUDGED).set_aside()
    assert execute(plan, tmp_path) == 3
    after = inspect(plan, store)
    for name, state in after.items():
        assert state.kind == "hit" and not state.dropped
        assert state.manifest and before[name] and state.manifest.content == before[name].content
    assert not list(store.glob("*/dropped.json")) and execute(plan, tmp_path) == 0


# By commands


def test_commands_say_what_to_do_about_what_is_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path).begin().based()
    run.annotated(1, [{"a": duel("A?", "yes", "no", 0.8)}])
    run.add(
        1, "train", files={"metrics.jsonl": '{"step": 1, "loss": 1.0}\n', "config.json": "{}"}, summary={"steps": 1}
    )
    run.evaluated(1, 0.6, 0.55)
    (run.folder / "config.yaml").write_text("policy:\n  source: embedded\n  repo: null\ndiagnostics: {}\n")
    made = run_record.read(run.folder).steps[1]
    for label, why in (("train", "keep.policies=last"), ("sample", "keep.samples=last")):
        one = Artifact(run.store, label, made[label].fingerprint)
        manifest = one.manifest()
        assert manifest
        one.drop(manifest, [file.name for file in manifest.files if file.name != "metrics.jsonl"], why)
    monkeypatch.chdir(tmp_path)
    for command in ("report", "status", "verify"):
        assert main([command, *([] if command == "verify" else [run.name])]) == 0
        if command != "status":
            named(capsys.readouterr().out, "(keep.policies=last)", "(keep.samples=last)")
    capsys.readouterr()
    for command, label, key in (("inspect", "sample", "samples"), ("export", "train", "policies")):
        assert main([command, run.name]) == 2
        name = f"{label}-{made[label].fingerprint[:8]}"
        named(capsys.readouterr().err, "iteration 1", f"keep.{key}=last", f"keep.{key}=all", f"--redo {name}")
