"""Models and datasets of the hub, on local folders and a cache of its layout; nothing is asked of a network."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparring.pipeline import config
from sparring.pipeline.cli.prepare import pins_of
from sparring.pipeline.planning.iteration import build
from sparring.pipeline.runs import run_record
from sparring.pipeline.sources import Sources, hub
from sparring.pipeline.sources.hub import Hub, local_dataset
from sparring.stages.annotate.text_encoder import TextEncoder
from sparring.stages.errors import ConfigError, DataError
from sparring.stages.sample import embedded
from sparring.stages.sample.prompts import count, sources_of
from tests.refusals import refused
from tests.tiny import tiny_policy

ONE, TWO = "1" * 40, "2" * 40
README = """---
configs:
- config_name: default
  data_files:
  - split: train_prefs
    path: data/train_prefs-*
  - split: test_prefs
    path: data/test_prefs-*
---
# Prompts
"""


def dataset(folder: Path, rows: int = 10) -> Path:
    """Write a dataset as HuggingFaceH4/ultrafeedback_binarized is laid out: two files of a split, one of another."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(README)
    for name, first in (
        ("train_prefs-00000-of-00002", 0),
        ("train_prefs-00001-of-00002", rows),
        ("test_prefs-00000", 99),
    ):
        texts = [f"What is {i} + {i}?" for i in range(first, first + rows)]
        pairs = [[{"role": "user", "content": t}, {"role": "assistant", "content": "No."}] for t in texts]
        table = pa.table({"prompt": texts, "prompt_id": [str(i) for i in range(rows)], "chosen": pairs})
        pq.write_table(table, folder / "data" / f"{name}.parquet")
    return folder


def in_cache(cache: Path, kind: str, repo: str, commit: str, content: Path, ref: str = "main") -> Path:
    """Lay `content` out as the hub's cache does: blobs by sha256, a snapshot of links, a ref."""
    home = cache / f"{kind}s--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for path in (p for p in content.rglob("*") if p.is_file()):
        blob = home / "blobs" / hub.cached_sha256(path)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, offline, and an empty cache of ours."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SPARRING_CACHE", str(tmp_path / "ours"))
    return tmp_path / "hub"


def prompts_of(*overrides: str) -> dict[str, Any]:
    return Sources().prompts(config.load([*overrides, "hardware=cpu"]).prompts)


def test_a_local_folder_of_the_hubs_layout(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data")
    found = prompts_of("prompts=hub", f"prompts.dataset={folder}", "prompts.split=train_prefs")
    sources = sources_of(found)
    assert [one.path.name for one in sources] == [f"train_prefs-0000{i}-of-00002.parquet" for i in (0, 1)]
    assert count(sources, "prompt", "drop").different == 20
    again = local_dataset(folder, None, "train_prefs")
    assert again.digest == found["source"].digest != local_dataset(folder, None, "test_prefs").digest


def test_a_link_to_a_dataset_and_links_in_it(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "elsewhere" / "data")
    (tmp_path / "link").symlink_to(folder)
    found = prompts_of("prompts=hub", f"prompts.dataset={tmp_path / 'link'}", "prompts.split=train_prefs")
    assert count(sources_of(found), "prompt", "drop").different == 20
    assert found["source"].digest == local_dataset(folder, None, "train_prefs").digest


def test_a_cache_that_is_a_link(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    (tmp_path / "disk").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "linked"))
    in_cache(tmp_path / "linked", "dataset", "o/n", ONE, dataset(tmp_path / "data"))
    hub.download("dataset", "o/n", ONE)
    found = prompts_of("prompts=hub", "prompts.dataset=o/n", "prompts.split=train_prefs")
    assert count(sources_of(found), "prompt", "drop").different == 20


def test_several_configurations_are_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        dataset(tmp_path / "data" / name)
    card = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/data/train_prefs-*\n"
        for name in ("one", "two")
    )
    (tmp_path / "data" / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    with refused(ConfigError, "prompts.subset=None", "one, two"):
        prompts_of("prompts=hub", f"prompts.dataset={tmp_path / 'data'}")
    found = prompts_of("prompts=hub", f"prompts.dataset={tmp_path / 'data'}", "prompts.subset=two")
    assert count(sources_of(found), "prompt", "drop").different == 20


def test_a_wrong_split_names_those_that_there_are(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data")
    with refused(ConfigError, "prompts.split=train", "train_prefs, test_prefs"):
        prompts_of("prompts=hub", f"prompts.dataset={folder}")
    empty = tmp_path / "empty"
    empty.mkdir()
    with refused(DataError, str(empty)):
        prompts_of("prompts=hub", f"prompts.dataset={empty}")


def test_a_dataset_of_the_cache_is_its_commit(tmp_path: Path, cache: Path) -> None:
    in_cache(cache, "dataset", "HuggingFaceH4/ultrafeedback_binarized", ONE, dataset(tmp_path / "data"))
    first = Hub()
    wanted = first.dataset("HuggingFaceH4/ultrafeedback_binarized", "main", None, "train_prefs")
    assert wanted.wanted == ("dataset", "HuggingFaceH4/ultrafeedback_binarized", ONE) and not wanted.files
    hub.download(*wanted.wanted)
    found = prompts_of("prompts=ultrafeedback")["source"]
    assert found.digest == wanted.digest and len(found.files) == 2 and found.wanted is None
    assert count(sources_of({"source": found}), "prompt", "drop").different == 20
    other = Hub({"dataset:HuggingFaceH4/ultrafeedback_binarized@main": TWO})
    assert other.dataset("HuggingFaceH4/ultrafeedback_binarized", "main", None, "train_prefs").digest != found.digest


def test_the_published_split_is_three_datasets(tmp_path: Path, cache: Path) -> None:
    for i in (1, 2, 3):
        folder = tmp_path / f"data{i}"
        (folder / "data").mkdir(parents=True)
        texts = [f"{i}: what is {n} + {n}?" for n in range(10 * i)]
        pq.write_table(pa.table({"prompt": texts}), folder / "data" / "train-00000-of-00001.parquet")
        repo = f"UCLA-AGI/data-mistral-7b-instruct-sppo-iter{i}"
        in_cache(cache, "dataset", repo, str(i) * 40, folder)
        hub.download("dataset", repo, str(i) * 40)
    found = prompts_of("prompts=ultrafeedback_sppo")
    assert sorted(found) == ["source_1", "source_2", "source_3"]
    assert [one.number for one in sources_of(found)] == [0, 1, 2]
    assert count(sources_of(found), "prompt", "drop").different == 60


def test_a_policy_of_the_cache(tmp_path: Path, cache: Path) -> None:
    snapshot = in_cache(cache, "model", "Qwen/Qwen2.5-0.5B-Instruct", ONE, tiny_policy(tmp_path / "tiny"), ref="new")
    chosen = ["policy=qwen2.5-0.5b", "policy.revision=new", "prompts=starter", "hardware=cpu"]
    sources = Sources()
    found = sources.policy(config.load(chosen).policy)
    assert found.wanted == ("model", "Qwen/Qwen2.5-0.5B-Instruct", ONE)
    assert sources.hub.pins == {"model:Qwen/Qwen2.5-0.5B-Instruct@new": ONE}
    hub.download(*found.wanted)
    here = sources.policy(config.load(chosen).policy)
    assert here.digest == found.digest and here.root.resolve() == snapshot.resolve()
    assert here.folder().resolve() == snapshot.resolve()  # every file verified
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in here.files}
    plan = build({"": config.load(chosen)}, sources)
    assert here.digest in plan.externals


def test_a_policy_of_the_cache_that_is_cut(tmp_path: Path, cache: Path) -> None:
    weights = tiny_policy(tmp_path / "tiny") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    in_cache(cache, "model", "Qwen/Qwen2.5-0.5B-Instruct", ONE, tmp_path / "tiny")
    hub.download("model", "Qwen/Qwen2.5-0.5B-Instruct", ONE)
    chosen = config.load(["policy=qwen2.5-0.5b", f"policy.revision={ONE}", "hardware=cpu"]).policy
    with refused(DataError, f"{ONE}/model.safetensors"):
        Sources().policy(chosen)


def test_a_judge_of_the_cache(tmp_path: Path, cache: Path) -> None:
    content = tmp_path / "judge"
    content.mkdir()
    for name in ("config.json", "model.safetensors", "spm.model", "tokenizer_config.json"):
        (content / name).write_text(name)
    in_cache(cache, "model", "llm-blender/PairRM", ONE, content)
    sources = Sources()
    chosen = config.load(["oracle=pairrm", "hardware=cpu"]).oracle
    wanted = sources.judge(chosen)
    assert (wanted.role, wanted.wanted) == ("judge", ("model", "llm-blender/PairRM", ONE))
    hub.download("model", "llm-blender/PairRM", ONE)
    found = Sources().judge(chosen)
    assert {f.name for f in found.files} == {"config.json", "model.safetensors", "spm.model", "tokenizer_config.json"}
    assert found.digest == wanted.digest
    with refused(DataError, str(tmp_path / "nowhere"), "oracle.path"):
        Sources().judge(config.load(["oracle=pairrm", f"oracle.path={tmp_path}/nowhere", "hardware=cpu"]).oracle)


def test_a_commit_needs_no_answer(cache: Path) -> None:
    found = Sources().policy(config.load(["policy=llama-3-8b-instruct", "hardware=cpu"]).policy)
    assert found.wanted and found.wanted[2] == "8afb486c1db24fe5011ec46dfbe5b5dccdb575c2"


def test_what_is_not_there_is_one_message(cache: Path) -> None:
    with refused(DataError, "dataset a/b", "main", "HF_HUB_OFFLINE"):
        prompts_of("prompts=hub", "prompts.dataset=a/b")
    with refused(DataError, f"model a/b@{ONE}"):
        hub.download("model", "a/b", ONE)


def test_a_run_goes_on_with_the_commit_it_began_with(tmp_path: Path) -> None:
    """Also an arm of a multirun, whose record lies a folder deeper."""
    chosen = config.load(["hardware=cpu", f"paths.runs={tmp_path}", "run.name=mine"])
    assert pins_of(chosen) == {}
    for folder, repo in (("mine", "a/b"), ("mine/arm", "c/d")):
        run_record.begin(tmp_path / folder, {}, "", [], "store", {f"dataset:{repo}@main": ONE})
    found = Hub(pins_of(chosen))
    assert found.commit("dataset", "a/b", "main") == found.commit("dataset", "c/d", "main") == ONE


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_the_hubs_refusals_are_one_message(status: int, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """What the hub's library makes of an answer, without a network."""
    import httpx2
    from huggingface_hub import HfApi, constants, utils

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def refuse(*_: Any, **__: Any) -> Any:
        request = httpx2.Request("GET", "https://huggingface.co/api/models/a/b/revision/main")
        code = {403: "GatedRepo"}.get(status, "")
        answer = httpx2.Response(status, request=request, headers={"X-Error-Code": code}, content=json.dumps({}))
        utils.hf_raise_for_status(answer)

    monkeypatch.setattr(HfApi, "repo_info", refuse)
    said = {401: "private", 403: "licence", 404: "a/b", 500: "a/b@main"}
    with refused(DataError, "model a/b", said[status]):
        Hub().commit("model", "a/b", "main")


def test_an_encoder_of_the_hub_and_of_a_folder(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(embedded.encoder_folder(), folder)
    in_cache(cache, "model", "o/encoder", ONE, folder)
    chosen = config.load(["hardware=cpu", "encoder=hub", "encoder.repo=o/encoder"]).encoder
    wanted = Sources().encoder(chosen)
    assert wanted.wanted == ("model", "o/encoder", ONE)
    hub.download("model", "o/encoder", ONE)
    found = Sources().encoder(chosen)
    assert found.digest == wanted.digest and found.role == "encoder"
    local = Sources().encoder(config.load(["hardware=cpu", "encoder=folder", f"encoder.path={folder}"]).encoder)
    texts = ["A river.", "Water that runs to the sea, for a long way."]
    assert np.array_equal(TextEncoder(found.folder(), 256)(texts)[0], TextEncoder(local.folder(), 256)(texts)[0])
    with refused(DataError, "modules.json"):
        Sources().encoder(config.load(["hardware=cpu", "encoder=folder", f"encoder.path={tmp_path}"]).encoder)


def test_a_models_config_comes_out_of_the_cache_or_not_at_all(cache: Path, tmp_path: Path) -> None:
    content = tmp_path / "model"
    content.mkdir()
    (content / "config.json").write_text('{"hidden_size": 8}')
    in_cache(cache, "model", "a/b", ONE, content)
    found = hub.model_config("a/b", ONE)
    assert found and json.loads(found.read_text()) == {"hidden_size": 8}
    assert hub.model_config("a/b", TWO) is None, "offline"
