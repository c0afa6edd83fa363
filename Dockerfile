# Two images. `service`: the API, without torch. `worker`: torch, Ray and everything: dispatcher, Ray head, GPU hosts.
#
#   docker build --target service -t bitpress-service .
#   docker build --target worker -t bitpress-worker .
#
# Without CUDA, for laptops and CI: put torch's CPU wheel for Python 3.11 into deploy/wheels and add
#   --build-arg TORCH=cpu
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/bitpress/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Code belongs to root: the processes run as a user who cannot change it, and keep what they write in /state.
RUN groupadd --gid 10001 bitpress \
 && useradd --uid 10001 --gid bitpress --home-dir /state --no-create-home --shell /usr/sbin/nologin bitpress \
 && install -d -o bitpress -g bitpress -m 0700 /state

FROM base AS build
COPY deploy/locks/build.txt /tmp/
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r /tmp/build.txt

FROM build AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY service service
COPY workers workers
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM base AS service-packages
COPY deploy/locks/service.txt /tmp/
RUN python -m venv /opt/bitpress && pip install --require-hashes -r /tmp/service.txt
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-deps /tmp/wheel/*.whl

FROM build AS worker-packages
ARG TORCH=cuda
COPY deploy/locks/worker.txt deploy/locks/torch.txt /tmp/
COPY deploy/wheels /tmp/wheels
RUN python -m venv /opt/bitpress \
 && case "$TORCH" in \
      cuda) pip install --no-deps --require-hashes -r /tmp/torch.txt ;; \
      cpu) pip install --no-deps --no-index /tmp/wheels/torch-*.whl ;; \
      *) echo "TORCH: expected cuda or cpu, found $TORCH" >&2; exit 1 ;; \
    esac
# What lm-eval needs is in part published as source alone: built here, by what the lock has.
# Beyond the lock: what a site or a test wants beside it, in deploy/wheels/requirements.txt.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --require-hashes --wheel-dir /tmp/locked -r /tmp/worker.txt \
 && pip install --no-deps --no-index /tmp/locked/*.whl && rm -r /tmp/locked \
 && if [ -f /tmp/wheels/requirements.txt ]; then pip install -r /tmp/wheels/requirements.txt; fi
COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-deps /tmp/wheel/*.whl && python -c "import torch, transformers, ray, numba, bitpress_workers"

FROM base AS runtime
ARG VERSION=dev
LABEL org.opencontainers.image.title="Bitpress" \
      org.opencontainers.image.description="Compresses large language models after training" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
ENV HOME=/state BITPRESS_STATE_DIR=/state/bitpress
COPY deploy/containers /usr/local/bin/
WORKDIR /state
USER 10001:10001
ENTRYPOINT ["with-secrets"]

FROM runtime AS service
COPY --from=service-packages /opt/bitpress /opt/bitpress
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["http-ok", "http://127.0.0.1:8000/livez"]
CMD ["python", "-P", "-m", "bitpress_service"]

FROM runtime AS worker
# A GEMM's bits must not depend on where its operands lie in memory; read by MKL when torch loads it.
ENV MKL_CBWR=AUTO,STRICT THP_MEM_ALLOC_ENABLE=1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 HF_HUB_DISABLE_TELEMETRY=1 NUMBA_CACHE_DIR=/state/numba
COPY --from=worker-packages /opt/bitpress /opt/bitpress
CMD ["ray-worker"]
