"""The oracle `mini`: a small pairwise ranker on frozen all-MiniLM-L6-v2 embeddings and surface features.

    logit(a over b | x) = r(a) - r(b) + φ(a)ᵀ R φ(b),   R = -Rᵀ
    r(a) = u·s(a) + v·e(a) + c·(e(x) ⊙ e(a)),           φ(a) = Q e(a) + q

e: unit sentence embedding; s: standardised surface features with cos(e(x), e(a)); x: the prompt. The
Bradley-Terry term r orders responses; the skew term expresses cycles, which no score per response can. Both change
sign when the responses are swapped: the oracle has no order bias by construction.

Texts longer than the encoder's window are split into windows and mean-pooled, as in embed.py. The encoder runs on the
CPU in float32, everything after it in float64; the skew term is written so that swapping negates it exactly.
Training: `python -m scripts.train_judges`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np

from sparring.stages.annotate.oracle import Duel, Messages, Verdicts, read_weights, untruncated
from sparring.stages.annotate.oracles import OracleContext, OracleOptions
from sparring.stages.annotate.surface import NAMES, surface
from sparring.stages.errors import ConfigError, DataError

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts -> (n, d) unit vectors."""


@dataclass(frozen=True, kw_only=True)
class Options(OracleOptions):
    """It has no options."""

    cost_unit: ClassVar[str] = "texts"
    inputs: ClassVar[tuple[str, ...]] = ("judge", "encoder")


PROBE = "The quick brown fox jumps over the lazy dog."
WINDOW = 256


def sentence_encoder(folder: Path) -> Encode:
    """Return the encoder of a sentence-transformers folder, on the CPU, reading windows of 256 tokens."""
    from sparring.stages.annotate.text_encoder import TextEncoder

    if not (folder / "modules.json").is_file():
        raise ConfigError(f"{folder}: not a sentence-transformers folder; set the encoder to all-MiniLM-L6-v2.")
    encoder = TextEncoder(folder, WINDOW)
    return lambda texts: encoder(texts)[0]


@dataclass(frozen=True, kw_only=True)
class MiniWeights:
    """The tensors of model.safetensors, less `trained_on`. Sizes: d embedding, f surface features, p φ."""

    surface_mean: np.ndarray
    """(f,) subtracted from the surface features."""
    surface_scale: np.ndarray
    """(f,) divides them afterwards; the result is clipped to ±4."""
    surface_weight: np.ndarray
    """u (f,)"""
    response_weight: np.ndarray
    """v (d,)"""
    interaction_weight: np.ndarray
    """c (d,)"""
    skew_projection: np.ndarray
    """Q (p, d)"""
    skew_offset: np.ndarray
    """q (p,)"""
    skew: np.ndarray
    """R (p, p), skew-symmetric."""
    encoder_probe: np.ndarray
    """(d,) the embedding of PROBE, which tells whether the encoder is the one of the training."""


def standardised(raw: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the surface features (n, f) in units of their spread, clipped to ±4."""
    clipped: np.ndarray = np.clip((raw - mean) / scale, -4.0, 4.0)
    return clipped


def raw_surface(prompt: str, response: str, prompt_vector: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return the (len(NAMES) + 1,) surface features, the last one cos(prompt, response)."""
    return np.append(surface(prompt, response), prompt_vector @ vector)


def pair_logits(
    score_a: np.ndarray, score_b: np.ndarray, phi_a: np.ndarray, phi_b: np.ndarray, skew: np.ndarray
) -> np.ndarray:
    """Return r(a) - r(b) + φ(a)ᵀ R φ(b) per row; scores (n,), phi (n, p), skew (p, p)."""
    forward = np.einsum("np,pq,nq->n", phi_a, skew, phi_b)
    backward = np.einsum("np,pq,nq->n", phi_b, skew, phi_a)
    logits: np.ndarray = score_a - score_b + (forward - backward) / 2
    return logits


def prompt_text(messages: Messages) -> str:
    """Return the text that is embedded for a prompt: all turns but the system's, each on a new line."""
    return "\n".join(content for role, content in messages if role != "system")


class MiniOracle:
    """See the module. `trained_on`: keys of the prompts that it was trained or tuned on."""

    def __init__(self, weights: MiniWeights, encode: Encode, trained_on: frozenset[int]) -> None:
        self.weights, self.encode, self.trained_on = weights, encode, trained_on

    def __call__(self, duels: Sequence[Duel]) -> Verdicts:
        """Return antisymmetric logits; every unique text is embedded once."""
        pairs = {(prompt_text(d.prompt), text): 0 for d in duels for text in (d.first, d.second)}
        index = {pair: row for row, pair in enumerate(pairs)}
        if not index:
            return untruncated(np.zeros(0))
        score, phi = self._responses(list(index))
        a = np.array([index[prompt_text(d.prompt), d.first] for d in duels])
        b = np.array([index[prompt_text(d.prompt), d.second] for d in duels])
        return untruncated(pair_logits(score[a], score[b], phi[a], phi[b], self.weights.skew))

    def _responses(self, pairs: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Return r (n,) and φ (n, p) of (prompt, response) pairs."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        rows = dict(zip(texts, self.encode(texts), strict=True))
        prompts = np.stack([rows[prompt] for prompt, _ in pairs])
        vectors = np.stack([rows[response] for _, response in pairs])
        raw = np.stack([raw_surface(*pair, x, e) for pair, x, e in zip(pairs, prompts, vectors, strict=True)])
        w = self.weights
        score = standardised(raw, w.surface_mean, w.surface_scale) @ w.surface_weight
        score = score + vectors @ w.response_weight + (prompts * vectors) @ w.interaction_weight
        return score, vectors @ w.skew_projection.T + w.skew_offset


def load(options: Options, context: OracleContext) -> MiniOracle:
    """Load a judge folder and its encoder's; ConfigError if the encoder is not the one that it was trained with."""
    folder, encoder_folder = context.folders["judge"], context.folders["encoder"]
    tensors, trained_on = read_weights(folder, [field.name for field in fields(MiniWeights)])
    weights = MiniWeights(**tensors)
    if weights.surface_weight.shape != (len(NAMES) + 1,) or not np.array_equal(weights.skew, -weights.skew.T):
        raise DataError(f"{folder}: its tensors do not fit this code; train it again with scripts.train_judges.")
    encode = sentence_encoder(encoder_folder)
    probe = encode([PROBE])[0]
    if probe.shape != weights.encoder_probe.shape or probe @ weights.encoder_probe < 0.999:
        raise ConfigError(f"{encoder_folder}: not the encoder that {folder} was trained with; set all-MiniLM-L6-v2.")
    return MiniOracle(weights, encode, trained_on)
