"""Modalities: one file each, found by file name; an adapter never sees an objective.

A file offers ``Options`` (frozen dataclass) and ``Adapter`` with

- ``Adapter.fit(options, inputs, seed)``: learn what the data decide (mean and deviation, a tokenizer);
- ``Adapter(options, facts)``: the same from the facts of a finished run, which are plain JSON data;
- ``space``: the elements of an input (`deploykit.pretrain.elements`);
- ``read(input)``: one raw input as a tuple of arrays, which `InputError` when it cannot be read;
- ``clean(held)`` and ``views(held, count, draws)``: rows of held tensors as the encoder takes them;
- ``raw(held)``: numbers to compare the encoder with, [n, features], before any training;
- ``card(folder)``: inputs and preprocessing of the exported encoder;
- ``lengths(held)``: the length of each sample, where they differ.
- ``parts(inputs)``: what is learnt from, where long inputs become several.
"""
