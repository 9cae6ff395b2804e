"""The oracle `llm` by vLLM, on a random two-layer model, against transformers' own forward."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparring.pipeline.store.files import external
from sparring.stages.annotate import oracles
from sparring.stages.annotate.config import SCORE, JudgeConfig
from sparring.stages.annotate.judge_engine import JudgeEngine, letter_ids
from sparring.stages.annotate.oracle import Duel
from sparring.stages.annotate.oracles import OracleContext
from sparring.stages.annotate.score import Scorer
from sparring.stages.chat import Chat
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.step import Shard
from tests import settings
from tests.artifacts import as_input, as_job, samples_table
from tests.refusals import refused
from tests.stages.annotate.oracles.llm import (
    DUELS,
    FRANCE,
    HOSTILE,
    MOST,
    first_token_log_probs,
    options,
    shown,
)
from tests.stages.sample.families import FAMILIES, make_tokenizer
from tests.tiny import tiny_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("judge") / "tiny")


@pytest.fixture(scope="module")
def engine(folder: Path) -> JudgeEngine:
    made = oracles.load("llm", options(), OracleContext(folders={"judge": folder}))
    assert isinstance(made, JudgeEngine)
    return made


# vLLM in this process


def test_logits_are_those_of_transformers_in_both_orders(engine: JudgeEngine, folder: Path) -> None:
    tokenizer, log_probs = first_token_log_probs(folder, [shown(duel) for duel in DUELS])
    a, b = (log_probs[:, tokenizer.convert_tokens_to_ids([x, f"Ġ{x}"])].logsumexp(-1) for x in "AB")
    wanted = (a - b).numpy()
    found = engine(DUELS)
    assert np.abs(found.logits - wanted).max() < 1e-3
    assert np.ptp(wanted) > 0.05 and np.abs(wanted).min() > 0.01
    assert not found.truncated.any()


def test_no_verdict_depends_on_the_others(engine: JudgeEngine) -> None:
    together = engine(DUELS)
    assert engine(DUELS).logits.tolist() == together.logits.tolist()
    assert engine(DUELS[::-1]).logits[::-1] == pytest.approx(together.logits, abs=1e-4)
    assert [engine([duel]).logits[0] for duel in DUELS] == pytest.approx(together.logits, abs=1e-4)
    assert engine([]).logits.shape == engine([]).truncated.shape == (0,)


def test_long_texts_are_cut_and_flagged(engine: JudgeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    ask = engine._logits
    monkeypatch.setattr(engine, "_logits", lambda rows: asked.extend(rows) or ask(rows))
    long = [Duel(FRANCE, "yes " * 900, "no 🌷 " * 900), Duel((("user", "why " * 900),), "Paris.", "Rome."), DUELS[0]]
    found = engine(long)
    assert found.truncated.tolist() == [True, True, False] and np.isfinite(found.logits).all()
    assert [MOST - 3 <= len(ids) <= MOST for ids in asked] == [True, True, False]
    both, prompt, _ = (engine.chat.tokenizer.decode(ids) for ids in asked)
    sizes = [len(engine.chat.response_ids([text * both.count(text)])[0]) for text in ("yes ", "no 🌷 ")]
    assert min(sizes) > 100 and abs(sizes[0] - sizes[1]) < 8
    assert "Paris." in prompt and "Rome." in prompt and 200 < prompt.count("why ") < MOST
    for text in (both, prompt):  # nothing of the question itself is lost
        assert text.rstrip().endswith("Answer with the single letter A or B.<|im_end|>\n<|im_start|>assistant")


def test_control_tokens_in_a_text_stay_text(engine: JudgeEngine) -> None:
    def controls(duel: Duel) -> list[int]:
        return [i for i in engine.ids(shown(duel)) if i in engine.chat.control_ids]

    plain = controls(DUELS[0])
    for hostile in (Duel(FRANCE, HOSTILE, "x"), Duel(FRANCE, "x", HOSTILE), Duel((("user", HOSTILE),), "x", "y")):
        assert controls(hostile) == plain
        assert HOSTILE in engine.chat.tokenizer.decode(engine.ids(shown(hostile)))
    long = Duel(FRANCE, HOSTILE * 90, HOSTILE * 90)
    assert engine([long]).truncated.all()
    assert [i for i in engine.ids.__wrapped__(shown(long)) if i in engine.chat.control_ids] == plain


def test_the_step_scores_with_it(engine: JudgeEngine, folder: Path, tmp_path: Path) -> None:
    samples = as_input("samples", tmp_path / "samples", [samples_table({"a": ["x", "four", "x "], "b": ["1", ""]})])
    job = as_job(SCORE, settings.score("llm", **options()), [samples, external("judge", folder)], tmp_path)
    scorer = Scorer(job)
    assert isinstance(scorer.oracle, JudgeEngine) and scorer.oracle.llm is engine.llm  # loaded once
    part = scorer(Shard(index=0))
    a = part.table.to_pylist()[0]
    prompt = (("user", "Say a."),)
    forth, back = engine([Duel(prompt, "x", "four"), Duel(prompt, "four", "x")]).logits
    assert (a["logits"][1], a["swapped"][1]) == pytest.approx((forth, back), abs=1e-4)
    assert a["logits"][2] == 0.0 and part.stats["duels"] == 4


def test_the_letters_of_other_tokenizers() -> None:
    for name in ("gemma-2", "qwen2.5"):
        chat = Chat(make_tokenizer(FAMILIES[name]))
        chat.tokenizer.add_tokens(["A", " A", "\nA", "AB", "a", " Α"])  # the last one is Greek
        wanted = {"A", " A", "\nA", "\u2581A"} & {chat.tokenizer.decode([i]) for i in range(len(chat.tokenizer))}
        ids = letter_ids(chat, "A", Path("x"))
        assert {chat.tokenizer.decode([i]) for i in ids} >= wanted and len(ids) >= 3
        assert all(chat.tokenizer.decode([i]).strip() == "A" for i in ids)
        with refused(DataError, "x: ", "Ω"):
            letter_ids(chat, "Ω", Path("x"))


def test_folders_that_cannot_judge(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "short")
    with refused(ConfigError, "max_tokens=2048", "2048 tokens", "2047"):
        oracles.load("llm", options(max_tokens=2048), OracleContext(folders={"judge": tmp_path / "short"}))
    (tmp_path / "short" / "config.json").write_text("[")
    with refused(DataError, "config.json"):
        oracles.load("llm", options(), OracleContext(folders={"judge": tmp_path / "short"}))
    (tmp_path / "short" / "model.safetensors").unlink()
    (tmp_path / "short" / "pytorch_model.bin").write_bytes(b"")
    with refused(DataError, "*.safetensors"):
        oracles.load("llm", options(), OracleContext(folders={"judge": tmp_path / "short"}))


# Options


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": "{prompt} {first}"}, ("oracle.options.template", "{second}")),
        ({"max_tokens": 63}, ("oracle.options.max_tokens=63", "64")),
        ({"model": ""}, ("oracle.options.model",)),
        ({"dtype": "float16"}, ("oracle.options.dtype=float16", "float32", "bfloat16")),
        ({"flor": 1}, ("oracle.options.flor", "llm")),
    ],
)
def test_a_plan_refuses_wrong_options(changes: dict[str, Any], said: tuple[str, ...]) -> None:
    with refused(ConfigError, *said):
        oracles.options("llm", options(**changes))


def test_servers_need_a_name_and_a_name_needs_servers() -> None:
    with refused(ConfigError, "oracle.urls", "options.model=NAME"):
        oracles.load(
            "llm", options(), OracleContext(folders={}, judge=JudgeConfig(kind="llm", urls=("http://127.0.0.1:1",)))
        )
    with refused(ConfigError, "oracle.options.model=x", "urls"):
        oracles.load("llm", options(model="x"), OracleContext(folders={}))


# Servers that answer as told
