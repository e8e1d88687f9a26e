"""The OpenAPI document as a page that needs no script."""

import html
import json
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


def render(document: dict[str, Any]) -> str:
    """A page with all operations of an OpenAPI document, and its schemas."""
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(path, method, operation))
    sections = [f"<h2>{html.escape(tag)}</h2>{''.join(parts)}" for tag, parts in groups.items()]
    schemas = "".join(
        f'<details id="{html.escape(name)}"><summary>{html.escape(name)}</summary>{_json(schema)}</details>'
        for name, schema in document["components"]["schemas"].items()
    )
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(info['title'])}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{html.escape(info['title'])}</h1><p>{html.escape(info['description'])}</p>"
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(sections)}<h2>Schemas</h2>{schemas}</main></body></html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        _row(f"{each['name']} ({each['in']})", f"{each.get('description', '')} {json.dumps(each['schema'])}")
        for each in operation.get("parameters", [])
    )
    takes = "".join(
        _row(kind, json.dumps(each["schema"]))
        for kind, each in operation.get("requestBody", {}).get("content", {}).items()
    )
    gives = "".join(_row(status, each["description"]) for status, each in operation["responses"].items())
    tables = "".join(
        f"<h4>{title}</h4><table>{rows}</table>"
        for title, rows in (("Parameters", parameters), ("Body", takes), ("Answers", gives))
        if rows
    )
    return (
        f'<details><summary><span class="method">{method}</span> <code>{html.escape(path)}</code> '
        f"{html.escape(operation['summary'])}</summary><p>{html.escape(operation.get('description', ''))}</p>"
        f"{tables}</details>"
    )


def _row(name: str, text: str) -> str:
    return f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(text)}</td></tr>"


def _json(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=2))}</pre>"
