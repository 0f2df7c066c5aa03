# shardtune for nodes without GPUs: preparation, training on CPUs, Ray. Build it in the root of the checkout:
#   docker build --file docker/cpu.Dockerfile --tag shardtune-cpu .
FROM python:3.11.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/shardtune
WORKDIR /source
COPY constraints.txt pyproject.toml setup.py README.md ./
COPY configs configs/
COPY data_tools data_tools/
COPY launcher launcher/
COPY sft sft/
COPY slurm slurm/
# torch of the same version without CUDA comes from PyTorch's own index.
RUN /opt/shardtune/bin/python -m pip install --constraint constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu '.[prepare,train,ray,s3,gcs]'

FROM python:3.11.13-slim-bookworm
# KubeRay asks with wget whether a node is well.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --create-home shardtune && install --directory --owner=1000 --group=1000 /runs /ray /work
COPY --from=build /opt/shardtune /opt/shardtune
COPY --chmod=755 docker/ray-node.sh /opt/shardtune/bin/ray-node
ENV PATH=/opt/shardtune/bin:$PATH PYTHONUNBUFFERED=1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
WORKDIR /work
USER 1000:1000
CMD ["shardtune", "--help"]
