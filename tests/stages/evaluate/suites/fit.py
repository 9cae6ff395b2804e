"""AlpacaEval's length-controlled model fitted anew, as its package does it, from numpy and scikit-learn alone.

L1-regularised logistic regression without intercept on (tanh, difficulty, 1 for the model's rows): labels are
probabilities, so every row stands twice, as 1 with weight p and as 0 with weight 1 − p. The rows of two gamed baselines
regularise, with weight 0.2/2. The strength is that of ten with the best log-loss over 5 folds of rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

Array = NDArray[np.float64]
STRENGTHS = np.logspace(-4, 4, 10)
GAMED_WEIGHT = 0.1


def fit(model: tuple[Array, Array, Array], gamed: tuple[Array, Array, Array]) -> Array:
    """Return (φ, ψ, θ) from (tanh, difficulty, P(preferred)) of the model's rows and of the gamed baselines' rows."""
    sides = [(gamed, GAMED_WEIGHT, 0.0), (model, 1.0, 1.0)]
    x = np.concatenate([np.stack([t, d, np.full_like(t, one)], axis=1) for (t, d, _), _, one in sides])
    p = np.concatenate([part[2] for part, _, _ in sides])
    weight = np.concatenate([np.full_like(part[2], given) for part, given, _ in sides])
    twice, label = np.concatenate([x, x]), np.repeat([1, 0], len(x))
    sample_weight, rows = np.concatenate([p, 1 - p]) * np.tile(weight, 2), np.tile(np.arange(len(x)), 2)
    folds = list(GroupKFold(n_splits=5).split(twice, label, rows))
    losses = [
        sum(
            _loss(_weights(twice[a], label[a], sample_weight[a], c), twice[b], label[b], sample_weight[b])
            for a, b in folds
        )
        for c in STRENGTHS
    ]
    return _weights(twice, label, sample_weight, float(STRENGTHS[int(np.argmin(losses))]))


def _weights(x: Array, label: Array, sample_weight: Array, c: float) -> Array:
    model = LogisticRegression(C=c, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=123)
    found: Array = model.fit(x, label, sample_weight=sample_weight).coef_[0]
    return found


def _loss(weights: Array, x: Array, label: Array, sample_weight: Array) -> float:
    logits = x @ weights * np.where(label == 1, 1.0, -1.0)
    return float(np.mean(sample_weight * np.logaddexp(0.0, -logits)))
