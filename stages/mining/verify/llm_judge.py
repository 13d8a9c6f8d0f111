"""The LLM judge: a language model behind an OpenAI-compatible URL that decides whether a document answers a query.

A pair of query and document is paid for once: each answer is on disk before the next request of its thread is sent, so
a killed run loses only the requests in flight. A request that fails, or a document that is missing in the answer, gives
no verdict and is counted as failed.
"""

from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from stages.core.api_client import APIClient, import_openai
from stages.core.arrays import Floats
from stages.core.context import Progress, Summary
from stages.core.errors import InputError
from stages.mining.verify.llm_prompt import (
    RESPONSE_FORMAT,
    JudgeRequest,
    build_cache_key,
    build_requests,
    parse_completion,
    parse_verdicts,
    truncate_at_word,
)
from stages.mining.verify.verdict_cache import VerdictCache

REQUEST_OPTIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 0, "response_format": RESPONSE_FORMAT},
    {"temperature": 0},
    {},
)
"""The options of a request, strictest first. If the server refuses some, the next are tried."""

FAILURE_WINDOW = 20
"""If more than half of this many consecutive requests fail, the run stops with an error."""


class LLMJudge:
    """Verdicts of one model on pairs of query and document; long texts are cut (`llm_prompt.MAX_DOCUMENT_CHARS`).

    `url` is the base URL of the API, such as http://localhost:8000/v1 (vLLM, Ollama, llama.cpp, OpenAI). The API key is
    `api_key` or else OPENAI_API_KEY. A request has at most `attempts` attempts of `timeout` seconds (`APIClient`).
    `parallel` requests are sent at once.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache_path: Path,
        progress: Progress,
        api_key: str | None = None,
        timeout: float = 120.0,
        attempts: int = 4,
        parallel: int = 4,
    ) -> None:
        self._client = APIClient(url, "[verify] llm_judge", timeout, attempts, api_key, on_request=self._count_request)
        if not model:
            raise InputError("[verify] llm_judge needs llm_judge_model, the name of a model that the API serves")
        self._model, self._progress, self._parallel = model, progress, parallel
        self._cache = VerdictCache(cache_path)
        if self._cache.n_damaged_lines:
            progress.log(
                f"{cache_path.name}: {self._cache.n_damaged_lines} damaged lines are ignored; their pairs are sent to "
                f"the LLM judge again"
            )
        self._lock = Lock()
        self._options_index, self._has_answered = 0, False
        self._recent_failures: deque[bool] = deque(maxlen=FAILURE_WINDOW)
        self.counts: Counter[str] = Counter()

    @property
    def summary(self) -> Summary:
        """Counts of distinct pairs: pairs = cached + requested, requested = answered + failed, and relevant; and of
        HTTP requests, among them the retried ones."""
        names = ("pairs", "cached", "requested", "answered", "failed", "relevant", "requests", "retried")
        return {"model": self._model, **{name: self.counts[name] for name in names}}

    def judge_pairs(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """For each (query, document): 1.0 if it is relevant (it answers the query), 0.0 if not, NaN without a verdict.

        Pairs that are not in the cache are sent in batches of one query. Raises `InputError` if the first request gets
        no answer, or if most requests fail.
        """
        truncated = [(truncate_at_word(query), truncate_at_word(document)) for query, document in pairs]
        keys = [build_cache_key(self._model, *pair) for pair in truncated]
        distinct = dict(zip(keys, truncated, strict=True))
        uncached = [key for key in distinct if key not in self._cache.verdicts]
        if uncached:
            self._judge_requests(build_requests({key: distinct[key] for key in uncached}), len(uncached))
        answered = sum(key in self._cache.verdicts for key in uncached)
        self.counts.update(
            pairs=len(distinct),
            cached=len(distinct) - len(uncached),
            requested=len(uncached),
            answered=answered,
            failed=len(uncached) - answered,
            relevant=sum(self._cache.verdicts.get(key, False) for key in distinct),
        )
        return np.array([self._cache.verdicts.get(key, np.nan) for key in keys], np.float32)

    def _judge_requests(self, requests: Sequence[JudgeRequest], total: int) -> None:
        done, n_failed, last_error = 0, 0, ""
        # The first request is sent alone: it finds a wrong URL, key or model, and the options that the server accepts.
        n_sequential = 0 if self._has_answered else 1
        first = [self._judge_request(request) for request in requests[:n_sequential]]
        pool = ThreadPoolExecutor(self._parallel)
        try:
            rest = pool.map(self._judge_request, requests[n_sequential:])
            for request, (n_verdicts, error_message) in zip(requests, chain(first, rest), strict=True):
                done, n_failed, last_error = (
                    done + len(request.cache_keys),
                    n_failed + len(request.cache_keys) - n_verdicts,
                    error_message or last_error,
                )
                self._progress.advance(done, total, "judgements")
                self._recent_failures.append(n_verdicts == 0)
                if sum(self._recent_failures) > FAILURE_WINDOW // 2:
                    failed = f"{sum(self._recent_failures)} of the last {len(self._recent_failures)} requests"
                    raise InputError(
                        f"the LLM judge at {self._client.redacted_url} failed in {failed}. The last error: "
                        f"{last_error} (Its answers so far are kept. Fix the error and run again.)"
                    )
        finally:
            pool.shutdown(cancel_futures=True)
        if n_failed:
            self._progress.log(
                f"LLM judge: {n_failed:,} of {total:,} pairs got no verdict. The last error: {last_error}"
            )

    def _judge_request(self, request: JudgeRequest) -> tuple[int, str]:
        """Send a request, store its verdicts, and return their number and the error ("" if none).

        Documents that are missing in the answer are sent once more, each alone. This also helps if a batch was too long
        for the server.
        """
        openai = import_openai()
        verdicts: dict[int, bool] = {}
        try:
            verdicts, error_message = self._send_request(request)
            for place in range(len(request.cache_keys)):
                if place not in verdicts:
                    single_verdict, single_error = self._send_request(request.select_document(place))
                    if single_verdict:
                        verdicts[place] = single_verdict[0]
                    error_message = single_error or error_message
        except openai.OpenAIError as error:
            error_message = self._client.describe_error(error, "llm_judge_model")
        if not self._has_answered:
            raise InputError(
                f"the LLM judge at {self._client.redacted_url} did not answer for model {self._model!r}: "
                f"{error_message}"
            )
        with self._lock:
            self._cache.add({request.cache_keys[place]: relevant for place, relevant in verdicts.items()})
        return len(verdicts), error_message

    def _send_request(self, request: JudgeRequest) -> tuple[dict[int, bool], str]:
        """The verdicts in the server's answer (position -> relevant), and the error ("" if none).

        Raises `openai.OpenAIError` if no answer comes for another reason than refused options.
        """
        openai = import_openai()
        last_error = ""
        for options_index in range(self._options_index, len(REQUEST_OPTIONS)):
            try:
                raw = self._client.openai.chat.completions.with_raw_response.create(
                    model=self._model, messages=request.to_messages(), **REQUEST_OPTIONS[options_index]
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                last_error = self._client.describe_error(error, "llm_judge_model")
                continue
            body = raw.http_response.text
            answer = parse_completion(body)
            if answer is None:
                excerpt = self._client.redact_key(body)[:80]
                return (
                    {},
                    f"the answer is no chat completion: {excerpt!r}. Does llm_judge end with the API's path (/v1)?",
                )
            if not self._has_answered:  # set by the first request, which is alone, so no other depends on its timing
                self._options_index, self._has_answered = options_index, True
            verdicts = parse_verdicts(answer, len(request.documents))
            n_missing = len(request.documents) - len(verdicts)
            excerpt = self._client.redact_key(answer)[:80]
            return verdicts, f"{n_missing} verdicts are missing in the answer {excerpt!r}." if n_missing else ""
        return {}, last_error

    def _count_request(self, is_retry: bool) -> None:
        with self._lock:
            self.counts.update(requests=1, retried=int(is_retry))
