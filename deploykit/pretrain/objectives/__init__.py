"""Objectives: one file each, found by file name; an objective sees elements and embeddings, never a modality.

A file offers ``Options`` (frozen dataclass), ``views(options) -> int`` (how many views of each sample it wants; 0: the
input as it is) and ``build(space, encoder, options) -> torch module`` whose
``forward(views: list[Input], draws: Draws) -> (loss, parts)`` gives the loss of the global batch and its named parts.
"""
