"""The table's figures."""

from pathlib import Path
from typing import Any

from rich.console import Console

from sparring.pipeline.report.crossplay import games
from sparring.pipeline.report.figures import iteration_figures, notes, win_rate_text, with_finding
from sparring.pipeline.report.terminal import print_games
from sparring.pipeline.store.manifest import Manifest


def manifest(step: str, summary: dict[str, Any], **fields: Any) -> Manifest:
    plain = {
        "files": (),
        "rows": {"in": 64, "out": 61, "dropped": {"tie": 3}},
        "seconds": 20.0,
        "stats": {"tokens": 5000.0},
        "made_with": {},
    }
    return Manifest(
        fingerprint="a" * 64,
        step=step,
        version=1,
        identity={},
        inputs={},
        summary=summary,
        attempts=["x"],
        **{**plain, **fields},
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
    def shown(**changes: object) -> str:
        return win_rate_text(with_finding({**COMPARISON, "n": 64, **changes}, 0.95))

    assert shown(low=0.53, high=0.57) == "0.550 [0.530, 0.570]"
    assert shown(low=0.49, informative=False).endswith("not informative")
    assert shown(win_rate=None) == "no prompts"
    assert shown().endswith("no difference detectable"), "0.050 is less than the 0.057 that it takes"
    assert shown(low=0.55, high=0.55, n=1).endswith("no difference detectable"), "one prompt has no interval"


def test_figures_come_from_manifests() -> None:
    steps = {
        "sample": manifest("sample", {"prompts": 64, "responses": 256, "length_mean": 80.25}),
        "pairs": manifest("pairs", {}),
        "evaluate": manifest("evaluate", {"comparisons": [COMPARISON], "alarms": []}),
    }
    shown = {name: figure.text for name, figure in iteration_figures(1, steps, None).items()}
    assert shown["pairs kept"] == "61" and shown["pairs dropped"] == "tie 3"
    assert shown["sampled tokens/s"] == "250" and shown["oracle: vs base"].startswith("0.550 [0.510, 0.590]")
    assert "oracle: vs previous" not in shown and "seconds: train" not in shown


def test_prompts_that_were_dropped_or_dealt_again_are_said() -> None:
    steps = {
        "sample": manifest("sample", {"redealt": 3}, rows={"in": 64, "out": 63, "dropped": {"poison": 1}}),
        "sample_heldout": manifest("sample", {}, rows={"in": 64, "out": 64, "dropped": {}}),
    }
    again, dropped = notes(steps)
    assert "dealt again under a new permutation" in again and dropped == "sample: prompts dropped: poison 1"


def test_what_was_imported_is_said_once() -> None:
    origin: dict[str, Any] = {"provenance": {"path": "/data/train.parquet", "rows": 1200}}
    imported = {name: manifest(name, origin, stats={}) for name in ("sample", "pairs")}
    assert notes(imported) == ["pairs imported: 61 of the 1,200 rows of /data/train.parquet"]
    assert notes({**imported, "pairs": manifest("pairs", {})})[0].startswith("sample imported: 61 of the 1,200")
    assert notes({"pairs": manifest("pairs", {})}) == []
    assert "sampled tokens/s" not in iteration_figures(1, imported, None)


ROUND: dict[str, Any] = {
    "win_rates": [[0.5, 0.3, 0.6], [0.7, 0.5, 0.49], [0.4, 0.51, 0.5]],
    "low": [[0.5, 0.25, 0.55], [0.6, 0.5, 0.4], [0.3, 0.45, 0.5]],
    "high": [[0.5, 0.4, 0.7], [0.75, 0.5, 0.55], [0.45, 0.6, 0.5]],
    "cycle": [0, 2, 1],
    "cycle_beyond_doubt": [],
    "exploitability": [0.2, 0.01, 0.1],
    "exploited_by": [1, 2, 0],
    "average_exploitability": 0.063,
    "mixture": [0.03, 0.32, 0.65],
    "mixture_exploitability": -1e-17,
    "duality_gap": 0.0,
}


def test_the_cross_play_of_the_last_iteration_is_shown(tmp_path: Path) -> None:
    unplayed = {**ROUND, "mixture": None, "cycle": [], "win_rates": [[0.5, None, 0.6], *ROUND["win_rates"][1:]]}
    judged = {"judges": {"oracle": ROUND, "second": unplayed}}
    done = {1: {}, 2: {"crossplay": manifest("crossplay", {"judges": {}})}, 3: {"crossplay": manifest("x", judged)}}
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    print_games(games(done), console)
    lines = [line.strip() for line in console.export_text().splitlines()]
    assert "cross-play, oracle: P(row beats column); ~ where the interval contains 1/2" in lines
    assert "│ π_1 │ 0.700 │      · │ ~0.490 │" in lines and "│ π_0 │     · │        │  0.600 │" in lines
    assert "cyclic, by point estimates alone: π_0 beats π_2 beats π_1 beats π_0" in lines
    assert "an equilibrium of the set, by point estimates: π_0: 0.03, π_1: 0.32, π_2: 0.65" in lines
    assert "exploitability of it 0.000, of the even mixture 0.063" in lines
    assert sum(line.startswith("not cyclic") for line in lines) == 1
    assert sum(line.startswith("an equilibrium") for line in lines) == 1
    print_games(games({1: {}}), console)
    assert console.export_text(clear=False) == ""
