"""What a configuration's groups are refused for together: each message names the keys and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sparring.pipeline.config.model import Config, judges_of
from sparring.pipeline.store.remote import is_bucket
from sparring.stages.annotate import oracles
from sparring.stages.sample import engine_args
from sparring.stages.sample.config import EngineSampler
from sparring.stages.train.config import require_packages

MOST_CROSSED = 150
"""Iterations of which all policies meet."""
SERVER_URL = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?")


def cross_field_errors(config: Config) -> Iterable[str]:
    """Yield what no single group can see."""
    rows, slices = config.prompts.per_iteration, config.prompts.slices
    by_file = config.prompts.source == "file" and rows is None  # as many as it holds: pipeline/planning/prompt_count.py
    if (rows is None) == (slices is None) and not by_file:
        yield (
            f"prompts.per_iteration={rows} and prompts.slices={slices}: one of the two says how many prompts "
            "an iteration plays on; set the other to null."
        )
    kept = {"keep.policies": config.keep.policies, "keep.samples": config.keep.samples}
    dropped = [f"{key}={value}" for key, value in kept.items() if value != "all"]
    if dropped and is_bucket(config.paths.store):
        yield (
            f"{' '.join(dropped)}: of a store in a bucket nothing is dropped; set {' and '.join(kept)} to all, or "
            "paths.store to a folder."
        )
    yield from _of_training(config)
    yield from _of_sampling(config)
    yield from _of_judging(config)


def _of_training(config: Config) -> Iterable[str]:
    trainer, prompts, hardware = config.trainer, config.prompts, config.hardware
    rows, longest = prompts.per_iteration, prompts.max_tokens + config.sampler.max_tokens
    if longest > trainer.max_length and trainer.truncate != "keep_end":
        yield (
            f"prompts.max_tokens={prompts.max_tokens} + sampler.max_tokens={config.sampler.max_tokens} = {longest} "
            f"exceeds trainer.max_length={trainer.max_length}: what is sampled could not be trained whole. "
            f"Lower one of the two, set trainer.max_length={longest}, or cut what is longer: trainer.truncate=keep_end."
        )
    if prompts.max_tokens >= trainer.max_length:
        yield (
            f"prompts.max_tokens={prompts.max_tokens} leaves no room for a response in trainer.max_length="
            f"{trainer.max_length}: lower the one or raise the other."
        )
    steps = trainer.epochs * -(-rows // trainer.global_batch) if rows is not None else trainer.min_steps
    if steps < trainer.min_steps:  # of slices the number of rows is not known yet: training looks again
        yield (
            f"too few optimizer steps: {rows} prompts per iteration / trainer.global_batch="
            f"{trainer.global_batch} * trainer.epochs={trainer.epochs} = {steps} steps, at least {trainer.min_steps} "
            "are needed to learn anything. Raise prompts.per_iteration or trainer.epochs, lower trainer.global_batch."
        )
    require_packages(trainer.optimizer, trainer.adapter)
    if hardware.workers and trainer.global_batch % hardware.workers:
        fewer = max(n for n in range(1, hardware.workers) if trainer.global_batch % n == 0)
        yield (
            f"trainer.global_batch={trainer.global_batch} is not a multiple of hardware.workers={hardware.workers}: "
            f"every worker must get the same number of pairs. Set hardware.workers={fewer}, or "
            f"trainer.global_batch={-(-trainer.global_batch // hardware.workers) * hardware.workers}."
        )


def _of_sampling(config: Config) -> Iterable[str]:
    sampler, opponents = config.sampler, config.oracle.opponents
    if isinstance(sampler, EngineSampler):
        engine_args.check(sampler.engine, sampler.engine_args)
    elif not sampler.urls:
        yield "sampler.urls is empty; say where the servers are: sampler.urls=[http://127.0.0.1:8000]."
    else:
        yield from _of_urls("sampler", sampler.urls)
    for key, k in (("sampler.k", sampler.k), ("evaluate.best_of", config.evaluate.best_of)):
        if opponents is not None and opponents >= k > 1:
            fewer = f"from 2 to {k - 1}" if k > 3 else "2" if k == 3 else ""
            yield (
                f"oracle.opponents={opponents} with {key}={k}: a response meets at most {k - 1} others; use "
                f"{fewer}{', or ' * bool(fewer)}null for all of them."
            )
    pairs = config.iterations * config.iterations if config.evaluate.crossplay else 0
    if pairs > MOST_CROSSED**2:
        yield (
            f"iterations={config.iterations} with evaluate.crossplay=true: every policy would meet every other one, "
            f"{pairs:,} scores; set evaluate.crossplay=false, or at most {MOST_CROSSED} iterations."
        )


def _of_judging(config: Config) -> Iterable[str]:
    for key, judge in [*judges_of("oracle", config.oracle), *judges_of("judge", config.judge)]:
        options = oracles.options(judge.kind, judge.options, key)
        yield from _of_urls(key, judge.urls)
        complaint = options.urls_error(judge.urls)
        if complaint:
            yield f"{key}.{complaint}."
        weighted, members = sorted(judge.options.get("weights", {})), sorted(judge.members)
        if weighted != members:
            yield (
                f"{key}.options.weights has {', '.join(weighted) or 'none'}, {key}.members "
                f"{', '.join(members) or 'none'}: each member of an ensemble needs a weight, others have none."
            )
        if any("." in name for name in members):
            yield f"{key}.members: {', '.join(members)}: a member's name has no dot."
    opponents = config.oracle.opponents
    if config.win_rate == "cross_fit" and (opponents is None or opponents >= config.sampler.k):
        yield (
            f"win_rate=cross_fit with oracle.opponents={opponents} and sampler.k={config.sampler.k}: every response "
            "meets all others, so there is nothing to split and no bias; set win_rate=matrix, or fewer opponents."
        )
    if config.selection.require_head_to_head and opponents is not None:
        yield (
            f"selection.require_head_to_head with oracle.opponents={opponents}: chosen and rejected may "
            "not have met; set oracle.opponents=null."
        )
    if config.objective.reads_duel and opponents is not None:
        yield (
            f"objective={config.objective.name} with oracle.opponents={opponents}: it trains on the duel of chosen and "
            "rejected, which may not have met; set oracle.opponents=null, or use objective=sppo."
        )


def _of_urls(key: str, urls: Sequence[str]) -> Iterable[str]:
    for url in urls:
        match = SERVER_URL.fullmatch(url)
        if not match or not 0 < int((match[2] or ":80")[1:]) < 65536:
            yield f"{key}.urls: {url} is no address of a server; write http://host:port, with no path and no slash."
