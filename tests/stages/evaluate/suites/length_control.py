"""AlpacaEval 2.0's win rates in numpy, as its package computes them. The package fits; here is what its weights say.

    logit P(the model is preferred to the baseline on instruction i)
        = θ + φ · tanh((len_base,i − len_model,i) / std) + ψ · difficulty_i

len: characters of an output; std: of len_base − len_model over the suite, by n − 1. Length-controlled is what is left
where no length differs: φ's term is 0. `preference` is the annotator's: 1 the baseline, 2 the model, 1.5 (or 0) a draw.
The difficulty of an instruction is joined by its place: all arrays are in the suite's order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def raw_win_rate(preference: Array) -> float:
    """100 · mean_i (preference_i − 1), over the rows that have one (n,); NaN: the annotator gave none."""
    draws = np.where(preference == 0, 1.5, preference)
    return float(100.0 * np.nanmean(draws - 1.0))


def length_feature(base: Array, model: Array) -> Array:
    """tanh((len_base − len_model) / std): (n,), > 0 where the baseline's output is the longer one."""
    difference = base - model
    return np.tanh(difference / difference.std(ddof=1))


def length_controlled(theta: float, psi: float, difficulty: Array) -> float:
    """LC = 100 · mean_i σ(θ + ψ · difficulty_i); difficulty (n,)."""
    return float(100.0 * np.mean(0.5 * (1.0 + np.tanh(0.5 * (theta + psi * difficulty)))))
