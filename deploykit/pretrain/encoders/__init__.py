"""Encoders: one file each, found by file name.

A file offers ``Options`` (frozen dataclass), ``POOLING`` (a word for people) and ``build(space, options) -> Encoder``.
An encoder is a torch module with ``dim`` and ``forward(Input) -> [batch, dim]``. One that also has ``tokens`` can be
trained by objectives that hide elements.
"""
