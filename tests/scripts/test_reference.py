"""The reference of the configuration: current, whole, and each setting with its meaning."""

from __future__ import annotations

import re

from scripts import reference
from sparring.pipeline.config.groups import group_names, known_keys


def rows() -> list[list[str]]:
    lines = [line for line in reference.page().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_page_is_current() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "python -m scripts.reference writes it anew"


def test_every_setting_has_a_meaning() -> None:
    assert [setting for setting, allowed, meaning, hashed in rows() if not (allowed and meaning and hashed)] == []


def test_every_key_of_the_configuration_is_there() -> None:
    known = {row[0].strip("`") for row in rows()}
    groups = (*group_names(), *(key.rpartition(".")[0] for key in known_keys()))
    keys = {key for key in known_keys() if key not in groups}
    missing = {key for key in keys if not any(f"{key}.".startswith(f"{one}.") for one in known)}
    assert missing == set()


def test_what_is_hashed() -> None:
    hashed = {row[0].strip("`"): row[3] for row in rows()}
    assert hashed["trainer.lr"] == hashed["gate.floor"] == hashed["sampler.temperature"] == "yes"
    assert hashed["hardware.micro_batch"] == hashed["trainer.checkpoint_steps"] == hashed["run.name"] == "no"
    assert hashed["policy.path"] == "by its bytes" and hashed["iterations"] == "through what it decides"
