"""`sparring status`: what a run does, from its folder alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.runs import run_history
from sparring.pipeline.runs.progress import LEASE, Progress, Stream, events_file, progress_of
from tests.pipeline.cli.day import SAMPLE, TODO, TRAIN, aged, begun, driven, killed, shard, write
from tests.pipeline.report.fabricated import Run
from tests.refusals import named

WORKER = {
    "event": "worker",
    "step": SAMPLE,
    "host": "node2",
    "pid": 4711,
    "memory": 3 * 2**30,
    "gpus": ["0", "1"],
    "gpu_memory": 70 * 2**30,
}
WARNING = {"event": "message", "level": "warning", "text": "shard 3: died\x1b[2J"}


def looked(run: Run) -> Progress:
    stream = Stream(events_file(run.folder))
    return progress_of(run_history.recorded(run.folder.parent, run.name), stream)


def shown(run: Run, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["status", run.name, *words, "--runs", str(run.folder.parent)]) == 0
    return capsys.readouterr().out


def test_a_run_that_is_driven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begun(tmp_path, WORKER, shard(1, 4), WARNING, shard(2, 4, tokens_per_s=1234.0, eta_s=50.0))
    with driven(run):
        text = shown(run, capsys)
    named(text, "running", SAMPLE, "2 of 4", "1,234 tokens/s", "iteration 1 train", "waiting")
    named(text, "node2", "4711", "3.0 GiB", "0, 1", "70.0 GiB", "died\\x1b[2J")


def test_the_time_left_is_of_what_runs_and_what_waits(tmp_path: Path) -> None:
    run = begun(tmp_path, shard(1, 4, eta_s=50.0, time=time.time() - 20))
    with driven(run):
        assert looked(run).left_s == pytest.approx(330, abs=5)
        write(run, {"event": "step_done", "step": SAMPLE, "label": TODO[SAMPLE]["label"], "seconds": 41.0})
        assert looked(run).left_s == 300
    assert looked(run).left_s is None


def test_a_killed_run_does_not_look_as_if_it_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begun(tmp_path, WORKER, shard(1, 4))
    killed(run)
    text = shown(run, capsys)
    named(text, "killed", "broken off")
    assert "running" not in text and "4711" not in text


def test_a_driver_elsewhere_is_alive_while_its_lease_is_young(tmp_path: Path) -> None:
    run = begun(tmp_path, shard(1, 4))
    killed(run, machine="elsewhere", host="node9")
    now = looked(run)
    assert now.state == "running" and now.holder and now.holder.host == "node9"
    aged(run.folder / LEASE, 59)
    assert looked(run).state == "running"
    aged(run.folder / LEASE, 3)
    assert looked(run).state == "killed"


def test_a_driver_that_prepares_is_not_taken_for_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path, shard(1, 4), {"event": "run_started", "todo": TODO, "time": time.time() - 9}, WORKER)
    with driven(run):
        assert looked(run).session.steps == {}
        assert "4711" not in shown(run, capsys)
        write(run, {"event": "run_started", "todo": TODO, "time": time.time() + 2})
        assert looked(run).session.steps.keys() == TODO.keys()


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([{"event": "failed", "text": "prompts.path: none"}], "failed"),
        ([{"event": "stopped", "text": "by hand"}], "stopped"),
        ([], "not running"),
        ([{"event": "failed", "text": "x"}, {"event": "run_started", "todo": TODO}], "not running"),
    ],
)
def test_how_a_run_ended(tmp_path: Path, events: list[dict[str, str]], state: str) -> None:
    assert looked(begun(tmp_path, *events)).state == state


def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path).begin()
    run.trained(1)
    planned = (run.folder / "run.json").read_text().replace('"planned": {}', '"planned": {"01": {"train": "%s"}}')
    made = run_history.recorded(run.folder.parent, run.name)[0].record.steps[1]["train"].fingerprint
    (run.folder / "run.json").write_text(planned % made)
    named(shown(run, capsys), "finished", "1 steps, 1 made")


def test_events_are_read_as_they_come_and_damaged_ones_left_out(tmp_path: Path) -> None:
    run = begun(tmp_path, shard(1, 4))
    stream = Stream(events_file(run.folder))
    assert stream.read().steps[SAMPLE].done == 1
    with stream.path.open("a") as file:
        file.write('[]\n{"event": "shard"}\n{"event": 3, "time": "x"}\n' + "[" * 9000 + "\n" + '{"time": 1.0, "eve')
    assert stream.read().steps[SAMPLE].done == 1
    with stream.path.open("a") as file:
        file.write('nt": "finished"}\n')
    assert stream.read().ended == "finished"
    stream.path.write_text("")
    assert stream.read().steps == {}


def test_watching_a_pipe_ends_with_the_run(tmp_path: Path) -> None:
    run = begun(tmp_path, shard(1, 4))
    words = [sys.executable, "-m", "sparring", "status", run.name, "--watch", "--runs", str(run.folder.parent)]
    with driven(run):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert "running" in process.stdout.readline()
        write(run, {"event": "step_done", "step": SAMPLE, "label": TODO[SAMPLE]["label"], "seconds": 41.0})
        write(run, {"event": "stopped", "text": "by hand"})
    rest, _ = process.communicate(timeout=60)
    named(rest, "stopped. by hand", TRAIN)
    assert process.returncode == 0


def test_ctrl_c_ends_the_look_and_not_the_run(tmp_path: Path) -> None:
    run = begun(tmp_path, shard(1, 4))
    words = [sys.executable, "-m", "sparring", "status", run.name, "--watch", "--runs", str(run.folder.parent)]
    with driven(run):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
