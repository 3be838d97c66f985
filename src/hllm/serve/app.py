"""The service: each endpoint calls one method of the `Recommender` that it serves."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse

from hllm import __version__
from hllm.errors import ConfigError, DataError, HLLMError
from hllm.serve import answers
from hllm.serve.answers import plain
from hllm.serve.batching import Overloaded
from hllm.serve.gate import Gate
from hllm.serve.live import Live, Missing
from hllm.serve.metrics import CONTENT_TYPE
from hllm.serve.pages import page
from hllm.serve.schemas import (
    EXAMPLES,
    EventsBody,
    ExplainBody,
    Explained,
    Found,
    Item,
    ItemsBody,
    Problem,
    Recommendations,
    RecommendBody,
    Similar,
    SimilarBody,
    User,
)
from hllm.serve.service import Service, reload_workers
from hllm.serve.settings import ServeSettings

log = logging.getLogger("hllm.serve")
B = TypeVar("B", bound=BaseModel)
RETRY_AFTER = "1"  # seconds
SHOWN_EVENTS = 50
PROBLEMS = (400, 401, 403, 404, 405, 408, 413, 415, 422, 500, 503)


class StrictJson(JSONResponse):
    """JSON as RFC 8259 has it: no NaN and no infinities."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "replace"
        )


class App(FastAPI):
    """The bodies, which the endpoints read themselves, are part of the description of the interface."""

    def openapi(self) -> dict[str, Any]:
        described: dict[str, Any] = super().openapi()
        models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in EXAMPLES]
        _, defined = models_json_schema(models, ref_template="#/components/schemas/{model}")
        described["components"]["schemas"].update(defined["$defs"])
        return described


def create_app(settings: ServeSettings) -> FastAPI:
    """The service of a run, loaded and tried. Raises HLLMError for a run or settings that cannot be served."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.reload_on_signal()
        yield
        await service.close()

    app = App(
        title="hllm",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        default_response_class=StrictJson,
        responses={status: {"model": Problem} for status in PROBLEMS},
    )
    app.state.service = service
    app.add_middleware(Gate, settings=settings, metrics=service.metrics)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["content-type", "authorization", "x-api-key", "x-request-id"],
        )
    _add_errors(app)
    for add in (_add_answers, _add_catalogue, _add_sessions, _add_operation):
        add(app, service)
    return app


async def _read(request: Request, model: type[B]) -> B:
    """The body as `model`. Raises DataError, in one line, for anything else."""
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as err:
        first = err.errors(include_url=False, include_context=False, include_input=False)[0]
        inner = ("list[", "union", "constrained", "literal[")  # pydantic's names for what may stand here
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(inner))
        raise DataError(f"{place}: {first['msg']}" if place else f"body: {first['msg']}") from None


def _takes(model: type[BaseModel]) -> dict[str, Any]:
    """The request body for the description of the interface."""
    content = {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, "example": EXAMPLES[model]}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _problem(request: Request, status: int, message: str, **headers: str) -> Response:
    body = {"error": message, "request_id": request.state.request_id}
    return StrictJson(body, status, headers)


def _add_errors(app: FastAPI) -> None:
    """One shape for every problem, and no traceback for anybody but the log."""

    @app.exception_handler(HLLMError)
    async def known(request: Request, err: HLLMError) -> Response:
        if isinstance(err, Overloaded):
            return _problem(request, 503, str(err), **{"retry-after": RETRY_AFTER})
        return _problem(request, 404 if isinstance(err, Missing) else 422, str(err))

    @app.exception_handler(HTTPException)
    async def http(request: Request, err: HTTPException) -> Response:
        return _problem(request, err.status_code, str(err.detail), **(err.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, err: RequestValidationError) -> Response:
        first = err.errors()[0]
        return _problem(request, 422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(sqlite3.OperationalError)
    async def busy(request: Request, err: sqlite3.OperationalError) -> Response:
        log.error("the file of events", exc_info=err)
        return _problem(request, 503, f"the file of events: {err}", **{"retry-after": RETRY_AFTER})


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/recommend", openapi_extra=_takes(RecommendBody), response_model=Recommendations)
    async def recommend(request: Request) -> Response:
        """The best items for users, histories or titles: the rows of `Recommender.recommend`."""
        body = await _read(request, RecommendBody)
        live = await service.run(body.compared)
        return StrictJson(await answers.recommend(live, service.store, service.batcher, body))

    @app.post("/similar", openapi_extra=_takes(SimilarBody), response_model=Similar)
    async def similar(request: Request) -> Response:
        """Items like an item, or like a text."""
        body = await _read(request, SimilarBody)
        return StrictJson(await answers.similar(await service.run(body.compared), service.batcher, body))

    @app.post("/explain", openapi_extra=_takes(ExplainBody), response_model=Explained)
    async def explain(request: Request) -> Response:
        """Which events of the history an item is recommended for, in words and numbers."""
        body = await _read(request, ExplainBody)
        live = await service.run(body.compared)
        return StrictJson(await answers.explain(live, service.store, service.batcher, body))


def _add_catalogue(app: FastAPI, service: Service) -> None:
    @app.get("/search", response_model=Found)
    async def search(q: str = "", k: int = 20) -> Response:
        """Items by title, whole words first; the most popular ones without a text."""
        if not 1 <= k <= 100 or len(q) > 512:
            raise DataError("search takes k from 1 to 100, and q of at most 512 letters")
        live = await service.run()
        places = await asyncio.to_thread(live.catalogue.search, q, k)
        return StrictJson({"rows": [_shown(live, live.data.item_ids[place]) for place in places]})

    @app.get("/items/{item_id:path}", response_model=Item)
    async def item(item_id: str) -> Response:
        """What the catalogue says of an item."""
        live = await service.run()
        known = live.item(item_id)
        token = live.data.token_of(known)
        fields = plain(live.data.items.row(token - 1, named=True))
        return StrictJson(
            {**_shown(live, known), "fields": fields, "events": int(live.catalogue.counts[token - 1])}
        )

    @app.post("/items", openapi_extra=_takes(ItemsBody), response_model=dict[str, int], status_code=201)
    async def add(request: Request) -> Response:
        """Make new items recommendable at once, from their text; every worker learns of them."""
        body, live = await _read(request, ItemsBody), await service.run()
        rows = [dict(row) for row in body.items]
        await service.batcher.call(lambda: live.add_items(rows, service.store))
        service.metrics.counts["items_added"] += len(rows)
        return StrictJson({"added": len(rows), "items": live.data.n_catalogue}, 201)

    @app.get("/about", response_model=dict[str, Any])
    async def about() -> Response:
        """What is served, and what it can do."""
        other = service.other
        return StrictJson(
            {
                **service.live.about(),
                "some_users": plain(service.live.data.user_ids[:5]),
                "compared": None if other is None else other.about(),
            }
        )


def _shown(live: Live, item: Any) -> dict[str, Any]:
    return {"item_id": item, "title": live.catalogue.title(item)}


def _add_sessions(app: FastAPI, service: Service) -> None:
    @app.post("/events", openapi_extra=_takes(EventsBody), response_model=dict[str, int], status_code=201)
    async def events(request: Request) -> Response:
        """What users did just now: the next /recommend of theirs knows it. All are kept, or none."""
        body, live, now = await _read(request, EventsBody), await service.run(), time.time()
        rows = [
            (event.user_id, live.item(event.item_id), now if event.timestamp is None else event.timestamp)
            for event in body.events
        ]
        await asyncio.to_thread(service.store.add, rows)
        service.metrics.counts["events"] += len(rows)
        return StrictJson({"kept": len(rows)}, 201)

    @app.delete("/events/{user_id:path}", response_model=dict[str, int])
    async def forget(user_id: str) -> Response:
        """Forget what a user did while the run is served."""
        return StrictJson({"forgotten": await asyncio.to_thread(service.store.forget, user_id)})

    @app.get("/users/{user_id:path}", response_model=User)
    async def user(user_id: str) -> Response:
        """A user's last items, newest first, live events included."""
        live = await service.run()
        session = live.session(user_id, service.store)
        items, _ = live.history(user_id) if session is None else session
        shown = [_shown(live, item) for item in items[: -SHOWN_EVENTS - 1 : -1]]
        return StrictJson(
            {"user_id": user_id, "events": len(items), "live": session is not None, "rows": shown}
        )


def _add_operation(app: FastAPI, service: Service) -> None:
    settings = service.settings

    @app.get("/health", response_model=dict[str, str])
    async def health() -> Response:
        """Whether the process lives."""
        return StrictJson({"status": "alive"})

    @app.get("/ready", response_model=dict[str, bool], responses={503: {"model": dict[str, bool]}})
    async def ready() -> Response:
        """Whether requests will be answered: 503 while it stops, or is overloaded."""
        free = service.batcher.waiting < settings.max_waiting
        return StrictJson({"ready": service.open and free}, 200 if service.open and free else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters of this worker, for Prometheus."""
        live = service.live
        labels = {"run": live.path.resolve().name, "model": live.recommender.config.preset}
        labels |= {"data": live.data.fingerprint[:12], "version": __version__}
        text = service.metrics.text(service.gauges(), labels)
        return PlainTextResponse(text, headers={"content-type": CONTENT_TYPE})

    @app.post("/admin/reload", response_model=dict[str, int])
    async def reload(request: Request) -> Response:
        """Serve what is at the run's path now; a broken run changes nothing."""
        if not settings.api_keys:
            raise HTTPException(403, "reloading over HTTP needs a service with --api-key; or send it SIGHUP")
        if settings.workers > 1:
            reload_workers()
            return StrictJson({"reloading": settings.workers}, 202)
        live = await service.reload()
        return StrictJson({"run": live.number})

    for path, name in (("/", "page.html"), ("/docs", "docs.html")):
        app.add_api_route(path, page(name), methods=["GET"], include_in_schema=False)


def checked(settings: ServeSettings) -> ServeSettings:
    """The settings. Raises ConfigError for keys that are empty or no plain text."""
    for key in settings.api_keys:
        if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError("an API key needs 8 or more plain letters, digits and signs, without spaces")
    return settings
