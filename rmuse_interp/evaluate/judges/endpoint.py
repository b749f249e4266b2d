"""Any OpenAI-compatible server as one who is asked: Gemini's, OpenAI's, vLLM, Ollama; through the `openai` client."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import urlparse

from rmuse_interp import RMuseError
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate.judges.consulting import Refused, Reply

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion
    from tenacity import RetryCallState

KEY: Final = "OPENAI_API_KEY"
URL: Final = "OPENAI_BASE_URL"
ATTEMPTS: Final = 6
LONGEST_WAIT: Final = 60.0
"""Seconds between attempts, at most, whatever the server asks for."""
_HERE: Final = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


class Endpoint:
    """A model behind a server's chat completions, at temperature 0.

    Faults that pass (no connection, too slow, 408, 409, 429, 5xx) are tried again, waiting as long as the server's
    ``Retry-After`` says, else ever longer; a fault that lasts stops with an error, and so does one that will not pass
    (a wrong key, an unknown model, no money left).

    Args:
        model: its name on the server.
        base_url: the server; by default the environment's `OPENAI_BASE_URL`, or OpenAI's.
        key: by default the environment's `OPENAI_API_KEY`; a server on this machine needs none.
        timeout: seconds for one reply.
        attempts: the most, for one question.
        wait: seconds before the second attempt; doubled for each further one.
        at_once: how many questions are under way at once.
        max_tokens: of a reply.

    Raises:
        RMuseError: no key, or the package `openai` is missing.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 60.0,
        attempts: int = ATTEMPTS,
        wait: float = 1.0,
        at_once: int = 8,
        max_tokens: int = 512,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise RMuseError(
                "a judge behind a server needs the package openai, got none; pip install 'rmuse-interp[judges]'"
            ) from error
        url = base_url or os.environ.get(URL) or None
        key = key or os.environ.get(KEY) or None
        if key is None and (url is None or urlparse(url).hostname not in _HERE):
            raise RMuseError(
                f"a key for {url or 'api.openai.com'} was required in the environment variable {KEY}, got none; set it, "
                "or name a server of this machine with --judge-url"
            )
        self.model, self.at_once, self.name = model, at_once, f"openai:{model}@{url or 'api.openai.com'}"
        self._attempts, self._wait, self._max_tokens = attempts, wait, max_tokens
        self._client = openai.OpenAI(api_key=key or "none", base_url=url, timeout=timeout, max_retries=0)
        self._json_mode = True

    def __call__(self, question: str) -> Reply:
        """The reply to one question.

        Raises:
            Refused: the server refuses this question (too long, not allowed).
            RMuseError: a fault that lasts, or that will not pass.
        """
        import openai
        from tenacity import Retrying, retry_if_exception, stop_after_attempt

        retrying = Retrying(
            stop=stop_after_attempt(self._attempts),
            retry=retry_if_exception(_passes),
            wait=_waiting(self._wait),
            reraise=True,
        )
        try:
            found = retrying(self._complete, question)
        except (openai.OpenAIError, ValueError) as error:
            raise self._explained(error) from error
        text = found.choices[0].message.content if found.choices else None
        usage = found.usage
        return Reply(text or "", usage.prompt_tokens if usage else 0, usage.completion_tokens if usage else 0)

    def _complete(self, question: str) -> "ChatCompletion":
        import openai

        settings: JSON = {"temperature": 0, "max_tokens": self._max_tokens}
        if self._json_mode:
            settings["response_format"] = {"type": "json_object"}
        try:
            found = self._client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": question}], **settings
            )
        except openai.BadRequestError as error:
            if self._json_mode and "response_format" in str(error):  # a server that knows no such setting
                self._json_mode = False
                return self._complete(question)
            raise
        if not hasattr(found, "choices"):
            raise _NoCompletion(f"{found!s:.80}")
        return found

    def _explained(self, error: Exception) -> Exception:
        import openai

        if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            return Refused(f"refused by the server: {error.message}"[:200])
        said = " ".join(str(error).split())[:160]
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return RMuseError(f"{self.name}: a valid key was required in {KEY}, got {said}")
        if isinstance(error, openai.NotFoundError):
            return RMuseError(f"{self.name}: a model of this server was required, got {said}")
        kind = type(error).__name__
        return RMuseError(
            f"{self.name}: a reply was required, got {kind} ({said}) after {self._attempts} attempts; what was answered "
            "is kept: run the same command again to go on from there"
        )


class _NoCompletion(ValueError):
    """The server answered something else than a completion."""


def _passes(error: BaseException) -> bool:
    """Whether a fault may be gone in a moment."""
    import openai

    if isinstance(error, openai.RateLimitError):
        return error.code != "insufficient_quota"
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409) or error.status_code >= 500
    # No connection, a dropped one, too slow; or a body that is no JSON, cut off or some proxy's page.
    return isinstance(error, openai.APIConnectionError | openai.APIResponseValidationError | ValueError)


def _waiting(first: float) -> "Callable[[RetryCallState], float]":
    """Seconds to wait before the next attempt: what the server asked for, else doubling with some jitter."""
    from tenacity import wait_exponential, wait_random

    growing = wait_exponential(multiplier=first, max=LONGEST_WAIT) + wait_random(0, first)

    def wait(state: "RetryCallState") -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        response = getattr(error, "response", None)
        asked = response.headers.get("retry-after") if response is not None else None
        try:
            return min(max(float(asked), 0.0), LONGEST_WAIT) if asked is not None else growing(state)
        except ValueError:  # a date
            return growing(state)

    return wait
