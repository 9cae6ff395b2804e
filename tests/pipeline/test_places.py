"""Folders that cannot be written, and errors of the machine: one line that names the key or the path, and no trace."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from omegaconf.errors import ConfigKeyError

from sparring.pipeline import cli
from sparring.pipeline.cli import prepare as cli_prepare
from sparring.pipeline.cli import verify as cli_verify
from sparring.pipeline.store.files import check_folder, check_target, make_folder, write_target
from sparring.stages.errors import ConfigError
from sparring.stages.step import sha256_file
from tests.refusals import refused

LONG = "n" * 300
ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what cannot be a folder."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that stopped."""
    assert cli.main(words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and "report it" not in said, said
    return said


NO_PLACES = ["a\0b", "a\nb", "gs://bucket/store", "~nobody_such/store", "\udcff"]
WRONG = ["file", "file/below", "broken", "broken/below", "loop", "loop/below", "/dev/null", LONG, "deep/" * 1000]


@pytest.mark.parametrize(
    ("command", "key", "wrong"),
    [("plan", "paths.store", wrong) for wrong in [*WRONG, *NO_PLACES]]
    + [("plan", "paths.runs", "broken/below"), ("plan", "paths.runs", LONG), ("run", "paths.runs", "file")],
)
def test_a_folder_that_cannot_be_written_is_refused_by_its_key(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, key: str, wrong: str
) -> None:
    there = sorted(place.iterdir())
    assert key in error_of(capsys, command, "hardware=cpu", f"{key}={wrong}")
    assert sorted(place.iterdir()) == there


def test_a_run_that_cannot_have_its_folder_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run.name" in error_of(capsys, "plan", "hardware=cpu", f"run.name={LONG}")
    (place / "runs").mkdir()
    (place / "runs" / "mine").write_text("a file")
    assert "run.name" in error_of(capsys, "run", "hardware=cpu", "run.name=mine")
    assert not (place / "store").exists()


def test_a_store_whose_name_looks_like_markup(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["hardware=cpu", "paths.store='a[/b]'"]
    (step, *_) = cli_prepare.plan_of({"": words}).steps.values()
    (place / "a[/b]" / step.name).mkdir(parents=True)
    (place / "a[/b]" / step.name / "manifest.json").write_text("no JSON")
    assert cli.main(["plan", *words]) == 0
    assert "a[/b]" in capsys.readouterr().out


def test_iterations_of_a_long_run_share_rows(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert cli.main(["plan", "hardware=cpu", "iterations=24", "evaluate.crossplay=false"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows if row[1:2] == ["train"]] == [*map(str, range(1, 21)), "21-24"]
    for columns in ("0", "-5", "wide"):  # no width: that of a file
        monkeypatch.setenv("COLUMNS", columns)
        assert cli.main(["plan", "hardware=cpu"]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) > 80, columns


@pytest.mark.parametrize("wrong", ["file", "broken/below", LONG])
def test_a_cache_that_cannot_be_written_is_refused_where_it_is_needed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    monkeypatch.setenv("SPARRING_CACHE", wrong)
    assert "SPARRING_CACHE" in error_of(capsys, "plan", "hardware=cpu")


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_to_write_is_refused_by_its_option(place: Path, wrong: str) -> None:
    with refused(ConfigError, "--json"):
        check_target(place / wrong / "out.json", "--json")
    with refused(ConfigError, "--to"):
        check_folder("--to", place / wrong)


def test_what_can_be_written_is_taken(place: Path) -> None:
    check_folder("paths.store", place / "new" / "below")
    assert not (place / "new").exists()
    make_folder("paths.store", place / "new" / "below")
    assert (place / "new" / "below").is_dir()
    check_target(place / "new" / "out.json", "--json")
    check_target(Path("/dev/null"), "--json")


@pytest.mark.parametrize("name", ["run.json", "events.jsonl", "report.html", "iter-01/train/new.json", "figures.json"])
def test_what_a_run_and_the_store_keep_is_not_written_over(place: Path, name: str) -> None:
    run, store = place / "runs" / "mine", place / "store"
    (store / ".leases").mkdir(parents=True)
    (store / "train-12345678").mkdir()
    (run / "iter-01").mkdir(parents=True)
    (run / "iter-01" / "train").symlink_to(store / "train-12345678")
    (run / "run.json").touch()
    if name == "figures.json":
        check_target(run / name, "--json")
        return
    with refused(ConfigError, "--json", name):
        check_target(run / name, "--json")


def test_a_pipe_is_written_to_and_not_replaced(place: Path) -> None:
    pipe = place / "pipe"
    os.mkfifo(pipe)
    check_target(pipe, "--json")
    with refused(OSError, os.strerror(errno.ENXIO)):
        write_target(pipe, "nobody reads it")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for _ in range(2):
        write_target(pipe, "text")
        assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)


def test_a_link_to_nothing_is_looked_through(place: Path) -> None:
    (place / "link").symlink_to(place / "new.json")
    (place / "broken").unlink()
    (place / "broken").symlink_to(place / "nowhere" / "new.json")
    check_target(place / "link", "--json")
    write_target(place / "link", "text")
    assert (place / "link").is_symlink() and (place / "new.json").read_text() == "text"
    with refused(ConfigError, "--json"):
        check_target(place / "broken", "--json")


def _read_only() -> Path | None:
    lines = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    places = (Path(words[1]) for words in lines if words[3].split(",")[0] == "ro")
    return next((one for one in places if one.is_dir()), None)


def test_a_read_only_file_system_is_named() -> None:
    mounted = _read_only()
    if mounted is None:
        pytest.skip("no file system of this machine is mounted read-only")
    with refused(ConfigError, "paths.store=", "read-only"):
        check_folder("paths.store", mounted / "store")


OF_THE_MACHINE: list[tuple[Callable[[], Exception], str]] = [
    (lambda: PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs/x"), "runs/x"),
    (lambda: OSError(errno.EROFS, os.strerror(errno.EROFS), "store/x"), "store/x"),
    (lambda: OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output"),
    (lambda: OSError(errno.ESTALE, os.strerror(errno.ESTALE), "store"), "store"),
    (lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events.jsonl"), "events.jsonl"),
    (lambda: OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "x"), "full"),
    (lambda: OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x"), "open files"),
    (lambda: ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)), "network"),
    (lambda: TimeoutError("timed out"), "network"),
    (lambda: socket.gaierror(-2, "Name or service not known"), "Name or service"),
    (lambda: ssl.SSLError(1, "certificate verify failed"), "certificate"),
    (lambda: httpx.ConnectTimeout("no answer"), "network"),
    (lambda: ModuleNotFoundError("No module named 'torch'", name="torch"), "torch"),
    (lambda: MemoryError(), "memory"),
    (lambda: ConfigKeyError("no such key"), "configuration"),
    (lambda: json.JSONDecodeError("Expecting value", "", 0), "damaged"),
    (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "damaged"),
    (lambda: pa.ArrowInvalid("Parquet magic bytes not found in footer."), "damaged"),
    (lambda: OSError("Couldn't deserialize thrift"), "damaged"),
]


@pytest.mark.parametrize(("error", "word"), OF_THE_MACHINE)
def test_an_error_of_the_machine_is_no_fault_of_ours(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Callable[[], Exception],
    word: str,
) -> None:
    def fails() -> None:
        raise error()

    monkeypatch.setattr(cli_verify, "verify", fails)
    assert word in error_of(capsys, "verify")
    assert not list(place.glob("sparring-crash*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_write_that_fails_names_the_file(place: Path) -> None:
    with refused(OSError, "/dev/full"):
        write_target(Path("/dev/full"), "text")


def test_a_read_that_fails_names_the_file(place: Path) -> None:
    with refused(OSError, "/proc/self/mem"):
        sha256_file(Path("/proc/self/mem"))


def test_an_import_that_a_signal_broke_off_is_the_signal(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As NumPy makes of it."""

    def interrupted() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("numpy._core.multiarray failed to import")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(cli_verify, "verify", interrupted)
    try:
        assert cli.main(["verify"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_written_to_nowhere(place: Path, closed: str) -> None:
    command = f"{sys.executable} -m sparring plan hardware=cpu paths.store=store paths.runs=runs {closed}"
    done = subprocess.run(command, shell=True, check=False, capture_output=True, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.returncode == 0 and not done.stderr and not list(place.glob("sparring-crash*"))


@pytest.mark.parametrize(
    "ours", [KeyError("x"), ModuleNotFoundError("gone", name="sparring.pipeline.gone"), ValueError("x")]
)
def test_a_fault_of_ours_is_said_to_be_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ours: Exception
) -> None:
    def fails() -> None:
        raise ours

    monkeypatch.setattr(cli_verify, "verify", fails)
    assert cli.main(["verify"]) == 1
    assert "report it" in capsys.readouterr().err and list(place.glob("sparring-crash*"))
