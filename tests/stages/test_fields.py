"""Settings as plain data."""

from __future__ import annotations

from sparring.stages import fields


def test_dotted_keys_lead_to_the_values_of_nested_settings() -> None:
    nested = {"sampler": {"k": 2, "stop": ["a"], "engine_args": {}}, "seed": 0, "judge.trust": {"a": {"b": None}}}
    assert fields.dotted(nested) == {
        "sampler.k": 2,
        "sampler.stop": ["a"],
        "sampler.engine_args": {},
        "seed": 0,
        "judge.trust.a.b": None,
    }
    assert fields.dotted({}) == {}
