# Stages, in the order in which they change:
#   packages   the server's packages, as locked
#   runtime    the same, without what the server never uses
#   model      the heavy part: PyTorch, download, export, quantize
#   verified   the proof, by the engine that ships: rerun when app/engine/ changes, the export is not
#   inventory  the list of what is in the image; not a part of it
#   (last)     what is shipped
#
# docker build -t embedding-api .
# docker build -t embedding-api --build-arg MODEL=/source --build-context source=FOLDER .   your own model
# docker build -t embedding-api --build-arg MODEL=… --secret id=hf_token,src=FILE .         a private one
# docker build -t embedding-api --secret id=pip_conf,src=pip.conf .                          an index with a password

# Pinned to the Python that the locks were tested with; its tag moves with Debian's security fixes.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim
# What to serve: a hub id, its branch, tag or commit, and int8 or fp32.
ARG MODEL=sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2
ARG REVISION=
# of the search for what to quantize how: fast, default or best
ARG EFFORT=default
# The name to show for a model of your own; hub models have theirs.
ARG MODEL_NAME=
ARG PRECISION=int8
ARG VERSION=0.1.0
# Sources of packages, of PyTorch's CPU builds and of models, or mirrors of them.
ARG PIP_INDEX_URL=
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG HF_ENDPOINT=https://huggingface.co

# A model of your own comes in its place: --build-context source=FOLDER
FROM scratch AS source

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /src
ARG PIP_INDEX_URL
# The file of pip's settings is there where such a secret is given to the build; it is in no layer.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_DEPS=1 PIP_PYTHON=/opt/venv/bin/python PIP_ROOT_USER_ACTION=ignore \
    PIP_CONFIG_FILE=/run/secrets/pip_conf
COPY requirements/runtime.txt requirements/sdist.txt requirements/
# What comes as source is built with what is locked, too.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf \
    python -m venv --without-pip /opt/venv \
    && pip install --quiet --no-compile --require-hashes -r requirements/sdist.txt \
    && PYTHONDONTWRITEBYTECODE=1 pip install --quiet --no-compile --require-hashes --no-build-isolation -r requirements/runtime.txt


FROM packages AS runtime
COPY tools/slim.py tools/
# Bytecode has a place of its own, so that the standard library can have some, too: the base has none.
# slim.py writes it; what Python itself would write depends on the time.
ENV PYTHONPYCACHEPREFIX=/opt/bytecode PYTHONDONTWRITEBYTECODE=1
RUN ORT_DISABLE_TELEMETRY=1 /opt/venv/bin/python tools/slim.py


FROM packages AS model
ARG PIP_INDEX_URL
ARG TORCH_INDEX
COPY requirements/build.txt requirements/torch requirements/torch.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf \
    pip install --quiet --require-hashes -r requirements/build.txt \
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
# Where there is such a secret, the hub's client reads the token from it; it is in no layer.
RUN --mount=type=secret,id=hf_token \
    HF_TOKEN_PATH=/run/secrets/hf_token /opt/venv/bin/python -m build.export_onnx --model "$MODEL" ${REVISION:+--revision "$REVISION"} \
    && /opt/venv/bin/python -m build.quantize --effort "$EFFORT"
# Of the tokenizer only what the server reads: where its pieces are prepared, tokenizer.json is not.
RUN mkdir served && cp -r model/tokenizer served/ \
    && if [ -f served/tokenizer/pieces.npy ]; then rm served/tokenizer/tokenizer.json; fi


FROM model AS verified
ARG MODEL
ARG REVISION
ARG MODEL_NAME
# The whole engine, which the verification runs. An edit of the server or of a route does not rerun it.
COPY app/engine app/engine
# The source is there already: nothing is downloaded.
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


# The list of what is in the image: docker build --target sbom --output type=local,dest=. .
FROM scratch AS sbom
COPY --from=inventory /sbom.cdx.json /


FROM ${PYTHON_IMAGE} AS code
WORKDIR /srv
ENV PYTHONPYCACHEPREFIX=/opt/bytecode PYTHONDONTWRITEBYTECODE=1
COPY app app
COPY gunicorn.conf.py .
# Readable whatever the umask of who made the working tree.
RUN chmod -R u=rwX,go=rX . && python -m compileall -q --invalidation-mode checked-hash .


FROM ${PYTHON_IMAGE}
ARG PYTHON_IMAGE
ARG PRECISION
WORKDIR /srv
# The server never becomes another user, so what would let it (su, mount, passwd, …) has no place here.
RUN find / -xdev -type f -perm /6000 -delete
COPY --from=runtime /opt/venv /opt/venv
COPY --from=runtime /opt/bytecode /opt/bytecode
COPY --from=model /src/model/model_${PRECISION}.onnx /src/model/model_${PRECISION}.onnx.data model/
COPY --from=model /src/served/tokenizer model/tokenizer
COPY --from=verified /src/model/manifest.json /src/model/report.json model/
COPY --from=code /opt/bytecode /opt/bytecode
COPY --from=code /srv /srv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPYCACHEPREFIX=/opt/bytecode PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1 \
    MODEL_PATH=model_${PRECISION}.onnx
# A number, so that Kubernetes can see that it is not root.
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
