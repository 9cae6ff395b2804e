"""The table's figures."""

from pipeline.artifact import Manifest
from pipeline.report.table import FIGURES, warnings, win_rate


def manifest(step: str, summary: dict[str, object], **fields: object) -> Manifest:
    plain = {
        "rows": {"in": 64, "out": 61, "dropped": {"tie": 3}},
        "seconds": 20.0,
        "stats": {"tokens": 5000.0},
    }
    return Manifest(
        fingerprint="a" * 64,
        step=step,
        version=1,
        identity={},
        inputs={},
        files=(),
        summary=summary,
        attempts=["x"],
        made_with={},
        **{**plain, **fields},  # type: ignore[arg-type]
    )


COMPARISON = {
    "opponent": "base",
    "judge": "oracle",
    "win_rate": 0.55,
    "low": 0.51,
    "high": 0.59,
    "informative": True,
}


def test_a_win_rate_carries_its_interval_and_says_when_it_means_nothing() -> None:
    assert win_rate(COMPARISON) == "0.550 [0.510, 0.590]"
    assert win_rate({**COMPARISON, "low": 0.49, "informative": False}).endswith("not informative")
    assert win_rate({**COMPARISON, "win_rate": None}) == "no prompts"


def test_figures_come_from_manifests() -> None:
    steps = {
        "sample": manifest("sample", {"prompts": 64, "responses": 256, "length_mean": 80.25}),
        "pairs": manifest("pairs", {}),
        "evaluate": manifest("evaluate", {"comparisons": [COMPARISON], "alarms": []}),
    }
    shown = {name: figure(steps) for name, figure in FIGURES}
    assert shown["pairs kept"] == "61" and shown["pairs dropped"] == "tie 3"
    assert shown["sampled tokens/s"] == "250" and shown["oracle: vs base"] == "0.550 [0.510, 0.590]"
    assert shown["oracle: vs previous"] is None and shown["seconds: train"] is None


def test_prompts_that_were_dropped_or_dealt_again_are_said() -> None:
    steps = {
        "sample": manifest("sample", {"redealt": 3}, rows={"in": 64, "out": 63, "dropped": {"poison": 1}}),
        "sample_heldout": manifest("sample", {}, rows={"in": 64, "out": 64, "dropped": {}}),
    }
    again, dropped = warnings(steps)
    assert "dealt again under a new permutation" in again and dropped == "sample: prompts dropped: 1 poison"


def test_what_was_imported_is_said_once() -> None:
    origin = {"provenance": {"path": "/data/train.parquet", "rows": 1200}}
    imported = {name: manifest(name, origin, stats={}) for name in ("sample", "pairs")}
    assert warnings(imported) == ["pairs imported: 61 of the 1,200 rows of /data/train.parquet"]
    assert warnings({**imported, "pairs": manifest("pairs", {})})[0].startswith("sample imported: 61 of the 1,200")
    assert warnings({"pairs": manifest("pairs", {})}) == []
    assert dict(FIGURES)["sampled tokens/s"](imported) is None
