"""Asks a backend over HTTP; with the standard library only."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from .errors import LoadError

__all__ = ["Backend", "NotFoundError"]

#: Characters of an answer that an error shows.
_SHOWN = 200


class NotFoundError(LoadError):
    """The backend has nothing at this address, or under this id."""


class _SameHost(HTTPRedirectHandler):
    """Follows redirects to the same host only, and none from HTTPS to HTTP: headers may hold a secret."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        is_less_secure = old.scheme == "https" and new.scheme != "https"
        if is_less_secure or (old.hostname, old.port) != (new.hostname, new.port):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Backend:
    """A backend's API.

    Parameters
    ----------
    url
        Of its API, with what is before ``/api``; user and password in it are sent as a header.
    headers
        Sent with each request.
    timeout
        Seconds for one request, from one part of the answer to the next.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        self._headers = {"Accept": "application/json", **(headers or {})}
        user, separator, host = parts.netloc.rpartition("@")
        if separator:
            credentials = b64encode(unquote(user).encode()).decode()
            self._headers.setdefault("Authorization", f"Basic {credentials}")
        #: Without what may be secret.
        self.url = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        self._timeout = timeout
        self._opener = build_opener(_SameHost())

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> str:
        """Return what a request answers.

        Raises
        ------
        NotFoundError
            If the status is 404.
        LoadError
            If there is no answer, or it is no success.
        """
        address = f"{self.url}{path}"
        query = f"?{urlencode(parameters)}" if parameters else ""
        try:
            with self._opener.open(Request(address + query, headers=self._headers), timeout=self._timeout) as answer:
                body: str = answer.read().decode("utf-8", "replace")
                if "html" in answer.headers.get("Content-Type", ""):
                    raise LoadError(
                        f"{address} answers with a web page, not with JSON: source= has to be the address of the API, "
                        "and a page to log in means that headers= are missing"
                    )
                return body
        except HTTPError as error:
            raise self._refused(address, error) from error
        except (URLError, OSError, HTTPException, ValueError) as error:
            if isinstance(error, LoadError):
                raise
            reason = getattr(error, "reason", None) or error
            raise LoadError(
                f"source={self.url!r} cannot be reached ({reason}): is the backend running there, and is it not slower "
                f"than timeout={self._timeout:g} s?"
            ) from error

    def json(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """Return the document that a request answers.

        Raises
        ------
        LoadError
            As ``get``; and if it is not JSON.
        """
        body = self.get(path, parameters)
        try:
            return json.loads(body)
        except ValueError as error:
            raise LoadError(f"{self.url}{path} does not answer with JSON: {_short(body)}") from error

    def _refused(self, address: str, error: HTTPError) -> LoadError:
        with error:
            said = _short(error.read(4 * _SHOWN).decode("utf-8", "replace"))
        status = f"{address} answers {error.code} {error.reason}"
        if error.code in (401, 403):
            return LoadError(f"{status}: give headers= that it accepts, e.g. {{'Authorization': 'Bearer …'}}")
        if 300 <= error.code < 400:
            return LoadError(
                f"{status} and refers to another host, to which headers= are not sent, or from HTTPS to HTTP: give the "
                "address of the API as source="
            )
        return (NotFoundError if error.code == 404 else LoadError)(f"{status}: {said}" if said else status)


def _short(text: str) -> str:
    return " ".join(text.split())[:_SHOWN]
