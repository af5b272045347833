"""The exceptions of deploykit, all with a message (the thing and the fact) and a hint (the fix).

::

    DeploykitError                      exit code 2 unless said otherwise
    ├── InputError                      a text, image, waveform or tensor that cannot be encoded
    │   └── NoTokensError               a text that the tokenizer has no tokens for
    ├── UnknownNameError                a target, precision, variant … that does not exist
    ├── BundleError                     a bundle that is refused, with the file and the reason
    ├── RecipeError                     a recipe or command line that does not make sense
    ├── SourceError                     a checkpoint that cannot be used
    │   └── RemoteCodeError             it brings code of its own and nobody allowed that
    ├── ExportError                     no exporter could bring the module to ONNX
    ├── BusyError                       another run holds the path
    ├── CheckError                      exit code 1: a check was run and failed
    │   ├── ProofError                  an artefact disagrees with the model at some shape
    │   └── SelfTestError               a bundle does not reproduce its vectors here
    └── MissingError                    exit code 4: a package, engine, device or permission is missing here
        ├── DiskError                   no space, or a folder that cannot be written
        └── StepCrashError              a native compiler crashed or hung in its child process
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deploykit.runtime.errors import (
    BundleError,
    CheckError,
    DeploykitError,
    InputError,
    MissingError,
    NoTokensError,
    SelfTestError,
    UnknownNameError,
    nearest,
)


class RecipeError(DeploykitError):
    """A recipe, or a command line, that cannot be carried out as written."""


class SourceError(DeploykitError):
    """A model that cannot be loaded or is no encoder."""


class RemoteCodeError(SourceError):
    """A model that needs Python code from its own folder, which is off unless asked for."""


class ExportError(DeploykitError):
    """No exporter could bring the module to ONNX; the message names the operator or source line.

    ``frozen`` names the axis that the model makes a number of, where that is why; ``wrong_at`` are the points at which
    a graph that did come out fails its proof.
    """

    frozen: str = ""
    wrong_at: Sequence[Mapping[str, int]] = ()


class BusyError(DeploykitError):
    """Another run is writing to the same place."""


class ProofError(CheckError):
    """An artefact's embeddings differ from torch's at some shapes of the matrix, ``wrong_at`` where known."""

    wrong_at: Sequence[Mapping[str, int]] = ()


class DiskError(MissingError):
    """No space left, or a folder that cannot be written."""


class StepCrashError(MissingError):
    """A child process died (signal) or ran past its time limit."""


__all__ = [
    "BundleError",
    "BusyError",
    "CheckError",
    "DeploykitError",
    "DiskError",
    "ExportError",
    "InputError",
    "MissingError",
    "NoTokensError",
    "ProofError",
    "RecipeError",
    "RemoteCodeError",
    "SelfTestError",
    "SourceError",
    "StepCrashError",
    "UnknownNameError",
    "nearest",
]
