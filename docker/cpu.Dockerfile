# voxstrata on CPUs. Built in the root of a clone; see docs/containers.md. Not built or run by us yet.
#   docker build -f docker/cpu.Dockerfile -t voxstrata .
#   docker run --rm -v "$PWD:/work" voxstrata extract speech.tsv base -o speech.zarr
ARG PYTHON=3.13

FROM python:${PYTHON}-slim-trixie AS wheel
WORKDIR /build
RUN pip install --no-cache-dir build==1.6.1
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY src src
RUN python -m build --wheel

FROM python:${PYTHON}-slim-trixie
# which of the extras: export brings torch and is needed to make models, not to use them
ARG EXTRAS=export,plot,anyaudio
COPY constraints.txt /tmp/
COPY --from=wheel /build/dist/ /tmp/dist/
# PyTorch's CPU wheels are a tenth of the others
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        --constraint /tmp/constraints.txt "$(echo /tmp/dist/*.whl)[${EXTRAS}]" \
    && rm -r /tmp/dist /tmp/constraints.txt
RUN useradd --create-home --uid 1001 voxstrata
USER 1001
# compiled kernels, hub downloads and what `voxstrata bench` measured: mount a volume there to keep them
ENV XDG_CACHE_HOME=/home/voxstrata/.cache NUMBA_CACHE_DIR=/home/voxstrata/.cache/numba
WORKDIR /work
ENTRYPOINT ["voxstrata"]
CMD ["--help"]
