"""A client of an OpenAI-compatible API: one for every model that is asked over a URL. Keys stay out of all messages."""

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from stages.core.errors import InputError

_CONNECT_SECONDS = 10.0


class APIClient:
    """The `openai` client of one URL, and its failures in words.

    `setting` is the URL's key in prep.toml, for messages. The API key is `api_key` or else the first of the environment
    variables `key_variables` that is set; it is never written to a file or message. A request has at most `attempts`
    attempts of `timeout` seconds: the openai package repeats after timeouts, lost connections, 408, 409, 429 and 5xx,
    with growing pauses or as Retry-After says (up to a minute). `on_request` is called before each attempt, with
    whether it is a repetition. Raises `InputError` if `url` is no URL.
    """

    def __init__(
        self,
        url: str,
        setting: str,
        timeout: float,
        attempts: int,
        api_key: str | None = None,
        key_variables: tuple[str, ...] = ("OPENAI_API_KEY",),
        on_request: Callable[[bool], None] | None = None,
    ) -> None:
        if not is_api_url(url):
            raise InputError(f"{setting} must be the URL of an API, such as http://localhost:8000/v1")
        self.url, self._setting_name = url.rstrip("/"), setting.rpartition(" ")[2]
        self.timeout, self.attempts, self._on_request = timeout, attempts, on_request
        self._key_variables = key_variables
        self._api_key = (api_key or next(filter(None, map(os.environ.get, key_variables)), "")).strip()

    @cached_property
    def openai(self) -> Any:
        """An `openai.OpenAI`."""
        openai = import_openai()

        def report_request(request: Any) -> None:
            if self._on_request:
                self._on_request(request.headers.get("x-stainless-retry-count", "0") != "0")

        return openai.OpenAI(
            base_url=self.url,
            api_key=self._api_key or "none",
            timeout=openai.Timeout(self.timeout, connect=min(self.timeout, _CONNECT_SECONDS)),
            max_retries=self.attempts - 1,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [report_request]}),
        )

    @property
    def redacted_url(self) -> str:
        """The URL without user name and password."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def redact_key(self, text: str) -> str:
        """`text` without the API key."""
        return text.replace(self._api_key, "***") if self._api_key else text

    def describe_error(self, error: Exception, model_setting: str) -> str:
        """The error with a hint how to fix it, without the API key. `model_setting` is the key that names the model."""
        openai = import_openai()
        if isinstance(error, openai.APITimeoutError) and type(error.__cause__).__name__ != "ConnectTimeout":
            return f"no answer in {self.timeout:g} s, {self.attempts} times. Is the model loaded, and not busy?"
        if isinstance(error, openai.APIConnectionError):
            cause = str(error.__cause__ or error)
            return self.redact_key(
                f"{cause}. Is the server running, and is {self._setting_name} its URL (http://HOST:PORT/v1)?"
            )
        status = getattr(error, "status_code", None)
        variables = " or ".join(self._key_variables)
        hints = {
            401: f"Set {variables} to a key that this server accepts.",
            403: f"Set {variables} to a key that may use this model.",
            404: f"Check {model_setting} ({self.redacted_url}/models lists the models), and that "
            f"{self._setting_name} ends with the API's path (/v1).",
            429: "A rate limit or the account's quota is used up: run again later.",
        }
        return self.redact_key(f"{error}")[:300] + (f" {hints[status]}" if status in hints else "")


def is_api_url(text: str) -> bool:
    """Whether `text` is an http or https URL with a host."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def import_openai() -> Any:
    """The package `openai`. Raises `InputError` if it is not installed."""
    try:
        import openai
    except ImportError:
        raise InputError("a model behind a URL needs the extra: pip install 'prep-reranker[server]'") from None
    return openai
