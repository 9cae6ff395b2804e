# sparring from the lock of one hardware, with Ray's dashboard, which KubeRay and `ray job submit` ask for.
#
#     docker build --build-arg HARDWARE=cuda -t sparring:cuda .       or HARDWARE=cpu
#
# CUDA's libraries come with the lock's packages; the driver (580 or later) is the node's.
FROM debian:bookworm-slim
ARG HARDWARE=cpu

# gcc and Python's headers: Triton and DeepSpeed compile at first use. wget: KubeRay's probes. ip: scripts/slurm.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends \
      ca-certificates g++ gcc git iproute2 libc6-dev make procps python3.11 python3.11-dev python3.11-venv wget \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sparring
ENV SPARRING_CACHE=/opt/sparring/.cache PATH=/opt/sparring/.venv/bin:$PATH
COPY . .
RUN make setup HARDWARE=$HARDWARE PYTHON=/usr/bin/python3.11 \
 && .venv/bin/python -m pip install --no-cache-dir --constraint requirements/$HARDWARE.txt 'ray[default]' \
 && rm -rf /root/.cache

CMD ["sparring", "--help"]
