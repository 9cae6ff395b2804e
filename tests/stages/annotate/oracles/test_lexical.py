"""The judge `lexical`: its features, the formula by hand-made weights, and the committed folder."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sparring.stages.annotate.oracle import Duel, Oracle, last_user_text
from sparring.stages.annotate.oracles import OracleContext, load
from sparring.stages.annotate.oracles.lexical import (
    CHARACTERS,
    HABITS,
    WORDS,
    LexicalOracle,
    habit_tokens,
    ngram_features,
)

JUDGE = Path(__file__).parents[4] / "stages/annotate/judges/lexical"
PROMPT = (("user", "Explain how rain forms."),)
RESPONSES = ("Rain forms when vapour cools.", "rain " * 40, "I cannot help.", "", "日本語 text")


@pytest.fixture(scope="module")
def judge() -> Oracle:
    return load("lexical", {}, OracleContext(folders={"judge": JUDGE}))


def test_logit_is_weight_times_difference() -> None:
    pairs = [("Explain how rain forms.", text) for text in RESPONSES[:2]]
    first, second = ngram_features(pairs).toarray()
    weight = np.random.default_rng(0).normal(size=WORDS + CHARACTERS + HABITS)
    got = LexicalOracle(weight, frozenset())([Duel(PROMPT, *RESPONSES[:2])]).logits
    assert got == pytest.approx([weight @ first - weight @ second])


def test_blocks_have_length_one_whatever_the_text() -> None:
    features = ngram_features([("a", "Short text."), ("a", "Much longer text, with more words in it. " * 20)])
    ends = [0, WORDS, WORDS + CHARACTERS, WORDS + CHARACTERS + HABITS]
    for start, end in pairwise(ends):
        np.testing.assert_allclose(np.linalg.norm(features[:, start:end].toarray(), axis=1), 1.0)


def test_habit_tokens() -> None:
    assert habit_tokens(("Blue whales?", "whales eat krill")) == ["in", "in:whales", "out", "new"]
    assert habit_tokens(("", "a b c a b c")) == ["new", "new", "new", "again"]


def test_only_the_last_user_turn_is_the_prompt() -> None:
    assert last_user_text((("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))) == "c"


def test_hashing_is_stateless() -> None:
    together = ngram_features([("x", "one two"), ("x", "three")])[:1]
    assert (together != ngram_features([("x", "one two")])).nnz == 0


def test_golden_buckets() -> None:
    words = ngram_features([("", "a cat")])[:, :WORDS].tocoo()
    assert dict(zip(words.col.tolist(), words.data.tolist(), strict=True)) == pytest.approx(
        dict.fromkeys((5927, 24149, 27058), 3**-0.5)
    )


def test_committed_judge_is_antisymmetric_and_batch_invariant(judge: Oracle) -> None:
    duels = [Duel(PROMPT, a, b) for a in RESPONSES for b in RESPONSES]
    forward = judge(duels).logits
    backward = judge([Duel(d.prompt, d.second, d.first) for d in duels]).logits
    assert forward.dtype == np.float64
    assert np.abs(forward).max() > 0.1
    np.testing.assert_allclose(forward, -backward, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([judge([d]).logits for d in duels]), forward, atol=1e-12)


def test_no_duels_no_logits(judge: Oracle) -> None:
    assert judge([]).logits.shape == (0,)


def test_committed_judge_dislikes_loops(judge: Oracle) -> None:
    assert judge([Duel(PROMPT, RESPONSES[0], RESPONSES[1])]).logits[0] > 0
