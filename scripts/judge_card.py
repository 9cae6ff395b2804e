"""What the two judges are worth: accuracies with intervals, and the folders they are published in.

The figures that they share with every other oracle, and the bootstrap, are stages/annotate/fitness.py.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from scripts.judge_data import SOURCES, Pair
from stages.annotate.fitness import (
    LENGTH_RATIO,
    Card,
    accuracy_figure,
    correct,
    draws,
    figure,
    length_matched,
    longer,
    rank_correlation,
    ratio,
    whole,
)
from stages.annotate.oracle import Duel, Oracle

WHAT = {
    "mini": "A pairwise ranker on frozen all-MiniLM-L6-v2 embeddings and surface features: a Bradley-Terry "
    "score plus a skew-symmetric term, so that it can prefer in cycles. Code: stages/annotate/oracles/mini.py.",
    "lexical": "A linear ranker on hashed word and character n-grams, without any length feature and without "
    "embeddings. The second judge, to watch the first. Code: stages/annotate/oracles/lexical.py.",
}
README = """# {title}

{what}

Written by `python -m scripts.train_judges`; do not edit. Weights: Apache-2.0. **It is weak**: it orders about
{percent:.0f} in 100 held-out pairs as their annotators did, where the rule "the shorter one" orders
{shorter:.0f}, and leans to the shorter response itself. It tells loops, shuffled words, unfinished and
evasive texts from whole ones better than good from better. It shows that the pipeline works; it is no measure
of quality. The logit is antisymmetric by construction: there is no order bias.

## Held-out accuracy

Pairs whose prompts (and first turns) neither judge has seen; 95% bootstrap interval over prompts.

| | accuracy | 95% | pairs | prompts |
|---|---|---|---|---|
{table}

`length_matched`: the shorter has at least {ratio:.0%} of the longer's words. `macro`: mean over sources.
`longer_wins`: the response with more characters is called better. `tfidf`: logistic regression on TF-IDF
differences, trained on the same real pairs. `synthetic_*`: a spoilt opening against the whole one (loop,
shuffled words, another prompt's response, stopped in mid-sentence, an excuse or a bare "Yes."); in no other
figure. MT-Bench's questions (LLMBar) are only tested on. `error_phi`: correlation of the two judges' errors
on the test pairs, {phi:.2f} [{phi_low:.2f}, {phi_high:.2f}]. `length_logit_spearman` {spearman:.2f}: how far
its logits follow the difference in characters.

## Trained on

{sources}

Dealt by prompt: the other judge's training prompts and the test's are disjoint from these. `trained_on` in
model.safetensors holds the key of each prompt used, so that none is played on.

## card.json

One flat object. `kind`, `sha256` (of model.safetensors), `seed`, `encoder`. A figure `x` comes as `x`,
`x_low`, `x_high` (95%), `x_pairs`, `x_prompts`, for x in `accuracy`, `macro`, `length_matched`,
`longer_wins`, `longer_wins_length_matched`, `tfidf`, `tfidf_length_matched`, `source_<name>`,
`longer_wins_source_<name>`, `synthetic_<kind>`, `error_phi`. `length_ratio`: what counts as length-matched.
`length_logit_spearman`. `train_pairs_<source>`, `train_prompts`; `setting_<name>`: chosen by
cross-validation; `attribution_<source>`.
"""


@dataclass(frozen=True, kw_only=True)
class JudgeResult:
    """A trained judge, before it is written."""

    tensors: dict[str, np.ndarray]
    settings: dict[str, float]
    train_rows: list[Pair]
    oracle: Oracle
    tfidf: np.ndarray
    """The baseline's logits on the test pairs."""


def macro_figure(name: str, right: np.ndarray, groups: np.ndarray, sources: np.ndarray, seed: int) -> Card:
    """Return the unweighted mean over sources of their accuracy, with its interval."""
    times = draws(groups, seed)
    masks = [sources == source for source in sorted(set(sources))]
    resampled = np.mean([ratio(times[:, m] @ right[m], times[:, m].sum(axis=1)) for m in masks], axis=0)
    return figure(name, float(np.mean([right[m].mean() for m in masks])), resampled, groups)


def phi(a: np.ndarray, b: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return (m,) correlations of two 0/1 indicators (n,), one per row of weights `times` (m, n).

    It is nan where an indicator is constant.
    """
    total = times.sum(axis=1)
    mean_a, mean_b = times @ a / total, times @ b / total
    covariance = times @ (a * b) / total - mean_a * mean_b
    variance = (times @ (a * a) / total - mean_a**2) * (times @ (b * b) / total - mean_b**2)
    return ratio(covariance, np.sqrt(np.maximum(variance, 0.0)))


def phi_figure(a: np.ndarray, b: np.ndarray, groups: np.ndarray, seed: int) -> Card:
    """Return `error_phi`: phi of two judges' correctness (equal to that of their errors).

    It is written into the cards of both: that both state the same tells a report that it is of these two.
    """
    value = whole(lambda times: phi(a, b, times), len(a))
    return figure("error_phi", value, phi(a, b, draws(groups, seed)), groups)


def judge_logits(oracle: Oracle, pairs: Sequence[Pair]) -> np.ndarray:
    """Return the logit of (chosen shown first, rejected second) per pair."""
    return oracle([Duel(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]).logits


def test_figures(logits: np.ndarray, tfidf: np.ndarray, pairs: Sequence[Pair], groups: np.ndarray, seed: int) -> Card:
    """Return every figure of one judge on the real test pairs."""
    sources, matched = np.array([pair.source for pair in pairs]), length_matched(pairs)
    right, long, base = correct(logits), correct(longer(pairs)), correct(tfidf)
    card = accuracy_figure("accuracy", right, groups, seed) | macro_figure("macro", right, groups, sources, seed)
    card |= accuracy_figure("length_matched", right[matched], groups[matched], seed)
    for name, baseline in (("longer_wins", long), ("tfidf", base)):
        card |= accuracy_figure(name, baseline, groups, seed)
        card |= accuracy_figure(f"{name}_length_matched", baseline[matched], groups[matched], seed)
    for source in sorted(set(sources)):
        own = sources == source
        card |= accuracy_figure(f"source_{source}", right[own], groups[own], seed)
        card |= accuracy_figure(f"longer_wins_source_{source}", long[own], groups[own], seed)
    spearman = whole(rank_correlation(logits, longer(pairs)), len(pairs))
    return card | {"length_ratio": LENGTH_RATIO, "length_logit_spearman": round(spearman, 6)}


def synthetic_figures(oracle: Oracle, pairs: Sequence[Pair], seed: int) -> Card:
    """Return the accuracy per kind of corruption; each synthetic pair counts as its own prompt."""
    right, kinds = correct(judge_logits(oracle, pairs)), np.array([pair.source for pair in pairs])
    card: Card = {}
    for kind in sorted(set(kinds)):
        own = right[kinds == kind]
        card |= accuracy_figure(kind, own, np.arange(len(own)), seed)
    return card


def training_facts(result: JudgeResult) -> Card:
    """Return what the judge was trained on, and the settings that were chosen."""
    counts = Counter(pair.source for pair in result.train_rows)
    card: Card = {f"train_pairs_{source}": counts[source] for source in sorted(counts)}
    card |= {f"attribution_{source}": SOURCES[source] for source in sorted(counts) if source in SOURCES}
    card |= {f"setting_{name}": value for name, value in result.settings.items()}
    return card | {"train_prompts": len(result.tensors["trained_on"])}


def write_judges(
    out: Path,
    results: dict[str, JudgeResult],
    test: Sequence[Pair],
    groups: np.ndarray,
    synthetic: Sequence[Pair],
    seed: int,
) -> dict[str, Card]:
    """Measure both judges on the test pairs, write their folders, log a table; return the cards."""
    logits = {name: judge_logits(result.oracle, test) for name, result in results.items()}
    together = phi_figure(correct(logits["mini"]), correct(logits["lexical"]), groups, seed)
    cards = {}
    for name, result in results.items():
        content = save({key: np.ascontiguousarray(tensor) for key, tensor in sorted(result.tensors.items())})
        cards[name] = {
            "kind": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "seed": seed,
            "encoder": "all-MiniLM-L6-v2" if name == "mini" else "none",
            **test_figures(logits[name], result.tfidf, test, groups, seed),
            **together,
            **synthetic_figures(result.oracle, synthetic, seed),
            **training_facts(result),
        }
        publish(out / name, content, cards[name])
    return cards


def publish(folder: Path, content: bytes, card: Card) -> None:
    """Write a judge's three files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(readme(card), encoding="utf-8")


def table(card: Card) -> str:
    """Return the figures of a card as rows of a Markdown table."""
    figures = [name.removesuffix("_low") for name in card if name.endswith("_low") and name != "error_phi_low"]
    return "\n".join(
        f"| {name} | {card[name]:.3f} | {card[f'{name}_low']:.3f}-{card[f'{name}_high']:.3f} | "
        f"{card[f'{name}_pairs']} | {card[f'{name}_prompts']} |"
        for name in figures
    )


def readme(card: Card) -> str:
    """Return the model card as Markdown."""
    counts = {key.removeprefix("train_pairs_"): n for key, n in card.items() if key.startswith("train_pairs_")}
    sources = [f"- {n} pairs: {SOURCES.get(name, name.replace('_', ' '))}" for name, n in counts.items()]
    return README.format(
        title=f"Judge `{card['kind']}`",
        what=WHAT[card["kind"]],
        percent=100 * card["accuracy"],
        shorter=100 - 100 * card["longer_wins"],
        table=table(card),
        ratio=LENGTH_RATIO,
        phi=card["error_phi"],
        phi_low=card["error_phi_low"],
        phi_high=card["error_phi_high"],
        spearman=card["length_logit_spearman"],
        sources="\n".join(sources),
    )
