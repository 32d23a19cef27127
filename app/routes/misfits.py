"""Sentences for what does not fit a body's type: msgspec names the place and type, these the value and limit."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import orjson
from msgspec import Raw

from app.errors import MAX_QUOTED_CHARACTERS, InvalidRequest
from app.routes import encoder
from app.routes.parts import MAX_LIST_BYTES, decoder, part_at

KINDS = {
    "null": "null",
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
    "str": "a string",
    "array": "a list",
    "object": "an object",
}
# As in "Expected `str`, got `int` - at `$.texts[1]`".
MESSAGE = re.compile(r"(.*?)(?: - at `\$(.*)`)?", re.DOTALL)
# As in "Object contains unknown field `a`"; a client's name with " - at `$" in it is cut there.
FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*?)`?", re.DOTALL)
STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
# As in "JSON is malformed: invalid character (byte 6)".
MALFORMED = re.compile(r"JSON is malformed: (.*) \(byte (\d+)\)")
# The first half of a surrogate pair without the second, escaped.
HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u)")
PAIR_BYTES = len(rb"\ud83d\ude00")


class Rule(NamedTuple):
    """The sentence for a value that does not fit, and the error's param where it is not the place without its indexes.

    Fields in a sentence: place (texts[1]), parent (texts), kind (a number), value (5), count (of a list's items),
    dimension, last_id. An unknown field's sentence has field (its name).
    """

    sentence: str
    param: str = ""


# Place without the indexes' numbers -> rule. These may have one of their own: "texts missing", "texts empty",
# "calls[] length", "unknown".
Rules = Mapping[str, Rule]


def text_rules(name: str, *, or_text: bool = False) -> dict[str, Rule]:
    """Return the rules of a list of strings. or_text: a string may stand instead of it."""
    allowed = "a string or a list of strings" if or_text else "a list of strings"
    return {
        name: Rule(f"{{place}} is {{kind}}; it must be {allowed}."),
        f"{name}[]": Rule("{place} is {kind}; every item must be a string."),
        f"{name} empty": Rule("{place} is an empty list; at least one text is needed."),
    }


def misfit(data: bytes, error: msgspec.ValidationError, rules: Rules) -> InvalidRequest:
    """Return the error for the client: the rule's sentence, filled in."""
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
        return InvalidRequest(f"The body is {_kind(what)}; it must be an object.")
    place = _place(steps)
    pattern = re.sub(r"\d+", "", place)
    suffix = " empty" if what.endswith("length >= 1") else " length" if "length" in what else ""
    rule = rules.get(pattern + suffix) or rules[pattern]
    sentence = rule.sentence.format(
        place=place,
        parent=_place(steps[:-1]),
        dimension=encoder().dimension,
        last_id=encoder().tokenizer.vocabulary_size - 1,
        **_found(data, steps, "an empty list" if suffix == " empty" else _kind(what), rule.sentence),
    )
    return InvalidRequest(sentence, rule.param or re.sub(r"\[.*", "", place))


def not_json(data: bytes, error: msgspec.DecodeError) -> InvalidRequest:
    """Return the error for a body that is no JSON, with the place of its first fault."""
    malformed = MALFORMED.fullmatch(str(error))
    what, at = (malformed[1], int(malformed[2])) if malformed else ("unexpected end of data", len(data))
    # msgspec takes the text's end for the missing half if it comes first
    half = HALF_PAIR.search(data, max(0, len(data) - PAIR_BYTES)) if not malformed else None
    if half or "surrogate" in what:
        what, at = "half of a surrogate pair in a string", half.start() if half else at
    line, start = data.count(b"\n", 0, at) + 1, data.rfind(b"\n", 0, at) + 1
    column = len(data[start:at].decode(errors="ignore")) + 1
    return InvalidRequest(f"The body is not JSON: {what} (line {line}, column {column}).")


def quoted(value: Any) -> str:
    """Return a client's value for a message, never long."""
    if isinstance(value, str) and len(value) > MAX_QUOTED_CHARACTERS:
        value = f"{value[:MAX_QUOTED_CHARACTERS]}…"
    return orjson.dumps(value).decode()


def _place(steps: Sequence[str | int]) -> str:
    """Return steps to a value as one name: inputs.sentences[1]."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")


def _kind(what: str) -> str:
    """Return the type of what does not fit, in JSON's words."""
    if got := re.search("got `(.*)`", what):
        return KINDS[got[1]]
    return "a number" if "`int`" in what or "range" in what else "a string"


def _found(data: bytes, steps: Sequence[str | int], kind: str, sentence: str) -> dict[str, str]:
    """Return a sentence's fields for a value: its kind, and where the sentence has them its value or its length."""
    found = {"kind": kind, "value": kind, "count": "many"}
    if "{count}" in sentence:
        part = part_at(data, steps)
        if part[:1] == b"[" and len(part) <= MAX_LIST_BYTES:
            found["count"] = str(len(decoder(list[Raw]).decode(part)))
    elif "{value}" in sentence and kind not in (KINDS["array"], KINDS["object"]):
        part = part_at(data, steps)
        if part[:1] not in (b"", b"[", b"{"):
            with contextlib.suppress(orjson.JSONDecodeError):  # a number that no float holds
                found["value"] = quoted(orjson.loads(part))
    return found
