"""One name for all policies of an architecture, which vLLM's compile cache has in its key."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from sparring.stages import vllm
from tests.tiny import tiny_policy

HASH = """
import sys
from pathlib import Path
from vllm.engine.arg_utils import EngineArgs
from sparring.stages.vllm import same_name
for folder in map(Path, sys.argv[1:]):
    for path in (folder, same_name(folder)):
        print(EngineArgs(model=str(path), skip_tokenizer_init=True).create_model_config().compute_hash())
"""


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setattr(vllm, "_linked", {})
    folders = [tmp_path / name for name in ("first", "second", "other")]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text('{"hidden_size": 2}' if folder.name == "other" else "{}")
        (folder / "model.safetensors").write_text(folder.name)
    return folders


def test_policies_of_one_architecture_have_one_name(policies: list[Path]) -> None:
    names, contents = [], []
    for folder in policies:
        names.append(vllm.same_name(folder))
        contents.append((names[-1] / "model.safetensors").read_text())
    assert names[0] == names[1] != names[2] and contents == ["first", "second", "other"]


def test_a_name_that_an_engine_uses_stays_its_own(policies: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = policies
    link = vllm.same_name(first)
    held = dict(vllm._linked)
    monkeypatch.setattr(vllm, "_linked", {})  # as another process sees it
    assert vllm.same_name(first) == link and vllm.same_name(second) == second
    for lock in [*held.values(), *vllm._linked.values()]:
        fcntl.flock(lock, fcntl.LOCK_UN)
    assert vllm.same_name(second) == link and (link / "model.safetensors").read_text() == "second"


def test_without_a_place_for_links_a_policy_keeps_its_own_name(policies: list[Path]) -> None:
    (policies[0].parent / "cache").write_text("a file")
    assert vllm.same_name(policies[0]) == policies[0]


@pytest.mark.slow
def test_vllm_compiles_once_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own hash of two policies: other by their folders, the same by their name."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    folders = [str(tiny_policy(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    done = subprocess.run([sys.executable, "-c", HASH, *folders], capture_output=True, text=True, check=True)
    own, named, other, again = done.stdout.split()[-4:]
    assert own != other and named == again
