"""The step `score`: raw oracle logits of both orders of every pair of responses.

Self mode (input `samples`): the K responses to a prompt against each other. Versus mode (inputs `samples` and
`opponents`): the responses of one policy, left, against those of another policy to the same prompt, right. A prompt
that the other policy has no response to, because its engine failed, is dropped and counted as `no_opponent`.

For large K each response may be compared with m of the prompt's responses only, its anchors, drawn for each prompt:
m(2K-m-1) duels instead of K(K-1), and unbiased estimates of the win rates (winrate.py).

The oracle gets prompts without a chat template, and responses without the white space around them. Responses that are
then equal get logit 0 without being judged, and each text is judged once per prompt however often it was sampled. A
pair is flagged as truncated when the oracle truncated one of its texts, in either order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparring.stages import loaded
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

EQUAL_TEXTS = (0.0, False)
"""Logit and truncation of two equal texts, which are not judged."""
LoadOracle = Callable[[str, Mapping[str, Any], OracleContext], Oracle]


class PromptDuels(NamedTuple):
    """The responses to one prompt: every left one is compared with every right one."""

    id: str
    prompt: Messages
    left: list[str]
    right: list[str]
    anchors: list[int] | None = None
    """The indices, on the left, of the right responses; None: all in self mode, none in versus mode."""

    def duels(self) -> Iterator[Duel]:
        """Yield both orders of every pair of different texts."""
        for a in self.left:
            for b in self.right:
                if a != b:
                    yield Duel(self.prompt, a, b)
                    yield Duel(self.prompt, b, a)


def prepare(job: Job[ScoreSettings]) -> None:
    """Import the library of the oracle's encoder."""
    if job.settings.oracle.kind == "mini":
        embed.prepare(job)


class Scorer:
    """Scores a part of `samples`; the judge is loaded once."""

    def __init__(self, job: Job[ScoreSettings], load: LoadOracle = oracles.load) -> None:
        judge = job.settings.oracle
        models = {role: one for role, one in job.inputs.items() if role not in ("samples", "opponents")}

        def make() -> Oracle:
            folders = {role: one.folder() for role, one in models.items()}
            context = OracleContext(folders=folders, judge=judge, cpus=job.workers.cpus, gpus=job.workers.gpus)
            return load(judge.kind, judge.options, context)

        if models and job.spec.pool == "annotators":
            sources = {role: (one.root, one.digest) for role, one in models.items()}
            key = repr((judge, sources, job.workers.cpus, job.workers.gpus))
            self.oracle = loaded.kept(f"judge {judge.kind}", key, make, small=loaded.is_small(models.values()))
        else:  # it asks servers, or its process ends with it
            self.oracle = make()
        self.anchors, self.seed = job.settings.anchors, job.settings.seed
        self.samples = job.inputs["samples"]
        self.opponents = job.inputs.get("opponents")

    def __call__(self, shard: Shard) -> Part:
        prompts, no_opponent = _prompts_of_part(self.samples, self.opponents, shard.index)
        if self.anchors:
            prompts = [with_anchors(prompt, self.anchors, self.seed) for prompt in prompts]
        duels = list(dict.fromkeys(duel for prompt in prompts for duel in prompt.duels()))
        verdicts = self.oracle(duels)
        by_duel = dict(zip(duels, zip(*(part.tolist() for part in verdicts), strict=True), strict=True))
        rows = [self._row(prompt, by_duel, place(self.samples, shard.index, prompt.id)) for prompt in prompts]
        stats = {"duels": float(len(duels)), "trained_on": float(sum(row["trained_on"] for row in rows))}
        for prompt, row in zip(prompts, rows, strict=True):
            for name, count in _counts(prompt, row, self_mode=self.opponents is None).items():
                stats[name] = stats.get(name, 0.0) + count
        return Part(
            table=pa.Table.from_pylist(rows, schema=SCORES_SCHEMA),
            rows_in=len(prompts) + no_opponent,
            dropped={"no_opponent": no_opponent} if no_opponent else {},
            stats=stats,
        )

    def _row(self, prompt: PromptDuels, by_duel: dict[Duel, tuple[float, bool]], where: str) -> dict[str, Any]:
        """Return a row of SCORES_SCHEMA. by_duel: duel -> (logit, whether a text was truncated)."""
        texts = [(a, b) for a in prompt.left for b in prompt.right]
        forth = [EQUAL_TEXTS if a == b else by_duel[Duel(prompt.prompt, a, b)] for a, b in texts]
        back = [EQUAL_TEXTS if a == b else by_duel[Duel(prompt.prompt, b, a)] for a, b in texts]
        shape = len(prompt.left), len(prompt.right)
        return {
            "id": prompt.id,
            "n_left": len(prompt.left),
            "n_right": len(prompt.right),
            "logits": matrix([x for x, _ in forth], shape, "oracle logit", where).ravel(),
            "swapped": matrix([x for x, _ in back], shape, "swapped oracle logit", where).ravel(),
            "truncated": [a or b for (_, a), (_, b) in zip(forth, back, strict=True)],
            "anchors": prompt.anchors,
            "trained_on": prompt_key(prompt.prompt) in self.oracle.trained_on,
        }


def finish(job: Job[ScoreSettings], tables: Iterator[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise. Shares are of pairs of responses; the figures about positions are over the pairs that were judged."""
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
    """Return shares and counts of pairs.

    `position_bias`: the mean that being shown first adds to the logit; `first_wins`: how often the first shown wins.
    """
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
"""Prefixes of the keys of a judge's card.json that state its accuracy: reports show them beside every win rate.

`error_phi` relates it to the judge whose card states the same value: pipeline/report/judging.py.
"""


def _card(folder: Path) -> dict[str, Any] | None:
    path = folder / "card.json"
    if not path.is_file():
        return None
    return {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key.startswith(CARD)}


def _prompts_of_part(samples: Input, opponents: Input | None, index: int) -> tuple[list[PromptDuels], int]:
    """Return the prompts of a part, and how many have no responses of the opponent; DataError when none has."""
    columns = ["messages", "responses"]
    rows = rows_by_id(samples, index, columns)
    others = rows if opponents is None else rows_by_id(opponents, index, columns)
    common = [row_id for row_id in rows if row_id in others]
    if opponents and rows and others and not common:
        find_row(others, next(iter(rows)), opponents, index)  # raises
    prompts = []
    for row_id in common:
        prompt = tuple((message["role"], message["content"]) for message in rows[row_id]["messages"])
        left, right = ([one["text"].strip() for one in row[row_id]["responses"]] for row in (rows, others))
        prompts.append(PromptDuels(row_id, prompt, left, right))
    return prompts, len(rows) - len(common)


def with_anchors(prompt: PromptDuels, anchors: int, seed: int) -> PromptDuels:
    """Return the prompt with `anchors` of its left responses on the right, drawn by seed and prompt; all of fewer."""
    k = len(prompt.left)
    if anchors >= k:
        return prompt
    drawn = sorted(generator("anchors", seed, prompt.id).choice(k, anchors, replace=False).tolist())
    return prompt._replace(right=[prompt.left[a] for a in drawn], anchors=drawn)


def _counts(prompt: PromptDuels, row: dict[str, Any], *, self_mode: bool) -> dict[str, float]:
    """Return counts over the pairs of a row; in self mode (i, j) and (j, i) are one pair."""
    shape = len(prompt.left), len(prompt.right)
    counted: NDArray[np.bool_] = np.ones(shape, dtype=bool)
    if self_mode:
        anchors = range(len(prompt.left)) if prompt.anchors is None else prompt.anchors
        counted = np.array([[i < j or i not in anchors for j in anchors] for i in range(len(prompt.left))])
    identical = np.array([[a == b for b in prompt.right] for a in prompt.left])
    logits, swapped, cut = (np.reshape(row[name], shape)[counted] for name in ("logits", "swapped", "truncated"))
    different = ~identical[counted]
    return {
        "pairs": float(counted.sum()),
        "identical": float(identical[counted].sum()),
        "empty": float(prompt.left.count("") + (0 if self_mode else prompt.right.count(""))),
        "ties": float(winrate.ties(logits, swapped).sum()),
        "disagreements": float(winrate.position_disagreement(logits, swapped).sum()),
        "bias": float((logits + swapped)[different].sum() / 2),
        "first_wins": float((correct(logits) + correct(swapped))[different].sum()),
        "truncated": float(cut.sum()),
    }
