"""Object stores and web servers: opened, asked again after what passes, and named without what is secret."""

import asyncio
import errno
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import fsspec

from voxstrata.base.errors import InputError, UnreachableError

T = TypeVar("T")
Asked = TypeVar("Asked")
REQUESTS_AT_ONCE = 32

# How long one request is tried again: of a server that has answered before, and of one that never has, whose name may
# be wrong. The libraries below try a few times by themselves, within a single one of our tries.
PATIENCE_SECONDS, FIRST_PATIENCE_SECONDS = 300.0, 30.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 20.0
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
_PASSING_CODES = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "OperationAborted"}
_PASSING_CODES |= {"ConditionalRequestConflict"}  # S3: two conditional writes of one object at once
_PASSING_ERRNO = {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO), errno.ETIMEDOUT, errno.EPIPE}
# Of botocore, aiohttp, requests, urllib3 and fsspec, by name: each is installed only where it is needed.
_PASSING = {
    "HTTPClientError", "EndpointConnectionError", "ConnectionError", "ClientConnectionError", "ClientPayloadError",
    "ClientOSError", "IncompleteRead", "ResponseParserError", "FSTimeoutError", "ChunkedEncodingError", "Timeout",
}  # fmt: skip
_FINAL = {"SSLError", "ClientConnectorCertificateError", "ProxyConnectionError"}
_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError",
    "TokenRetrievalError", "UnauthorizedSSOTokenError",
}  # fmt: skip
_FOUND = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)  # answers, for the caller
_SECRET = re.compile(r"^x-(amz|goog)-|sig|token|secret|passw|cred|key|auth|policy|expires|accessid", re.IGNORECASE)
_AZURE = {"sv", "st", "se", "sr", "sp", "sip", "spr", "ss", "srt", "skoid", "sktid", "skt", "ske", "sks", "skv"}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>)\]]+", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(
    r"^(AWS|GOOGLE|GCS|AZURE|FSSPEC|BOTO)\w*(SECRET|TOKEN|KEY|PASSWORD|CREDENTIAL)", re.IGNORECASE
)
_answered: set[str] = set()  # servers that have answered in this process
_log = logging.getLogger("voxstrata")
for _name in ("gcsfs", "s3fs", "aiobotocore", "asyncio"):  # they print errors that are ours to tell, with tracebacks
    logging.getLogger(_name).addHandler(logging.NullHandler())


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL, such as s3://bucket/speech, and no path."""
    return isinstance(place, str) and bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*:(//|:)", place))


def shown(url: str) -> str:
    """A URL without user, password and what signs it: as it may be printed and stored. Equal for a URL signed anew."""
    if "://" not in url or not ("@" in url or "?" in url):
        return url
    parts = urlsplit(url)
    asked = parse_qsl(parts.query, keep_blank_values=True)
    secret = {name for name, _ in asked if _SECRET.search(name)}
    secret |= _AZURE if "sig" in secret else set()
    query = parts.query
    if secret.intersection(name for name, _ in asked):
        query = urlencode([(name, value) for name, value in asked if name not in secret])
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def redacted(text: str) -> str:
    """A text of others, such as an error's, without what is secret in its URLs, and without the environment's keys."""
    text = _URL.sub(lambda found: shown(found[0]), text)
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_VARIABLE.match(name) and not os.path.exists(value):
            text = text.replace(value, "…")
    return text


def open_remote(url: str, **options: Any) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path there. Settings and credentials are the environment's.

    Raises InputError where a package is missing, the kind is unknown, or the URL of a bucket holds credentials.
    """
    try:
        parts = urlsplit(url)
    except ValueError as e:
        raise InputError(f"{url}: no URL ({e}); use s3://, gs://, https:// or a path") from None
    if parts.scheme in ("s3", "s3a", "gs", "gcs") and "@" in parts.netloc:
        raise InputError(f"{shown(url)}: no credentials in the name of a bucket; give them by the environment")
    try:
        # listings that are kept would hide what others write
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    except ImportError as e:
        raise InputError(f"{shown(url)}: {redacted(str(e))}; pip install 'voxstrata[remote]'") from None
    except ValueError as e:
        raise InputError(f"{shown(url)}: {redacted(str(e))}; use s3://, gs://, https:// or a path") from None
    except Exception as e:  # credentials are looked for here
        raise _refusal(url, e, 0.0) from None
    if hasattr(fs, "retries"):
        fs.retries = 1  # s3fs' own; botocore's below and ours above are enough
    return fs, str(path)


def patiently(url: str, action: Callable[[], T]) -> T:
    """What `action` gives, tried again after errors that pass. url: what it is about.

    FileNotFoundError and FileExistsError are answers, and reach the caller. Raises UnreachableError where the server
    does not answer for PATIENCE_SECONDS, and where there are no credentials; InputError for all else.
    """
    waits = _Waits(url)
    while True:
        try:
            result = action()
        except Exception as error:
            time.sleep(waits.after(error))
        else:
            _answered.add(_server(url))
            return result


async def patiently_async(url: str, action: Callable[[], Awaitable[T]]) -> T:
    """`patiently`, for what is awaited."""
    waits = _Waits(url)
    while True:
        try:
            result = await action()
        except Exception as error:
            await asyncio.sleep(waits.after(error))
        else:
            _answered.add(_server(url))
            return result


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of a library stands for, where it says."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return _number(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return _number(getattr(error, "status", getattr(error, "code", None)))  # aiohttp; gcsfs


def causes(error: BaseException) -> list[BaseException]:
    """An error and those it was made of, the innermost first."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain[::-1]


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later: time-outs, lost connections, 429, 500, 502, 503, 504."""
    return next((known for cause in causes(error) if (known := _passing(cause)) is not None), False)


def _passing(error: BaseException) -> bool | None:
    """None where this error alone does not say."""
    names = {kind.__name__ for kind in type(error).__mro__}
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    if code in _PASSING_CODES:
        return True
    if (status := status_of(error)) is not None:
        return status in _PASSING_STATUS
    if names & (_FINAL | _NO_CREDENTIALS) or isinstance(error, (*_FOUND, PermissionError)):
        return False
    if names & _PASSING or isinstance(error, TimeoutError | ConnectionError):
        return True
    return True if isinstance(error, OSError) and error.errno in _PASSING_ERRNO else None


class _Waits:
    """How long to wait after each failure of one request: twice as long as before, by chance up to that."""

    def __init__(self, url: str) -> None:
        self._url, self._begin, self._longest = url, time.monotonic(), _FIRST_WAIT_SECONDS

    def after(self, error: Exception) -> float:
        """Seconds until the next try. Raises what the caller is to see where there is none."""
        passing = is_passing(error)
        if not passing and isinstance(error, _FOUND):
            raise error
        if not passing and any(status_of(cause) == 412 for cause in causes(error)):  # a conditional write
            raise FileExistsError(shown(self._url)) from None
        tried = time.monotonic() - self._begin
        patience = PATIENCE_SECONDS if _server(self._url) in _answered else FIRST_PATIENCE_SECONDS
        if not passing or tried >= patience:
            raise _refusal(self._url, error, tried) from None
        if self._longest == _FIRST_WAIT_SECONDS * 8:
            _log.warning("%s: %s; trying again for up to %.0f s", shown(self._url), _said(error), patience)
        wait = random.uniform(self._longest / 2, self._longest)
        self._longest = min(2 * self._longest, _LONGEST_WAIT_SECONDS)
        return min(wait, max(0.0, patience - tried))


def _refusal(url: str, error: Exception, tried: float) -> InputError:
    if isinstance(error, InputError):
        return error
    chain, name = causes(error), shown(url)
    if any(kind.__name__ in _NO_CREDENTIALS for cause in chain for kind in type(cause).__mro__):
        return UnreachableError(
            f"{name}: no credentials found ({_said(error)}); set them in the environment, such as AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY or AWS_PROFILE for s3://, GOOGLE_APPLICATION_CREDENTIALS for gs://"
        )
    if is_passing(error):
        return UnreachableError(
            f"{name}: no answer ({_said(error)}), tried for {tried:.0f} s; look at the network and the server's "
            "address, and run the same command to go on"
        )
    if isinstance(error, PermissionError) or "Forbidden" in str(error) or status_of(chain[0]) in (401, 403):
        return InputError(f"{name}: access denied ({_said(error)}); check the credentials and what they may do there")
    return InputError(f"{name}: cannot be used ({_said(error)}); check its name and the server's settings")


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return redacted(f"{type(error).__name__}: {text}" if text else type(error).__name__)[:300]


def _server(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, int | str) and str(value).isdigit() else None


def at_once(ask: Callable[[Asked], T], about: Sequence[Asked]) -> Iterator[T]:
    """What `ask` gives for each, in order, many at a time: for small requests, which take time but no work."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for begin in range(0, len(about), 1 << 12):  # so that few answers wait in memory
            yield from pool.map(ask, about[begin : begin + (1 << 12)])
