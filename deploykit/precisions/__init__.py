"""Precisions: one file per way of lowering.

A file ``precisions/NAME.py`` offers ``Options``, a dataclass, ``TOLERANCE``, how far off its vectors may be, and::

    def lower(model: Path, options: Options, out: Path) -> dict[str, Any]

It reads the portable fp32 ONNX at ``model``, writes ``out / "model.onnx"`` and returns the facts for the audit trail
(what was changed, what was kept and why). A precision that an engine reaches through a setting and not through the
graph (bf16 on CPUs) returns ``{"unchanged": True}`` and writes nothing: the target then reads the fp32 model.
"""
