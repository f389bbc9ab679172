"""The OpenAPI 3.1 document, built from the table of routes and the types that requests are decoded with. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, get_args

import msgspec

from fanout.items import ITEMS
from relay.api.routes import Kind, Route
from relay.api.schema import Paths, Refusal, SessionDefaults
from relay.api.statuses import Answer, Shape

VERSION: Final = "1"  # of the surface, as the paths have it
_REF: Final = "#/components/schemas/{name}"
_TEXT: Final = """\
Calls between people and speech models, from outside: watch them, put messages and tool results into them, end them, \
and make keys for their clients. Any node answers for every call of the fleet, wherever it lives.

Errors have OpenAI's shape. What is answered with 503 is over soon: `Retry-After` says when to come again.\
"""
_SCOPES: Final = (
    "A token is a JWT with `exp`, `tenant`, `scope` (a list, or one text with spaces, of `call`, `control`, `read`, "
    "`mint`) and, if wanted, `agent`, `plan`, `call`, `origin` and `jti`, signed with a secret of the fleet (HS256) "
    "or, where a JWKS URL is configured, with a key of that (RS256, ES256, EdDSA)."
)
_TEXTS: Final = {  # of the others: a stream has no schema
    "application/json": "object",
    "text/plain": "string",
    "text/html": "string",
    "text/csv": "string",
}
_VARIABLE: Final = re.compile(r"{(\w+)}")


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document."""
    shapes: list[Shape] = [*ITEMS, SessionDefaults, Paths]
    for route in routes:
        shapes += [shape for shape in (route.query, route.headers, route.body) if shape is not None]
        shapes += [shape for answer in route.answers.values() for shape in answer.bodies.values() if shape is not None]
    unique = list(dict.fromkeys(shapes))
    _, schemas = msgspec.json.schema_components(unique, ref_template=_REF)
    for shape in unique:
        _name_choices(schemas, shape)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    inline: list[Shape] = [Paths]
    inline += [shape for route in routes for shape in (route.query, route.headers) if shape is not None]
    for shape in inline:
        schemas.pop(shape.__name__, None)  # they stand in the operations, one by one
    described: dict[str, Any] = _in_ecma(
        {
            "openapi": "3.1.0",
            "info": {"title": "Relay fleet", "version": VERSION, "description": _TEXT},
            "servers": [{"url": "/"}],
            "tags": [{"name": name} for name in dict.fromkeys(route.group for route in routes)],
            "paths": paths,
            "components": {
                "schemas": dict(sorted(schemas.items())),
                "securitySchemes": {
                    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": _SCOPES}
                },
            },
        }
    )
    return described


def _operation(route: Route, schemas: Mapping[str, Any]) -> dict[str, Any]:
    parameters = [_parameter("path", name, schemas[Paths.__name__]) for name in _VARIABLE.findall(route.path)]
    for place, shape in (("query", route.query), ("header", route.headers)):
        if shape is not None:
            schema = schemas[shape.__name__]
            parameters += [_parameter(place, name, schema) for name in schema["properties"]]
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.title,
        "description": route.text,
        "tags": [route.group],
        "security": [{"token": [route.scope]}] if route.scope else [],
        "parameters": parameters,
    }
    if route.body is not None:
        content = {"application/json": {"schema": _reference(route.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.kind is Kind.UPGRADE:
        operation["x-websocket"] = True
    operation["responses"] = {str(status): _response(answer) for status, answer in sorted(route.answers.items())}
    return operation


def _parameter(place: str, name: str, shape: Mapping[str, Any]) -> dict[str, Any]:
    schema = dict(shape["properties"][name])
    text = {"description": schema.pop("description")} if "description" in schema else {}
    return {"name": name, "in": place, "required": name in shape["required"], **text, "schema": schema}


def _response(answer: Answer) -> dict[str, Any]:
    response: dict[str, Any] = {"description": answer.text}
    if answer.headers:
        kinds = {"Retry-After": "integer"}
        response["headers"] = {
            name: {"description": text, "schema": {"type": kinds.get(name, "string")}}
            for name, text in answer.headers.items()
        }
    if answer.bodies:
        response["content"] = {media: _body(media, shape, answer.codes) for media, shape in answer.bodies.items()}
    return response


def _body(media: str, shape: Shape | None, codes: tuple[str, ...]) -> dict[str, Any]:
    if shape is not None and issubclass(shape, Refusal):
        code = {"properties": {"code": {"enum": list(codes)}}}
        return {"schema": {"allOf": [_reference(shape)], "properties": {"error": code}}}
    if shape is not None:
        return {"schema": _reference(shape)}
    kind = _TEXTS.get(media)
    return {"schema": {"type": kind}} if kind else {}


def _reference(shape: Shape) -> dict[str, str]:
    return {"$ref": _REF.format(name=shape.__name__)}


def _name_choices(schemas: dict[str, Any], shape: Shape) -> None:
    """Put references where a struct keeps an object as it came, which is checked against other structs later."""
    for field in msgspec.structs.fields(shape):
        choices = [_reference(choice) for choice in _choices(field.type)]
        if not choices:
            continue
        schema = schemas[shape.__name__]["properties"][field.encode_name]
        objects = [part for part in schema.get("anyOf", [schema]) if part.get("type") == "object"]
        for part in objects:
            del part["type"]
            part["anyOf"] = choices


def _choices(hint: Any) -> Iterator[Shape]:
    for part in get_args(hint):
        if isinstance(part, msgspec.Meta):
            yield from (part.extra or {}).get("one_of", ())
        else:
            yield from _choices(part)


def _in_ecma(value: Any) -> Any:
    r"""Write patterns as JSON Schema has them: what Python says with \Z is $ there."""
    if isinstance(value, dict):
        return {
            key: inner.replace(r"\Z", "$") if key == "pattern" and isinstance(inner, str) else _in_ecma(inner)
            for key, inner in value.items()
        }
    return [_in_ecma(inner) for inner in value] if isinstance(value, list) else value
