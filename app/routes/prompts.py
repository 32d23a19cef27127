"""Prompts for the kinds of text that clients name: input_type, task and the like -> one of the model's prompts."""

from app.routes import manifest

# The role in a search -> names of prompts for it, in the order in which they are looked for: those of
# sentence-transformers (SentenceTransformer.encode_query and encode_document), then models' own.
PROMPT_NAMES = {
    "query": ("query", "search_query", "retrieval.query"),
    "document": ("document", "passage", "corpus", "search_document", "retrieval.passage"),
}
# Names that clients of other servers have for the role.
ROLES = {
    **dict.fromkeys(("query", "search_query", "retrieval.query", "retrieval_query"), "query"),
    **dict.fromkeys(("document", "passage", "search_document", "retrieval.passage", "retrieval_document"), "document"),
}


def prompt_name_for(kind: str | None) -> str | None:
    """Return the name of the model's prompt for a kind of text, or None: the default prompt then applies.

    kind: a prompt's own name, or Cohere's, Voyage's or NVIDIA's input_type, Jina's task, or Google's task_type.
    """
    if kind is None:
        return None
    prompts = manifest().prompts
    if kind in prompts:
        return kind
    names = PROMPT_NAMES.get(ROLES.get(kind.lower(), ""), ())
    return next((name for name in names if name in prompts), None)
