"""The application: routes, and how an answer is sent, whole or in pieces."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from lineahead.errors import LineaheadError
from lineahead.runtime.engine.engine import Engine
from lineahead.runtime.engine.request import Delta
from lineahead.runtime.server.asking import Answers, Asked, Desk
from lineahead.runtime.server.failures import RefusedError, add_handlers, answer, ended
from lineahead.runtime.server.gate import Gate
from lineahead.runtime.server.metrics import CONTENT_TYPE, Metrics
from lineahead.runtime.server.schema import ChatRequest, CompletionRequest
from lineahead.runtime.server.settings import ServerSettings
from lineahead.runtime.server.writing import ChatWriter, TextWriter, Writer

PAGE = Path(__file__).with_name("page.html")
LOOK_S = 0.25
ERROR_STATUSES = (400, 401, 404, 408, 413, 429, 500, 503, 504)
Body = ChatRequest | CompletionRequest


def create_app(engine: Engine, settings: ServerSettings, metrics: Metrics) -> FastAPI:
    """The application around a started engine.

    Args:
        engine: its observer is `metrics`.
        settings: limits and names.
        metrics: of this server.
    """
    import lineahead

    app = FastAPI(title="lineahead", version=lineahead.__version__, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, settings=settings, counted=metrics.answered)
    add_handlers(app)
    metrics.watch(engine)
    _add_pages(app, engine, metrics)
    _add_models(app, engine, settings)
    _add_completions(app, engine, settings)
    for kind in ("ChatRequest", "CompletionRequest"):
        app.openapi()["components"]["schemas"][kind]["properties"]["model"]["enum"] = [settings.name]
    return app


def _add_pages(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    page = PAGE.read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def chat_page() -> HTMLResponse:
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": policy + "; img-src data:"})

    @app.get("/health", summary="Whether the process works")
    async def health() -> JSONResponse:
        state = engine.statistics().state
        return JSONResponse({"status": state}, 200 if engine.alive or state == "draining" else 503)

    @app.get("/ready", summary="Whether requests are taken", responses={503: {"description": "Not now"}})
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": engine.ready}, 200 if engine.ready else 503)

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def exposition() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_models(app: FastAPI, engine: Engine, settings: ServerSettings) -> None:
    artifact = engine.generator.artifact
    described = {
        "id": settings.name,
        "object": "model",
        "created": int(artifact.folder.stat().st_mtime),
        "owned_by": "lineahead",
    }

    @app.get("/v1/models", summary="The one model", responses=_errors(401))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described]}

    @app.get("/v1/models/{model:path}", summary="One model", responses=_errors(401, 404))
    async def model(model: str) -> dict[str, Any]:
        if model != settings.name:
            raise RefusedError(404, f"no model {model!r} here", code="model_not_found", param="model")
        return described


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"description": "An error object", "content": {"application/json": {}}} for status in statuses
    }


def _add_completions(app: FastAPI, engine: Engine, settings: ServerSettings) -> None:
    desk = Desk(engine, settings)
    responses: dict[int | str, dict[str, Any]] = {
        **_errors(*ERROR_STATUSES),
        200: {
            "description": "The answer; a stream of server-sent events when `stream` is true",
            "content": {"application/json": {}, "text/event-stream": {}},
        },
    }

    @app.post(
        "/v1/chat/completions", summary="Answer a conversation", response_model=None, responses=responses
    )
    async def chat(asked: ChatRequest, request: Request) -> Response:
        found = await asyncio.to_thread(desk.chat, asked, request.state.key)
        return await _respond(engine, settings, asked, found, request, ChatWriter)

    @app.post("/v1/completions", summary="Continue a text", response_model=None, responses=responses)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        found = await asyncio.to_thread(desk.completion, asked, request.state.key)
        return await _respond(engine, settings, asked, found, request, TextWriter)


async def _respond(
    engine: Engine, settings: ServerSettings, body: Body, asked: Asked, request: Request, kind: type[Writer]
) -> Response:
    """Submit, then send the answer as the client wants it."""
    writer = kind(
        model=settings.name,
        choices=len(asked.requests),
        tokenizer=engine.generator.tokenizer,
        logprobs=body.wanted_logprobs is not None,
        prompt_tokens=asked.prompt_tokens,
        trace=bool(body.speculation_trace),
    )
    answers = Answers(engine, asked)
    if not body.stream:
        return JSONResponse(await _whole(answers, writer, request))
    deltas = answers.deltas()
    try:
        first = await _unless_gone(anext(deltas), request)
        error = ended(first[1])
        if error is not None:
            raise error
    except BaseException:
        answers.cancel()
        raise
    counts = body.stream_options is not None and body.stream_options.include_usage
    sent = _events(answers, first, deltas, writer, counts)
    return StreamingResponse(sent, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _whole(answers: Answers, writer: Writer, request: Request) -> dict[str, Any]:
    """Wait for all choices; a client that goes away ends them."""

    async def collect() -> None:
        async for choice, delta in answers.deltas():
            error = ended(delta)
            if error is not None:
                raise error
            writer.take(choice, delta)

    async with answers:
        await _unless_gone(collect(), request)
    return writer.answer()


async def _unless_gone(work: Any, request: Request) -> Any:
    """The result of `work`, or cancellation when the client goes away first."""
    task = asyncio.ensure_future(work)
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=LOOK_S)
            if done:
                return task.result()
            if await request.is_disconnected():
                raise RefusedError(499, "the client has gone", code="client_closed_request")
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _events(
    answers: Answers,
    first: tuple[int, Delta],
    deltas: AsyncIterator[tuple[int, Delta]],
    writer: Writer,
    counts: bool,
) -> AsyncIterator[str]:
    """Server-sent events, the last of them ``[DONE]``; an error after the first chunk is an event too."""
    async with answers:
        for chunk in writer.first():
            yield _event(chunk)
        writer.take(*first)
        yield _event(writer.next(*first))
        async for choice, delta in deltas:
            error = ended(delta)
            if error is not None:
                yield _event(_failed(error))
                break
            writer.take(choice, delta)
            yield _event(writer.next(choice, delta))
        else:
            if counts:
                yield _event(writer.counts())
        yield "data: [DONE]\n\n"


def _failed(error: LineaheadError) -> dict[str, Any]:
    return answer(error)[1]


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
