"""The encoders that the settings name: models on this machine, or one behind a URL."""

from collections.abc import Callable

from stages.core.context import StageContext
from stages.core.errors import InputError
from stages.embedding.encoder import EncoderSpec, resolve_encoder_spec
from stages.embedding.params import Params
from stages.embedding.server_encoder import (
    ServerUnreachableError,
    find_stored_spec,
    identify_server,
    make_server_spec,
)


def make_settings_spec(params: Params) -> EncoderSpec:
    """The encoder behind `url`, before any request is sent to it."""
    return make_server_spec(
        params.url or "",
        params.model,
        params.document_model or "",
        params.input_type,
        params.query_prompt,
        params.document_prompt,
        params.similarity,
    )


def identify_encoder_server(
    params: Params, context: StageContext, log: Callable[[str], None] = lambda message: None
) -> EncoderSpec:
    """The encoder behind `url`. If no request may be sent or none is answered, what it was when it was last identified.

    Raises `InputError` if it does not answer and was never identified, or if its answer can't be used.
    """
    spec = make_settings_spec(params)
    if not context.may_ask_servers:
        return find_stored_spec(spec, context.vectors_dir)
    try:
        return identify_server(spec, context.vectors_dir)
    except ServerUnreachableError as error:
        stored = find_stored_spec(spec, context.vectors_dir)
        if stored == spec:
            raise
        log(f"{error} The vectors that it gave earlier are used.")
        return stored


def list_encoder_specs(params: Params, server: EncoderSpec | None = None) -> list[EncoderSpec]:
    """The encoders, the first one first; with a url that is `server`. Raises `InputError` if two are the
    same."""
    if params.url:
        first = server or make_settings_spec(params)
    else:
        first = resolve_encoder_spec(
            params.model,
            params.query_prompt,
            params.document_prompt,
            params.max_length,
            params.dtype,
            params.device,
            params.similarity,
        )
    more = [resolve_encoder_spec(model, dtype=params.dtype, device=params.device) for model in params.extra_models]
    seen_keys = {first.key}
    for other, name in zip(more, params.extra_models, strict=True):
        if other.key in seen_keys:
            raise InputError(f"extra_models: the encoder {name} is given twice. Remove it.")
        seen_keys.add(other.key)
    return [first, *more]
