"""Errors of a request, in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """A request that is not answered, or not to its end."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
    ):
        """
        Args:
          message: what is wrong with it, and what to do.
          status: of HTTP: 4xx where the request is at fault, 5xx where the server is.
          param: the field of the request that it is about.
          code: a word for programs.
        """
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kinds.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }
