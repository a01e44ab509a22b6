# HTTP front end, without torch.
FROM python:3.11-slim-bookworm
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/uvos && useradd --system --uid 10001 --home-dir /data uvos && install -d -o uvos /data
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY uvos uvos
COPY service service
COPY worker/__init__.py worker/__init__.py
RUN /opt/uvos/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[service]'
ENV PATH=/opt/uvos/bin:$PATH UVOS_DATA_DIR=/data UVOS_HOST=0.0.0.0
USER uvos
WORKDIR /data
VOLUME /data
EXPOSE 8000
CMD ["uvos", "serve"]
