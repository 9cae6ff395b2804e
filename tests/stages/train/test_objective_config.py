"""Parameters of the objectives: what is refused, by which names."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from sparring.pipeline import config
from sparring.stages.errors import ConfigError
from sparring.stages.fields import tags
from sparring.stages.train.objectives import ObjectiveConfig
from tests.refusals import refused

PUBLISHED: dict[str, dict[str, Any]] = {
    "sppo": {"beta": 0.001},
    "sppo_single": {"beta": 0.001},
    "sppo_hard": {"beta": 0.001},
    "dpo": {"beta": 0.1, "label_smoothing": 0.0},
    "ipo": {"tau": 0.1, "length_normalize": False},
    "spo": {"alpha": 10.0, "z_min": -1.0, "kappa": 0.0},
    "inpo": {"tau": 0.0025, "inpo_eta": 0.0075},
    "simpo": {"beta": 2.0, "gamma": 1.0},
}


@pytest.mark.parametrize("name", tags(ObjectiveConfig, "name"))
def test_each_has_its_yaml(name: str) -> None:
    assert config.load(["hardware=cpu", f"objective={name}"]).objective.name == name


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_defaults_are_the_published_parameters(name: str) -> None:
    found = config.load(["hardware=cpu", f"objective={name}"]).objective
    assert asdict(found) == {"name": name, "loss_scale": None, **PUBLISHED[name]}


def test_a_parameter_is_set_on_the_command_line() -> None:
    assert asdict(config.load(["hardware=cpu", "objective=dpo", "objective.beta=0.05"]).objective)["beta"] == 0.05


WRONG: list[tuple[list[str], str | tuple[str, ...]]] = [
    (["objective=dpoo"], ("objective=dpoo", "dpo?")),
    (["objective.name=foo"], ("objective.name=foo", "sppo, ")),
    (
        ["objective=dpo", "objective.tau=1"],
        ("objective.tau", "objective=dpo", "objective=inpo", "objective=ipo"),
    ),
    (
        ["objective=dpo", "+objective.tau=1"],
        ("objective.tau", "objective=dpo", "objective=inpo", "objective=ipo"),
    ),
    (
        ["objective=ipo", "objective.tua=1"],
        ("objective.tua", "objective.tau?"),
    ),
    (["objective=dpo", "objective.name=ipo"], "objective.tau="),
    (["objective=dpo", "objective.beta=x"], ("objective.beta=x", "number")),
    (["objective.beta=0"], "objective.beta=0.0"),
    (["objective.loss_scale=0"], ("objective.loss_scale=0.0", "null")),
    (["objective=dpo", "objective.beta=-1"], "objective.beta=-1.0"),
    (["objective=dpo", "objective.label_smoothing=0.5"], "objective.label_smoothing=0.5"),
    (["objective=ipo", "objective.tau=0"], "objective.tau=0.0"),
    (["objective=ipo", "objective.length_normalize=7"], ("objective.length_normalize=7", "true", "false")),
    (["objective=spo", "objective.alpha=0"], "objective.alpha=0.0"),
    (["objective=spo", "objective.z_min=1"], "objective.z_min=1.0"),
    (["objective=spo", "objective.kappa=-1"], "objective.kappa=-1.0"),
    (["objective=inpo", "objective.inpo_eta=0"], "objective.inpo_eta=0.0"),
    (["objective=inpo", "objective.tau=1"], ("objective.tau=1.0", "objective.inpo_eta=0.0075")),
    (["objective=simpo", "objective.beta=0"], "objective.beta=0.0"),
    (["objective=simpo", "objective.gamma=-1"], "objective.gamma=-1.0"),
    (["objective=sppo_single", "oracle.opponents=2"], ("objective=sppo_single", "oracle.opponents=2")),
    (["gate=rescaled", "gate.exponent=0"], "gate.exponent=0"),
]


@pytest.mark.parametrize(("overrides", "names"), WRONG)
def test_a_mistake_has_one_message(overrides: list[str], names: str | tuple[str, ...]) -> None:
    from sparring.pipeline.planning.iteration import build
    from tests.pipeline.plans import Fixed

    with refused(ConfigError, names):
        build({"": config.load(["hardware=cpu", *overrides])}, Fixed())
