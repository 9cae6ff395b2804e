"""Time, throughput and cost, by figures worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparring.pipeline.report.cost import numbers, seconds, total
from sparring.pipeline.runs.run_history import open_arms
from tests.pipeline.report.fabricated import MADE_WITH, Run, page_of, section
from tests.pipeline.test_report import manifest

EIGHT = {**MADE_WITH, "hardware": {"gpus": 8}}


def test_half_an_hour_on_eight_gpus_is_four_gpu_hours() -> None:
    made = manifest("score", {}, seconds=1800.0, stats={"tokens": 3600.0, "duels": 900.0}, made_with=EIGHT)
    assert numbers(made, 24.0) == {
        "seconds": 1800.0,
        "rows": 61,
        "tokens": 3600.0,
        "tokens/s": 2.0,
        "duels": 900.0,
        "duels/s": 0.5,
        "attempts": 1,
        "GPU-hours": 4.0,
        "$": 12.0,
    }
    plain = manifest("score", {}, seconds=0.0, stats={"duels": 900.0})
    assert numbers(plain, None) == {"seconds": 0.0, "rows": 61, "duels": 900.0, "attempts": 1}


def test_what_can_be_added_up_is() -> None:
    assert total([{"seconds": 2.0, "rows": 5, "GPU-hours": 1.0}, {"seconds": 3.0, "duels/s": 9.0}]) == {
        "seconds": 5.0,
        "GPU-hours": 1.0,
    }


def test_every_step_belongs_to_a_part_of_its_iteration() -> None:
    labels = (
        "prompts",
        "sample",
        "sample_base",
        "score",
        "reference_base",
        "train",
        "score_oracle_vs01",
        "crossplay",
        "logprobs_own",
    )
    steps = {label: manifest(label, {}, seconds=10.0**i) for i, label in enumerate(labels)}
    named = {label: vars(one) | {"fingerprint": label} for label, one in steps.items()}
    found = seconds({label: type(steps[label])(**fields) for label, fields in named.items()})
    assert found == {"sample": 11.0, "evaluate": 111000100.0, "annotate": 1000.0, "train": 110000.0}
    assert seconds({"one": steps["train"], "again": steps["train"]}) == {"other": 1e5}  # one artifact, two labels


def test_the_page_has_gpu_hours_dollars_and_a_total(tmp_path: Path) -> None:
    run = Run(tmp_path).begin()
    run.add(0, "prompts", seconds=900.0, made_with=EIGHT)
    run.add(1, "score", seconds=2700.0, made_with=EIGHT, stats={"duels": 5400.0})
    (run.folder / "config.yaml").write_text("hardware: {usd_per_hour: 24}\n")
    drawn = section(page_of(open_arms(tmp_path / "runs", ["mine"])), "Time and cost")
    assert "In all 1.00 hours, 8.0 GPU-hours, $24.00 at $24 an hour." in drawn
    heads = ("seconds", "rows", "duels", "duels/s", "attempts", "GPU-hours", "$")
    assert all(f'<th scope="col">{head}</th>' in drawn for head in heads[2:]) and "tokens" not in drawn
    cells = "".join(f"<td>{cell}</td>" for cell in ("1", "2,700.0", "0", "5,400", "2", "1", "6.00", "18.00"))
    assert f'<th scope="row">score</th>{cells}' in drawn
    cells = "".join(f"<td>{cell}</td>" for cell in ("", "3,600.0", "", "5,400", "", "", "8.00", "24.00"))
    assert f'<th scope="row">total</th>{cells}' in drawn


@pytest.mark.parametrize("config", ["", "hardware: 3", "hardware: {usd_per_hour: much}"])
def test_without_gpus_and_a_price_there_are_no_columns_for_them(tmp_path: Path, config: str) -> None:
    run = Run(tmp_path).begin()
    run.add(1, "train", seconds=90.0)
    (run.folder / "config.yaml").write_text(config)
    drawn = section(page_of(open_arms(tmp_path / "runs", ["mine"])), "Time and cost")
    assert "In all 1.5 minutes. Seconds are those" in drawn and "GPU-hours" not in drawn and "$" not in drawn
