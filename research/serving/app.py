"""The ASGI application: its routes, and each request's way to the engine and back."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from research.serving.answers import Completion
from research.serving.engine import Choice, Engine, Job, Part
from research.serving.errors import RequestError
from research.serving.models import Models
from research.serving.protocol import parse_request

# Bytes of a request's body at most.
MAX_BODY = 8 * 2**20
# of the machine itself, which no page of another site can name
LOCAL_HOSTS = ("127.0.0.1", "localhost")


class Answering:
    """A request's parts, which the engine's thread gives to its task."""

    def __init__(self, engine: Engine, completion: Completion, choices: Sequence[Choice]):
        self.completion = completion
        self._parts: asyncio.Queue[Part | RequestError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.job: Job = engine.submit(choices, self._deliver)

    def _deliver(self, part: Part | RequestError) -> None:
        with contextlib.suppress(RuntimeError):  # the server ended before the engine
            self._loop.call_soon_threadsafe(self._parts.put_nowait, part)

    async def chunks(self) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The chunks of all parts; who stops reading them cancels what is left.

        Raises:
          RequestError: the engine failed.
        """
        try:
            while not self.completion.is_whole:
                part = await self._parts.get()
                if isinstance(part, RequestError):
                    raise part
                yield self.completion.add(part)
        finally:
            self.job.cancel()

    async def whole(self) -> dict[str, Any]:
        """The answer's JSON, when all choices have ended."""
        async with contextlib.aclosing(self.chunks()) as parts:
            async for _ in parts:
                pass
        return self.completion.body

    async def events(self) -> AsyncGenerator[str, None]:
        """The answer as server-sent events; an error in it is the last one."""
        try:
            for chunk in self.completion.opening():
                yield _event(chunk)
            async with contextlib.aclosing(self.chunks()) as parts:
                async for chunks in parts:
                    for chunk in chunks:
                        yield _event(chunk)
            for chunk in self.completion.closing():
                yield _event(chunk)
        except RequestError as error:
            yield _event(error.body)
            return
        yield "data: [DONE]\n\n"


class _EventStream(StreamingResponse):
    """An answer as it is made; a client that goes away cancels it."""

    def __init__(self, answering: Answering):
        headers = {"Cache-Control": "no-cache"}
        super().__init__(answering.events(), headers=headers, media_type="text/event-stream")
        self._job = answering.job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


class Server:
    """The endpoints."""

    def __init__(self, engine: Engine, models: Models, api_key: str | None = None):
        self._engine, self._models, self._api_key = engine, models, api_key
        self._created = int(time.time())
        # prompts and schemas are made by one thread, one request after another
        self._preparation = ThreadPoolExecutor(1, thread_name_prefix="preparation")

    async def chat_completions(self, request: Request) -> Response:
        self._check_key(request)
        chat = parse_request(await _read_body(request))
        loop = asyncio.get_running_loop()
        choices, prompt_tokens = await loop.run_in_executor(
            self._preparation, self._models.choices, chat
        )
        form, marks = self._models.call_form(chat), self._models.find(chat.model).marks
        completion = Completion(chat, prompt_tokens, form, marks)
        answering = Answering(self._engine, completion, choices)
        if chat.stream:
            return _EventStream(answering)
        return JSONResponse(await _unless_disconnected(request, answering))

    async def list_models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [*map(self._card, self._models.by_name)]})

    async def show_model(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse(self._card(self._models.find(request.path_params["name"]).name))

    async def health(self, request: Request) -> Response:
        status = "ending" if self._engine.is_closed else "ok"
        content = {"status": status, "open_answers": self._engine.open_answers}
        return JSONResponse(content, 503 if self._engine.is_closed else 200)

    def _card(self, name: str) -> dict[str, Any]:
        model = self._models.by_name[name]
        card = {"id": name, "object": "model", "created": self._created, "owned_by": "graft"}
        return card | {
            "max_model_len": model.window,
            "parses_tool_calls": model.call_form is not None,
        }

    def _check_key(self, request: Request) -> None:
        if self._api_key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(key.encode(), self._api_key.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise RequestError(
                "the API key is not the server's: send it as `Authorization: Bearer KEY`",
                401,
                code="invalid_api_key",
            )


def make_app(
    engine: Engine,
    models: Models,
    api_key: str | None = None,
    hosts: tuple[str, ...] | None = LOCAL_HOSTS,
) -> Starlette:
    """The application.

    Args:
      api_key: what requests must carry; None: nothing.
      hosts: names of this machine that requests may give, so that no web page of another site
        reaches it by a name of its own; None: any.
    """
    server = Server(engine, models, api_key)
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))] if hosts else []
    return Starlette(
        routes=[
            Route("/v1/chat/completions", server.chat_completions, methods=["POST"]),
            Route("/v1/models", server.list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", server.show_model, methods=["GET"]),
            Route("/health", server.health, methods=["GET"]),
        ],
        middleware=middleware,
        exception_handlers={
            RequestError: _error_response,
            HTTPException: _error_response,
            ClientDisconnect: _error_response,
            Exception: _error_response,
        },
    )


async def _read_body(request: Request) -> bytes:
    """The body of a POST; RequestError where it is no JSON by its header, or too long.

    A web page of another site cannot send this content type without being asked first.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise RequestError("send JSON, with `Content-Type: application/json`", 415)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise RequestError(f"the body is over {MAX_BODY} bytes", 413)
    return bytes(body)


async def _unless_disconnected(request: Request, answering: Answering) -> dict[str, Any]:
    """The whole answer; a client that goes away cancels it."""
    answer = asyncio.ensure_future(answering.whole())
    departure = asyncio.ensure_future(_disconnection(request))
    try:
        await asyncio.wait((answer, departure), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answering.job.cancel()
        for task in (answer, departure):
            task.cancel()
        await asyncio.gather(answer, departure, return_exceptions=True)


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _error_response(request: Request, error: Exception) -> Response:
    """An error as OpenAI's clients read it."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it
    if isinstance(error, HTTPException):
        what = f"{request.method} {request.url.path}"
        messages = {404: f"there is no {what}", 405: f"{what}: another method"}
        message = messages.get(error.status_code, error.detail)
        error = RequestError(message, error.status_code)
    if not isinstance(error, RequestError):
        # it is raised again, and logged with where it was
        error = RequestError("the server failed on this request; its log says where", 500)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}
    return JSONResponse(error.body, error.status, headers.get(error.status))
