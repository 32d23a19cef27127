"""Errors of request bodies: turns msgspec's errors into sentences with the place, the value and the limit."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import orjson
from msgspec import Raw

from app.errors import MAX_QUOTED_CHARACTERS, EmptyList, InvalidRequest
from app.routes import encoder
from app.routes.raw_json import MAX_LIST_BYTES, decoder, raw_value_at

JSON_TYPES = {
    "null": "null",
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
    "str": "a string",
    "array": "a list",
    "object": "an object",
}
# msgspec's message and path, e.g. "Expected `str`, got `int` - at `$.texts[1]`".
MESSAGE = re.compile(r"(.*?)(?: - at `\$(.*)`)?", re.DOTALL)
# msgspec's message about a field, e.g. "Object contains unknown field `a`". A name with " - at `$" in it is cut there.
FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*?)`?", re.DOTALL)
STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
# msgspec's message about syntax, e.g. "JSON is malformed: invalid character (byte 6)".
MALFORMED = re.compile(r"JSON is malformed: (.*) \(byte (\d+)\)")


class Rule(NamedTuple):
    """Sentence for a value of a wrong type, and the error's param. param "": the value's place without indexes.

    Placeholders in a sentence: place (texts[1]), parent (texts), kind (a number), value (5), count (items of a list),
    dimension, last_id; for an unknown field: field (its name).
    """

    sentence: str
    param: str = ""


# Place without index numbers -> rule. Special cases have keys of their own: "texts missing", "texts empty",
# "calls[] length", "unknown".
Rules = Mapping[str, Rule]


NOT_A_STRING = Rule("{place} is {kind}; it must be a string.")
NOT_AN_OBJECT = Rule("{place} is {kind}; it must be an object.")


def text_rules(name: str, *, or_text: bool = False) -> dict[str, Rule]:
    """Return the rules of a list of strings. or_text: a single string is allowed, too."""
    allowed = "a string or a list of strings" if or_text else "a list of strings"
    return {
        name: Rule(f"{{place}} is {{kind}}; it must be {allowed}."),
        f"{name}[]": Rule("{place} is {kind}; every item must be a string."),
        f"{name} empty": Rule("{place} is an empty list; at least one text is needed."),
    }


def wrong_value(rule: Rule, place: str, value: Any) -> InvalidRequest:
    """Return the error for a value that fits its type, and is not possible all the same."""
    sentence = rule.sentence.format(place=place, value=quoted(value), dimension=encoder().dimension)
    return InvalidRequest(sentence, rule.param or re.sub(r"\[.*", "", place))


def validation_error(data: bytes, error: msgspec.ValidationError, rules: Rules) -> InvalidRequest:
    """Return the error for a body that does not fit its type: the rule's sentence, filled in."""
    message = MESSAGE.fullmatch(str(error))
    assert message
    what, path = message[1], message[2] or ""
    steps: list[str | int] = [name or int(index) for name, index in STEP.findall(path)]
    if field := FIELD.fullmatch(what):
        if field[1] == "missing required":
            place = _place([*steps, field[2]])
            rule = rules.get(f"{place} missing", Rule("The field {place} is missing."))
            return InvalidRequest(rule.sentence.format(place=place), rule.param or place)
        rule = rules["unknown"]
        return InvalidRequest(
            rule.sentence.format(field=quoted(field[2])), rule.param or field[2][:MAX_QUOTED_CHARACTERS]
        )
    if not steps:
        return InvalidRequest(f"The body is {_json_type(what)}; it must be an object.")
    place = _place(steps)
    pattern = re.sub(r"\d+", "", place)
    suffix = " empty" if what.endswith("length >= 1") else " length" if "length" in what else ""
    rule = rules.get(pattern + suffix) or rules[pattern]
    sentence = rule.sentence.format(
        place=place,
        parent=_place(steps[:-1]),
        dimension=encoder().dimension,
        last_id=encoder().tokenizer.vocabulary_size - 1,
        **_sentence_values(data, steps, "an empty list" if suffix == " empty" else _json_type(what), rule.sentence),
    )
    kind = EmptyList if suffix == " empty" else InvalidRequest
    return kind(sentence, rule.param or re.sub(r"\[.*", "", place))


def syntax_error(data: bytes, error: msgspec.DecodeError) -> InvalidRequest:
    """Return the error for a body that is not JSON, with the position of its first fault."""
    malformed = MALFORMED.fullmatch(str(error))
    what, at = (malformed[1], int(malformed[2])) if malformed else ("unexpected end of data", len(data))
    line, start = data.count(b"\n", 0, at) + 1, data.rfind(b"\n", 0, at) + 1
    column = len(data[start:at].decode(errors="ignore")) + 1
    return InvalidRequest(f"The body is not JSON: {what} (line {line}, column {column}).")


def quoted(value: Any) -> str:
    """Return a client's value as JSON for a message, at most MAX_QUOTED_CHARACTERS of a string."""
    if isinstance(value, str) and len(value) > MAX_QUOTED_CHARACTERS:
        value = f"{value[:MAX_QUOTED_CHARACTERS]}…"
    return orjson.dumps(value).decode()


def _place(steps: Sequence[str | int]) -> str:
    """Return the path to a value as one name: inputs.sentences[1]."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")


def _json_type(what: str) -> str:
    """Return the JSON type of the wrong value, from msgspec's message."""
    if got := re.search("got `(.*)`", what):
        return JSON_TYPES[got[1]]
    return "a number" if "`int`" in what or "range" in what else "a string"


def _sentence_values(data: bytes, steps: Sequence[str | int], kind: str, sentence: str) -> dict[str, str]:
    """Return the placeholders for a value: its kind and, where the sentence has them, its value or its length."""
    values = {"kind": kind, "value": kind, "count": "many"}
    if "{count}" in sentence:
        part = raw_value_at(data, steps)
        if part[:1] == b"[" and len(part) <= MAX_LIST_BYTES:
            values["count"] = str(len(decoder(list[Raw]).decode(part)))
    elif "{value}" in sentence and kind not in (JSON_TYPES["array"], JSON_TYPES["object"]):
        part = raw_value_at(data, steps)
        if part[:1] not in (b"", b"[", b"{"):
            with contextlib.suppress(orjson.JSONDecodeError):  # a number too large for a float
                values["value"] = quoted(orjson.loads(part))
    return values
