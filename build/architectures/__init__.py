"""Architectures: a model of transformers -> Network. A family has one file; a new one is a file and a line in READERS.

A reader knows the names of a family's modules and what its configuration may say. Whatever changes the vectors and is
not expressed by a Network is refused by its name.
"""

from collections.abc import Callable
from typing import Any

from build import BuildError
from build.architectures import bert, distilbert, modernbert, mpnet
from build.network import Network

READERS: dict[str, Callable[[Any], Network]] = {
    "BertModel": bert.read,
    "CamembertModel": bert.read,
    "DistilBertModel": distilbert.read,
    "ElectraModel": bert.read,
    "MPNetModel": mpnet.read,
    "ModernBertModel": modernbert.read,
    "RobertaModel": bert.read,
    "XLMRobertaModel": bert.read,
}


def read(model: Any) -> Network:
    """Return the network of a model of transformers, without pooling.

    Raises:
        BuildError: the architecture or one of its options is not supported; the message names it.
    """
    name = type(model).__name__
    if name not in READERS:
        raise BuildError(f"The model's architecture is {name}; supported are {', '.join(READERS)}.")
    return READERS[name](model)
