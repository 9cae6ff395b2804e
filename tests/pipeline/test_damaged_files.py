"""Damaged files of runs and of the store: every command says so in a line, or does without; no stack trace."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparring.pipeline import cli
from sparring.pipeline.runs import run_history, run_record
from sparring.pipeline.store import code_digest
from sparring.pipeline.store.manifest import Artifact, CorruptManifest
from sparring.pipeline.store.parts import finished_parts, write_part
from sparring.stages.annotate.config import PAIRS
from sparring.stages.errors import DataError
from sparring.stages.fingerprint import digest
from sparring.stages.step import Part, Shard
from tests.artifacts import as_job
from tests.pipeline.report.fabricated import Run, duel
from tests.refusals import named

TEXTS = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"17",
    "null": b"null",
    "a text": b'"x"',
    "an empty object": b"{}",
    "a list of objects": b'[{"a": 1}]',
    "not a number": b'{"steps": NaN, "a": Infinity}',
    "deep": b'{"a": ' + b"[" * 100_000,
    "deep and closed": b"[" * 5_000 + b"]" * 5_000,
    "binary": bytes(range(256)) * 8,
    "another encoding": '{"store": "é"}'.encode("utf-16"),
    "yaml": b"a: [1, 2\nb: ${nothing:x}\n",
}
VALUES: list[Any] = [None, 3, -1.5, True, "text", "", [], [None], {}, {"x": None}, {"01": {"train": 3}}, {"-1": {}}]
COMMANDS = {
    "report": ["report", "mine"],
    "status": ["status", "mine"],
    "list": ["inspect", "mine"],
    "prompt": ["inspect", "mine", "--prompt", "a"],
    "export": ["export", "mine", "--iter", "1", "--dry-run"],
    "sync": ["sync", "mine", "--to", "tensorboard"],
    "answer": ["answer", "prompts.jsonl", "mine"],
    "contamination": ["contamination", "mine", "prompts.jsonl"],
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations, with every file that a command reads."""
    root = tmp_path_factory.mktemp("sound")
    run = Run(root).begin().based()
    for t in (1, 2):
        run.annotated(t, [{"a": duel("A?", "yes", "no", 0.8), "b": duel("B?", "no", "yes", 0.4)}])
        run.trained(t)
        run.evaluated(t, 0.6, 0.55)
    (run.folder / "config.yaml").write_text("policy:\n  source: embedded\n  repo: null\ndiagnostics: {}\n")
    content = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**content, "store": "store", "overrides": ["hardware=cpu"]}))
    (run.folder / "events.jsonl").write_text(
        json.dumps({"event": "train_step", "step": "train-1", "done": 1, "time": 1.0})
    )
    return root


@pytest.fixture
def place(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(sound, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def check(capsys: pytest.CaptureFixture[str], words: list[str]) -> tuple[int, str]:
    """Call a command: it ends with 0, or with 2 and one line; return both."""
    code = cli.main(words)
    error = capsys.readouterr().err.strip()
    assert code in (0, 2) and not list(Path().glob("sparring-crash*")), f"{words}: {error}"
    assert code == 0 or error.splitlines()[-1].startswith("error: "), f"{words}: {error}"
    assert "Traceback" not in error
    return code, error


def damaged(path: Path) -> Iterator[str]:
    """Damage a file in every way, one after another, and say how; in the end it is as it was."""
    sound = path.read_bytes()
    for name, text in {**TEXTS, "truncated": sound[: len(sound) // 2], "zeros": bytes(len(sound))}.items():
        path.write_bytes(text)
        yield name
    path.unlink()
    path.mkdir()
    yield "a folder"
    path.rmdir()
    for target in (path.parent / "nowhere", path):
        path.symlink_to(target)
        yield f"a link to {target.name}"
        path.unlink()
    path.write_bytes(sound)


def artifact(place: Path, kind: str) -> Path:
    return sorted((place / "store").glob(f"{kind}-*"))[0]


@pytest.mark.parametrize("command", ["report", "list", "sync"])
def test_a_damaged_record_is_named(place: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    for name in damaged(place / "runs" / "mine" / "run.json"):
        code, error = check(capsys, COMMANDS[command])
        assert code == 2 and "runs/mine" in error, name


def test_a_record_of_wrong_types_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = place / "runs" / "mine" / "run.json"
    content = json.loads(record.read_text())
    for key in content:
        for value in VALUES:
            record.write_text(json.dumps({**content, key: value}))
            if run_record.read(record.parent).store:  # taken: then commands do without what it lacks
                check(capsys, COMMANDS["report"])
                check(capsys, COMMANDS["export"])
    record.write_text("[]")
    assert "run.json" in check(capsys, COMMANDS["status"])[1]
    record.write_text(json.dumps({**content, "overrides": ["${", "a=b=c"]}))
    assert check(capsys, [*COMMANDS["status"], "--why"])[0] == 2


def test_a_damaged_record_is_written_anew(place: Path) -> None:
    folder = place / "runs" / "mine"
    texts = [*TEXTS.values(), *(json.dumps(dict.fromkeys(("steps", "planned", "pins"), v)).encode() for v in VALUES)]
    for text in texts:
        (folder / "run.json").write_bytes(text)
        run_record.begin(folder, {(1, "train"): "ab" * 32}, "", ["a=b"], "store", {})
        assert run_record.checked(folder).overrides == ["a=b"], text[:80]


@pytest.mark.parametrize(
    ("file", "command"),
    [("config.yaml", "report"), ("config.yaml", "export"), ("events.jsonl", "sync")],
)
def test_a_damaged_configuration_or_event_stream_is_no_fault_of_ours(
    place: Path, capsys: pytest.CaptureFixture[str], file: str, command: str
) -> None:
    for _ in damaged(place / "runs" / "mine" / file):
        check(capsys, COMMANDS[command])


def refused(place: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line of a command that is refused, which has written nothing."""
    before = {path: path.lstat().st_mtime_ns for path in place.rglob("*")}
    code, error = check(capsys, words)
    assert code == 2 and len(error.splitlines()) == 1, error
    assert {path: path.lstat().st_mtime_ns for path in place.rglob("*")} == before
    return error


def last_training(place: Path) -> tuple[Path, str]:
    """The folder of iteration 2's training, and how it is named where it is lost."""
    fingerprint = run_record.read(place / "runs" / "mine").steps[2]["train"].fingerprint
    folder = Path("store") / f"train-{fingerprint[:8]}"
    return folder, f"runs/mine: iteration 2, train: {folder}"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_store_has_lost_is_said_by_every_command(
    place: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    folder, place_of = last_training(place)
    (folder / "manifest.json").write_bytes(TEXTS["deep"])
    error = refused(place, capsys, COMMANDS[command])
    assert error.startswith(f"error: {place_of}/manifest.json: ") and "sparring verify" in error
    shutil.rmtree(folder)
    named(refused(place, capsys, COMMANDS[command]), place_of, "gone")
    (place / "store").rename(place / "elsewhere")
    named(refused(place, capsys, COMMANDS[command]), "runs/mine", "store store")


def test_whatever_is_lost_is_named(place: Path) -> None:
    folder, place_of = last_training(place)

    def said() -> str:
        with pytest.raises(DataError) as caught:
            run_history.open_run(Path("runs"), "mine")
        return str(caught.value)

    for name in damaged(folder / "manifest.json"):
        assert said().startswith(place_of), name
    (folder / "metrics.jsonl").write_text("{}")
    named(said(), f"{place_of}/metrics.jsonl ", "2 bytes")
    (folder / "metrics.jsonl").unlink()
    named(said(), f"{place_of}/metrics.jsonl ", "missing")
    shutil.rmtree("store")
    Path("store").mkdir()
    assert re.search(r"gone.*\b\d+ other", said())


def test_a_plan_of_damaged_manifests(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, text in zip(sorted((place / "store").glob("*/manifest.json")), TEXTS.values(), strict=False):
        path.write_bytes(text)
    check(capsys, COMMANDS["status"])


def test_a_sealed_manifest_of_wrong_types_is_no_fault_of_ours(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = artifact(place, "train") / "manifest.json"
    content = json.loads(path.read_bytes())
    content.pop("seal")
    train, taken = Artifact(place / "store", "train", content["fingerprint"]), 0
    for key in content:
        for value in [*VALUES, [{"name": 1}]]:
            body = {**content, key: value}
            path.write_text(json.dumps({**body, "seal": digest(body)}))
            with contextlib.suppress(CorruptManifest):
                taken += train.manifest() is not None
                for command in ("report", "sync"):
                    check(capsys, COMMANDS[command])
    assert taken < len(content) * len(VALUES) / 2


@pytest.mark.parametrize(
    ("kind", "pattern", "command"),
    [
        ("train", "metrics.jsonl", "report"),
        ("train", "metrics.jsonl", "sync"),
        ("pairs", "*.parquet", "report"),
        ("pairs", "*.parquet", "prompt"),
        ("sample", "*.parquet", "list"),
    ],
)
def test_a_damaged_file_of_an_artifact_is_no_fault_of_ours(
    place: Path, capsys: pytest.CaptureFixture[str], kind: str, pattern: str, command: str
) -> None:
    (path,) = artifact(place, kind).glob(pattern)
    before = path.read_bytes()
    for _ in damaged(path):
        check(capsys, COMMANDS[command])
    path.write_bytes(before[:-40] + bytes(40))  # of its recorded size
    check(capsys, COMMANDS[command])


@pytest.mark.parametrize("file", ["code-3.11.json", "digests.json"])
def test_a_damaged_cache_is_done_without(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    monkeypatch.setenv("SPARRING_CACHE", str(place / "cache"))
    words = ["plan", "hardware=cpu"]
    assert check(capsys, words)[0] == 0
    for text in (b"", b"[]", b"[" * 9_000, b'{"a": 1}', bytes(99)):
        (place / "cache" / file).write_bytes(text)
        code_digest._read.cache_clear()
        assert check(capsys, words)[0] == 0


def test_a_damaged_record_of_a_shard_is_made_again(tmp_path: Path) -> None:
    job = as_job(PAIRS, {}, [], tmp_path)
    record = write_part(job, Shard(index=0), Part(table=pa.table({"id": ["a"]}), rows_in=1), 1.0)
    assert finished_parts(job) == {0: record}
    path = job.out / "part-00000.test.json"
    for _ in damaged(path):
        assert finished_parts(job) == {}
    for key in ("fingerprint", "inputs", "file", "code"):
        for value in VALUES:
            path.write_text(json.dumps({**record, key: value}))
            assert finished_parts(job) == ({0: record} if record[key] == value else {}), (key, value)


def test_verify_names_what_is_damaged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = artifact(place, "train")
    for name in [*TEXTS, "a folder"]:
        kept = shutil.copytree(train, place / "kept")
        (train / "manifest.json").unlink()
        (train / "manifest.json").write_bytes(TEXTS[name]) if name in TEXTS else (train / "manifest.json").mkdir()
        assert cli.main(["verify"]) == 2, name
        assert train.name in capsys.readouterr().out
        assert not train.exists(), "undone: the next run makes it again"
        kept.rename(train)
    assert cli.main(["verify"]) == 0
