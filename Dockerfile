# Stages, from those that change least to those that change most:
#   packages   the server's packages, as locked
#   runtime    the same, without files that the server never uses
#   model      PyTorch; download, export and quantize the model
#   verified   verification by the engine that ships; a change in app/engine/ reruns it, but not the export
#   inventory  the list of the image's contents (SBOM); not in the image
#   (last)     the image
#
# docker build -t embedding-api .
# docker build -t embedding-api --build-arg MODEL=/source --build-context source=FOLDER .   your own model
# docker build -t embedding-api --build-arg MODEL=… --secret id=hf_token,src=FILE .         a private one
# docker build -t embedding-bulk --build-arg PARQUET=yes .                                   `bulk` with Parquet
# docker build -t embedding-api --secret id=pip_conf,src=pip.conf .                          an index with a password

# The Python that the locks were tested with; the tag moves with Debian's security fixes.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim
# The model: a hub id and its branch, tag or commit.
ARG MODEL=sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2
ARG REVISION=
# Duration of the search for each layer's form: fast, default or best.
ARG EFFORT=default
# The name to show for a model of your own; hub models have theirs.
ARG MODEL_NAME=
# The file to ship: int8 or fp32.
ARG PRECISION=int8
ARG VERSION=0.1.0
# Anything: install pyarrow, for the command `bulk`.
ARG PARQUET=
# Sources of packages, of PyTorch's CPU builds and of models, or mirrors of them.
ARG PIP_INDEX_URL=
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG HF_ENDPOINT=https://huggingface.co

# Replaced by a model of your own: --build-context source=FOLDER
FROM scratch AS source

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /src
ARG PIP_INDEX_URL
# pip's settings exist only if the build gets them as a secret; they are in no layer.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_DEPS=1 PIP_PYTHON=/opt/venv/bin/python PIP_ROOT_USER_ACTION=ignore \
    PIP_CONFIG_FILE=/run/secrets/pip_conf
COPY requirements/runtime.txt requirements/sdist.txt requirements/
# sdist.txt locks the tools that build packages without a wheel.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf \
    python -m venv --without-pip /opt/venv \
    && pip install --quiet --no-compile --require-hashes -r requirements/sdist.txt \
    && PYTHONDONTWRITEBYTECODE=1 pip install --quiet --no-compile --require-hashes --no-build-isolation -r requirements/runtime.txt


FROM packages AS runtime
ARG PARQUET
ARG PIP_INDEX_URL
COPY requirements/parquet.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf \
    if [ -n "$PARQUET" ]; then pip install --quiet --no-compile --require-hashes -r requirements/parquet.txt; fi
COPY tools/slim.py tools/
# Bytecode goes to a folder of its own, with that of the standard library, which the base image lacks. slim.py writes
# it: bytecode that Python writes depends on the time.
ENV PYTHONPYCACHEPREFIX=/opt/bytecode PYTHONDONTWRITEBYTECODE=1
RUN ORT_DISABLE_TELEMETRY=1 /opt/venv/bin/python tools/slim.py


FROM packages AS model
ARG PIP_INDEX_URL
ARG TORCH_INDEX
COPY requirements/build.txt requirements/data.txt requirements/torch requirements/torch.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf \
    pip install --quiet --require-hashes -r requirements/build.txt -r requirements/data.txt \
    && sh requirements/torch pip install --quiet
# The parts of the engine that export and quantization import.
COPY app/errors.py app/
COPY app/engine/__init__.py app/engine/manifest.py app/engine/unigram.py app/engine/
COPY build build
COPY --from=source / /source/
ARG MODEL
ARG REVISION
ARG EFFORT
ARG HF_ENDPOINT
# The hub's client reads its token from the secret, if the build gets one; it is in no layer.
RUN --mount=type=secret,id=hf_token \
    HF_TOKEN_PATH=/run/secrets/hf_token /opt/venv/bin/python -m build.export_onnx --model "$MODEL" ${REVISION:+--revision "$REVISION"} \
    && /opt/venv/bin/python -m build.quantize --effort "$EFFORT"
# Only the tokenizer files that the server reads: with a mapped vocabulary that is not tokenizer.json.
RUN mkdir served && cp -r model/tokenizer served/ \
    && if [ -f served/tokenizer/pieces.npy ]; then rm served/tokenizer/tokenizer.json; fi


FROM model AS verified
ARG MODEL
ARG REVISION
ARG MODEL_NAME
# The whole engine, which the verification runs. An edit of the server or of a route does not rerun it.
COPY app/engine app/engine
# The source was downloaded by the stage before.
RUN HF_HUB_OFFLINE=1 /opt/venv/bin/python -m build.verify --model "$MODEL" ${REVISION:+--revision "$REVISION"} \
    ${MODEL_NAME:+--name "$MODEL_NAME"}


# The same base as the image: Debian's packages and the base's own Python packages are read here.
FROM runtime AS inventory
ARG PIP_INDEX_URL
COPY requirements/audit.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf \
    python -m venv --without-pip /opt/audit \
    && pip --python /opt/audit/bin/python install --quiet --require-hashes -r requirements/audit.txt \
    && cd /opt/audit \
    && bin/cyclonedx-py environment --spec-version 1.5 --output-reproducible -o server.json /opt/venv/bin/python \
    && bin/cyclonedx-py environment --spec-version 1.5 --output-reproducible -o base.json "$(command -v python)"
COPY requirements/sbom.py requirements/
COPY --from=verified /src/model/manifest.json model/
ARG PRECISION
ARG VERSION
RUN python requirements/sbom.py --version "$VERSION" --precision "$PRECISION" --manifest model/manifest.json \
    /opt/audit/server.json /opt/audit/base.json >/sbom.cdx.json


# The list of the image's contents: docker build --target sbom --output type=local,dest=. .
FROM scratch AS sbom
COPY --from=inventory /sbom.cdx.json /


FROM ${PYTHON_IMAGE} AS code
WORKDIR /srv
ENV PYTHONPYCACHEPREFIX=/opt/bytecode PYTHONDONTWRITEBYTECODE=1
COPY app app
COPY gunicorn.conf.py .
COPY deploy/bulk /usr/local/bin/
# Readable for the server's user whatever the umask of the working tree was.
RUN chmod -R u=rwX,go=rX . /usr/local/bin/bulk && python -m compileall -q --invalidation-mode checked-hash .


FROM ${PYTHON_IMAGE}
ARG PYTHON_IMAGE
ARG PRECISION
WORKDIR /srv
# Removes setuid programs (su, mount, passwd, …): the server never changes its user.
RUN find / -xdev -type f -perm /6000 -delete
COPY --from=runtime /opt/venv /opt/venv
COPY --from=runtime /opt/bytecode /opt/bytecode
COPY --from=model /src/model/model_${PRECISION}.onnx /src/model/model_${PRECISION}.onnx.data model/
COPY --from=model /src/served/tokenizer model/tokenizer
COPY --from=verified /src/model/manifest.json /src/model/report.json /src/model/report_*.svg model/
COPY --from=code /opt/bytecode /opt/bytecode
COPY --from=code /srv /srv
COPY --from=code /usr/local/bin/bulk /usr/local/bin/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPYCACHEPREFIX=/opt/bytecode PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 \
    MODEL_PATH=model_${PRECISION}.onnx
# A number: Kubernetes can then verify that it is not root.
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=10s --retries=5 --start-period=15s CMD ["python", "-c", "\
import http.client, os, sys; \
server = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 8080), timeout=9); \
server.request('GET', '/readyz'); \
sys.exit(server.getresponse().status != 200)"]
CMD ["gunicorn"]
ARG MODEL
ARG REVISION
ARG MODEL_NAME
ARG VERSION
ARG VCS_URL=
ARG VCS_REVISION=
LABEL org.opencontainers.image.title="embedding-api" \
      org.opencontainers.image.description="Sentence embeddings over HTTP on ordinary CPUs" \
      org.opencontainers.image.source="$VCS_URL" \
      org.opencontainers.image.revision="$VCS_REVISION" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="$PYTHON_IMAGE" \
      embedding-api.model.id="${MODEL_NAME:-$MODEL}" \
      embedding-api.model.revision="$REVISION" \
      embedding-api.model.precision="$PRECISION"
