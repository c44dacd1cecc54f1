"""From text off the wire to typed frames, whatever a newer or a careless daemon writes.

msgspec reads a frame in one pass. Where a frame is not of its shape, it is fitted field by field: what is
unknown becomes `Opaque`, what does not fit takes its default. Text that msgspec will not read at all (lone
surrogates, bytes that are not UTF-8, deep nesting) goes through the standard library first.
"""

import json
import math
import re
import types
import typing
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from app.paseo.errors import Undecodable

T = TypeVar("T")

MAX_DEPTH = 100
"""Levels of nesting that are kept of a frame which nests too deeply; below them stands null."""

MAX_PRUNED = 1024 * 1024
"""Bytes of such a frame; a bigger one would hold up everything for too long and cannot be read."""

Position: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
"""Where a row stands; a daemon, and so a database, counts no further."""

_REFUSALS = (msgspec.MsgspecError, ValueError, RecursionError)
_SURROGATES = re.compile("[\ud800-\udfff]")
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


class Frame(msgspec.Struct, frozen=True, rename="camel"):
    """The base of everything that crosses the socket; unknown fields are ignored."""


class Tagged(Frame, frozen=True, tag_field="type"):
    """The base of the kinds of an open union."""


class Opaque(Tagged, frozen=True, tag="?"):
    """A kind that this client does not know, or one whose shape it does not know, as it came."""

    kind: str = ""
    data: Any = None


def decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """The decoder of a type, made once."""
    found: msgspec.json.Decoder[T] | None = _DECODERS.get(kind)
    if found is None:
        found = _DECODERS[kind] = msgspec.json.Decoder(kind)
    return found


_DECODERS: dict[Any, Any] = {}


def decode(kind: type[T], data: bytes | msgspec.Raw) -> T:
    """The frame in `data`.

    Raises:
        Undecodable: not JSON, or something without which the frame is none.
    """
    try:
        return decoder(kind).decode(data)
    except _REFUSALS:
        pass
    try:
        value = msgspec.json.decode(data)
    except _REFUSALS:
        value = _parse(bytes(data))
    try:
        fitted: T = _fit(value, kind)
    except (*_REFUSALS, KeyError, TypeError) as error:
        raise Undecodable(f"not a {getattr(kind, '__name__', kind)}: {error}"[:300]) from None
    return fitted


def readable(data: bytes) -> bytes:
    """The same frame, as text that msgspec reads.

    Raises:
        Undecodable: it is no JSON.
    """
    return msgspec.json.encode(_parse(data))


def _parse(data: bytes) -> Any:
    text = data.decode("utf-8", "replace")
    try:
        return _clean(json.loads(text, parse_constant=_nothing))
    except RecursionError:
        pass
    except ValueError as error:
        raise Undecodable(f"not JSON: {error}"[:300]) from None
    if len(data) > MAX_PRUNED:
        raise Undecodable(f"nested too deeply, in {len(data)} bytes")
    try:
        return _clean(json.loads(_pruned(data).decode("utf-8", "replace"), parse_constant=_nothing))
    except (ValueError, RecursionError) as error:
        raise Undecodable(f"not JSON: {error}"[:300]) from None


def _nothing(_: str) -> None:
    """NaN and the infinities, which are no JSON."""


def _clean(value: Any) -> Any:
    match value:
        case str():
            return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", value)
        case float():
            return value if math.isfinite(value) else None
        case list():
            return [_clean(each) for each in value]
        case dict():
            return {_clean(key): _clean(each) for key, each in value.items()}
        case _:
            return value


def _pruned(data: bytes) -> bytes:
    kept, depth, start = bytearray(), 0, 0
    for token in _TOKENS.finditer(data):
        if token[0] in b"[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept += data[start : token.start()]
        elif token[0] in b"]}":
            depth -= 1
            if depth == MAX_DEPTH:
                kept += b"null"
                start = token.end()
    return bytes(kept + data[start:])


def _fit(value: Any, kind: Any) -> Any:
    """`value` as a `kind`. Raises msgspec.ValidationError, or another of its kin, when that cannot be."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _fit_union(value, arguments)
    if origin is list and isinstance(value, list):
        found = [_fit_or(item, arguments[0], _MISFIT) for item in value]
        return [item for item in found if item is not _MISFIT]
    if origin is dict and isinstance(value, dict):
        fitted = {key: _fit_or(item, arguments[1], _MISFIT) for key, item in value.items()}
        return {key: item for key, item in fitted.items() if item is not _MISFIT}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        return _fit_struct(value, kind)
    return msgspec.convert(value, kind)


_MISFIT = object()


def _fit_or(value: Any, kind: Any, default: Any) -> Any:
    try:
        return _fit(value, kind)
    except (*_REFUSALS, KeyError, TypeError):
        return default


def _fit_struct(value: dict[str, Any], kind: type[msgspec.Struct]) -> msgspec.Struct:
    fitted = {}
    for field in msgspec.structs.fields(kind):
        if field.encode_name not in value:
            continue
        if field.required:
            fitted[field.name] = _fit(value[field.encode_name], field.type)
        elif (found := _fit_or(value[field.encode_name], field.type, _MISFIT)) is not _MISFIT:
            fitted[field.name] = found
    return kind(**fitted)


def _fit_union(value: Any, kinds: tuple[Any, ...]) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        if is_struct and kind.__struct_config__.tag is not None:
            fits = isinstance(value, dict) and value.get("type") == kind.__struct_config__.tag
            if not fits or kind is Opaque:
                continue
        if (found := _fit_or(value, kind, _MISFIT)) is not _MISFIT:
            return found
    if Opaque in kinds and isinstance(value, dict):
        return Opaque(kind=str(value.get("type", "")), data=value)
    raise msgspec.ValidationError(f"fits none of {len(kinds)} kinds")
