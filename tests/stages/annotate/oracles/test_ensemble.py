"""The oracle ensemble: the mixture by hand, its limits, and real members through the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sparring.pipeline.config import load
from sparring.stages.annotate import oracles
from sparring.stages.annotate.config import SCORE, JudgeConfig
from sparring.stages.annotate.oracle import Duel, Verdicts, prompt_key
from sparring.stages.annotate.oracles.ensemble import Ensemble, mixed
from sparring.stages.annotate.score import Scorer
from sparring.stages.errors import ConfigError
from sparring.stages.sample import embedded
from sparring.stages.step import Shard
from tests import settings
from tests.artifacts import as_input, as_job, folder_input, samples_table
from tests.refusals import refused

JUDGES = Path(__file__).parents[4] / "stages" / "annotate" / "judges"
HALVES = np.log([0.5, 0.5])


class Fixed:
    """Says what it was told, and that it saw the prompt `seen`."""

    def __init__(self, *logits: float, seen: str = "") -> None:
        self.logits, self.trained_on = np.array(logits), frozenset([prompt_key([("user", seen)])])

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """The second duel was cut for who saw something."""
        return Verdicts(self.logits, np.array([False, bool(self.logits[0] > 1)]))


def test_probabilities_are_mixed_by_hand() -> None:
    nine, two = np.log(9), np.log(1 / 4)  # .9 and .2
    assert mixed(np.array([[nine], [two]]), HALVES)[0] == pytest.approx(np.log(0.55 / 0.45), abs=1e-12)
    quarter = mixed(np.array([[nine], [two]]), np.log([0.25, 0.75]))[0]
    assert quarter == pytest.approx(np.log(0.375 / 0.625), abs=1e-12)


@given(arrays(np.float64, (3, 5), elements=st.floats(-700, 700)))
def test_it_is_antisymmetric_between_its_members_and_never_saturates(logits: np.ndarray) -> None:
    weights = np.log([0.2, 0.3, 0.5])
    found = mixed(logits, weights)
    assert np.array_equal(mixed(-logits, weights), -found) and np.isfinite(found).all()
    slack = 1e-9 * (1 + np.abs(logits).max())
    assert (found <= logits.max(axis=0) + slack).all() and (found >= logits.min(axis=0) - slack).all()


def test_no_member_has_more_than_its_weight() -> None:
    assert mixed(np.array([[600.0], [0.0]]), HALVES)[0] == pytest.approx(np.log(3), abs=1e-12)  # P = .5 + .25


def test_it_can_prefer_in_cycles_although_no_member_does() -> None:
    """Condorcet: three orders of three responses."""
    logits = np.array([[9.0, 9.0, -9.0], [-9.0, 9.0, 9.0], [9.0, -9.0, 9.0]])  # a over b, b over c, c over a
    assert (mixed(logits, np.log([1 / 3] * 3)) > 0.6).all()


def test_members_are_asked_and_weighed() -> None:
    made = Ensemble({"a": Fixed(2.0, 0.0, seen="x"), "b": Fixed(0.0, 0.0, seen="y")}, {"a": 3.0, "b": 1.0})
    verdicts = made([Duel((), "a", "b")] * 2)
    p = 0.75 / (1 + np.exp(-2)) + 0.25 / 2
    assert verdicts.logits[0] == pytest.approx(np.log(p / (1 - p)), abs=1e-12) and verdicts.logits[1] == 0
    assert verdicts.truncated.tolist() == [False, True]
    assert made.trained_on == {prompt_key([("user", text)]) for text in "xy"}


def test_the_step_with_real_members(tmp_path: Path) -> None:
    samples = as_input("samples", tmp_path / "samples", [samples_table({"a": ["Yes, it is a fine day.", "asdf", ""]})])
    parts = {
        "first.judge": JUDGES / "mini",
        "first.encoder": embedded.encoder_folder(),
        "second.judge": JUDGES / "lexical",
    }
    members = {"first": JudgeConfig(kind="mini"), "second": JudgeConfig(kind="lexical")}
    chosen = settings.score("ensemble", members, weights={"first": 1.0, "second": 1.0})
    job = as_job(SCORE, chosen, [samples, *(folder_input(role, path) for role, path in parts.items())], tmp_path)
    scorer = Scorer(job)
    found = np.reshape(scorer(Shard(index=0)).table["logits"].to_pylist(), (3, 3))
    given_ = oracles.OracleContext(folders=parts, judge=chosen.oracle)
    one, two = (
        oracles.load(kind, {}, given_.member(name))([Duel((("user", "Say a."),), "Yes, it is a fine day.", "asdf")])
        for name, kind in (("first", "mini"), ("second", "lexical"))
    )
    assert found[0, 1] == pytest.approx(mixed(np.stack([one.logits, two.logits]), HALVES)[0], abs=1e-9)
    assert one.logits[0] != two.logits[0] and np.abs(found + found.T).max() < 1e-9


def test_members_and_weights_must_be_the_same() -> None:
    mixed = ["hardware=cpu", "judge=pairrm", "oracle=ensemble"]
    with refused(ConfigError, "weights", "first, second", "oracle.members first:"):
        load([*mixed, "~oracle.members.second"])
    with refused(ConfigError, "oracle.members a:"):
        load(["hardware=cpu", "oracle=mini", "judge=pairrm", "+oracle@oracle.members.a=lexical"])
    with refused(ConfigError, "weights.first=-1.0"):
        load([*mixed, "oracle.options.weights.first=-1"])
