"""What the two judges are worth: accuracies with intervals, and the folders they are published in.

The figures that they share with every other oracle, and the bootstrap, are stages/annotate/fitness.py.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from scripts.judge_data import SOURCES, Pair
from sparring.stages.annotate.fitness import (
    LENGTH_RATIO,
    Card,
    accuracy_figure,
    correct,
    draws,
    figure,
    interval,
    length_matched,
    longer,
    of_all,
    rank_correlation,
    ratio,
)
from sparring.stages.annotate.oracle import Duel, Oracle
from sparring.stages.plain import interval_text

WHAT = {
    "mini": "A pairwise ranker on frozen all-MiniLM-L6-v2 embeddings and surface features: a Bradley-Terry "
    "score plus a skew-symmetric term, so that it can prefer in cycles. Code: stages/annotate/oracles/mini.py.",
    "lexical": "A linear ranker on hashed word and character n-grams, without any length feature and without "
    "embeddings. The second judge, to watch the first. Code: stages/annotate/oracles/lexical.py.",
}
README = """# {title}

{what}

Written by `python -m scripts.train_judges`; do not edit. Weights: Apache-2.0. **It is weak**: on held-out pairs of
sources like those it was trained on it is right in {macro} of the cases, as the mean over sources,
where the rule "the shorter one is better" is right in {shorter:.3f} and "the longer one is better" in {longer:.3f}.
{few}On other sources expect less. It separates loops, shuffled words, unfinished and evasive texts from
complete ones better than good from better. It shows that the pipeline works; it is no measure of quality. The logit is
antisymmetric by construction: there is no order bias.

## Held-out accuracy

Pairs whose prompts (and first turns) neither judge was trained on; 95% bootstrap interval over prompts. The two rules
beside it look at the number of characters alone.

| source | accuracy | 95% | shorter wins | longer wins | pairs | prompts | trained on |
|---|---|---|---|---|---|---|---|
{sources}

`macro`: the mean over sources; its interval draws the prompts of each source apart. `all pairs` is dominated by the
largest sources. `length_matched`: the shorter response has at least {ratio:.0%} of the longer one's words.

| other figures | value | 95% | pairs | prompts |
|---|---|---|---|---|
{others}

`tfidf`: logistic regression on TF-IDF differences, trained on the same real pairs. `synthetic_*`: a spoilt opening
against the intact one (loop, shuffled words, another prompt's response, stopped in mid-sentence, an excuse or a bare
"Yes."); part of no other figure. `error_phi`: correlation of the two judges' errors on the test pairs.
`length_logit_spearman` {spearman:.2f}: rank correlation of its logits with the difference in characters.

## Trained on

{trained_on}

Dealt by prompt: the other judge's training prompts and the test's are disjoint from these. `trained_on` in
model.safetensors holds the key of each prompt used, so that none is played on.

## card.json

A figure `x` is five entries: `x`, `x_low`, `x_high` (95%), `x_pairs`, `x_prompts`.

- `kind`, `sha256` (of model.safetensors), `seed`, `encoder`, `train_prompts`, `setting_<name>` (by cross-validation)
- `trained_on`: a list of `source`, `pairs`, `attribution`
- `sources`: by name, `accuracy` with `low` and `high`, `pairs`, `prompts`, `longer_wins`, `shorter_wins`, and whether
  the judge was `trained_on` other prompts of that source
- figures `macro`, `macro_longer_wins`, `macro_shorter_wins`: means over `sources`
- figures `accuracy`, `longer_wins`, `shorter_wins`, `tfidf`: over all pairs; with the suffix `_length_matched` (for
  `accuracy`: `length_matched`): over the length-matched ones, by `length_ratio`
- `few_prompts`: the sources with fewer than {least} prompts; figures `accuracy_many_prompts`, `macro_many_prompts`,
  `longer_wins_many_prompts`, `shorter_wins_many_prompts`: without those
- figures `synthetic_<kind>`, `error_phi`; `length_logit_spearman`
"""
FEW_PROMPTS = 20
"""Sources with fewer test prompts than this are left out of the figures `*_many_prompts`."""


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
    """Return the unweighted mean over sources of mean(right), with its interval; nothing for no pairs.

    The prompts of each source are drawn with replacement, as many as it has, apart from those of the others.
    """
    masks = [sources == source for source in sorted(set(sources))]
    if not masks:
        return {}
    times = [draws(groups[mask], seed + place) for place, mask in enumerate(masks)]
    resampled = np.mean([ratio(t @ right[m], t.sum(axis=1)) for t, m in zip(times, masks, strict=True)], axis=0)
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
    value = of_all(lambda times: phi(a, b, times), len(a))
    return figure("error_phi", value, phi(a, b, draws(groups, seed)), groups)


def judge_logits(oracle: Oracle, pairs: Sequence[Pair]) -> np.ndarray:
    """Return the logit of (chosen shown first, rejected second) per pair."""
    return oracle([Duel(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]).logits


def test_figures(
    logits: np.ndarray, tfidf: np.ndarray, pairs: Sequence[Pair], groups: np.ndarray, seed: int, trained_on: set[str]
) -> Card:
    """Return every figure of one judge on the real test pairs; trained_on: the sources of its training pairs."""
    sources, matched = np.array([pair.source for pair in pairs]), length_matched(pairs)
    long = correct(longer(pairs))
    rights = {"accuracy": correct(logits), "longer_wins": long, "shorter_wins": 1 - long, "tfidf": correct(tfidf)}
    prompts = {source: len(np.unique(groups[sources == source])) for source in sorted(set(sources))}
    few = [source for source, n in prompts.items() if n < FEW_PROMPTS]
    few = few if len(few) < len(prompts) else []
    many = ~np.isin(sources, few)
    card: Card = {"sources": {}, "few_prompts": few, "length_ratio": LENGTH_RATIO}
    for source, n in prompts.items():
        own = sources == source
        one = accuracy_figure("x", rights["accuracy"][own], groups[own], seed)
        card["sources"][source] = {
            "accuracy": one["x"],
            "low": one["x_low"],
            "high": one["x_high"],
            "longer_wins": round(float(long[own].mean()), 6),
            "shorter_wins": round(float(1 - long[own].mean()), 6),
            "pairs": int(own.sum()),
            "prompts": n,
            "trained_on": source in trained_on,
        }
    for name, right in rights.items():
        macro = "macro" if name == "accuracy" else f"macro_{name}"
        card |= macro_figure(macro, right, groups, sources, seed)
        card |= accuracy_figure(name, right, groups, seed)
        alike = "length_matched" if name == "accuracy" else f"{name}_length_matched"
        card |= accuracy_figure(alike, right[matched], groups[matched], seed)
        if few:
            card |= accuracy_figure(f"{name}_many_prompts", right[many], groups[many], seed)
            card |= macro_figure(f"{macro}_many_prompts", right[many], groups[many], sources[many], seed)
    spearman = of_all(rank_correlation(logits, longer(pairs)), len(pairs))
    return card | {"length_logit_spearman": round(spearman, 6)}


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
    trained_on = [
        {"source": source, "pairs": n, "attribution": SOURCES.get(source, source.replace("_", " "))}
        for source, n in sorted(counts.items())
    ]
    card: Card = {"trained_on": trained_on, "train_prompts": len(result.tensors["trained_on"])}
    return card | {f"setting_{name}": value for name, value in result.settings.items()}


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
            **training_facts(result),
            **test_figures(logits[name], result.tfidf, test, groups, seed, {p.source for p in result.train_rows}),
            **together,
            **synthetic_figures(result.oracle, synthetic, seed),
        }
        publish(out / name, content, cards[name])
    return cards


def publish(folder: Path, content: bytes, card: Card) -> None:
    """Write a judge's three files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(readme(card), encoding="utf-8")


def readme(card: Card) -> str:
    """Return the model card as Markdown."""
    few = ""
    if card["few_prompts"]:
        names, without = ", ".join(card["few_prompts"]), interval(card, "accuracy_many_prompts")
        few = (
            f"Without {names} (fewer than {FEW_PROMPTS} prompts) it is right in {without} of all pairs, "
            f'"the shorter one" in {card["shorter_wins_many_prompts"]:.3f}.\n'
        )
    trained_on = "\n".join(f"- {one['pairs']} pairs: {one['attribution']}" for one in card["trained_on"])
    return README.format(
        title=f"Judge `{card['kind']}`",
        what=WHAT[card["kind"]],
        macro=interval(card, "macro"),
        shorter=card["macro_shorter_wins"],
        longer=card["macro_longer_wins"],
        few=few,
        sources="\n".join(_by_source(card)),
        others="\n".join(_other_figures(card)),
        ratio=LENGTH_RATIO,
        spearman=card["length_logit_spearman"],
        trained_on=trained_on,
        least=FEW_PROMPTS,
    )


def both(cards: Mapping[str, Card]) -> str:
    """Return the table of the README: both judges beside the two rules of length, by source and over all of them."""
    one = cards["mini"]
    names = {**{name: name for name in one["sources"]}, "**mean over sources**": "macro"}
    few = f"without {', '.join(one['few_prompts'])}"
    if one["few_prompts"]:
        names |= {f"**mean over sources** {few}": "macro_many_prompts", f"all pairs {few}": "accuracy_many_prompts"}
    names |= {"all pairs": "accuracy", "length-matched pairs": "length_matched"}
    head = ["source", *(f"`{name}`" for name in cards), "shorter wins", "longer wins", "pairs", "prompts"]
    rows = [head, ["---"] * len(head)]
    for title, key in names.items():
        own = [_named(card, key) for card in cards.values()]
        counts = [f"{own[0][name]:,}" for name in ("pairs", "prompts")]
        accuracies = [interval_text(found["accuracy"], found["low"], found["high"]) for found in own]
        rules = [f"{own[0][name]:.3f}" for name in ("shorter_wins", "longer_wins")]
        rows.append([title, *accuracies, *rules, *counts])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _named(card: Card, key: str) -> Card:
    """Return a figure of a card under the names that a source has."""
    if key in card["sources"]:
        return dict(card["sources"][key])
    prefix = "macro_" if key.startswith("macro") else ""
    suffix = next((one for one in ("_many_prompts", "_length_matched") if key.endswith(one.removeprefix("_"))), "")
    return {
        "accuracy": card[key],
        "low": card[f"{key}_low"],
        "high": card[f"{key}_high"],
        "shorter_wins": card[f"{prefix}shorter_wins{suffix}"],
        "longer_wins": card[f"{prefix}longer_wins{suffix}"],
        "pairs": card[f"{key}_pairs"],
        "prompts": card[f"{key}_prompts"],
    }


def _by_source(card: Card) -> Iterator[str]:
    """Yield the rows of the table of accuracies, beside those of the two rules of length."""
    keys = ("accuracy", "low", "high", "shorter_wins", "longer_wins", "pairs", "prompts")
    for name, one in card["sources"].items():
        yield f"{_row(name, one, keys)} {'yes' if one['trained_on'] else 'no'} |"
    wholes = {"macro": "**macro**", "accuracy": "all pairs"}
    if card["few_prompts"]:
        few = f"without {', '.join(card['few_prompts'])}"
        wholes |= {"macro_many_prompts": f"**macro** {few}", "accuracy_many_prompts": f"all pairs {few}"}
    wholes |= {"length_matched": "all pairs, length_matched"} if "length_matched" in card else {}
    for key, title in wholes.items():
        yield f"{_row(title, _named(card, key), keys)} |"


def _other_figures(card: Card) -> Iterator[str]:
    names = [key.removesuffix("_low") for key in card if key.endswith("_low")]
    for name in names:
        if name.startswith(("tfidf", "synthetic_", "error_phi", "macro_tfidf")):
            yield _row(name, card, (name, f"{name}_low", f"{name}_high", f"{name}_pairs", f"{name}_prompts"))


def _row(title: str, values: Card, keys: Sequence[str]) -> str:
    """Return a row of a table: the value, its interval, then what else `keys` names."""
    value, low, high, *others = (values[key] for key in keys)
    cells = [f"{value:.3f}", f"{low:.3f}-{high:.3f}"]
    cells += [str(one) if isinstance(one, int) else f"{one:.3f}" for one in others]
    return f"| {title} | {' | '.join(cells)} |"
