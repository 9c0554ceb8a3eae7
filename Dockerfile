# Tiebreak in two images:
#   docker build --target web   -t tiebreak:web .      web, housekeeping, beat, migrate; without PyTorch
#   docker build --target train -t tiebreak:train .    the GPU queue's worker
# TORCH_INDEX chooses PyTorch's build for `train`, for example https://download.pytorch.org/whl/cpu.

FROM python:3.12-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH
RUN useradd --system --uid 10001 --create-home --home-dir /data tiebreak
WORKDIR /srv/tiebreak
RUN python -m venv /opt/venv
# The dependencies first, so that a change of ours does not install them again.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir -p app workers && touch app/__init__.py workers/__init__.py

FROM base AS web
RUN pip install --editable ".[s3]"
COPY . .
USER tiebreak
ENV TIEBREAK_DATA=/data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["uvicorn", "app.main:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", \
     "--no-access-log", "--no-server-header", "--timeout-graceful-shutdown", "5"]

FROM base AS train
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple "$(sed -n 's/.*"\(torch==[0-9.*]*\)".*/\1/p' pyproject.toml)"
RUN pip install --editable ".[train,s3]"
COPY . .
USER tiebreak
ENV TIEBREAK_DATA=/data HF_HOME=/data/huggingface
CMD ["celery", "-A", "workers.gpu", "worker", "-Q", "gpu", "--pool", "solo", "-n", "gpu@%h", "-l", "INFO", \
     "--without-gossip", "--without-mingle"]
