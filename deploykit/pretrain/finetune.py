"""Fine-tuning on labels at the end of a run, on request: what the encoder is worth where labels are at hand.

Importing this module imports torch. Copies are trained: the encoder that is exported stays what it was. The same
encoder untrained is fine-tuned beside it, so that what pretraining brought can be told from what the labels did.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import CheckError
from deploykit.pretrain import arithmetic, trainer
from deploykit.pretrain.draws import Draws, step_seed
from deploykit.pretrain.inputs import Held
from deploykit.pretrain.recipe import FinetuneSection, TrainingSection

_BATCH = 256
Tell = Callable[[dict[str, Any]], None]


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
    encoders: Mapping[str, nn.Module],
    adapter: Any,
    sets: Mapping[str, Held],
    options: FinetuneSection,
    seed: int,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Accuracies in percent of every encoder after fine-tuning on ``sets["learn"]``, on each of the other sets.

    ``tell`` gets a line every ``log_every`` steps, which names the encoder under ``finetune``.
    Raises `CheckError` when the loss is no longer a number.
    """
    learn = sets["learn"]
    asked = {name: held for name, held in sets.items() if name != "learn" and held.labels is not None}
    found: dict[str, Any] = {}
    for name, encoder in encoders.items():
        model = train(encoder, adapter, learn, options, seed, partial(_named, tell, name))
        rows = {part: {"accuracy": _accuracy(model, adapter, held), "n": len(held)} for part, held in asked.items()}
        found[name] = {"steps": steps_of(options, len(learn)), **rows}
    return found


def _named(tell: Tell | None, name: str, line: dict[str, Any]) -> None:
    if tell is not None:
        tell({"finetune": name, **line})


def steps_of(options: FinetuneSection, samples: int) -> int:
    """How many steps fine-tuning takes."""
    return max(1, round(options.epochs * (samples // options.batch)))


def train(encoder: nn.Module, adapter: Any, learn: Held, options: FinetuneSection, seed: int, tell: Tell) -> Classifier:
    """A fine-tuned copy of ``encoder`` with a head, in evaluation mode; the same for the same seed."""
    assert learn.labels is not None
    device = next(encoder.parameters()).device
    torch.manual_seed(seed)
    model = Classifier(copy.deepcopy(encoder), len(learn.classes)).to(device).train()
    pace = TrainingSection(lr=options.lr, weight_decay=options.weight_decay)
    optimizer = trainer.make_optimizer(model, pace, device)
    steps, order = steps_of(options, len(learn)), torch.empty(0, dtype=torch.long)
    since, told = time.perf_counter(), 0
    for step in range(steps):
        torch.manual_seed(step_seed(seed, step))
        if len(order) < options.batch:
            order = torch.randperm(len(learn))
        places, order = order[: options.batch], order[options.batch :]
        draws = Draws(step_seed(seed, step, 1), len(places), 0, len(places), device)
        loss = _loss(model, adapter, learn, places, options, draws)
        value, done = float(loss.detach()), step + 1
        if not math.isfinite(value):
            hint = "lower finetune.lr and --resume: the encoder is trained and stays as it is"
            raise CheckError(f"the loss of fine-tuning is {value} at step {done}", hint=hint)
        for group in optimizer.param_groups:
            group["lr"] = trainer.rate(pace, step, steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), pace.clip)
        optimizer.step()
        if done % options.log_every == 0 or done == steps:
            now = time.perf_counter()
            speed = round((done - told) * options.batch / max(now - since, 1e-9), 1)
            since, told = now, done
            epoch = round(done / (len(learn) // options.batch), 3)
            lr = trainer.rate(pace, step, steps)
            tell({"step": done, "steps": steps, "epoch": epoch, "loss": value, "lr": lr, "inputs_per_s": speed})
    return model.eval()


def _loss(
    model: Classifier, adapter: Any, learn: Held, places: Tensor, options: FinetuneSection, draws: Draws
) -> Tensor:
    """Cross-entropy of the inputs at ``places``."""
    assert learn.labels is not None
    device = model.head.weight.device
    rows = tuple(t[places].to(device) for t in learn.tensors)
    given = adapter.views(rows, 1, draws)[0] if options.augment else adapter.clean(rows)
    given = given._replace(values=arithmetic.laid_out(given.values, model))
    with torch.autocast(device.type, torch.bfloat16, enabled=arithmetic.uses_bf16(options.precision, device)):
        scores = model(given)
    return F.cross_entropy(scores.float(), learn.labels[places].to(device))


@torch.no_grad()
def _accuracy(model: Classifier, adapter: Any, held: Held) -> float:
    assert held.labels is not None
    device = model.head.weight.device
    right = 0
    for places in torch.split(torch.arange(len(held)), _BATCH):
        scores = model(adapter.clean(tuple(t[places].to(device) for t in held.tensors)))
        right += int((scores.argmax(dim=1).cpu() == held.labels[places]).sum())
    return round(100 * right / len(held), 2)
