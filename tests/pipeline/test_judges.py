"""What an oracle's configuration means: folders, identity and servers of an oracle, its members, and theirs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparring.pipeline import config
from sparring.pipeline.sources import EMBEDDED_JUDGES, Sources, judges
from sparring.stages import model_check, model_folder
from sparring.stages.annotate.config import JudgeConfig
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.sample import embedded
from tests.refusals import refused
from tests.stages.annotate import blender, readers

NONE: dict[str, Any] = {"path": None, "repo": None, "revision": None, "options": {}, "urls": (), "members": {}}


def judge(kind: str, **more: Any) -> JudgeConfig:
    return JudgeConfig(kind=kind, **{**NONE, **more})


def test_folders_of_members_have_their_names_before_them(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    inner = judge("lexical", members={"other": judge("mini", path=str(tmp_path))})
    found = judges.folders(judge("mini", members={"first": inner}), Sources())
    assert {role: source.root for role, source in found.items()} == {
        "judge": EMBEDDED_JUDGES / "mini",
        "encoder": embedded.encoder_folder(),
        "first.judge": EMBEDDED_JUDGES / "lexical",
        "first.other.judge": tmp_path,
        "first.other.encoder": embedded.encoder_folder(),
    }


def test_a_member_with_a_wrong_option_is_refused() -> None:
    with refused(ConfigError, "oracle.options.size", "mini"):
        judges.folders(judge("lexical", members={"x": judge("mini", options={"size": 3})}), Sources())


def test_a_second_judge_has_no_part_in_the_oracle(tmp_path: Path) -> None:
    """Told by the bytes it is loaded from, or the model at its servers: not by its kind, its place or its options."""
    for name, content in (("one", b"1"), ("copy", b"1"), ("two", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    one, copy, two = (
        judge("pairrm", path=str(tmp_path / name), options={"dtype": dtype})
        for name, dtype in (("one", "float32"), ("copy", "bfloat16"), ("two", "float32"))
    )
    judges.check_second(one, two, Sources())
    with refused(ConfigError, "judge (pairrm)", "oracle", "judge=lexical"):
        judges.check_second(one, copy, Sources())
    both = judge("ensemble", options={"weights": {"a": 1.0, "b": 1.0}}, members={"a": two, "b": one})
    with refused(ConfigError, "judge (pairrm)", "oracle.members.b"):
        judges.check_second(both, copy, Sources())
    with refused(ConfigError, "judge.members.b (pairrm)", "oracle"):
        judges.check_second(copy, both, Sources())


def test_models_at_servers_are_told_apart_by_their_names() -> None:
    asked = {"template": "{prompt} {first} {second}", "max_tokens": 4096, "dtype": "float32"}
    here, there = (
        judge("llm", urls=(url,), options={**asked, "model": name})
        for url, name in (("http://a:1", "large"), ("http://b:1", "small"))
    )
    judges.check_second(here, there, Sources())
    with refused(ConfigError, "judge (llm)", "oracle"):
        judges.check_second(here, judge("llm", urls=("http://b:1",), options={**asked, "model": "large"}), Sources())


def test_what_the_time_of_an_oracle_grows_with() -> None:
    assert [judges.reads(judge(kind)) for kind in ("mini", "lexical")] == ["texts", "responses"]
    pairrm = judge("pairrm", options={"dtype": "float32"})
    assert judges.reads(pairrm) == "duels"
    for members, reads in (
        ({"a": judge("mini"), "b": judge("lexical")}, "texts"),
        ({"a": judge("mini"), "b": pairrm}, "duels"),
    ):
        assert (
            judges.reads(judge("ensemble", options={"weights": dict.fromkeys(members, 1.0)}, members=members)) == reads
        )


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("kind", ["reward_model", "gpm", "llm", "pairrm"])
def test_a_folder_is_looked_at_before_a_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What loading would refuse is refused at plan, by the same words: here weights that are not there."""
    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_folder, "_found", model_check.found)
    if kind == "pairrm":
        blender.llm_blender()  # whose classes write a checkpoint
    make: Any = {"reward_model": readers.llama, "gpm": readers.gpm, "llm": readers.causal, "pairrm": blender.hf}[kind]
    good = make(tmp_path / "good")
    chosen = config.load([f"oracle={kind}", f"oracle.path={good}", "hardware=cpu"]).oracle
    if kind == "llm":
        with refused(ConfigError, "max_tokens=4096", "2048 tokens"):
            judges.check_folders("oracle", chosen, Sources())
        chosen = replace(chosen, options={**chosen.options, "max_tokens": 1024})
    judges.check_folders("oracle", chosen, Sources())
    lost = {"reward_model": "score.weight", "gpm": "value_head.weight", "pairrm": "head_layer.1.weight"}
    if kind in lost:
        bad = readers.changed(good, tmp_path / "bad", {lost[kind]: None})
        with refused(DataError, lost[kind]):
            judges.check_folders("judge", replace(chosen, path=str(bad)), Sources())
    (good / "tokenizer.json").write_text("{")
    with refused(DataError, "tokenizer.json"):
        judges.check_folders("oracle", chosen, Sources())


@pytest.mark.parametrize(("kind", "member"), [("mini", False), ("lexical", True)])
def test_a_file_that_is_cut_is_named(kind: str, member: bool, tmp_path: Path) -> None:
    """Also of a small judge, and of a member."""
    folder = Path(shutil.copytree(EMBEDDED_JUDGES / kind, tmp_path / kind))
    one = judge(kind, path=str(folder))
    outer = judge("ensemble", options={"weights": {"x": 1.0}}, members={"x": one}) if member else one
    judges.check_folders("oracle", outer, Sources())
    cut(folder)
    with refused(DataError, f"{folder}/model.safetensors"):
        judges.check_folders("oracle", outer, Sources())
