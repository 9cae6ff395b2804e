"""One rank of the training step, run by Ray Train: loads its inputs, trains, and rank 0 writes the artifact's files."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sparring.stages import loaded
from sparring.stages.errors import TrainingFault
from sparring.stages.step import Job, Workers
from sparring.stages.train.batch.order import deal, shares
from sparring.stages.train.batch.rows import ResponsePair, ends_of_turn, load_rows
from sparring.stages.train.config import TrainSettings, optimizer_steps, refuse_too_few_steps
from sparring.stages.train.files import checkpoint
from sparring.stages.train.launch import sigterm
from sparring.stages.train.launch.failures import current_settings, post_ending, post_failure
from sparring.stages.train.launch.mailbox import (
    DISK_FULL,
    ENDING,
    MICRO_BATCH,
    STOP,
    Sender,
    groups,
    mailbox,
    post,
    read,
)
from sparring.stages.vitals import EVERY_S, vitals

METRICS = "metrics.jsonl"
"""The records of all optimizer steps and of the probe, in a checkpoint and among the published files."""
AVERAGED = ("rho", "in_band", "reversed", "rho_negative", "repulsion_ratio")
"""What the summary gives as the mean over the steps that measured it."""


def work(config: dict[str, Job[TrainSettings]]) -> dict[str, Any] | None:
    """Run one rank of config["job"]; return the result of its training: of rank 0 files and summary, or what it saved.

    A group that Ray restarts although the driver is to end it, or to start one with other settings, returns at once.
    """
    from ray import train

    job = config["job"]
    rank = train.get_context().get_world_rank()
    if any((mailbox(job) / name).exists() for name in (STOP, DISK_FULL, ENDING)):
        return None
    output = os.open(mailbox(job) / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        stream.flush()
        os.dup2(output, number)
    os.close(output)
    send = Sender(mailbox(job) / f"rank-{rank}.jsonl")
    send({"event": "worker", "rank": rank, **vitals(), "group": groups(job)})
    try:
        return train_rank(job, rank, send)
    except Exception as error:
        handled = post_failure(job, rank, error)
        if not handled or job.workers.count > 1:  # the others may wait for this one for ever: Ray ends them
            raise
        return None


def train_rank(job: Job[TrainSettings], rank: int, send: Sender) -> dict[str, Any] | None:
    """Train as one rank of a process group that is set up; return as `work` does."""
    prepare_process(job.workers)
    from sparring.stages.train.trainer.trainer import NotFinite

    settings, trainer = job.settings, job.settings.trainer
    rows, too_long = load_rows(job)
    refuse_too_few_steps(len(rows), trainer)
    order, repeated = deal([row.shared_length for row in rows], trainer.epochs, trainer.global_batch, settings.seed)
    try:
        session = Session(job, rank, send, rows, order)
        session.train()
    except NotFinite as error:
        raise TrainingFault(str(error)) from None
    counts = {"pairs": len(rows), "too_long": too_long, "repeated": repeated, "epochs": trainer.epochs}
    counts["truncated"] = sum(row.truncated for row in rows)
    return session.finish(counts)


def prepare_process(workers: Workers) -> None:
    """Fix threads, keep DeepSpeed from compiling anything, and let it join Ray's process group before it loads."""
    if workers.gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    torch.set_num_threads(workers.cpus)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False)


class Session:
    """The training of one rank, from the policy or the latest checkpoint to the published files."""

    def __init__(
        self, job: Job[TrainSettings], rank: int, send: Sender, rows: Sequence[ResponsePair], order: Sequence[int]
    ) -> None:
        self.job, self.rank, self.send, self.rows, self.order = job, rank, send, rows, order
        self.vitals_at = time.monotonic()
        from sparring.stages.train.files.probe import drawn
        from sparring.stages.train.trainer import trackers

        self.settings = job.settings
        self.policy = job.inputs["policy"].folder()
        self.probed = [rows[i] for i in drawn(len(rows), self.settings.seed)]
        self.noise: float | None = None
        self.route = self._route()
        gc.collect()  # the scorer is a cycle
        self.resumed = _of_rank_0(checkpoint.latest(job))
        self.history: list[dict[str, Any]] = []
        """Records of all steps, those before the checkpoint that this attempt resumes from included."""
        if self.resumed:
            path, step = self.resumed
            if rank == 0:
                self.send({"event": "message", "text": f"train: resumed after optimizer step {step}"})
            self.history = [json.loads(line) for line in (path / METRICS).read_text(encoding="utf-8").splitlines()]
        if rank == 0:
            trackers.set_environment(job)
        self.trainer = self._trainer(self._micro_batched())
        self.trainer.add_callback(trackers.Parameters(job))

    def _micro_batched(self) -> TrainSettings:
        """Return the settings with a number of pairs in a forward pass, by a probe where none is known."""
        from sparring.stages.train.trainer.micro_batch import probe

        settings, share = current_settings(self.job), self.settings.share(self.job.workers.count)
        if self.settings.hardware.micro_batch != "auto" or share == 1:
            return settings
        chosen = _of_rank_0((read(self.job, MICRO_BATCH) or {}).get("chosen"))
        if chosen:
            return settings.with_micro_batch(chosen)
        pairs, text = probe(
            self._trainer,
            settings,
            share,
            local_workers=int(os.environ["LOCAL_WORLD_SIZE"]),
            on_fit=lambda pairs: post(self.job, MICRO_BATCH, {"fits": pairs}) if self.rank == 0 else None,
        )
        if self.rank == 0:
            post(self.job, MICRO_BATCH, {"chosen": pairs})
            self.send({"event": "message", "text": text})
        dist.barrier()
        return settings.with_micro_batch(pairs)

    def _trainer(self, settings: TrainSettings) -> Any:
        from transformers import AutoConfig

        from sparring.stages.train.trainer.arguments import arguments, machine_of
        from sparring.stages.train.trainer.trainer import Hooks, PairTrainer

        steps = optimizer_steps(len(self.rows), settings.trainer.epochs, settings.trainer.global_batch)
        hidden = AutoConfig.from_pretrained(self.policy).get_text_config().hidden_size
        machine = machine_of(self.job.workers)
        # First: it turns ZeRO-3 loading on.
        args = arguments(settings, self.job.workers, steps, mailbox(self.job), machine, hidden)
        model = self._load("trainer", lambda: load_policy(self.policy, settings, self.route))
        workers, lengths = self.job.workers.count, [row.shared_length for row in self.rows]
        return PairTrainer(
            model=model,
            args=args,
            settings=settings,
            rows=self.rows,
            order=shares(self.order, lengths, workers, settings.micro_pairs(workers)),
            end_of_turn=ends_of_turn(self.job.inputs["samples"]),
            hooks=Hooks(
                on_step=self._on_step,
                stage_checkpoint=lambda step: checkpoint.staged(self.job, step),
                seal_checkpoint=self._seal,
                must_end=lambda: sigterm.received() or (self.rank == 0 and (mailbox(self.job) / STOP).exists()),
            ),
            resumed_from=self.resumed[1] if self.resumed else 0,
        )

    def _load(self, model: str, make: Callable[[], Any]) -> Any:
        """Load a model and report it."""
        made = loaded.load(model, make)
        for one in loaded.taken_note_of():
            self.send({"event": "load", "pid": os.getpid(), **one._asdict()})
        return made

    def _route(self) -> Any:
        """Return how the policy is scored, checked on complete weights: by the step that scored the reference, else by
        rank 0. Under ZeRO-3 no rank has them.

        Without the step that scores a reference, the probe's rows get one as well, and the noise is what stands for it.
        """
        from sparring.stages.train.files.probe import from_start
        from sparring.stages.train.model.scorer import Scored, load_scorer, read_route

        if self.rank != 0:
            return _of_rank_0(None)
        trainer, policy = self.settings.trainer, self.job.inputs["policy"]
        known = read_route(self.job, Scored(policy.digest, trainer.dtype, trainer.adapter.four_bit))
        if known and self.settings.objective.reads_reference:
            return _of_rank_0(known)
        scorer: Any = self._load("scorer", lambda: load_scorer(self.policy, trainer.dtype, trainer.adapter.four_bit))
        if scorer.route.why:
            self.send({"event": "message", "text": f"train: {scorer.route.why}"})
        if not self.settings.objective.reads_reference:
            self.probed, self.noise = from_start(scorer, self.probed)
        return _of_rank_0(scorer.route)

    def train(self) -> None:
        """Train to the last step, or until this run must end."""
        if self.rank == 0:
            checkpoint.prune(self.job, self.resumed[0] if self.resumed else None)
        if self.settings.objective.reads_reference and not self.history:
            from sparring.stages.train.trainer.trainer import BeforeTraining

            self.trainer.add_callback(BeforeTraining(self._measure_noise))
        self.trainer.train(resume_from_checkpoint=str(self.resumed[0]) if self.resumed else None)

    def _measure_noise(self) -> None:
        """Note the mean |h| of a few of the probe's pairs before the first step, each scored alone: what rounding makes
        of 0. In the passes of the step `reference` the same numbers would result, to the last bit.
        """
        from sparring.stages.train.files.probe import ALONE

        alone = (self._probe([pair])[0] for pair in self.probed[:ALONE])
        changes = [abs(row[name]) for row in alone for name in ("h_w", "h_l")]
        self.history.append({"noise": sum(changes) / len(changes)})

    def _on_step(self, record: dict[str, Any]) -> None:
        self.history.append(record)
        if time.monotonic() - self.vitals_at > EVERY_S:
            self.vitals_at = time.monotonic()
            self.send({"event": "vitals", "rank": self.rank, **vitals()})
        if self.rank == 0:
            shown = {name: value for name, value in record.items() if name != "step"}
            self.send({"done": record["step"], **shown, "pid": os.getpid()})

    def _seal(self, folder: Path, step: int) -> None:
        if self.rank == 0:
            (folder / METRICS).write_text(_lines(self.history), encoding="utf-8")
        dist.barrier()
        checkpoint.sync(folder)
        hashed: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(hashed, checkpoint.hashes(folder, rank=self.rank))
        if self.rank == 0:
            files = {name: entry for part in hashed for name, entry in part.items()}
            checkpoint.seal(folder, step, checkpoint.binding(self.job), files)
            checkpoint.prune(self.job, folder)
        dist.barrier()

    def finish(self, counts: dict[str, int]) -> dict[str, Any] | None:
        """Probe and publish; every rank takes part in both. Rank 0 writes, and returns files and summary.

        Where training ended before its last step, only what is saved is returned.
        """
        from sparring.stages.train.files.publish import changes, publish

        state = self.trainer.state
        if state.global_step < state.max_steps:
            saved = {"saved": state.global_step, "of": state.max_steps}
            if self.rank == 0:
                post_ending(self.job, saved)
            return saved
        probe = self._probe(self.probed)
        self.history.append({"probe": probe})
        folder = self.job.out / f"model.{self.job.attempt}"
        dtype = getattr(torch, self.settings.trainer.publish_dtype)
        publish(self.trainer.model, self.policy, folder, dtype, keep=self.rank == 0)
        if self.rank != 0:
            return None
        metrics = self.job.out / f"metrics.{self.job.attempt}.jsonl"
        metrics.write_text(_lines(self.history), encoding="utf-8")
        checkpoint.sync(metrics)
        files = {f"model/{path.name}": str(path) for path in sorted(folder.iterdir())} | {METRICS: str(metrics)}
        probed: dict[str, Any] = {
            f"probe_{name}": sum(row[name] for row in probe) / len(probe) for name in ("h_w", "h_l")
        }
        probed["probe_pairs"] = len(probe)
        summary = {**self._summary(), **probed, **changes(self.policy, folder), **counts}
        published = {"files": files, "summary": summary}
        post_ending(self.job, published)  # for a rank may die before all have returned
        return published

    def _probe(self, rows: Sequence[ResponsePair]) -> list[dict[str, Any]]:
        """h of some pairs under the model in memory."""
        from sparring.stages.train.files.probe import changes_of_log_prob

        self.trainer.model_wrapped.eval()
        return changes_of_log_prob(self.trainer.model_wrapped, rows)

    def _summary(self) -> dict[str, float]:
        steps = [record for record in self.history if "step" in record]
        gauge = {"saturation": steps[-1]["saturation"]} if "saturation" in steps[-1] else {}
        return {
            **gauge,
            "steps": len(steps),
            "tokens": sum(self.rows[i].tokens for i in self.order),
            "first_loss": steps[0]["loss"],
            "last_loss": steps[-1]["loss"],
            "distance_new": steps[0]["distance"],  # under the policy it starts from, of pairs no training has seen
            "noise": self.history[0]["noise"] if self.noise is None else self.noise,
            "clipped_share": sum(record["clipped"] for record in steps) / len(steps),
            **_averages(steps, AVERAGED),
            **_averages(steps[-1:], ("delta", "delta_skipped")),
        }


def _of_rank_0(value: Any) -> Any:
    """Return the value of rank 0: a shared file system may show the ranks different things."""
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def load_policy(folder: Path, settings: TrainSettings, route: Any = None) -> Any:
    """Load the policy for training: no dropout, its adapter if any, bound to score responses by a checked route."""
    from transformers import AutoConfig

    from sparring.stages.train.files.publish import adapted
    from sparring.stages.train.model.adapter import attach, load_base
    from sparring.stages.train.model.forward import bind

    config = AutoConfig.from_pretrained(folder)
    dropouts = [name for name in vars(config) if name.endswith(("dropout", "pdrop"))]
    config.update(dict.fromkeys(dropouts, 0.0))
    model = load_base(folder, settings.trainer.adapter.four_bit, config)
    attach(model, settings.trainer.adapter, settings.seed)
    adapted(model, folder)  # refuses now what could not be published
    return bind(model, settings.trainer.dtype, route)


def _averages(records: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Mean of each name over the records that have it."""
    values_of = {name: [record[name] for record in records if name in record] for name in names}
    return {name: sum(values) / len(values) for name, values in values_of.items() if values}


def _lines(records: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
