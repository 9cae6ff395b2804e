"""Sentence embeddings of texts of any length.

A text longer than the encoder's window is split into windows on token boundaries, none dropped; the windows' unit
vectors are averaged, weighted by their tokens, and scaled to length one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparring.stages.errors import ConfigError

BATCH = 32
"""Windows in one forward pass; they are sorted by length to keep padding small."""


class TextEncoder:
    """Embeds texts of any length as unit vectors, by a sentence-transformers folder."""

    def __init__(self, folder: Path, window: int, device: str = "cpu") -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(folder), device=device, local_files_only=True).eval()
        self.special = self.model.tokenizer.num_special_tokens_to_add()
        longest = self.model.get_max_seq_length() or window
        if not self.special < window <= longest:
            raise ConfigError(
                f"encoder.window={window}: {folder} reads {self.special + 1} to {longest} tokens at once; "
                f"use {longest}."
            )
        self.window = window

    def __call__(self, texts: Sequence[str]) -> tuple[NDArray[np.float64], list[int]]:
        """Return unit vectors (len(texts), d) and the number of windows of each text."""
        import torch

        tokenizer = self.model.tokenizer
        windows = tokenizer(
            list(texts), truncation=True, max_length=self.window, stride=0, return_overflowing_tokens=True
        )
        owner = np.asarray(windows["overflow_to_sample_mapping"])
        lengths = np.array([len(ids) for ids in windows["input_ids"]])
        names = [name for name in tokenizer.model_input_names if name in windows]
        order = np.argsort(-lengths, kind="stable")
        vectors = []
        for start in range(0, len(order), BATCH):
            features = {name: [windows[name][i] for i in order[start : start + BATCH]] for name in names}
            batch = dict(tokenizer.pad(features, return_tensors="pt").to(self.model.device))
            with torch.inference_mode():
                embedded = self.model(batch)["sentence_embedding"]
            vectors.append(_unit(embedded.double().cpu().numpy()))
        weighted = np.concatenate(vectors) * np.maximum(lengths[order] - self.special, 1)[:, None]
        sums = np.zeros((len(texts), weighted.shape[1]))
        np.add.at(sums, owner[order], weighted)
        return _unit(sums), np.bincount(owner, minlength=len(texts)).tolist()


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows scaled to length one; a row of zeros becomes NaN, which the caller reports."""
    with np.errstate(invalid="ignore"):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
