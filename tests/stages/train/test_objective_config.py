"""Parameters of the objectives: what is refused, in which words."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from sparring.pipeline import config
from sparring.stages.errors import ConfigError
from sparring.stages.train.objective_config import KINDS, objective_from

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


@pytest.mark.parametrize("name", KINDS)
def test_each_has_its_yaml_and_survives_its_dict(name: str) -> None:
    found = config.load(["hardware=cpu", f"objective={name}"]).objective
    assert asdict(found) == {"name": name, "loss_scale": None, **PUBLISHED[name]}
    assert objective_from(asdict(found)) == found


def test_a_parameter_is_set_on_the_command_line() -> None:
    assert asdict(config.load(["hardware=cpu", "objective=dpo", "objective.beta=0.05"]).objective)["beta"] == 0.05


WRONG = [
    (["objective=dpoo"], r"objective=dpoo is not known\. Did you mean dpo\?"),
    (["objective.name=foo"], r"objective\.name=foo: choose one of sppo, "),
    (
        ["objective=dpo", "objective.tau=1"],
        r"objective\.tau is not read by objective=dpo; objective=inpo and objective=ipo read it",
    ),
    (
        ["objective=dpo", "+objective.tau=1"],
        r"objective\.tau is not read by objective=dpo; objective=inpo and objective=ipo read it",
    ),
    (
        ["objective=ipo", "objective.tua=1"],
        r"objective\.tua is not a configuration key\. Did you mean objective\.tau\?",
    ),
    (["objective=dpo", "objective.name=ipo"], r"objective\.tau is not set; add objective\.tau="),
    (["objective=dpo", "objective.beta=x"], r"objective\.beta=x: .*number"),
    (["objective.beta=0"], r"objective\.beta=0\.0: must be positive"),
    (["objective.loss_scale=0"], r"objective\.loss_scale=0\.0: use a number above 0, or null"),
    (["objective=dpo", "objective.beta=-1"], r"objective\.beta=-1\.0: must be positive"),
    (["objective=dpo", "objective.label_smoothing=0.5"], r"objective\.label_smoothing=0\.5: use 0, or a number below"),
    (["objective=ipo", "objective.tau=0"], r"objective\.tau=0\.0: must be positive"),
    (["objective=ipo", "objective.length_normalize=7"], r"objective\.length_normalize=7: must be true or false"),
    (["objective=spo", "objective.alpha=0"], r"objective\.alpha=0\.0: must be positive"),
    (["objective=spo", "objective.z_min=1"], r"objective\.z_min=1\.0: must be below 1"),
    (["objective=spo", "objective.kappa=-1"], r"objective\.kappa=-1\.0: use 0"),
    (["objective=inpo", "objective.inpo_eta=0"], r"objective\.inpo_eta=0\.0: must be positive"),
    (["objective=inpo", "objective.tau=1"], r"objective\.tau=1\.0: must lie between 0 and objective\.inpo_eta=0\.0075"),
    (["objective=simpo", "objective.beta=0"], r"objective\.beta=0\.0: must be positive"),
    (["objective=simpo", "objective.gamma=-1"], r"objective\.gamma=-1\.0: use 0"),
    (["objective=sppo_single", "oracle.opponents=2"], r"objective=sppo_single with oracle\.opponents=2: it trains on"),
    (["gate=rescaled", "gate.exponent=0"], r"gate\.exponent=0: must be"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_a_mistake_has_one_message(overrides: list[str], message: str) -> None:
    from sparring.pipeline.build import build
    from tests.pipeline.plans import Fixed

    with pytest.raises(ConfigError, match=message) as caught:
        build({"": config.load(["hardware=cpu", *overrides])}, Fixed())
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.name=kto: choose one of sppo, "):
        objective_from({"name": "kto"})
