"""How far one policy is from another, on responses that the first one gave. Pure numpy, float64.

Of a response y to a prompt x: d = log pi(y|x) - log pi'(y|x), in nats, summed over its tokens. The mean of d over
responses that were sampled from pi itself (T = 1, top_p = 1, min_p = 0) estimates KL(pi || pi') without bias; the
estimate may be negative, KL never is. Of responses that were sampled otherwise it is the mean log-ratio under that
sampling distribution, which is no KL: at T < 1 the policy's own tail is left out. The interval draws prompts, with all
their responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sparring.stages.evaluate.bootstrap import paired_bootstrap
from sparring.stages.evaluate.paired import Bootstrap, Estimate, aligned

LogProbs = Mapping[tuple[str, int], float]
"""(prompt, response) -> log-prob in nats."""


def log_ratios(own: LogProbs, others: Sequence[LogProbs], settings: Bootstrap) -> list[Estimate]:
    """Return the mean of d over responses to each of the other policies, all resampled with the same prompts.

    A response that one of two policies could not score is left out of their figure; n counts prompts.
    """
    means, counts = [], []
    for other in others:
        by_prompt: dict[str, list[float]] = {}
        for place, value in own.items():
            if place in other:
                by_prompt.setdefault(place[0], []).append(value - other[place])
        means.append({prompt: float(np.mean(found)) for prompt, found in by_prompt.items()})
        counts.append({prompt: float(len(found)) for prompt, found in by_prompt.items()})
    values, weights = aligned(means), np.nan_to_num(aligned(counts))
    found = paired_bootstrap(values, settings.resamples, settings.confidence, settings.seed, weights)
    n = (~np.isnan(values)).sum(axis=0)
    return [
        Estimate(mean=float(m), low=float(low), high=float(high), n=int(k))
        for m, low, high, k in zip(*found, n, strict=True)
    ]


def tempered(sampling: Mapping[str, object]) -> bool:
    """Return whether responses were drawn from another distribution than the policy's own."""
    own = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}
    return any(sampling.get(name, value) != value for name, value in own.items())
