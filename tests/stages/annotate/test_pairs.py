"""The step pairs: what is chosen, what is dropped and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparring.stages.annotate import calibrate, winrate
from sparring.stages.annotate.config import CALIBRATE, PAIRS
from sparring.stages.annotate.embed import EMBEDDINGS_SCHEMA
from sparring.stages.annotate.pairs import PAIRS_SCHEMA, Pairer, finish, shards
from sparring.stages.annotate.score import SCORES_SCHEMA
from sparring.stages.annotate.winrate import first_half
from sparring.stages.errors import DataError
from sparring.stages.step import Job, Shard
from tests import settings
from tests.artifacts import as_input, as_job, run_step, samples_table
from tests.refusals import refused

CLEAR = [[0, 2, 4], [-2, 0, 2], [-4, -2, 0]]
"""Response 0 beats 1 beats 2; L = M, since M is antisymmetric."""
CYCLE = [[0, 2, -2], [-2, 0, 2], [2, -2, 0]]
LOSER = [[0, -0.2, 3], [0.2, 0, -2], [-3, 2, 0]]
"""0 has the best win rate and 1 the worst, but 1 beats 0."""


def score_row(row_id: str, logits: Any, trained_on: bool = False) -> dict[str, Any]:
    m = np.array(logits, dtype=np.float64)
    return {
        "id": row_id,
        "n_left": len(m),
        "n_right": len(m),
        "logits": m.ravel(),
        "swapped": m.T.ravel(),
        "truncated": [False] * m.size,
        "anchors": None,
        "trained_on": trained_on,
    }


def scores_table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCORES_SCHEMA)


def job_of(folder: Path, samples: list[pa.Table], scores: list[pa.Table], **changes: Any) -> Job:
    inputs = [as_input("samples", folder / "samples", samples), as_input("scores", folder / "scores", scores)]
    return as_job(PAIRS, settings.pairs(**changes), inputs, folder)


def mixed(folder: Path, **changes: Any) -> Job:
    """Four prompts: a clear one (its chosen one is capped), a cycle, one the judge saw, one lost duel."""
    texts = ["long text", "text", "t"]
    samples = [
        samples_table({"clear": texts, "cycle": texts}, capped=[("clear", 0)]),
        samples_table({"seen": texts, "loser": texts}, capped=[("loser", 2)]),
    ]
    scores = [
        scores_table(score_row("clear", CLEAR), score_row("cycle", CYCLE)),
        scores_table(score_row("loser", LOSER), score_row("seen", CLEAR, trained_on=True)),
    ]
    return job_of(folder, samples, scores, **changes)


def run(job: Job) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    tables, _, summary = run_step(job, Pairer(job), shards, finish)
    assert all(table.schema == PAIRS_SCHEMA for table in tables)
    return [row for table in tables for row in table.to_pylist()], summary


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def test_pairs_and_drops(tmp_path: Path) -> None:
    rows, summary = run(mixed(tmp_path))
    assert [(row["id"], row["n"], row["chosen"], row["rejected"]) for row in rows] == [
        ("clear", 3, 0, 2),
        ("loser", 3, 0, 1),
    ]
    a, b = sigmoid(2), sigmoid(4)
    expected = [[0.5, a, b], [1 - a, 0.5, a], [1 - b, 1 - a, 0.5]]
    np.testing.assert_allclose(np.reshape(rows[0]["P"], (3, 3)), expected, atol=1e-15)
    np.testing.assert_allclose(rows[0]["win_rates"], np.mean(expected, axis=1), atol=1e-15)
    p_w = (0.5 + sigmoid(-0.2) + sigmoid(3)) / 3
    assert rows[1]["win_rates"][0] == pytest.approx(p_w, abs=1e-15)
    assert summary["dropped"] == {"oracle_trained_on_prompt": 1, "tie": 1}
    assert (summary["prompts"], summary["pairs"]) == (4, 2)
    assert (summary["capped"], summary["chosen_loses_head_to_head"]) == (1, 1)
    assert summary["mean_p_w"] == pytest.approx((rows[0]["win_rates"][0] + p_w) / 2, abs=1e-15)
    assert summary["mean_p_l"] == pytest.approx((rows[0]["win_rates"][2] + rows[1]["win_rates"][1]) / 2, abs=1e-15)
    assert summary["cycle_rate"] == pytest.approx(2 / 3)  # the seen prompt is left out


def test_length_correlation_is_of_tokens_within_prompts(tmp_path: Path) -> None:
    job = job_of(tmp_path, [samples_table({"a": ["xxxx", "xx", "x"]})], [scores_table(score_row("a", CLEAR))])
    rows, summary = run(job)
    expected = np.corrcoef([4, 2, 1], rows[0]["win_rates"])[0, 1]
    assert summary["length_correlation"] == pytest.approx(expected, abs=1e-12) and expected > 0.9


def test_capped_pairs_can_be_dropped(tmp_path: Path) -> None:
    rows, summary = run(mixed(tmp_path, capped="drop"))
    assert [row["id"] for row in rows] == ["loser"]  # its capped response is neither chosen nor rejected
    assert summary["dropped"] == {"capped": 1, "oracle_trained_on_prompt": 1, "tie": 1}


def test_lost_duels_can_be_dropped(tmp_path: Path) -> None:
    rows, summary = run(mixed(tmp_path, require_head_to_head=True))
    assert [row["id"] for row in rows] == ["clear"]
    assert summary["dropped"] == {"head_to_head": 1, "oracle_trained_on_prompt": 1, "tie": 1}


def test_all_pairs_are_every_two_that_differ(tmp_path: Path) -> None:
    rows, summary = run(mixed(tmp_path, by="all_pairs", capped="drop", require_head_to_head=True))
    assert [(row["id"], row["chosen"], row["rejected"]) for row in rows] == [("clear", 1, 2)]
    # clear: 2 of 3 have the capped best one; the cycle: 3 ties; seen: 3; loser: 0 over 1 lost its duel, 2 is capped
    dropped = {"capped": 4, "head_to_head": 1, "oracle_trained_on_prompt": 3, "tie": 3}
    assert summary["dropped"] == dropped and summary["prompts"] == 4
    rows, summary = run(mixed(tmp_path / "all", by="all_pairs"))
    assert [(row["id"], row["chosen"], row["rejected"]) for row in rows] == [
        ("clear", 0, 1),
        ("clear", 0, 2),
        ("clear", 1, 2),
        ("loser", 0, 1),
        ("loser", 0, 2),
        ("loser", 2, 1),
    ]
    assert summary["pairs"] == 6


def test_top_against_a_random_worse_one(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(60)]
    samples = [samples_table({name: ["long text", "text", "t"] for name in names})]
    scores = [scores_table(*(score_row(name, CLEAR) for name in names))]
    rows, _ = run(job_of(tmp_path, samples, scores, by="top_vs_random", seed=3))
    drawn = [row["rejected"] for row in rows]
    assert (
        {row["chosen"] for row in rows} == {0} and 15 <= drawn.count(1) <= 45 and drawn.count(1) + drawn.count(2) == 60
    )
    again, _ = run(job_of(tmp_path / "again", samples, scores, by="top_vs_random", seed=3))
    other, _ = run(job_of(tmp_path / "other", samples, scores, by="top_vs_random", seed=4))
    assert again == rows and other != rows


def gated_job(
    folder: Path, texts: dict[str, Any], scores: list[pa.Table], s: dict[str, Any], gate: str = "linear", **changes: Any
) -> Job:
    table = pa.Table.from_pylist(
        [{"id": i, "similarity": np.ravel(one).tolist(), "chunks": 0} for i, one in s.items()], schema=EMBEDDINGS_SCHEMA
    )
    job = job_of(folder, [samples_table(texts)], scores, gated=settings.calibrate(gate, **changes))
    return replace(job, inputs={**job.inputs, "embeddings": as_input("embeddings", folder / "e", [table])})


def test_the_gate_can_have_a_say(tmp_path: Path) -> None:
    """0 is best only against 2, which says the same: gated, 1 is chosen; the win rates written stay ungated."""
    logits = [[0, 0.1, 4], [-0.1, 0, 2], [-4, -2, 0]]
    s = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    texts = {"a": ["x", "y", "z"]}
    scores = [scores_table(score_row("a", logits))]
    (plain,), _ = run(job_of(tmp_path / "plain", [samples_table(texts)], scores))
    (gated,), _ = run(gated_job(tmp_path / "gated", texts, scores, {"a": s}))
    assert (plain["chosen"], plain["rejected"]) == (0, 2) and (gated["chosen"], gated["rejected"]) == (1, 2)
    assert plain["win_rates"] == gated["win_rates"] and plain["P"] == gated["P"]


def test_the_control_selects_by_the_gates_that_calibrate_deals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"p{i}" for i in range(8)]
    similarities = {}
    for name in names:
        above = np.triu(rng.uniform(0, 1, (3, 3)), 1)
        similarities[name] = above + above.T + np.eye(3)
    texts = {name: ["x", "y", "z"] for name in names}
    scores = [scores_table(*(score_row(name, rng.normal(size=(3, 3)).tolist()) for name in names))]
    job = gated_job(tmp_path, texts, scores, similarities, gate="permuted", dealt_over="prompts")
    (part,) = shards(job)
    assert sorted(row for _, row in part.payload["sources"].values()) == sorted(names)
    tables, _, _ = run_step(job, Pairer(job), shards, finish)
    inputs = [as_input("pairs", tmp_path / "p", tables), job.inputs["embeddings"]]
    after = as_job(CALIBRATE, settings.calibrate("permuted", dealt_over="prompts"), inputs, tmp_path)
    rows = run_step(after, calibrate.Calibrator(after), calibrate.shards, calibrate.finish)[0][0].to_pylist()
    for row in rows:
        source = part.payload["sources"][row["id"]][1]
        np.testing.assert_allclose(row["gate"], similarities[source].astype(np.float32).ravel(), atol=1e-7)
        assert row["target_w"] >= row["target_l"]  # selected by these very targets


def test_scores_against_anchors(tmp_path: Path) -> None:
    """Anchors 0 and 2 of four; 1 and 3 did not meet."""
    m = np.array([[0, 1, 2, 3], [-1, 0, 1, 2], [-2, -1, 0, 1], [-3, -2, -1, 0]], dtype=np.float64)[:, [0, 2]]
    row = {**score_row("a", CLEAR), "n_left": 4, "n_right": 2, "logits": m.ravel(), "swapped": -m.ravel()}
    row |= {"truncated": [False] * 8, "anchors": [0, 2]}
    samples = [samples_table({"a": ["w", "x", "y", "z"]})]
    (found,), _ = run(job_of(tmp_path, samples, [scores_table(row)]))
    assert [i for i, p in enumerate(found["P"]) if p is None] == [4 * 1 + 3, 4 * 3 + 1]
    assert (found["chosen"], found["rejected"]) == (0, 3)
    assert found["win_rates"][0] == pytest.approx((0.5 + sigmoid(1) + sigmoid(2) + sigmoid(3)) / 4, abs=1e-15)
    assert found["win_rates"][1] == pytest.approx((0.5 + 3 * (sigmoid(-1) + sigmoid(1)) / 2) / 4, abs=1e-15)
    (found,), _ = run(job_of(tmp_path / "all", samples, [scores_table(row)], win_rate="aggregate_score"))
    assert None not in found["P"]


def test_what_p_is_like_is_told_by_shard(tmp_path: Path) -> None:
    _, summary = run(mixed(tmp_path))
    assert [one["cycle_rate"] for one in summary["shards"]] == [0.5, 1.0]
    assert [one["pairs"] for one in summary["shards"]] == [1, 1]


def test_position_bias_is_averaged_out(tmp_path: Path) -> None:
    biased = (np.array(CLEAR) + 3 * (1 - np.eye(3))).tolist()
    samples = [samples_table({"a": ["x", "y", "z"], "b": ["x", "y", "z"]})]
    rows, _ = run(job_of(tmp_path, samples, [scores_table(score_row("a", CLEAR), score_row("b", biased))]))
    np.testing.assert_allclose(rows[0]["P"], rows[1]["P"], atol=1e-15)


def test_aggregate_score_is_the_published_recipe(tmp_path: Path) -> None:
    m = np.log(0.668 / 0.332)
    samples = [samples_table({"a": ["x", "y"]})]
    scores = [scores_table(score_row("a", [[0, m], [-m, 0]]))]
    rows, _ = run(job_of(tmp_path / "matrix", samples, scores))
    assert rows[0]["P"][1] == pytest.approx(0.668, abs=1e-12)
    rows, _ = run(job_of(tmp_path / "aggregate", samples, scores, win_rate="aggregate_score"))
    assert rows[0]["P"][1] == pytest.approx(0.802, abs=5e-4)
    assert rows[0]["win_rates"] == pytest.approx([(0.5 + rows[0]["P"][1]) / 2, (0.5 + rows[0]["P"][2]) / 2])


def test_a_logit_that_is_not_finite_names_part_and_row(tmp_path: Path) -> None:
    bad = score_row("b", [[0, float("inf")], [1, 0]])
    samples = [samples_table({"a": ["x", "y"]}), samples_table({"b": ["x", "y"]})]
    job = job_of(tmp_path, samples, [scores_table(score_row("a", [[0, 1], [-1, 0]])), scores_table(bad)])
    with refused(DataError, "part-00001", "row 'b'", "oracle logit[0, 1]", "inf"):
        run(job)


def test_scores_of_other_responses_are_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path, [samples_table({"a": ["x", "y"]})], [scores_table(score_row("a", CLEAR))])
    with refused(DataError, "row 'a'", "3 x 3", "2"):
        run(job)


def test_a_prompt_without_scores_is_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path, [samples_table({"a": ["x", "y", "z"]})], [scores_table(score_row("b", CLEAR))])
    with refused(DataError, "scores", "row 'a'"):
        run(job)


def game(rng: np.random.Generator, k: int) -> np.ndarray:
    """Debiased logits (K, K): Bradley-Terry scores and noise that is not transitive, both of deviation 1."""
    strength, noise = rng.normal(size=k), rng.normal(size=(k, k))
    logits: np.ndarray = strength[:, None] - strength[None, :] + (noise - noise.T) / 2
    return logits


def met(row_id: str, logits: np.ndarray, anchors: list[int]) -> dict[str, Any]:
    """A row of scores in which each response met the anchors alone."""
    seen = logits[:, anchors]
    row = {**score_row(row_id, logits.tolist()), "n_right": len(anchors), "anchors": anchors}
    return {**row, "logits": seen.ravel(), "swapped": -seen.ravel(), "truncated": [False] * seen.size}


def errors(folder: Path, mode: str, k: int = 16, m: int = 3, prompts: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """What is written of the chosen and the rejected response's win rate less the true one: mean, standard error."""
    rng, responses = np.random.default_rng(0), [{"ids": [1], "finish": "stop"}] * k
    pairer = Pairer(job_of(folder, [samples_table({"a": ["x", "y"]})], [scores_table()], win_rate=mode))
    found = []
    for prompt in range(prompts):
        logits = game(rng, k)
        true = winrate.win_rates(winrate.preference_matrix(logits))
        row = met(f"p{prompt}", logits, sorted(rng.choice(k, m, replace=False).tolist()))
        judged = pairer.select_pairs(row, responses, Shard(index=0), "here")
        (pair,) = judged.pairs
        assert judged.rates is not None
        found.append([judged.rates[i] - true[i] for i in pair])
    values = np.array(found)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(prompts)


def test_the_extremes_of_few_opponents_are_biased_and_cross_fitting_takes_that_away(tmp_path: Path) -> None:
    bias, error = errors(tmp_path / "plain", "matrix")
    assert bias == pytest.approx([0.035, -0.035], abs=4 * error.max()), "as it is documented"
    bias, error = errors(tmp_path / "fitted", "cross_fit")
    assert (np.abs(bias) < 3.5 * error).all() and error.max() < 0.004


def test_calibrate_gates_cross_fitted_targets_as_they_were_estimated(tmp_path: Path) -> None:
    """Every P is shrunk by its own g, then the win rates are estimated by the same two halves of the opponents."""
    k, rng = 8, np.random.default_rng(1)
    row = met("a", game(rng, k), [1, 4, 6])
    samples = samples_table({"a": [f"text {i}" for i in range(k)]})
    job = job_of(tmp_path, [samples], [scores_table(row)], win_rate="cross_fit")
    (made,), _, summary = run_step(job, Pairer(job), shards, finish)
    (pair,) = made.to_pylist()
    p = np.array(pair["P"], dtype=np.float64).reshape(k, k)
    assert summary["cross_fit"] is True and np.isnan(p).any()
    above = np.triu(rng.uniform(0, 1, size=(k, k)).astype(np.float32), 1)
    g = above + above.T + np.eye(k, dtype=np.float32)
    embedded = pa.Table.from_pylist([{"id": "a", "similarity": g.ravel(), "chunks": 0}], EMBEDDINGS_SCHEMA)
    inputs = [as_input("pairs", tmp_path / "made", [made], summary), as_input("embeddings", tmp_path / "e", [embedded])]
    first = first_half([1, 4, 6], "a")
    gated = winrate.cross_fitted(0.5 + (1 - g.astype(np.float64)) * (p - 0.5), first)
    for gate_, rates, read in (("linear", gated, inputs), ("off", pair["win_rates"], inputs[:1])):
        chosen = as_job(CALIBRATE, settings.calibrate(gate_), read, tmp_path)
        step = (calibrate.Calibrator(chosen), calibrate.shards, calibrate.finish)
        (target,) = run_step(chosen, *step)[0][0].to_pylist()
        found = target["target_w"], target["target_l"]
        assert found == pytest.approx((rates[pair["chosen"]], rates[pair["rejected"]]), abs=1e-12)
