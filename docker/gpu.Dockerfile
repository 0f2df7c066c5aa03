# shardtune for nodes with NVIDIA GPUs. CUDA comes with torch; the machine brings the driver and the NVIDIA Container
# Toolkit. Build it in the root of the checkout:
#   docker build --file docker/gpu.Dockerfile --tag shardtune-gpu .
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
RUN /opt/shardtune/bin/python -m pip install --constraint constraints.txt \
    '.[prepare,train,ray,s3,gcs,lora,track,score]'

FROM python:3.11.13-slim-bookworm
# KubeRay asks with wget whether a node is well; train.compile, train.liger and offloading compile when they first run.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends wget g++ libaio-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --create-home shardtune && install --directory --owner=1000 --group=1000 /runs /ray /work
COPY --from=build /opt/shardtune /opt/shardtune
COPY --chmod=755 docker/ray-node.sh /opt/shardtune/bin/ray-node
ENV PATH=/opt/shardtune/bin:$PATH PYTHONUNBUFFERED=1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
USER 1000:1000
CMD ["shardtune", "--help"]
