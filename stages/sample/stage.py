"""Step `sample`: K responses from the policy for each prompt of a slice, one shard at a time.

A slice is some rows of the training prompts as dealt, or the held-out prompts in their order. A prompt dealt again
(after all others were) is another row: its id gets `~d` in deal d, and its responses other seeds.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sparring.stages.errors import ConfigError, DataError, EngineFault, SparringError
from sparring.stages.sample.config import SampleSettings
from sparring.stages.sample.deal import cut, dealt, response_seed
from sparring.stages.sample.diversity import diversity
from sparring.stages.sample.engine import EngineSettings, cut_at_stop, make_engine, stop_ids
from sparring.stages.sample.prompts import MESSAGES
from sparring.stages.step import Input, Job, Part, Shard

log = logging.getLogger(__name__)
RESPONSE = pa.struct(
    [
        ("text", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("finish", pa.string()),
        ("seed", pa.int64()),
        ("logprobs", pa.list_(pa.float32())),
    ]
)
SAMPLES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("messages", MESSAGES),
        ("prompt_ids", pa.list_(pa.int32())),
        ("responses", pa.list_(RESPONSE)),
    ]
)


def shards(job: Job[SampleSettings]) -> list[Shard]:
    """Cut the slice into shards of `shard_rows`; the payload names rows of the split and the deal of each."""
    size = job.settings.sampler.shard_rows
    rows, deals = _slice(job.settings, job.inputs["prompts"].summary)
    return [
        Shard(index=i, payload={"rows": rows[a : a + size], "deals": deals[a : a + size]})
        for i, a in enumerate(range(0, len(rows), size))
    ]


def _slice(settings: SampleSettings, prompts: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return the rows of the split that the slice has, and the deal of each."""
    number, rows, slices = settings.slice, settings.rows, settings.slices or 1
    if settings.split == "heldout":
        rows = prompts["heldout"] if rows is None else rows
        if rows > prompts["heldout"]:
            raise DataError(f"{rows} held-out prompts are needed, there are {prompts['heldout']}; prompts.heldout.")
        return list(range(rows)), [0] * rows
    n, seed = prompts["train"], settings.seed
    if rows is not None:
        start = number * rows
        return dealt(n, start, rows, seed), [position // n for position in range(start, start + rows)]
    deal, index = divmod(number, slices)
    if deal == 0 and len(prompts["slices"]) > 1:
        first = sum(prompts["slices"][:index])
        chosen = list(range(first, first + prompts["slices"][index]))
    else:
        first, last = cut(n, index, slices)
        chosen = dealt(n, deal * n + first, last - first, seed) if last > first else []
    if not chosen:
        raise DataError(f"slice {index + 1} of {slices} has no usable prompts; lower prompts.slices or add prompts.")
    return chosen, [deal] * len(chosen)


def narrow(shard: Shard, keep: Sequence[int]) -> Shard:
    """Return the shard with some of its rows, by place; the others count as `poison`."""
    kept = {name: [shard.payload[name][i] for i in keep] for name in ("rows", "deals")}
    lost = len(shard.payload["rows"]) - len(keep)
    return Shard(index=shard.index, payload={**kept, "poison": lost})


def prepare(job: Job[SampleSettings]) -> None:
    """Import vLLM, which takes longer than loading a small policy."""
    if job.settings.sampler.engine == "vllm":
        from sparring.stages.vllm import import_vllm

        import_vllm(job.workers.cpus, batch_invariant=job.settings.sampler.reproducible and job.workers.gpus > 0)


class Sampler:
    """One engine; turns the prompts of a shard into samples."""

    def __init__(self, job: Job[SampleSettings]) -> None:
        from sparring.stages.chat import load_chat

        prepare(job)
        policy = job.inputs["policy"]
        folder = policy.folder()
        self.settings, sampler = job.settings, job.settings.sampler
        self.prompts = _Prompts(job.inputs["prompts"], job.settings.split)
        self.chat = load_chat(folder)
        named = self.chat.control_tokens(job.settings.stop_tokens)
        ends = stop_ids(folder, self.chat.tokenizer.eos_token_id, self.chat.end_of_turn(), named)
        for text in filter(self.chat.spells_control, sampler.stop):
            raise ConfigError(f"sampler.stop: {text!r} is a control token, which is no text; name it in policy.stop.")
        start = EngineSettings(
            sampler=sampler,
            gpu_memory=job.settings.hardware.gpu_memory,
            kv_cache_gb=job.settings.hardware.kv_cache_gb,
            workers=job.workers,
            max_model_len=job.settings.max_model_len,
            stop_ids=tuple(ends),
            policy_name=f"sparring-{policy.digest[:8]}",
        )
        self.engine = make_engine(sampler.engine, folder, start)

    def __call__(self, shard: Shard) -> Part:
        lost, stop = shard.payload.get("poison", 0), self.settings.sampler.stop
        prompts = [self.prompts.row(row) for row in shard.payload["rows"]]
        deals = shard.payload["deals"]
        seeds = [response_seed(self.settings.seed, p["id"], d) for p, d in zip(prompts, deals, strict=True)]
        try:
            sampled = self.engine.generate([p["prompt_ids"] for p in prompts], seeds) if prompts else []
        except (SparringError, OSError):  # no prompt fills a disk or hides a file
            raise
        except Exception as error:
            log.exception("the engine failed")
            raise EngineFault(f"the engine failed: {type(error).__name__}: {error}") from None
        rows = [
            {
                **prompt,
                "id": f"{prompt['id']}~{deal}" if deal else prompt["id"],
                "responses": [
                    {"text": cut_at_stop(self.chat.decode(one.ids), stop), **one._asdict()} for one in responses
                ],
            }
            for prompt, deal, responses in zip(prompts, deals, sampled, strict=True)
        ]
        table = pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA)
        return Part(
            table=table,
            rows_in=len(rows) + lost,
            dropped={"poison": lost} if lost else {},
            stats={
                "responses": float(sum(map(len, sampled))),
                "tokens": float(sum(len(one.ids) for responses in sampled for one in responses)),
                "prompt_tokens": float(sum(len(p["prompt_ids"]) for p in prompts)),
                "redealt": float(sum(map(bool, deals))),
                **diversity(table["responses"]),
            },
        )


class _Prompts:
    """Rows of a split by number. Parts are read when first needed and kept: a deal spreads a shard over all of them."""

    def __init__(self, prompts: Input, split: str) -> None:
        self.prompts = prompts
        self.first = 0 if split == "heldout" else 1
        sizes = prompts.summary["rows"]
        self.ends = np.cumsum(sizes[:1] if split == "heldout" else sizes[1:])
        self.tables: dict[int, pa.Table] = {}

    def row(self, number: int) -> dict[str, Any]:
        part = int(np.searchsorted(self.ends, number, side="right"))
        if part not in self.tables:
            self.tables[part] = self.prompts.table(self.first + part)
        offset = int(self.ends[part - 1]) if part else 0
        return dict(self.tables[part].slice(number - offset, 1).to_pylist()[0])


def finish(job: Job, tables: Iterable[pa.Table], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the slice's lengths, endings and diversity."""
    lengths: list[np.ndarray] = []
    finishes: Counter[str] = Counter()
    for table in tables:
        for chunk in table["responses"].chunks:
            responses = chunk.flatten()
            lengths.append(responses.field("ids").value_lengths().to_numpy())
            for each in responses.field("finish").value_counts().to_pylist():
                finishes[each["values"]] += each["counts"]
    prompts = sum(part["rows_out"] for part in parts)
    if not prompts:
        raise DataError("no prompt has a response: the engine failed on every one of them; see the step's logs.")
    tokens = np.concatenate(lengths)
    return {
        "prompts": prompts,
        "responses": len(tokens),
        "tokens": int(tokens.sum()),
        "length_mean": float(tokens.mean()),
        "length_p95": float(np.percentile(tokens, 95)),
        "cap_rate": finishes["length"] / len(tokens),
        "end_of_turn_rate": finishes["stop"] / len(tokens),
        "unique_rate": sum(part["stats"]["unique"] for part in parts) / prompts,
        "distinct_2": sum(part["stats"]["distinct_2"] for part in parts) / prompts,
        "redealt": int(sum(part["stats"].get("redealt", 0) for part in parts)),
    }
