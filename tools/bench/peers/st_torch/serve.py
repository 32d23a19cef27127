"""The obvious recipe: sentence-transformers with PyTorch, behind Flask."""

import os

import torch
from flask import Flask, Response, jsonify, request
from sentence_transformers import SentenceTransformer

torch.set_num_threads(1)
model = SentenceTransformer(os.environ["PEER_MODEL"], device="cpu")
BATCH_SIZE = int(os.environ["PEER_BATCH_SIZE"])
app = Flask(__name__)


@app.post("/embed")
def embed() -> Response:
    return jsonify(vectors=model.encode(request.get_json()["texts"], batch_size=BATCH_SIZE).tolist())
