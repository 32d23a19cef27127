"""The obvious recipe: sentence-transformers with its ONNX backend and an INT8 file, behind Flask."""

import os

import onnxruntime
from flask import Flask, Response, jsonify, request
from sentence_transformers import SentenceTransformer

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
model = SentenceTransformer(
    os.environ["PEER_MODEL"],
    backend="onnx",
    device="cpu",
    model_kwargs={
        "file_name": os.environ["PEER_ONNX"],
        "provider": "CPUExecutionProvider",
        "session_options": options,
    },
)
BATCH_SIZE = int(os.environ["PEER_BATCH_SIZE"])
app = Flask(__name__)


@app.post("/embed")
def embed() -> Response:
    return jsonify(vectors=model.encode(request.get_json()["texts"], batch_size=BATCH_SIZE).tolist())
