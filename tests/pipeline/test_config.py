"""Configuration: what is composed, and that every mistake gets one message that names the key and the remedy."""

import pytest
from omegaconf import OmegaConf

from sparring.pipeline import config
from sparring.pipeline.config import groups, overrides
from sparring.stages.errors import ConfigError
from tests.refusals import refused


def test_default_is_s_sppo_on_the_embedded_parts() -> None:
    found = config.load(["hardware=cpu"])
    assert (found.objective.name, found.gate.name, found.repulsion.name) == ("sppo", "linear", "hinge")
    assert (found.policy.name, found.oracle.kind, found.judge.kind) == ("smollm2-135m", "mini", "lexical")
    assert (found.prompts.limit, found.prompts.heldout, found.prompts.per_iteration) == (120, 200, 40)
    assert (found.sampler.max_tokens, found.trainer.global_batch, found.trainer.lr, found.evaluate.k) == (
        32,
        4,
        1e-5,
        2,
    )


def test_prompts_of_ones_own_are_sampled_longer() -> None:
    found = config.load(["hardware=cpu", "prompts=file", "prompts.path=p.jsonl"])
    assert (found.sampler.max_tokens, found.evaluate.k, found.diagnostics.capped) == (96, 1, 0.75)


def test_experiment_sppo_is_without_gate_and_repulsion() -> None:
    found = config.load(["experiment=sppo"])
    assert (found.gate.name, found.repulsion.name) == ("off", "off")


def test_the_command_line_wins_over_the_experiment() -> None:
    assert config.load(["experiment=sppo", "gate=permuted"]).gate.name == "permuted"


def test_the_official_recipe_is_the_published_one() -> None:
    found = config.load(["trainer=official", "prompts=ultrafeedback_sppo", "sampler.max_tokens=2048"])
    trainer = found.trainer
    assert (trainer.optimizer, trainer.lr, trainer.warmup_ratio, trainer.epochs) == ("rmsprop", 5e-7, 0.1, 1)
    assert (trainer.global_batch, trainer.max_grad_norm) == (64, 1.0)
    assert (trainer.max_length, found.prompts.max_tokens, trainer.truncate) == (1024, 512, "keep_end")
    assert (trainer.dtype, trainer.publish_dtype, trainer.adapter.name) == ("bfloat16", "bfloat16", "off")


@pytest.mark.parametrize(("trainer", "lr"), [("default", 1e-4), ("official", 5e-6)])
@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_an_adapter_brings_its_lr_and_the_command_line_wins(trainer: str, lr: float, name: str) -> None:
    enough = ["prompts.per_iteration=512"]
    found = config.load([f"trainer={trainer}", f"adapter={name}", *enough]).trainer
    assert (found.lr, found.adapter.name, found.adapter.rank, found.adapter.alpha) == (lr, name, 16, 32.0)
    assert config.load(["trainer.lr=3e-5", f"adapter={name}"]).trainer.lr == 3e-5
    assert config.load(["trainer.adapter.targets=[q_proj]", f"adapter={name}"]).trainer.adapter.targets == ("q_proj",)


MESSAGES: list[tuple[str, str | tuple[str, ...]]] = [
    ("win_rate=cross_fit", ("win_rate=cross_fit", "oracle.opponents=None", "sampler.k=4", "win_rate=matrix")),
    ("trainer.lrr=1", ("trainer.lrr", "trainer.lr?")),
    ("samplr.k=3", ("samplr.k", "sampler.k?")),
    ("+extra=1", "extra"),
    ("gate=linearr", ("gate=linearr", "linear?", "linear, off, permuted")),
    ("experiment=spo", ("experiment=spo", "sppo?")),
    ("hardware=gpu", "hardware=gpu"),
    ("experiment=../policy/folder", ("experiment=../policy/folder", "dpo")),
    ("experiment=/etc/passwd", ("experiment=/etc/passwd", "dpo")),
    ("+gate=off", ("+gate=off", "write gate=off")),
    ("+seed=3", "+seed: "),
    ("cl\u00e9=1", "cl\u00e9"),
    ("k" * 5000 + "=1", "k" * 200 + "..."),
    ("seed=" + "9" * 5000, "seed=" + "9" * 195 + "..."),
    ("SEED=1", ("SEED", "seed?")),
    ("lr", ("lr: ", "key=value")),
    ("trainer.lr=abc", ("trainer.lr=abc", "number")),
    ("sampler.k=2.5", ("sampler.k=2.5", "integer")),
    ("trainer.lr=1e-5,2e-5", ("trainer.lr=1e-5,2e-5", "-m")),
    ("sampler.k=1", ("sampler.k=1", "2 to 64")),
    ("iterations=0", ("iterations=0", "from 1")),
    ("trainer.band_every=-1", ("trainer.band_every=-1", "≥ 0")),
    ("calibration=rc", ("calibration=rc", "off, reward")),
    ("calibration.ema=1", ("calibration.ema", "calibration=off", "calibration=reward")),
    ("hardware.micro_batch=some", ("hardware.micro_batch", "=some: ")),
    ("tracking.sinks=[comet]", ("tracking.sinks: comet", "tensorboard, wandb, mlflow, trackio")),
    ("tracking.sinks=[trackio]", ("tracking.sinks: trackio", "pip install")),
    ("trainer.min_steps=4", ("trainer.min_steps=4", "≥ 8")),
    ("trainer.global_batch=8", ("40 prompts", "= 5 steps", "8")),
    ("prompts.max_tokens=500", ("500 + sampler.max_tokens=32 = 532", "trainer.max_length=512")),
    ("hardware.workers=3", ("global_batch=4", "hardware.workers=2", "trainer.global_batch=6")),
    ("policy.stop=[</s>]", ("policy.stop=[</s>]: ", "\"policy.stop=['</s>']\"")),
    ("prompts=file", "prompts.path="),
    ("policy=folder", "policy.path="),
    ("run.name='a/b'", ("run.name=a/b", "100")),
    ("trainer.adapter.name=dora", ("trainer.adapter.name=dora", "off, lora, qlora")),
    ("evaluate.k=0", ("evaluate.k=0", "1 to 64")),
    ("trainer.lr=0", ("trainer.lr=0", "> 0", "≤ 1")),
    ("trainer.lr=1e10", ("trainer.lr=1e10", "> 0", "≤ 1")),
    ("hardware.shard_deadline_s=0.001", ("hardware.shard_deadline_s=0.001", "≥ 1", "null")),
    ("keep.policies=last paths.store=s3://bucket/prefix", ("keep.policies=last", "paths.store")),
]


@pytest.mark.parametrize(("override", "names"), MESSAGES)
def test_a_mistake_has_one_message(override: str, names: str | tuple[str, ...]) -> None:
    with refused(ConfigError, names) as caught:
        config.load(override.split(" ") if " paths." in override else [override])
    assert len(str(caught.value)) < 500


def test_what_is_cut_may_be_sampled_longer_than_it_is_trained() -> None:
    loaded = config.load(["prompts.max_tokens=500", "trainer.truncate=keep_end"])
    assert loaded.prompts.max_tokens + loaded.sampler.max_tokens > loaded.trainer.max_length
    with refused(ConfigError, "=512", "trainer.max_length=512"):
        config.load(["prompts.max_tokens=512", "trainer.truncate=keep_end"])


@pytest.mark.parametrize(
    "words",
    [["oracle@judge=ensemble"], ["judge=lexical", "oracle@judge=mini"], ["oracle@judge=mini"], ["+oracle@judge=gpm"]],
)
def test_the_second_judge_is_chosen_by_its_own_key(words: list[str]) -> None:
    """`oracle@judge=` is Hydra's own way to write it, which would pass by the options that `judge=` has."""
    with refused(ConfigError, words[-1], "judge=NAME", "gpm, lexical, llm, mini, pairrm, reward_model") as caught:
        config.load(words)
    assert "ensemble," not in str(caught.value)


def test_a_member_is_chosen_by_its_place() -> None:
    ensemble = ["oracle=ensemble", "judge=pairrm", "oracle@oracle.members.second=pairrm"]
    assert config.load(ensemble).oracle.members["second"].kind == "pairrm"


def test_servers_are_addresses_alone() -> None:
    for good in ("http://127.0.0.1:8000", "https://node-17.cluster", "http://[::1]:8000"):
        assert config.load(["sampler=server", f"sampler.urls=['{good}']"]).sampler.urls == (good,)
    for bad in (
        "127.0.0.1:8000",
        "http://a:8000/v1",
        "http://a:8000/",
        "ftp://a",
        "http://",
        "http://me:key@a",
        "http://a:0",
        "http://a:99999",
    ):
        with refused(ConfigError, "sampler.urls: ", "http://host:port"):
            config.load(["sampler=server", f"sampler.urls=['http://a:1','{bad}']"])
    with refused(ConfigError, "sampler.urls"):
        config.load(["sampler=server", "sampler.urls=[]"])


def test_several_steps_of_two_epochs_are_enough() -> None:
    assert config.load(["trainer.global_batch=8", "trainer.epochs=2"]).trainer.epochs == 2


def test_sweeps_become_named_arms() -> None:
    arms = config.expand(["experiment=sppo,s_sppo", "seed=1"])
    assert arms == [
        ("experiment=sppo", ["experiment=sppo", "seed=1"]),
        ("experiment=s_sppo", ["experiment=s_sppo", "seed=1"]),
    ]
    assert len(config.expand(["seed=range(0,3)", "gate=off,linear"])) == 6


def test_a_sweep_of_one_is_still_an_arm_with_a_name() -> None:
    assert config.expand(["seed=1"]) == [("only", ["seed=1"])]


def test_hardware_auto_asks_the_machine() -> None:
    assert config.detect_hardware(["hardware=auto", "seed=1"], gpus=0) == ["seed=1", "hardware=cpu"]
    assert config.detect_hardware([], gpus=8) == ["hardware=cuda"]
    assert config.detect_hardware(["hardware=cpu"], gpus=8) == ["hardware=cpu"]


def test_rendered_configuration_is_complete() -> None:
    text = config.render(config.load([]))
    assert "beta: 0.001" in text and "shard_rows" in text


@pytest.mark.parametrize(
    "words",
    [
        "experiment=s_sppo_llama3_8b policy=folder policy.path=x",
        "gate=off trainer.lr=1e-3 sampler.stop=[a,b] seed=3",
        "oracle=ensemble oracle@oracle.members.second=pairrm oracle.members.second.path=x oracle.options={}",
        "hardware=h100x8 adapter=lora calibration=reward judge=mini sampling=official",
    ],
)
def test_what_arms_share_is_composed_once_as_hydra_would(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = overrides.parse(words.split())
    by_hydra = OmegaConf.to_yaml(groups.compose_by_hydra([groups.hydra_word(one) for one in parsed]))
    assert OmegaConf.to_yaml(config.compose(parsed)) == by_hydra
    monkeypatch.setattr(config, "compose_by_hydra", lambda *_: pytest.fail("composed again"))
    assert OmegaConf.to_yaml(config.compose(parsed)) == by_hydra, "the first has changed what both are made of"
