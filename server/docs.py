"""The OpenAPI document as a page that needs no script."""

import base64
import hashlib
import html
import json
import re
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
summary { cursor: pointer; padding: .4rem 0; } details { border-bottom: 1px solid #8884; }
code, pre { font: .9rem/1.4 ui-monospace, monospace; } pre { overflow-x: auto; padding: .6rem; background: #8882; }
h1, summary, td:last-child { overflow-wrap: anywhere; }
.method { display: inline-block; width: 3.5rem; font-weight: 700; text-transform: uppercase; }
td { padding: .1rem .8rem .1rem 0; vertical-align: top; }
"""

_STYLE_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; img-src data:; style-src 'sha256-{_STYLE_DIGEST}';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of the page: it loads and runs nothing, and no other site shows it in a frame."""


def render(document: dict[str, Any]) -> str:
    """Returns a page with all operations of an OpenAPI document, grouped by tag, and its schemas."""
    # Operations
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(path, method, operation))
    sections = [f"<h2>{html.escape(tag)}</h2>{''.join(parts)}" for tag, parts in groups.items()]
    # Schemas
    schemas = "".join(
        f'<details id="{html.escape(name)}"><summary>{html.escape(name)}</summary>'
        f"<pre>{html.escape(json.dumps(schema, indent=2))}</pre></details>"
        for name, schema in document["components"]["schemas"].items()
    )
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(info['title'])}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{html.escape(info['title'])}</h1><p>{_text(info['description'])}</p>"
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(sections)}<h2>Schemas</h2>{schemas}</main></body></html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    # What to send.
    parameters = "".join(
        _row(
            f"{parameter['name']} ({parameter['in']})",
            f"{parameter.get('description', '')} {_schema(parameter['schema'])}",
        )
        for parameter in operation.get("parameters", [])
    )
    bodies = "".join(
        _row(media_type, _schema(content["schema"]))
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items()
    )
    # What comes back.
    responses = "".join(_row(status, response["description"]) for status, response in operation["responses"].items())
    tables = "".join(
        f"<h3>{title}</h3><table>{rows}</table>"
        for title, rows in (("Parameters", parameters), ("Request body", bodies), ("Responses", responses))
        if rows
    )
    key = "<p>Needs an API key.</p>" if operation.get("security") else ""
    return (
        f'<details><summary><span class="method">{method}</span> <code>{html.escape(path)}</code> '
        f"{_text(operation['summary'])}</summary><p>{_text(operation.get('description', ''))}</p>"
        f"{key}{tables}</details>"
    )


def _schema(schema: dict[str, Any]) -> str:
    """Returns a schema in one line: named ones by their names, anything else as JSON."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "oneOf" in schema:
        return " or ".join(_schema(choice) for choice in schema["oneOf"])
    return "the bytes of a file" if schema.get("format") == "binary" else json.dumps(schema)


def _row(name: str, text: str) -> str:
    return f"<tr><td><code>{html.escape(name)}</code></td><td>{_text(text)}</td></tr>"


def _text(text: str) -> str:
    """Returns text as HTML, with what stands in backticks as code."""
    return re.sub("`(.+?)`", r"<code>\1</code>", html.escape(text))
