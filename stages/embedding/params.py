"""The settings of the encode step."""

from typing import Literal, Self

from pydantic import field_validator, model_validator

from stages.core.device import Device
from stages.core.model_files import DEFAULT_ENCODER
from stages.core.params import BaseParams as Base
from stages.core.params import device_option, dtype_option, option
from stages.embedding.server_encoder import (
    validate_server_url,
)


class Params(Base):
    """The encoder and its settings."""

    # The model's content and name enter the key through `key_extras`, the device through the encoder's key.
    model: str = option(
        DEFAULT_ENCODER,
        "Encoder: a sentence-transformers or Hugging Face model, by folder or hub id; with url, the name that the "
        "server knows it by.",
        is_model=True,
        exclude_from_key=True,
    )
    url: str | None = option(
        None,
        "URL of an OpenAI-compatible API that encodes instead of a model here, such as http://localhost:8000/v1.",
        exclude_from_key=True,
    )
    document_model: str | None = option(
        None, "With url: name of the model for documents, if it is not that for queries.", exclude_from_key=True
    )
    input_type: Literal["", "passage", "document", "search_document"] = option(
        "",
        "With url: input_type of the requests for documents, for servers that tell them from queries by it.",
        exclude_from_key=True,
    )
    query_prompt: str | None = option(None, 'Text before every query, such as "query: ". The model\'s own if unset.')
    document_prompt: str | None = option(
        None, 'Text before every document, such as "passage: ". The model\'s own if unset.'
    )
    max_length: int | None = option(None, "Tokens of a text that are read. The model's own limit if unset.", ge=4)
    similarity: Literal["auto", "cosine", "dot"] = option(
        "auto",
        "How two vectors are compared. auto takes what the model declares, else cosine.",
        advanced=True,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = dtype_option()
    device: Device = device_option()
    extra_models: tuple[str, ...] = option(
        (),
        "More encoders. They are the sources dense2, dense3, ... of search.",
        advanced=True,
        is_model=True,
        exclude_from_key=True,
    )
    batch_tokens: int = option(
        4096,
        "Tokens of a batch. Lower it if memory runs out; the vectors stay the same.",
        advanced=True,
        exclude_from_key=True,
        ge=1,
    )

    @field_validator("url")
    @classmethod
    def _validate_url(cls, given: str | None) -> str | None:
        if given:
            validate_server_url(given)
        return given or None

    @model_validator(mode="after")
    def _check_server(self) -> Self:
        if self.url and not self.model.strip():
            raise ValueError("url needs a model: the name under which the server serves it")
        for name in ("document_model", "input_type"):
            if getattr(self, name) and not self.url:
                raise ValueError(f"{name} needs a url: give that, or leave {name} out")
        if self.url and self.max_length is not None:
            raise ValueError("max_length has no effect with a url: a server cuts texts itself, or set chunk_words")
        return self
