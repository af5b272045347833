"""Self-supervised pretraining: from unlabelled data to an encoder that ``deploykit export`` takes.

Three kinds of pieces, one file each, that know nothing of one another (the idea of data2vec, arXiv:2202.03555)::

    modalities/   image, text, audio          raw inputs → tensors in memory, views, elements (patches or tokens)
    encoders/     transformer, resnet, cnn    tensors → token vectors → one pooled embedding
    objectives/   match, predict, adversarial what is learnt; sees elements and embeddings, never a modality

`run.pretrain` joins them. What is handed on is always encoder → pooled embedding; heads of an objective stay behind.
"""
