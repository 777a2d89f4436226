"""/docs: the routes as a plain page, which needs neither scripts nor other servers. The full description is /openapi.json."""

from html import escape

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse

router = APIRouter()

_STYLE = "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td{padding:.2em .8em;vertical-align:top}"


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The table of routes."""
    app = request.app
    rows = [
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td><td>{escape(operation.get('description', ''))}</td></tr>"
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    ]
    body = (
        f"<h1>{escape(app.title)} {escape(app.version)}</h1><p><a href='openapi.json'>openapi.json</a> describes every field.</p>"
        f"<table>{''.join(rows)}</table>"
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(app.title)}</title><style>{_STYLE}</style>{body}</html>"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})
