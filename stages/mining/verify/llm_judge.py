"""An LLM as judge: does a document answer a query? Asked over any OpenAI-compatible URL.

A pair of query and document is paid for once in a workspace's life: each answer is on disk before the next request of
its thread goes out, so a killed run loses only what was under way. Of a request that fails, or a document that an
answer leaves out, nothing is made up: it has no verdict, and is counted.
"""

import os
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from stages.core.errors import InputError
from stages.core.schemas import Progress, Summary
from stages.mining.verify.llm_prompt import RESPONSE_FORMAT, Batch, batches, content, cut, pair_key, read_answer
from stages.mining.verify.verdict_cache import Ledger

Floats = NDArray[np.float32]

FORMS: tuple[dict[str, Any], ...] = (
    {"temperature": 0, "response_format": RESPONSE_FORMAT},
    {"temperature": 0},
    {},
)
"""How a request is put, strictest first: a server that refuses one is asked in the next."""

WINDOW = 20
"""Where more than half of so many requests in a row fail, something is wrong that a person must mend."""


class Judge:
    """Verdicts of one model on pairs of query and document; long ones are cut (`prompt.DOCUMENT_CHARS`).

    `url` is the API's base, such as http://localhost:8000/v1 (vLLM, Ollama, llama.cpp, OpenAI). `cache` is a file that
    is made where there is none. The key is `api_key`, else the environment's OPENAI_API_KEY, else none (local servers
    take any); it is in no file, message or error. `timeout` in seconds for one attempt of at most `attempts`: the
    openai package repeats on timeouts, lost connections, 408, 409, 429 and 5xx, waits twice as long each time or as
    the server's Retry-After says. `parallel` requests are under way at once.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache: Path,
        progress: Progress,
        api_key: str | None = None,
        timeout: float = 120.0,
        attempts: int = 4,
        parallel: int = 4,
    ) -> None:
        if not _is_url(url):
            raise InputError("--judge is no URL of an API. Give one such as http://localhost:8000/v1")
        if not model:
            raise InputError("--judge needs the name of a model that it serves: --judge-model NAME")
        self._url, self._model, self._progress = url.rstrip("/"), model, progress
        self._key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        self._timeout, self._attempts, self._parallel = timeout, attempts, parallel
        self._ledger = Ledger(cache)
        if self._ledger.unread:
            progress.say(f"{cache.name}: {self._ledger.unread} damaged lines passed over; their pairs are asked again")
        self._lock = Lock()
        self._form, self._met = 0, False
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self.counts: Counter[str] = Counter()

    @property
    def summary(self) -> Summary:
        """Of all pairs so far, each counted once a call: cached + asked = pairs, answered + failed = asked, relevant is
        among cached + answered; retried counts HTTP requests beyond the first attempts."""
        names = ("pairs", "cached", "asked", "answered", "failed", "relevant", "requests", "retried")
        return {"model": self._model, **{name: self.counts[name] for name in names}}

    def verdicts(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """For each (query, document): 1.0 relevant (it answers the query), 0.0 not, NaN where no verdict came.

        Those that no earlier run has asked are asked in batches of one query. The first verdict on a pair stands for
        good, so it does not hang on the order in which answers come.
        Raises `InputError` where the first request can't be answered, or most requests fail.
        """
        read = [(cut(query), cut(document)) for query, document in pairs]
        keys = [pair_key(self._model, *pair) for pair in read]
        distinct = dict(zip(keys, read, strict=True))
        asked = [key for key in distinct if key not in self._ledger.held]
        if asked:
            self._ask(batches({key: distinct[key] for key in asked}), len(asked))
        answered = sum(key in self._ledger.held for key in asked)
        self.counts.update(
            pairs=len(distinct),
            cached=len(distinct) - len(asked),
            asked=len(asked),
            answered=answered,
            failed=len(asked) - answered,
            relevant=sum(self._ledger.held.get(key, False) for key in distinct),
        )
        return np.array([self._ledger.held.get(key, np.nan) for key in keys], np.float32)

    def _ask(self, asked: Sequence[Batch], total: int) -> None:
        done, lost, trouble = 0, 0, ""
        # The very first goes alone: it shows a wrong URL, key or model at once, and what form the server takes.
        alone = 0 if self._met else 1
        first = [self._judged(batch) for batch in asked[:alone]]
        pool = ThreadPoolExecutor(self._parallel)
        try:
            rest = pool.map(self._judged, asked[alone:])
            for batch, (said, why) in zip(asked, chain(first, rest), strict=True):
                done, lost, trouble = done + len(batch.keys), lost + len(batch.keys) - said, why or trouble
                self._progress.advance(done, total, "judgements")
                self._recent.append(said == 0)
                if sum(self._recent) > WINDOW // 2:
                    failed = f"{sum(self._recent)} of the last {len(self._recent)} requests"
                    raise InputError(
                        f"the judge at {self._shown} failed in {failed}, lastly: {trouble} "
                        "(What it has answered is kept; run again once that is mended.)"
                    )
        finally:
            pool.shutdown(cancel_futures=True)
        if lost:
            self._progress.say(
                f"judge: {lost:,} of {total:,} pairs got no verdict and stay unjudged, lastly: {trouble}"
            )

    def _judged(self, batch: Batch) -> tuple[int, str]:
        """Ask, store what was said, and return how many verdicts came and what went wrong (empty where nothing did).

        What an answer leaves out is asked once more, each document alone; so a batch that was too long gets through.
        """
        openai = _openai()
        said: dict[int, bool] = {}
        try:
            said, trouble = self._request(batch)
            for place in range(len(batch.keys)):
                if place not in said:
                    alone, why = self._request(batch.only(place))
                    if alone:
                        said[place] = alone[0]
                    trouble = why or trouble
        except openai.OpenAIError as error:
            trouble = self._words(error)
        if not self._met:
            raise InputError(f"the judge at {self._shown} did not answer for model {self._model!r}: {trouble}")
        with self._lock:
            self._ledger.add({batch.keys[place]: relevant for place, relevant in said.items()})
        return len(said), trouble

    def _request(self, batch: Batch) -> tuple[dict[int, bool], str]:
        """Place -> relevant, as far as one answer says it, and what was wrong with it.

        Raises `openai.OpenAIError` where none came; a request that the server calls wrong in every form has no answer.
        """
        openai = _openai()
        trouble = ""
        for form in range(self._form, len(FORMS)):
            try:
                raw = self._client.chat.completions.with_raw_response.create(
                    model=self._model, messages=batch.messages(), **FORMS[form]
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                trouble = self._words(error)
                continue
            body = raw.http_response.text
            answer = content(body)
            if answer is None:
                found = self._safe(body)[:80]
                return {}, f"no chat completion but {found!r}. Does --judge end as the API does (/v1)?"
            if not self._met:  # while the first request is alone, so that no other hangs on when this is learned
                self._form, self._met = form, True
            said = read_answer(answer, len(batch.documents))
            lacking = len(batch.documents) - len(said)
            found = self._safe(answer)[:80]
            return said, f"{lacking} verdicts are lacking in the answer {found!r}." if lacking else ""
        return {}, trouble

    @cached_property
    def _client(self) -> Any:
        openai = _openai()
        return openai.OpenAI(
            base_url=self._url,
            api_key=self._key or "none",
            timeout=self._timeout,
            max_retries=self._attempts - 1,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [self._sent]}),
        )

    def _sent(self, request: Any) -> None:
        again = request.headers.get("x-stainless-retry-count", "0") != "0"
        with self._lock:
            self.counts.update(requests=1, retried=int(again))

    @property
    def _shown(self) -> str:
        """The URL without a password that it may hold."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def _words(self, error: Exception) -> str:
        """What happened, and how to mend it."""
        openai = _openai()
        if isinstance(error, openai.APITimeoutError):
            return f"no answer in {self._timeout:g} s, {self._attempts} times over. Is the model loaded, and not busy?"
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            return self._safe(f"{cause}. Is the server running, and is --judge its URL (http://HOST:PORT/v1)?")
        status = getattr(error, "status_code", None)
        mend = {
            401: "Set OPENAI_API_KEY to a key that this server takes.",
            403: "Set OPENAI_API_KEY to a key that may use this model.",
            404: f"Check --judge-model ({self._shown}/models lists them), and that --judge ends as the API does (/v1).",
            429: "Its limit or the account's quota is used up: run again later.",
        }
        return self._safe(f"{error}")[:300] + (f" {mend[status]}" if status in mend else "")

    def _safe(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise InputError("a judge needs the extra: pip install 'prep[judge]'") from None
    return openai
