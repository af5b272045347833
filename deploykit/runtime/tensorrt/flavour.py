"""The two TensorRTs: one Python API, two modules, and the driver that each needs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from deploykit.runtime.errors import MissingError

# The wheels are named after the CUDA that they hold; a driver of the same or a later major version runs it.
_CUDA_VERSIONS = (11, 12, 13, 14)


@dataclass(frozen=True)
class Flavour:
    """``package`` is what pip installs, ``module`` what Python imports. ``ahead``: it builds for GPUs that are not
    here.
    """

    name: str
    module: str
    package: str
    ahead: bool

    def load(self) -> ModuleType:
        """The module; ModuleNotFoundError where it is not installed, `MissingError` where its libraries are not."""
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError:
            raise
        except (ImportError, OSError, RuntimeError) as error:
            raise MissingError(
                f"{self.package} is installed, and cannot be loaded: {error}",
                hint=f"pip install --force {self.package}",
            ) from error

    def version(self) -> str:
        """The version of the package that is installed; empty when it is not."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""

    def cuda_major(self) -> int:
        """The major version of CUDA that the installed wheel was built with; 0 when its name does not tell."""
        for number in _CUDA_VERSIONS:
            try:
                version(f"{self.package.replace('-', '_')}_cu{number}")
            except PackageNotFoundError:
                continue
            return number
        return 0


TENSORRT = Flavour("tensorrt", "tensorrt", "tensorrt", ahead=False)
RTX = Flavour("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx", ahead=True)
