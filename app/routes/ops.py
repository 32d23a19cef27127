"""Routes for operators: GET / (what is served), /health, /readyz and /metrics."""

from typing import Any

from flask import Blueprint, Flask, Response, current_app

from app import metrics, page
from app.engine import cpu
from app.engine.session import ONNX_RUNTIME_VERSION
from app.http_errors import RETRY_AFTER_SECONDS
from app.routes import NAME, VERSION, encoder, not_ready_reason, served_name, settings
from app.routes.rendering import json_response

blueprint = Blueprint("ops", __name__)


def startup_message(app: Flask) -> tuple[str, dict[str, Any]]:
    """Return the first log line: a sentence and fields with version, model, CPUs and limits."""
    limits, served = app.extensions["settings"], app.extensions["encoder"].model_folder
    manifest = served.manifest
    return f"{NAME} {VERSION} serves {manifest.model} ({served.precision}) on port {limits.port}", {
        "version": VERSION,
        "model": manifest.model,
        "revision": manifest.revision,
        "precision": served.precision,
        "onnxruntime": ONNX_RUNTIME_VERSION,
        "cpu": cpu.features(),
        "cpus": limits.cpus,
        "workers": limits.web_concurrency,
        "slots": limits.capacity,
        "limits": {
            name: getattr(limits, name)
            for name in ("max_length", "max_texts", "max_body_bytes", "max_queue", "request_deadline", "cache_size")
        },
    }


@blueprint.get("/")
def about() -> Response:
    """Return what is served; to a browser, a page that shows it."""
    if page.is_wanted():
        return page.page_response()
    limits, model_folder = settings(), encoder().model_folder
    manifest = model_folder.manifest
    response = json_response(
        {
            "name": NAME,
            "version": VERSION,
            "status": "alive",  # for KServe's clients
            "model": {
                "id": manifest.model,
                "served_name": served_name(),
                "revision": manifest.revision,
                "stand_in": manifest.stand_in,
                "warning": manifest.warning,
                "precision": model_folder.precision,
                "recipe": manifest.recipe if model_folder.precision == "int8" else "",
                "dimension": manifest.dimension,
                "pooling": manifest.pooling,
                "normalize": manifest.normalize,
                "max_seq_length": manifest.max_seq_length,
                "max_positions": manifest.max_positions,
                "prompts": manifest.prompts,
                "default_prompt_name": encoder().default_prompt_name,
            },
            "max_length": encoder().max_length,
            "limits": {"max_texts": limits.max_texts, "max_body_bytes": limits.max_body_bytes},
            "quality": manifest.quality,
            "cpu": {**cpu.features(), "available": limits.cpus},
            "onnxruntime": {"version": ONNX_RUNTIME_VERSION, "model_made_with": manifest.versions.get("onnxruntime")},
            "links": {
                "docs": "/docs",
                "openapi": "/openapi.json",
                "health": "/health",
                "ready": "/readyz",
                "metrics": "/metrics",
            },
        }
    )
    response.vary.add("Accept")
    return response


@blueprint.get("/healthz")
@blueprint.get("/health")  # Cloud Run's front end answers /healthz itself
def health() -> Response:
    return json_response({"ok": True})


@blueprint.get("/metrics")
def prometheus() -> Response:
    current_app.extensions["count_answered"]()
    return Response(metrics.render(), content_type=metrics.CONTENT_TYPE)


@blueprint.get("/readyz")
def ready() -> Response:
    reason = not_ready_reason()
    if reason is None:
        return json_response({"ok": True})
    response = json_response({"ok": False, "reason": reason}, 503)
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response
