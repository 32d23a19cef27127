"""Token ids instead of texts: bodies in which a field is one text's ids, or a list of these."""

import functools
import re
from typing import Annotated, Any

from msgspec import Meta, Raw

from app.routes.body import ListField, decode
from app.routes.body_errors import Rule, Rules

# Beginning of the JSON of a list of lists.
LISTS = re.compile(rb"\[\s*\[")
NOT_A_LIST = Rule("{place} is {kind}; it must be a list of token ids.")


@functools.cache
def ids_types(size: int) -> tuple[Any, Any]:
    """Return two types for a vocabulary of this size: the token ids of one text, and of many texts."""
    ids = Annotated[list[Annotated[int, Meta(ge=0, le=size - 1)]], Meta(min_length=1)]
    return ids, Annotated[list[ids], Meta(min_length=1)]


def decode_ids(
    data: bytes, ids: Raw, name: str, body_type: Any, rules: Rules, not_an_id: Rule, size: int
) -> tuple[list[list[int]], Any]:
    """Return the token ids of all texts, and the decoded body. One text's ids count as a list of one text.

    ids: raw JSON of the body's field `name`. body_type: generic in that field's type. not_an_id: sentence for an item
    that is not an id from 0 to size - 1.
    """
    one, many = ids_types(size)
    if LISTS.match(ids):
        rules = {**rules, f"{name}[]": NOT_A_LIST, f"{name}[][]": not_an_id}
        body = decode(data, body_type[many], rules, ListField(name, one))
        return getattr(body, name), body
    body = decode(data, body_type[one], {**rules, f"{name}[]": not_an_id})
    return [getattr(body, name)], body
