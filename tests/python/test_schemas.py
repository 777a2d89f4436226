"""JSON schemas: what a grammar accepts of them, which of pydantic's it takes, and what it leaves out by name."""

import collections
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import itertools
import json
import pathlib
import re
import uuid
import warnings
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union

import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from typing_extensions import NotRequired, TypedDict

llguidance = pytest.importorskip("llguidance")

from test_gbnf import TOKENIZER  # noqa: E402
from turboquant_native import LlamaGrammar  # noqa: E402


def accepts(schema: Any, text: str) -> bool:
    """Whether this text can be written, and can end there."""
    matcher = llguidance.LLMatcher(TOKENIZER, LlamaGrammar.from_json_schema(schema)._compiled, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return all(not matcher.is_stopped() and matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting()


def accepted(schema: Any, values: list[Any]) -> list[Any]:
    """The values that can be written; llguidance fixes the order of an object's properties, so any order counts."""
    return [value for value in values if any(accepts(schema, json.dumps(each)) for each in orders(value))]


def orders(value: Any) -> list[Any]:
    return [dict(items) for items in itertools.permutations(value.items())] if isinstance(value, dict) else [value]


class Color(enum.Enum):
    red = "red"
    two = 2


class Named(NamedTuple):
    x: int
    y: str = "a"


class Typed(TypedDict):
    a: int
    b: NotRequired[str]


@dataclasses.dataclass
class Data:
    a: int
    b: str = "x"


class Cat(BaseModel):
    kind: Literal["cat"]
    n: int


class Dog(BaseModel):
    kind: Literal["dog"]
    m: Annotated[str, Field(min_length=1)]


class Tree(BaseModel):
    v: int
    kids: list["Tree"] = []


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Model(BaseModel):
    tags: set[str] = Field(description="a set")
    best: Cat | None = None
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]]
    where: pathlib.Path = pathlib.Path("x")
    price: decimal.Decimal
    sub: Annotated[Strict, Field(description="beside a $ref", examples=[{"a": 1}])]
    free: dict[str, Any] = {}


ID = uuid.UUID("12345678-1234-4234-8234-123456789abc")
PYDANTIC = [
    (bool, True),
    (int, -3),
    (float, 2.5),
    (str, "é\n"),
    (bytes, b"ab"),
    (None, None),
    (datetime.datetime, datetime.datetime(2024, 5, 1, 12, 30, tzinfo=datetime.timezone.utc)),
    (datetime.date, datetime.date(2024, 5, 1)),
    (datetime.time, datetime.time(1, 2, 3, tzinfo=datetime.timezone.utc)),
    (datetime.timedelta, datetime.timedelta(days=1, hours=2)),
    (decimal.Decimal, decimal.Decimal("1.50")),
    (Color, Color.two),
    (ipaddress.IPv4Address, ipaddress.ip_address("1.2.3.4")),
    (ipaddress.IPv6Address, ipaddress.ip_address("::1")),
    (ipaddress.IPv4Network, ipaddress.ip_network("10.0.0.0/8")),
    (ipaddress.IPv6Interface, ipaddress.ip_interface("::1/64")),
    (pathlib.Path, pathlib.Path("/a/b")),
    (re.Pattern, re.compile("a+")),
    (uuid.UUID, ID),
    (pydantic.UUID4, ID),
    (list[int], [1, 2]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2)),
    (set[int], {1, 2}),
    (frozenset[str], frozenset("a")),
    (collections.deque[int], collections.deque([1])),
    (dict[str, int], {"a": 1}),
    (dict[int, str], {1: "a"}),
    (dict[Color, int], {Color.red: 1}),
    (dict[uuid.UUID, int], {ID: 1}),
    (dict[Annotated[str, Field(pattern="^x")], int], {"xy": 1}),
    (dict[Annotated[str, Field(max_length=3)], int], {"abc": 1}),
    (collections.OrderedDict[str, int], collections.OrderedDict(a=1)),
    (Named, Named(1)),
    (Typed, Typed(a=1)),
    (Data, Data(1)),
    (Cat | Dog, Dog(kind="dog", m="x")),
    (Annotated[Cat | Dog, Field(discriminator="kind")], Cat(kind="cat", n=1)),
    (Tree, Tree(v=1, kids=[Tree(v=2)])),
    (Optional[int], None),  # noqa: UP045
    (Union[int, str, list["int"]], [1]),  # noqa: UP007
    (Literal["a", 1, None, True], None),
    (Any, {"a": [1]}),
    (Strict, Strict(a=1)),
    (Loose, Loose(a=1, b="more")),
    (pydantic.conlist(int, min_length=1, max_length=3), [1, 2]),
    (pydantic.conset(int, min_length=1), {1}),
    (pydantic.constr(pattern="^a+$", min_length=2), "aaa"),
    (pydantic.condecimal(max_digits=5, decimal_places=2), decimal.Decimal("1.25")),
    (pydantic.conint(gt=1, lt=9, multiple_of=2), 4),
    (pydantic.confloat(ge=0.5, allow_inf_nan=False), 0.75),
    (pydantic.SecretStr, pydantic.SecretStr("x")),
    (pydantic.Base64Bytes, b"YWI="),
    (pydantic.AnyUrl, pydantic.AnyUrl("https://a.b/c")),
    (pydantic.ByteSize, 5),
    (pydantic.Json[list[int]], [1]),
    (pydantic.JsonValue, {"a": None}),
    (Model, Model(tags={"x"}, pets=[{"kind": "cat", "n": 1}, {"kind": "dog", "m": "y"}], price="2", sub={"a": 1}, free={"z": 1})),
]


@pytest.mark.filterwarnings("ignore:the JSON schema")
@pytest.mark.parametrize("mode", ["validation", "serialization"])
@pytest.mark.parametrize(("kind", "value"), PYDANTIC, ids=lambda given: str(given)[:40])
def test_pydantics_types(kind, value, mode):
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema(mode=mode)
    text = adapter.dump_json(value).decode()
    if kind == pydantic.Json[list[int]] and mode == "validation":
        text = json.dumps(text)
    assert accepts(schema, text), schema
    assert not accepts(schema, text[:-1] + "}}")


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "path"}, "path"),
        ({"type": "string", "format": "binary"}, "binary"),
        ({"type": "object", "additionalProperties": {"type": "integer"}, "propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"type": "object", "properties": {"a": {}}, "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "array", "contains": {"type": "integer"}}, "contains"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "pattern": "^(?!x)"}, re.escape("pattern '^(?!x)'")),
        (
            {"type": "object", "patternProperties": {"^a": {"type": "integer"}, "^ab": {"type": "integer"}}},
            "patternProperties '\\^a', '\\^ab'",
        ),
        ({"type": "object", "patternProperties": {"(?=a)": {"type": "integer"}}, "additionalProperties": False}, "patternProperties"),
    ],
)
def test_what_is_left_out_is_named(schema, named):
    with pytest.warns(UserWarning, match=named):
        LlamaGrammar.from_json_schema(schema)


def test_what_can_be_constrained_is_no_cause_for_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LlamaGrammar.from_json_schema({"oneOf": [{"type": "integer", "minimum": 1}, {"type": "string", "maxLength": 3}], "title": "x"})
        LlamaGrammar.from_json_schema(TypeAdapter(pydantic.UUID7).json_schema())


def test_one_of_is_any_of():
    schema = {"oneOf": [{"type": "integer", "minimum": 2}, {"type": "integer", "maximum": 5}]}
    assert accepted(schema, [1, 3, 9, "x"]) == [1, 3, 9]


A, B = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"b": {"type": "boolean"}}}
VALUES = [{"a": 1}, {"a": 1, "b": True}, {"b": True}, {"a": 1, "c": 0}, {"a": 1, "b": True, "c": 0}]


@pytest.mark.parametrize(
    ("schema", "right"),
    [
        (A, [0]),
        ({"allOf": [A]}, [0]),
        ({"allOf": [A, B]}, [0, 1]),
        ({"allOf": [{"$ref": "#/$defs/A"}, B], "$defs": {"A": A}}, [0, 1]),
        ({"allOf": [{"$ref": "#/$defs/A"}], "description": "x", "$defs": {"A": A}}, [0]),
        ({"$ref": "#/$defs/A", "description": "x", "$defs": {"A": A}}, [0]),
        ({"$ref": "#/$defs/A", **B, "$defs": {"A": A}}, [0, 1]),
        ({**B, "anyOf": [{"$ref": "#/$defs/A"}, {"required": ["b"]}], "$defs": {"A": A}}, [0, 1, 2]),
        ({"anyOf": [A, {**B, "required": ["b"]}]}, [0, 2]),
        ({"oneOf": [A, B], "properties": {"c": {"type": "integer"}}}, [0, 1, 2, 3, 4]),
        ({"allOf": [{"allOf": [{"$ref": "#/$defs/A"}, {"type": "object"}]}, B], "$defs": {"A": A}}, [0, 1]),
        ({"allOf": [A, {**B, "additionalProperties": True}]}, [0, 1, 3, 4]),
        ({"allOf": [{"$ref": "#/definitions/a~1b"}, B], "definitions": {"a/b": A}}, [0, 1]),
        ({**A, "required": ["a", "b"]}, [1]),
        ({**A, "minProperties": 2}, [1, 3, 4]),
        ({"type": "object"}, [0, 1, 2, 3, 4]),
        ({**A, "additionalProperties": {"type": "boolean"}}, [0, 1]),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/n"}},
                "$defs": {"n": {"allOf": [{"type": "integer"}, {"minimum": 1}]}},
            },
            [0],
        ),
    ],
    ids=str,
)
def test_closed_objects(schema, right):
    assert accepted(schema, VALUES) == [VALUES[i] for i in right]


def test_what_is_open_in_one_place_is_closed_in_another():
    schema = {
        "type": "object",
        "properties": {"alone": {"$ref": "#/$defs/A"}, "more": {"allOf": [{"$ref": "#/$defs/A"}, B]}},
        "$defs": {"A": A},
    }
    values = [{"alone": {"a": 1}, "more": {"a": 1, "b": True}}, {"alone": {"a": 1, "b": True}}, {"more": {"a": 1, "c": 1}}]
    assert accepted(schema, values) == values[:1]


def test_recursive_schemas():
    node = {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"next": {"$ref": "#/$defs/node"}}}]}
    schema = {"$ref": "#/$defs/node", "$defs": {"node": node, "base": A}}
    assert accepted(schema, [{"a": 1, "next": {"a": 2, "next": {"a": 3}}}, {"a": 1, "next": {"b": 2}}]) == [
        {"a": 1, "next": {"a": 2, "next": {"a": 3}}}
    ]
    assert accepted({"type": "object", "properties": {"me": {"$ref": "#"}}}, [{"me": {"me": {}}}, {"x": 1}]) == [{"me": {"me": {}}}]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def chain(length: int, link: Any) -> dict[str, Any]:
    return {
        "$ref": "#/$defs/d0",
        "$defs": {**{f"d{i}": link(f"#/$defs/d{i + 1}") for i in range(length)}, f"d{length}": {"type": "object"}},
    }


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (nested(200), "nested too deeply"),
        ('{"items":' * 100000 + "{}" + "}" * 100000, "nested too deeply"),
        ("[" * 100000 + "]" * 100000, "nested too deeply"),
        (chain(5000, lambda ref: {"type": "object", "properties": {"a": {"$ref": ref}}}), "more than 300 references"),
        (chain(5000, lambda ref: {"allOf": [{"$ref": ref}, {"type": "object"}]}), "nested too deeply"),
        (chain(5000, lambda ref: {"anyOf": [{"$ref": ref}, {"type": "integer"}]}), "nested too deeply|more than 300"),
        ({"$ref": "#/$defs/none"}, "/\\$defs/none"),
        ({"allOf": [{"$ref": "#/$defs/none"}, A]}, "/\\$defs/none"),
        ({"$ref": "https://example.com/x"}, "example.com"),
        ({"type": "thing"}, "thing"),
        ({"enum": []}, "anyOf is empty"),
        ("{", "Expecting"),
        ([], "must be an object"),
        ("3", "must be an object"),
    ],
    ids=lambda given: str(given)[:40],
)
def test_faults_are_named(schema, message):
    with pytest.raises(ValueError, match=message) as caught:
        LlamaGrammar.from_json_schema(schema)
    assert len(str(caught.value)) < 1000


def test_fairly_deep_schemas_work():
    LlamaGrammar.from_json_schema(nested(50))
    LlamaGrammar.from_json_schema(chain(250, lambda ref: {"type": "object", "properties": {"a": {"$ref": ref}}}))
