"""The step calibrate: targets by hand, gate off bit for bit, the quantile floor, the permuted control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparring.stages.annotate.calibrate import TARGETS_SCHEMA, Calibrator, finish, shards
from sparring.stages.annotate.config import CALIBRATE
from sparring.stages.annotate.embed import EMBEDDINGS_SCHEMA
from sparring.stages.annotate.pairs import PAIRS_SCHEMA
from sparring.stages.annotate.winrate import preference_matrix, select, win_rates
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.step import Job
from tests import settings
from tests.artifacts import as_input, as_job, run_step
from tests.refusals import refused

P = [[0.5, 0.9, 0.8], [0.1, 0.5, 0.7], [0.2, 0.3, 0.5]]
S = [[1.0, 0.5, 0.25], [0.5, 1.0, 0.75], [0.25, 0.75, 1.0]]


def pair_row(row_id: str, p: Any, chosen: int, rejected: int) -> dict[str, Any]:
    p = np.asarray(p, dtype=np.float64)
    return {
        "id": row_id,
        "n": len(p),
        "P": p.ravel(),
        "win_rates": win_rates(p),
        "chosen": chosen,
        "rejected": rejected,
    }


def pairs_table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=PAIRS_SCHEMA)


def embeddings_table(similarities: dict[str, Any]) -> pa.Table:
    rows = [
        {"id": row_id, "similarity": np.asarray(s, dtype=np.float32).ravel(), "chunks": 0}
        for row_id, s in similarities.items()
    ]
    return pa.Table.from_pylist(rows, schema=EMBEDDINGS_SCHEMA)


def job_of(
    folder: Path, pairs: list[pa.Table], embeddings: list[pa.Table] | None, gate: str = "linear", **changes: Any
) -> Job:
    inputs = [as_input("pairs", folder / "pairs", pairs)]
    if embeddings is not None:
        inputs.append(as_input("embeddings", folder / "embeddings", embeddings))
    return as_job(CALIBRATE, settings.calibrate(gate, **changes), inputs, folder)


def run(job: Job) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    tables, _, summary = run_step(job, Calibrator(job), shards, finish)
    assert all(table.schema == TARGETS_SCHEMA for table in tables)
    return [row for table in tables for row in table.to_pylist()], summary


def random_iteration(k_of: list[list[int]], seed: int = 0) -> tuple[list[pa.Table], list[pa.Table], dict[str, Any]]:
    """Parts of random prompts with the given K; every third prompt has an embedding but no pair."""
    rng = np.random.default_rng(seed)
    pairs, embeddings, similarities = [], [], {}
    for part, sizes in enumerate(k_of):
        rows, own = [], {}
        for row, k in enumerate(sizes):
            p = preference_matrix(rng.normal(size=(k, k)))
            above = np.triu(rng.uniform(-0.2, 0.95, size=(k, k)).astype(np.float32), 1)
            own[f"{part}-{row}"] = above + above.T + np.eye(k, dtype=np.float32)
            best_and_worst = select(win_rates(p), "extremes", "", 0) if row % 3 != 2 else []
            rows += [pair_row(f"{part}-{row}", p, *pair) for pair in best_and_worst]
        pairs.append(pairs_table(*rows))
        embeddings.append(embeddings_table(own))
        similarities.update(own)
    return pairs, embeddings, similarities


def test_pairwise_targets_by_hand(tmp_path: Path) -> None:
    rows, summary = run(job_of(tmp_path, [pairs_table(pair_row("a", P, 0, 2))], [embeddings_table({"a": S})]))
    (row,) = rows
    assert (row["chosen"], row["rejected"]) == (0, 2)
    assert (row["p_w"], row["p_l"], row["p_wl"]) == pytest.approx((2.2 / 3, 1 / 3, 0.8), abs=1e-15)
    # P~ = [[.5, .7, .725], [.3, .5, .55], [.275, .45, .5]]
    targets = (row["target_w"], row["target_l"], row["target_wl"])
    assert targets == pytest.approx((1.925 / 3, 1.225 / 3, 0.725), abs=1e-15)
    assert row["gate_wl"] == 0.25 and row["gate"] == [x for line in S for x in line]
    assert row["similarity_mean"] == 0.5
    assert row["shift"] == pytest.approx((0.2 + 0.075 + 0.15) / 3, abs=1e-15)
    assert row["flipped"] is False
    assert summary["floor"] == 0.0 and summary["flips"] == 0 and summary["pairs"] == 1
    assert summary["mean_shift"] == row["shift"] and summary["similarity_mean"] == 0.5
    left = (1.925 / 3 - 0.5) + (0.5 - 1.225 / 3)
    assert summary["strength"] == pytest.approx(left / ((2.2 / 3 - 0.5) + (0.5 - 1 / 3)), abs=1e-12)
    assert summary["g"]["n"] == 3 and summary["g"]["mean"] == 0.5
    assert [i for i, count in enumerate(summary["g"]["counts"]) if count] == [5, 10, 15]


@pytest.mark.parametrize(
    ("scope", "left_w", "left_l", "gate_wl"), [("pair", 0.75, 0.75, 0.25), ("row_mean", 0.625, 0.5, 0.375)]
)
def test_other_scopes_by_hand(scope: str, left_w: float, left_l: float, gate_wl: float, tmp_path: Path) -> None:
    job = job_of(tmp_path, [pairs_table(pair_row("a", P, 0, 2))], [embeddings_table({"a": S})], scope=scope)
    (row,), _ = run(job)
    assert row["target_w"] == pytest.approx(0.5 + left_w * (2.2 / 3 - 0.5), abs=1e-15)
    assert row["target_l"] == pytest.approx(0.5 + left_l * (1 / 3 - 0.5), abs=1e-15)
    assert row["target_wl"] == pytest.approx(0.5 + left_w * 0.3, abs=1e-15)
    assert row["gate_wl"] == gate_wl


@pytest.mark.parametrize("scope", ["pairwise", "pair", "row_mean"])
def test_published_win_rates_shrink_from_where_they_were(scope: str, tmp_path: Path) -> None:
    """Of five responses two are there: their rates are not those of P, and no gate may jump to those."""
    published = {**pair_row("a", [[0.5, 0.95], [0.05, 0.5]], 0, 1), "win_rates": [0.9, 0.2]}
    for s, left in ((0.0, 1.0), (1e-6, 1 - 1e-6), (0.25, 0.75), (1.0, 0.0)):
        job = job_of(
            tmp_path / str(s), [pairs_table(published)], [embeddings_table({"a": [[1, s], [s, 1]]})], scope=scope
        )
        (row,), _ = run(job)
        assert (row["p_w"], row["p_l"], row["p_wl"]) == (0.9, 0.2, 0.95)
        targets = (row["target_w"], row["target_l"], row["target_wl"])
        assert targets == pytest.approx((0.5 + left * 0.4, 0.5 - left * 0.3, 0.5 + left * 0.45), abs=1e-9)


def test_flips_are_counted(tmp_path: Path) -> None:
    p = [[0.5, 0.9, 0.45], [0.1, 0.5, 0.6], [0.55, 0.4, 0.5]]
    s = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    table = pairs_table(pair_row("flips", p, 0, 1), pair_row("stays", P, 0, 2))
    rows, summary = run(job_of(tmp_path, [table], [embeddings_table({"flips": s, "stays": S})]))
    assert [row["flipped"] for row in rows] == [True, False] and summary["flips"] == 1


def test_gate_off_hands_win_rates_on_bit_for_bit(tmp_path: Path) -> None:
    pairs, _, _ = random_iteration([[5] * 9, [2, 3, 16, 9]])
    rows, summary = run(job_of(tmp_path, pairs, None, gate="off"))
    kept = [row for table in pairs for row in table.to_pylist()]
    assert len(rows) == len(kept)
    for row, pair in zip(rows, kept, strict=True):
        w, loser, n = pair["chosen"], pair["rejected"], pair["n"]
        assert row["target_w"] == row["p_w"] == pair["win_rates"][w]
        assert row["target_l"] == row["p_l"] == pair["win_rates"][loser]
        assert row["target_wl"] == row["p_wl"] == pair["P"][w * n + loser]
        assert row["similarity_mean"] is None and not any(row["gate"]) and row["shift"] == row["gate_wl"] == 0
        assert not row["flipped"]
    assert summary["similarity_mean"] is None and summary["floor"] is None
    assert summary["strength"] == 1.0 and summary["g"]["counts"][0] == summary["g"]["n"]


def test_quantile_floor_is_of_the_whole_iteration(tmp_path: Path) -> None:
    pairs, embeddings, similarities = random_iteration([[3] * 4, [4] * 5, [2]])
    values = [s[i, j] for s in similarities.values() for i in range(len(s)) for j in range(i)]
    floor = float(np.quantile(np.array(values, dtype=np.float64), 0.3))
    job = job_of(tmp_path, pairs, embeddings, floor_quantile=0.3)
    assert [shard.payload["floor"] for shard in shards(job)] == [floor] * 3
    rows, summary = run(job)
    assert summary["floor"] == floor
    for row in rows:
        s = similarities[row["id"]].astype(np.float64).ravel()
        np.testing.assert_allclose(row["gate"], np.clip((s - floor) / (1 - floor), 0, 1), atol=1e-12)


def test_a_ceil_by_quantile(tmp_path: Path) -> None:
    pairs, embeddings, similarities = random_iteration([[3] * 4, [4] * 5])
    values = np.array([s[i, j] for s in similarities.values() for i in range(len(s)) for j in range(i)], np.float64)
    floor, ceil = np.quantile(values, [0.2, 0.9])
    rows, summary = run(job_of(tmp_path, pairs, embeddings, floor_quantile=0.2, ceil_quantile=0.9))
    assert (summary["floor"], summary["ceil"]) == (floor, ceil)
    for row in rows:
        s = similarities[row["id"]].astype(np.float64).ravel()
        np.testing.assert_allclose(row["gate"], np.clip((s - floor) / (ceil - floor), 0, 1), atol=1e-12)


def test_power_by_hand(tmp_path: Path) -> None:
    table = [pairs_table(pair_row("a", P, 0, 2))]
    (row,), summary = run(job_of(tmp_path, table, [embeddings_table({"a": S})], gate="power", exponent=2.0))
    assert row["gate"] == [x * x for line in S for x in line] and summary["exponent"] == 2.0
    # P~ = [[.5, .8, .78125], ...]: .5 + .75 * .4, .5 + .9375 * .3
    assert row["target_w"] == pytest.approx((0.5 + 0.8 + 0.78125) / 3, abs=1e-15)


def test_several_pairs_of_a_prompt_are_gated_alike(tmp_path: Path) -> None:
    pairs = [pairs_table(*(pair_row("a", P, *pair) for pair in ((0, 2), (0, 1), (1, 2))))]
    rows, summary = run(job_of(tmp_path, pairs, [embeddings_table({"a": S})]))
    assert [(row["chosen"], row["rejected"]) for row in rows] == [(0, 2), (0, 1), (1, 2)]
    assert rows[0]["target_w"] == rows[1]["target_w"] and rows[1]["target_l"] == rows[2]["target_w"]
    assert rows[0]["target_l"] == rows[2]["target_l"] and summary["pairs"] == 3
    again = [pairs_table(pair_row("a", P, 0, 2), pair_row("a", P, 0, 2))]
    with refused(DataError, "row 'a'", "pair 0, 2"):
        run(job_of(tmp_path / "twice", again, [embeddings_table({"a": S})]))


def test_what_did_not_meet_stays_unknown(tmp_path: Path) -> None:
    """Response 0 is the anchor: 1 and 2 met it alone, so p_i = (1/2 + 2 P[i, 0]) / 3."""
    p = np.array(P)
    p[1, 2] = p[2, 1] = np.nan
    row = {**pair_row("a", p, 2, 1), "P": [None if np.isnan(x) else x for x in p.ravel()]}
    (found,), _ = run(job_of(tmp_path, [pairs_table(row)], [embeddings_table({"a": S})]))
    assert found["p_wl"] is None and found["target_wl"] is None
    assert found["p_w"] == pytest.approx((0.5 + 2 * 0.2) / 3, abs=1e-15)
    assert found["target_w"] == pytest.approx((0.5 + 2 * (0.5 + 0.75 * -0.3)) / 3, abs=1e-15)
    assert found["shift"] == pytest.approx((0.2 + 0.075) / 2, abs=1e-15)  # of the two pairs that met


def test_a_quantile_at_the_ceil_is_refused(tmp_path: Path) -> None:
    same = embeddings_table({"a": np.ones((3, 3))})
    job = job_of(tmp_path, [pairs_table(pair_row("a", P, 0, 2))], [same], floor_quantile=0.5)
    with refused(ConfigError, "gate.floor_quantile=0.5", "floor 1.0000", "ceil 1"):
        shards(job)


def test_permuted_control_deals_out_the_same_gates(tmp_path: Path) -> None:
    sizes = [[3] * 6 + [4] * 3, [3] * 5 + [4] * 4, [3] * 7, [4]]
    pairs, embeddings, similarities = random_iteration(sizes)
    linear, _ = run(job_of(tmp_path / "linear", pairs, embeddings))
    permuted, summary = run(job_of(tmp_path / "permuted", pairs, embeddings, gate="permuted"))
    assert [row["id"] for row in permuted] == [row["id"] for row in linear]
    own, dealt = ([tuple(row["gate"]) for row in rows] for rows in (linear, permuted))
    assert sorted(own) == sorted(dealt)
    assert not any(a == b for a, b in zip(own, dealt, strict=True))
    for row, before in zip(permuted, linear, strict=True):
        assert len(row["gate"]) == len(before["gate"]) and row["similarity_mean"] == before["similarity_mean"]
        n = len(similarities[row["id"]])
        assert row["gate_wl"] == row["gate"][row["chosen"] * n + row["rejected"]]
        assert row["target_wl"] == pytest.approx(0.5 + (1 - row["gate_wl"]) * (row["p_wl"] - 0.5), abs=1e-15)
    again, _ = run(job_of(tmp_path / "again", pairs, embeddings, gate="permuted"))
    other, _ = run(job_of(tmp_path / "other", pairs, embeddings, gate="permuted", seed=8))
    assert again == permuted and other != permuted
    assert summary["gate"] == "permuted"


def test_a_similarity_that_is_not_finite_names_part_and_row(tmp_path: Path) -> None:
    bad = np.array(S)
    bad[1, 2] = np.nan
    pairs = [pairs_table(pair_row("a", P, 0, 2)), pairs_table(pair_row("b", P, 0, 2))]
    job = job_of(tmp_path, pairs, [embeddings_table({"a": S}), embeddings_table({"b": bad})])
    with refused(DataError, "part-00001", "row 'b'", "similarity[1, 2]", "nan"):
        run(job)


def test_an_iteration_without_pairs(tmp_path: Path) -> None:
    for name in ("off", "linear", "permuted", "rescaled"):
        job = job_of(tmp_path / name, [pairs_table()], [embeddings_table({"a": S})], gate=name)
        rows, summary = run(job)
        assert rows == [] and summary["pairs"] == 0 and summary["strength"] is None


def pull(rows: list[dict[str, Any]], kind: str) -> float:
    return sum(abs(row[f"{kind}_w"] - 0.5) + abs(row[f"{kind}_l"] - 0.5) for row in rows)


@pytest.mark.parametrize("scope", ["pairwise", "pair", "row_mean"])
def test_the_rescaled_control_takes_as_much_from_all_alike(scope: str, tmp_path: Path) -> None:
    pairs, embeddings, _ = random_iteration([[3] * 6 + [4] * 3, [5] * 5, [2]])
    gated, gate_summary = run(job_of(tmp_path / "gate", pairs, embeddings, scope=scope, floor_quantile=0.3))
    control = job_of(tmp_path / "control", pairs, embeddings, "rescaled", scope=scope, floor_quantile=0.3)
    rows, summary = run(control)
    c = pull(gated, "target") / pull(gated, "p")
    assert 0 < c < 1 and c == pytest.approx(gate_summary["strength"], abs=1e-12)
    assert len(rows) == len(gated)
    for row in rows:  # of every part
        for name in ("w", "l", "wl"):
            assert row[f"target_{name}"] == pytest.approx(0.5 + c * (row[f"p_{name}"] - 0.5), abs=1e-12)
        assert row["gate_wl"] == pytest.approx(1 - c, abs=1e-12)
    assert pull(rows, "target") == pytest.approx(pull(gated, "target"), abs=1e-10)
    assert summary["gate"] == "rescaled" and summary["strength"] == pytest.approx(c, abs=1e-12)
    assert summary["floor"] == gate_summary["floor"] and summary["mean_shift"] > 0


def test_the_rescaled_control_of_no_similarity_is_no_gate(tmp_path: Path) -> None:
    apart = [embeddings_table({"a": np.eye(3)})]
    table = [pairs_table(pair_row("a", P, 0, 2))]
    (row,), summary = run(job_of(tmp_path, table, apart, gate="rescaled"))
    assert (row["target_w"], row["target_wl"]) == (row["p_w"], row["p_wl"]) and summary["strength"] == 1.0
