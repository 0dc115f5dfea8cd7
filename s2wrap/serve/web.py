"""The addresses of a server, as a FastAPI application."""

from typing import Annotated, Any, Literal

from s2wrap.errors import S2WrapError, printable
from s2wrap.serve.answers import JSON, SAFETENSORS, parse_names, wants_json
from s2wrap.serve.bodies import RefusedError
from s2wrap.serve.page import first_page
from s2wrap.version import __version__

BINARY = {"schema": {"type": "string", "format": "binary"}}
FILES = {"schema": {"type": "object", "properties": {"file": {"type": "array", "items": BINARY["schema"]}}}}
BODY = {"required": True, "content": {"image/*": BINARY, "multipart/form-data": FILES, SAFETENSORS: BINARY}}
ERRORS = {
    400: "a body that cannot be read, or that the model does not take; unknown features",
    408: "the body has not arrived in time",
    413: "a body, pictures or a number of pictures beyond the limits",
    415: "a compressed body",
    503: "too many requests wait already",
    504: "the features were not computed in time",
}


def make_app(replica: Any) -> Any:
    """The application of a replica.

    Args:
        replica: a `Replica`; the application uses its `answer`, `about` and `facts`.
    """
    from fastapi import FastAPI, Query, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import HTMLResponse, PlainTextResponse

    app = FastAPI(
        title=f"s2wrap: {replica.facts['spec'] or replica.facts['file']}",
        version=__version__,
        description="Multi-scale features of pictures.",
    )
    about = replica.about

    @app.post(
        "/features",
        summary="The features of pictures",
        response_class=Response,
        responses={
            200: {"description": "a tensor a feature", "content": {SAFETENSORS: BINARY, JSON: {}}},
            **{status: {"description": text} for status, text in ERRORS.items()},
        },
        openapi_extra={"requestBody": BODY},
    )
    async def features(
        request: Request,
        features: Annotated[list[str], Query(description=f"Any of {', '.join(about.features)}; several too.")] = [],  # noqa: B006 (FastAPI copies it)
        format: Annotated[
            Literal["safetensors", "json"] | None, Query(description="Instead of the Accept header.")
        ] = None,
    ) -> Response:
        names = parse_names(features, about)
        as_json = wants_json(request.headers.get("accept", ""), format)
        content = await replica.answer(request, names, as_json=as_json)
        return Response(content, media_type=JSON if as_json else SAFETENSORS)

    @app.get("/health", summary="Whether the model is ready")
    async def health() -> dict[str, str]:
        return {"status": "ready"}  # requests come to a replica once its model has answered a picture

    @app.get("/model", summary="What is served")
    async def model() -> dict[str, Any]:
        return replica.facts

    @app.get("/metrics", summary="Counts and times, as Prometheus reads them", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        from s2wrap.serve.metrics import read_metrics

        return PlainTextResponse(await run_in_threadpool(read_metrics))

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> HTMLResponse:
        return HTMLResponse(first_page(replica.facts, str(request.base_url)))

    _answer_errors(app)
    return app


def _answer_errors(app: Any) -> None:
    """Have every error answered by a sentence: {"error": "…"}."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    def answer(status: int, text: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": printable(text)}, status, headers)

    async def refused(request: Any, error: Any) -> JSONResponse:
        return answer(error.status if isinstance(error, RefusedError) else 400, str(error))

    async def wrong_query(request: Any, error: Any) -> JSONResponse:
        first = error.errors()[0]
        return answer(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    async def wrong_address(request: Any, error: Any) -> JSONResponse:
        what = f"{request.method} {request.url.path[:200]}"
        return answer(error.status_code, f"{what}: {error.detail}; /openapi.json lists what there is", error.headers)

    async def broken_off(request: Any, error: Any) -> JSONResponse:
        return answer(400, "the body was broken off")

    async def failed(request: Any, error: Exception) -> JSONResponse:
        return answer(500, f"the server failed ({type(error).__name__}); its log says more")

    app.add_exception_handler(S2WrapError, refused)
    app.add_exception_handler(RequestValidationError, wrong_query)
    app.add_exception_handler(HTTPException, wrong_address)
    app.add_exception_handler(ClientDisconnect, broken_off)
    app.add_exception_handler(Exception, failed)
