"""The oracle `lexical`: a linear ranker on hashed word and character n-grams. The second judge.

    logit(a over b | x) = w · (n(x, a) - n(x, b))

n stacks three vectors of length one (a longer text has smaller entries; no feature counts length): word 1- and 2-grams;
character 2- to 4-grams inside words; and habits, which are, for each content word of the response, whether the prompt
has it, and for each word 3-gram, whether it occurred earlier in the response. It shares no input, no feature code and
no training prompt with `mini`. It is antisymmetric by construction, and has one score per response, so it cannot
express a cycle. Hashing is scikit-learn's HashingVectorizer (MurmurHash3, stateless). Training:
`python -m scripts.train_judges`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sparring.stages.annotate.oracle import Duel, Verdicts, last_user_text, read_weights, untruncated
from sparring.stages.annotate.oracles import OracleContext, OracleOptions
from sparring.stages.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import HashingVectorizer


@dataclass(frozen=True, kw_only=True)
class Options(OracleOptions):
    """It has no options."""

    cost_unit: ClassVar[str] = "responses"


WORDS, CHARACTERS, HABITS = 2**15, 2**16, 2**12
"""Buckets of the three vectors."""
MIN_CONTENT_LETTERS = 4


def habit_tokens(pair: tuple[str, str]) -> list[str]:
    """Return the habits of a response to a prompt as tokens, in the order of its words; pair: (prompt, response).

    For each word of four letters or more: `in` and `in:word` where the prompt has it, else `out`. For each word
    3-gram: `again` where it occurred earlier in the response, else `new`.
    """
    prompt, response = pair
    prompt_words = set(re.findall(r"\w+", prompt.lower()))
    words = re.findall(r"\w+", response.lower())
    content = [word for word in words if len(word) >= MIN_CONTENT_LETTERS]
    tokens = [token for word in content for token in (("in", f"in:{word}") if word in prompt_words else ("out",))]
    seen: set[tuple[str, str, str]] = set()
    for gram in zip(words, words[1:], words[2:], strict=False):
        tokens.append("again" if gram in seen else "new")
        seen.add(gram)
    return tokens


@cache
def vectorizers() -> tuple[HashingVectorizer, HashingVectorizer, HashingVectorizer]:
    """Return the word, character and habit vectorizers; each gives rows of length one."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return (
        HashingVectorizer(n_features=WORDS, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", norm="l2"),
        HashingVectorizer(n_features=CHARACTERS, analyzer="char_wb", ngram_range=(2, 4), norm="l2"),
        HashingVectorizer(n_features=HABITS, analyzer=habit_tokens, norm="l2"),
    )


def ngram_features(pairs: Sequence[tuple[str, str]]) -> csr_matrix:
    """Return the (n, WORDS + CHARACTERS + HABITS) float64 features of (prompt, response) pairs."""
    from scipy.sparse import csr_matrix, hstack

    words, characters, habits = vectorizers()
    responses = [response for _, response in pairs]
    blocks = [words.transform(responses), characters.transform(responses), habits.transform(pairs)]
    return csr_matrix(hstack(blocks))


class LexicalOracle:
    """See the module. `trained_on`: keys of the prompts that it was trained or tuned on."""

    def __init__(self, weight: np.ndarray, trained_on: frozenset[int]) -> None:
        self.weight, self.trained_on = weight, trained_on

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Return antisymmetric logits; every unique (prompt, response) is hashed once."""
        pairs = {(last_user_text(d.prompt), text): 0 for d in duels for text in (d.first, d.second)}
        if not pairs:
            return untruncated(np.zeros(0))
        scores = dict(zip(pairs, ngram_features(list(pairs)) @ self.weight, strict=True))
        prompts = [last_user_text(duel.prompt) for duel in duels]
        logits = [scores[x, duel.first] - scores[x, duel.second] for x, duel in zip(prompts, duels, strict=True)]
        return untruncated(np.array(logits))


def load(options: Options, context: OracleContext) -> LexicalOracle:
    """Load a judge folder; DataError if its weights are of another size."""
    folder = context.folders["judge"]
    tensors, trained_on = read_weights(folder, ["weight"])
    if tensors["weight"].shape != (WORDS + CHARACTERS + HABITS,):
        raise DataError(f"{folder}: its tensors do not fit this code; train it again with scripts.train_judges.")
    return LexicalOracle(tensors["weight"], trained_on)
