"""Which pairs the probe is of: a draw by seed, not the first ones of a batch that is sorted by length."""

from __future__ import annotations

from sparring.stages.train.files.probe import ROWS, drawn


def test_the_pairs_are_a_draw_by_seed() -> None:
    assert ROWS >= 64 and drawn(3, 0) == [0, 1, 2] and drawn(ROWS, 5) == list(range(ROWS))
    found = drawn(1000, 0)
    assert len(set(found)) == ROWS == len(found) and found == sorted(found) == drawn(1000, 0) != drawn(1000, 1)


def test_long_and_short_pairs_are_as_likely() -> None:
    """The mean rank over seeds is that of all pairs, within four standard errors."""
    means = [sum(drawn(1000, seed)) / ROWS for seed in range(50)]
    error = (1000 / 12**0.5) * ((1 - ROWS / 1000) / (ROWS * 50)) ** 0.5
    assert abs(sum(means) / 50 - 499.5) < 4 * error
