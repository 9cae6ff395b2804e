"""`sparring doctor`: installed versions against the lock; what is optional, with how to get it."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from sparring.pipeline.cli import doctor
from sparring.pipeline.suites import to_answer
from sparring.pipeline.suites.contamination import compared_suites
from sparring.stages.train.config import SINKS


def test_installed_versions_are_compared_with_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    locked = doctor._locked()
    assert re.match(r"\d+\.\d+", locked["torch"]) and set(doctor.REQUIRED) <= locked.keys()
    versions = {**locked, "ray": "0.0.1"}
    del versions["trl"]
    monkeypatch.setattr(doctor, "installed", lambda names: {name: versions[name] for name in names if name in versions})
    checked = {name: (good, text) for good, name, text in doctor._versions()}
    assert checked.pop("ray")[0] is False and checked.pop("trl")[0] is False
    assert checked.pop("torch") == (True, locked["torch"])
    monkeypatch.setattr(doctor, "_locked", dict)  # outside a checkout
    assert {name: good for good, name, _ in doctor._versions()}["ray"] is True


def test_optional_packages_are_listed_with_how_to_get_them() -> None:
    found = {name: (good, text) for good, name, text in doctor._optional() if not name.startswith("suite ")}
    assert set(found) == {"alpaca_eval", "lm-eval", *SINKS}
    assert found["tensorboard"] == (True, version("tensorboard"))  # of the locks
    for name, (good, text) in found.items():
        assert good or (good is None and text.startswith("not installed; for `sparring ")), name
        assert good or text.endswith(f": pip install {name}")


def test_suites_are_of_the_hubs_cache_or_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    compared = compared_suites()
    gsm8k = compared["gsm8k"]
    repository, commit = tmp_path / f"datasets--{gsm8k.repo.replace('/', '--')}", "1" * 40
    path = repository / "snapshots" / commit / gsm8k.instructions
    path.parent.mkdir(parents=True)
    path.touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    lines = list(doctor._optional())
    found = {name.removeprefix("suite "): (good, text) for good, name, text in lines if name.startswith("suite ")}
    assert found.pop("gsm8k") == (True, str(path))
    assert set(found) == compared.keys() - {"gsm8k"}
    for name, (good, text) in found.items():
        assert good is None and compared[name].repo in text
        assert (f"`sparring answer {name} RUN --instructions FILE`" in text) == (name in to_answer())
    assert "the space lmsys/mt-bench" in found["mt_bench"][1]
    assert "`sparring contamination RUN FILE`" in found["truthfulqa"][1]


@pytest.mark.parametrize(("bad", "code"), [(False, 0), (True, 1)])
def test_only_what_is_wrong_is_an_error(
    bad: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[doctor.Check] = [
        (True, "torch", "2"),
        (None, "wandb", "not installed"),
        *([(False, "disk", "full")] * bad),
    ]
    monkeypatch.setattr(doctor, "checks", lambda _: iter(found))
    assert doctor.doctor(["hardware=cpu"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["ok  torch: 2", "-   wandb: not installed", *(["BAD disk: full"] * bad)]
