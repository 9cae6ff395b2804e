"""The step `score`: raw oracle logits of both orders of every pair of responses.

Self mode (input `samples`): the K responses of a prompt against each other. Versus mode (inputs `samples` and
`opponents`): the responses of one policy, left, against those of another to the same prompt, right. A prompt without
responses of the other policy, on which its engine failed, is dropped and counted as `no_opponent`.

For large K the left responses may meet m anchors only, drawn among them for each prompt (`anchors`): m(2K-m-1) duels
instead of K(K-1), and estimates of the win rates that are unbiased (winrate.py).

The oracle sees plain prompts, not chat-rendered ones, and responses without the white space around them.
Responses that are then equal get 0 without a pass, and one text is judged once per prompt however often it
was sampled. A pair is flagged as truncated when the oracle read one of its texts cut, in either order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparring.stages.annotate import embed, oracles, winrate
from sparring.stages.annotate.config import ScoreSettings
from sparring.stages.annotate.fitness import correct
from sparring.stages.annotate.oracle import Duel, Messages, Oracle, prompt_key
from sparring.stages.annotate.oracles import OracleContext
from sparring.stages.annotate.rows import find_row, matrix, place, ratio, rows_by_id, total
from sparring.stages.annotate.winrate import generator
from sparring.stages.step import Input, Job, Part, Shard

SCORES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("n_left", pa.int32()),
        ("n_right", pa.int32()),
        ("logits", pa.list_(pa.float64())),
        ("swapped", pa.list_(pa.float64())),
        ("truncated", pa.list_(pa.bool_())),
        ("anchors", pa.list_(pa.int32())),
        ("trained_on", pa.bool_()),
    ]
)

UNASKED = (0.0, False)
"""Logit and truncation of two equal texts."""
LoadOracle = Callable[[str, Mapping[str, Any], OracleContext], Oracle]


class Comparison(NamedTuple):
    """The responses to one prompt that are compared: every left one with every right one."""

    id: str
    prompt: Messages
    left: list[str]
    right: list[str]
    anchors: list[int] | None = None
    """Which left ones the right ones are; None: all in self mode, none in versus mode."""

    def duels(self) -> Iterator[Duel]:
        """Both orders of every pair of different texts."""
        for a in self.left:
            for b in self.right:
                if a != b:
                    yield Duel(self.prompt, a, b)
                    yield Duel(self.prompt, b, a)


def prepare(job: Job[ScoreSettings]) -> None:
    """Import what the oracle embeds with."""
    if job.settings.oracle.kind == "mini":
        embed.prepare(job)


class Scorer:
    """Scores a part of `samples`; the judge is loaded once."""

    def __init__(self, job: Job[ScoreSettings], load: LoadOracle = oracles.load) -> None:
        chosen, roles = job.settings.oracle, [role for role in job.inputs if role not in ("samples", "opponents")]
        context = OracleContext(
            folders={role: job.inputs[role].folder() for role in roles},
            judge=chosen,
            cpus=job.workers.cpus,
            gpus=job.workers.gpus,
        )
        self.oracle = load(chosen.kind, chosen.options, context)
        self.anchors, self.seed = job.settings.anchors, job.settings.seed
        self.samples = job.inputs["samples"]
        self.opponents = job.inputs.get("opponents")

    def __call__(self, shard: Shard) -> Part:
        comparisons, alone = _comparisons(self.samples, self.opponents, shard.index)
        if self.anchors:
            comparisons = [among(one, self.anchors, self.seed) for one in comparisons]
        duels = list(dict.fromkeys(duel for comparison in comparisons for duel in comparison.duels()))
        verdicts = self.oracle(duels)
        answers = dict(zip(duels, zip(*(part.tolist() for part in verdicts), strict=True), strict=True))
        rows = [self._row(one, answers, place(self.samples, shard.index, one.id)) for one in comparisons]
        stats = {"duels": float(len(duels)), "trained_on": float(sum(row["trained_on"] for row in rows))}
        for comparison, row in zip(comparisons, rows, strict=True):
            for name, count in _counts(comparison, row, self_mode=self.opponents is None).items():
                stats[name] = stats.get(name, 0.0) + count
        return Part(
            table=pa.Table.from_pylist(rows, schema=SCORES_SCHEMA),
            rows_in=len(comparisons) + alone,
            dropped={"no_opponent": alone} if alone else {},
            stats=stats,
        )

    def _row(self, comparison: Comparison, answers: dict[Duel, tuple[float, bool]], where: str) -> dict[str, Any]:
        met = [(a, b) for a in comparison.left for b in comparison.right]
        forth = [UNASKED if a == b else answers[Duel(comparison.prompt, a, b)] for a, b in met]
        back = [UNASKED if a == b else answers[Duel(comparison.prompt, b, a)] for a, b in met]
        shape = len(comparison.left), len(comparison.right)
        return {
            "id": comparison.id,
            "n_left": len(comparison.left),
            "n_right": len(comparison.right),
            "logits": matrix([x for x, _ in forth], shape, "oracle logit", where).ravel(),
            "swapped": matrix([x for x, _ in back], shape, "swapped oracle logit", where).ravel(),
            "truncated": [a or b for (_, a), (_, b) in zip(forth, back, strict=True)],
            "anchors": comparison.anchors,
            "trained_on": prompt_key(comparison.prompt) in self.oracle.trained_on,
        }


def finish(job: Job[ScoreSettings], tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise. Shares are of pairs of responses; figures of positions are of those that were judged."""
    return {
        "oracle": job.settings.oracle.kind,
        "anchors": job.settings.anchors,
        "card": _card(job.inputs["judge"].folder()) if "judge" in job.inputs else None,
        "n": sum(part["rows_out"] for part in parts),
        "trained_on": int(total(parts, "trained_on")),
        "duels": int(total(parts, "duels")),
        "empty": int(total(parts, "empty")),
        **_shares(parts),
        "shards": [_shares([part]) for part in parts],
    }


def _shares(parts: list[dict[str, Any]]) -> dict[str, float | None]:
    """`position_bias`: what being shown first adds to the logit; `first_wins`: how often the first shown one wins."""
    pairs, identical = total(parts, "pairs"), total(parts, "identical")
    judged = pairs - identical
    return {
        "pairs": int(pairs),
        "identical": int(identical),
        "truncated": int(total(parts, "truncated")),
        "tie_rate": ratio(total(parts, "ties"), pairs),
        "position_disagreement": ratio(total(parts, "disagreements"), judged),
        "position_bias": ratio(total(parts, "bias"), judged),
        "first_wins": ratio(total(parts, "first_wins"), 2 * judged),
    }


CARD = ("sources", "few_prompts", "macro", "accuracy", "length_matched", "longer_wins", "shorter_wins", "error_phi")
"""Prefixes of the keys of a judge's card.json that are about its accuracy: they belong beside every win rate.

`error_phi` is with the judge whose card states the same: pipeline/report/judging.py.
"""


def _card(folder: Path) -> dict[str, Any] | None:
    path = folder / "card.json"
    if not path.is_file():
        return None
    return {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key.startswith(CARD)}


def _comparisons(samples: Input, opponents: Input | None, index: int) -> tuple[list[Comparison], int]:
    """Return what is compared in a part, and how many of its prompts have no opponent; DataError when none has one."""
    columns = ["messages", "responses"]
    rows = rows_by_id(samples, index, columns)
    others = rows if opponents is None else rows_by_id(opponents, index, columns)
    met = [row_id for row_id in rows if row_id in others]
    if opponents and rows and others and not met:
        find_row(others, next(iter(rows)), opponents, index)
    comparisons = []
    for row_id in met:
        prompt = tuple((message["role"], message["content"]) for message in rows[row_id]["messages"])
        left, right = ([one["text"].strip() for one in row[row_id]["responses"]] for row in (rows, others))
        comparisons.append(Comparison(row_id, prompt, left, right))
    return comparisons, len(rows) - len(met)


def among(comparison: Comparison, anchors: int, seed: int) -> Comparison:
    """Let the left responses meet `anchors` of them only, drawn by seed and prompt; all, where there are no more."""
    k = len(comparison.left)
    if anchors >= k:
        return comparison
    drawn = sorted(generator("anchors", seed, comparison.id).choice(k, anchors, replace=False).tolist())
    return comparison._replace(right=[comparison.left[a] for a in drawn], anchors=drawn)


def _counts(comparison: Comparison, row: dict[str, Any], *, self_mode: bool) -> dict[str, float]:
    """Counts over the pairs of a row: each once in self mode, where i against j is j against i; all in versus mode."""
    shape = len(comparison.left), len(comparison.right)
    counted: NDArray[np.bool_] = np.ones(shape, dtype=bool)
    if self_mode:
        ours = range(len(comparison.left)) if comparison.anchors is None else comparison.anchors
        counted = np.array([[i < j or i not in ours for j in ours] for i in range(len(comparison.left))])
    identical = np.array([[a == b for b in comparison.right] for a in comparison.left])
    logits, swapped, cut = (np.reshape(row[name], shape)[counted] for name in ("logits", "swapped", "truncated"))
    different = ~identical[counted]
    return {
        "pairs": float(counted.sum()),
        "identical": float(identical[counted].sum()),
        "empty": float(comparison.left.count("") + (0 if self_mode else comparison.right.count(""))),
        "ties": float(winrate.ties(logits, swapped).sum()),
        "disagreements": float(winrate.position_disagreement(logits, swapped).sum()),
        "bias": float((logits + swapped)[different].sum() / 2),
        "first_wins": float((correct(logits) + correct(swapped))[different].sum()),
        "truncated": float(cut.sum()),
    }
