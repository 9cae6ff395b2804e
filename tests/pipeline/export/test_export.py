"""`sparring export`: what lies in the folder, that it loads, what is refused, and that nothing of a model is markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring.pipeline.cli import main
from sparring.pipeline.export import push
from sparring.pipeline.export.base import embedded_licence, licence_of
from sparring.stages.step import sha256_file
from sparring.stages.train.files.safetensors_writer import read, tensors_of
from tests.pipeline.export.fabricated import CARD, Fabricated
from tests.refusals import named
from tests.tiny import tiny_policy

HOSTILE = "<script>alert(1)</script> | [x](http://evil.example) \x1b[31m `code` **bold**\n# head"
BETTER = (0.62, 0.60, 0.64)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture
def run(tmp_path: Path, policy: Path) -> Fabricated:
    """Two iterations of a base whose README states a licence; the first one is better."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Base\n")
    made = Fabricated(tmp_path)
    made.begin(["policy=folder", f"policy.path={base}"])
    for t, rate in ((1, BETTER), (2, (0.55, 0.52, 0.58))):
        made.data(t, {"a": [HOSTILE, "two"], "b": ["three", "four"]})
        made.train(t, policy)
        made.evaluate(t, rate)
    return made


def export(run: Fabricated, *words: str) -> int:
    return main(["export", run.name, "--runs", str(run.runs), *words])


def refused(run: Fabricated, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert export(run, *words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("error: ")
    return message


def test_the_best_iteration_byte_for_byte_with_a_card_and_it_loads(
    run: Fabricated, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    assert export(run) == 0
    out = capsys.readouterr().out
    assert "iteration 1, the best of 1, 2 by the second judge" in out and "exported to exports/mine-iter-1" in out
    folder = tmp_path / "exports" / "mine-iter-1"
    assert {p.name for p in folder.iterdir()} == {p.name for p in policy.iterdir()} | {"README.md"}
    for path in policy.iterdir():
        assert sha256_file(folder / path.name) == sha256_file(path)
    assert not (folder / "model.safetensors").samefile(next(run.store.glob("train-*/model.1f/model.safetensors")))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    rendered: Any = AutoTokenizer.from_pretrained(folder).apply_chat_template([{"role": "user", "content": "Hi"}])
    ids = rendered["input_ids"]
    assert model.dtype == torch.float32 and torch.isfinite(model(torch.tensor([ids])).logits).all()
    assert list((tmp_path / "exports").iterdir()) == [folder]  # nothing half-made is left


def test_a_cast_is_torchs(run: Fabricated, policy: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "cast"
    assert export(run, "--to", str(folder), "--dtype", "bfloat16") == 0
    before, after = tensors_of(policy), tensors_of(folder)
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(read(after[name], name), read(before[name], name).to(torch.bfloat16))
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert sha256_file(folder / "tokenizer.json") == sha256_file(policy / "tokenizer.json")
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    assert "cast to bfloat16" in (folder / "README.md").read_text()


def test_the_card_says_what_it_is_and_how_good(run: Fabricated, tmp_path: Path) -> None:
    assert export(run, "--iter", "2", "--to", str(tmp_path / "out")) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    head = card.split("---\n")[1]
    assert "license: apache-2.0" in head and "library_name: transformers" in head and "- sppo" in head
    assert "base_model:" not in head  # a local folder has no name on the hub
    assert (
        "iteration 2, as asked for" in card and "these have a higher win rate, by point estimates: 1 with 0.620" in card
    )
    assert "| 1 | 0.600 [0.550, 0.650] | 0.600 [0.550, 0.650] | 0.620 [0.600, 0.640] | 0.620 [0.600, 0.640] |" in card
    assert CARD and f"second judge (lexical): accuracy {CARD['macro']:.3f} \\[{CARD['macro_low']:.3f}, " in card
    assert "sources like those it was trained on" in card and "second judge (lexical), by source: " in card
    assert "| train: objective | sppo (beta 0.001) |" in card and "| train: lr | 1e-05 |" in card
    assert "| train: weight_decay | 0.01 |" in card and "| train: seed | 0 |" in card
    assert "Of the base, as its source states it: apache-2.0" in card and "| torch | 2 |" in card
    assert "| 2 | train | train-" in card and "| 1 | 2 | 4 | 61 | tie 3 |" in card
    assert str(tmp_path) not in card  # no path of this machine


def test_the_card_has_the_rules_that_fired_up_to_its_iteration(run: Fabricated, tmp_path: Path) -> None:
    for t in (1, 2):
        run.step(t, "embed", {"similarity_mean": 0.9 + t / 100})
    for t, lines in ((1, ["0.910"]), (2, ["0.910", "0.920"])):
        assert export(run, "--iter", str(t), "--to", str(tmp_path / str(t))) == 0
        card = (tmp_path / str(t) / "README.md").read_text()
        found = re.findall(
            r"^- iteration (\d): WARNING similar: .* similarity (0\.\d+) in the mean", card, re.MULTILINE
        )
        assert found == [(str(i), text) for i, text in enumerate(lines, 1)]
        assert card.index("## Results") < card.index("WARNING") < card.index("## Use")


def test_the_code_of_the_card_answers_a_question(
    run: Fabricated,
    policy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 12}
    run.step(3, "sample", {}, identity={"sampler": sampler})
    run.train(3, policy)
    assert export(run, "--iter", "3", "--to", str(tmp_path / "out")) == 0
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)
    assert "max_new_tokens=12, do_sample=True, temperature=0.7, top_p=0.9, top_k=0" in code
    monkeypatch.chdir(tmp_path / "out")
    capsys.readouterr()
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("license: mit", {"license": "mit"}),
        ("license:\n- mit\n- apache-2.0", {"license": ["mit", "apache-2.0"]}),
        (
            "license: other\nlicense_name: llama3\nlicense_link: LICENSE",
            {"license": "other", "license_name": "llama3", "license_link": "LICENSE"},
        ),
        ("license: '<b>'", {}),
        ("license_name: mine", {}),
        ("license: {a: 1}", {}),
        ("license: [unclosed", {}),
        ("tags: ['%']\n@", {}),
    ],
)
def test_the_licence_is_what_the_readme_states(head: str, found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(f"\ufeff---\r\n{head}\r\n---\r\n# x".encode())
    assert licence_of(tmp_path) == found


def test_the_licence_of_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"license": "mit"}')
    assert licence_of(tmp_path) == {"license": "mit"}
    (tmp_path / "config.json").write_text("[]")
    assert licence_of(tmp_path) == {}


def test_the_embedded_policy_states_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path))
    assert embedded_licence() == {"license": "apache-2.0"}
    monkeypatch.setattr("gguf.GGUFReader", None)  # what was read once is not read again
    assert embedded_licence() == {"license": "apache-2.0"}


def test_a_licence_that_no_file_states_is_not_guessed(run: Fabricated, tmp_path: Path) -> None:
    (tmp_path / "base" / "README.md").write_text("---\nlicense: '<b>free</b>'\n---\n")
    assert export(run, "--to", str(tmp_path / "out")) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "not known: check the base's" in card and "license:" not in card and "free" not in card


def test_the_card_has_what_was_published_and_where_this_run_is_another_recipe(
    run: Fabricated, tmp_path: Path, policy: Path
) -> None:
    run.best_of(1, 16, (0.63, 0.6, 0.66))
    run.begin(["experiment=sppo_mistral_7b", "policy=folder", f"policy.path={policy}", "sampler.stop=['</b><script>']"])
    assert export(run, "--iter", "1", "--to", str(tmp_path / "out")) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    results = card[card.index("## Results") : card.index("## Use")]
    assert "- iteration 1: the oracle's best of 16 responses vs base: second judge: 0.630 [0.600, 0.660]" in results
    assert "| iteration 3 | 28.53 | 31.02 | 2163 |" in results
    assert "| iteration 3, best of 16 | 32.13 | 34.94 | 2174 |" in results
    differing = results[results.index("This run differs from the recipe in these settings:\n\n- ") :].replace("\\", "")
    assert "\n- policy.name=folder\n" in differing and "\n- sampler.stop=" in differing
    assert "<script>" not in card


def test_data_goes_along_with_cards_and_nothing_of_a_model_is_in_them(run: Fabricated, tmp_path: Path) -> None:
    import datasets
    import pyarrow.parquet as pq

    assert export(run, "--iter", "2", "--to", str(tmp_path / "out"), "--datasets") == 0
    for kind in ("samples", "pairs"):
        folder = tmp_path / "out" / "datasets" / kind
        assert sorted(p.parent.name for p in folder.rglob("*.parquet")) == ["iter-01", "iter-02"]
        splits = datasets.load_dataset_builder(str(folder), cache_dir=str(tmp_path / "cache")).config.data_files
        assert sorted(map(str, splits)) == ["iter_01", "iter_02"]
        assert "## Columns" in (folder / "README.md").read_text()
    for card in (tmp_path / "out").rglob("README.md"):
        assert "script" not in card.read_text() and "evil" not in card.read_text() and "\x1b" not in card.read_text()
    sample = pq.read_table(tmp_path / "out" / "datasets" / "samples" / "iter-01" / "part-00000.parquet")
    assert sample.to_pylist()[0]["responses"][0]["text"] == HOSTILE  # the data itself is as it was


def test_hostile_names_are_text(tmp_path: Path, policy: Path) -> None:
    run = Fabricated(tmp_path)
    run.begin()
    run.step(1, "sample", {"prompts": 1}, identity={"sampler": {"engine": HOSTILE}})
    run.step(1, "pairs", {}, rows={"in": 2, "out": 1, "dropped": {HOSTILE: 1}})
    run.train(1, policy)
    run.evaluate(1, BETTER)
    assert export(run, "--to", str(tmp_path / "out")) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<script>" not in card and "\x1b" not in card and not re.search(r"(?<!\\)\]\(http", card)
    assert "http://" not in card and "**bold**" not in card and "\n# head" not in card
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \| \[x\](http\://evil.example) \\x1b\[31m" in card


def test_a_dry_run_lists_files_and_places_and_touches_nothing(
    run: Fabricated, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*words: Any) -> None:
        raise AssertionError(words)

    monkeypatch.setattr("socket.socket.connect", no_network)
    words = ["--to", str(tmp_path / "out"), "--datasets", "--push", "me/mine", "--dtype", "bfloat16", "--dry-run"]
    assert export(run, *words) == 0
    out = capsys.readouterr().out
    listed = {line.split()[-1]: line for line in out.splitlines() if " bytes  " in line}
    assert not (tmp_path / "out").exists() and "nothing was written or sent" in out
    assert "to the model repository me/mine of the hub, private" in out
    assert "to the dataset repository me/mine-samples" in out and "me/mine-pairs" in out
    assert export(run, *words[:-5], "--dtype", "bfloat16") == 0
    written = {str(p.relative_to(tmp_path / "out")): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written.keys() == listed.keys() - {"files", *(n for n in listed if n.startswith("iter-"))}
    for name, path in written.items():
        size = int(listed[name].replace("about", "").split()[0].replace(",", "")) if name != "README.md" else None
        header = 10_000 if name.endswith(".safetensors") else 0
        assert size is None or abs(path.stat().st_size - size) <= header, name


def test_a_push_needs_a_person_or_yes(
    run: Fabricated, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, str, str]] = []
    monkeypatch.setattr(push, "_upload", lambda folder, kind, repo: sent.append((folder.name, kind, repo)) or repo)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    words = ["--to", str(tmp_path / "out"), "--push", "me/mine", "--datasets"]
    assert "--yes" in refused(run, capsys, *words)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert export(run, *words) == 0 and not sent and not (tmp_path / "out").exists()
    assert export(run, *words, "--yes") == 0
    assert sent == [
        ("out", "model", "me/mine"),
        ("samples", "dataset", "me/mine-samples"),
        ("pairs", "dataset", "me/mine-pairs"),
    ]


def test_a_hub_that_refuses_is_one_line_and_the_export_stays(
    run: Fabricated, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path, kind: str, repo: str) -> str:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(push, "_upload", broken)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    message = refused(run, capsys, "--to", str(tmp_path / "out"), "--push", "me/mine", "--yes")
    named(message, "(no route)", "hf upload me/mine")
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--iter", "7"], ("--iter 7: ", ": 1, 2")),
        (["--push", "me mine"], ("--push me mine",)),
        (["--push", "mine"], ("--push mine", "OWNER/NAME")),
        (["--push", "me/mine"], ("HF_HUB_OFFLINE",)),
    ],
)
def test_refusals(
    run: Fabricated,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    names: tuple[str, ...],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    named(refused(run, capsys, "--to", str(tmp_path / "out"), *words), names)
    assert not (tmp_path / "out").exists()


def test_what_exists_is_not_overwritten(run: Fabricated, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    message = refused(run, capsys, "--to", str(tmp_path / "out"))
    named(message, str(tmp_path / "out"), "exists", "--to FOLDER")


@pytest.mark.parametrize("inside", ["store/out", "store/train-0/out", "runs/mine/out", "link/out"])
def test_nothing_is_exported_into_the_store_or_a_run(
    run: Fabricated, tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    (run.store / ".leases").mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(run.store)
    where = {"store": run.store, "runs": run.runs, "link": tmp_path / "link"}
    first, _, rest = inside.partition("/")
    folder = where[first] / rest.replace("mine", run.name)
    named(refused(run, capsys, "--to", str(folder)), f"--to {folder}: ")
    assert not folder.exists()


def test_changed_bytes_are_not_exported(run: Fabricated, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for weights in run.store.glob("train-*/model.1f/model.safetensors"):
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    named(refused(run, capsys, "--to", str(tmp_path / "out")), "model.safetensors", "changed")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_runs_and_arms(tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arm = Fabricated(tmp_path, name="sweep/gate=off")
    arm.begin()
    named(refused(arm, capsys), arm.name, "trained")
    arm.train(1, policy)
    assert "sweep/gate=off" in refused(Fabricated(tmp_path, name="sweep"), capsys)
    assert "/other: " in refused(Fabricated(tmp_path, name="other"), capsys)
    named(refused(arm, capsys), "judge", "--iter 1")
    assert export(arm, "--iter", "1", "--to", str(tmp_path / "out")) == 0
    assert "Not evaluated." in (tmp_path / "out" / "README.md").read_text()
