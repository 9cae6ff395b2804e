"""What the trainer measures in its own forward and backward pass, and the reward calibration that acts on it.

    z, states = instruments.forward(model, batch, step)     each micro-batch, in the place of `forward`
    instruments.record(pairs, d_w, d_l)                     after the backward passes of an optimizer step, on all ranks

All gradients are taken without a pass of their own: those of the head's weight from the states that enter the head,
while its weight is gathered under ZeRO-3; those of the states that the repulsion reads from the one backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparring.stages.errors import DataError
from sparring.stages.train.config import OffCalibration, OffRepulsion, TrainSettings
from sparring.stages.train.loss import band
from sparring.stages.train.loss.head_gradients import Head, add_gradient, products
from sparring.stages.train.loss.loss import scores_of
from sparring.stages.train.loss.reward_calibration import RewardCalibration, calibrate
from sparring.stages.train.model.forward import forward, softcap
from sparring.stages.train.model.hidden_states import Reading


class Instruments:
    """Of one rank; `record` adds up the ranks."""

    def __init__(self, model: Any, settings: TrainSettings) -> None:
        self.route, self.objective = model.route, settings.objective
        every = settings.trainer.band_every
        self.band_every = 0 if self.route.own_logits else every  # its gradients are those of a plain head
        self.head, self.cap = model.get_output_embeddings(), softcap(model)
        repulsion, calibration = settings.repulsion, settings.calibration
        self.reading = None if isinstance(repulsion, OffRepulsion) else Reading(model, repulsion.layer)
        self.calibration = None if isinstance(calibration, OffCalibration) else RewardCalibration(calibration)
        if self.calibration and self.route.own_logits:
            raise DataError(
                f"{model.config.model_type}: its logits are not those of its head, on which calibration="
                f"{calibration.name} measures gradients; use calibration=off."
            )
        self.band: Tensor | None = None
        self.gradients: Tensor | None = None
        """(2, V, H) fp32: sums over pairs of dz_w/dW and of dz_l/dW."""

    def forward(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
        """Return z, calibrated, and the pooled states of a micro-batch of the 0-based optimizer step `step`."""
        banded = self.band_every > 0 and step % self.band_every == 0
        inner: list[Tensor] = []

        def enters_head(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            with torch.no_grad():
                self._add_gradients(inputs[0].detach(), batch, inner if banded else None)

        watched = banded or self.calibration is not None
        handle = self.head.register_forward_pre_hook(enters_head) if watched else None
        try:
            z, states = forward(model, batch, self.reading)
        finally:
            if handle:
                handle.remove()
        if inner:  # by the incentives as they act: after reward calibration
            d_w, d_l = self.objective.incentives(scores_of(z.detach(), batch))
            delta = self.calibration.delta if self.calibration else 1.0
            sums = band.sums(torch.stack(inner), delta * d_w, d_l / delta)
            self.band = sums if self.band is None else self.band + sums
        return (calibrate(z, self.calibration.delta) if self.calibration else z), states

    def _add_gradients(self, x: Tensor, batch: dict[str, Tensor], inner: list[Tensor] | None) -> None:
        """Add the gradients of a micro-batch, and to `inner` the products of each of its pairs.

        x: (N, H), the states that predict the N response tokens, chosen responses first.
        """
        head = Head(
            weight=self.head.weight, bias=getattr(self.head, "bias", None), cap=self.cap, scale=self.route.scale
        )
        mask = batch["response_mask"]
        tokens = batch["input_ids"].flatten()[batch["positions"][mask]]
        lengths = mask.sum(1).tolist()
        half = len(lengths) // 2
        if self.calibration is not None:
            if self.gradients is None:
                self.gradients = torch.zeros((2, *head.weight.shape), device=x.device)
            sizes = [sum(lengths[:half]), sum(lengths[half:])]
            for total, states, ids in zip(self.gradients, x.split(sizes), tokens.split(sizes), strict=True):
                add_gradient(total, states, ids, head)
        if inner is not None:
            responses = list(zip(x.split(lengths), tokens.split(lengths), strict=True))
            for chosen, rejected in zip(responses[:half], responses[half:], strict=True):
                inner.append(products(*chosen, *rejected, head))

    def record(self, pairs: int, d_w: float, d_l: float) -> dict[str, float]:
        """Return what was measured of a global batch of `pairs` with these mean incentives, and start the next one."""
        figures: dict[str, float] = {}
        if self.band is not None:
            dist.all_reduce(self.band)
            figures |= band.record(self.band, pairs)
            self.band = None
        if self.reading is not None and self.reading.gradients is not None:
            # |d(lambda L_rep)/db| / |dL_beta/db|, b a bias of the states that the repulsion reads
            dist.all_reduce(self.reading.gradients)
            norms = torch.linalg.vector_norm(self.reading.gradients, dim=1, dtype=torch.float64)
            beta, repulsion = norms.tolist()
            self.reading.gradients = None
            if beta:
                figures["repulsion_ratio"] = repulsion / beta
        if self.calibration is not None and self.gradients is not None:
            # delta is the one that this step was trained with; the norms and incentives enter the next one's
            dist.all_reduce(self.gradients)
            norm_w, norm_l = (torch.linalg.vector_norm(g, dtype=torch.float64).item() / pairs for g in self.gradients)
            self.gradients.zero_()
            delta = self.calibration.delta
            self.calibration.update(d_w, d_l, norm_w, norm_l)
            skipped = self.calibration.skipped
            figures |= {"delta": delta, "delta_skipped": skipped, "norm_w": norm_w, "norm_l": norm_l}
        return figures
