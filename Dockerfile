# hllm serve, on a CPU:   docker build -t hllm . && docker run -p 8000:8000 -v ./runs:/runs:ro -v hllm:/state hllm /runs/demo
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/hllm
ENV PATH=/opt/hllm/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# torch first and alone: the CPU build, a tenth of the size of the one for GPUs.
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY src ./src
RUN pip install --constraint constraints.txt '.[serve]'

FROM python:3.13-slim
COPY --from=build /opt/hllm /opt/hllm
ENV PATH=/opt/hllm/bin:$PATH OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 HLLM_HOME=/state/cache
RUN useradd --system --uid 10001 hllm && mkdir /state && chown hllm /state
USER 10001
VOLUME /state
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=2)"]
ENTRYPOINT ["hllm", "serve", "--host", "0.0.0.0", "--port", "8000", "--events", "/state/events.sqlite"]
CMD ["/runs/current"]
