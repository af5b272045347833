"""The loop: one short function around `accelerate`, which brings devices, precision and processes.

Importing this module imports torch. What a step computes follows from the seed and the step alone: batches, views,
masks and dropout. A run that is stopped anywhere and resumed therefore gives the same losses, bit for bit.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import CheckError, RecipeError
from deploykit.pretrain import arithmetic, checkpoint, distributed
from deploykit.pretrain.draws import Draws, step_seed
from deploykit.pretrain.elements import Input
from deploykit.pretrain.recipe import TrainingSection
from deploykit.runtime.install import pip_install

METRICS = "metrics.jsonl"
Line = dict[str, Any]


@dataclass
class Job:
    """One training: the ``task`` (an objective around its ``encoder``), the data, and what is told to whom.

    ``held`` are tensors in memory with the samples as their first axis, of which those at ``places`` are trained on.
    ``views(rows, draws)`` makes the inputs of one step from some rows of them; ``mixes``: those of one sample also from
    other samples of the batch. ``lengths`` of the samples are what ``training.grouped`` sorts by.
    ``judge(encoder, step)`` gives figures for the metrics, every ``judge_every`` steps. ``on_stage`` hears in a
    sentence what is done between the lines of the metrics.
    """

    task: nn.Module
    encoder: nn.Module
    held: tuple[Tensor, ...]
    places: Tensor
    views: Callable[[tuple[Tensor, ...], Draws], list[Input]]
    views_per_sample: int
    options: TrainingSection
    seed: int
    folder: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    lengths: Tensor | None = None
    mixes: bool = False
    judge: Callable[[nn.Module, int], Line] | None = None
    judge_every: int = 0
    on_line: Callable[[Line], None] | None = None
    on_stage: Callable[[str], None] = lambda text: None


def steps_of(options: TrainingSection, samples: int) -> int:
    """How many steps a run has; `RecipeError` when a batch is larger than the data."""
    if options.batch > samples:
        raise RecipeError(
            f"training.batch is {options.batch}, and there are {samples} samples", hint=f"give {samples} or fewer"
        )
    return options.steps or max(1, round(options.epochs * (samples // options.batch)))


def rate(options: TrainingSection, step: int, steps: int) -> float:
    """Learning rate of a step: a linear rise, then cosine to 0, or level with a linear fall over the last fifth."""
    rise = max(1, round(options.warmup * steps))
    if step < rise:
        return options.lr * (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    if options.schedule == "cosine":
        return options.lr * 0.5 * (1 + math.cos(math.pi * done))
    return options.lr * min(1.0, (1 - done) / 0.2) if options.schedule == "wsd" else options.lr


def make_accelerator(options: TrainingSection) -> Any:
    """The `accelerate.Accelerator` that the recipe asks for; `MissingError` without the package.

    `RecipeError` where it would leave processes that were started together to themselves.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        from deploykit.errors import MissingError

        hint = pip_install("pretrain")
        raise MissingError("pretraining needs accelerate, which is not installed", hint=hint) from error
    if distributed.world() == 1:
        AcceleratorState._reset_state(True)  # it is one per process, and the precision of an earlier run would stay
    device = arithmetic.device_of(options.device)
    precision = "bf16" if arithmetic.uses_bf16(options.precision, device) else "no"
    # Without a GPU it must be told so: it otherwise joins the processes and then takes each for the only one.
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    if accelerator.num_processes != distributed.world():
        raise RecipeError(
            f"{distributed.world()} processes were started, and accelerate knows of {accelerator.num_processes}",
            hint="start them with torchrun or `accelerate launch`, as many as there are GPUs, or on the CPU alone",
        )
    return accelerator


def fit(job: Job, accelerator: Any, resume: bool) -> dict[str, Any]:
    """Train to the end, from the last checkpoint with ``resume``; returns the figures of the whole run.

    Leaves ``job.encoder`` whole, with the averaged weights where the recipe asks for them. `CheckError` when the
    loss is no longer a number, with the step and the last good checkpoint.
    """
    options, device = job.options, accelerator.device
    steps = steps_of(options, len(job.places))
    job.task.to(device)
    whole = job.encoder
    if _is_sharded(options):
        whole = copy.deepcopy(job.encoder)
        distributed.shard(job.task, device)
    else:  # FSDP2 takes no other layout than torch's own
        job.task.to(memory_format=arithmetic.memory_format(job.task))  # type: ignore[call-overload]
    optimizer = make_optimizer(job.task, options, device)
    average = _Average(job.encoder, options.ema)
    clock = _Clock()
    start = _restore(job, optimizer, average, clock) if resume else 0
    if options.compile:
        job.encoder.compile()
    task = job.task if _is_sharded(options) else accelerator.prepare(job.task)
    prepared = accelerator.prepare(optimizer)
    batches = _Prefetch(job, device, start, steps)
    job.task.train()
    clock.restart()
    how = arithmetic.precision_sentence(options.precision, device)
    job.on_stage(f"training: step {start + 1} of {steps}, {options.batch} of {len(job.places)} samples each, {how}")
    try:
        for step in range(start, steps):
            torch.manual_seed(step_seed(job.seed, step, distributed.rank()))
            for group in prepared.param_groups:
                group["lr"] = rate(options, step, steps)
            loss, parts = _step(job, accelerator, task, prepared, batches, clock, step)
            average.update(job.encoder, step)
            done = step + 1
            if step == start:
                job.on_stage(f"training: the first step took {clock.since():.1f} s")
            clock.views += options.batch * max(1, job.views_per_sample)
            if done % options.log_every == 0 or done == steps:
                _tell(job, _line(job, done, steps, loss, parts, rate(options, step, steps), clock))
            if job.judge and job.judge_every and done % job.judge_every == 0 and done < steps:
                clock.lap()
                with average.applied(job.encoder, whole):
                    _tell(job, {"step": done, "probe": job.judge(whole, done)})
                job.task.train()
                clock.restart()
            if done % options.save_every == 0 or done == steps:  # last: what a killed run had told is told again
                _save(job, optimizer, average, clock, done)
    finally:
        batches.close()
    average.applied(job.encoder, whole).begin()
    job.encoder = whole
    job.task.eval()
    seconds = clock.training
    return {"steps": steps, "seconds": round(seconds, 1), "data_wait": clock.share(), "resumed_at": start}


def _is_sharded(options: TrainingSection) -> bool:
    return options.shard and distributed.world() > 1


def _step(
    job: Job, accelerator: Any, task: nn.Module, optimizer: Any, batches: _Prefetch, clock: _Clock, step: int
) -> tuple[float, dict[str, float]]:
    count = job.options.accumulate
    losses, parts = 0.0, dict[str, float]()
    optimizer.zero_grad()
    for micro in range(count):
        with clock.waiting():
            views, draws = batches.next()
        with accelerator.no_sync(task) if micro < count - 1 else nullcontext():
            with accelerator.autocast():
                loss, named = task(views, draws)
            losses += float(loss.detach()) / count
            for name, value in named.items():
                parts[name] = parts.get(name, 0.0) + float(value.detach()) / count
            if not math.isfinite(losses):
                raise _broken(job, step, f"the loss is {losses}")
            accelerator.backward(loss / count)
    norm = accelerator.clip_grad_norm_(job.task.parameters(), job.options.clip or math.inf)
    length = float(distributed.full(norm))
    if not math.isfinite(length):
        raise _broken(job, step, f"the gradient's norm is {length}")
    optimizer.step()
    return losses, parts


def _broken(job: Job, step: int, fact: str) -> CheckError:
    path = job.folder / checkpoint.NAME
    last = f"the last good checkpoint is {path}" if path.exists() else "there is no checkpoint yet"
    return CheckError(
        f"{fact} at step {step + 1}; {last}", hint="lower training.lr, or set training.precision to fp32, and --resume"
    )


def make_optimizer(task: nn.Module, options: TrainingSection, device: torch.device) -> torch.optim.Optimizer:
    """Fused AdamW; vectors (norms, biases) are not decayed."""
    parameters = [p for p in task.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    betas = (options.betas[0], options.betas[1])
    return torch.optim.AdamW(groups, lr=options.lr, betas=betas, fused=device.type in ("cpu", "cuda"))


class _Average:
    """Exponential moving average of the encoder's weights and buffers; nothing where ``decay`` is 0.

    It forgets faster in the beginning, (1 + step) / (10 + step) at most: the first weights are random.
    """

    def __init__(self, encoder: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {k: v.detach().clone() for k, v in encoder.state_dict().items()} if decay else {}

    @torch.no_grad()
    def update(self, encoder: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in encoder.state_dict().items() if self.decay else ():
            if value.is_floating_point():
                self.tensors[name].lerp_(value, 1 - decay)
            else:
                self.tensors[name].copy_(value)

    def applied(self, encoder: nn.Module, whole: nn.Module) -> _Swapped:
        return _Swapped(self, encoder, whole)


class _Swapped:
    """``whole`` with averaged weights, or those of ``encoder`` without, for as long as the block lasts.

    They are one module unless the weights of ``encoder`` are spread over processes.
    """

    def __init__(self, average: _Average, encoder: nn.Module, whole: nn.Module) -> None:
        self._average, self._encoder, self._whole = average, encoder, whole

    def begin(self) -> None:
        tensors = self._average.tensors or self._encoder.state_dict()
        self._whole.load_state_dict({name: distributed.full(value) for name, value in tensors.items()})

    def __enter__(self) -> None:
        self._own = {k: v.detach().clone() for k, v in self._whole.state_dict().items()}
        self.begin()

    def __exit__(self, *_: object) -> None:
        self._whole.load_state_dict(self._own)


class _Prefetch:
    """The inputs of one part of a step after the other, made in a thread while the part before is trained on.

    On that thread torch computes with it alone: a second pool of threads would take the cores from the training, which
    then is a tenth slower on two of them.
    """

    def __init__(self, job: Job, device: torch.device, start: int, steps: int) -> None:
        self._job, self._device = job, device
        self._places = iter([(s, m) for s in range(start, steps) for m in range(job.options.accumulate)])
        self._orders = _orders(job)
        self._thread = ThreadPoolExecutor(1, "deploykit-views", initializer=torch.set_num_threads, initargs=(1,))
        self._coming = self._submit()

    def next(self) -> tuple[list[Input], Draws]:
        assert self._coming is not None
        made = self._coming.result()
        self._coming = self._submit()
        return made

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _submit(self) -> Future[tuple[list[Input], Draws]] | None:
        place = next(self._places, None)
        return None if place is None else self._thread.submit(self._make, *place)

    @torch.no_grad()
    def _make(self, step: int, micro: int) -> tuple[list[Input], Draws]:
        options, processes = self._job.options, distributed.world()
        part = options.batch // options.accumulate
        own = part // processes
        begin = distributed.rank() * own
        begun, ended = (0, part) if self._job.mixes else (begin, begin + own)
        rows = self._job.places[self._orders(step)[micro * part + begun : micro * part + ended]]
        held = tuple(t[rows].to(self._device, non_blocking=True) for t in self._job.held)
        seeds = step_seed(self._job.seed, step, micro, 1)
        views = self._job.views(held, Draws(seeds, part, begun, ended, self._device))
        kept = slice(begin - begun, begin - begun + own)
        valid = [None if view.valid is None else view.valid[kept] for view in views]
        values = [arithmetic.laid_out(view.values[kept], self._job.task) for view in views]
        return [Input(*pair) for pair in zip(values, valid, strict=True)], Draws(
            step_seed(seeds, 2), part, begin, begin + own, self._device
        )


def _orders(job: Job) -> Callable[[int], Tensor]:
    """The samples of each step: a new order of all every epoch; a rest smaller than a batch waits for the next.

    Where they are grouped, so many batches of that order are sorted by length, and all batches then take a new order.
    """
    samples, batch, lengths = len(job.places), job.options.batch, job.lengths
    whole = samples // batch
    known: dict[int, Tensor] = {}

    def rows(step: int) -> Tensor:
        epoch, place = divmod(step, whole)
        if epoch not in known:
            known.clear()
            generator = torch.Generator().manual_seed(step_seed(job.seed, epoch))
            order = torch.randperm(samples, generator=generator)
            if lengths is not None and job.options.grouped:
                groups = torch.split(order[: whole * batch], batch * job.options.grouped)
                order = torch.cat([g[lengths[job.places[g]].argsort(stable=True)] for g in groups])
                order = order.view(whole, batch)[torch.randperm(whole, generator=generator)].flatten()
            known[epoch] = order
        return known[epoch][place * batch : (place + 1) * batch]

    return rows


class _Clock:
    """Time since the last line, and how much of it the loop waited for data; ``training``, ``waited_all``: in all."""

    def __init__(self) -> None:
        self.training = self.waited_all = 0.0
        self.restart()

    def restart(self) -> None:
        self._since, self.waited, self.views = time.perf_counter(), 0.0, 0

    def since(self) -> float:
        """Seconds since the last lap."""
        return time.perf_counter() - self._since

    def lap(self) -> tuple[float, float, int]:
        """(seconds, seconds waited, views) since the last lap."""
        passed = time.perf_counter() - self._since
        result = passed, self.waited, self.views
        self.training += passed
        self.waited_all += self.waited
        self.restart()
        return result

    def share(self) -> float:
        """Share of all the time that was spent waiting."""
        return round(self.waited_all / max(self.training, 1e-9), 4)

    def waiting(self) -> _Waiting:
        return _Waiting(self)


class _Waiting:
    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._clock.waited += time.perf_counter() - self._begun


def _line(job: Job, step: int, steps: int, loss: float, parts: Mapping[str, float], lr: float, clock: _Clock) -> Line:
    seconds, waited, views = clock.lap()
    epoch = step / (len(job.places) // job.options.batch)
    return {
        **{"step": step, "steps": steps, "epoch": round(epoch, 3), "loss": loss, "parts": dict(parts), "lr": lr},
        "views_per_s": round(views / max(seconds, 1e-9), 1),
        "data_wait": round(waited / max(seconds, 1e-9), 4),
    }


def _tell(job: Job, line: Line) -> None:
    if distributed.rank() == 0:
        with (job.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if job.on_line is not None:
            job.on_line(line)


def _save(job: Job, optimizer: torch.optim.Optimizer, average: _Average, clock: _Clock, step: int) -> None:
    model = {name: distributed.full(value) for name, value in job.task.state_dict().items()}
    ema = {name: distributed.full(value) for name, value in average.tensors.items()}
    known = optimizer.state_dict()["state"]
    entries = {i: {k: distributed.full(v) for k, v in entry.items()} for i, entry in known.items()}
    for name, value in model.items():  # the last checkpoint shall be a good one
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise _broken(job, step - 1, f"'{name}' holds what is no number")
    if distributed.rank() == 0:
        seconds = (clock.training, clock.waited_all)
        state = checkpoint.State(step, model, ema, entries, torch.get_rng_state(), dict(job.facts), seconds)
        checkpoint.save(job.folder / checkpoint.NAME, state)


def _restore(job: Job, optimizer: torch.optim.Optimizer, average: _Average, clock: _Clock) -> int:
    """Load the last checkpoint and drop the metrics behind it; returns its step."""
    path = job.folder / checkpoint.NAME
    state = checkpoint.load(path)
    checkpoint.fit_weights(job.task, state.model, path)
    whole = optimizer.state_dict()
    order = [p for group in optimizer.param_groups for p in group["params"]]
    whole["state"] = {
        i: {k: distributed.spread_like(v, order[i]) if v.ndim else v for k, v in entry.items()}
        for i, entry in state.optimizer.items()
    }
    optimizer.load_state_dict(whole)
    for name, value in average.tensors.items():
        if name in state.ema:
            value.copy_(distributed.spread_like(state.ema[name], value))
    torch.set_rng_state(state.rng)
    clock.training, clock.waited_all = state.seconds
    metrics = job.folder / METRICS
    if metrics.exists() and distributed.rank() == 0:
        kept = [line for line in _whole_lines(metrics) if json.loads(line)["step"] <= state.step]
        part = metrics.with_name(metrics.name + ".part")
        part.write_text("".join(kept), encoding="utf-8")
        part.replace(metrics)
    return state.step


def _whole_lines(path: Path) -> Iterator[str]:
    """Lines that were written to their end: the last one of a killed run may not have been."""
    return (line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n"))
