"""What an oracle's configuration means: folders, identity and servers of an oracle, its members, and theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import judges
from pipeline.errors import ConfigError
from pipeline.schema import JudgeConfig
from pipeline.sources import EMBEDDED_JUDGES, Sources
from stages.sample import embedded

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


def test_identity_and_servers_follow_the_members() -> None:
    inner = judge("pairrm", options={"dtype": "float32"}, urls=("http://b:1",))
    middle = judge("ensemble", options={"weights": {"y": 1.0}}, members={"y": inner})
    outer = judge("ensemble", options={"weights": {"x": 2.0}}, urls=("http://a:1", "http://a:2"), members={"x": middle})
    found = judges.identity(outer)
    assert (found.kind, list(found.members)) == ("ensemble", ["x"])
    assert found.members["x"].members["y"].options == {"dtype": "float32"}
    assert judges.servers(outer) == {"": ("http://a:1", "http://a:2"), "x.y": ("http://b:1",)}


def test_a_member_with_a_wrong_option_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^oracle\.options\.size: mini does not know that key; it has no options"):
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
    with pytest.raises(ConfigError, match=r"^judge \(pairrm\) is oracle as well: .* such as judge=lexical\.$"):
        judges.check_second(one, copy, Sources())
    both = judge("ensemble", options={"weights": {"a": 1.0, "b": 1.0}}, members={"a": two, "b": one})
    with pytest.raises(ConfigError, match=r"^judge \(pairrm\) is oracle\.members\.b as well"):
        judges.check_second(both, copy, Sources())
    with pytest.raises(ConfigError, match=r"^judge\.members\.b \(pairrm\) is oracle as well"):
        judges.check_second(copy, both, Sources())


def test_models_at_servers_are_told_apart_by_their_names() -> None:
    asked = {"template": "{prompt} {first} {second}", "max_tokens": 4096, "dtype": "float32"}
    here, there = (
        judge("llm", urls=(url,), options={**asked, "model": name})
        for url, name in (("http://a:1", "large"), ("http://b:1", "small"))
    )
    judges.check_second(here, there, Sources())
    with pytest.raises(ConfigError, match=r"^judge \(llm\) is oracle as well"):
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
