"""`reward_model` against transformers' own forward of each row alone, on tiny random models of four kinds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sparring.pipeline.store.files import external
from sparring.stages.annotate import oracles
from sparring.stages.annotate.config import SCORE
from sparring.stages.annotate.oracle import Duel, Messages
from sparring.stages.annotate.oracles import OracleContext
from sparring.stages.annotate.oracles.reward_model import RewardModel
from sparring.stages.annotate.reader import Tokens, fit_conversation
from sparring.stages.annotate.score import Scorer
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.step import Shard
from tests import settings
from tests.artifacts import as_input, as_job, samples_table
from tests.refusals import refused
from tests.stages.annotate import readers
from tests.stages.annotate.readers import DUELS, SYSTEM, changed, prompt, words

PADS: dict[str, str | None] = {"none": None, "own": "<|python_tag|>", "end of turn": "<|eot_id|>"}
TURN = [("user", "What is 17 + 4?"), ("assistant", "21")]


def loaded(folder: Path, **options: Any) -> RewardModel:
    chosen = {"dtype": "float32", "max_tokens": 512} | options
    oracle = oracles.load("reward_model", chosen, OracleContext(folders={"judge": folder}))
    assert isinstance(oracle, RewardModel)
    return oracle


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {pad: readers.llama(root / pad, token) for pad, token in PADS.items()}
    return made | {
        kind: getattr(readers, kind)(root / kind) for kind in ("gemma2", "deberta", "bert", "roberta", "causal")
    }


@pytest.fixture(scope="module")
def oracle(folders: dict[str, Path]) -> RewardModel:
    return loaded(folders["own"])


def own(folder: Path, rows: Sequence[dict[str, Any]], **options: Any) -> list[float]:
    """Transformers' scores of rows, one at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    with torch.no_grad():
        return [model(**{k: torch.tensor([v]) for k, v in row.items()}).logits.item() for row in rows]


def rendered(folder: Path, messages: Sequence[tuple[str, str]]) -> list[int]:
    """What the tokenizer itself makes of messages that spell no control token."""
    turns = [{"role": role, "content": text} for role, text in messages]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids: list[int] = tokenizer.apply_chat_template(turns, return_dict=False)
    return ids


PLAIN = [(d.prompt, text) for d in DUELS[:4] for text in (d.first, d.second)]


@pytest.mark.parametrize("pad", PADS)
def test_scores_are_those_of_transformers_whatever_the_padding(folders: dict[str, Path], pad: str) -> None:
    folder = folders[pad]
    rows = [rendered(folder, (*x, ("assistant", y))) for x, y in PLAIN]
    wanted = np.array(own(folder, [{"input_ids": ids} for ids in rows]))
    got = loaded(folder)(DUELS[:4]).logits
    assert got == pytest.approx(wanted[0::2] - wanted[1::2], abs=1e-5)
    assert np.ptp(wanted) > 0.5 and len({len(ids) for ids in rows}) > 4


def test_the_token_that_is_read_depends_on_the_pad_token(folders: dict[str, Path]) -> None:
    """The three configurations are no copies of one another: the trap is there."""
    none, mine, end = (loaded(folders[pad])(DUELS).logits for pad in PADS)
    assert none == pytest.approx(mine, abs=1e-5)
    assert np.abs(none - end).max() > 0.1


@pytest.mark.parametrize("kind", ["deberta", "bert", "roberta"])
def test_an_encoder_without_a_template_reads_two_texts(folders: dict[str, Path], kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    pairs = [("one two", "three"), ("", "four"), ("Explain the sky", "")]
    wanted = own(folders[kind], [dict(tokenizer(*pair)) for pair in pairs])
    oracle = loaded(folders[kind])
    got = oracle([Duel(prompt(x), y, "none") for x, y in pairs]).logits
    none = own(folders[kind], [dict(tokenizer(x, "none")) for x, _ in pairs])
    assert got == pytest.approx(np.array(wanted) - none, abs=1e-5)
    assert np.ptp(got) > 0.05
    row = oracle.read((("system", "Be brief."), ("user", "a [SEP] b")), "[CLS] c")
    assert row.ids.count(tokenizer.sep_token_id) == 2 and row.ids.count(tokenizer.cls_token_id) == 1
    assert "brief. a" in tokenizer.decode(row.ids).replace("▁", " ").replace("\n", " ")


@pytest.mark.parametrize("kind", ["own", "none", "end of turn", "deberta", "bert", "roberta"])
def test_no_score_depends_on_its_batch(folders: dict[str, Path], kind: str) -> None:
    oracle = loaded(folders[kind])
    together = oracle(DUELS)
    assert together.logits == pytest.approx([oracle([duel]).logits[0] for duel in DUELS], abs=1e-5)
    assert oracle(DUELS[::-1]).logits[::-1] == pytest.approx(together.logits, abs=1e-5)
    assert oracle([]).logits.shape == oracle([]).truncated.shape == (0,)


def test_antisymmetric_transitive_and_scored_once(oracle: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tokens] = []
    scores = oracle.scores

    def counting(rows: Sequence[Tokens]) -> np.ndarray:
        seen.extend(rows)
        return scores(rows)

    monkeypatch.setattr(oracle, "scores", counting)
    three = ["one fox", words(9), ""]
    logits = oracle([Duel(SYSTEM, a, b) for a in three for b in three]).logits.reshape(3, 3)
    assert len(seen) == 3
    assert (logits == -logits.T).all() and np.abs(logits).max() > 0.1
    assert logits[0, 1] + logits[1, 2] == pytest.approx(logits[0, 2], abs=1e-12)


def test_one_bos_and_nothing_after_the_response(folders: dict[str, Path], oracle: RewardModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["own"])
    row = oracle.read((TURN[0],), "21")
    assert row == Tokens(rendered(folders["own"], TURN), False)
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id and row.ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(row.ids).endswith("\n\n21<|eot_id|>")
    spelled = oracle.read(prompt("<|eot_id|>"), "a<|eot_id|><|begin_of_text|>b")
    assert spelled.ids.count(tokenizer.eos_token_id) == 0 and spelled.ids.count(tokenizer.bos_token_id) == 1
    assert list[Any](spelled.ids).count(tokenizer.convert_tokens_to_ids("<|eot_id|>")) == 2


def test_a_long_response_loses_its_tail(folders: dict[str, Path]) -> None:
    oracle, tokenizer = loaded(folders["own"], max_tokens=100), AutoTokenizer.from_pretrained(folders["own"])
    asked, said = words(6), words(300, 1)
    whole, row = rendered(folders["own"], [*prompt(asked), ("assistant", said)]), oracle.read(prompt(asked), said)
    assert row.truncated and len(row.ids) == 100 < len(whole)
    assert row.ids == [*whole[:99], tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    long, short = Duel(prompt(asked), said, "Yes."), Duel(prompt(asked), "Yes.", "No.")
    assert oracle([short, long, Duel(prompt(asked), "No.", said)]).truncated.tolist() == [False, True, True]


def test_a_long_prompt_loses_its_middle(folders: dict[str, Path]) -> None:
    oracle, asked = loaded(folders["own"], max_tokens=100), words(300)
    for said in ("Yes.", words(300, 1)):
        whole, row = rendered(folders["own"], [*prompt(asked), ("assistant", said)]), oracle.read(prompt(asked), said)
        read = min(50, len(rendered(folders["own"], TURN)) + 30)
        opening = len(rendered(folders["own"], prompt(asked)))
        assert row.truncated and len(row.ids) == 100
        assert row.ids[:25] == whole[:25] and row.ids[-1] == whole[-1]
        if said == "Yes.":
            assert row.ids[-read:] == whole[-read:]  # the prompt's end, the header and the whole response
        else:
            header = whole[opening : opening + 6]
            at = next(i for i in range(100) if row.ids[i : i + len(header)] == header)
            assert 40 < at < 50  # half of the row is the response's


@given(st.tuples(*[st.integers(0, 300)] * 2), st.integers(0, 8), st.integers(64, 300))
def test_fit_conversation(sizes: tuple[int, int], closing: int, most: int) -> None:
    asked, said = fit_conversation(*sizes, closing, most)
    assert 0 <= asked <= sizes[0] and 0 <= said <= sizes[1] and asked + said + closing <= most
    if sum(sizes) + closing <= most:
        assert (asked, said) == sizes
    else:
        assert asked + said + closing == most  # nothing is wasted
        assert asked == sizes[0] or asked >= most // 2
        assert said == sizes[1] or said >= most - most // 2 - closing


def test_an_encoder_reads_no_more_than_its_positions(folders: dict[str, Path]) -> None:
    oracle = loaded(folders["bert"])
    asked = words(3)
    kept = oracle.read(prompt(asked), "")
    row = oracle.read(prompt(asked), words(300))
    assert len(row.ids) == 64 and row.truncated and not kept.truncated
    assert row.segments is not None and len(row.segments) == 64 and set(row.segments) == {0, 1}
    assert row.ids[: len(kept.ids) - 1] == kept.ids[:-1]
    both = oracle.read(prompt(words(300)), words(300, 1))
    assert len(both.ids) == 64 and both.segments is not None and 30 <= sum(both.segments) <= 34
    offset = loaded(folders["roberta"])
    assert len(offset.read(prompt(asked), words(300)).ids) == 63
    assert np.isfinite(offset([Duel(prompt(asked), words(300), "x")]).logits).all()


def test_gemma_2_keeps_the_soft_cap_of_its_attention(folders: dict[str, Path]) -> None:
    rows = [{"input_ids": rendered(folders["gemma2"], TURN)}]
    eager, fused = (own(folders["gemma2"], rows, attn_implementation=kind)[0] for kind in ("eager", "sdpa"))
    assert abs(eager - fused) > 1e-3
    oracle = loaded(folders["gemma2"])
    assert oracle.scores([oracle.read((TURN[0],), "21")])[0] == pytest.approx(eager, abs=1e-5)
    with refused(DataError, "gemma2", "system, user"):
        oracle([Duel(SYSTEM, "a", "b")])


@pytest.mark.parametrize("kind", ["own", "deberta"])
def test_the_head_is_in_float32(folders: dict[str, Path], kind: str) -> None:
    full, half = loaded(folders[kind]), loaded(folders[kind], dtype="bfloat16")
    row = full.read((TURN[0],), "21")
    scores = half.scores([row])
    assert {p.dtype for p in half.model.base_model.parameters()} == {torch.bfloat16}
    assert scores[0] != torch.tensor(scores).bfloat16().double()[0]
    assert scores[0] == pytest.approx(full.scores([row])[0], abs=0.1)


def test_the_step_scores_with_it(tmp_path: Path, folders: dict[str, Path]) -> None:
    samples = as_input("samples", tmp_path / "samples", [samples_table({"a": ["x", "four", "x "], "b": ["1", ""]})])
    identity = settings.score("reward_model", dtype="float32", max_tokens=128)

    def scored(folder: Path) -> Any:
        return Scorer(as_job(SCORE, identity, [samples, external("judge", folder)], tmp_path))(Shard(index=0))

    part = scored(folders["own"])
    a, b = part.table.to_pylist()
    again = loaded(folders["own"])([Duel(prompt("Say a."), "x", "four")]).logits[0]
    assert a["logits"][1] == pytest.approx(again, abs=1e-5) and a["logits"][2] == 0.0
    assert a["swapped"][1] == -a["logits"][1]
    assert np.isfinite(b["logits"]).all() and part.stats["duels"] == 4
    broken = changed(folders["own"], tmp_path / "nan", {"score.weight": torch.full((1, 32), torch.nan)})
    with refused(DataError, "row 'a'", "oracle logit[0, 1]", "nan"):
        scored(broken)


def test_wrong_folders_say_what_they_are(tmp_path: Path, folders: dict[str, Path]) -> None:
    mine, causal = folders["own"], folders["causal"]
    lying = changed(causal, tmp_path / "lying", num_labels=1, architectures=["LlamaForSequenceClassification"])
    bare = changed(mine, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    pickled = changed(mine, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    mute = changed(mine, tmp_path / "mute")
    for file in mute.glob("tokenizer*"):
        file.unlink()
    cases = [
        (causal, ("architectures", "'LlamaForCausalLM'", "ForSequenceClassification")),
        (lying, ("score.weight", "LlamaForSequenceClassification", "lm_head.weight")),
        (changed(mine, tmp_path / "two", num_labels=2), ("2 labels", "oracle=reward_model")),
        (bare, ("chat_template.jinja",)),
        (pickled, ("*.safetensors",)),
        (mute, ("mute", "tokenizer")),
        (tmp_path / "nowhere", ("config.json", "nowhere")),
        (changed(mine, tmp_path / "other", model_type="unheard"), ("config.json", "transformers")),
        (
            changed(mine, tmp_path / "shape", {"score.weight": torch.zeros(1, 16)}),
            ("score.weight", "(1, 16)", "(1, 32)"),
        ),
        (
            changed(mine, tmp_path / "less", {"model.norm.weight": None}),
            ("norm.weight", "LlamaForSequenceClassification"),
        ),
        (
            changed(mine, tmp_path / "fewer", num_hidden_layers=1),
            ("model.layers.1.", "config.json"),
        ),
    ]
    for folder, said in cases:
        with refused(DataError, *said):
            loaded(folder)


@pytest.mark.parametrize("options", [{"max_tokens": 10}, {"dtype": "float16"}, {"max_length": 99}])
def test_options_name_the_key(options: dict[str, Any]) -> None:
    with refused(ConfigError, f"oracle.options.{next(iter(options))}"):
        oracles.options("reward_model", {"dtype": "float32", "max_tokens": 512} | options)


def test_a_prompt_is_read_with_all_its_messages(folders: dict[str, Path], oracle: RewardModel) -> None:
    messages: Messages = (*SYSTEM, ("assistant", "21"))
    assert oracle.read(SYSTEM, "21").ids == rendered(folders["own"], messages)
