"""Contamination: which rows of a suite share an n-gram of words with a training prompt.

Words are runs of letters and digits of any script, case-folded; an n-gram is n of them in a row (13, as GPT-3 was
checked with; 8 finds more, and more of it by chance). A text of fewer words is one n-gram, all of it. With five
words or more it is looked for anywhere in a prompt, as TruthfulQA's questions stand there beside an instruction; with
fewer it overlaps with a prompt that is nothing else, since many would hold it by chance. Rows and prompts have turns,
and an n-gram lies in one of them. Scripts without spaces make long words, which overlap as one.

Memory is bounded by the suite: its n-grams are held, training prompts pass by.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

N = 13
LEAST = 5
"""Words of a text that is looked for inside prompts."""
WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Return the normalised words of a text."""
    return WORD.findall(text.casefold())


def ngrams(text: Sequence[str], n: int) -> set[str]:
    """Return the different n-grams of words, none of fewer than n."""
    return {" ".join(text[i : i + n]) for i in range(len(text) - n + 1)}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a row of the suite shares with the training prompts."""

    row: int
    """Its number in the suite, from 0."""
    grams: int
    """Its different n-grams."""
    shared: int
    """Those that a training prompt has as well."""
    prompt: str | None
    """The id of the training prompt that shares the most of them, the first of equals; None without."""

    @property
    def share(self) -> float:
        """shared / grams; 0 for a row without words."""
        return self.shared / self.grams if self.grams else 0.0


class Index:
    """The n-grams of a suite, and what the prompts that were added share with them."""

    def __init__(self, rows: Sequence[tuple[str, ...]], n: int = N) -> None:
        """rows: the turns of each."""
        self.n = n
        self.counts: list[int] = []
        self.rows_of: dict[str, list[int]] = {}
        self.shared: set[str] = set()
        self.nearest: dict[int, tuple[int, str]] = {}
        self.short = 0
        """Rows of which no turn has n words."""
        self.least = min(n, LEAST)
        self.lengths: dict[str, set[int]] = {}
        """How the shorter texts begin that are looked for inside prompts -> how many words they have."""
        for row, turns in enumerate(rows):
            texts = [text for turn in turns if (text := words(turn))]
            grams = set().union(*(ngrams(text, min(n, len(text))) for text in texts))
            for text in texts:
                if self.least <= len(text) < n:
                    self.lengths.setdefault(" ".join(text[: self.least]), set()).add(len(text))
            self.short += all(len(text) < n for text in texts)
            self.counts.append(len(grams))
            for gram in grams:
                self.rows_of.setdefault(gram, []).append(row)

    def add(self, prompt: str, turns: tuple[str, ...]) -> None:
        """Compare a training prompt, by its id and its turns."""
        grams: set[str] = set()
        for text in map(words, turns):
            grams |= ngrams(text, self.n)
            for i in range(len(text) - self.least + 1):  # runs that begin as a shorter text does
                for length in self.lengths.get(" ".join(text[i : i + self.least]), ()):
                    grams.add(" ".join(text[i : i + length]))
            if 0 < len(text) < self.least:
                grams.add(" ".join(text))
        hits = grams & self.rows_of.keys()
        self.shared |= hits
        for row, count in Counter(row for gram in hits for row in self.rows_of[gram]).items():
            if count > self.nearest.get(row, (0, ""))[0]:
                self.nearest[row] = count, prompt

    def overlapping(self) -> list[Overlap]:
        """Return the rows that share an n-gram, the largest share first, then the most n-grams, then the order."""
        shared = Counter(row for gram in self.shared for row in self.rows_of[gram])
        rows = [
            Overlap(row=row, grams=self.counts[row], shared=count, prompt=self.nearest[row][1])
            for row, count in shared.items()
        ]
        return sorted(rows, key=lambda one: (-one.share, -one.shared, one.row))
