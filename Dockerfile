# syntax=docker/dockerfile:1
#
#   docker build --target runtime-cpu -t deploykit:cpu .        small: runs bundles, holds no torch
#   docker build --target builder     -t deploykit:builder .    builds bundles
#
#   docker run --rm -v "$PWD/build/minilm.bundle:/bundle:ro" -v "$PWD:/data" deploykit:cpu embed /bundle /data/texts.txt -o /data/vectors.npy

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
RUN pip install --no-cache-dir "hatchling==1.33.0"
COPY pyproject.toml README.md LICENSE ./
COPY deploykit ./deploykit
RUN python -m hatchling build -t wheel -d /wheels


FROM python:${PYTHON}-slim AS base
# The bundle stays read-only; what engines compile for this machine goes to the user's own cache.
RUN useradd --create-home --uid 10001 deploykit
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY .ci/constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /wheels
WORKDIR /home/deploykit


FROM base AS builder
RUN wheel="$(ls /wheels/*.whl)" \
 && pip install --constraint /tmp/constraints.txt "${wheel}[export,ort,openvino,text,image,audio]" \
 && rm -rf /wheels /tmp/constraints.txt
USER 10001
ENTRYPOINT ["deploykit"]
CMD ["--help"]


# Last, so that a plain `docker build .` makes the small one.
FROM base AS runtime-cpu
RUN wheel="$(ls /wheels/*.whl)" \
 && pip install --constraint /tmp/constraints.txt "${wheel}[ort,text,image]" \
 && rm -rf /wheels /tmp/constraints.txt
USER 10001
VOLUME /bundle
# Healthy: the mounted bundle reproduces its own vectors here.
HEALTHCHECK --interval=5m --timeout=2m --start-period=30s \
  CMD ["deploykit", "bundle", "selftest", "/bundle"]
ENTRYPOINT ["deploykit"]
CMD ["doctor"]
