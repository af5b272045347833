"""The device half: open a bundle, pick the variant that suits this machine, turn inputs into vectors.

It needs the standard library and numpy; an engine (onnxruntime, openvino) and a preprocessing library (tokenizers,
pillow) are imported when a variant that uses them is opened. Nothing else of deploykit is imported from here, and the
public names load on first use, so that ``import deploykit.runtime`` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit.runtime.bundle import Bundle
    from deploykit.runtime.encoder import Encoder
    from deploykit.runtime.loading import load

__all__ = ["Bundle", "Encoder", "load"]

_HOME = {"Bundle": "bundle", "Encoder": "encoder", "load": "loading"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
