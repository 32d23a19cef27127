"""Paths: maps other spellings of a path, and other servers' paths for the same thing, to the documented one."""

import re

# Paths at which clients of other servers ask for OpenAI's API -> path of app/openapi.yml.
ALIASES = {
    # text-embeddings-inference, Infinity, llama.cpp, and Azure AI's model inference
    "/embeddings": "/v1/embeddings",
    "/models": "/v1/models",
    # Azure OpenAI's second version: https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle
    "/openai/v1/embeddings": "/v1/embeddings",
    "/openai/v1/models": "/v1/models",
    # Weaviate's module text2vec-transformers
    "/.well-known/live": "/health",
    "/.well-known/ready": "/readyz",
    # Amazon SageMaker: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
    "/ping": "/readyz",
    "/invocations": "/embed",
}
# Azure OpenAI, and OpenAI's Python library before 1.0. The deployment's name is not looked at: one model is served.
# https://learn.microsoft.com/azure/ai-services/openai/reference#embeddings
DEPLOYMENT = re.compile(r"/openai/deployments/[^/]+/embeddings|/v1/engines/[^/]+/embeddings")
SLASHES = re.compile("//+")
# Redirects to /docs: its links are relative, so that they hold behind a path prefix.
DOCS_WITH_SLASH = "/docs/"


def canonical(path: str) -> str:
    """Return the documented path for one that a client asks for: with single slashes, none at its end, no alias."""
    if path[:1] != "/":
        path = f"/{path}"
    if "//" in path:
        path = SLASHES.sub("/", path)
    if path[-1:] == "/" and path != DOCS_WITH_SLASH:
        path = path.rstrip("/") or "/"
    if alias := ALIASES.get(path):
        return alias
    if path.startswith(("/openai/", "/v1/engines/")) and DEPLOYMENT.fullmatch(path):
        return "/v1/embeddings"
    return path
