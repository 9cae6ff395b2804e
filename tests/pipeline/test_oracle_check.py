"""`sparring oracle check` through the command line: its figures against those of the oracle's own logits."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors
from transformers import DebertaV2Config, DebertaV2Model

from sparring.pipeline import config
from sparring.pipeline.cli import main, oracle_check
from sparring.pipeline.cli.oracle_check import Pair, ask, read_of, run_reads
from sparring.pipeline.sources import EMBEDDED_JUDGES
from sparring.stages.annotate.oracle import Duel, Verdicts, prompt_key
from sparring.stages.annotate.oracles import OracleContext, load
from sparring.stages.annotate.pairrm import BODY, EITHER, FIRST, HEAD, SECOND, SOURCE, PairRM
from sparring.stages.errors import DataError
from tests.data import published
from tests.refusals import named, refused
from tests.scripts.test_train_judges import held_out
from tests.stages.annotate.blender import SIZES, randomised, tokenizer
from tests.stages.sample.files import binarized, generated, plain, write

LEXICAL = EMBEDDED_JUDGES / "lexical"
TOPICS = ("rain", "bread", "clocks", "rivers", "glass", "trees", "wool", "salt")


def labelled(n: int = 40) -> list[dict[str, Any]]:
    """Pairs that an oracle of words has an opinion on; prompts come twice."""
    rows = []
    for i in range(n):
        topic = TOPICS[i // 2 % len(TOPICS)]
        good = f"{topic.capitalize()} form slowly, and {i} people have asked how {topic} come about. " * (1 + i % 3)
        bad = (f"{topic} " * (4 + i % 7), "I cannot help with that.", f"No idea about {topic}, sorry.")[i % 3]
        chosen, rejected = (good, bad) if i % 4 else (bad, good)
        rows.append({"prompt": f"Explain {topic}, please ({i // 2}).", "chosen": f" {chosen}", "rejected": rejected})
    return rows


class Check:
    """Runs the command in a folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def file(self, rows: Sequence[dict[str, Any]], name: str = "pairs.jsonl") -> str:
        return str(write(self.folder / name, rows))

    def __call__(self, file: str, *words: str, code: int = 0) -> tuple[dict[str, Any], str]:
        """Return what --json has and what was printed; of a refusal its message."""
        found = self.folder / "figures.json"
        runs = f"paths.runs={self.folder / 'runs'}"
        assert main(["oracle", "check", file, "--json", str(found), *words, "hardware=cpu", runs]) == code
        out, err = self.capsys.readouterr()
        if code:
            assert not found.exists() and not out
            return {}, str(err)
        return json.loads(found.read_text()), str(out)


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    return Check(tmp_path, capsys)


def taught(folder: Path, prompts: Sequence[str]) -> Path:
    """Return a copy of `lexical` that was trained on `prompts` as well."""
    folder.mkdir()
    tensors = load_file(LEXICAL / "model.safetensors")
    keys = [prompt_key((("user", prompt),)) for prompt in prompts]
    tensors["trained_on"] = np.concatenate([tensors["trained_on"], np.array(keys, dtype=np.int64)])
    save_file(tensors, folder / "model.safetensors")
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps({"sha256": sha256}))
    return folder


def tiny_pairrm(folder: Path) -> Path:
    """Write a random checkpoint in the layout of llm-blender/PairRM-hf, without llm-blender's slow import."""
    words = tokenizer()
    words.add_tokens([SOURCE, FIRST, SECOND, EITHER])
    limits: dict[str, Any] = {"source_maxlength": 64, "candidate_maxlength": 128}
    settings = DebertaV2Config(vocab_size=len(words), architectures=["DebertaV2PairRM"], **limits, **SIZES)
    h = settings.hidden_size
    body, head = DebertaV2Model(settings), torch.nn.ModuleDict({"1": torch.nn.Linear(2 * h, h)})
    head["4"] = torch.nn.Linear(h, 1)
    tensors = {f"{BODY}{name}": tensor for name, tensor in randomised(body, 1).items()}
    tensors |= {f"{HEAD}{name}": tensor for name, tensor in randomised(head, 2).items()}
    settings.save_pretrained(folder)
    words.save_pretrained(folder)
    save_tensors(tensors, folder / "model.safetensors")
    return folder


def test_the_figures_are_those_of_the_oracles_logits(check: Check) -> None:
    rows = labelled()
    found, out = check(check.file(rows), "oracle=lexical", "prompts.per_iteration=64", "sampler.k=5")
    duels = [Duel((("user", r["prompt"]),), r["chosen"].strip(), r["rejected"].strip()) for r in rows]
    logits = load("lexical", {}, OracleContext(folders={"judge": LEXICAL}))(duels).logits.tolist()
    n = len(logits)
    more = [len(duel.first) - len(duel.second) for duel in duels]
    assert found["accuracy"] == pytest.approx(sum(x > 0 for x in logits) / n, abs=1e-6)
    assert 0.3 < found["accuracy"] < 0.9 and found["longer_wins"] == sum(d > 0 for d in more) / n
    assert found["prefers_longer"] == pytest.approx(sum(x * d > 0 for x, d in zip(logits, more, strict=True)) / n)
    assert found["abs_logit"] == pytest.approx(sum(map(abs, logits)) / n, abs=1e-6)
    assert found["log_loss"] == pytest.approx(sum(math.log1p(math.exp(-x)) for x in logits) / n, abs=1e-6)
    assert found["brier"] == pytest.approx(sum((1 / (1 + math.exp(x))) ** 2 for x in logits) / n, abs=1e-6)
    assert (found["position_disagreement"], found["first_wins"], found["first_logit"]) == (0, 0.5, 0)
    assert (found["rows"], found["accuracy_pairs"], found["accuracy_prompts"], found["duels"]) == (40, 40, 20, 80)
    assert (found["kind"], found["seat"], found["reads"]) == ("lexical", "oracle", "responses")
    assert found["run_reads"] == 64 * 5, "each response is read once, however many duels it is in"
    assert found["run_minutes"] == pytest.approx(64 * 5 / found["reads_per_s"] / 60, abs=1e-3)
    assert out.splitlines()[-1] == found["verdict"].splitlines()[-1]
    assert f"{found['accuracy']:.3f} [{found['accuracy_low']:.3f}, {found['accuracy_high']:.3f}]" in out
    assert found["fit"] is False and found["verdict"].startswith("too few prompts to judge by: 20")


def test_every_row_of_the_table_has_its_figure(check: Check) -> None:
    found, out = check(check.file([*labelled(), *plain()]), "oracle=lexical")
    assert {name.removesuffix("_low") for name in found if name.endswith("_low")} == set(oracle_check.ROWS)
    assert all(label.strip() in out for label in oracle_check.ROWS.values())


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.parquet", "lists.jsonl"])
def test_a_layout_changes_no_figure(check: Check, name: str) -> None:
    rows = labelled()
    expected, _ = check(check.file(rows), "oracle=lexical")
    if name == "pairs.csv":
        with (check.folder / name).open("w", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        file = str(check.folder / name)
    elif name == "lists.jsonl":
        turn = {row: [{"role": "user", "content": r["prompt"]}] for row, r in enumerate(rows)}
        said: Callable[[int, str], Any] = lambda i, text: [*turn[i], {"role": "assistant", "content": text}]  # noqa: E731
        lists = [{k: said(i, r[k]) for k in ("chosen", "rejected")} for i, r in enumerate(rows)]
        file = check.file(lists, name)
    else:
        file = check.file(rows, name)
    found, _ = check(file, "oracle=lexical")
    changing = ("file", "sha256", "duels_per_s", "reads_per_s", "run_minutes")
    assert {k: v for k, v in found.items() if k not in changing} == {
        k: v for k, v in expected.items() if k not in changing
    }


def test_pairs_that_a_matrix_labels(check: Check) -> None:
    """The official scripts' scored responses: chosen = argmax, rejected = argmin of their scores."""
    rows = generated(k=3)
    found, _ = check(check.file(rows, "train.parquet"), "oracle=lexical")
    assert found["rows"] == len(rows) == found["accuracy_pairs"]
    pairs, _ = oracle_check.read([check.folder / "train.parquet"])
    for pair, row in zip(pairs, rows, strict=True):
        best, worst = (row["rm_scores"].index(of(row["rm_scores"])) for of in (max, min))
        texts = [row[f"generate_{i}"][1]["content"] for i in (best, worst)]
        assert [pair.chosen, pair.rejected] == texts


def test_labels_may_say_how_sure_they_are(check: Check) -> None:
    rows = [{**row, "chosen_probs": 0.6} for row in labelled()]
    assert check(check.file(rows), "oracle=lexical")[0]["accuracy_pairs"] == 40


def test_what_is_left_out_is_counted(check: Check, tmp_path: Path) -> None:
    rows = labelled(12)
    folder = taught(tmp_path / "taught", [rows[4]["prompt"], rows[6]["prompt"].upper()])
    more = [
        {"prompt": "Same?", "chosen": "same ", "rejected": " same"},
        {"prompt": "Empty?", "chosen": "a", "rejected": ""},
    ]
    found, out = check(check.file([*rows, *more]), "oracle=lexical", f"oracle.path={folder}", "--drop-empty")
    counts = {name: found[name] for name in ("rows", "identical", "empty_response", "trained_on", "accuracy_pairs")}
    assert counts == {"rows": 14, "identical": 1, "empty_response": 1, "trained_on": 4, "accuracy_pairs": 8}
    assert "14 rows, 8 pairs judged; left out: empty response 1, identical 1, trained on 4" in out


def test_limit_and_the_second_seat(check: Check) -> None:
    found, out = check(
        check.file(labelled()),
        "--limit",
        "10",
        "--judge",
        "judge=lexical",
        "oracle=mini",
        "prompts.heldout=30",
        "evaluate.k=2",
    )
    assert (found["rows"], found["kind"], found["seat"]) == (10, "lexical", "judge")
    assert found["run_reads"] == 30 * 2 * 2 * 2
    assert out.startswith("judge lexical on ")


@pytest.mark.parametrize(
    ("reads", "oracle", "judge"),
    [("duels", 40 * 18, 2 * 30 * 2 * 4), ("responses", 40 * 6, 2 * 30 * 4), ("texts", 40 * 7, 2 * 30 * 5)],
)
def test_what_an_iteration_reads(reads: str, oracle: int, judge: int) -> None:
    """Each of 6 responses meets 2 of them: 9 pairs in both orders. By the judge 2 meet 2, of two other policies."""
    chosen = config.load(["hardware=cpu", "oracle.opponents=2", "sampler.k=6", "prompts.heldout=30", "evaluate.k=2"])
    assert run_reads(chosen, reads, second=False) == oracle
    assert run_reads(chosen, reads, second=True) == judge


def test_what_is_read_of_pairs() -> None:
    prompt, other = (("user", "a"),), (("user", "b"),)
    pairs = [Pair("1", prompt, "x", "y"), Pair("2", prompt, "x", "z"), Pair("3", other, "x", "y")]
    assert [read_of(pairs, reads) for reads in ("duels", "responses", "texts")] == [6, 5, 7]


def test_an_oracle_that_reads_an_order(check: Check, tmp_path: Path) -> None:
    """A random PairRM: position figures of its raw logits, and a text that it reads cut."""
    folder = tiny_pairrm(tmp_path / "tiny")
    rows = [*labelled(12), {"prompt": "Long?", "chosen": "sky blue " * 200, "rejected": "no"}]
    found, out = check(check.file(rows), "oracle=pairrm", f"oracle.path={folder}")
    prompts = [(("user", row["prompt"]),) for row in rows]
    texts = [(row["chosen"].strip(), row["rejected"].strip()) for row in rows]
    model = PairRM(folder, "float32")
    forth = model([Duel(p, a, b) for p, (a, b) in zip(prompts, texts, strict=True)]).logits
    back = model([Duel(p, b, a) for p, (a, b) in zip(prompts, texts, strict=True)]).logits
    assert found["first_logit"] == pytest.approx((forth.sum() + back.sum()) / 26, abs=1e-5)
    assert found["first_wins"] == pytest.approx((np.sum(forth > 0) + np.sum(back > 0)) / 26, abs=1e-6)
    assert found["position_disagreement"] == pytest.approx(np.mean((forth > 0) == (back > 0)), abs=1e-6)
    assert found["accuracy"] == pytest.approx(np.mean(forth > back), abs=1e-6)
    assert found["truncated"] == pytest.approx(1 / 13, abs=1e-6)
    assert abs(found["first_logit"]) > 1e-3 and "left out: none" in out


def test_mini_has_the_accuracy_of_its_card(check: Check) -> None:
    rows = [
        {"prompt": [{"role": r, "content": t} for r, t in p.prompt], "chosen": p.chosen, "rejected": p.rejected}
        for p in held_out()[0]
        if p.source == "llmbar_natural"
    ]
    found, _ = check(check.file(rows), "oracle=mini")
    one = json.loads((EMBEDDED_JUDGES / "mini" / "card.json").read_text())["sources"]["llmbar_natural"]
    names = {"accuracy": "", "low": "_low", "high": "_high", "pairs": "_pairs", "prompts": "_prompts"}
    for name, end in names.items():
        assert found[f"accuracy{end}"] == pytest.approx(one[name], abs=1e-6)
    assert found["longer_wins"] == pytest.approx(one["longer_wins"], abs=1e-6)
    assert found["trained_on"] == found["identical"] == 0


def test_prompts_that_trained_it_are_left_out(check: Check) -> None:
    rows = json.loads(published("preferences/llmbar_natural.json").read_text())
    pairs = [
        {"prompt": r["input"], "chosen": r[f"output_{r['label']}"], "rejected": r[f"output_{3 - r['label']}"]}
        for r in rows
    ]
    found, _ = check(check.file(pairs), "oracle=lexical")
    assert found["rows"] == 100 and found["trained_on"] == 26 and found["accuracy_pairs"] == 74


@pytest.mark.parametrize(
    ("name", "rows", "empty"),
    [("dpo_en_demo.json", 300, 0), ("llmbar_llmeval2.json", 200, 1), ("hh_harmless_base_test.jsonl.gz", 2312, 4)],
)
def test_published_files_are_read_as_they_are(check: Check, name: str, rows: int, empty: int) -> None:
    found, _ = check(str(published(f"preferences/{name}")), "--drop-empty", "oracle=lexical")
    assert (found["rows"], found["empty_response"]) == (rows, empty)
    left = (found["accuracy_pairs"], found["identical"], found["trained_on"], found["empty_response"])
    assert sum(left) == rows and found["accuracy_pairs"] > 0


def test_a_file_of_prompts_decides_how_many_an_iteration_plays(check: Check, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "Question {i}?"}}\n' for i in range(40)))
    words = ["prompts=file", f"prompts.path={tmp_path / 'p.jsonl'}", "sampler.k=5"]
    assert check(check.file(labelled(8)), "oracle=lexical", *words)[0]["run_reads"] == 32 * 5
    assert check(check.file(labelled(8)), "--judge", "judge=lexical", "oracle=mini", *words)[0]["run_reads"] == 8 * 4


def test_no_oracle_is_loaded_for_no_pairs(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle_check, "load", lambda *_: pytest.fail("loaded"))
    rows = [{"prompt": f"Q{i}?", "chosen": "same", "rejected": "same "} for i in range(3)]
    assert "left out: identical 3" in check(check.file(rows), "oracle=lexical", code=2)[1]


# What it refuses


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (
            [{"prompt": f"Q{i}?", "chosen": "same", "rejected": "same "} for i in range(3)],
            ("3 rows", "identical 3"),
        ),
        ([], ("no rows",)),
        ([{"prompt": "Q", "chosen": "a"}], ("column rejected", "prompt, chosen")),
        (
            [*plain(), {"prompt": " ", "chosen": "a", "rejected": "b"}],
            ("line 13: prompt", "empty"),
        ),
        (
            [*plain(), {"prompt": "Q?", "chosen": "a", "rejected": " "}],
            ("line 13: rejected", "--drop-empty"),
        ),
        (
            [*binarized(), {"prompt": "Q?", "chosen": 3, "rejected": "b"}],
            ("line 13: chosen", "number"),
        ),
    ],
    ids=["identical", "no rows", "no column", "empty prompt", "empty response", "no text"],
)
def test_a_bad_file_is_one_message(check: Check, rows: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    path = check.file(rows)
    _, err = check(path, "oracle=lexical", code=2)
    assert err.splitlines()[-1].startswith(f"error: {path}: ")
    named(err, names)
    assert err.count("error: ") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("file", "words", "names"),
    [
        ("nowhere.jsonl", [], ("nowhere.jsonl",)),
        ("README.md", [], ("README.md", ".jsonl, .json, .csv, .tsv, .parquet, .arrow")),
        ("pairs.jsonl", ["orcale=lexical"], ("orcale", "oracle?")),
        ("pairs.jsonl", ["oracle=nobody"], ("oracle=nobody", "lexical")),
        ("pairs.jsonl", ["+oracle.options.size=3"], ("oracle.options.size", "mini")),
        ("pairs.jsonl", ["oracle.path=nowhere"], ("nowhere", "oracle.path")),
        ("pairs.jsonl", ["--limit", "0"], ("--limit 0",)),
        ("pairs.jsonl", ["--json", "nowhere/figures.json"], ("--json nowhere/figures.json",)),
        ("pairs.jsonl", ["--json", "."], ("--json .",)),
        ("pairs.jsonl", ["--prompt-column", "question"], ("column question", "prompt, chosen, rejected")),
    ],
)
def test_a_wrong_word_is_one_message(
    check: Check, monkeypatch: pytest.MonkeyPatch, file: str, words: list[str], names: tuple[str, ...]
) -> None:
    monkeypatch.chdir(check.folder)
    check.file(plain())
    (check.folder / "README.md").write_text("no pairs")
    _, err = check(file, *words, code=2)
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    named(err, names)


def test_a_csv_of_its_header_alone(check: Check) -> None:
    (check.folder / "pairs.csv").write_text("prompt,chosen,rejected\n")
    named(check(str(check.folder / "pairs.csv"), code=2)[1], "pairs.csv", "no rows")


# How it asks


def test_chunks_grow_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Pair(f"f: line {i}", (("user", f"q{i}"),), "a" * i, "b") for i in range(2, 102)]
    sizes = []

    def oracle(duels: Sequence[Duel]) -> Verdicts:
        sizes.append(len(duels))
        lengths = np.array([[len(d.first), len(d.second)] for d in duels], dtype=float)
        return Verdicts(lengths[:, 0] - lengths[:, 1] + 0.5, lengths[:, 0] > 100)

    oracle.trained_on = frozenset()  # type: ignore[attr-defined]
    answers = ask(oracle, pairs, "duels")  # type: ignore[arg-type]
    assert sizes == [16, 32, 64, 88]
    assert answers.logits.tolist() == [[i - 0.5, 1.5 - i] for i in range(2, 102)]
    assert answers.truncated.tolist() == [i > 100 for i in range(2, 102)]
    monkeypatch.setattr(oracle_check, "CHUNK_S", 0.0)
    sizes.clear()
    assert np.array_equal(ask(oracle, pairs, "duels").logits, answers.logits)  # type: ignore[arg-type]
    assert set(sizes) == {16, 8}


def test_a_logit_that_is_no_number_is_named() -> None:
    pairs = [Pair(f"f.jsonl: line {i}", (), f"{i}", "b") for i in range(1, 4)]

    def oracle(duels: Sequence[Duel]) -> Verdicts:
        logits = np.array([float("nan") if d.second == "2" else 1.0 for d in duels])
        return Verdicts(logits, np.zeros(len(duels), dtype=bool))

    with refused(DataError, "f.jsonl: line 2", "oracle logit[0, 1]", "nan"):
        ask(oracle, pairs, "duels")  # type: ignore[arg-type]


def test_it_needs_neither_ray_nor_torch_and_a_log_gets_lines(check: Check) -> None:
    code = (
        "import sys; from sparring.pipeline.cli import oracle_check; oracle_check.LOG_S = -1.0;"
        "from sparring.pipeline.cli import main; code = main(sys.argv[1:]);"
        "print(sorted({'ray', 'torch'} & set(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "oracle", "check", check.file(labelled()), "oracle=lexical", "hardware=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "too few prompts" in done.stdout.splitlines()[-2] and done.stdout.splitlines()[-1] == "[]"
    assert "8/40 pairs " in done.stderr and " duels/s ETA " in done.stderr
