"""Leases: a live holder keeps it, a dead one loses it, and only the counter tells across machines."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparring.pipeline.store import lease
from sparring.pipeline.store.lease import Lease, LeaseHeld
from sparring.pipeline.store.staging import STAGED, staged
from sparring.stages import patience as waiting
from sparring.stages.errors import DataError
from sparring.stages.patience import Patience
from tests.refusals import refused


def test_a_live_holder_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with (
        Lease(path, "run a").acquire(wait=False),
        refused(LeaseHeld, "run a", "host ", f"pid {os.getpid()}"),
    ):
        Lease(path, "run b").acquire(wait=False)
    with Lease(path, "run b").acquire(wait=False):
        assert json.loads(path.read_text())["owner"] == "run b"
    assert not path.exists()


def test_waiting_says_for_whom_and_then_takes_it(tmp_path: Path) -> None:
    path, said = tmp_path / "x.json", list[str]()
    first = Lease(path, "run a").acquire(wait=False)

    def waiting(who: str) -> None:
        said.append(who)
        first.release()

    Lease(path, "run b").acquire(wait=True, waiting=waiting).release()
    assert len(said) == 1 and said[0].startswith("run a")


def test_a_killed_holder_loses_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    code = (
        "import os, signal; from pathlib import Path; from sparring.pipeline.store.lease import Lease;"
        f"Lease(Path({str(path)!r}), 'dead').acquire(wait=False); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert json.loads(path.read_text())["owner"] == "dead"
    begun = time.monotonic()
    Lease(path, "heir").acquire(wait=False).release()
    assert time.monotonic() - begun < 5


def foreign(path: Path, counter: int, owner: str = "run c") -> None:
    path.write_text(
        json.dumps(
            {
                "token": "t",
                "machine": "elsewhere",
                "host": "far",
                "pid": 1,
                "counter": counter,
                "owner": owner,
            }
        ),
        encoding="utf-8",
    )


def test_a_foreign_counter_that_stands_still_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 1.0)
    path = tmp_path / "x.json"
    foreign(path, 7)
    begun = time.monotonic()
    with Lease(path, "heir").acquire(wait=True):
        assert time.monotonic() - begun >= 1.0
        assert json.loads(path.read_text())["owner"] == "heir"


def test_a_foreign_holder_is_said_at_once_with_the_time_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 0.1)
    path, said = tmp_path / "x.json", list[str]()
    foreign(path, 7)
    Lease(path, "heir").acquire(wait=False, waiting=said.append).release()
    assert len(said) == 1 and "host far" in said[0] and "0 s" in said[0]


@pytest.mark.parametrize("garbage", ["", "{", "[]", "null", '{"owner": "x"}', "\x00" * 64, "[" * 9999])
def test_garbage_is_nobodys(tmp_path: Path, garbage: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(garbage)
    said: list[str] = []
    with Lease(path, "heir").acquire(wait=False, waiting=said.append):
        assert json.loads(path.read_text())["owner"] == "heir"
    assert len(said) == 1 and str(path) in said[0]


def test_a_folder_in_the_place_of_a_lease_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with refused(DataError, "x.json"):
        Lease(tmp_path / "x.json", "heir").acquire(wait=False)


def test_a_foreign_counter_that_moves_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 30.0)
    path = tmp_path / "x.json"
    foreign(path, 7)
    monkeypatch.setattr(lease.time, "sleep", lambda _: foreign(path, 8))
    with refused(LeaseHeld, "run c"):
        Lease(path, "b").acquire(wait=False)


def test_the_counter_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    path = tmp_path / "x.json"
    with Lease(path, "run a").acquire(wait=False):
        time.sleep(0.5)
        assert json.loads(path.read_text())["counter"] >= 2


def test_one_that_was_changed_long_ago_is_not_waited_for(tmp_path: Path) -> None:
    path, said = tmp_path / "x.json", list[str]()
    foreign(path, 7)
    os.utime(path, (time.time() - 400, time.time() - 400))
    Lease(path, "heir").acquire(wait=False, waiting=said.append).release()
    assert said == []


def test_one_of_the_future_is_judged_by_its_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 0.5)
    path, said = tmp_path / "x.json", list[str]()
    foreign(path, 7)
    os.utime(path, (time.time() + 9e5, time.time() + 9e5))
    Lease(path, "heir").acquire(wait=True, waiting=said.append).release()
    assert len(said) == 1 and "run c (host far, since ?, pid 1)" in said[0]


def test_what_a_lease_names_cannot_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 0.1)
    foreign(tmp_path / f".policy{STAGED}.json", 7, owner="run \x1b[31mred")
    with staged(tmp_path / "policy"):
        shown = capsys.readouterr().err
    assert "red" in shown and "\x1b" not in shown


def test_one_that_cannot_be_read_but_changes_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_text("of another user")
    monkeypatch.setattr(Lease, "_read", lambda self: {})
    monkeypatch.setattr(lease.time, "sleep", lambda _: os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9)))
    with refused(LeaseHeld, "x.json", "read"):
        Lease(path, "b").acquire(wait=False)


def test_where_none_can_be_written_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused(DataError, str(tmp_path / "file")):
        Lease(tmp_path / "file" / "x.json", "b").acquire(wait=True)


def test_a_wait_is_said_again_as_time_goes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    patience, said = Patience(), []
    for second in range(300):
        now[0] = float(second)
        if patience.is_due():
            said.append(second)
    assert said == [31, 63, 127, 255]


def test_what_others_left_while_they_asked_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "[x].json"
    ours, others = tmp_path / f".{path.name}.0badcafe.1", tmp_path / ".x.json.0badcafe.1"
    for left in (ours, others):
        left.write_text("{}", encoding="utf-8")
    with Lease(path, "run a").acquire(wait=False):
        assert not ours.exists() and others.exists()
