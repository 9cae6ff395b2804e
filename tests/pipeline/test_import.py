"""`sparring import` through the command line, and what a plan makes of an entry."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparring.pipeline.cli import main
from sparring.pipeline.cli.prepare import plan_of
from sparring.pipeline.execution import in_process
from sparring.pipeline.planning.estimate import Estimate
from sparring.pipeline.planning.plan import Plan
from sparring.pipeline.runs.rules import learned
from sparring.pipeline.runs.run_history import RunHistory
from sparring.pipeline.store.manifest import Artifact, Manifest, find
from sparring.pipeline.store.parts import write_part
from sparring.stages.sample.prompts import prompt_hash
from tests.data import published
from tests.faults.harness import Run, overrides, write_prompts
from tests.refusals import named
from tests.stages.sample.files import binarized, generated, listed, plain, said, scored, write
from tests.tiny import tiny_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "tiny")


class Place:
    """A folder with prompts, in which one imports."""

    def __init__(self, folder: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.policy, self.capsys = folder, policy, capsys
        if not (folder / "prompts.jsonl").exists():
            write_prompts(folder / "prompts.jsonl")
        self.store = folder / "store"

    def overrides(self, *more: str) -> list[str]:
        return overrides(self.folder, self.policy, *more)

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run a command with the overrides; return what it printed, or its message."""
        found = main([*words, *self.overrides()] if words[0] in ("import", "plan") else list(words))
        out, err = self.capsys.readouterr()
        assert found == code, err
        return out if code == 0 else err.splitlines()[-1]

    def file(self, rows: list[dict[str, Any]], name: str = "given.jsonl") -> str:
        return str(write(self.folder / name, rows))

    def questions(self) -> list[str]:
        return [json.loads(line)["prompt"] for line in (self.folder / "prompts.jsonl").read_text().splitlines()]

    def made(self, out: str) -> dict[str, Manifest]:
        names = re.findall(r"^  ((sample|pairs)-[0-9a-f]{8}): ", out, re.M)
        return {kind: find(self.store, name)[1] for name, kind in names}

    def rows(self, manifest: Manifest) -> list[dict[str, Any]]:
        source = Artifact(self.store, manifest.step, manifest.fingerprint).as_input("own", manifest)
        return [row for i in range(source.n_parts) for row in source.table(i).to_pylist()]

    def plan(self, *more: str) -> Plan:
        return plan_of({"": self.overrides(*more)})


@pytest.fixture
def place(tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, policy, capsys)


def entry(out: str) -> str:
    """The override that an import proposes."""
    found = re.search(r"^next: sparring run (entry\.\w+=\S+) ", out, re.M)
    assert found, out
    return found[1]


def counted(manifest: Manifest) -> bool:
    rows = manifest.rows
    return bool(rows["in"] == rows["out"] + sum(rows["dropped"].values()))


# What an import makes


@pytest.mark.parametrize("name", ["given.jsonl", "given.parquet"])
def test_ultrafeedbacks_shape(place: Place, name: str) -> None:
    out = place("import", "pairs", place.file(binarized(), name))
    made = place.made(out)
    samples, pairs = place.rows(made["sample"]), place.rows(made["pairs"])
    for source, sample, pair in zip(binarized(), samples, pairs, strict=True):
        assert sample["messages"] == [{"role": "user", "content": source["prompt"]}]
        assert [r["text"] for r in sample["responses"]] == [source[n][1]["content"] for n in ("chosen", "rejected")]
        assert pair["P"] == [0.5, 1.0, 0.0, 0.5] and pair["win_rates"] == [0.75, 0.25]
    assert entry(out) == f"entry.pairs={made['pairs'].name}"
    assert "the probability that chosen beats rejected is 1" in out
    assert made["pairs"].inputs["samples"]["name"] == made["sample"].fingerprint
    assert set(made["sample"].inputs) == {"source", "policy", "prompts"}
    assert "3 artifacts, 0 corrupt" in place("verify", "--store", str(place.store))


def test_responses_that_the_official_scripts_scored(place: Place) -> None:
    given = generated(k=5)
    out = place("import", "pairs", place.file(given, "train.parquet"))
    made = place.made(out)
    assert len(place.rows(made["sample"])[0]["responses"]) == 5
    for source, pair in zip(given, place.rows(made["pairs"]), strict=True):
        scores = source["rm_scores"]
        assert (pair["chosen"], pair["rejected"]) == (scores.index(max(scores)), scores.index(min(scores)))
        assert pair["P"] == [x for line in source["probability"] for x in line]
        assert pair["win_rates"] == pytest.approx([sum(line) / 5 for line in source["probability"]], abs=1e-15)
    assert made["pairs"].summary["provenance"]["layout"] == "sppo_generated"
    assert made["pairs"].summary["mean_p_w"] > 0.5 > made["pairs"].summary["mean_p_l"]


def test_pairs_that_the_official_scripts_wrote(place: Place) -> None:
    made = place.made(place("import", "pairs", place.file(scored(k=5), "train.parquet")))
    for source, pair in zip(scored(k=5), place.rows(made["pairs"]), strict=True):
        assert pair["win_rates"] == [source["chosen_probs_win"], source["chosen_probs_lose"]]
        p = source["chosen_probs"]
        assert pair["P"] == [0.5, p, 1 - p, 0.5] and (pair["chosen"], pair["rejected"]) == (0, 1)
    assert made["sample"].summary["provenance"]["layout"] == "sppo_pairs"


def test_responses_alone(place: Place) -> None:
    out = place("import", "responses", place.file(listed(k=3)), "--cut")
    made = place.made(out)
    assert set(made) == {"sample"} and entry(out).startswith("entry.samples=sample-")
    assert made["sample"].summary["cap_rate"] == 1.0 and made["sample"].identity["cut"] is True
    assert "tokens" not in made["sample"].stats, "an import is no measure of how fast anything samples"
    as_lists = [{"prompt": r["prompt"], "generate_0": said(r["prompt"], "a"), "generate_1": "b"} for r in listed()]
    assert (
        len(place.rows(place.made(place("import", "responses", place.file(as_lists, "lists.jsonl")))["sample"])) == 12
    )


def test_held_out_prompts_stay_out_and_every_row_is_counted(place: Place) -> None:
    questions = place.questions()
    odd = [
        {**plain()[0], "chosen": "same", "rejected": "same "},
        plain(questions[:1])[0],
        {**plain()[1], "prompt": "?"},
    ]
    out = place("import", "pairs", place.file(plain(questions) + odd))
    made = place.made(out)
    assert made["sample"].rows["dropped"] == {"near_empty": 1, "duplicate": 1, "heldout": 4}
    assert made["pairs"].rows["dropped"] == {"identical": 1}
    assert made["sample"].rows["in"] == 27 and made["pairs"].rows["out"] == 20
    assert all(counted(manifest) for manifest in made.values())
    assert "21 of 27 rows; dropped: duplicate 1, heldout 4, near_empty 1" in out
    prompts = next(step for step in place.plan().steps.values() if step.spec.kind == "prompts")
    assert made["sample"].inputs["prompts"]["name"] == prompts.fingerprint
    _, manifest = find(place.store, prompts.name)
    held = {row["id"] for row in place.rows(manifest)[:4]}
    assert not held & {row["id"] for row in place.rows(made["sample"])}
    assert held < {prompt_hash([{"role": "user", "content": text}])[:16] for text in questions}


def test_the_same_again_does_nothing_and_loads_nothing(place: Place) -> None:
    path = place.file(plain())
    first = place("import", "pairs", path)
    before = {p: p.stat().st_mtime_ns for p in place.store.rglob("*") if p.is_file()}
    code = (
        "import sys; from sparring.pipeline.cli import main; code = main(sys.argv[1:]);"
        "print(sorted({'ray', 'torch', 'transformers'} & set(sys.modules))); sys.exit(code)"
    )
    begun = time.monotonic()
    command = [sys.executable, "-c", code, "import", "pairs", path, *place.overrides()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.monotonic() - begun < 15, "2 s on an idle machine"
    lines = done.stdout.splitlines()
    assert lines[0].startswith("nothing to do: all of it is in ") and lines[-1] == "[]"
    assert "\n".join(lines[1:-1]) == first.strip()
    assert {p: p.stat().st_mtime_ns for p in place.store.rglob("*") if p.is_file()} == before


def test_an_import_needs_no_ray(place: Place) -> None:
    code = "import sys; sys.modules['ray'] = None; from sparring.pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "import", "pairs", place.file(plain()), *place.overrides()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "12 pairs" in done.stdout


def test_two_stores_get_equal_bytes(tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = []
    for name in ("one", "two"):
        place = Place(tmp_path / name, policy, capsys)
        made.append(place.made(place("import", "pairs", place.file(generated(), "train.parquet"))))
    for kind in ("sample", "pairs"):
        one, two = (found[kind] for found in made)
        assert (one.fingerprint, one.content) == (two.fingerprint, two.content)
        assert [file.sha256 for file in one.files] == [file.sha256 for file in two.files] and len(one.files) == 3


def test_a_killed_import_is_taken_up(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (Place(tmp_path / name, policy, capsys) for name in ("whole", "killed"))
    expected = whole.made(whole("import", "pairs", whole.file(plain())))
    path, written = killed.file(plain()), []

    def dying(job: Any, shard: Any, *rest: Any) -> dict[str, Any]:
        if job.spec.kind == "sample" and shard.index == 2:
            raise KeyboardInterrupt
        written.append(shard.index)
        return write_part(job, shard, *rest)

    monkeypatch.setattr(in_process, "write_part", dying)
    assert "again" in killed("import", "pairs", path, code=130)
    assert not list(killed.store.glob("sample-*/manifest.json")) and written
    monkeypatch.undo()
    found = killed.made(killed("import", "pairs", path))
    assert len(found["sample"].attempts) == 2
    assert {kind: m.content for kind, m in found.items()} == {kind: m.content for kind, m in expected.items()}


def test_options_that_name_the_import(place: Place) -> None:
    """Another prompt column, cut or not, another choice of held-out prompts: another artifact."""
    path = place.file([{**row, "other": row["prompt"]} for row in plain()])
    names = {
        place.made(place("import", "pairs", path, *more))["sample"].fingerprint
        for more in ([], ["--prompt-column", "other"], ["--cut"], ["--drop-empty"])
    }
    more = place.overrides("prompts.heldout=5")
    assert main(["import", "pairs", path, *more]) == 0
    names.add(place.made(place.capsys.readouterr().out)["sample"].fingerprint)
    assert len(names) == 5


def test_published_pairs(place: Place) -> None:
    path = published("ultrafeedback/train.jsonl")
    message = place("import", "pairs", str(path), code=2)
    named(message, "line 479: rejected", "empty", "--drop-empty")
    assert not list(place.store.glob("*/part-*"))
    out = place("import", "pairs", str(path), "--drop-empty")
    made = place.made(out)
    assert all(counted(manifest) for manifest in made.values())
    samples, pairs = made["sample"].rows, made["pairs"].rows
    assert samples["in"] == 1000 and samples["dropped"]["empty_response"] == 2
    assert samples["dropped"]["too_long"] > 100 and pairs["in"] == samples["out"] > 400
    assert "training drops pairs above trainer.max_length=128" in out
    given = {row["prompt"]: row for row in map(json.loads, path.read_text().splitlines())}
    for row in place.rows(made["sample"])[::50]:
        source = given[row["messages"][0]["content"]]
        assert [response["text"] for response in row["responses"]] == [source["chosen"], source["rejected"]]


# What an import refuses


BAD: dict[str, tuple[list[dict[str, Any]], tuple[str, ...]]] = {
    "no rows": ([], ("no rows",)),
    "no column": ([{"prompt": "Q", "chosen": "a"}], ("column rejected", "prompt, chosen")),
    "no prompt": ([{"chosen": "a", "rejected": "b"}], ("line 1", "chosen, rejected", "--prompt-column")),
    "empty": ([*plain(), {**plain()[0], "chosen": " "}], ("line 13: chosen", "--drop-empty")),
    "prompts": ([{"chosen": said("Q", "a"), "rejected": said("R", "b")}], ("line 1", "chosen", "rejected")),
    "another K": ([*generated(k=5), *generated(["R?"], k=4)], ("line 13", "generate_4")),
    "K x K": ([{**generated(k=2)[0], "probability": [[0.5, 0.5]]}], ("line 1", "probability", "2 x 2")),
    "NaN": ([{**scored()[0], "chosen_probs_win": float("nan")}], ("chosen_probs_win", "nan", "[0, 1]")),
    "range": ([{**scored()[0], "chosen_probs": 1.2}], ("chosen_probs", "1.2", "[0, 1]")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_message_and_nothing_is_written(place: Place, name: str) -> None:
    rows, names = BAD[name]
    path = place.file(rows)
    found = place("import", "pairs", path, code=2)
    assert found.startswith(f"error: {path}: ")
    named(found, names)
    assert not list(place.store.glob("*/part-*")) and not list(place.store.glob("*/manifest.json"))


SAME = [{**row, "rejected": f"{row['chosen']} "} for row in plain()]
LEFT = {
    "identical": (SAME, [], ("12 rows", "identical 12")),
    "tie": ([{**row, "chosen_probs": 0.5} for row in plain()], [], ("12 rows", "tie 12")),
    "one score": ([{**row, "rm_scores": [1.0, 1.0]} for row in generated(k=2)], [], ("12 rows", "tie 12")),
    "near_empty": ([{**row, "prompt": "?"} for row in plain()], [], ("12 rows", "near_empty 12")),
    "empty": ([{**row, "chosen": ""} for row in plain()], ["--drop-empty"], ("12 rows", "empty_response 12")),
    "too_long": (
        [{**row, "prompt": f"{i} " * 99} for i, row in enumerate(plain())],
        [],
        ("12 rows", "too_long 12", "prompts.max"),
    ),
    "some of each": (
        [*SAME[:6], *SAME[:2], {**plain()[7], "prompt": "word " * 200}],
        [],
        ("9 rows", "(duplicate 2, too_long 1, identical 6)"),
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_pairs_of_which_none_is_left_are_refused(place: Place, name: str) -> None:
    given, options, names = LEFT[name]
    path = place.file(given)
    found = place("import", "pairs", path, *options, code=2)
    named(found, f"error: {path}: ", names)
    assert not list(place.store.glob("*/*"))


def test_prompts_that_are_all_held_out_are_refused(place: Place) -> None:
    held = sorted(place.questions(), key=lambda text: prompt_hash([{"role": "user", "content": text}]))[:4]
    path = place.file(plain(held))
    for what, rows in (("pairs", plain(held)), ("responses", listed(held))):
        message = place("import", what, place.file(rows, f"{what}.jsonl"), code=2)
        named(message, "4 rows", "heldout 4")
        assert not list(place.store.glob("*/*"))
    place("import", "pairs", place.file(plain(), "others.jsonl"))
    assert "(heldout 4)" in place("import", "pairs", path, code=2), "those of a step that is made"
    assert len(list(place.store.glob("sample-*"))) == 1


def test_an_import_reads_what_prompts_reads(place: Place) -> None:
    """Folders with a split, packed files and dialogues: each row is out or counted."""
    questions = [f"Question {i}: what is {i} + {i}?" for i in range(12)]
    dialogue = "\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: {}\n\nAssistant: {}"
    rows = [
        {name: dialogue.format(q, f"{name} {i}") for name in ("chosen", "rejected")} for i, q in enumerate(questions)
    ]
    (place.folder / "two").mkdir()
    for name, some in (("train", rows), ("test", rows[:3])):
        packed = place.folder / "two" / f"{name}.jsonl.gz"
        packed.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in some).encode()))
    named(place("import", "pairs", str(place.folder / "two"), code=2), "test, train", "--split=test")
    made = place.made(place("import", "pairs", str(place.folder / "two"), "--split", "train"))
    samples = place.rows(made["sample"])
    assert [[m["content"] for m in row["messages"]] for row in samples] == [["Hello.", "Hi.", q] for q in questions]
    assert [r["text"] for r in samples[1]["responses"]] == ["chosen 1", "rejected 1"]
    assert made["sample"].rows["in"] == 12 and all(counted(manifest) for manifest in made.values())
    assert made["sample"].summary["provenance"]["path"] == str(place.folder / "two" / "train.jsonl.gz")


def test_files_that_are_none(place: Place) -> None:
    assert "nowhere.jsonl: " in place("import", "pairs", "nowhere.jsonl", code=2)
    (place.folder / "f.csv").write_text("prompt,chosen,rejected\n")
    named(place("import", "pairs", str(place.folder / "f.csv"), code=2), "f.csv: ", "no rows")
    cut = Path(place.file(plain(), "cut.parquet"))
    cut.write_bytes(cut.read_bytes()[:-20])
    named(place("import", "pairs", str(cut), code=2), "cut.parquet: ", "parquet file")


def test_options_may_stand_before_the_overrides(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = place.file([*plain(), {**plain()[0], "prompt": "And?", "chosen": ""}])
    assert main(["import", "pairs", path, "--drop-empty", *place.overrides()]) == 0
    assert "dropped: empty_response 1" in capsys.readouterr().out
    assert main(["import", "pairs", path, "--drop-emtpy", *place.overrides()]) == 2
    assert "--drop-emtpy" in capsys.readouterr().err


# What a run makes of it


def labels(plan: Plan) -> dict[tuple[int, str], str]:
    return {(use.iteration, use.label): step.fingerprint for use, step in plan.arm("")}


def test_pairs_stand_for_three_steps_of_iteration_1(place: Place) -> None:
    out = place("import", "pairs", place.file(plain()))
    made = place.made(out)
    plan, without = place.plan("iterations=2", entry(out)), place.plan("iterations=2")
    assert labels(without).keys() - labels(plan).keys() == {(1, "sample"), (1, "score"), (1, "pairs")}
    assert [(e.label, e.manifest.content) for e in plan.entries] == [(k, made[k].content) for k in ("sample", "pairs")]
    train = next(step for step in plan.steps.values() if step.spec.kind == "train")
    assert train.inputs["samples"] == made["sample"].content
    assert plan.externals[made["pairs"].content].root.is_absolute()
    shown = place("plan", "--why", entry(out))
    assert shown.count(" given ") == 2 and "imported from" in shown and "12 steps, 11 to do" in shown
    assert "layout:" not in shown, "an import is near to no step"


def test_samples_stand_for_one_step(place: Place) -> None:
    out = place("import", "pairs", place.file(plain()))
    name = f"entry.samples={place.made(out)['sample'].name}"
    plan, without = place.plan(name), place.plan()
    assert labels(without).keys() - labels(plan).keys() == {(1, "sample")}
    assert labels(place.plan(entry(out))).keys() < labels(plan).keys()


def test_costs_are_those_of_what_is_there(place: Place) -> None:
    out = place("import", "pairs", place.file(plain()))
    made = place.made(out)
    plan = place.plan("iterations=2", entry(out))
    trained = [step for step in plan.steps.values() if step.spec.kind == "train"]
    found = {step.uses[0].iteration: Estimate(plan, []).cost(step).tokens for step in trained}
    assert found[1] == pytest.approx(2 * 12 * (96 / 4 + made["sample"].summary["length_mean"]))
    assert found[2] == pytest.approx(2 * 8 * (96 / 4 + 0.8 * 8))


def test_an_entry_that_is_not_there_or_does_not_fit(place: Place, policy: Path, tmp_path: Path) -> None:
    out = place("import", "pairs", place.file(plain()))
    made, given = place.made(out), entry(out)
    name = given.partition("=")[2]

    def refused(*more: str) -> str:
        code = main(["plan", *place.overrides(*more)])
        assert code == 2
        return place.capsys.readouterr().err.strip()

    named(refused("entry.pairs=pairs-00000000"), "error: entry.pairs=pairs-00000000: ", f" {name}.")
    named(refused("entry.pairs=mine"), "entry.pairs=mine", "pairs-1f2e3d4c")
    named(refused(given, "prompts.heldout=5"), given, "prompts")
    other = tiny_policy(tmp_path / "other", seed=1)
    named(refused(given, f"policy.path={other}"), given, "policy")
    named(refused(given, "entry.samples=sample-00000000"), "entry.samples", "entry.pairs")
    folder = place.store / made["sample"].name
    part = next(folder.glob("part-*.parquet"))
    part.rename(part.with_suffix(".gone"))
    named(refused(given), part.name, "missing")
    dropped, names = find(place.store, made["sample"].name)[0], [one.name for one in made["sample"].files]
    dropped.drop(made["sample"], names, "keep.samples=last")
    named(refused(given), "keep.samples=last")
    shutil.rmtree(folder)
    named(refused(given), given, "samples")


@pytest.mark.slow
def test_the_loop_from_imported_pairs(tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Import, one iteration to the report, then nothing to do; the policy learned what the pairs say."""
    place = Place(tmp_path, policy, capsys)
    out = place("import", "pairs", place.file(plain(place.questions())))
    arguments = place.overrides(entry(out))
    Run(tmp_path, arguments).finish()
    steps = RunHistory.at(tmp_path / "runs" / "default").steps[1]
    made = place.made(out)
    assert {label: steps[label].fingerprint for label in made} == {label: m.fingerprint for label, m in made.items()}
    assert "score" not in steps and all(counted(manifest) for manifest in steps.values())
    assert steps["train"].rows["in"] == steps["reference"].rows["out"] == made["pairs"].rows["out"] == 20
    assert learned(steps["train"].summary)
    assert (tmp_path / "runs" / "default" / "iter-01" / made["pairs"].name).is_dir()
    shown = place("report", "default", "--runs", str(tmp_path / "runs"))
    assert "iteration 1: pairs imported: 20 of the 24 rows of" in shown and "oracle (mini): accuracy" in shown
    assert "sampled tokens/s" not in shown
    shown = place("status", "default", "--why", "--runs", str(tmp_path / "runs"))
    assert "12 steps, 0 to do" in shown and shown.count(" given ") == 2
    assert main(["run", *arguments]) == 0
    assert capsys.readouterr().out.startswith("nothing to do: all 12 steps are hits")
