"""What a plan is expected to cost: weights of a policy, disk, tokens/s by its size, embedding, what was measured."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from safetensors import safe_open

from sparring.pipeline import config
from sparring.pipeline.config.groups import CONF
from sparring.pipeline.planning.estimate import Cost, Estimate, weights_in_files
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.planning.plan import Plan, Step, inspect
from sparring.pipeline.store.files import external
from sparring.pipeline.store.manifest import Manifest
from sparring.stages.errors import ConfigError
from sparring.stages.sample import embedded
from sparring.stages.step import Input, sha256_file
from tests.pipeline.plans import Fixed, finish
from tests.refusals import refused
from tests.tiny import tiny_policy

ARCHITECTURES = {
    #  hidden, layers, feed-forward, heads, of keys, head's size, vocabulary
    "smollm2-135m": (576, 30, 1536, 9, 3, 64, 49152, "tied"),
    "qwen2.5-0.5b": (896, 24, 4864, 14, 2, 64, 151936, "tied, bias"),
    "qwen2.5-7b": (3584, 28, 18944, 28, 4, 128, 152064, "bias"),
    "mistral-7b-instruct-v0.2": (4096, 32, 14336, 32, 8, 128, 32000, ""),
    "llama-3-8b-instruct": (4096, 32, 14336, 32, 8, 128, 128256, ""),
    "llama-3.1-8b": (4096, 32, 14336, 32, 8, 128, 128256, ""),
    "gemma-2-9b-it": (3584, 42, 14336, 16, 8, 256, 256000, "tied, four norms"),
    "gemma-2-27b-it": (4608, 46, 36864, 32, 16, 128, 256000, "tied, four norms"),
}
"""As the models' own configurations have it."""
STATED = {
    "sample_tokens_per_s": 6000,
    "reference_tokens_per_s": 20000,
    "train_tokens_per_s": 4500,
    "score_duels_per_s": 25,
    "embed_responses_per_s": 500,
    "parameters": 8_000_000_000,
    "start_s": 90,
}
"""Rates of a profile that has numbers."""
ON_EIGHT = ["hardware=h100x8", "experiment=sppo_mistral_7b", "prompts.slices=null", "prompts.per_iteration=800"]
PROFILE = [*ON_EIGHT, *(f"hardware.expect.{key}={value}" for key, value in STATED.items())]


def plan_of(*overrides: str) -> Plan:
    return build({"": config.load(overrides)}, Fixed())


def costs(*overrides: str) -> dict[str, Cost]:
    """label -> what a step of iteration 1 costs, nothing being measured."""
    plan = plan_of(*overrides)
    expected = Estimate(plan, [])
    return {use.label: expected.cost(step) for use, step in plan.arm("") if use.iteration <= 1}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_policy_states_the_weights_of_its_architecture(name: str) -> None:
    hidden, layers, forward, heads, keys, size, vocabulary, how = ARCHITECTURES[name]
    attention = hidden * size * (2 * heads + 2 * keys) + (size * (heads + 2 * keys) if "bias" in how else 0)
    norms = hidden * (4 if "four norms" in how else 2)
    layer = attention + 3 * hidden * forward + norms
    table = vocabulary * hidden * (1 if "tied" in how else 2)
    assert config.load(["hardware=cpu", f"policy={name}"]).policy.parameters == table + layers * layer + hidden


def test_every_policy_but_a_folder_states_them() -> None:
    names = {path.stem for path in (CONF / "policy").glob("*.yaml")}
    assert names == {*ARCHITECTURES, "folder"}


def test_weights_are_counted_in_files_that_are_here(tmp_path: Path) -> None:
    folder = tiny_policy(tmp_path / "policy")
    with safe_open(folder / "model.safetensors", "pt") as handle:
        there = sum(prod(handle.get_slice(name).get_shape()) for name in handle.keys())  # noqa: SIM118
    assert weights_in_files(external("policy", folder, sha256_file)) == there > 3_000_000
    for content in (b"", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", (9).to_bytes(8, "little") + b'{"a": {}}'):
        (folder / "model.safetensors").write_bytes(content)
        assert weights_in_files(external("policy", folder, sha256_file)) is None
    assert weights_in_files(Input(role="policy", root=tmp_path, digest="1" * 64)) is None


def test_files_that_are_here_say_more_than_the_configuration(tmp_path: Path) -> None:
    class Here(Fixed):
        def policy(self, config: object) -> Input:
            return external("policy", folder, sha256_file)

    folder = tiny_policy(tmp_path / "policy")
    plans = (build({"": config.load(["hardware=cpu"])}, Here()), plan_of("hardware=cpu"))
    in_files, stated = (Estimate(plan, []).cost(of(plan, "train", 1)).kept_bytes / 4 for plan in plans)
    assert in_files == weights_in_files(external("policy", folder, sha256_file))
    assert stated == 134_515_008


def test_the_embedded_policy_has_the_weights_that_its_yaml_states() -> None:
    if not embedded.is_prepared():
        pytest.skip("the embedded policy is not prepared")
    assert weights_in_files(external("policy", embedded.place(), lambda path: "")) == 134_515_008


def test_a_policy_of_7_billion_weights_takes_tens_of_gib() -> None:
    made = costs(*PROFILE)["train"]
    weights = 7_241_732_096
    assert made.kept_bytes == 2 * weights  # published in bf16
    assert made.peak_bytes == 2 * (4 + 4) * weights  # two checkpoints: fp32 weights, one moment
    plan = plan_of(*PROFILE)
    three = Estimate(plan, []).total(inspect(plan, Path("nowhere")))
    assert 40 < three.kept_bytes / 2**30 < 50 and 140 < three.peak_bytes / 2**30 < 160
    wide = costs(*PROFILE, "trainer.publish_dtype=float32", "trainer.optimizer=adamw")["train"]
    assert (wide.kept_bytes, wide.peak_bytes) == (4 * weights, 2 * (4 + 8) * weights)
    assert costs(*PROFILE, "adapter=lora")["train"].peak_bytes == 0


def test_larger_policies_are_slower_in_proportion() -> None:
    sizes = {"mistral-7b-instruct-v0.2": 7_241_732_096, "llama-3-8b-instruct": 8_030_261_248}
    sizes["gemma-2-9b-it"] = 9_241_705_984
    found = {name: costs(*PROFILE, f"policy={name}") for name in sizes}
    for label, rate in (("sample", 6000), ("reference", 20000), ("train", 4500)):
        for name, weights in sizes.items():
            tokens = found[name][label].tokens
            assert found[name][label].seconds - 90 == pytest.approx(tokens * weights / 8e9 / (8 * rate))
    assert len({each["score"].seconds for each in found.values()}) == 1  # the oracle is the same
    small = costs(*PROFILE, "policy=qwen2.5-0.5b")["train"]
    assert small.seconds - 90 == pytest.approx(small.tokens / (8 * 4500 * 4))  # not 16 times as fast


def test_a_profile_of_no_policy_in_particular_is_not_scaled() -> None:
    words = ["hardware=cuda", *ON_EIGHT[1:]]
    assert costs(*words)["train"].seconds == costs(*words, "policy=gemma-2-9b-it")["train"].seconds


def test_rates_are_of_a_gpu() -> None:
    words = [*PROFILE, "policy=gemma-2-27b-it"]
    two, one = costs(*words, "hardware.engines=4"), costs(*words, "policy.tensor_parallel=1")
    assert two["sample"].seconds == one["sample"].seconds


def test_embedding_takes_its_time() -> None:
    found = costs(*PROFILE)["embed"]
    assert found.seconds == pytest.approx(90 + 800 * 5 / (8 * 500)) and found.assumed


def of(plan: Plan, label: str, t: int) -> Step:
    return next(step for use, step in plan.arm("") if (use.iteration, use.label) == (t, label))


def measured(plan: Plan, step: Step, store: Path, stats: dict[str, float]) -> Manifest:
    return replace(finish(plan, step, store), stats=stats, seconds=10.0)


def rate(plan: Plan, step: Step, known: list[Manifest]) -> float | None:
    """Tokens a second that a step is expected to sample, None where they are the profile's."""
    cost = Estimate(plan, known).cost(step)
    return None if cost.assumed else cost.tokens / (cost.seconds - 12)


def test_what_was_measured_counts_for_the_same_base_policy(tmp_path: Path) -> None:
    """Also of a policy that was trained from it, in this run or an earlier one; not of another one's."""

    class Other(Fixed):
        def policy(self, config: object) -> Input:
            return Input(role="policy", root=tmp_path, digest="9" * 64)

    chosen = config.load(["hardware=cpu", "iterations=2"])
    plan, earlier = build({"": chosen}, Fixed()), plan_of("hardware=cpu", "iterations=2", "trainer.lr=3e-5")
    other = build({"": chosen}, Other())
    train = measured(earlier, of(earlier, "train", 1), tmp_path / "a", {})
    sample = measured(earlier, of(earlier, "sample", 2), tmp_path / "b", {"tokens": 700.0})
    for t in (1, 2):
        assert rate(plan, of(plan, "sample", t), [train, sample]) == pytest.approx(70)
        assert rate(other, of(other, "sample", t), [train, sample]) is None
    assert rate(plan, of(plan, "sample", 2), [sample]) is None  # nothing says whose it is


def test_what_embedding_took_is_measured_in_responses_of_the_same_encoder(tmp_path: Path) -> None:
    class Other(Fixed):
        def minilm(self) -> Input:
            return Input(role="encoder", root=tmp_path, digest="8" * 64)

    plan, other = plan_of("hardware=cpu"), build({"": config.load(["hardware=cpu"])}, Other())
    done = measured(plan, of(plan, "embed", 1), tmp_path, {"responses": 500.0})
    again = plan_of("hardware=cpu", "sampler.k=8")
    cost = Estimate(again, [done]).cost(of(again, "embed", 1))
    assert cost.seconds == pytest.approx(12 + 40 * 8 / 50) and not cost.assumed
    assert Estimate(other, [done]).cost(of(other, "embed", 1)).assumed


LLAMA = ["experiment=s_sppo_llama3_8b", "hardware=h100x8", "oracle.options.dtype=bfloat16"]
SLICE = ["prompts.slices=null", "prompts.per_iteration=20000"]


def test_an_iteration_of_20_000_prompts_on_eight_h100_is_planned_in_22_minutes() -> None:
    plan = plan_of(*LLAMA, *SLICE)
    expected = Estimate(plan, [])
    seconds: dict[int, float] = {}
    for name, step in plan.steps.items():
        t = step.uses[0].iteration
        seconds[t] = seconds.get(t, 0) + expected.cost(plan.steps[name]).seconds
    assert set(seconds) == {0, 1, 2, 3} and all(18 * 60 < seconds[t] <= 22 * 60 for t in (1, 2, 3))


def test_every_rate_says_how_it_is_known(tmp_path: Path) -> None:
    plan = plan_of(*LLAMA, *SLICE)
    known = {use.label: Estimate(plan, []).cost(step).rate for use, step in plan.arm("") if use.iteration == 1}
    heavy = {label: rate.known for label, rate in known.items() if rate}
    assert set(heavy) >= {"sample", "score", "embed", "reference", "train", "sample_heldout", "logprobs_own"}
    assert all(text.startswith("estimated: h100") for text in heavy.values())
    assert "torchtitan" in heavy["train"] and "37.5%" in heavy["train"]
    on_cpu = plan_of("hardware=cpu")
    sample = of(on_cpu, "sample", 1)
    stated = Estimate(on_cpu, []).cost(sample).rate
    done = measured(on_cpu, sample, tmp_path, {"tokens": 700.0})
    here = Estimate(on_cpu, [done]).cost(sample).rate
    assert stated is not None and stated.known == "hardware=cpu, measured on two cores"
    assert here is not None and here.known == "measured here"


def test_steps_that_use_the_same_weights_load_them_once() -> None:
    """π_0's samples and held-out ones by one engine; three log-probs of three policies load three."""
    starts = Estimate(plan := plan_of(*LLAMA, *SLICE), []).starts
    by_label = {(use.iteration, use.label): starts.get(step.fingerprint) for use, step in plan.arm("")}
    weights_s = 2 * 8_030_261_248 / 2e9
    assert by_label[0, "sample_base"] == 25 + weights_s and by_label[1, "sample"] == 0
    assert by_label[1, "score"] == 12 + 1.7 / 2 and by_label[1, "embed"] == 1.7 / 2
    assert by_label[1, "reference"] == by_label[2, "logprobs_base"] == weights_s
    assert by_label[1, "train"] == 40 + weights_s and by_label[1, "pairs"] is None


@pytest.mark.parametrize("key", ["sample_tokens_per_s", "start_s"])
def test_a_rate_that_is_null_needs_an_accelerator(key: str) -> None:
    with refused(ConfigError, f"hardware.expect.{key}", "hardware.expect.accelerator"):
        config.load(["hardware=cpu", f"hardware.expect.{key}=null"])
