# voxstrata on NVIDIA GPUs: CUDA 13, which onnxruntime-gpu 1.31 was built for; the extra `gpu` brings its libraries. Built in
# the root of a clone; see docs/containers.md. Not built or run by us yet.
#   docker build -f docker/cuda.Dockerfile -t voxstrata-cuda .
#   docker run --rm --gpus all -v "$PWD:/work" voxstrata-cuda extract speech.tsv large -o speech.zarr --device cuda
FROM python:3.12-slim-bookworm AS wheel
WORKDIR /build
RUN pip install --no-cache-dir build==1.6.1
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY src src
RUN python -m build --wheel

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
# extracting needs `gpu` alone; models are made elsewhere and copied, or with EXTRAS=gpu,export,plot
ARG EXTRAS=gpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/voxstrata
ENV PATH=/opt/voxstrata/bin:$PATH
COPY constraints.txt /tmp/
COPY --from=wheel /build/dist/ /tmp/dist/
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt "$(echo /tmp/dist/*.whl)[${EXTRAS}]" \
    && rm -r /tmp/dist /tmp/constraints.txt
RUN useradd --create-home --uid 1001 voxstrata
USER 1001
ENV XDG_CACHE_HOME=/home/voxstrata/.cache NUMBA_CACHE_DIR=/home/voxstrata/.cache/numba
WORKDIR /work
ENTRYPOINT ["voxstrata"]
CMD ["--help"]
