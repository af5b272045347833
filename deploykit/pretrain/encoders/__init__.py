"""Encoders: one file each, found by file name.

A file offers ``Options`` (frozen dataclass), and ``build(space, options) -> Encoder``.
An encoder is a torch module with ``dim``, ``pooling`` (words for people) and ``forward(Input) -> [batch, dim]``. One
that also has ``tokens`` and their ``width`` can be trained by objectives that hide elements.
"""
