"""The order in which prompts are dealt, and the seed of each response: pure functions of (seed, position)."""

from __future__ import annotations

import hashlib

import numpy as np


def dealt(n: int, start: int, count: int, seed: int) -> list[int]:
    """Return rows [start, start + count) of the endless deal of n prompts.

    The deal is permutation 0 of range(n), then permutation 1, …. Permutation d is Fisher-Yates on the raw 64-bit words
    of PCG64 from (seed, d), which numpy promises not to change, unlike its `permutation`. Slices that do not overlap
    share no prompt until all n are dealt.
    """
    if n < 1:
        raise ValueError("there are no prompts to deal")
    rows: list[int] = []
    for deal in range(start // n, (start + count - 1) // n + 1):
        words = np.random.PCG64(np.random.SeedSequence([seed, deal])).random_raw(n)
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = int(words[i]) % (i + 1)
            order[i], order[j] = order[j], order[i]
        rows += order[max(start - deal * n, 0) : min(start + count - deal * n, n)]
    return rows


def cut(n: int, index: int, slices: int) -> tuple[int, int]:
    """Return rows [first, last) of slice `index` of n rows cut into `slices` parts that differ by one row at most."""
    return index * n // slices, (index + 1) * n // slices


def response_seed(seed: int, prompt_id: str, deal: int) -> int:
    """Return the seed of a prompt's first response; response i of the prompt takes this plus i. In [0, 2**31)."""
    name = f"{seed}/{prompt_id}/{deal}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1
