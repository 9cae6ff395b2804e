"""Different texts and distinct-2, against counting by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.stages.sample.diversity import distinct_2, diversity
from sparring.stages.sample.stage import SAMPLES_SCHEMA

TOKENS = st.lists(st.integers(0, 5), max_size=6)


def column(prompts: list[list[tuple[str, list[int]]]]) -> pa.ChunkedArray:
    kind = SAMPLES_SCHEMA.field("responses").type
    return pa.chunked_array([[[{"text": text, "ids": ids} for text, ids in one] for one in prompts]], type=kind)


def counted(responses: list[list[int]]) -> float:
    pairs = [pair for ids in responses for pair in pairwise(ids)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def test_by_hand() -> None:
    alike = [("a b", [1, 2, 1, 2]), ("a b ", [2, 1])]  # 12 21 12, 21: two of four
    apart = [("x", [3, 1]), ("y", [1])]
    assert diversity(column([alike, apart])) == {"unique": 0.5 + 1.0, "distinct_2": 0.5 + 1.0}
    assert diversity(column([alike])) == {"unique": 0.5, "distinct_2": 0.5}
    assert diversity(column([])) == {"unique": 0.0, "distinct_2": 0.0}


@given(st.lists(st.lists(TOKENS, min_size=1, max_size=4), max_size=5))
def test_as_counting_does(prompts: list[list[list[int]]]) -> None:
    flat = [ids for responses in prompts for ids in responses]
    found = distinct_2(
        np.array([token for ids in flat for token in ids], dtype=np.int32),
        np.array([len(ids) for ids in flat], dtype=np.int32),
        np.array([len(responses) for responses in prompts], dtype=np.int32),
    )
    assert found.tolist() == pytest.approx([counted(responses) for responses in prompts])


def test_large_vocabularies_do_not_overflow() -> None:
    ids = np.array([255_999, 255_998] * 300, dtype=np.int32)
    assert distinct_2(ids, np.full(300, 2, dtype=np.int32), np.ones(300, dtype=np.int32)).tolist() == [1.0] * 300
