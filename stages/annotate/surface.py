"""Surface features of a response: counts that need no understanding of the text.

Length enters as logarithms; the other features are rates, comparable between short and long texts. A third of them
detect the failures of small models: loops, shuffled or foreign words, an end in mid-sentence.
"""

from __future__ import annotations

import math
import re
import zlib
from itertools import pairwise

import numpy as np

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
SENTENCE_END = re.compile(r"[.!?…][\"')\]*]*$")
REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|i can(?:no|')t|i'?m unable|i am unable|as an ai|"
    r"i don'?t (?:think|know|understand)|i won'?t)\b"
)
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by can do for from has have he i if in is it its my not of on or our she "
        "so that the their there they this to was we were what which who will with would you your",
    )
)
NAMES = (
    "log_words", "log_words_squared", "log_lines", "empty", "terminal", "unique_words", "repeated_trigrams",
    "repeated_lines", "longest_run", "compression", "function_words", "function_bigrams", "odd_capitals",
    "word_length", "digits", "symbols", "foreign", "capitals", "list_items", "code", "questions", "refusal",
    "first_person", "second_person", "echo", "coverage", "copied_trigrams",
)  # fmt: skip


def rate(part: float, total: float) -> float:
    """Return part / total, 0 for a total of 0."""
    return part / total if total else 0.0


def repeated(items: list[str] | list[tuple[str, ...]]) -> float:
    """Return the share of items that occurred earlier in the list."""
    return rate(len(items) - len(set(items)), len(items))


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of a list of words."""
    return list(zip(*(words[k:] for k in range(n)), strict=False))


def loop_features(text: str, words: list[str]) -> list[float]:
    """Return unique_words, repeated_trigrams, repeated_lines, longest_run, compression.

    unique_words is Herdan's C, log(distinct)/log(words), which hardly depends on length. compression is the deflated
    size over the raw size of the first 600 characters, minus the usual ratio for a text of that size.
    """
    lines = [line.strip() for line in re.split(r"[\n.!?]+", text) if line.strip()]
    run = longest = 1
    for before, after in pairwise(words):
        run = run + 1 if before == after else 1
        longest = max(longest, run)
    raw = text[:600].encode("utf-8")
    usual = 0.45 + 4.0 / math.sqrt(len(raw) + 16)
    return [
        rate(math.log1p(len(set(words))), math.log1p(len(words))) if words else 1.0,
        repeated(ngrams(words, 3)),
        repeated(lines),
        math.log(longest),
        rate(len(zlib.compress(raw, 9)), len(raw)) - usual if raw else 0.0,
    ]


def grammar_features(text: str, words: list[str]) -> list[float]:
    """Return function_words, function_bigrams, odd_capitals: rates that shuffled words disturb."""
    function = [word in FUNCTION_WORDS for word in words]
    adjacent = sum(a and b for a, b in pairwise(function))
    starts = re.findall(r"[.!?]\s+(\S)", text)
    inner = re.findall(r"[a-z,]\s+([A-Za-z])", text)
    odd = sum(c.islower() for c in starts) + sum(c.isupper() for c in inner)
    return [
        rate(sum(function), len(words)),
        rate(adjacent, len(words)),
        rate(odd, len(starts) + len(inner)),
    ]


def character_features(text: str, words: list[str]) -> list[float]:
    """Return word_length, digits, symbols, foreign, capitals: rates over characters or words."""
    size = len(text)
    return [
        min(rate(sum(map(len, words)), len(words)), 12.0),
        rate(sum(c.isdigit() for c in text), size),
        rate(sum(not c.isalnum() and not c.isspace() for c in text), size),
        rate(sum(ord(c) > 0x24F for c in text), size),
        rate(sum(c.isupper() for c in text), size),
    ]


def form_features(text: str, words: list[str]) -> list[float]:
    """Return list_items, code, questions, refusal, first_person, second_person."""
    lower = text.lower().replace("’", "'")
    return [
        math.log1p(len(re.findall(r"(?m)^\s*(?:[-*•]|\d+[.)])\s", text))),
        float("```" in text),
        rate(text.count("?"), len(words)),
        float(bool(REFUSAL.search(lower[:200]))),
        rate(sum(word in {"i", "my", "me", "i'm", "i'd", "i'll"} for word in words), len(words)),
        rate(sum(word in {"you", "your", "you're"} for word in words), len(words)),
    ]


def prompt_features(prompt_words: list[str], words: list[str]) -> list[float]:
    """Return echo, coverage, copied_trigrams.

    echo: the share of the response's content words that are in the prompt; coverage: the share of the prompt's that are
    in the response.
    """
    content = [word for word in words if word not in FUNCTION_WORDS]
    prompt_content = {word for word in prompt_words if word not in FUNCTION_WORDS}
    prompt_trigrams = set(ngrams(prompt_words, 3))
    trigrams = ngrams(words, 3)
    return [
        rate(sum(word in prompt_content for word in content), len(content)),
        rate(len(prompt_content & set(content)), len(prompt_content)),
        rate(sum(gram in prompt_trigrams for gram in trigrams), len(trigrams)),
    ]


def surface(prompt: str, response: str) -> np.ndarray:
    """Return the (len(NAMES),) float64 surface features of a response to a prompt."""
    text = response.strip()
    words = WORD.findall(text.lower())
    size = math.log1p(len(words))
    return np.array(
        [
            size,
            size * size,
            math.log1p(text.count("\n")),
            float(not words),
            float(bool(SENTENCE_END.search(text)) or text.endswith("```")),
            *loop_features(text, words),
            *grammar_features(text, words),
            *character_features(text, words),
            *form_features(text, words),
            *prompt_features(WORD.findall(prompt.lower()), words),
        ]
    )
