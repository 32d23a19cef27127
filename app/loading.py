"""Loading: the encoder that the settings describe."""

import logging

from app.engine.encoder import Encoder
from app.engine.model_folder import ModelFolder
from app.settings import Settings

logger = logging.getLogger(__name__)


def load_encoder(settings: Settings, threads: int) -> Encoder:
    """Return the encoder, not open yet. threads: texts that it computes at once.

    Raises:
        BootError: the model folder is not complete, or a setting does not fit the model.
    """
    model_folder = ModelFolder.load(settings.model_dir, settings.model_path, settings.tokenizer_path)
    if model_folder.manifest.warning:
        logger.warning("%s", model_folder.manifest.warning)
    encoder = Encoder.load(
        model_folder,
        max_length=settings.max_length or model_folder.manifest.max_seq_length,
        threads=threads,
        cache_size=settings.cache_size,
        default_prompt_name=settings.default_prompt_name,
    )
    if encoder.max_length != model_folder.manifest.max_seq_length:
        logger.info("%s", _lengths(encoder))
    return encoder


def _lengths(encoder: Encoder) -> str:
    """Return a sentence about MAX_LENGTH where it is not the model's own limit."""
    served, own = encoder.max_length, encoder.model_folder.manifest.max_seq_length
    return (
        f"Texts are cut at {served} tokens (MAX_LENGTH), by sentence-transformers at the model's own limit of {own}: "
        f"texts over {min(served, own)} tokens have other vectors than there. MAX_LENGTH=model takes the model's own."
    )
