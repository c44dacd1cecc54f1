FROM python:3.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

COPY requirements.txt requirements-build.txt ./
RUN python -m venv /opt/alameda \
    && /opt/alameda/bin/pip install --require-hashes --only-binary :all: -r requirements.txt \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements-build.txt

COPY pyproject.toml README.md LICENSE ./
COPY alembic alembic
COPY app app
# The finished image can install nothing: pip stays behind with the build tools.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/alameda/bin/pip install --no-deps --no-index /dist/*.whl \
    && /opt/alameda/bin/pip uninstall --yes pip


FROM python:3.13-slim-bookworm

# A real passwd entry, not only a number: PostgreSQL's initdb refuses a uid without a name.
# The uid is the one of the paseo image in docker-compose.yml, so that both can use one workspace.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini tmux \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 alameda \
    && useradd --uid 10001 --gid alameda --create-home --shell /usr/sbin/nologin alameda \
    && install --directory --owner alameda --group alameda --mode 0700 /var/lib/alameda \
    && install --directory --owner alameda --group alameda /workspace \
    && install --directory /etc/alameda

COPY --from=build /opt/alameda /opt/alameda

# A published port reaches only what listens on every address, and that needs the operator's word:
# without ALAMEDA_ALLOW_REMOTE=true the start is refused.
ENV PATH=/opt/alameda/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ALAMEDA_HOST=0.0.0.0 \
    ALAMEDA_PORT=8765 \
    ALAMEDA_DATA_DIR=/var/lib/alameda \
    ALAMEDA_ALLOWED_ROOTS=/workspace

USER 10001:10001
# An alameda.toml mounted here is found.
WORKDIR /etc/alameda
VOLUME /var/lib/alameda
EXPOSE 8765

# http.client and not urllib: it does not read a proxy from the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['ALAMEDA_PORT']), timeout=4); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]

# Agents leave orphans behind; a first process that is no init never reaps them.
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["alameda", "serve"]
