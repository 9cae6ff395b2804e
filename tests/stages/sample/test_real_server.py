"""The engine for servers against vLLM's own on loopback. It takes a minute to start: all tests share one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparring.pipeline.store.files import external
from sparring.stages.chat import Chat
from sparring.stages.errors import DataError
from sparring.stages.sample import stage
from sparring.stages.sample.engine import Sampled, cut_at_stop, make_engine
from sparring.stages.sample.stage import SAMPLES_SCHEMA, Sampler
from tests.artifacts import run_step
from tests.refusals import refused
from tests.stages.sample.jobs import jsonl, prompts_input, sample_job
from tests.stages.sample.questions import END, SEEDS, engine_settings, ids
from tests.stages.sample.served import NAME, engine
from tests.stages.stand_in import dead_url, vllm_server
from tests.tiny import tiny_policy

MISLEADING = {"top_k": 1, "repetition_penalty": 3.0, "temperature": 0.1, "min_p": 0.9}
"""What a policy recommends for itself must not change how it is sampled."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")
    recommended = folder / "generation_config.json"
    recommended.write_text(json.dumps({**json.loads(recommended.read_text()), "do_sample": True, **MISLEADING}))
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    with vllm_server(folder, NAME, log, "--max-model-len", "512", "--no-enable-chunked-prefill") as url:
        yield url


@pytest.mark.slow
def test_greedy_is_that_of_transformers(url: str, folder: Path, prompt_ids: list[list[int]]) -> None:
    greedy: dict[str, Any] = {"k": 1, "temperature": 0.0, "max_tokens": 32}
    wanted = make_engine("transformers", folder, engine_settings(**greedy)).generate(prompt_ids, SEEDS)
    assert ids(engine(folder, url, **greedy).generate(prompt_ids, SEEDS)) == ids(wanted)


@pytest.mark.slow
def test_k_responses_by_their_seeds_in_the_order_of_the_prompts(
    url: str, folder: Path, prompt_ids: list[list[int]]
) -> None:
    served = make_engine("server", folder, engine_settings("server", urls=(url,)))
    found = served.generate(prompt_ids, SEEDS)
    for responses, seed in zip(found, SEEDS, strict=True):
        assert [one.seed for one in responses] == [seed, seed + 1, seed + 2, seed + 3]
        assert len({tuple(one.ids) for one in responses}) == 4
        assert all(one.finish == ("stop" if one.ids[-1] == END else "length") for one in responses)
        assert all(len(one.ids) == 24 or one.finish == "stop" for one in responses)
    assert served.generate(prompt_ids, SEEDS) == found
    assert served.generate(prompt_ids[::-1], SEEDS[::-1])[::-1] == found
    alone = engine(folder, url, k=1).generate(prompt_ids, [seed + 2 for seed in SEEDS])
    assert [responses[0] for responses in alone] == [responses[2] for responses in found]


@pytest.mark.slow
def test_without_seeds_two_calls_differ(url: str, folder: Path, prompt_ids: list[list[int]]) -> None:
    served = engine(folder, url, k=2, reproducible=False)
    one, two = served.generate(prompt_ids, SEEDS), served.generate(prompt_ids, SEEDS)
    assert ids(one) != ids(two)
    assert all(sampled.seed is None for responses in one for sampled in responses)


@pytest.mark.slow
def test_logprobs_are_the_policys_own(url: str, folder: Path, prompt_ids: list[list[int]]) -> None:
    """Before temperature, top_p and min_p: equal to the model's own log-softmax."""
    import torch
    from transformers import AutoModelForCausalLM

    prompt = prompt_ids[0]
    served = engine(folder, url, k=2, max_tokens=6, temperature=0.5, top_p=0.8, min_p=0.01, logprobs=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for one in served.generate([prompt], SEEDS[:1])[0]:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + one.ids])).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(-1, torch.tensor(one.ids)[:, None])[:, 0]
        assert one.logprobs == pytest.approx(wanted.tolist(), abs=1e-3)


@pytest.mark.slow
def test_the_three_ends_of_a_response(url: str, folder: Path, chat: Chat, prompt_ids: list[list[int]]) -> None:
    """The ids keep the token or the text that ended them."""

    def one(**changes: Any) -> Sampled:
        return engine(folder, url, k=1, **changes).generate(prompt_ids[:1], SEEDS[:1])[0][0]

    free = one()
    assert (len(free.ids), free.finish, free.logprobs) == (24, "length", None)
    assert one(stop_ids=(END, free.ids[3])) == Sampled(free.ids[: free.ids.index(free.ids[3]) + 1], "stop", SEEDS[0])
    wanted = next(i for i in range(3, 20) if chat.decode([free.ids[i]]).strip().isalpha())
    text = chat.decode([free.ids[wanted]]).strip()
    first = next(i for i in range(len(free.ids)) if text in chat.decode(free.ids[: i + 1]))
    stopped = one(stop=(text, "zzz"))
    assert stopped == Sampled(free.ids[: first + 1], "stop_text", SEEDS[0])
    assert cut_at_stop(chat.decode(stopped.ids), (text, "zzz")) == chat.decode(free.ids).partition(text)[0]


@pytest.mark.slow
def test_another_policy_is_refused(url: str, folder: Path, tmp_path: Path) -> None:
    start = f"`vllm serve {tmp_path} --served-model-name sparring-00000000 --dtype float32`"
    with refused(DataError, url, f"{NAME} ({folder})", f"sparring-00000000 ({tmp_path})", start):
        engine(tmp_path, url, policy_name="sparring-00000000")
    assert engine(tmp_path, url).servers[0].model == NAME  # known by its name alone, as from another machine


@pytest.mark.slow
def test_a_dead_url_beside_a_live_one(url: str, folder: Path, prompt_ids: list[list[int]]) -> None:
    whole = engine(folder, url).generate(prompt_ids, SEEDS)
    assert engine(folder, dead_url(), url).generate(prompt_ids, SEEDS) == whole


@pytest.mark.slow
def test_what_the_server_cannot_hold_is_refused(url: str, folder: Path) -> None:
    with refused(DataError, "12 tokens", "sampler.max_tokens=24", "--max-model-len, --context-length", "512"):
        engine(folder, url).generate([[5] * 500], [0])
    with refused(DataError, "HTTP 400", "512"):
        engine(folder, url).generate([[5] * 600], [0])


@pytest.mark.slow
def test_the_step_makes_the_table_of_every_engine(url: str, folder: Path, tmp_path: Path) -> None:
    prompts = prompts_input(jsonl(tmp_path / "p.jsonl", [f"Question {i}: {i} + {i}?" for i in range(7)]), folder)
    job = sample_job(prompts, folder, engine="server", rows=5, urls=(url,))
    sampler = Sampler(job)
    assert sampler.engine.settings.policy_name == f"sparring-{external('policy', folder).digest[:8]}"  # type: ignore[attr-defined]
    tables, _, summary = run_step(job, sampler, stage.shards, stage.finish)
    assert [t.num_rows for t in tables] == [4, 1] and all(t.schema == SAMPLES_SCHEMA for t in tables)
    assert (summary["prompts"], summary["responses"]) == (5, 15)
    for row in (row for table in tables for row in table.to_pylist()):
        assert all(one["text"] == sampler.chat.decode(one["ids"]) for one in row["responses"])
