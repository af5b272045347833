"""Trained encoders into production: export, accelerate, prove, embed.

::

    import deploykit
    bundle = deploykit.export("all-MiniLM-L6-v2/", targets=["openvino"], precisions=["bf16"], output="minilm.bundle")
    encoder = deploykit.load("minilm.bundle")      # no torch from here on
    vectors = encoder.encode(["hello", "world"])   # float32 [2, 384]

The public names load on first use: importing deploykit costs next to nothing and needs the standard library alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit.api import export, run
    from deploykit.recipe import Recipe
    from deploykit.runtime import Bundle, Encoder, load

    __version__: str

__all__ = ["Bundle", "Encoder", "Recipe", "__version__", "export", "load", "run"]

_HOME = {
    "Bundle": "deploykit.runtime",
    "Encoder": "deploykit.runtime",
    "Recipe": "deploykit.recipe",
    "export": "deploykit.api",
    "load": "deploykit.runtime",
    "run": "deploykit.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("deploykit")
    elif name in _HOME:
        import importlib

        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
