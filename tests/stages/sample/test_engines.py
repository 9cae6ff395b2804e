"""Both engines on a random two-layer model, on real prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparring.stages.chat import Chat
from sparring.stages.errors import ConfigError
from sparring.stages.fields import identity
from sparring.stages.sample import engine_transformers
from sparring.stages.sample.engine import Engine, Sampled, cut_at_stop, make_engine, stop_ids
from sparring.stages.sample.engine_args import check
from tests.refusals import refused
from tests.stages.sample.questions import END, QUESTIONS, SEEDS, engine_settings, ids
from tests.tiny import saved, tiny_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="module")
def engines(folder: Path) -> dict[str, Any]:
    """Loaded once, with a tokenizer for the stop texts of one test."""
    made: dict[str, Any] = {
        name: make_engine(name, folder, engine_settings(stop=("never sampled",))) for name in ("vllm", "transformers")
    }
    for engine in made.values():
        engine.settings = engine_settings()
    return made


@pytest.fixture(params=["vllm", "transformers"])
def engine(request: pytest.FixtureRequest, engines: dict[str, Any]) -> Engine:
    engine: Engine = engines[request.param]
    return engine


@pytest.fixture
def changed(engine: Any) -> Any:
    """Give an engine other sampling settings for one test."""
    before = engine.settings

    def change(**changes: Any) -> None:
        engine.settings = engine_settings(**changes)

    yield change
    engine.settings = before


def test_the_same_shard_gives_the_same(engine: Engine, prompt_ids: list[list[int]]) -> None:
    assert engine.generate(prompt_ids, SEEDS) == engine.generate(prompt_ids, SEEDS)


def test_other_shards_give_the_same_in_fp32(engine: Engine, prompt_ids: list[list[int]]) -> None:
    whole = engine.generate(prompt_ids, SEEDS)
    halves = engine.generate(prompt_ids[:4], SEEDS[:4]) + engine.generate(prompt_ids[4:], SEEDS[4:])
    backwards = engine.generate(prompt_ids[::-1], SEEDS[::-1])[::-1]
    assert ids(whole) == ids(halves) == ids(backwards)


def test_responses_differ_and_carry_their_own_seeds(engine: Engine, prompt_ids: list[list[int]]) -> None:
    for responses, seed in zip(engine.generate(prompt_ids, SEEDS), SEEDS, strict=True):
        assert [one.seed for one in responses] == [seed, seed + 1, seed + 2, seed + 3]
        assert len({tuple(one.ids) for one in responses}) == 4


def test_a_response_is_its_seed(engine: Engine, prompt_ids: list[list[int]], changed: Callable[..., None]) -> None:
    whole = engine.generate(prompt_ids, SEEDS)
    changed(k=1)
    alone = engine.generate(prompt_ids, [seed + 2 for seed in SEEDS])
    assert [responses[0] for responses in alone] == [responses[2] for responses in whole]


def test_end_of_turn_is_kept_iff_sampled(
    engine: Engine, prompt_ids: list[list[int]], changed: Callable[..., None]
) -> None:
    whole = engine.generate(prompt_ids, SEEDS)
    third = whole[0][0].ids[3]
    changed(stop_ids=(END, third))
    sampled = engine.generate(prompt_ids, SEEDS)
    first = whole[0][0].ids
    assert sampled[0][0] == Sampled(first[: first.index(third) + 1], "stop", SEEDS[0])
    for one in (one for responses in sampled for one in responses):
        assert not {END, third} & set(one.ids[:-1])
        assert one.finish == ("stop" if one.ids[-1] in (END, third) else "length")
        assert one.finish == "stop" or len(one.ids) == 24


def test_end_of_turn_at_the_last_token_is_a_stop(
    engine: Engine, prompt_ids: list[list[int]], changed: Callable[..., None]
) -> None:
    whole = engine.generate(prompt_ids[:1], SEEDS[:1])[0][0].ids
    at = whole.index(whole[5])
    changed(stop_ids=(END, whole[at]), max_tokens=at + 1)
    assert engine.generate(prompt_ids[:1], SEEDS[:1])[0][0] == Sampled(whole[: at + 1], "stop", SEEDS[0])


def test_greedy_is_equal_in_both(engines: dict[str, Any], prompt_ids: list[list[int]]) -> None:
    greedy = []
    for engine in engines.values():
        before, engine.settings = engine.settings, engine_settings(k=1, temperature=0.0, max_tokens=32)
        greedy.append(ids(engine.generate(prompt_ids, SEEDS)))
        engine.settings = before
    assert greedy[0] == greedy[1]


def test_sampling_follows_the_model(engine: Engine, folder: Path, changed: Callable[..., None]) -> None:
    """First tokens of 4 x 64 draws against the model's own probabilities, on the ids that hold most mass."""
    import torch
    from transformers import AutoModelForCausalLM

    prompt = [1, 9906, 198, 5, 17]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    probs = (logits / 0.25).softmax(-1)
    top = probs.topk(20).indices
    changed(k=64, max_tokens=1, temperature=0.25)
    drawn = [one.ids[0] for rs in engine.generate([prompt] * 4, [0, 10**6, 2 * 10**6, 3 * 10**6]) for one in rs]
    expected = float(probs[top].sum())
    share = sum(token in set(top.tolist()) for token in drawn) / len(drawn)
    assert 0.05 < expected < 0.95
    assert abs(share - expected) < 4 * (expected * (1 - expected) / len(drawn)) ** 0.5
    changed(k=64, max_tokens=1, temperature=0.25, top_p=expected * 0.999)
    nucleus = [one.ids[0] for rs in engine.generate([prompt] * 2, [0, 10**6]) for one in rs]
    assert set(nucleus) <= set(top.tolist()) and len(set(nucleus)) > 5


def test_nothing_is_lost_of_odd_prompts(engine: Engine, prompt_ids: list[list[int]], chat: Chat) -> None:
    for text, rendered in zip(QUESTIONS, prompt_ids, strict=True):
        assert text in chat.tokenizer.decode(rendered)
    assert all(one.ids for responses in engine.generate(prompt_ids, SEEDS) for one in responses)


def test_a_shard_of_several_batches_is_the_same(
    engines: dict[str, Any], prompt_ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engines["transformers"].generate(prompt_ids, SEEDS)
    monkeypatch.setattr(engine_transformers, "BATCH_TOKENS", 4 * 300)
    parts = list(engine_transformers.groups([len(one) + 24 for one in prompt_ids], 300))
    assert len(parts) > 2 and [a for a, _ in parts[1:]] == [b for _, b in parts[:-1]]
    assert engines["transformers"].generate(prompt_ids, SEEDS) == whole


def test_stop_ids(folder: Path, tmp_path: Path) -> None:
    assert stop_ids(folder, END, END) == [END]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 5]}')
    assert stop_ids(tmp_path, 5, 9) == [5, 7, 9]
    assert stop_ids(tmp_path / "none", None, 9) == [9]


def test_logprobs_are_the_policys_own(
    engine: Engine, folder: Path, prompt_ids: list[list[int]], changed: Callable[..., None]
) -> None:
    """Before temperature, top_p and min_p: equal to the model's own log-softmax."""
    import torch
    from transformers import AutoModelForCausalLM

    changed(k=2, max_tokens=6, temperature=0.5, top_p=0.8, min_p=0.01, logprobs=True)
    prompt = prompt_ids[0]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for one in engine.generate([prompt], SEEDS[:1])[0]:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + one.ids])).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(-1, torch.tensor(one.ids)[:, None])[:, 0]
        assert one.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
    changed()
    assert engine.generate([prompt], SEEDS[:1])[0][0].logprobs is None


def test_min_p_leaves_the_likely(engine: Engine, folder: Path, changed: Callable[..., None]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompt = [1, 9906, 198, 5, 17]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        probs = (model(torch.tensor([prompt])).logits[0, -1].double() / 0.25).softmax(-1)
    ordered = probs.sort(descending=True).values
    least = float((ordered[7] + ordered[8]) / 2 / ordered[0])
    changed(k=64, max_tokens=1, temperature=0.25, min_p=least)
    drawn = {one.ids[0] for one in engine.generate([prompt], [0])[0]}
    assert drawn <= set(probs.topk(8).indices.tolist()) and len(drawn) > 3


def test_without_seeds_two_calls_differ(
    engine: Engine, prompt_ids: list[list[int]], changed: Callable[..., None]
) -> None:
    changed(reproducible=False, k=2)
    one, two = engine.generate(prompt_ids, SEEDS), engine.generate(prompt_ids, SEEDS)
    assert ids(one) != ids(two)
    assert all(sampled.seed is None for responses in one for sampled in responses)


def test_a_stop_text_ends_a_response(
    engine: Engine, chat: Chat, prompt_ids: list[list[int]], changed: Callable[..., None]
) -> None:
    """The ids keep the text that stopped them; the stage cuts the text before it."""
    changed(k=1)
    free = engine.generate(prompt_ids[:1], SEEDS[:1])[0][0]
    wanted = next(i for i in range(3, 20) if chat.decode([free.ids[i]]).strip().isalpha())
    text = chat.decode([free.ids[wanted]]).strip()
    first = next(i for i in range(len(free.ids)) if text in chat.decode(free.ids[: i + 1]))
    changed(k=1, stop=(text, "zzz"))
    stopped = engine.generate(prompt_ids[:1], SEEDS[:1])[0][0]
    assert stopped == Sampled(free.ids[: first + 1], "stop_text", SEEDS[0])
    assert cut_at_stop(chat.decode(stopped.ids), (text, "zzz")) == chat.decode(free.ids).partition(text)[0]


def test_what_is_passed_on_is_checked_by_name() -> None:
    given = {"max_num_seqs": 8, "quantization": "fp8"}
    check("vllm", given)
    assert identity(engine_settings(engine_args=given).sampler)["engine_args"] == {"quantization": "fp8"}
    for name, said in (
        ("max_nun_seqs", "max_num_seqs?"),
        ("dtype", "sampler.dtype"),
        ("trust_remote_code", "code"),
    ):
        with refused(ConfigError, f"sampler.engine_args.{name}", said):
            check("vllm", {name: 1})
    with refused(ConfigError, "server", "max_num_seqs"):
        check("server", {"max_num_seqs": 8})


def test_a_recurrent_model_samples_k_responses(tmp_path: Path) -> None:
    """Its cache holds states that transformers does not repeat; greedy against the model without any cache."""
    import torch
    from transformers import FalconH1Config, FalconH1ForCausalLM

    shape: dict[str, Any] = {"vocab_size": 49152, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}
    mamba: dict[str, Any] = {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    }
    torch.manual_seed(0)
    folder = saved(FalconH1ForCausalLM(FalconH1Config(**shape, **heads, **mamba)), tmp_path)
    engine: Any = make_engine("transformers", folder, engine_settings(k=2, temperature=0.0, max_tokens=5))
    prompts = [[5, 600, 7000, 8, 9], [17, 18]]
    for prompt, responses in zip(prompts, engine.generate(prompts, [0, 10]), strict=True):
        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(5):
                tokens.append(int(engine.model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
        assert ids([responses]) == [[tokens[len(prompt) :]] * 2]
