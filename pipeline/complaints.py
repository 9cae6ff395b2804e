"""What a configuration's groups are refused for together: each complaint names the keys and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipeline.schema import Config, judges_of
from stages.annotate import oracles
from stages.sample.engine_args import split
from stages.train.config import require_packages

SERVER_URL = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?")


def complaints(config: Config) -> Iterable[str]:
    """Yield what no single group can see."""
    yield from _of_prompts(config)
    yield from _of_training(config)
    yield from _of_sampling(config)
    yield from _of_judging(config)


def _of_prompts(config: Config) -> Iterable[str]:
    trainer, prompts = config.trainer, config.prompts
    rows = prompts.per_iteration
    if config.iterations < 1:
        yield f"iterations={config.iterations}: N must be at least 1 (make iter N=1)."
    if config.sampler.k < 2:
        yield f"sampler.k={config.sampler.k}: a preference needs at least 2 responses per prompt; set sampler.k=2."
    by_file = prompts.source == "file" and rows is None  # as many as it holds: pipeline/prompt_count.py
    if (rows is None) == (prompts.slices is None) and not by_file:
        yield (
            f"prompts.per_iteration={rows} and prompts.slices={prompts.slices}: one of the two says how many prompts "
            "an iteration plays on; set the other to null."
        )
    counts = [1 if n is None else n for n in (rows, prompts.slices)]
    if min(*counts, trainer.global_batch, trainer.epochs, trainer.checkpoint_steps) < 1:
        yield "prompts.per_iteration, slices and trainer.global_batch, epochs, checkpoint_steps must be at least 1."


def _of_training(config: Config) -> Iterable[str]:
    trainer, prompts, hardware = config.trainer, config.prompts, config.hardware
    rows, longest = prompts.per_iteration, prompts.max_tokens + config.sampler.max_tokens
    if longest > trainer.max_length and trainer.truncate != "keep_end":
        yield (
            f"prompts.max_tokens={prompts.max_tokens} + sampler.max_tokens={config.sampler.max_tokens} = {longest} "
            f"exceeds trainer.max_length={trainer.max_length}: what is sampled could not be trained whole. "
            f"Lower one of the two, set trainer.max_length={longest}, or cut what is longer: trainer.truncate=keep_end."
        )
    if not trainer.lr > 0 or not trainer.max_grad_norm > 0:
        yield f"trainer.lr={trainer.lr} and trainer.max_grad_norm={trainer.max_grad_norm} must be positive."
    if trainer.band_every < 0:
        yield f"trainer.band_every={trainer.band_every}: measure the band every n optimizer steps, or never with 0."
    if trainer.min_steps < 8:
        yield f"trainer.min_steps={trainer.min_steps}: fewer than 8 optimizer steps teach nothing; use 8 or more."
    steps = trainer.epochs * -(-rows // max(1, trainer.global_batch)) if rows is not None else trainer.min_steps
    if steps < trainer.min_steps:  # of slices the number of rows is not known yet: training looks again
        yield (
            f"too few optimizer steps: {rows} prompts per iteration / trainer.global_batch="
            f"{trainer.global_batch} * trainer.epochs={trainer.epochs} = {steps} steps, at least {trainer.min_steps} "
            "are needed to learn anything. Raise prompts.per_iteration or trainer.epochs, lower trainer.global_batch."
        )
    micro_batch = 1 if hardware.micro_batch == "auto" else hardware.micro_batch
    if min(hardware.engines or 1, hardware.annotators, hardware.workers, micro_batch) < 1:
        yield "hardware.engines, annotators, workers and micro_batch must be at least 1."
    require_packages(trainer.optimizer, trainer.adapter)
    if trainer.global_batch % max(1, hardware.workers):
        yield (
            f"trainer.global_batch={trainer.global_batch} is not a multiple of hardware.workers={hardware.workers}: "
            "every worker must get the same number of pairs."
        )


def _of_sampling(config: Config) -> Iterable[str]:
    hardware, sampler = config.hardware, config.sampler
    if hardware.shard_deadline_s is not None and hardware.shard_deadline_s <= 0:
        yield f"hardware.shard_deadline_s={hardware.shard_deadline_s}: use seconds above 0."
    if sampler.engine == "server" and not sampler.urls:
        yield "sampler.urls is empty; say where the servers are: sampler.urls=[http://127.0.0.1:8000]."
    yield from _of_urls("sampler", sampler.urls)
    split(sampler.engine, sampler.engine_args)


def _of_judging(config: Config) -> Iterable[str]:
    for key, judge in [*judges_of("oracle", config.oracle), *judges_of("judge", config.judge)]:
        yield from _of_urls(key, judge.urls)
        complaint = oracles.options(judge.kind, judge.options).complaint(judge.urls)
        if complaint:
            yield f"{key}.{complaint}."
    if config.selection.values not in ("win_rates", "gated"):
        yield f"selection.values={config.selection.values}: choose win_rates or gated."
    met = config.oracle.opponents
    if config.win_rate == "cross_fit" and (met is None or met >= config.sampler.k):
        yield (
            f"win_rate=cross_fit with oracle.opponents={met} and sampler.k={config.sampler.k}: every response meets "
            "all others, so there is nothing to split and no bias; set win_rate=matrix, or fewer opponents."
        )
    if config.selection.require_head_to_head and config.oracle.opponents is not None:
        yield (
            f"selection.require_head_to_head with oracle.opponents={config.oracle.opponents}: chosen and rejected may "
            "not have met; set oracle.opponents=null."
        )
    if config.objective.name == "sppo_single" and config.oracle.opponents is not None:
        yield (
            f"objective=sppo_single with oracle.opponents={config.oracle.opponents}: it trains on the duel of chosen "
            "and rejected, which may not have met; set oracle.opponents=null, or use objective=sppo."
        )


def _of_urls(key: str, urls: Sequence[str]) -> Iterable[str]:
    for url in urls:
        if not SERVER_URL.fullmatch(url):
            yield f"{key}.urls: {url} is no address of a server; write http://host:port, with no path and no slash."
