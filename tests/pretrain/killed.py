"""A child process: a run that kills itself with SIGKILL in the middle of step 7."""

import os
import signal
import sys
from pathlib import Path

from deploykit.pretrain import run
from tests.pretrain import made


def die(line):
    if line["step"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    run.pretrain(made.resumable(Path(sys.argv[1]), *sys.argv[2:]), on_line=die)
