"""A child process, one of two: trains with its half of the weights; the first of them dies behind step ``stop``."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from deploykit.pretrain import run
from tests.pretrain import made


def main(output, data, stop, resume, encoder):
    torch.set_num_threads(1)

    def die(line):
        if line["step"] == int(stop):
            os.kill(os.getpid(), signal.SIGKILL)

    run.pretrain(made.spread(Path(output), data, encoder), resume=resume == "1", on_line=die)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
