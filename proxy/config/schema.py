"""The configuration told outwards: as JSON Schema for editors, and as the effective settings with secrets masked."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec
import yaml
from msgspec import inspect

from proxy.config.read import unwrap
from proxy.config.settings import Config, config_type
from proxy.config.values import MASK, Secret, duration_text, is_credential_name
from proxy.config.yaml_tree import escape

_VARIABLE: Final = r"\$\{"
_OFF: Final = {"enum": ["off", False]}  # YAML 1.1 reads `off` as false, YAML 1.2 as a text


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration file, made from the structs.

    Wherever a value stands, `${NAME}` may stand. Contradictions between settings are beyond it: see `checks`.
    """
    schema = msgspec.json.schema(Config, schema_hook=lambda _kind: {"type": "string"})
    definitions = {name: _widen_section(section) for name, section in schema["$defs"].items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sluice configuration",
        "$ref": schema["$ref"],
        "$defs": definitions,
    }


def _widen_section(section: dict[str, Any]) -> dict[str, Any]:
    return {**section, "properties": {name: _widen(value) for name, value in section["properties"].items()}}


def _widen(schema: dict[str, Any]) -> dict[str, Any]:
    """Allow what a file may say and a parsed value does not show: variables, words, empty sections."""
    kind = schema.get("type")
    if kind in ("integer", "number", "boolean"):
        return {**schema, "type": [kind, "string"], "pattern": schema.get("pattern", _VARIABLE)}
    if kind == "string" and "pattern" in schema:
        return {**schema, "pattern": f"{schema['pattern']}|{_VARIABLE}"}
    if kind == "array":
        return {**schema, "type": ["array", "null"], "items": _widen(schema["items"])}
    if kind == "object":
        members = schema["additionalProperties"]
        # values of headers and query members are text however they look: api-version: 2024-10-21
        plain = {**members, "type": ["string", "number", "boolean"]} if members.get("type") == "string" else members
        return {**schema, "type": ["object", "null"], "additionalProperties": plain}
    if "enum" in schema:
        told = {key: value for key, value in schema.items() if key != "enum"}
        return {**told, "anyOf": [{"enum": schema["enum"]}, {"type": "string", "pattern": _VARIABLE}]}
    if "anyOf" in schema:
        members = [_widen(member) for member in schema["anyOf"]]
        duration = any("examples" in member and "pattern" in member for member in members)
        return {**schema, "anyOf": [*members, _OFF] if duration else members}
    if "$ref" in schema and "description" in schema:
        return {"description": schema["description"], "anyOf": [{"$ref": schema["$ref"]}, {"type": "null"}]}
    return schema


def effective(config: Config) -> str:
    """All settings as they apply, defaults included, as YAML in which secrets are masked."""
    plain = _shown(config, config_type())
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=1000)


def _shown(value: Any, kind: inspect.Type) -> Any:
    """`value` as YAML shows it."""
    bare, _, extra = unwrap(kind)
    if "unit" in extra:
        return "off" if value is None else duration_text(value)
    if isinstance(value, msgspec.Struct) and isinstance(bare, inspect.StructType):
        return {field.name: _shown(getattr(value, field.name), field.type) for field in bare.fields}
    if isinstance(value, dict) and isinstance(bare, inspect.DictType):
        # query members such as api-version are worth seeing, those such as key are not
        return {
            name: MASK if isinstance(member, str) and is_credential_name(name) else _shown(member, bare.value_type)
            for name, member in value.items()
        }
    if isinstance(value, tuple) and isinstance(bare, inspect.VarTupleType):
        return [_shown(item, bare.item_type) for item in value]
    if isinstance(value, Secret):
        return escape(value.masked())
    if isinstance(value, datetime):
        return value.isoformat()
    return escape(value) if isinstance(value, str) else value
