"""What a GPU must hold, worked out by hand for published architectures, and beside DeepSpeed's own estimate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparring.pipeline.config import load
from sparring.pipeline.planning.memory import (
    GIB,
    OVERHEAD,
    PROCESS,
    Architecture,
    Training,
    architecture,
    check,
    check_hosts,
    host_needs_of,
    needs_of,
    sampling,
    scoring,
    training,
)
from sparring.stages.errors import ConfigError
from sparring.stages.step import Workers
from tests.refusals import named, refused

LLAMA = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
GEMMA = {
    "text_config": {
        "num_hidden_layers": 46,
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "vocab_size": 256000,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "attn_logit_softcapping": 50.0,
    }
}
BILLION = 10**9
LLAMA_8B, GEMMA_27B = architecture(LLAMA, 8 * BILLION), architecture(GEMMA, 27 * BILLION)
FULL = Training(workers=8, optimizer="rmsprop", max_length=2560)
H100 = 80 * GIB


def test_an_architecture_is_read_from_its_config() -> None:
    assert LLAMA_8B and (LLAMA_8B.q_width, LLAMA_8B.kv_width, LLAMA_8B.eager) == (4096, 1024, False)
    assert GEMMA_27B and (GEMMA_27B.q_width, GEMMA_27B.kv_width, GEMMA_27B.eager) == (4096, 2048, True)
    assert architecture({"num_hidden_layers": 32}, 1) is None


def test_eight_workers_hold_an_eighth_of_the_states() -> None:
    """12 bytes a weight: fp32 weights, gradients, RMSProp's mean of squares. 8 billion on 8 workers: 12 GB."""
    assert LLAMA_8B
    need = training(LLAMA_8B, FULL)
    assert need["weights"] + need["gradients"] + need["optimizer"] == 12 * BILLION
    assert need["logits"] == 3 * 4 * 512 * 128256
    assert sum(need.values()) < 40 * GIB


def test_one_worker_holds_a_second_copy_while_the_engine_is_made() -> None:
    assert LLAMA_8B
    need = training(LLAMA_8B, replace(FULL, workers=1))
    assert sum(need.values()) - OVERHEAD == 16 * 8 * BILLION > H100


@pytest.mark.parametrize(
    ("change", "bytes_a_weight"), [({"offload": "optimizer"}, 4), ({"offload": "all"}, 0), ({"optimizer": "adamw"}, 16)]
)
def test_states_by_optimizer_and_offload(change: dict[str, str], bytes_a_weight: int) -> None:
    assert LLAMA_8B
    need = training(LLAMA_8B, replace(FULL, workers=2, **change))  # type: ignore[arg-type]
    states = sum(need.get(name, 0) for name in ("weights", "gradients", "optimizer"))
    assert states == bytes_a_weight * 8 * BILLION / 2


def test_an_adapter_has_no_gradients_of_what_is_frozen() -> None:
    """Rank 16 on all linear layers of Llama-3-8B: 41,943,040 weights, as peft counts them."""
    assert LLAMA_8B and LLAMA_8B.low_rank(16) == 41_943_040
    need = training(LLAMA_8B, replace(FULL, workers=1, rank=16))
    assert need["gradients"] == 4 * 41_943_040 and sum(need.values()) < H100
    assert need["weights"] == 4 * (8 * BILLION + 41_943_040)
    small = training(LLAMA_8B, replace(FULL, workers=1, rank=16, four_bit=True))
    assert sum(small.values()) < 24 * GIB


def test_longer_texts_and_more_pairs_need_more() -> None:
    assert LLAMA_8B
    one = training(LLAMA_8B, FULL)["activations"]
    assert training(LLAMA_8B, replace(FULL, micro_batch=2))["activations"] == 2 * one
    assert training(LLAMA_8B, replace(FULL, max_length=5120))["activations"] == 2 * one
    assert training(LLAMA_8B, replace(FULL, dtype="float32"))["activations"] > one


def test_without_checkpointing_every_layer_keeps_what_one_does() -> None:
    """One pair of 2,560 tokens in bf16: 5,120 tokens, 20 bytes of the hidden size and 8 of what linear layers read."""
    assert LLAMA_8B
    layer = 5120 * (20 * 4096 + 8 * (4096 + 4096 + 1024 + 14336))
    assert training(LLAMA_8B, FULL)["activations"] == 4 * 32 * 5120 * 4096 + layer
    assert training(LLAMA_8B, replace(FULL, checkpointing=False))["activations"] == 32 * layer


def test_scores_of_eager_attention_grow_with_the_square_of_the_length() -> None:
    assert GEMMA_27B
    short, long = (training(GEMMA_27B, replace(FULL, max_length=n))["activations"] for n in (1024, 2048))
    assert long > 2.2 * short


def test_log_probs_take_the_whole_policy_in_fp32() -> None:
    assert LLAMA_8B and GEMMA_27B
    assert scoring(LLAMA_8B, 2560, "bfloat16")["weights"] == 32 * BILLION
    assert sum(scoring(GEMMA_27B, 2560, "bfloat16").values()) > H100


def test_an_engine_shares_the_policy_among_its_gpus() -> None:
    """Llama-3-8B in bf16: 16 GB; keys and values 2 * 2 * 32 * 1024 = 128 KiB a token."""
    assert LLAMA_8B and LLAMA_8B.kv_bytes == 128 * 1024
    alone, halved = sampling(LLAMA_8B, 1, 2560, "bfloat16"), sampling(LLAMA_8B, 2, 2560, "bfloat16")
    assert alone["weights"] == 16 * BILLION and alone["keys and values"] == 2560 * 128 * 1024
    assert halved["weights"] == 8 * BILLION


@pytest.mark.parametrize("workers", [1, 8])
def test_deepspeeds_estimate_is_of_the_same_states(workers: int) -> None:
    """DeepSpeed counts 18 bytes a weight for mixed precision with Adam: 2 of a bf16 copy beside our 16."""
    zero = pytest.importorskip("deepspeed.runtime.zero.stage3")
    assert LLAMA_8B
    _, theirs, largest = zero.estimate_zero3_model_states_mem_needs(
        8 * BILLION, 0, num_gpus_per_node=workers, cpu_offload=False
    )
    ours = training(LLAMA_8B, replace(FULL, workers=workers, optimizer="adamw"))
    states = ours["weights"] + ours["gradients"] + ours["optimizer"]
    assert largest == 0 and states == pytest.approx(theirs * 16 / 18)


WORDS = ["hardware=h100x8", "policy=llama-3-8b-instruct", "trainer.global_batch=64", "prompts.per_iteration=640"]


def refusal(*words: str, model: Architecture | None = LLAMA_8B) -> str:
    """The message of a plan's check on GPUs of 80 GiB, '' where every step fits."""
    assert model
    chosen = load([*WORDS, *words])
    try:
        for step, need in needs_of(chosen, model).items():
            check(step, need, chosen, model, 80)
    except ConfigError as error:
        return str(error)
    return ""


def test_a_policy_of_8_billion_fits_eight_gpus_and_not_one() -> None:
    assert refusal() == ""
    named(refusal("hardware.workers=1"), "train", "hardware.workers=2", "hardware.offload=optimizer")
    assert refusal("hardware.workers=1", "hardware.offload=optimizer") == refusal("hardware.workers=2") == ""
    assert refusal("hardware.workers=1", "adapter=lora") == ""


def test_what_no_setting_makes_fit_is_said() -> None:
    """The log-probs of 27 billion weights in fp32: 109 GB on one GPU; in 4 bits they fit."""
    named(refusal("policy.tensor_parallel=2", "hardware.engines=4", model=GEMMA_27B), "reference", "adapter=qlora")
    assert GEMMA_27B
    named(refusal(model=replace(GEMMA_27B, weights=100 * BILLION)), "sample", "policy.tensor_parallel=4")
    small = load([*WORDS, "hardware.gpu_gb=1"])
    assert LLAMA_8B
    with refused(ConfigError, "reference", "smaller policy"):
        check("reference", needs_of(small, LLAMA_8B)["reference"], small, LLAMA_8B, 1)


def test_the_cpu_profile_needs_no_gpu() -> None:
    assert LLAMA_8B and needs_of(load(["hardware=cpu"]), LLAMA_8B) == {}


NODE = {"CPU": 128.0, "GPU": 8.0}
ANNOTATORS = Workers(count=8, cpus=4, gpus=1)


def test_a_host_holds_the_policy_of_each_process_that_reads_it() -> None:
    """Llama-3-8B in fp32 is 32 GB: eight annotators of a node read it at the same time."""
    assert LLAMA_8B
    need = host_needs_of(load(WORDS), LLAMA_8B)["reference"]
    assert sum(need.values()) - PROCESS == 32 * BILLION
    assert check_hosts("reference", need, ANNOTATORS, [{**NODE, "GB": 1000}]) is None
    named(check_hosts("reference", need, ANNOTATORS, [{**NODE, "GB": 400}]) or "", "reference", "246", "8 x")
    assert check_hosts("reference", need, ANNOTATORS, [{**NODE, "GB": 400}, {"CPU": 8.0, "GB": 4}, NODE])
    with refused(ConfigError, "reference", "hardware.annotators=6"):
        check_hosts("reference", need, ANNOTATORS, [{**NODE, "GB": 200}])


@pytest.mark.parametrize(("offload", "bytes_a_weight"), [("none", 32), ("optimizer", 12), ("all", 12)])
def test_a_host_holds_what_is_offloaded(offload: str, bytes_a_weight: int) -> None:
    """fp32 weights, gradients, RMSProp's mean of squares of a worker's share; without offload the policy as it is read.

    On eight workers 4 bytes of every weight are 32 of a worker's own.
    """
    assert LLAMA_8B
    chosen = load(
        [*WORDS, "hardware.workers=1" if offload != "none" else "hardware.workers=8", f"hardware.offload={offload}"]
    )
    need = host_needs_of(chosen, LLAMA_8B)["train"]
    assert chosen.hardware.workers
    assert sum(need.values()) - PROCESS == bytes_a_weight * 8 * BILLION / chosen.hardware.workers
    with refused(ConfigError, "train", "hardware.offload"):
        check_hosts("train", need, Workers(count=8, gpus=1), [{**NODE, "GB": 16}])


def test_without_gpus_a_host_holds_what_a_gpu_would() -> None:
    assert LLAMA_8B
    chosen = load(["hardware=cpu", "hardware.kv_cache_gb=3"])
    needs = host_needs_of(chosen, LLAMA_8B)
    assert needs["train"]["gradients"] == 4 * 8 * BILLION and needs["sample"]["keys and values"] == 3 * GIB
    assert "CUDA" not in needs["train"] | needs["reference"]
