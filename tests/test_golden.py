"""Golden outputs: what each step makes of fixed inputs. A change means that users' stored artifacts are out of date.

When one of these fails and the change is meant: raise `version` in the step's StepSpec, so that stored artifacts are
redone, and write the new value here beside the new version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparring.pipeline.store.files import external
from sparring.stages.annotate import calibrate, embed, pairs, rows, score
from sparring.stages.annotate.config import CALIBRATE, EMBED, PAIRS, SCORE
from sparring.stages.evaluate import stage as evaluate
from sparring.stages.evaluate.config import EVALUATE
from sparring.stages.sample import embedded
from sparring.stages.sample.config import PROMPTS, SAMPLE
from sparring.stages.step import Input, StepSpec
from sparring.stages.train.config import REFERENCE, ReferenceSettings, Scoring
from sparring.stages.train.steps import reference
from tests import settings
from tests.artifacts import as_input, as_job, folder_input, run_step, samples_table
from tests.stages.sample.jobs import jsonl, prompts_job, run_prompts
from tests.stages.sample.questions import engine_settings
from tests.tiny import tiny_policy

JUDGES = Path(score.__file__).parent / "judges"
TEXTS = {
    "a": ["Rivers carry water to the sea.", "The sea is salty, and so are some lakes.", "no no no no no no no no"],
    "b": ["Use a sharp knife.", "Use a sharp knife.", "I would rather not answer that."],
}


def check(spec: StepSpec, found: Any, golden: Any) -> None:
    version, wanted = golden
    if spec.version == version:
        assert found == wanted, f"{spec.kind}: the output changed while its version stayed {version}; bump it"
    else:
        pytest.fail(f"{spec.kind}: version {spec.version} has no golden output yet; write it here")


def rounded(values: Any, digits: int) -> Any:
    """Round floats in nested lists."""
    if isinstance(values, float):
        return round(values, digits) + 0.0
    return [rounded(v, digits) for v in values] if isinstance(values, list) else values


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("golden") / "tiny")


@pytest.fixture
def samples(tmp_path: Path) -> Input:
    return as_input("samples", tmp_path / "samples", [samples_table(TEXTS)])


def logits(tmp_path: Path) -> Input:
    """Scores with a position bias of .2 and a three-cycle in "a"."""
    m = [[0.0, 1.2, -0.8], [-0.8, 0.0, 1.2], [1.2, -0.8, 0.0]]
    n = [[0.0, 0.0, 2.2], [0.0, 0.0, 1.7], [-1.8, -1.3, 0.0]]
    rows: list[dict[str, Any]] = [
        {
            "id": name,
            "n_left": 3,
            "n_right": 3,
            "logits": [x for row in one for x in row],
            "swapped": [x for row in zip(*one, strict=True) for x in row],
            "truncated": [False] * 9,
            "anchors": None,
            "trained_on": False,
        }
        for name, one in (("a", m), ("b", n))
    ]
    rows[0]["logits"][1] += 0.1
    return as_input("scores", tmp_path / "scores", [pa.Table.from_pylist(rows, schema=score.SCORES_SCHEMA)])


def test_prompts(tmp_path: Path, policy: Path) -> None:
    source = jsonl(tmp_path / "p.jsonl", ["What is 17 + 4?", "Hi\n\n1. two", "What is 17 + 4?", "None"])
    tables, parts, _ = run_prompts(prompts_job(source, policy, heldout=1))
    found = [[row["id"], row["prompt_ids"][-9:]] for table in tables for row in table.to_pylist()]
    check(PROMPTS, [found, parts[1].dropped], GOLDEN["prompts"])


def test_sample_greedy(policy: Path) -> None:
    from sparring.stages.sample.engine_transformers import TransformersEngine

    chosen = engine_settings("transformers", k=1, max_tokens=6, temperature=0.0, max_model_len=64)
    found = TransformersEngine(policy, chosen).generate([[1, 20, 300, 4000], [1, 7]], [0, 0])
    check(SAMPLE, [row[0].ids for row in found], GOLDEN["sample"])


@pytest.mark.parametrize("kind", ["mini", "lexical"])
def test_score(samples: Input, tmp_path: Path, kind: str) -> None:
    inputs = [samples, folder_input("judge", JUDGES / kind)]
    if kind == "mini":
        inputs.append(external("encoder", embedded.encoder_folder()))
    job = as_job(SCORE, settings.score(kind), inputs, tmp_path)
    tables, _, _ = run_step(job, score.Scorer(job), rows.shards, score.finish)
    check(SCORE, rounded(tables[0]["logits"].to_pylist(), 4), GOLDEN[f"score {kind}"])


def test_embed(samples: Input, tmp_path: Path) -> None:
    job = as_job(EMBED, settings.embed(256), [samples, external("encoder", embedded.encoder_folder())], tmp_path)
    tables, _, _ = run_step(job, embed.Embedder(job), rows.shards, embed.finish)
    check(EMBED, rounded(tables[0]["similarity"].to_pylist(), 4), GOLDEN["embed"])


def paired(samples: Input, tmp_path: Path) -> pa.Table:
    job = as_job(PAIRS, settings.pairs(), [samples, logits(tmp_path)], tmp_path)
    return run_step(job, pairs.Pairer(job), pairs.shards, pairs.finish)[0][0]


def test_pairs(samples: Input, tmp_path: Path) -> None:
    rows = paired(samples, tmp_path).to_pylist()
    found = [[row["chosen"], row["rejected"], rounded(row["win_rates"], 9)] for row in rows]
    check(PAIRS, found, GOLDEN["pairs"])


def test_calibrate(samples: Input, tmp_path: Path) -> None:
    similarity = [{"id": i, "similarity": [1.0, 0.5, 0.25, 0.5, 1.0, 0.0, 0.25, 0.0, 1.0], "chunks": 0} for i in "ab"]
    table = pa.Table.from_pylist(similarity, schema=embed.EMBEDDINGS_SCHEMA)
    inputs = [
        as_input("pairs", tmp_path / "p", [paired(samples, tmp_path)]),
        as_input("embeddings", tmp_path / "e", [table]),
    ]
    job = as_job(CALIBRATE, settings.calibrate(floor=0.1, ceil=0.9, seed=0), inputs, tmp_path)
    rows = run_step(job, calibrate.Calibrator(job), calibrate.shards, calibrate.finish)[0][0].to_pylist()
    found = [rounded([row["target_w"], row["target_l"], row["target_wl"], row["shift"]], 9) for row in rows]
    check(CALIBRATE, found, GOLDEN["calibrate"])


def test_reference(samples: Input, tmp_path: Path, policy: Path) -> None:
    chosen = as_input("pairs", tmp_path / "p", [paired(samples, tmp_path)])
    job = as_job(
        REFERENCE,
        ReferenceSettings(trainer=Scoring(dtype="float32", max_length=128, truncate="drop"), four_bit=False),
        [samples, chosen, external("policy", policy)],
        tmp_path,
    )
    rows = run_step(job, reference.Reference(job), reference.shards, reference.finish)[0][0].to_pylist()
    check(REFERENCE, [rounded([r["chosen_logprob"], r["rejected_logprob"]], 2) for r in rows], GOLDEN["reference"])


def test_evaluate(samples: Input, tmp_path: Path) -> None:
    roles = ("oracle_previous", "oracle_base", "second_previous", "second_base")
    scores = [as_input(role, tmp_path / role, [logits(tmp_path / role).table(0)]) for role in roles]
    job = as_job(EVALUATE, settings.evaluate(resamples=200, confidence=0.9, seed=3), [samples, *scores], tmp_path)
    rows = run_step(job, evaluate.Evaluator(job), evaluate.shards, evaluate.finish)[0][0].to_pylist()
    found = [rounded([row["win_rate"], row["low"], row["high"]], 9) for row in rows[:1]]
    check(EVALUATE, found, GOLDEN["evaluate"])


GOLDEN: dict[str, Any] = {
    "prompts": (
        2,
        [
            [
                ["5dde21bc4fd04bc1", [216, 36, 47, 2, 198, 1, 520, 9531, 198]],
                ["f349662b7f020714", [33, 30, 827, 2, 198, 1, 520, 9531, 198]],
                ["7df00cc625107c58", [4093, 198, 3482, 2, 198, 1, 520, 9531, 198]],
            ],
            {"duplicate": 1},
        ],
    ),
    "sample": (3, [[44600, 44600, 44600, 9742, 29724, 3457], [16122, 16122, 16122, 42705, 8140, 20103]]),
    "score mini": (
        2,
        [
            [0.0, 0.3547, 2.7171, -0.3547, 0.0, 2.4242, -2.7171, -2.4242, 0.0],
            [0.0, 0.0, -0.1166, 0.0, 0.0, -0.1166, 0.1166, 0.1166, 0.0],
        ],
    ),
    "score lexical": (
        2,
        [
            [0.0, 0.5811, 4.1386, -0.5811, 0.0, 3.5575, -4.1386, -3.5575, 0.0],
            [0.0, 0.0, -0.1253, 0.0, 0.0, -0.1253, 0.1253, 0.1253, 0.0],
        ],
    ),
    "embed": (
        1,
        [
            [1.0, 0.5405, -0.0195, 0.5405, 1.0, 0.04, -0.0195, 0.04, 1.0],
            [1.0, 1.0, 0.0398, 1.0, 1.0, 0.0398, 0.0398, 0.0398, 1.0],
        ],
    ),
    "pairs": (3, [[0, 1, [0.503238774, 0.496761226, 0.5]], [0, 2, [0.626932359, 0.605858159, 0.267209482]]]),
    "calibrate": (
        2,
        [[0.477550785, 0.536890376, 0.62038745, 0.054570311], [0.603132542, 0.291009299, 0.809397626, 0.023799817]],
    ),
    "reference": (5, [[-337.5, -450.47], [-200.24, -347.97]]),
    "evaluate": (1, [[0.500539796, 0.5, 0.501079591]]),
}
