"""Ask a model on any OpenAI-compatible server (Gemini's, OpenAI's, vLLM, Ollama) through the `openai` client."""

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
"""Maximum seconds between attempts, even if the server asks for more."""
_HERE: Final = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


class Endpoint:
    """A model behind a server's chat completions interface, at temperature 0.

    After a temporary fault (no connection, timeout, 408, 409, 429, 5xx) the request is repeated, after the time in the
    server's ``Retry-After`` or else after ever longer waits. A temporary fault that lasts raises an error, as does
    a permanent one (a wrong key, an unknown model, no money left).

    Args:
        model: the model's name on the server.
        base_url: the server's address; by default the environment's `OPENAI_BASE_URL`, or OpenAI's.
        key: the API key; by default the environment's `OPENAI_API_KEY`; a server on this machine needs none.
        timeout: maximum seconds for one reply.
        attempts: maximum number of attempts per question.
        wait: seconds before the second attempt; doubled for each further one.
        at_once: number of questions sent in parallel.
        max_tokens: maximum number of tokens in a reply.

    Raises:
        RMuseError: there is no key, or the package `openai` is missing.
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
        self.of: object = (self.name, max_tokens)

    def __call__(self, question: str) -> Reply:
        """Ask one question.

        Raises:
            Refused: the server refuses this question (too long, not allowed).
            RMuseError: a fault lasts or is permanent.
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
        told = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        asked, said = (n if isinstance(n, int) else 0 for n in told)
        return Reply(text or "", asked, said)

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
            if self._json_mode and "response_format" in str(error):  # a server without this setting
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
    """The server's answer is not a completion."""


def _passes(error: BaseException) -> bool:
    """Whether a fault may be temporary."""
    import openai

    if isinstance(error, openai.RateLimitError):
        return error.code != "insufficient_quota"
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409) or error.status_code >= 500
    # No connection, a dropped one, a timeout; or a body that is not JSON: cut off, or a proxy's page.
    return isinstance(error, openai.APIConnectionError | openai.APIResponseValidationError | ValueError)


def _waiting(first: float) -> "Callable[[RetryCallState], float]":
    """Make the function that gives the seconds to the next attempt: as the server asks, else doubling with jitter."""
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
