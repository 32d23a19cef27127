"""Predictions as Vertex AI's containers and KServe's V1 protocol have them.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol

Vertex AI names its own paths in AIP_PREDICT_ROUTE and AIP_HEALTH_ROUTE (app/settings.py). KServe's GET
/v1/models/{model} is OpenAI's, too, see openai.py.
"""

from dataclasses import replace

from flask import Blueprint, Flask, Response
from msgspec import Struct

from app.errors import InvalidRequest
from app.routes import encoder, ops, plain_error
from app.routes.body import ListField, decode, json_data
from app.routes.body_errors import NOT_A_STRING, NOT_AN_OBJECT, Rule
from app.routes.options import RULES as OPTION_RULES
from app.routes.options import OptionFields, Options, encode, resolve_options
from app.routes.prompts import prompt_name_for
from app.routes.rendering import json_response, list_response
from app.routes.vectors import encode_vectors
from app.settings import Settings

PREDICT = "/v1/models/<path:model>:predict"
SUFFIX = ":predict"
# Fields in which clients of several servers put an instance's text.
TEXT_FIELDS = ("text", "content", "inputs", "input")

blueprint = Blueprint("vertex", __name__)
error_fields = plain_error


class Instance(Struct):
    """One text, in one of TEXT_FIELDS. task_type: RETRIEVAL_QUERY or RETRIEVAL_DOCUMENT picks the model's prompt."""

    text: str | None = None
    content: str | None = None
    inputs: str | None = None
    input: str | None = None
    task_type: str | None = None


class Parameters(OptionFields, kw_only=True):
    """The options; task_type is for all instances without one of their own."""

    task_type: str | None = None


class Instances(Struct):
    """The body of a prediction."""

    instances: list[str | Instance]
    parameters: Parameters | None = None


INSTANCES = ListField("instances", str | Instance)
RULES = {
    "instances": Rule("{place} is {kind}; it must be a list of texts."),
    "instances[]": Rule('{place} is {kind}; it must be a string, or an object like {{"text": "…"}}.'),
    **{f"instances[].{name}": NOT_A_STRING for name in (*TEXT_FIELDS, "task_type")},
    "parameters": NOT_AN_OBJECT,
    **{f"parameters.{name}": rule for name, rule in OPTION_RULES.items()},
    "parameters.task_type": NOT_A_STRING,
}


def add_routes(app: Flask, settings: Settings) -> None:
    """Add the paths that Vertex AI has chosen for this container."""
    if settings.aip_predict_route:
        app.add_url_rule(settings.aip_predict_route, "vertex.predict_at_vertex", predict, methods=["POST"])
    if settings.aip_health_route:
        app.add_url_rule(settings.aip_health_route, "ops.ready_at_vertex", ops.ready)


@blueprint.post(PREDICT)
def predict(model: str = "") -> Response:
    """{"instances": [text, …], "parameters": {options}} -> {"predictions": [vector, …]}"""
    body = decode(json_data(), Instances, RULES, INSTANCES)
    parameters = body.parameters or Parameters()
    options = resolve_options(parameters, Options(normalize=True))
    texts = []
    for index, instance in enumerate(body.instances):
        text, kind = (instance, None) if isinstance(instance, str) else _of_object(instance, index)
        prompt = options.prompt, options.prompt_name or prompt_name_for(kind or parameters.task_type)
        texts.append(encoder().prompt(*prompt) + text)
    if not texts:
        return json_response({"predictions": []})
    complete = replace(options, prompt="", prompt_name=None)  # the prompts are in the texts
    rows = encode(texts, complete, "instances[{}]".format).rows
    return list_response(lambda start, stop: encode_vectors(rows[start:stop], complete), len(texts), name="predictions")


def _of_object(instance: Instance, index: int) -> tuple[str, str | None]:
    """Return text and kind of text of an instance that is an object."""
    given = [text for name in TEXT_FIELDS if (text := getattr(instance, name)) is not None]
    if len(given) != 1:
        found = "several texts" if given else "no text"
        raise InvalidRequest(f"instances[{index}] has {found}; give one, in {', '.join(TEXT_FIELDS)}.", "instances")
    return given[0], instance.task_type
