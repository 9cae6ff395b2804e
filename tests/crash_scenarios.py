"""What tests/crash.py breaks off: steps of a run, their records and links, a training's checkpoints, an export."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from sparring.pipeline.execution import ray_cluster
from sparring.pipeline.execution.events import Events
from sparring.pipeline.execution.executor import Executor
from sparring.pipeline.export import folder as export
from sparring.pipeline.planning.plan import Plan, Step, Use
from sparring.pipeline.runs import run_record
from sparring.pipeline.store import lease
from sparring.pipeline.store.files import check_export
from sparring.pipeline.store.manifest import Artifact
from sparring.pipeline.store.staging import STAGED
from sparring.stages.fingerprint import digest
from sparring.stages.step import Input, Job, Part, Places, Shard, StepSpec
from sparring.stages.train.files import checkpoint
from tests.crash import Scenario, tree

LEASES = (".leases", f"{STAGED}.json")
"""A lease saves work and keeps nothing safe."""
FIRST, SECOND, TRAINED = "a1" * 32, "b2" * 32, "c3" * 32
OTHER_INPUT = "f0" * 32
STEPS = 3

for slow in ("pandas", "pyarrow.parquet"):  # what the children import: here once, not in each of them
    importlib.import_module(slow)
lease.BEAT_S = 1e9  # its thread would call between the calls that are counted
lease.time = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None)  # type: ignore[assignment]
ray_cluster.hardware = ray_cluster.software = dict  # they ask the GPUs and git: a tenth of a second


def shards(job: Job) -> list[Shard]:
    """Return two shards."""
    return [Shard(index=i) for i in range(2)]


class Worker:
    """Writes what it has read, or numbers that follow from the shard and the bytes of the source."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, shard: Shard) -> Part:
        if source := self.job.inputs.get("rows"):
            rows = source.table(shard.index)["x"].to_pylist()
        else:
            outside = self.job.inputs.get("source")
            rows = [shard.index + (int(outside.digest[:2], 16) if outside else 0)] * 4
        return Part(table=pa.table({"x": [x + 1 for x in rows[1:]]}), rows_in=len(rows), dropped={"first": 1})


def finish(job: Job, tables: Iterator[pa.Table], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sum of all rows."""
    return {"sum": sum(sum(table["x"].to_pylist()) for table in tables)}


def train(
    job: Job, report: Callable[[dict[str, Any]], None], asked: Callable[[], int], places: Callable[[], Places]
) -> SimpleNamespace:
    """Take three steps, each with a checkpoint from which the next goes on, and write a model of all of them."""
    job.out.mkdir(parents=True, exist_ok=True)
    checkpoint.drop_damaged(job)
    kept = checkpoint.latest(job)
    begun, weights = (kept[1], (kept[0] / "weights").read_text()) if kept else (0, "0")
    checkpoint.prune(job, kept[0] if kept else None)
    for step in range(begun + 1, STEPS + 1):
        weights = digest([weights, step])
        place = checkpoint.staged(job, step)
        place.mkdir(parents=True)
        (place / "weights").write_text(weights)
        checkpoint.sync(place)
        checkpoint.seal(place, step, checkpoint.binding(job))
        checkpoint.prune(job, place)
    model = job.out / f"model.{job.attempt}"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"weights": weights}))
    rows = {"in": STEPS, "out": STEPS, "dropped": {}}
    return SimpleNamespace(files={"model/config.json": model / "config.json"}, rows=rows, summary={}, stats={})


def _step(kind: str, fingerprint: str, iteration: int, inputs: dict[str, str], **spec: str) -> Step:
    """A step that is made in the driver's own process."""
    made = StepSpec(kind=kind, version=1, pool="in_process", **spec)
    use = Use(arm="", iteration=iteration, label=kind)
    return Step(spec=made, settings={}, inputs=inputs, fingerprint=fingerprint, uses=[use])


def three_steps(source: str = "") -> Plan:
    """Three steps: one that writes rows, one that reads them, a training."""
    here = "tests.crash_scenarios"
    sharded = {"worker": f"{here}:Worker", "shards": f"{here}:shards", "finish": f"{here}:finish"}
    outside = Input(role="source", root=Path("/"), digest=source)
    steps = [
        _step("prompts", FIRST, 0, {"source": source} if source else {}, **sharded),
        _step("pairs", SECOND, 1, {"rows": FIRST}, **sharded),
        _step("train", TRAINED, 1, {"pairs": SECOND}, run=f"{here}:train"),
    ]
    externals = {source: outside} if source else {}
    return Plan(steps={step.fingerprint: step for step in steps}, externals=externals, configs={})


def run(place: Path, plan: Plan, store: Path | None = None) -> None:
    """As `sparring run` does it: the record first, then every step with its note and its link."""
    store, folder = store or place / "store", place / "runs" / "mine"
    planned = {(use.iteration, use.label): step.fingerprint for use, step in plan.arm("")}
    run_record.begin(folder, planned, "seed: 0\n", ["seed=0"], str(store), {})

    def note(step: Step, manifest: Any) -> None:
        for use in step.uses:
            run_record.note(folder, store, (use.iteration, use.label), step.name, manifest)

    events = Events(folder / "events.jsonl", (place / "log").open("a"))
    made = Executor(plan=plan, store=store, run="mine", scratch=folder / "logs", events=events, on_done=note)
    try:
        made.execute()
    finally:
        events.close()


def _artifacts(place: Path) -> list[Artifact]:
    kinds = (("prompts", FIRST), ("pairs", SECOND), ("train", TRAINED))
    return [Artifact(place / "store", kind, fingerprint) for kind, fingerprint in kinds]


def _nothing_false(place: Path) -> str:
    """What claims to be finished is whole, and so is the record of the run."""
    for artifact in _artifacts(place):
        manifest = artifact.manifest()
        bad = list(artifact.damaged_files(manifest, rehash=True)) if manifest else []
        if bad:
            return str(bad)
    record = place / "runs" / "mine" / "run.json"
    return "" if not record.exists() or run_record.read(record.parent).store else f"{record} cannot be read"


def _outcome(place: Path) -> dict[str, Any]:
    """Contents by logical name, what else lies there, and where the links lead; the names of attempts are random."""
    found: dict[str, Any] = {}
    for artifact in _artifacts(place):
        manifest = artifact.manifest()
        assert manifest is not None, artifact.path
        found[artifact.kind] = (manifest.content, manifest.rows, manifest.summary, manifest.inputs)
        known = {Path(file.path).parts[0] for file in manifest.files} | {"manifest.json"}
        found[f"{artifact.kind}: left behind"] = sorted({p.name for p in artifact.path.iterdir()} - known)
        found[f"{artifact.kind}: damaged"] = list(artifact.damaged_files(manifest, rehash=True))
    run, leases = tree(place / "runs" / "mine"), tree(place / "store" / ".leases")
    found["leases"] = sorted(leases)
    found["run"] = {name: what for name, what in run.items() if name != "events.jsonl"}
    return found


def steps() -> Scenario:
    """A run of three steps from nothing: leases, parts, manifests, what is removed after, the record, the links."""
    return Scenario(
        prepare=lambda place: None,
        act=lambda place: run(place, three_steps()),
        holds=_nothing_false,
        result=_outcome,
        unsynced=LEASES,
    )


def successor() -> Scenario:
    """The same after a finished run whose source changed: each stale artifact gives way when its successor is there."""
    return Scenario(
        prepare=lambda place: run(place, three_steps("e0" * 32)),
        act=lambda place: run(place, with_source(OTHER_INPUT)),
        holds=_nothing_false,
        result=_outcome,
        unsynced=LEASES,
    )


def with_source(source: str) -> Plan:
    """The plan of the same definitions on other bytes."""
    plan = three_steps(source)
    return replace(plan, externals={source: replace(plan.externals[source], digest=source)})


def set_aside() -> Scenario:
    """What `sparring verify` does to a damaged artifact: it is finished or it is gone."""

    def gone(place: Path) -> None:
        for artifact in _artifacts(place):
            artifact.set_aside()

    return Scenario(
        prepare=lambda place: run(place, three_steps()),
        act=gone,
        holds=_nothing_false,
        result=lambda place: sorted(name for name in tree(place / "store") if not name.startswith(".leases")),
    )


def dropped() -> Scenario:
    """What `keep` does to a finished artifact: all of its files are there, or all that are gone are said to be."""

    def drop(place: Path) -> None:
        trained = _artifacts(place)[-1]
        manifest = trained.manifest()
        assert manifest is not None
        trained.drop(manifest, [file.name for file in manifest.files], "keep.policies=last")

    return Scenario(
        prepare=lambda place: run(place, three_steps()),
        act=drop,
        holds=_nothing_false,
        result=lambda place: sorted(name for name in tree(place / "store") if not name.startswith(".leases")),
    )


def export_folder() -> Scenario:
    """An export: the folder appears whole or not at all; a second call finds nothing in its way."""

    def prepare(place: Path) -> None:
        (place / "source").mkdir()
        (place / "source" / "tokenizer.json").write_text("{}" * 99)

    def act(place: Path) -> None:
        target = place / "out" / "policy"
        if target.exists():  # it was broken off after its last word
            return
        check_export(target, "--to")
        copied = export.Piece(name="tokenizer.json", bytes=198, source=place / "source" / "tokenizer.json")
        written = export.text_piece("README.md", "# a policy\n")
        export.write([copied, written], place / "source", "float32", target)

    def whole(place: Path) -> str:
        target = place / "out" / "policy"
        names = sorted(path.name for path in target.iterdir()) if target.exists() else []
        return "" if names in ([], ["README.md", "tokenizer.json"]) else f"half an export: {names}"

    def result(place: Path) -> dict[str, str]:
        left = (name for name in tree(place / "out") if STAGED not in name)
        return {name: tree(place / "out")[name] for name in left}

    return Scenario(prepare=prepare, act=act, holds=whole, result=result, unsynced=LEASES)
