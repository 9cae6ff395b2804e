"""The starter prompts of the sample stage: well formed, evenly spread, varied in length, no near-duplicates.

Needs no GPU and no model: .venv/bin/python -m pytest tests/stages/sample/test_starter.py
"""

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

STARTER = Path(__file__).resolve().parents[3] / "stages" / "sample" / "starter.jsonl"
CATEGORIES = {
    *("writing", "reasoning", "maths", "code", "facts"),
    *("advice", "extraction", "summarising", "roleplay", "multi-turn"),
}
CONTROL = re.compile(r"<\|.*?\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")
# Control characters other than tab and newline, invisible spaces, line separators and decoding failures.
UNWANTED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff\ufffd]")

Row = dict[str, Any]


def lines() -> list[str]:
    """Lines of the file, split at newlines only."""
    return STARTER.read_bytes().decode("utf-8").removesuffix("\n").split("\n")


def rows() -> list[Row]:
    """Parsed rows, in file order."""
    return [json.loads(line) for line in lines()]


def text(row: Row) -> str:
    """All messages of a prompt, joined."""
    return "\n".join(message["content"] for message in row["messages"])


def words(row: Row) -> list[str]:
    """Lower-cased words of a prompt without punctuation."""
    return re.findall(r"\w+", text(row).lower())


def length(row: Row) -> int:
    """Whitespace-separated words over all messages of a prompt."""
    return len(text(row).split())


def trigrams(row: Row) -> frozenset[tuple[str, ...]]:
    """Set of word 3-grams; a prompt of fewer than three words is one gram."""
    tokens = words(row)
    return frozenset(tuple(tokens[i : i + 3]) for i in range(max(1, len(tokens) - 2)))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """|a ∩ b| / |a ∪ b|."""
    return len(a & b) / len(a | b)


def test_enough_rows_with_exactly_the_expected_keys() -> None:
    assert len(rows()) >= 320
    assert all(list(row) == ["id", "category", "messages"] for row in rows())
    assert all(list(m) == ["role", "content"] for row in rows() for m in row["messages"])


def test_ids_are_unique_and_name_their_category() -> None:
    ids = [row["id"] for row in rows()]
    assert len(set(ids)) == len(ids)
    assert [row["id"] for row in rows() if not re.fullmatch(rf"{row['category']}-\d{{3}}", row["id"])] == []


def test_texts_are_unique() -> None:
    counts = Counter(" ".join(words(row)) for row in rows())
    assert [t for t, n in counts.items() if n > 1] == []


def test_last_user_messages_are_unique() -> None:
    """The oracle knows a prompt by its last user message, so two prompts must not share one."""
    counts = Counter(" ".join(row["messages"][-1]["content"].lower().split()) for row in rows())
    assert [t for t, n in counts.items() if n > 1] == []


def test_each_category_has_its_share() -> None:
    counts = Counter(row["category"] for row in rows())
    assert set(counts) == CATEGORIES
    assert min(counts.values()) >= 25, counts


def test_roles_alternate_and_the_last_is_user() -> None:
    for row in rows():
        roles = [message["role"] for message in row["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert len(turns) % 2 == 1, row["id"]
        assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"], row["id"]


def test_only_the_multi_turn_category_has_several_turns() -> None:
    for row in rows():
        assert (len(row["messages"]) > 1) == (row["category"] == "multi-turn"), row["id"]


def test_contents_are_clean() -> None:
    for row in rows():
        for message in row["messages"]:
            content = message["content"]
            assert content and content == content.strip(), row["id"]
            assert all(line == line.rstrip() for line in content.split("\n")), row["id"]
            assert not CONTROL.search(content), row["id"]
            assert not UNWANTED.search(content), row["id"]


def test_lines_are_plain_json_lines() -> None:
    assert STARTER.read_bytes().endswith(b"}\n")
    for line, row in zip(lines(), rows(), strict=True):
        assert line == json.dumps(row, ensure_ascii=False)


def test_lengths_spread_and_stay_bounded() -> None:
    lengths = [length(row) for row in rows()]
    assert max(lengths) <= 260
    assert sum(n < 25 for n in lengths) >= 0.30 * len(lengths)
    assert sum(25 <= n <= 80 for n in lengths) >= 0.25 * len(lengths)
    assert sum(n > 80 for n in lengths) >= 0.20 * len(lengths)


def test_no_two_prompts_are_near_duplicates() -> None:
    grams = [(row["id"], trigrams(row)) for row in rows()]
    close = [(i, j) for (i, a), (j, b) in itertools.combinations(grams, 2) if jaccard(a, b) > 0.3]
    assert close == []


def test_no_opening_becomes_a_template() -> None:
    """At most four prompts start with the same three words."""
    counts = Counter(tuple(words(row)[:3]) for row in rows())
    assert [opening for opening, n in counts.items() if n > 4] == []
