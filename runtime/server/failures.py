"""Errors as OpenAI's clients expect them: a status, and a body that says what, where and why."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lineahead.errors import BackendError, InputError, LineaheadError, OverloadError
from lineahead.runtime.engine.request import Delta

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
}
KINDS |= {
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class RefusedError(LineaheadError):
    """A request that is answered by an error status.

    Attributes:
        status: of HTTP.
        code: for programs.
        param: the field at fault, or None.
    """

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The JSON object of an error; characters that cannot be sent are replaced."""
    kind = KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    clean = message.encode(errors="replace").decode()
    where = None if param is None else param.encode(errors="replace").decode()
    return {"error": {"message": clean, "type": kind, "param": where, "code": code}}


def answer(error: LineaheadError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for one of our errors."""
    message = f"{error} {error.hint}" if error.hint else str(error)
    if isinstance(error, RefusedError):
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return error.status, body(error.status, message, code=error.code, param=error.param), headers
    if isinstance(error, OverloadError):
        draining = error.retry_after_s <= 0
        status, code = (503, "draining") if draining else (429, "queue_full")
        wait = {"Retry-After": str(math.ceil(max(error.retry_after_s, 1)))}
        return status, body(status, message, code=code), wait
    if isinstance(error, InputError):
        return 400, body(400, message, code="invalid_value"), {}
    code = "backend_error" if isinstance(error, BackendError) else "engine_error"
    return 500, body(500, message, code=code), {}


def ended(delta: Delta) -> LineaheadError | None:
    """The error that the last delta of a request stands for, or None when it ended well."""
    if delta.finish == "error":
        return delta.error or LineaheadError("the request failed")
    if delta.finish == "timeout":
        return RefusedError(504, "the request took longer than it was given", code="timeout")
    if delta.finish == "cancelled":
        return RefusedError(503, "the request was cut because the server is stopping", code="cancelled")
    return None


def _invalid(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """One sentence for the first invalid field, and its name."""
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    where = ".".join(str(one) for one in first["loc"] if one != "body")
    if first["type"] == "extra_forbidden":
        return f"{where} is not supported", where
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}", None
    return f"{where or 'the body'}: {first['msg']}", where or None


def add_handlers(app: FastAPI) -> None:
    """Answer every error of `app` in this form."""

    @app.exception_handler(LineaheadError)
    async def ours(request: Request, error: LineaheadError) -> JSONResponse:
        status, content, headers = answer(error)
        return JSONResponse(content, status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        message, where = _invalid(error.errors())
        return JSONResponse(body(400, message, code="invalid_value", param=where), 400)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        return JSONResponse(body(error.status_code, str(error.detail)), error.status_code, headers=headers)
