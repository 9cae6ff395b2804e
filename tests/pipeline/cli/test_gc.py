"""`sparring gc`: removes what no run refers to, and nothing that one may need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.runs import references, run_record
from sparring.pipeline.store.lease import Lease, LeaseHeld
from sparring.pipeline.store.staging import STAGED
from tests.pipeline.report.fabricated import Run, duel, lengths, samples_table
from tests.refusals import named


def old(store: Path) -> None:
    """Date everything in a store back to an hour ago."""
    then = time.time() - 3600
    for path in sorted(store.rglob("*"), reverse=True):
        os.utime(path, (then, then), follow_symlinks=False)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of two steps, and one step of a run whose folder is gone."""
    run = Run(tmp_path).begin()
    run.trained(1)
    run.evaluated(1, 0.6, 0.6)
    gone = Run(tmp_path, "gone").begin()
    gone.trained(1)
    shutil.rmtree(gone.folder)
    references.register(run.store, run.folder.parent)
    (run.store / ".leases").mkdir()
    unfinished = run.store / "sample-00000000"
    unfinished.mkdir()
    (unfinished / "part-00000.aa.parquet").write_bytes(b"x" * 3_000_000)
    old(run.store)
    return run


def names(run: Run) -> set[str]:
    return {path.name for path in run.store.glob("*-????????")}


def kept(run: Run) -> set[str]:
    steps = run_record.read(run.folder).steps.values()
    return {f"{label.partition('_')[0]}-{one.fingerprint[:8]}" for row in steps for label, one in row.items()}


def gc(run: Run, *words: str) -> int:
    return main(["gc", "--store", str(run.store), "--runs", str(run.folder.parent), *words])


def test_what_no_run_refers_to_is_listed_and_then_removed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before, gone = names(run), names(run) - kept(run)
    assert gc(run) == 0 and names(run) == before
    text = capsys.readouterr().out
    named(text, *gone, "2.9 MiB", "sample-00000000 (not finished)", "--delete", f"of 1 runs in {run.folder.parent}")
    assert gc(run, "--delete") == 0
    assert names(run) == kept(run) and len(gone) == 2
    assert main(["verify", "--store", str(run.store)]) == 0
    assert not (run.store / ".leases" / "gc.json").exists()
    capsys.readouterr()
    assert gc(run, "--delete") == 0
    assert "0 artifacts" in capsys.readouterr().out


def test_what_is_planned_and_not_made_is_kept(run: Run) -> None:
    record = json.loads((run.folder / "run.json").read_text())
    record["planned"] = {"02": {"sample_heldout": "0" * 64}}
    (run.folder / "run.json").write_text(json.dumps(record))
    assert gc(run, "--delete") == 0
    assert "sample-00000000" in names(run)


def test_what_is_young_or_in_use_is_left_alone(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    lease = run.store / ".leases" / "sample-00000000.json"
    with Lease(lease, "another run").acquire(wait=False):
        os.utime(next(path for path in run.store.glob("train-*") if path.name not in kept(run)))
        assert gc(run, "--delete") == 0
    assert names(run) - kept(run) == {"sample-00000000", *(n for n in names(run) - kept(run) if n.startswith("train-"))}
    assert len(names(run) - kept(run)) == 2
    named(capsys.readouterr().out, "another run", "300 s")


def test_imports_answers_and_what_they_were_made_of_are_kept(run: Run) -> None:
    other = Run(run.root, "other").begin()
    tables = [samples_table({"a": duel("A?", "x", "y", 0.6)})]
    base = other.add(0, "prompts")
    inputs = {"prompts": {"name": base.fingerprint, "digest": base.content}}
    imported = other.add(1, "sample", tables, inputs=inputs, summary={**lengths(1), "provenance": {"path": "f"}})
    answered = other.add(1, "score", tables)
    shutil.rmtree(other.folder)
    references.note_plan(run.folder / references.ANSWERS, [answered.name])
    old(run.store)
    assert gc(run, "--delete") == 0
    assert names(run) == kept(run) | {base.name, imported.name, answered.name}


def test_nothing_is_removed_where_it_is_not_known_what_runs_need(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = names(run)
    elsewhere = tmp_path / "elsewhere"
    references.register(run.store, elsewhere)
    assert gc(run, "--delete") == 2
    named(capsys.readouterr().err, str(elsewhere), ".runs")
    elsewhere.mkdir()
    (run.folder / "run.json").write_text("[]")
    assert gc(run, "--delete") == 2
    named(capsys.readouterr().err, "run.json")
    assert names(run) == before
    assert main(["gc", "--store", str(tmp_path)]) == 2


def test_leases_and_staging_of_the_dead_go(run: Run) -> None:
    dead = {
        "token": "a",
        "owner": "b",
        "host": "c",
        "pid": 1,
        "started": "0",
        "since": "2026-01-02T03:04:05+00:00",
        "machine": "elsewhere",
    }
    staged = run.folder / f".tensorboard-sync{STAGED}"
    staged.mkdir()
    (staged / "half").write_text("x")
    leases = [run.store / ".leases" / "train-0a0a0a0a.json", staged.with_name(f"{staged.name}.json")]
    for lease in leases:
        lease.write_text(json.dumps(dead))
        os.utime(lease, (1, 1))
    live = run.store / ".leases" / "train-0b0b0b0b.json"
    with Lease(live, "run").acquire(wait=False):
        assert gc(run, "--delete") == 0
        assert live.exists() and not staged.exists() and not any(lease.exists() for lease in leases)


def test_a_run_that_begins_meanwhile_waits_and_loses_nothing(run: Run) -> None:
    """It notes what it needs before the records are read, or it looks at the store when all is over."""
    held = references.removal(run.store)
    with pytest.raises(LeaseHeld):
        references.removal(run.store)
    needed = next(path for path in run.store.glob("train-*") if path.name not in kept(run))
    seen: list[bool] = []

    def begin() -> None:
        run_record.begin(run.root / "runs" / "late", {(1, "train"): needed.name[-8:] + "0" * 56}, "", [], "store", {})
        references.wait_for_removal(run.store, lambda holder: None)
        seen.append(needed.exists())

    thread = threading.Thread(target=begin)
    thread.start()
    while not (run.root / "runs" / "late" / "run.json").exists():
        time.sleep(0.01)
    found = references.unused(run.store, run.folder.parent)
    assert not seen and needed not in [path for path, _ in found.artifacts]
    assert list(references.remove(found, run.store)) == []
    held.release()
    thread.join()
    assert seen == [True]
    assert not references.wait_for_removal(run.store, lambda holder: None)


def test_a_removal_that_is_killed_is_finished_by_the_next(run: Run) -> None:
    words = [sys.executable, "-m", "sparring", "gc", "--delete", "--store", str(run.store)]
    code = (
        "import os, sys; from sparring.pipeline.store.manifest import Artifact; import shutil\n"
        "shutil.rmtree = lambda *a, **k: os._exit(9)\n"
        "from sparring.pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    killed = subprocess.run([sys.executable, "-c", code, *words[3:], "--runs", str(run.folder.parent)], check=False)
    assert killed.returncode == 9
    assert kept(run) <= names(run)
    old(run.store)
    assert gc(run, "--delete") == 0 and names(run) == kept(run)


def test_a_bucket_is_not_touched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "--delete", "--store", "s3://bucket/prefix"]) == 2
    named(capsys.readouterr().err, "--store", "bucket")
