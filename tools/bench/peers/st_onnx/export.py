"""export.py FOLDER OUT CONFIG: a sentence-transformers folder as ONNX and as INT8, by the library's own means."""

import sys

from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

folder, out, config = sys.argv[1:]
model = SentenceTransformer(
    folder, backend="onnx", device="cpu", model_kwargs={"export": True, "provider": "CPUExecutionProvider"}
)
model.save_pretrained(out)
export_dynamic_quantized_onnx_model(model, config, out)
