"""Files of responses and pairs in the layouts that are imported, as small as they can be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

QUESTIONS = [f"Question {i}: what is {i} + {i}?" for i in range(12)]


def said(prompt: str, response: str) -> list[dict[str, str]]:
    """A message list as the official scripts write it: content before role."""
    return [{"content": prompt, "role": "user"}, {"content": response, "role": "assistant"}]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as jsonl or parquet."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def generated(questions: Sequence[str] = QUESTIONS, k: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the official generated/<dir>/train.parquet: P[i][j] = 1 / (1 + exp(score[j] - score[i]))."""
    rng = np.random.default_rng(seed)
    rows = []
    for question in questions:
        scores = rng.normal(size=k)
        p = 1 / (1 + np.exp(scores[None, :] - scores[:, None]))
        responses = {f"generate_{i}": said(question, f"Response {i} to {question}") for i in range(k)}
        rows.append({"prompt": question, **responses, "probability": p.tolist(), "rm_scores": scores.tolist()})
    return rows


def scored(questions: Sequence[str] = QUESTIONS, k: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the official synthetic_data_*_score/train.parquet, made of `generated` as prepare_score does."""
    rows = []
    for row in generated(questions, k, seed):
        p, scores = np.stack(row["probability"]), np.array(row["rm_scores"])
        best, worst = scores.argmax(), scores.argmin()
        rates = p.sum(axis=1) / k
        rows.append(
            {
                "chosen": row[f"generate_{best}"],
                "rejected": row[f"generate_{worst}"],
                "chosen_probs": float(p[best][worst]),
                "chosen_probs_win": float(rates[best]),
                "chosen_probs_lose": float(rates[worst]),
            }
        )
    return rows


def binarized(questions: Sequence[str] = QUESTIONS) -> list[dict[str, Any]]:
    """Rows in the shape of ultrafeedback_binarized: the lists of chosen and rejected hold the prompt."""
    return [
        {
            "prompt": question,
            "prompt_id": f"{i:04d}",
            "chosen": said(question, f"It is {2 * i}."),
            "rejected": said(question, "No idea. " * (i % 3 + 1)),
            "messages": said(question, f"It is {2 * i}."),
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        }
        for i, question in enumerate(questions)
    ]


def plain(questions: Sequence[str] = QUESTIONS) -> list[dict[str, Any]]:
    """Rows of texts alone."""
    return [
        {"prompt": question, "chosen": f"It is {2 * i}.", "rejected": f"No idea {i}."}
        for i, question in enumerate(questions)
    ]


def listed(questions: Sequence[str] = QUESTIONS, k: int = 3) -> list[dict[str, Any]]:
    """Rows of a prompt and a list of responses."""
    return [{"prompt": q, "responses": [f"Response {i} to {q}" for i in range(k)]} for q in questions]
