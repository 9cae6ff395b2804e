"""`gpm`: the form by hand, a cycle out of a real folder, and the published reading of a row, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from sparring.pipeline.store.files import external
from sparring.stages.annotate import oracles
from sparring.stages.annotate.config import SCORE
from sparring.stages.annotate.oracle import Duel, Messages
from sparring.stages.annotate.oracles import OracleContext
from sparring.stages.annotate.oracles.gpm import GPM, PROMPT, VALUE, preference, softmax, unit_length
from sparring.stages.annotate.reader import Tokens
from sparring.stages.annotate.score import Scorer
from sparring.stages.annotate.winrate import sigmoid
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.step import Shard
from tests import settings
from tests.artifacts import as_input, as_job, samples_table
from tests.refusals import refused
from tests.stages.annotate import readers
from tests.stages.annotate.readers import DUELS, SYSTEM, changed, prompt, words

OPTIONS: dict[str, Any] = {"dtype": "float32", "max_tokens": 512, "tau": 0.5, "unit": True, "bos_twice": False}


def loaded(folder: Path, **options: Any) -> GPM:
    oracle = oracles.load("gpm", OPTIONS | options, OracleContext(folders={"judge": folder}))
    assert isinstance(oracle, GPM)
    return oracle


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "llama": readers.gpm(root / "llama"),
        "gemma": readers.gpm(root / "gemma", "gemma-2", width=2),
        "ungated": readers.gpm(root / "ungated", width=6, gated=False),
    }


@pytest.fixture(scope="module")
def oracle(folders: dict[str, Path]) -> GPM:
    return loaded(folders["llama"])


def skew(scales: list[float]) -> np.ndarray:
    """R, entry by entry."""
    r = np.zeros((2 * len(scales), 2 * len(scales)))
    for block, scale in enumerate(scales):
        r[2 * block, 2 * block + 1], r[2 * block + 1, 2 * block] = -scale, scale
    return r


def test_preference_by_number() -> None:
    v, w, scales = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[5.0, 7.0, 6.0, 9.0]]), np.array([[2.0, 0.5]])
    # 2 (1·7 - 2·5) + 0.5 (3·9 - 4·6) = -6 + 1.5
    assert preference(v, w, scales).tolist() == [-4.5]
    assert preference(w, v, scales).tolist() == [4.5]
    assert (skew([2.0, 0.5]) @ v[0]) @ w[0] == -4.5
    assert (skew([2.0, 0.5]) == -skew([2.0, 0.5]).T).all()


def test_the_plane_turns_one_way() -> None:
    """b is better the further it is turned back from a: s = sin of the angle from a to b."""
    angles = np.array([0.3, 1.1, 2.9])
    v = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for i in range(3):
        for j in range(3):
            got = preference(v[[i]], v[[j]], np.ones((1, 1)))[0]
            assert got == pytest.approx(np.sin(angles[j] - angles[i]), abs=1e-12)


def test_unit_length_and_softmax() -> None:
    assert unit_length(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]
    assert softmax(np.array([[0.0, np.log(3.0)], [1000.0, 1000.0]])) == pytest.approx(
        np.array([[0.25, 0.75], [0.5, 0.5]])
    )
    assert np.isnan(unit_length(np.array([[np.nan, 1.0]]))).all()


def test_a_folder_expresses_a_cycle(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Three responses, 120 degrees apart: each beats the next. Any score per response says at most ½ on average."""
    three, asked = ["rock", "paper", "scissors"], prompt("Choose.")
    first = loaded(folders["gemma"])
    states = first._states([first.conversation(asked, text) for text in three]).double().numpy()
    turns = np.deg2rad([0.0, 120.0, 240.0])
    head = np.stack([np.cos(turns), np.sin(turns)]) @ np.linalg.pinv(states.T)
    folder = changed(folders["gemma"], tmp_path / "cycle", {VALUE: torch.tensor(head, dtype=torch.float32)})
    logits = loaded(folder)([Duel(asked, a, b) for a in three for b in three]).logits.reshape(3, 3)
    p = sigmoid(logits)
    wanted = 1 / (1 + np.exp(-np.sin(turns[1]) / 0.5))
    assert [p[0, 1], p[1, 2], p[2, 0]] == pytest.approx([wanted] * 3, abs=1e-4)
    assert wanted > 0.8


def published(folder: Path, messages: Messages, a: str, b: str, *, bos_twice: bool) -> float:
    """The authors' reading of a pair, one row at a time; their R as a matrix."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    heads = load_file(folder / "model.safetensors")

    def ids(turns: Messages) -> list[int]:
        text = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns], tokenize=False)
        found: list[int] = tokenizer(text)["input_ids"]
        assert found[0] == found[1] == tokenizer.bos_token_id
        return found if bos_twice else found[1:]

    vectors, at_prompt = [], None
    for text in (a, b):
        row = ids((*messages, ("assistant", text)))
        row[-1] = tokenizer.eos_token_id
        with torch.no_grad():
            states = model(torch.tensor([row])).last_hidden_state[0]
        vectors.append(torch.nn.functional.normalize(heads[VALUE] @ states[-1], dim=-1).double().numpy())
        at_prompt = states[len(ids(messages)) - 1] if at_prompt is None else at_prompt
    assert at_prompt is not None
    scales = (
        torch.softmax(heads[PROMPT] @ at_prompt, -1).tolist() if PROMPT in heads else [1.0] * (len(vectors[0]) // 2)
    )
    return float((skew(scales) @ vectors[0]) @ vectors[1])


@pytest.mark.parametrize(("kind", "bos_twice"), [("llama", False), ("llama", True), ("gemma", True), ("ungated", True)])
def test_scores_are_those_of_the_published_reading(folders: dict[str, Path], kind: str, bos_twice: bool) -> None:
    duels = [duel for duel in DUELS[:4] if kind != "gemma" or duel.prompt != SYSTEM]
    wanted = [published(folders[kind], *duel, bos_twice=bos_twice) for duel in duels]
    got = loaded(folders[kind], bos_twice=bos_twice, tau=0.5)(duels).logits
    assert got / 2 == pytest.approx(wanted, abs=1e-5)
    assert np.ptp(wanted) > 0.1


def test_the_gate_and_the_length_matter(folders: dict[str, Path], tmp_path: Path, oracle: GPM) -> None:
    other = changed(folders["llama"], tmp_path / "gate", {PROMPT: None})
    gated, open_ = oracle(DUELS).logits, loaded(other)(DUELS).logits
    assert np.abs(gated - open_).max() > 0.1
    raw = loaded(folders["llama"], unit=False)
    rows = [raw.conversation(DUELS[0].prompt, text) for text in (DUELS[0].first, DUELS[0].second)]
    lengths = np.linalg.norm(raw.projected(VALUE, rows), axis=1)
    assert raw(DUELS[:1]).logits[0] == pytest.approx(gated[0] * lengths.prod(), rel=1e-5)


def test_the_last_token_is_eos_and_a_prompt_ends_before_the_header(folders: dict[str, Path]) -> None:
    gemma, tokenizer = loaded(folders["gemma"]), AutoTokenizer.from_pretrained(folders["gemma"])
    row = gemma.conversation(prompt("Hi"), "Yes.")
    assert tokenizer.decode(row.ids).endswith("Yes.<end_of_turn><eos>")
    assert row.ids.count(tokenizer.bos_token_id) == 1
    twice = loaded(folders["gemma"], bos_twice=True)
    assert twice.conversation(prompt("Hi"), "Yes.").ids == [tokenizer.bos_token_id, *row.ids]
    assert tokenizer.decode(gemma.read.prompt(prompt("Hi")).ids).endswith("Hi<end_of_turn>\n")


def test_antisymmetric_and_embedded_once(oracle: GPM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tokens] = []
    projected = oracle.projected

    def counting(head: str, rows: list[Tokens]) -> np.ndarray:
        seen.extend(rows)
        return projected(head, rows)

    monkeypatch.setattr(oracle, "projected", counting)
    three = ["one fox", words(9), ""]
    logits = oracle([Duel(SYSTEM, a, b) for a in three for b in three]).logits.reshape(3, 3)
    assert len(seen) == 4  # three responses and their prompt
    assert (logits == -logits.T).all() and np.abs(logits).max() > 0.1


@pytest.mark.parametrize("kind", ["llama", "ungated"])
def test_no_score_depends_on_its_batch(folders: dict[str, Path], kind: str) -> None:
    oracle = loaded(folders[kind], tau=1.0)
    together = oracle(DUELS)
    assert together.logits == pytest.approx([oracle([duel]).logits[0] for duel in DUELS], abs=1e-5)
    assert oracle(DUELS[::-1]).logits[::-1] == pytest.approx(together.logits, abs=1e-5)
    assert not together.truncated.any()
    assert oracle([]).logits.shape == oracle([]).truncated.shape == (0,)


def test_long_texts_are_cut_and_flagged(folders: dict[str, Path]) -> None:
    oracle = loaded(folders["llama"], max_tokens=100, bos_twice=True)
    duels = [
        Duel(prompt("Hi"), words(300), "Yes."),
        Duel(prompt("Hi"), "Yes.", "No."),
        Duel(prompt(words(300)), "Yes.", "No."),
    ]
    verdicts = oracle(duels)
    assert verdicts.truncated.tolist() == [True, False, True] and np.isfinite(verdicts.logits).all()
    row = oracle.conversation(duels[0].prompt, duels[0].first)
    assert len(row.ids) == 100 and row.ids[-1] == oracle.eos
    assert len(oracle.bos) + len(oracle.read.prompt(duels[2].prompt).ids) == 100


def test_the_step_scores_with_it(tmp_path: Path, folders: dict[str, Path]) -> None:
    samples = as_input("samples", tmp_path / "samples", [samples_table({"a": ["x", "four", "x "], "b": ["1", ""]})])

    def scored(folder: Path) -> Any:
        inputs = [samples, external("judge", folder)]
        return Scorer(as_job(SCORE, settings.score("gpm", **OPTIONS), inputs, tmp_path))(Shard(index=0))

    part = scored(folders["llama"])
    a, b = part.table.to_pylist()
    again = loaded(folders["llama"])([Duel(prompt("Say a."), "x", "four")]).logits[0]
    assert a["logits"][1] == pytest.approx(again, abs=1e-5) and a["swapped"][1] == -a["logits"][1]
    assert np.isfinite(b["logits"]).all() and part.stats["duels"] == 4
    for head, shape in ((VALUE, (4, 32)), (PROMPT, (2, 32))):
        broken = changed(folders["llama"], tmp_path / head, {head: torch.full(shape, torch.nan)})
        with refused(DataError, "row 'a'", "oracle logit[0, 1]", "nan"):
            scored(broken)


def test_wrong_folders_say_what_they_are(tmp_path: Path, folders: dict[str, Path]) -> None:
    mine = folders["llama"]
    bare = changed(mine, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    weights: dict[str, tuple[dict[str, torch.Tensor | None], tuple[str, ...]]] = {
        "none": ({VALUE: None}, ("value_head.weight", "oracle=gpm")),
        "odd": ({VALUE: torch.zeros(1, 32)}, ("value_head.weight", "1 rows")),
        "wide": ({VALUE: torch.zeros(4, 16)}, ("value_head.weight", "(4, 16)", "(4, 32)")),
        "gate": ({PROMPT: torch.zeros(3, 32)}, ("prompt_head.weight", "(3, 32)", "(2, 32)")),
        "deep": ({"value_head.2.weight": torch.zeros(4, 4)}, ("value_head.2.weight",)),
        "bias": ({"prompt_head.bias": torch.zeros(2)}, ("prompt_head.bias",)),
        "less": (
            {"model.layers.1.mlp.up_proj.weight": None},
            ("layers.1.mlp.up_proj.weight",),
        ),
    }
    cases = [(changed(mine, tmp_path / name, found), said) for name, (found, said) in weights.items()]
    cases.append((bare, ("bare", "chat template", "EOS")))
    cases.append((tmp_path / "nowhere", ("nowhere", "config.json")))
    for folder, said in cases:
        with refused(DataError, *said):
            loaded(folder)


@pytest.mark.parametrize("options", [{"tau": 0.0}, {"unit": None}, {"max_tokens": 10}, {"value_head_dim": 8}])
def test_options_name_the_key(options: dict[str, Any]) -> None:
    with refused(ConfigError, f"oracle.options.{next(iter(options))}"):
        oracles.options("gpm", OPTIONS | options)
