# syntax=docker/dockerfile:1
# The gateway's image: hash-locked, not root, nothing written outside the state volume. docs/container.md.
#
#   docker build -t headgate .
#   docker build -t headgate --build-arg TOKENIZERS=my/tokenizers .      # a directory below this one
#
# For a release, name the base by digest: --build-arg PYTHON_IMAGE=python:3.13-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN ["python", "-m", "venv", "/opt/build"]
RUN ["python", "-m", "venv", "/opt/headgate"]
COPY deploy/lock/build.lock deploy/lock/runtime.lock /src/deploy/lock/
# Wheels only: nothing that is downloaded runs code here.
RUN ["/opt/build/bin/pip", "install", "--require-hashes", "--only-binary", ":all:", "-r", "/src/deploy/lock/build.lock"]
RUN ["/opt/headgate/bin/pip", "install", "--require-hashes", "--only-binary", ":all:", "-r", "/src/deploy/lock/runtime.lock"]
WORKDIR /src
COPY pyproject.toml README.md ./
COPY backends/ backends/
COPY gateway/ gateway/
# The simulated engines' own; it is part of the wheel.
COPY deploy/tokenizers/headgate-mini/ deploy/tokenizers/headgate-mini/
RUN ["/opt/build/bin/hatchling", "build", "-t", "wheel", "-d", "/src/dist"]
RUN ["/opt/headgate/bin/pip", "install", "--no-deps", "--no-index", "--find-links", "/src/dist", "headgate"]
# The runtime has no installer.
RUN ["/opt/headgate/bin/pip", "uninstall", "--yes", "pip"]
RUN ["mkdir", "-p", "/etc/headgate", "/var/lib/headgate"]

FROM ${PYTHON_IMAGE} AS runtime
# Which tokenizer directories the image carries; routes.yaml names them as tokenizers/<name>.
ARG TOKENIZERS=deploy/tokenizers
LABEL org.opencontainers.image.title="headgate" \
      org.opencontainers.image.description="An async routing gateway in front of self-hosted LLM engines" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/headgate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HEADGATE_STATE=/var/lib/headgate
COPY --from=build /opt/headgate /opt/headgate
COPY --from=build /etc/headgate /etc/headgate
# Numeric, so that Kubernetes' runAsNonRoot can tell; fixed, so that volumes keep their owner.
COPY --from=build --chown=10001:10001 /var/lib/headgate /var/lib/headgate
COPY ${TOKENIZERS} /etc/headgate/tokenizers
WORKDIR /etc/headgate
USER 10001:10001
VOLUME ["/var/lib/headgate"]
EXPOSE 8080
# Alive, not ready: an engine that is away is no reason to restart the gateway. No proxy is ever asked.
HEALTHCHECK --interval=10s --timeout=4s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('HEADGATE_HEALTH_PORT', '8080')), timeout=3); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["headgate"]
# Only the data listener leaves the container; the admin listener stays on its loopback.
CMD ["serve", "--config", "/etc/headgate/routes.yaml", "--host", "0.0.0.0", "--port", "8080"]
