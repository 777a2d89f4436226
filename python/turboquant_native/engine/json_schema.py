"""JSON schemas as llguidance takes them: objects closed, and what it cannot constrain left out by name.

As llama.cpp reads schemas, an object that lists properties has no others. Parts that are combined (allOf, a $ref or an anyOf beside
properties) must not be closed one by one, for then nothing would satisfy all of them: their parent is closed over the names of all.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

Schema = Any  # an object, or true or false

_MAX_DEPTH = 110  # of nested JSON; the library refuses 128
_MAX_REFERENCES = 300  # one within the other; the library's stack overflows at some hundreds more
_LISTS = ("allOf", "anyOf", "oneOf")
_CONDITIONS = ("if", "then", "else")
_COMBINING = (*_LISTS, *_CONDITIONS, "$ref", "dependentSchemas")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_SINGLE = ("items", "additionalProperties", "unevaluatedProperties", "additionalItems", "unevaluatedItems")


def prepare(schema: str | dict[str, Any] | bool, is_regex: Callable[[str], bool]) -> tuple[Schema, list[str]]:
    """A schema for llguidance, and what was left out, in words that name the keyword.

    Args:
        schema: as text or parsed.
        is_regex: whether llguidance can use a regular expression.
    Raises ValueError for text that is no JSON, for a schema that is no object, or that is nested too deeply.
    """
    try:
        parsed = json.loads(schema) if isinstance(schema, str) else json.loads(json.dumps(schema))
        if not isinstance(parsed, dict | bool):
            raise ValueError(f"the JSON schema must be an object, got {str(schema)[:80]!r}")
        _check_depth(parsed)
        closed = _Closer(parsed).close_root()
        _check_depth(closed)
        relaxed = _Relaxer(is_regex)
        result = relaxed.relax(closed)
        _check_references(result)
        return result, relaxed.left_out
    except RecursionError:
        raise ValueError(f"the JSON schema is nested too deeply (at most {_MAX_DEPTH} levels)") from None


def _check_depth(schema: Schema) -> None:
    level, depth = [schema], 0
    while level:
        level = [part for value in level for part in _children(value)]
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"the JSON schema is nested too deeply (at most {_MAX_DEPTH} levels); name its parts in $defs")


def _children(value: Any) -> list[Any]:
    found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in found if isinstance(part, dict | list)]


def _references(value: Any) -> list[str]:
    """Every $ref below a value."""
    found, waiting = [], [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict) and isinstance(part.get("$ref"), str):
            found.append(part["$ref"])
        waiting += _children(part)
    return found


def _check_references(schema: Schema) -> None:
    """Refuses chains of references whose following would exhaust the stack: a walk in depth first order, as the library's."""
    if not isinstance(schema, dict):
        return
    body = {key: part for key, part in schema.items() if key not in ("$defs", "definitions")}
    seen: set[str] = set()
    stack = [iter(_references(body))]
    while stack:
        pointer = next(stack[-1], None)
        if pointer is None:
            stack.pop()
        elif pointer not in seen:
            seen.add(pointer)
            stack.append(iter(_references(_resolve(schema, pointer))) if pointer != "#" else iter(()))
            if len(stack) > _MAX_REFERENCES:
                raise ValueError(f"the JSON schema is nested too deeply: more than {_MAX_REFERENCES} references, each within the next")


def _resolve(root: Schema, pointer: str) -> Schema:
    """What a local reference points at; None where there is nothing, or where it is not a local one."""
    if not pointer.startswith("#") or (pointer != "#" and not pointer.startswith("#/")):
        return None
    found = root
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(step)
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found


class _Closer:
    """Writes a schema anew with its objects closed."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._open_names: dict[str, str] = {}  # pointer -> the name of its open copy
        self._open_copies: dict[str, Schema] = {}

    def close_root(self) -> Schema:
        closed = self._close(self._root)
        if self._open_copies:
            closed["$defs"] = {**closed.get("$defs", {}), **self._open_copies}
        return closed

    def _close(self, schema: Schema) -> Schema:
        """A schema whose objects, itself among them, have only the properties that they list."""
        if not isinstance(schema, dict):
            return schema
        parts = [key for key in _COMBINING if key in schema]
        if not parts:
            return self._closed_over(schema, self._rewritten(schema, self._close))
        single = len(parts) == 1 and not self._lists_names(schema)
        if single and (parts[0] in ("anyOf", "oneOf", "$ref") or (parts[0] == "allOf" and len(schema["allOf"]) == 1)):
            return self._rewritten(schema, self._close)
        return self._closed_over(schema, self._open(schema))

    def _open(self, schema: Schema) -> Schema:
        """A schema that others add to: only the objects within its properties are closed."""
        if not isinstance(schema, dict):
            return schema
        result = self._rewritten(schema, self._open)
        if isinstance(schema.get("$ref"), str):
            result["$ref"] = self._open_reference(schema["$ref"])
        return result

    @staticmethod
    def _lists_names(schema: dict[str, Any]) -> bool:
        return isinstance(schema.get("properties"), dict) or bool(schema.get("required"))

    def _rewritten(self, schema: dict[str, Any], branch: Callable[[Schema], Schema]) -> dict[str, Any]:
        """A schema with `branch` applied to what it combines, and everything below closed."""
        result: dict[str, Any] = {}
        for key, part in schema.items():
            if key in _LISTS and isinstance(part, list):
                result[key] = [branch(each) for each in part]
            elif key in _CONDITIONS:
                result[key] = branch(part)
            elif key == "dependentSchemas" and isinstance(part, dict):
                result[key] = {name: branch(each) for name, each in part.items()}
            elif key in _NAMED and isinstance(part, dict):
                result[key] = {name: self._close(each) for name, each in part.items()}
            elif key in _SINGLE or key == "prefixItems":
                result[key] = [self._close(each) for each in part] if isinstance(part, list) else self._close(part)
            else:
                result[key] = part
        return result

    def _open_reference(self, pointer: str) -> str:
        if pointer not in self._open_names:
            target = _resolve(self._root, pointer)
            if target is None:
                return pointer  # the library names it in its error
            name = f"open {len(self._open_names)}"
            while name in (self._root.get("$defs") or ()):
                name = " " + name
            self._open_names[pointer] = name
            self._open_copies[name] = self._open({key: part for key, part in target.items() if key not in ("$defs", "definitions")})
        return f"#/$defs/{self._open_names[pointer]}".replace(" ", "%20")

    def _closed_over(self, schema: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        """Allows the names that a schema and its parts list, and no others; unless one of them allows others or counts on them."""
        names = self._names(schema, set()) if "additionalProperties" not in schema else None
        if not names or schema.get("minProperties", 0) > len(names):
            return result
        own = result.get("properties", {})
        return {**result, "properties": {**own, **{name: {} for name in names if name not in own}}, "additionalProperties": False}

    def _names(self, schema: Schema, seen: set[str]) -> dict[str, None] | None:
        """Names of properties that a schema and its parts list, in order; None where any other is allowed too."""
        if not isinstance(schema, dict):
            return {}
        if schema.get("additionalProperties", False) is not False or any(
            schema.get(key) for key in ("unevaluatedProperties", "patternProperties")
        ):
            return None
        properties, required = schema.get("properties"), schema.get("required")
        found: dict[str, None] = dict.fromkeys(properties if isinstance(properties, dict) else ())
        for part in self._parts(schema, seen):
            names = self._names(part, seen)
            if names is None:
                return None
            found |= names
        listed = bool(found)
        if listed and isinstance(required, list):
            found |= dict.fromkeys(name for name in required if isinstance(name, str))
        return found

    def _parts(self, schema: dict[str, Any], seen: set[str]) -> list[Schema]:
        parts = [part for key in _LISTS if isinstance(schema.get(key), list) for part in schema[key]]
        parts += [schema[key] for key in _CONDITIONS if key in schema]
        parts += (schema.get("dependentSchemas") or {}).values()
        pointer = schema.get("$ref")
        if isinstance(pointer, str) and pointer not in seen:
            seen.add(pointer)
            parts.append(_resolve(self._root, pointer))
        return parts


_UUID = "^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"
_UUIDS = {f"uuid{version}": _UUID.format(version=version) for version in range(1, 9)}


class _Relaxer:
    """Leaves out what llguidance refuses even where it is lenient."""

    def __init__(self, is_regex: Callable[[str], bool]) -> None:
        self._is_regex = lru_cache(maxsize=None)(is_regex)
        self.left_out: list[str] = []

    def relax(self, schema: Schema) -> Schema:
        if isinstance(schema, list):
            return [self.relax(part) for part in schema]
        if not isinstance(schema, dict):
            return schema
        result = {key: self._relaxed(key, part) for key, part in schema.items()}
        if isinstance(result.get("pattern"), str) and not self._is_regex(result["pattern"]):
            self.left_out.append(f"pattern {result.pop('pattern')!r}")
        kind = result.get("format")
        if isinstance(kind, str) and kind in _UUIDS and "pattern" not in result:  # pydantic's names
            result["pattern"] = _UUIDS[result.pop("format")]
        self._relax_names(result)
        return result

    def _relaxed(self, key: str, part: Any) -> Any:
        if key in _NAMED and isinstance(part, dict):
            return {name: self.relax(each) for name, each in part.items()}
        return part if key in ("enum", "const", "default", "examples", "required") else self.relax(part)

    def _relax_names(self, schema: dict[str, Any]) -> None:
        """Several patterns for names may overlap, which the library refuses; any that it cannot read has no effect."""
        patterns = schema.get("patternProperties")
        if not isinstance(patterns, dict):
            return
        if len(patterns) > 1 or not all(map(self._is_regex, patterns)):
            del schema["patternProperties"]
            if schema.get("additionalProperties") is False:
                del schema["additionalProperties"]
            self.left_out.append("patternProperties " + ", ".join(map(repr, patterns)))
