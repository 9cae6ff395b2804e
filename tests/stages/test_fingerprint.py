"""Fingerprints: stable, order-free, and refusing what they cannot hash."""

import pytest

from sparring.stages.errors import ConfigError
from sparring.stages.fingerprint import canonical, digest, fingerprint
from tests.refusals import refused


def test_golden() -> None:
    assert fingerprint("pairs", 1, {"win_rate": "matrix"}, {"scores": "ab"}) == (
        "dfb46366d1b5c8ab1f12c1c8e3842cbf770013f422bf0010f70f307abc12918a"
    )


def test_key_order_does_not_matter() -> None:
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": (2, None), "a": 1})


def test_whole_floats_are_their_integers() -> None:
    assert canonical({"lr": 1.0}) == canonical({"lr": 1}) == b'{"lr":1}'
    assert canonical({"lr": 1e-5}) != canonical({"lr": 2e-5})


@pytest.mark.parametrize(
    "change",
    [("score", 1, {}, {}), ("pairs", 2, {}, {}), ("pairs", 1, {"a": 0}, {}), ("pairs", 1, {}, {"s": "x"})],
)
def test_every_part_counts(change: tuple[str, int, dict[str, int], dict[str, str]]) -> None:
    assert fingerprint(*change) != fingerprint("pairs", 1, {}, {})


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", float("nan"), float("inf"), {"a": {"b": {3}}}, {1: "a"}])
def test_unknown_values_are_refused_with_their_place(value: object) -> None:
    with refused(ConfigError, "$.here"):
        canonical({"here": value})


def test_true_is_not_one() -> None:
    assert canonical(True) != canonical(1)
