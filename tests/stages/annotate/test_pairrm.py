"""PairRM: against llm-blender's own classes on random tiny checkpoints of both layouts, and what they do not do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sparring.stages.annotate.config import SCORE
from sparring.stages.annotate.oracle import Duel
from sparring.stages.annotate.pairrm import (
    CANDIDATE_MOST,
    FIRST,
    SECOND,
    SOURCE,
    SOURCE_MOST,
    PairRM,
    PairTokens,
    render,
)
from sparring.stages.annotate.reader import Limits, batches
from sparring.stages.annotate.score import Scorer
from sparring.stages.annotate.winrate import aggregate_scores, debiased_logits
from sparring.stages.errors import DataError
from sparring.stages.step import Shard
from tests import settings
from tests.artifacts import as_input, as_job, samples_table
from tests.data import each_data
from tests.refusals import refused
from tests.stages.annotate.blender import hf, llm_blender, official

MADE: dict[str, Callable[[Path], Path]] = {"official": official, "hf": hf}
SENTENCES = (
    "Explain the sky and why it is blue in the morning",
    "to a child who asks about the number of colours",
)
WORDS = " ".join(SENTENCES).split()


def prompt(text: str) -> tuple[tuple[str, str], ...]:
    return (("user", text),)


def words(count: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


DUELS = [
    Duel(prompt(words(n, n)), words(a, a), words(b, b + 1))
    for n, a, b in [(5, 9, 3), (30, 2, 40), (1, 1, 1), (9, 60, 60)]
]


@pytest.fixture(scope="module")
def blender() -> Any:
    return llm_blender()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, blender: Any) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MADE.items()}


@pytest.fixture(scope="module", params=list(MADE))
def oracle(request: pytest.FixtureRequest, folders: dict[str, Path]) -> PairRM:
    return PairRM(folders[request.param], "float32")


@pytest.fixture(scope="module")
def ranker(blender: Any, folders: dict[str, Path]) -> Any:
    made = blender.Blender()
    made.loadranker(str(folders["official"]), device="cpu")
    made.blender_config.use_tqdm = False
    return made


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path]) -> PairRM:
    return PairRM(folders["official"], "float32")


def padded(rows: list[PairTokens]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.zeros((len(rows), max(len(row.ids) for row in rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
    return ids, torch.tensor([[j < len(row.ids) for j in range(ids.shape[1])] for row in rows]).long()


def test_logits_for_the_same_ids_official(ranker: Any, ours: PairRM) -> None:
    for row in ours.rows(DUELS):
        cuts = (row.places[1] - 1, row.places[2] - 1, len(row.ids))
        parts = [torch.tensor([row.ids[a:b]]) for a, b in zip((0, *cuts), cuts, strict=False)]
        with torch.no_grad():
            wanted = ranker.ranker._forward(*(t for part in parts for t in (part, torch.ones_like(part))))["logits"]
        assert ours.scores([row]).item() == pytest.approx(wanted.item(), abs=1e-5)
    assert np.ptp(ours(DUELS).logits) > 0.1


def test_logits_for_the_same_ids_hf(folders: dict[str, Path]) -> None:
    from llm_blender.pair_ranker.pairrm import DebertaV2PairRM

    model, oracle = DebertaV2PairRM.from_pretrained(folders["hf"]).eval(), PairRM(folders["hf"], "float32")
    rows = oracle.rows(DUELS)
    ids, there = padded(rows)
    with torch.no_grad():
        wanted = model(ids, attention_mask=there, return_dict=True).logits
    assert torch.allclose(oracle.scores(rows), wanted, atol=1e-5, rtol=0)
    assert np.allclose(oracle(DUELS).logits, wanted.numpy(), atol=1e-5, rtol=0)


def cases(data: Path) -> list[tuple[str, list[str]]]:
    """Prompts with two responses each, short enough for llm-blender to cut none."""
    found = []
    for line in (data / "ultrafeedback" / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        texts = [row["prompt"], row["chosen"], row["rejected"]]
        if (
            all(isinstance(text, str) and 20 < len(text) < 700 for text in texts)
            and texts[1].strip() != texts[2].strip()
        ):
            found.append((texts[0], texts[1:]))
    assert len(found) >= 12
    return found[:12]


@each_data
def test_rank_on_whole_texts(ranker: Any, ours: PairRM, data: Callable[[], Path]) -> None:
    """`rank`'s scores are those of `win_rate=aggregate_score`."""
    found = cases(data())
    prompts = [text for text, _ in found]
    candidates = [[*both, both[0][: len(both[0]) // 2]] for _, both in found]
    wanted = ranker.rank(prompts, candidates, return_scores=True, batch_size=1)
    for text, three, scores in zip(prompts, candidates, wanted, strict=True):
        logits = np.zeros((3, 3))
        for i in range(3):
            for j in range(3):
                logits[i, j] = 0 if i == j else ours([Duel(prompt(text), three[i], three[j])]).logits[0]
        assert aggregate_scores(debiased_logits(logits, logits.T)) == pytest.approx(scores, abs=1e-5)


@each_data
def test_compare_is_the_sum_of_both_orders(ranker: Any, ours: PairRM, data: Callable[[], Path]) -> None:
    found = cases(data())
    prompts, first, second = ([row[0] for row in found], [row[1][0] for row in found], [row[1][1] for row in found])
    wanted = ranker.compare(prompts, first, second, return_logits=True, batch_size=1)
    forth = ours([Duel(prompt(p), a, b) for p, a, b in zip(prompts, first, second, strict=True)]).logits
    back = ours([Duel(prompt(p), b, a) for p, a, b in zip(prompts, first, second, strict=True)]).logits
    assert forth - back == pytest.approx(wanted, abs=1e-5)


def test_conversations_are_those_of_llm_blender(ranker: Any, ours: PairRM) -> None:
    asked, said = ["How far is the moon?", "And the sun?"], "About 384,000 km."
    both = [
        [
            {"role": "USER", "content": asked[0]},
            {"role": "ASSISTANT", "content": said},
            {"role": "USER", "content": asked[1]},
            {"role": "ASSISTANT", "content": text},
        ]
        for text in ("150 million km.", "Far.")
    ]
    wanted = ranker.compare_conversations([both[0]], [both[1]], return_logits=True)
    messages = (("user", asked[0]), ("assistant", said), ("user", asked[1]))
    forth, back = ours([Duel(messages, "150 million km.", "Far."), Duel(messages, "Far.", "150 million km.")]).logits
    assert forth - back == pytest.approx(float(wanted[0]), abs=1e-5)


def test_a_pairs_score_moves_with_its_batch_there_and_not_here(ranker: Any, ours: PairRM) -> None:
    """llm-blender cuts the responses of a batch by its longest prompt."""
    pair, beside = (words(20), words(500, 1), words(480, 2)), (words(900, 3), "Yes.", "No.")

    def theirs(*rows: tuple[str, str, str]) -> float:
        prompts, first, second = (list(column) for column in zip(*rows, strict=True))
        return float(ranker.compare(prompts, first, second, mode="[A,B]", return_logits=True, batch_size=2)[0])

    def here(*rows: tuple[str, str, str]) -> float:
        return float(ours([Duel(prompt(p), a, b) for p, a, b in rows]).logits[0])

    assert abs(theirs(pair) - theirs(pair, beside)) > 1e-3
    assert here(pair) == pytest.approx(here(pair, beside), abs=1e-5)
    assert theirs(pair) == pytest.approx(here(pair), abs=1e-5)


def test_every_row_is_its_own_whatever_else_is_there(oracle: PairRM) -> None:
    together = oracle(DUELS)
    alone = [oracle([duel]).logits[0] for duel in DUELS]
    assert together.logits == pytest.approx(alone, abs=1e-5)
    assert oracle(DUELS[::-1]).logits[::-1] == pytest.approx(together.logits, abs=1e-5)
    assert not together.truncated.any()
    assert oracle([]).logits.shape == oracle([]).truncated.shape == (0,)


def test_long_texts_are_cut_and_flagged(oracle: PairRM) -> None:
    long = Duel(prompt(words(3000)), words(3000, 1), "Yes.")
    (row,) = oracle.rows([long])
    sizes = np.diff([0, row.places[1] - 1, row.places[2] - 1, len(row.ids)])
    assert len(row.ids) == 2048 and sizes[0] == 1224
    assert row.truncated and oracle([long, DUELS[0]]).truncated.tolist() == [True, False]
    whole = oracle.rows([Duel(prompt("x"), words(3000, 1), "")])[0].ids
    start = row.places[1] - 1
    assert row.ids[start : start + 200] == whole[oracle.rows([Duel(prompt("x"), "", "")])[0].places[1] - 1 :][:200]
    assert [row.ids[place] for place in row.places] == list(oracle.markers.values())


@pytest.mark.parametrize("text", ["a [SEP] b", f"{SOURCE} {FIRST}{SECOND}", "[CLS][MASK] x", "", "🌷 مرحبا"])
def test_odd_texts_keep_three_markers(oracle: PairRM, text: str) -> None:
    (row,) = oracle.rows([Duel(prompt(text), text, "plain")])
    assert [row.ids.count(marker) for marker in oracle.markers.values()] == [1, 1, 1]
    assert row.ids.count(oracle.tokenizer.sep_token_id) == row.ids.count(oracle.tokenizer.cls_token_id) == 3
    assert np.isfinite(oracle([Duel(prompt(text), text, "plain")]).logits).all()


def test_several_tasks_are_averaged(tmp_path: Path, blender: Any) -> None:
    oracle = PairRM(hf(tmp_path, tasks=3), "float32")
    (row,) = oracle.rows(DUELS[:1])
    x = oracle.encoder.states([row.ids], torch.tensor([row.places]))
    each = oracle._head(torch.cat((x[:, 0], x[:, 1]), -1)) - oracle._head(torch.cat((x[:, 0], x[:, 2]), -1))
    assert each.shape == (1, 3) and oracle(DUELS[:1]).logits[0] == pytest.approx(each.mean().item(), abs=1e-6)


@given(st.tuples(*[st.integers(3, 4000)] * 3))
def test_limits(sizes: tuple[int, int, int]) -> None:
    source, first, second = Limits(source=SOURCE_MOST, total=SOURCE_MOST + 2 * CANDIDATE_MOST).fit(*sizes)
    assert source == min(sizes[0], 1224) and source + first + second <= 2048
    assert first <= sizes[1] and second <= sizes[2]
    if first < sizes[1] or second < sizes[2]:
        assert source + first + second == 2048  # nothing is wasted
    for got, wanted, other in ((first, sizes[1], second), (second, sizes[2], first)):
        assert got == wanted or got >= other - 1  # no one is cut below the other's share


@given(st.lists(st.integers(1, 300)), st.integers(1, 1000))
def test_batches(lengths: list[int], most: int) -> None:
    found = list(batches(lengths, most))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most


def test_a_tokenizer_that_splits_a_marker_is_refused(oracle: PairRM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(oracle.markers, SOURCE, 7)
    with refused(DataError, SOURCE):
        oracle.rows(DUELS)


def test_systems_and_single_turns_stay_plain() -> None:
    assert render(Duel((("system", "Be brief."), ("user", "Hi")), "a", "b")) == ("Be brief.\nHi", "a", "b")


def test_the_step_scores_with_it(tmp_path: Path, folders: dict[str, Path]) -> None:
    samples = as_input("samples", tmp_path / "samples", [samples_table({"a": ["x", "four", "x "], "b": ["1", ""]})])
    judge = as_input_folder(folders["hf"])
    job = as_job(SCORE, settings.score("pairrm", dtype="float32"), [samples, judge], tmp_path)
    part = Scorer(job)(Shard(index=0))
    a, b = part.table.to_pylist()
    again = PairRM(folders["hf"], "float32")([Duel(prompt("Say a."), "x", "four")]).logits[0]
    assert a["logits"][1] == pytest.approx(again, abs=1e-5) and a["logits"][2] == 0.0
    assert np.isfinite(b["logits"]).all() and part.stats["duels"] == 4


def as_input_folder(folder: Path) -> Any:
    from sparring.pipeline.store.files import external

    return external("judge", folder)


def broken(folder: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **changes}))
    return to


def test_wrong_checkpoints_say_what_they_are(tmp_path: Path, folders: dict[str, Path]) -> None:
    cases = [
        (broken(folders["hf"], tmp_path / "a", architectures=["LlamaForCausalLM"]), ("'LlamaForCausalLM'",)),
        (broken(folders["official"], tmp_path / "b", ranker_type="summareranker"), ("summareranker",)),
        (
            broken(folders["official"], tmp_path / "c", model_name="roberta-large"),
            ("model_name", "roberta-large"),
        ),
        (broken(folders["hf"], tmp_path / "d", num_hidden_layers=4), ("layer.3.", "missing")),
        (broken(folders["hf"], tmp_path / "e", num_hidden_layers=2), ("layer.2.",)),
        (broken(folders["hf"], tmp_path / "f", n_tasks=2), ("head_layer.4.bias", "(1,)", "(2,)")),
        (tmp_path / "empty", ("empty", "config.json")),
    ]
    for folder, said in cases:
        with refused(DataError, *said):
            PairRM(folder, "float32")
    cut = broken(folders["hf"], tmp_path / "g")
    weights = load_file(cut / "model.safetensors")
    name = "pretrained_model.embeddings.word_embeddings.weight"
    save_file({**weights, name: weights[name][:-4].clone()}, cut / "model.safetensors")
    with refused(DataError, "embeddings", "id"):
        PairRM(cut, "float32")
    (cut / "model.safetensors").unlink()
    (cut / "pytorch_model.bin").write_bytes(b"")
    with refused(DataError, "*.safetensors"):
        PairRM(cut, "float32")
