"""The OpenAPI document as a page to be read: one piece of HTML, nothing loaded, no script. Pure."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Final

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem 1.25rem 6rem; }
code, pre { font: 0.875em/1.5 ui-monospace, monospace; }
pre { background: var(--soft); border-radius: 6px; overflow-x: auto; padding: 0.75rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 3rem; } h3 { font-size: 1rem; margin: 2.5rem 0 0.25rem; }
h4 { font-size: 0.875rem; margin: 1.25rem 0 0.25rem; }
h3 code { overflow-wrap: anywhere; }
nav ul { list-style: none; padding: 0; } nav li { margin: 0.25rem 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.875rem; }
td, th { border-top: 1px solid var(--line); padding: 0.375rem 0.5rem 0.375rem 0; }
td, th { text-align: left; vertical-align: top; }
th { font-weight: 400; width: 14rem; overflow-wrap: anywhere; }
.soft { opacity: 0.7; }
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_CODE: Final = re.compile(r"`([^`]+)`")
_LIMITS: Final = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "pattern": "<code>{}</code>",
    "default": "default <code>{}</code>",
}


def page(document: Mapping[str, Any]) -> str:
    """Return the page."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = document["components"]["schemas"]
    parts = [
        f"<h1>{escape(document['info']['title'])}</h1>",
        *(f"<p>{_words(text)}</p>" for text in document["info"]["description"].split("\n\n")),
        f"<p>{_words(document['components']['securitySchemes']['token']['description'])} "
        'The same for machines: <a href="/openapi.json">openapi.json</a>.</p>',
        *_contents(document["tags"], operations),
    ]
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2>")
        for method, path, operation in operations:
            if tag["name"] in operation["tags"]:
                parts += _operation(method, path, operation)
    parts.append("<h2>Types</h2>")
    for name, schema in schemas.items():
        parts.append(f'<h3 id="{escape(name)}"><code>{escape(name)}</code></h3>')
        parts += _about(schema)
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    title = escape(document["info"]["title"])
    return (
        f'<!doctype html>\n<html lang="en"><head><title>{title}</title>{head}</head>\n<body>\n{body}\n</body></html>\n'
    )


def _contents(tags: Iterable[Mapping[str, Any]], operations: list[tuple[str, str, Any]]) -> Iterator[str]:
    yield "<nav>"
    for tag in tags:
        yield f"<h4>{escape(tag['name'])}</h4><ul>"
        for method, path, operation in operations:
            if tag["name"] in operation["tags"]:
                link = f'<a href="#{operation["operationId"]}"><code>{method} {escape(path)}</code></a>'
                yield f"<li>{link} {escape(operation['summary'])}</li>"
        yield "</ul>"
    yield "</nav>"


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h3 id="{operation["operationId"]}"><code>{method} {escape(path)}</code></h3>'
    scopes = [scope for entry in operation["security"] for scope in entry["token"]]
    needs = f"scope <code>{escape(scopes[0])}</code>" if scopes else "no token"
    kind = ", WebSocket" if operation.get("x-websocket") else ""
    yield f'<p>{escape(operation["summary"])} <span class="soft">({needs}{kind})</span></p>'
    yield f"<p>{_words(operation['description'])}</p>"
    for place, title in (("path", "In the path"), ("query", "In the query"), ("header", "In the headers")):
        rows = [
            (_name(each["name"], place != "path" and each["required"]), _field({**each["schema"], **_text(each)}))
            for each in operation["parameters"]
            if each["in"] == place
        ]
        yield from _table(title, rows)
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        yield f"<h4>Body</h4><p>{_kind(schema)}, JSON</p>"
    yield from _table("Answers", [(status, _answer(answer)) for status, answer in operation["responses"].items()])


def _answer(answer: Mapping[str, Any]) -> str:
    text = _words(answer["description"])
    for media, content in answer.get("content", {}).items():
        schema = content.get("schema", {})
        codes = schema.get("properties", {}).get("error", {}).get("properties", {}).get("code", {}).get("enum", [])
        if codes:
            text += " " + ", ".join(f"<code>{escape(code)}</code>" for code in codes)
        elif "$ref" in schema:
            text += f" {_kind(schema)}"
        else:
            text += f" <code>{escape(media)}</code>"
    for name, header in answer.get("headers", {}).items():
        text += f'<br><span class="soft"><code>{escape(name)}</code>: {_words(header["description"])}</span>'
    return text


def _about(schema: Mapping[str, Any]) -> Iterator[str]:
    if "description" in schema:
        yield f"<p>{_words(schema['description'])}</p>"
    required = schema.get("required", [])
    fields = schema.get("properties", {}).items()
    yield from _table("", [(_name(name, name in required), _field(field)) for name, field in fields])


def _table(title: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    if rows:
        yield f"<h4>{title}</h4>" if title else ""
        yield "<table>" + "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows) + "</table>"


def _name(name: str, required: bool) -> str:
    return f"<code>{escape(name)}</code>" + (" *" if required else "")


def _field(field: Mapping[str, Any]) -> str:
    limits = [
        text.format(escape(str(field[key]) if isinstance(field[key], str | int | float) else json.dumps(field[key])))
        for key, text in _LIMITS.items()
        if key in field and field[key] is not None and field[key] != ""
    ]
    described = [_words(part["description"]) for part in (field, *field.get("anyOf", ())) if "description" in part]
    kind = ", ".join([_kind(field), *limits])
    examples = "".join(
        f"<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>"
        for part in (field, *field.get("anyOf", ()))
        for example in part.get("examples", ())
        if isinstance(example, dict)
    )
    return " ".join([*described, f'<span class="soft">({kind})</span>']) + examples


def _kind(schema: Mapping[str, Any]) -> str:
    """Say what a value is, with links to the types that have a name."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}"><code>{name}</code></a>'
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(choice))}</code>" for choice in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_kind(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    return escape(str(schema.get("type", "anything")))


def _text(described: Mapping[str, Any]) -> dict[str, str]:
    return {"description": described["description"]} if "description" in described else {}


def _words(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))
