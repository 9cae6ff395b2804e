"""Plays finite games with the real trainer: every round is a training step of one policy folder to the next.

    python -m tests.game.play PLAYS.json POLICIES.json

PLAYS.json: a list of objects with the fields of `Play`. POLICIES.json: for each, log pi_0 ... log pi_T as trained, and
the largest over the rounds of `noise`, mean |h| before the first optimizer step, and of `unconverged`, the gradient's
norm at the last over that at the first. One process for all: ZeRO-3 is configured once.

The policy is a Llama without layers, since the one prompt token has nothing to attend to, whose vocabulary is the n
responses: pi is the softmax over them, exactly. Rounds go through what a worker does: `deal`, `arguments`,
`load_policy`, `PairTrainer` under DeepSpeed ZeRO-3, the reference's `score`, `publish`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from sparring.stages.step import Workers
from sparring.stages.train.batch.order import deal
from sparring.stages.train.batch.rows import ResponsePair
from sparring.stages.train.launch import worker
from tests.game.finite import Array, eta_of, multiplicities, rates
from tests.game.games import GAMES
from tests.stages.train.rig import OFF, objective, settings

PROMPT = [0]
STEPS = 20
"""Optimizer steps of a round."""
LR = 0.005
"""Of eta, since the way to go is as long as eta."""
PLACES = 64
"""Most responses dealt in a round."""


@dataclass(frozen=True, kw_only=True)
class Play:
    """What is played, and with which fault."""

    game: str
    """rps, six or gated."""
    rounds: int
    """T, which sets eta."""
    stop: int | None = None
    """Rounds that are played; all T without."""
    deals: str = "all"
    """all: every response, as often as pi_t has it; extremes: the best against the worst, as pairs are selected."""
    sign: int = 1
    """-1: targets 1 - p, a policy that learns to lose."""
    speed: float = 1.0
    """Factor on the learning rate; next to 0, the policy is frozen."""


def rows_of(play: Play, log_pi: Array) -> list[ResponsePair]:
    """One global batch: every response as chosen or rejected, with its win rate against pi as target."""
    p = rates(GAMES[play.game].preference, np.exp(log_pi))
    p = p if play.sign > 0 else 1 - p
    if play.deals == "extremes":
        dealt = [int(p.argmax()), int(p.argmin())]
    else:
        dealt = np.repeat(np.arange(len(p)), multiplicities(np.exp(log_pi), PLACES)).tolist()
    half = len(dealt) // 2
    return [
        ResponsePair(
            id=str(i), prompt=PROMPT, chosen=[w], rejected=[r], p_w=p[w], p_l=p[r], ref_w=log_pi[w], ref_l=log_pi[r]
        )
        for i, (w, r) in enumerate(zip(dealt[:half], dealt[half:], strict=True))
    ]


def write_start(folder: Path, start: Array) -> None:
    """Write a Llama whose softmax after the prompt is `start`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": len(start), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 0}
    heads: dict[str, Any] = {
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 8,
    }
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = LlamaConfig(**size, **heads, **tokens, initializer_range=1.0, tie_word_embeddings=False, dtype="float32")
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        state = model.model(input_ids=torch.tensor([PROMPT]))[0][0, -1]
        model.lm_head.weight.copy_(torch.tensor(np.log(start))[:, None] * state / state.square().sum())
    model.save_pretrained(folder)


def train(play: Play, log_pi: Array, old: Path, new: Path) -> tuple[Array, list[dict[str, Any]]]:
    """Train the policy in `old` to convergence into `new`; return its log pi and the record of each optimizer step."""
    from sparring.stages.train.files.publish import publish
    from sparring.stages.train.model.scorer import score
    from sparring.stages.train.trainer.arguments import arguments
    from sparring.stages.train.trainer.trainer import Hooks, PairTrainer

    rows, eta = rows_of(play, log_pi), eta_of(len(log_pi), play.rounds)
    sppo: Any = objective("sppo")
    wanted = settings(
        objective=replace(sppo, beta=1 / eta),
        repulsion=OFF,
        optimizer="rmsprop",
        lr=LR * eta * play.speed,
        warmup_ratio=0.0,
        epochs=STEPS,
        global_batch=len(rows),
        max_grad_norm=0.0,
        micro_batch=PLACES,
        checkpoint_steps=STEPS + 1,
        band_every=0,
    )
    order, _ = deal([row.shared_length for row in rows], STEPS, len(rows), wanted.seed)
    args = arguments(wanted, Workers(), STEPS, new)
    records: list[dict[str, Any]] = []
    trainer = PairTrainer(
        model=worker.load_policy(old, wanted),
        args=args,
        settings=wanted,
        rows=rows,
        order=order,
        end_of_turn=frozenset(),
        hooks=Hooks(
            on_step=records.append,
            stage_checkpoint=lambda _: new,
            seal_checkpoint=lambda *_: None,
            must_end=lambda: False,
        ),
        resumed_from=0,
    )
    trainer.train()
    trainer.model_wrapped.eval()
    each = [ResponsePair(id=str(y), prompt=PROMPT, chosen=[y], rejected=[y]) for y in range(len(log_pi))]
    trained = np.array([z for z, _ in score(trainer.model_wrapped, each)])
    publish(trainer.model, old, new, torch.float32, keep=True)
    return trained, records


def played(play: Play, folder: Path) -> dict[str, Any]:
    """Log pi_0 ... log pi_T, and `noise` and `unconverged` over all rounds; `folder` holds the policies."""
    policies, noise, unconverged = [np.log(GAMES[play.game].start)], [], []
    for t in range(play.stop or play.rounds):
        policy, records = train(play, policies[-1], folder / str(t), folder / str(t + 1))
        policies.append(policy)
        noise.append(records[0]["abs_h"])
        unconverged.append(records[-1]["grad_norm"] / records[0]["grad_norm"])
    return {"policies": [policy.tolist() for policy in policies], "noise": max(noise), "unconverged": max(unconverged)}


def main(plays: Sequence[Play], out: Path) -> None:
    """Play all and write what came of them."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    with tempfile.TemporaryDirectory(prefix="sparring-game-") as name:
        folders = [Path(name) / str(i) for i in range(len(plays))]
        for play, folder in zip(plays, folders, strict=True):  # first: once ZeRO-3 is on, new models are partitioned
            write_start(folder / "0", GAMES[play.game].start)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        worker.prepare_process(Workers())
        gc.collect()
        gc.freeze()  # every training collects garbage twice, among all that was imported
        out.write_text(
            json.dumps([played(play, folder) for play, folder in zip(plays, folders, strict=True)]), encoding="utf-8"
        )
        dist.destroy_process_group()


if __name__ == "__main__":
    main([Play(**fields) for fields in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))], Path(sys.argv[2]))
