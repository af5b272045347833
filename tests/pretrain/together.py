"""A child process: loss and averaged gradients of one step on this process's part of a global batch of 8."""

import os
import sys

import numpy as np
import torch
import torch.distributed as dist

from deploykit.pretrain.draws import Draws
from deploykit.pretrain.elements import Input, Patches, Tokens
from deploykit.pretrain.encoders import resnet, transformer
from deploykit.pretrain.objectives import adversarial, match, predict

PICTURES, WORDS = Patches((1, 8, 8), (4, 4)), Tokens(10, 40, 4, 5)
SMALL = transformer.Options(width=16, depth=1, heads=2)


def cases():
    for loss in ("vicreg", "infonce", "sigreg"):
        torch.manual_seed(0)
        encoder = resnet.build(PICTURES, resnet.Options(width=8, blocks=(1, 1)))
        yield loss, match.build(PICTURES, encoder, match.Options(loss=loss, hidden=16, out=8)), PICTURES, 2
    for space in (PICTURES, WORDS):
        for objective in (predict, adversarial):
            torch.manual_seed(0)
            options = objective.Options(width=16, depth=1)
            task = objective.build(space, transformer.build(space, SMALL), options)
            yield f"{objective.__name__}-{type(space).__name__}", task, space, 1


def batch(space, view, rows):
    generator = torch.Generator().manual_seed(view)
    if isinstance(space, Patches):
        return Input(torch.randn(8, 1, 8, 8, generator=generator)[rows])
    ids = torch.randint(5, 40, (8, 10), generator=generator)
    valid = (torch.arange(10)[None] < torch.tensor([10, 3, 9, 4, 2, 8, 5, 7])[:, None]).long()
    longest = int(valid[rows].sum(dim=1).max())  # a process cuts its rows to the longest of them
    return Input((ids * valid)[rows, :longest], valid[rows, :longest])


def main(path):
    torch.set_num_threads(1)
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if world > 1:
        dist.init_process_group("gloo")
    found = {}
    own = 8 // world
    for name, task, space, count in cases():
        task.train()
        rows = slice(rank * own, (rank + 1) * own)
        draws = Draws(5, 8, rows.start, rows.stop)
        loss, _ = task([batch(space, view, rows) for view in range(count)], draws)
        loss.backward()
        found[f"{name}/loss"] = loss.detach().numpy()
        for key, parameter in task.named_parameters():
            if parameter.grad is not None:
                if world > 1:
                    dist.all_reduce(parameter.grad)
                found[f"{name}/{key}"] = (parameter.grad / world).numpy()
        for key, value in task.named_buffers():
            found[f"{name}/{key}"] = value.numpy()
    if rank == 0:
        np.savez(path, **found)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
