"""Train the two small judges, `mini` and `lexical`, and write their folders with a model card.

    python -m scripts.train_judges --data DATA --encoder ENCODER --out stages/annotate/judges

DATA holds ultrafeedback/, preferences/ and llmfao/, and the evaluation suites, whose prompts are kept out
(judge_data.py says which files); ENCODER is all-MiniLM-L6-v2. The prompts are dealt by hash into a held-out
test, mini's training and lexical's training; settings are chosen for each judge by cross-validation over its
own training prompts, none on the test. Ten to twenty minutes on one core, nearly all of it sentence
embedding. Same data and machine, same bytes. `--measure` trains nothing: it measures the judges in OUT and
writes their cards anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors.numpy import load_file
from scipy.sparse import csr_matrix, diags_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from scripts.judge_card import JudgeResult, write_judges
from scripts.judge_data import (
    SPLITS,
    Pair,
    corrupt,
    prompt_groups,
    read_pairs,
    split_pairs,
    test_only_keys,
    unit_hash,
)
from sparring.stages.annotate.oracle import Oracle, last_user_text, prompt_key
from sparring.stages.annotate.oracles.lexical import CHARACTERS, HABITS, WORDS, LexicalOracle, ngram_features
from sparring.stages.annotate.oracles.mini import (
    PROBE,
    Encode,
    MiniOracle,
    MiniWeights,
    prompt_text,
    raw_surface,
    sentence_encoder,
    standardised,
)

FOLDS = 5
SYNTHETIC_SHARE = 0.25
SKEW_SIZE = 8
MINI_GRID = {
    "c": (0.003, 0.01),
    "response": (5.0, 8.0),
    "interaction": (0.0, 30.0, 100.0),
    "skew": (0.3, 1.0),
}
LEXICAL_GRID = {"c": (0.1, 0.3, 1.0), "characters": (0.25, 0.5, 1.0), "habits": (0.5, 1.0, 2.0)}
Matrix: TypeAlias = np.ndarray | csr_matrix
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Training pairs of one judge: real ones first, then synthetic ones, with the group (prompt) of each."""

    pairs: list[Pair]
    groups: np.ndarray

    @property
    def real(self) -> np.ndarray:
        """(n,) bool"""
        return np.array([not pair.source.startswith("synthetic") for pair in self.pairs])


def training_rows(pairs: list[Pair], groups: Sequence[int], seed: int) -> Rows:
    """Add the synthetic pairs to a judge's pairs."""
    synthetic = corrupt(pairs, seed)
    group_of = {pair.prompt: group for pair, group in zip(pairs, groups, strict=True)}
    return Rows(pairs=pairs + synthetic, groups=np.array([*groups, *(group_of[p.prompt] for p in synthetic)]))


def row_weights(rows: Rows) -> np.ndarray:
    """Return (n,) weights: n pairs of one source weigh sqrt(n), all synthetic ones 25% of the real ones."""
    sources = Counter(pair.source for pair in rows.pairs)
    weights = np.array([sources[pair.source] ** -0.5 for pair in rows.pairs])
    real = rows.real
    weights[real] *= real.sum() / weights[real].sum()
    if not real.all():
        weights[~real] *= SYNTHETIC_SHARE * real.sum() / weights[~real].sum()
    return weights


def fit_logistic(differences: Matrix, weights: np.ndarray, c: float) -> np.ndarray:
    """Minimise Σ weight·log(1 + exp(-w·x)) + |w|²/(2c) over w (f,); x = features of chosen - of rejected.

    Without an intercept the loss is the same for (x, better) and (-x, worse): every other row is turned
    round, since the solver wants both classes. A feature that is 0 in every row has weight 0: it is left out.
    """
    used = np.flatnonzero(np.asarray(abs(differences).sum(axis=0)))
    label = np.where(np.arange(differences.shape[0]) % 2, -1, 1)
    turned = diags_array(label.astype(np.float64)) @ differences[:, used]
    model = LogisticRegression(C=c, fit_intercept=False, max_iter=5000, tol=1e-6)
    coefficients = np.zeros(differences.shape[1])
    coefficients[used] = model.fit(turned, label, sample_weight=weights).coef_[0]
    return coefficients


def macro_log_loss(logits: np.ndarray, pairs: Sequence[Pair]) -> float:
    """Return the mean over real sources of the mean of log(1 + exp(-logit))."""
    losses = np.logaddexp(0.0, -logits)
    sources = np.array([pair.source for pair in pairs])
    real = sorted({source for source in sources if not source.startswith("synthetic")})
    return float(np.mean([losses[sources == source].mean() for source in real]))


Point = dict[str, float]
Design = Callable[[Point], Matrix]
"""Settings -> the (n, f) differences of the training pairs, blocks of features scaled accordingly."""


def cross_validated(rows: Rows, design: Design, point: Point) -> float:
    """Return the macro log loss over folds that never share a prompt."""
    fold = np.array([int(unit_hash(f"fold {group}") * FOLDS) for group in rows.groups])
    weights, matrix, logits = row_weights(rows), design(point), np.zeros(len(fold))
    for held in sorted(set(fold)):
        train = fold != held
        logits[~train] = matrix[~train] @ fit_logistic(matrix[train], weights[train], point["c"])
    return macro_log_loss(logits, rows.pairs)


def choose(rows: Rows, grid: Mapping[str, tuple[float, ...]], design: Design) -> Point:
    """Return the grid's point of least cross-validated macro log loss, with that loss as `cv_log_loss`."""
    best: Point = {"cv_log_loss": np.inf}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        loss = cross_validated(rows, design, point)
        logger.info("%s: cross-validated macro log loss %.4f", point, loss)
        if loss < best["cv_log_loss"]:
            best = point | {"cv_log_loss": loss}
    return best


class MiniDesign:
    """The features of mini's training pairs, computed once; `matrix` scales their blocks."""

    def __init__(self, pairs: Sequence[Pair], encode: Encode) -> None:
        prompts = [prompt_text(pair.prompt) for pair in pairs]
        texts = [*prompts, *(p.chosen for p in pairs), *(p.rejected for p in pairs)]
        unique = list(dict.fromkeys(texts))
        vectors = dict(zip(unique, encode(unique), strict=True))
        self.x, self.a, self.b = np.stack([vectors[text] for text in texts]).reshape(3, len(pairs), -1)
        raw_a, raw_b = (
            np.stack([raw_surface(x, r, vectors[x], vectors[r]) for x, r in zip(prompts, responses, strict=True)])
            for responses in ([p.chosen for p in pairs], [p.rejected for p in pairs])
        )
        both = np.concatenate([raw_a, raw_b])
        self.mean, self.scale = both.mean(axis=0), np.maximum(both.std(axis=0), 1e-3)
        self.surface = standardised(raw_a, self.mean, self.scale) - standardised(raw_b, self.mean, self.scale)
        self.projection, self.offset = whitening(np.concatenate([self.a, self.b]), SKEW_SIZE)
        phi_a, phi_b = (side @ self.projection.T + self.offset for side in (self.a, self.b))
        upper = np.triu_indices(len(self.offset), 1)
        self.skew = phi_a[:, upper[0]] * phi_b[:, upper[1]] - phi_a[:, upper[1]] * phi_b[:, upper[0]]

    def matrix(self, point: Point) -> np.ndarray:
        """Return the pairs' (n, f) differences, blocks scaled."""
        delta = self.a - self.b
        blocks = [self.surface, point["response"] * delta, point["interaction"] * self.x * delta]
        return np.concatenate([*blocks, point["skew"] * self.skew], axis=1)

    def weights(self, coefficients: np.ndarray, point: Point, probe: np.ndarray) -> MiniWeights:
        """Undo the scaling, and put the skew coefficients in place."""
        f, d, p = self.surface.shape[1], self.a.shape[1], len(self.offset)
        u, v, c, r = np.split(coefficients, [f, f + d, f + 2 * d])
        skew = np.zeros((p, p))
        skew[np.triu_indices(p, 1)] = point["skew"] * r
        tensors = {
            "surface_mean": self.mean, "surface_scale": self.scale, "surface_weight": u,
            "response_weight": point["response"] * v, "interaction_weight": point["interaction"] * c,
            "skew_projection": self.projection, "skew_offset": self.offset, "skew": skew - skew.T,
            "encoder_probe": probe,
        }  # fmt: skip
        return MiniWeights(**{name: tensor.astype(np.float32) for name, tensor in tensors.items()})


def whitening(vectors: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Q (size, d) and q (size,): Q v + q are the first principal components, each of unit variance."""
    mean = vectors.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(vectors.T))
    projection = (axes[:, ::-1][:, :size] / np.sqrt(np.maximum(values[::-1][:size], 1e-9))).T
    signs = np.sign(projection[np.arange(size), np.abs(projection).argmax(axis=1)])
    projection = projection * signs[:, None]
    return projection, -projection @ mean


def train_mini(rows: Rows, encode: Encode) -> tuple[dict[str, np.ndarray], Point]:
    """Return mini's tensors and the chosen settings."""
    design = MiniDesign(rows.pairs, encode)
    point = choose(rows, MINI_GRID, design.matrix)
    point["cv_log_loss_without_skew"] = cross_validated(rows, design.matrix, point | {"skew": 0.0})
    coefficients = fit_logistic(design.matrix(point), row_weights(rows), point["c"])
    return asdict(design.weights(coefficients, point, encode([PROBE])[0])), point


def train_lexical(rows: Rows) -> tuple[dict[str, np.ndarray], Point]:
    """Return lexical's tensors and the chosen settings."""
    prompts = [last_user_text(pair.prompt) for pair in rows.pairs]
    chosen = ngram_features([(x, p.chosen) for x, p in zip(prompts, rows.pairs, strict=True)])
    rejected = ngram_features([(x, p.rejected) for x, p in zip(prompts, rows.pairs, strict=True)])
    difference = csr_matrix(chosen - rejected)

    def scales(point: Point) -> np.ndarray:
        return np.repeat([1.0, point["characters"], point["habits"]], [WORDS, CHARACTERS, HABITS])

    def matrix(point: Point) -> csr_matrix:
        return csr_matrix(difference @ diags_array(scales(point)))

    point = choose(rows, LEXICAL_GRID, matrix)
    coefficients = fit_logistic(matrix(point), row_weights(rows), point["c"])
    return {"weight": (scales(point) * coefficients).astype(np.float32)}, point


def tfidf_logits(train: Sequence[Pair], test: Sequence[Pair]) -> np.ndarray:
    """Return the baseline's logits: logistic regression on TF-IDF differences of the responses' words."""
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit([t for p in train for t in (p.chosen, p.rejected)])

    def difference(pairs: Sequence[Pair]) -> csr_matrix:
        chosen, rejected = ([p.chosen for p in pairs], [p.rejected for p in pairs])
        return csr_matrix(vectorizer.transform(chosen) - vectorizer.transform(rejected))

    weights = fit_logistic(difference(train), np.ones(len(train)), 1.0)
    logits: np.ndarray = difference(test) @ weights
    return logits


def train(data: Path, out: Path, encode: Encode, seed: int, *, measure: bool = False) -> dict[str, dict[str, Any]]:
    """Train both judges, or measure those in `out`; write their folders there, return their cards."""
    pairs = read_pairs(data)
    groups = prompt_groups(pairs)
    split = split_pairs(pairs, groups, test_only_keys(data))
    logger.info("pairs: %s", {name: len(split[name]) for name in SPLITS})
    test = [pairs[row] for row in split["test"]]
    results = {}
    for name in ("mini", "lexical"):
        own = [pairs[row] for row in split[name]]
        rows = training_rows(own, [groups[row] for row in split[name]], seed)
        if measure:
            tensors, point = stored(out / name)
        else:
            tensors, point = train_mini(rows, encode) if name == "mini" else train_lexical(rows)
        trained_on = np.array(sorted({prompt_key(pair.prompt) for pair in own}), dtype=np.int64)
        oracle: Oracle
        keys = frozenset(trained_on.tolist())
        if name == "mini":
            oracle = MiniOracle(MiniWeights(**{k: v.astype(np.float64) for k, v in tensors.items()}), encode, keys)
        else:
            oracle = LexicalOracle(tensors["weight"].astype(np.float64), keys)
        results[name] = JudgeResult(
            tensors=tensors | {"trained_on": trained_on},
            settings=point,
            train_rows=rows.pairs,
            oracle=oracle,
            tfidf=tfidf_logits(own, test),
        )
    test_groups = np.array([groups[row] for row in split["test"]])
    return write_judges(out, results, test, test_groups, corrupt(test, seed + 1), seed)


def stored(folder: Path) -> tuple[dict[str, np.ndarray], Point]:
    """Return the tensors of a judge, less `trained_on`, and the settings that its card states."""
    tensors = load_file(folder / "model.safetensors")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    settings = {key.removeprefix("setting_"): value for key, value in card.items() if key.startswith("setting_")}
    return {name: tensor for name, tensor in tensors.items() if name != "trained_on"}, settings


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train the two small judges.")
    parser.add_argument("--data", type=Path, required=True, help="folder with ultrafeedback/, preferences/, llmfao/")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, help="where the folders mini/ and lexical/ are written")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic pairs and of the bootstrap")
    parser.add_argument("--measure", action="store_true", help="train nothing; write the cards of the judges in --out")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(options.data, options.out, sentence_encoder(options.encoder), options.seed, measure=options.measure)


if __name__ == "__main__":
    main()
