"""The obvious recipe: fastembed with a model of one's own, behind Flask."""

# mypy: ignore-errors
# fastembed is installed in the peer's environment only.

import json
import os
from pathlib import Path

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from flask import Flask, Response, jsonify, request

FOLDER = Path(os.environ["PEER_MODEL"])
BATCH_SIZE = int(os.environ["PEER_BATCH_SIZE"])
# fastembed leaves prompts to its users.
PROMPT = os.environ["PEER_PROMPT"]

TextEmbedding.add_custom_model(
    model="custom",
    pooling=PoolingType[os.environ["PEER_POOLING"].upper()],
    normalization=False,
    sources=ModelSource(hf="custom"),
    dim=json.loads((FOLDER / "config.json").read_text())["hidden_size"],
    model_file=os.environ["PEER_ONNX"],
)
model = TextEmbedding("custom", specific_model_path=str(FOLDER), threads=1)
app = Flask(__name__)


@app.post("/embed")
def embed() -> Response:
    texts = [PROMPT + text for text in request.get_json()["texts"]]
    return jsonify(vectors=[vector.tolist() for vector in model.embed(texts, batch_size=BATCH_SIZE)])
