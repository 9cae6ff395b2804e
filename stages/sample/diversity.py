"""How different the responses to a prompt are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def diversity(responses: pa.ChunkedArray) -> dict[str, float]:
    """Return sums over prompts: of different texts / K, and of distinct-2; `responses` is that column of `samples`."""
    column = responses.combine_chunks()
    each, k = column.flatten(), column.value_lengths().to_numpy()
    texts, ends = each.field("text").to_pylist(), np.cumsum(k)
    unique = [len({text.strip() for text in texts[end - n : end]}) / n for n, end in zip(k, ends, strict=True)]
    ids = each.field("ids")
    return {
        "unique": float(sum(unique)),
        "distinct_2": float(distinct_2(ids.flatten().to_numpy(), ids.value_lengths().to_numpy(), k).sum()),
    }


def distinct_2(ids: NDArray[np.int32], lengths: NDArray[np.int32], k: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return, for each prompt, different pairs of neighbouring tokens / all such pairs over its responses.

    1 where no response has two tokens. Of tokens and not of words, so that it means the same in scripts without spaces
    (distinct-n: Li et al., arXiv 1510.03055).

    Args:
        ids: the tokens of all responses, one after another.
        lengths: of each response.
        k: the responses of each prompt.
    """
    if len(ids) < 2:
        return np.ones(len(k))
    prompt = np.repeat(np.repeat(np.arange(len(k)), k), lengths)[1:]
    inside = np.ones(len(ids) - 1, dtype=bool)
    starts = np.cumsum(lengths)[:-1]
    inside[starts[(starts > 0) & (starts < len(ids))] - 1] = False
    size = int(ids.max()) + 1
    pairs = (prompt * size + ids[:-1]) * size + ids[1:]
    pairs, prompt = np.sort(pairs[inside]), prompt[inside]
    first = np.concatenate(([True], pairs[1:] != pairs[:-1]))[: len(pairs)]
    different = np.bincount(pairs[first] // size**2, minlength=len(k))
    total = np.bincount(prompt, minlength=len(k))
    return np.where(total > 0, different / np.maximum(total, 1), 1.0)
