"""Vectors from other people's client libraries. Runs in the environment under .cache/clients/.

stdin: {"client": a function of this file, "options": its arguments, "texts": [...]}
stdout: {"vectors": {method: [[...], ...]}} or {"error": class, "message": ...}; "hosts": all it has connected to.
"""

import asyncio
import json
import sys
from typing import Any

hosts: set[str] = set()


def stay_here(event: str, arguments: tuple[Any, ...]) -> None:
    """Note each host that is looked up or connected to, and refuse others than this one."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    hosts.add(host)
    if host != "127.0.0.1":
        raise RuntimeError(f"{host} must not be reached")


def langchain_openai(options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    from langchain_openai import OpenAIEmbeddings

    return langchain(OpenAIEmbeddings(**options), texts)


def langchain_huggingface(options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    from langchain_huggingface import HuggingFaceEndpointEmbeddings

    return langchain(HuggingFaceEndpointEmbeddings(**options), texts)


def langchain_ollama(options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    from langchain_ollama import OllamaEmbeddings

    return langchain(OllamaEmbeddings(**options), texts)


def ollama(options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    from ollama import AsyncClient, Client

    model, host = options.pop("model"), options.pop("host")
    client = Client(host=host)
    assert [found.model for found in client.list().models] == ["tiny"] and client.show(model).capabilities
    return {
        "embed": client.embed(model, texts, **options).embeddings,
        "embed one by one": [client.embed(model, text, **options).embeddings[0] for text in texts],
        "async embed": asyncio.run(AsyncClient(host=host).embed(model, texts, **options)).embeddings,
    }


def cohere(options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    from cohere import AsyncClientV2, ClientV2

    server, types = options.pop("server"), options["embedding_types"]
    options |= {"texts": texts, "model": "embed-v4.0"}

    async def embed() -> Any:
        return await AsyncClientV2(**server).embed(**options)

    def of(answer: Any) -> Any:
        return getattr(answer.embeddings, "float_" if types == ["float"] else types[0])

    client = ClientV2(**server)
    return {
        "embed": of(client.embed(**options)),
        "embed one by one": [of(client.embed(**{**options, "texts": [text]}))[0] for text in texts],
        "async embed": of(asyncio.run(embed())),
    }


def langchain(client: Any, texts: list[str]) -> dict[str, Any]:
    return {
        "embed_documents": client.embed_documents(texts),
        "embed_query": [client.embed_query(text) for text in texts],
        "aembed_documents": asyncio.run(client.aembed_documents(texts)),
    }


def llama_index(options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    client = OpenAILikeEmbedding(**options)
    return {
        "get_text_embedding_batch": client.get_text_embedding_batch(texts),
        "get_query_embedding": [client.get_query_embedding(text) for text in texts],
        "aget_text_embedding_batch": asyncio.run(client.aget_text_embedding_batch(texts)),
    }


def kserve(options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    from kserve import InferenceRESTClient, RESTConfig

    async def infer() -> list[Any]:
        url, model = options["url"], options["model"]
        bodies: list[list[Any]] = [texts, *([text] for text in texts), [{"text": text} for text in texts]]
        async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
            assert await client.is_server_live(url) and await client.is_model_ready(url, model)
            answers = [await client.infer(url, {"instances": body}, model_name=model) for body in bodies]
            return [answer["predictions"] for answer in answers]

    many, *one_by_one, objects = asyncio.run(infer())
    return {"infer": many, "infer one by one": [vectors[0] for vectors in one_by_one], "infer objects": objects}


def chroma(options: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    from chromadb.utils import embedding_functions as functions

    url = options["url"]
    of_openai = functions.OpenAIEmbeddingFunction(api_base=f"{url}/v1", api_key="none", model_name="any")
    of_tei = functions.HuggingFaceEmbeddingServer(url=f"{url}/embed")
    of_ollama = functions.OllamaEmbeddingFunction(url=url, model_name="any")
    return {
        type(function).__name__: [vector.tolist() for vector in function(texts)]
        for function in (of_openai, of_tei, of_ollama)
    }


if __name__ == "__main__":
    sys.addaudithook(stay_here)
    call = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        answer = {"vectors": globals()[call["client"]](call["options"], call["texts"])}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps({**answer, "hosts": sorted(hosts)}))
