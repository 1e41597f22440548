"""A small client of OpenAI-compatible chat endpoints that gets through bad moments.

Enters: messages. Leaves: the text of the reply. What passes (timeouts, lost connections, 408, 409,
425, 429, 5xx, a reply that is no JSON or not of the documented form) is tried again after a wait
that doubles; `Retry-After` is obeyed. What does not pass is a ConfigError with the server's words.
"""

import dataclasses
import email.utils
import http.client
import json
import random
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from jax_mdlm.config import ConfigError
from jax_mdlm.evaluation.judge.records import ChatMessages

_PASSING = frozenset({408, 409, 425, 429})
_ABOUT_THE_REQUEST = frozenset({400, 413, 422})  # too long, or against the server's rules
_SHOWN = 300  # characters of a server's message


class RefusedRequest(ConfigError):
    """The server does not want this conversation; it may want others."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a judge is and how it is asked.

    Attributes:
      url: Base, as OpenAI's `https://api.openai.com/v1`; `/chat/completions` is appended.
      model: Name that the server knows.
      key: Sent as a bearer token; None = none. Never shown.
      temperature: Of the judge; 0 = its most probable reply.
      max_tokens: Of a reply; 0 = as the server likes.
      timeout: Seconds without a byte after which a request is given up.
      attempts: Requests for one reply, at most.
      wait: Seconds before the second request; doubles with each.
      longest_wait: Seconds between two requests, at most; a server that asks for more is an error.
      seed: Of the jitter, which keeps parallel requests from coming back all at once.
    """

    url: str
    model: str
    key: str | None = dataclasses.field(default=None, repr=False)
    temperature: float = 0.0
    max_tokens: int = 0
    timeout: float = 300.0
    attempts: int = 8
    wait: float = 1.0
    longest_wait: float = 120.0
    seed: int = 0


class Client:
    """Asks an endpoint; may be shared by threads."""

    def __init__(self, endpoint: Endpoint, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Raises ConfigError for an address that is none; `sleep` is for tests."""
        address = urllib.parse.urlsplit(endpoint.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError(
                f"--url must be an address such as https://host/v1, got {endpoint.url!r}"
            )
        self._endpoint = endpoint
        self._address = endpoint.url.rstrip("/").removesuffix("/chat/completions")
        self._address += "/chat/completions"
        self._sleep = sleep
        self._random = random.Random(endpoint.seed)
        # urllib would follow a redirect with the key, wherever it leads.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, messages: ChatMessages) -> str:
        """The reply to a conversation.

        Raises:
          RefusedRequest: the server refuses this conversation (status 400, 413, 422).
          ConfigError: the server refuses us, or does not answer within `attempts` requests.
        """
        endpoint = self._endpoint
        for attempt in range(endpoint.attempts):
            try:
                return self._request(messages)
            except _Passing as problem:
                reason, asked = self._without_key(str(problem)), problem.wait
            if attempt + 1 < endpoint.attempts:
                self._sleep(self._next_wait(attempt, asked, reason))
        raise ConfigError(
            f"{self._address} must answer within {endpoint.attempts} attempts, the last one: "
            f"{reason}; start the same command again later, it goes on from here"
        )

    def _next_wait(self, attempt: int, asked: float, reason: str) -> float:
        endpoint = self._endpoint
        if asked > endpoint.longest_wait:
            raise ConfigError(
                f"{self._address} asks to wait {asked:.0f} s ({reason}), longer than "
                f"{endpoint.longest_wait:.0f} s; start the same command again later"
            )
        own = min(endpoint.wait * 2**attempt, endpoint.longest_wait)
        return max(own * (0.5 + self._random.random() / 2), asked)

    def _request(self, messages: ChatMessages) -> str:
        endpoint = self._endpoint
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": messages,
            "temperature": endpoint.temperature,
        }
        if endpoint.max_tokens:
            body["max_tokens"] = endpoint.max_tokens
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if endpoint.key:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=endpoint.timeout) as response:
                return _content(response.read())
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise ConfigError(
                    f"{self._address} must have a certificate that can be trusted, but "
                    f"{error.reason.verify_message}; install its authority or correct --url"
                ) from None
            raise _Passing(_short(str(error.reason))) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(_short(f"{type(error).__name__} {error}".strip())) from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """A status that is not 200, as what passes or as what does not."""
        try:
            text = error.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            text = ""
        said, code = _message(self._without_key(text))
        what = f"status {error.code}" + (f", {_short(said)}" if said.strip() else "")
        # Also a 429, but no wait pays a bill.
        if (error.code in _PASSING or error.code >= 500) and code != "insufficient_quota":
            return _Passing(what, _seconds(error.headers.get("Retry-After")))
        kind = RefusedRequest if error.code in _ABOUT_THE_REQUEST else ConfigError
        return kind(
            f"{self._address} must accept requests for {self._endpoint.model}, but: {what}; "
            "correct --url, --judge-model or the key"
        )

    def _without_key(self, text: str) -> str:
        """Some servers repeat what they refuse."""
        return text.replace(self._endpoint.key, "***") if self._endpoint.key else text


class _Passing(Exception):
    """What may be over at the next attempt."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds that the server asks for


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _content(body: bytes) -> str:
    """The text of a completion."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise _Passing(f"no chat completion: {_short(body.decode('utf-8', 'replace'))}")
    return text


def _message(text: str) -> tuple[str, str]:
    """What a server says of an error, and its code: OpenAI's form, or any other text."""
    try:
        error = json.loads(text)["error"]
        if isinstance(error, str):
            return error, ""
        return str(error["message"]), str(error.get("code") or "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return text, ""


def _seconds(retry_after: str | None) -> float:
    """`Retry-After`, which is a number of seconds or a date; 0 where it is neither."""
    if retry_after is None:
        return 0.0
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        return _until(retry_after)


def _until(date: str) -> float:
    """Seconds from now to an HTTP date; 0 where it is past, or none."""
    try:
        moment = email.utils.parsedate_to_datetime(date)
    except ValueError:
        return 0.0
    return max(moment.timestamp() - time.time(), 0.0)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
