"""Fine-tuning on labels at the end of a run, on request: what the encoder is worth where labels are at hand.

Importing this module imports torch. Copies are trained: the encoder that is exported stays what it was. The same
encoder untrained is fine-tuned beside it, so that what pretraining brought can be told from what the labels did.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import CheckError, RecipeError
from deploykit.pretrain import trainer
from deploykit.pretrain.draws import Draws, step_seed
from deploykit.pretrain.inputs import Held
from deploykit.pretrain.recipe import FinetuneSection, TrainingSection

_BATCH = 256


class Classifier(nn.Module):
    """An encoder under a linear layer: [batch, classes]."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        dim: Any = encoder.dim
        self.head = nn.Linear(dim, classes)

    def forward(self, given: Any) -> Tensor:
        scores: Tensor = self.head(self.encoder(given))
        return scores


def figures(
    encoders: Mapping[str, nn.Module], adapter: Any, sets: Mapping[str, Held], options: FinetuneSection, seed: int
) -> dict[str, Any]:
    """Accuracies in percent of every encoder after fine-tuning on ``sets["learn"]``, on each of the other sets.

    Raises `RecipeError` where there are fewer labelled inputs than a batch has, `CheckError` when the loss is no longer
    a number.
    """
    learn = sets["learn"]
    if options.batch > len(learn):
        raise RecipeError(
            f"finetune.batch is {options.batch}, and there are {len(learn)} labelled inputs", hint="give a smaller one"
        )
    asked = {name: held for name, held in sets.items() if name != "learn" and held.labels is not None}
    found: dict[str, Any] = {}
    for name, encoder in encoders.items():
        model = train(encoder, adapter, learn, options, seed)
        rows = {part: {"accuracy": _accuracy(model, adapter, held), "n": len(held)} for part, held in asked.items()}
        found[name] = {"steps": steps_of(options, len(learn)), **rows}
    return found


def steps_of(options: FinetuneSection, samples: int) -> int:
    """How many steps fine-tuning takes."""
    return max(1, round(options.epochs * (samples // options.batch)))


def train(encoder: nn.Module, adapter: Any, learn: Held, options: FinetuneSection, seed: int) -> Classifier:
    """A fine-tuned copy of ``encoder`` with a head, in evaluation mode; the same for the same seed."""
    assert learn.labels is not None
    device = next(encoder.parameters()).device
    torch.manual_seed(seed)
    model = Classifier(copy.deepcopy(encoder), len(learn.classes)).to(device).train()
    pace = TrainingSection(lr=options.lr, weight_decay=options.weight_decay)
    optimizer = trainer.make_optimizer(model, pace, device)
    steps, order = steps_of(options, len(learn)), torch.empty(0, dtype=torch.long)
    for step in range(steps):
        torch.manual_seed(step_seed(seed, step))
        if len(order) < options.batch:
            order = torch.randperm(len(learn))
        places, order = order[: options.batch], order[options.batch :]
        rows = tuple(t[places].to(device) for t in learn.tensors)
        draws = Draws(step_seed(seed, step, 1), len(places), 0, len(places), device)
        given = adapter.views(rows, 1, draws)[0] if options.augment else adapter.clean(rows)
        if given.values.ndim == 4:
            given = given._replace(values=given.values.contiguous(memory_format=torch.channels_last))
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            scores = model(given)
        loss = F.cross_entropy(scores.float(), learn.labels[places].to(device))
        if not math.isfinite(float(loss.detach())):
            hint = "lower finetune.lr; the trained encoder itself is whole in the last checkpoint"
            raise CheckError(f"the loss of fine-tuning is {float(loss.detach())} at step {step + 1}", hint=hint)
        for group in optimizer.param_groups:
            group["lr"] = trainer.rate(pace, step, steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), pace.clip)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def _accuracy(model: Classifier, adapter: Any, held: Held) -> float:
    assert held.labels is not None
    device = model.head.weight.device
    right = 0
    for places in torch.split(torch.arange(len(held)), _BATCH):
        scores = model(adapter.clean(tuple(t[places].to(device) for t in held.tensors)))
        right += int((scores.argmax(dim=1).cpu() == held.labels[places]).sum())
    return round(100 * right / len(held), 2)
