# The service as an image, for linux/amd64 and linux/arm64:
#   docker buildx build --platform linux/amd64,linux/arm64 --tag authz:0.1.0 .
# Both doors are in it. The rules are mounted at /etc/authz; `server: {door: fast}` there opens the fast one.
#
# Python of the version that the tests run on. The official images carry its shared library, which the fast door needs.
# Pin it by digest in your own builds: --build-arg BASE=python:3.11-slim-bookworm@sha256:…
ARG BASE=python:3.11-slim-bookworm

# What is fetched is held to its hash, also what builds the wheel; where nothing is held to one, nothing is fetched.
FROM ${BASE} AS builder
WORKDIR /src
RUN python -m venv /opt/authz && python -m venv /opt/build
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN /opt/authz/bin/pip install --no-cache-dir --require-hashes -r requirements/runtime.txt \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY authz authz
# The last command is the proof that the fast door can open: without it there is no image.
RUN /opt/build/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation -w /opt/wheel/ . \
    && /opt/authz/bin/pip install --no-cache-dir --no-index --no-deps /opt/wheel/*.whl \
    && /opt/authz/bin/python -c "import os; from authz.servers.engine import find_engine; find_engine(os.environ)"

FROM ${BASE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="authz" \
      org.opencontainers.image.description="An external authorization service for Envoy and Istio" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /opt/authz /opt/authz
ENV PATH=/opt/authz/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A number, so that `runAsNonRoot` can be judged without a look into /etc/passwd; no such user need exist.
USER 10001:10001
EXPOSE 9001 9002
ENTRYPOINT ["authz"]
CMD ["serve", "/etc/authz/rules.yaml"]
