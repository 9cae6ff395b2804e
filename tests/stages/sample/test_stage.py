"""The step `sample` over real prompts, with the transformers engine on a random two-layer model."""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparring.stages import fields
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.sample import stage
from sparring.stages.sample.config import COLDEST, SamplerConfig, SampleSettings
from sparring.stages.sample.deal import dealt, response_seed
from sparring.stages.sample.stage import SAMPLES_SCHEMA, Sampler
from sparring.stages.step import Input, Part, Shard
from sparring.stages.vllm import source
from tests import settings
from tests.artifacts import run_step
from tests.refusals import refused
from tests.stages.sample.jobs import jsonl, prompts_input, sample_job
from tests.tiny import tiny_policy

TEXTS = [f"Question {i}: what is {i} + {i}?" for i in range(12)] + ["None", "🌷 <|im_end|> مرحبا"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Input:
    return prompts_input(jsonl(tmp_path_factory.mktemp("source") / "p.jsonl", TEXTS), policy)


def sample(prompts: Input, policy: Path, **changes: Any) -> tuple[list[pa.Table], list[Part], dict[str, Any]]:
    job = sample_job(prompts, policy, **{"engine": "transformers", **changes})
    return run_step(job, Sampler(job), stage.shards, stage.finish)


def test_samples_are_the_slice_as_dealt(prompts: Input, policy: Path) -> None:
    tables, parts, summary = sample(prompts, policy, slice=1, rows=5)
    assert [t.num_rows for t in tables] == [4, 1] and all(t.schema == SAMPLES_SCHEMA for t in tables)
    rows = [row for t in tables for row in t.to_pylist()]
    train = prompts.table(1).to_pylist()
    assert [row["id"] for row in rows] == [train[i]["id"] for i in dealt(12, 5, 5, seed=0)]
    for row in rows:
        source = next(p for p in train if p["id"] == row["id"])
        assert (row["messages"], row["prompt_ids"]) == (source["messages"], source["prompt_ids"])
        first = response_seed(0, row["id"], 0)
        assert [r["seed"] for r in row["responses"]] == [first, first + 1, first + 2]
        assert all(len(r["ids"]) == 12 or r["finish"] == "stop" for r in row["responses"])
    assert sum(p.stats["tokens"] for p in parts) == summary["tokens"]
    assert (summary["prompts"], summary["responses"], summary["redealt"]) == (5, 15, 0)
    assert summary["cap_rate"] + summary["end_of_turn_rate"] == 1


def test_equal_whatever_the_shards(prompts: Input, policy: Path) -> None:
    four, _, summary = sample(prompts, policy, shard_rows=4)
    eight, _, same = sample(prompts, policy, shard_rows=8)
    assert pa.concat_tables(four).combine_chunks().equals(pa.concat_tables(eight).combine_chunks())
    assert summary == pytest.approx(same, rel=1e-12)  # sums over shards
    other, _, _ = sample(prompts, policy, seed=1)
    assert pa.concat_tables(other) != pa.concat_tables(four)


def test_heldout_rows_keep_their_order(prompts: Input, policy: Path) -> None:
    tables, _, _ = sample(prompts, policy, split="heldout", rows=2, k=2)
    assert tables[0]["id"].to_pylist() == prompts.table(0)["id"].to_pylist()
    with refused(DataError, "3 held-out", "2"):
        stage.shards(sample_job(prompts, policy, split="heldout", rows=3))


def test_prompts_dealt_again_are_other_rows(prompts: Input, policy: Path) -> None:
    tables, _, summary = sample(prompts, policy, slice=1)
    rows = pa.concat_tables(tables).to_pylist()
    assert len({row["id"] for row in rows}) == 8
    assert [row["id"].endswith("~1") for row in rows] == [False] * 4 + [True] * 4
    assert summary["redealt"] == 4
    again = rows[4]
    assert again["responses"][0]["seed"] == response_seed(0, again["id"].removesuffix("~1"), 1)


def test_rows_are_found_in_several_parts(
    tmp_path: Path, prompts: Input, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparring.stages.sample import prompts as step

    monkeypatch.setattr(step, "PART_ROWS", 5)
    cut = prompts_input(jsonl(tmp_path / "p.jsonl", TEXTS), policy)
    assert cut.summary["rows"] == [2, 5, 5, 2]
    one, _, _ = sample(prompts, policy)
    many, _, _ = sample(cut, policy)
    assert pa.concat_tables(many) == pa.concat_tables(one)


def test_vllm_through_the_same_step(prompts: Input, policy: Path) -> None:
    tables, _, summary = sample(prompts, policy, engine="vllm", k=2, rows=5)
    again = Sampler(sample_job(prompts, policy, k=2, rows=5))
    second = again(Shard(index=1, payload={"rows": dealt(12, 4, 1, 0), "deals": [0]}))
    assert second.table == tables[1]
    assert summary["prompts"] == 5
    for table in tables:
        for row in table.to_pylist():
            assert all(r["text"] == again.chat.decode(r["ids"]) for r in row["responses"])


def test_one_engine_serves_steps_that_differ_in_what_it_does_not_read(prompts: Input, policy: Path) -> None:
    first: Any = Sampler(sample_job(prompts, policy)).engine
    other: Any = Sampler(sample_job(prompts, policy, micro_batch=3, usd_per_hour=2.0, k=2)).engine
    assert other.queue is first.queue


def test_summary_counts() -> None:
    def responses(*given: tuple[str, int, str]) -> list[dict[str, Any]]:
        return [{"text": t, "ids": [5] * n, "finish": f, "seed": 0} for t, n, f in given]

    rows = [
        {"id": "a", "responses": responses(("x y z", 3, "stop"), ("x y z ", 4, "length"))},
        {"id": "b~1", "responses": responses(("x y", 1, "stop"), ("p q r", 2, "stop"))},
    ]
    table = pa.Table.from_pylist([{"messages": [], "prompt_ids": [], **r} for r in rows], schema=SAMPLES_SCHEMA)
    parts = [{"rows_out": 2, "stats": {"unique": 1.5, "distinct_2": 1.25, "redealt": 1.0}}]
    assert stage.finish(None, iter([table]), parts) == {  # type: ignore[arg-type]
        "prompts": 2,
        "responses": 4,
        "tokens": 10,
        "length_mean": 2.5,
        "length_p95": pytest.approx(3.85),
        "cap_rate": 0.25,
        "end_of_turn_rate": 0.75,
        "unique_rate": 0.75,
        "distinct_2": 0.625,
        "redealt": 1,
    }


def test_a_slice_without_any_response_is_no_artifact() -> None:
    empty = pa.Table.from_pylist([], schema=SAMPLES_SCHEMA)
    with refused(DataError, "engine", "response"):
        stage.finish(None, iter([empty]), [{"rows_out": 0, "stats": {}}])  # type: ignore[arg-type]


def test_a_stop_text_that_is_a_control_token_is_refused(prompts: Input, policy: Path) -> None:
    """vLLM leaves control tokens out of the text that it searches."""
    with refused(ConfigError, "sampler.stop", "'<|im_start|>'", "policy.stop"):
        Sampler(sample_job(prompts, policy, stop=("x", "<|im_start|>")))


def greedy(k: int) -> SampleSettings:
    return settings.sample(temperature=0.0, k=k)


def test_greedy_with_several_responses_is_refused() -> None:
    with refused(ConfigError, "temperature=0", "4"):
        greedy(k=4)
    assert greedy(k=1).sampler.temperature == 0


@pytest.mark.parametrize("engine", fields.tags(SamplerConfig, "engine"))
@pytest.mark.parametrize("temperature", [1e-320, 1e-6, 0.0099])
def test_a_temperature_that_vllm_would_not_sample_at_is_refused(engine: str, temperature: float) -> None:
    """Of every engine, and of a single response too, which an evaluation or a suite may sample."""
    with refused(ConfigError, f"sampler.temperature={temperature}", "4"):
        settings.sample(engine, temperature=temperature, k=4)
    with refused(ConfigError, f"sampler.temperature={temperature}", "0.01"):
        settings.sample(engine, temperature=temperature, k=1)
    assert settings.sample(engine, temperature=COLDEST, k=4).sampler.temperature == COLDEST


def test_the_coldest_temperature_is_vllms() -> None:
    tree = source("sampling_params.py")
    assert tree is not None
    named = {ast.unparse(one.targets[0]): one.value for one in tree.body if isinstance(one, ast.Assign)}
    assert ast.literal_eval(named["_MAX_TEMP"]) == COLDEST


def of_slice(prompts: Input, policy: Path, number: int, slices: int = 3) -> tuple[list[int], list[int]]:
    """Rows and deals of a slice, without sampling it."""
    job = sample_job(prompts, policy, slice=number, rows=None, slices=slices)
    cut = stage.shards(job)
    return [r for s in cut for r in s.payload["rows"]], [d for s in cut for d in s.payload["deals"]]


def test_thirds_are_disjoint_and_whole(prompts: Input, policy: Path) -> None:
    thirds = [of_slice(prompts, policy, number) for number in range(3)]
    assert sorted(row for rows, _ in thirds for row in rows) == list(range(12))
    assert [len(rows) for rows, _ in thirds] == [4, 4, 4] and {d for _, deals in thirds for d in deals} == {0}


def test_after_the_last_slice_the_prompts_are_dealt_again(prompts: Input, policy: Path) -> None:
    first, again = ([of_slice(prompts, policy, n) for n in range(a, a + 3)] for a in (0, 3))
    assert sorted(row for rows, _ in again for row in rows) == list(range(12))
    assert {d for _, deals in again for d in deals} == {1}
    assert [rows for rows, _ in again] != [rows for rows, _ in first]
    fifth = [of_slice(prompts, policy, n, slices=5)[0] for n in range(5)]
    assert sorted(map(len, fifth)) == [2, 2, 2, 3, 3] and sorted(row for rows in fifth for row in rows) == list(
        range(12)
    )
    with refused(DataError, "slice 1 of 13"):
        of_slice(prompts, policy, 0, slices=13)


def test_a_published_split_keeps_its_slices_and_order(prompts: Input, policy: Path) -> None:
    published = replace(prompts, summary={**prompts.summary, "slices": [5, 3, 4]})
    slices = [of_slice(published, policy, number)[0] for number in range(3)]
    assert slices == [list(range(5)), list(range(5, 8)), list(range(8, 12))]
    again = [of_slice(published, policy, number)[0] for number in range(3, 6)]
    assert again == [of_slice(prompts, policy, number)[0] for number in range(3, 6)]  # a new permutation of all


def test_logprobs_are_stored(prompts: Input, policy: Path) -> None:
    tables, _, _ = sample(prompts, policy, rows=2, logprobs=True)
    for row in tables[0].to_pylist():
        assert all(len(r["logprobs"]) == len(r["ids"]) and max(r["logprobs"]) <= 0 for r in row["responses"])
    plain, _, _ = sample(prompts, policy, rows=2)
    assert all(r["logprobs"] is None for row in plain[0].to_pylist() for r in row["responses"])
