"""Preference pairs for the two small judges: reading, splitting by prompt, and synthetic corruptions.

Left out on purpose: UltraFeedback rows 0-599 (prompts to play on) and every evaluation suite. A pair whose
prompt also occurs in a suite or among the prompts to play on (LLMBar repeats MT-Bench's questions) can only
be tested on.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparring.stages.annotate.oracle import Messages, prompt_key
from sparring.stages.errors import DataError

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
ULTRAFEEDBACK_FIRST = 600
LLMFAO_PAIRS_PER_PROMPT = 60
SPLITS = {"test": 0.25, "mini": 0.45, "lexical": 0.30}
SOURCES = {
    "ultrafeedback": "UltraFeedback-binarized (sample), rows 600-999; MIT; openbmb/UltraFeedback",
    "dpo_en_demo": "LLaMA-Factory data/dpo_en_demo.json; Apache-2.0; hiyouga/LLaMA-Factory @ff6d4d1",
    "llmbar_natural": "LLMBar Natural; MIT; princeton-nlp/LLMBar @900616b",
    "llmbar_llmeval2": "LLMBar LLMEval2; MIT; princeton-nlp/LLMBar @900616b",
    "llmbar_mtbench": "LLMBar MT-Bench; MIT; princeton-nlp/LLMBar @900616b",
    "hh_harmless": "HH-RLHF harmless-base, test; MIT; anthropics/hh-rlhf @354e5c3",
    "llmfao": "LLMFAO by Dmitry Ustalov (crowd and GPT-4 votes); CC BY 4.0; dustalov/llmfao @9e224e9; "
    "changed: votes summed per pair of responses, ties dropped, a sample of pairs taken",
}


class Pair(NamedTuple):
    """A prompt with the response that was preferred and the one that was not."""

    source: str
    prompt: Messages
    chosen: str
    rejected: str


def existing(path: Path) -> Path:
    """Return the path; DataError if there is no such file."""
    if not path.is_file():
        raise DataError(f"{path}: missing; the layout of the data folder is what scripts/judge_data.py reads.")
    return path


def read_lines(path: Path) -> list[Any]:
    """Read a JSON-lines file, gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(existing(path), "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def read_json(path: Path) -> list[Any]:
    """Read a JSON list."""
    rows: list[Any] = json.loads(existing(path).read_text(encoding="utf-8"))
    return rows


def read_ultrafeedback(data: Path) -> Iterator[Pair]:
    """Yield the pairs of UltraFeedback's rows 600 and later."""
    for row in read_lines(data / "ultrafeedback/train.jsonl")[ULTRAFEEDBACK_FIRST:]:
        yield Pair("ultrafeedback", (("user", row["prompt"]),), row["chosen"], row["rejected"])


def read_llmbar(data: Path) -> Iterator[Pair]:
    """Yield LLMBar's pairs; label 1 or 2 names the better output."""
    for subset in ("natural", "llmeval2", "mtbench"):
        for row in read_json(data / f"preferences/llmbar_{subset}.json"):
            responses = [row["output_1"], row["output_2"]]
            chosen = responses[row["label"] - 1]
            rejected = responses[2 - row["label"]]
            yield Pair(f"llmbar_{subset}", (("user", row["input"]),), chosen, rejected)


def read_dpo_demo(data: Path) -> Iterator[Pair]:
    """Yield LLaMA-Factory's demonstration pairs."""
    for row in read_json(data / "preferences/dpo_en_demo.json"):
        prompt = tuple((ROLES[turn["from"]], turn["value"]) for turn in row["conversations"])
        yield Pair("dpo_en_demo", prompt, row["chosen"]["value"], row["rejected"]["value"])


def parse_dialogue(text: str) -> Messages:
    """Split an HH dialogue ("\\n\\nHuman: …\\n\\nAssistant: …") into messages."""
    turns = re.split(r"\n\n(Human|Assistant):", text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple((roles[role], content.strip()) for role, content in zip(turns[::2], turns[1::2], strict=True))


def read_hh(data: Path) -> Iterator[Pair]:
    """Yield HH harmless pairs whose two dialogues share all but the last reply, which is not empty."""
    for row in read_lines(data / "preferences/hh_harmless_base_test.jsonl.gz"):
        chosen, rejected = parse_dialogue(row["chosen"]), parse_dialogue(row["rejected"])
        if chosen[:-1] == rejected[:-1] and chosen[-1][0] == rejected[-1][0] == "assistant":
            yield Pair("hh_harmless", chosen[:-1], chosen[-1][1], rejected[-1][1])


def read_llmfao(data: Path) -> Iterator[Pair]:
    """Yield 60 random pairs per LLMFAO prompt, labelled by the net vote of crowd and GPT-4; ties dropped."""
    prompts = {row["id"]: row["text"] for row in read_lines(data / "llmfao/prompts.jsonl")}
    results = {(row["prompt"], row["model"]): row["result"] for row in read_lines(data / "llmfao/results.jsonl")}
    votes: dict[tuple[int, int, int], int] = defaultdict(int)
    for name in ("crowd", "gpt4"):
        text = existing(data / f"llmfao/{name}-comparisons.csv").read_text(encoding="utf-8")
        for row in csv.DictReader(text.splitlines()):
            pair = int(row["prompt"]), int(row["model_x"]), int(row["model_y"])
            votes[pair] += {"left": 1, "right": -1, "tie": 0}[row["winner"]]
    taken: dict[int, int] = defaultdict(int)
    for (prompt, x, y), net in sorted(votes.items(), key=lambda item: unit_hash(str(item[0]))):
        if net and taken[prompt] < LLMFAO_PAIRS_PER_PROMPT:
            taken[prompt] += 1
            better, worse = (x, y) if net > 0 else (y, x)
            yield Pair("llmfao", (("user", prompts[prompt]),), results[prompt, better], results[prompt, worse])


def read_pairs(data: Path) -> list[Pair]:
    """Read every source, without pairs of equal or empty texts."""
    readers = (read_ultrafeedback, read_llmbar, read_dpo_demo, read_hh, read_llmfao)
    pairs = [pair for reader in readers for pair in reader(data)]
    return [p for p in pairs if p.chosen.strip() and p.rejected.strip() and p.chosen.strip() != p.rejected.strip()]


def test_only_keys(data: Path) -> set[int]:
    """Return the keys of prompts that no judge may train on: the suites' and those to play on."""
    texts = [row["prompt"] for row in read_lines(data / "ultrafeedback/train.jsonl")[:ULTRAFEEDBACK_FIRST]]
    texts += [turn for row in read_lines(data / "mt_bench/question.jsonl") for turn in row["turns"]]
    texts += [row["instruction"] for row in read_json(data / "alpaca_eval/gpt4_1106_preview/model_outputs.json")]
    texts += [turn["content"] for row in read_lines(data / "prompts/arena_hard_v0.1.jsonl") for turn in row["turns"]]
    texts += [row["instruction"] for row in read_lines(data / "prompts/self_instruct_seed_tasks.jsonl")]
    texts += [row["instruction"] for row in read_lines(data / "prompts/user_oriented_instructions.jsonl")]
    return {prompt_key([("user", text)]) for text in texts}


def unit_hash(text: str) -> float:
    """Map a text to [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:6], "big") / 2**48


def prompt_groups(pairs: list[Pair]) -> list[int]:
    """Name each pair's group: pairs that share their first or their last user message belong together.

    The name is the smallest `prompt_key` in the group, so it does not depend on the order of the pairs.
    """
    parent: dict[int, int] = {}

    def find(key: int) -> int:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for pair in pairs:
        users = [turn for turn in pair.prompt if turn[0] == "user"] or [("user", "")]
        low, high = sorted((find(prompt_key(users[:1])), find(prompt_key(users[-1:]))))
        parent[high] = low
    return [find(prompt_key(pair.prompt)) for pair in pairs]


def split_pairs(pairs: list[Pair], groups: list[int], test_only: Iterable[int]) -> dict[str, list[int]]:
    """Deal the pairs' row numbers into test, mini and lexical by group.

    A group with a forbidden prompt is tested on.
    """
    forbidden = set(test_only)
    held = {group for pair, group in zip(pairs, groups, strict=True) if prompt_key(pair.prompt) in forbidden}
    split: dict[str, list[int]] = {name: [] for name in SPLITS}
    for row, group in enumerate(groups):
        place = unit_hash(f"split {group}")
        name = "test" if place < SPLITS["test"] or group in held else "mini"
        split["lexical" if name == "mini" and place >= 1 - SPLITS["lexical"] else name].append(row)
    return split


def opening(text: str, random: np.random.Generator) -> tuple[list[str], list[str]]:
    """Return a response's first whole sentences, up to 30-100 words, and what follows.

    A word keeps its white space. Sampled responses are short; so are the synthetic ones.
    """
    words = re.findall(r"\S+\s+", text.strip() + " ")
    limit = int(random.integers(30, 101))
    ends = [k + 1 for k, word in enumerate(words[:limit]) if re.search(r"[.!?][\"')\]*]*\s*$", word)]
    size = ends[-1] if ends else min(limit, len(words))
    return words[:size], words[size:]


def spoil_loop(words: list[str], rest: list[str], random: np.random.Generator) -> list[str]:
    """Keep a beginning, then repeat a passage of it until the length of the whole is reached."""
    size = int(random.integers(3, 13))
    start = int(random.integers(0, max(len(words) // 2 - size, 1)))
    looped = words[: start + size]
    while len(looped) < len(words):
        looped = looped + words[start : start + size]
    return looped


def spoil_shuffle(words: list[str], rest: list[str], random: np.random.Generator) -> list[str]:
    """Put the words in random order."""
    return [words[k] for k in random.permutation(len(words))]


def spoil_truncation(words: list[str], rest: list[str], random: np.random.Generator) -> list[str]:
    """Stop in mid-sentence: half the time inside the next sentence, else after 20-95% of the words."""
    if len(rest) > 3 and random.random() < 0.5:
        kept = words + rest[: int(random.integers(2, min(len(rest), 12)))]
    else:
        kept = words[: max(3, int(len(words) * random.uniform(0.2, 0.95)))]
    return [*kept[:-1], kept[-1].rstrip(" \n.!?\"')]*")]


def spoil_evasion(words: list[str], rest: list[str], random: np.random.Generator) -> list[str]:
    """Say, in one of many ways, nothing: an excuse, or a bare acknowledgement."""
    if random.random() < 0.3:
        return [str(random.choice(ACKNOWLEDGEMENTS))]
    opener, verb, object_, ending = (str(random.choice(part)) for part in REFUSALS)
    sentence = f"{opener}{verb} {object_}.{ending}"
    return [sentence[0].upper() + sentence[1:]]


ACKNOWLEDGEMENTS = ("Yes.", "No.", "Sure!", "Okay.", "I see.", "Of course!", "Good question.", "Thank you.")
REFUSALS = (
    (
        "I'm sorry, but ",
        "I am sorry, ",
        "I apologize, but ",
        "As an AI language model, ",
        "Unfortunately, ",
        "",
    ),
    ("I can't help with", "I cannot assist with", "I'm not able to do", "I am unable to answer"),
    ("that", "this request", "your question", "this topic", "that kind of thing"),
    ("", "", " Is there anything else I can help you with?", " Please try something else.", " Thank you."),
)
SPOIL = {
    "loop": spoil_loop,
    "shuffle": spoil_shuffle,
    "truncation": spoil_truncation,
    "evasion": spoil_evasion,
}


def corrupt(pairs: list[Pair], seed: int) -> list[Pair]:
    """Return about one synthetic pair per pair: the opening of its chosen response against a spoilt one.

    The kinds take turns: stranger (the opening of another prompt's chosen response), loop, shuffle,
    truncation, and evasion, left out for hh_harmless, where a refusal can be the better response. Their
    source is `synthetic_<kind>`; they are kept apart from every figure on real pairs.
    """
    made = []
    for row, pair in enumerate(pairs):
        random = np.random.default_rng([seed, row])
        words, rest = opening(pair.chosen, random)
        kinds = ("stranger", *SPOIL)
        kind = kinds[row % (len(kinds) - (pair.source == "hh_harmless"))]
        if kind == "stranger":
            other = pairs[int(random.integers(len(pairs)))]
            spoilt = [] if other.prompt == pair.prompt else opening(other.chosen, random)[0]
        else:
            spoilt = SPOIL[kind](words, rest, random) if len(words) >= 8 else []
        chosen, rejected = "".join(words).strip(), "".join(spoilt).strip()
        if rejected and chosen != rejected:
            made.append(Pair(f"synthetic_{kind}", pair.prompt, chosen, rejected))
    return made
