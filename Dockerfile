# syntax=docker/dockerfile:1
#
#   docker build --target runtime-cpu -t deploykit:cpu .        small: runs bundles, holds no torch
#   docker build --target runtime-gpu -t deploykit:gpu .        runs them on an NVIDIA GPU: onnxruntime-gpu, TensorRT for RTX
#   docker build --target builder     -t deploykit:builder .    builds bundles
#
# Nothing is written outside /cache and /tmp, so the root may be read-only:
#
#   docker run --rm --read-only --tmpfs /tmp -v deploykit-cache:/cache -v "$PWD/build/minilm.bundle:/bundle:ro" \
#     -v "$PWD:/data" deploykit:cpu embed /bundle /data/texts.txt -o /data/vectors.npy
#
# With a GPU: add --gpus all, and nvidia-container-toolkit on the host, which brings the driver in.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
RUN pip install --no-cache-dir "hatchling==1.33.0"
COPY pyproject.toml README.md LICENSE ./
COPY deploykit ./deploykit
RUN python -m hatchling build -t wheel -d /wheels


FROM python:${PYTHON}-slim AS base
# Bundles stay read-only; what is unpacked, chosen and compiled for this machine goes to /cache, which outlives a container.
RUN useradd --create-home --uid 10001 deploykit \
 && install --directory --owner=10001 /cache
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    XDG_CACHE_HOME=/cache
COPY .ci/constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /wheels
WORKDIR /home/deploykit


FROM base AS builder
RUN wheel="$(ls /wheels/*.whl)" \
 && pip install --constraint /tmp/constraints.txt "${wheel}[export,int8,ort,openvino,text,image,audio,sign]" \
 && rm -rf /wheels /tmp/constraints.txt
USER 10001
VOLUME /cache
ENTRYPOINT ["deploykit"]
CMD ["--help"]


# Not on nvidia/cuda: that image holds a CUDA of its own beside the one that the packages were built for and ask for by
# version. Here each library is there once, pinned by the package that loads it, and the Python is that of the other images.
FROM base AS runtime-gpu
RUN wheel="$(ls /wheels/*.whl)" \
 && pip install --constraint /tmp/constraints.txt "${wheel}[ort-gpu,tensorrt,text,image]" "onnxruntime-gpu[cuda,cudnn]" \
 && rm -rf /wheels /tmp/constraints.txt
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
VOLUME /bundle /cache
# Engines of TensorRT are compiled at the first check, and kept in /cache.
HEALTHCHECK --interval=5m --timeout=30m --start-period=30m \
  CMD ["deploykit", "bundle", "selftest", "/bundle"]
ENTRYPOINT ["deploykit"]
CMD ["doctor"]


# Last, so that a plain `docker build .` makes the small one.
FROM base AS runtime-cpu
RUN wheel="$(ls /wheels/*.whl)" \
 && pip install --constraint /tmp/constraints.txt "${wheel}[ort,text,image]" \
 && rm -rf /wheels /tmp/constraints.txt
USER 10001
VOLUME /bundle /cache
# Healthy: the mounted bundle reproduces its own vectors here.
HEALTHCHECK --interval=5m --timeout=2m --start-period=30s \
  CMD ["deploykit", "bundle", "selftest", "/bundle"]
ENTRYPOINT ["deploykit"]
CMD ["doctor"]
