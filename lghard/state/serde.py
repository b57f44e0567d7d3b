"""A serializer that stores nothing that will not come back."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import ormsgpack
from langgraph.checkpoint.serde import _msgpack, jsonplus
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from typing_extensions import override

from lghard.state.graph import allowlist_of
from lghard.state.inline import inline_findings
from lghard.state.paths import ROOT
from lghard.state.quick import MESSAGES, plain_bytes, surely_clean
from lghard.state.report import Finding, Report, Severity
from lghard.state.rules import finding
from lghard.state.values import Settings, check_channel
from lghard.state.verdicts import Mode, Verdicts, refusal

if TYPE_CHECKING:
    from langgraph.checkpoint.serde._msgpack import AllowedMsgpackModules

OnNul = Literal["raise", "strip"]


class CheckedSerializer(JsonPlusSerializer):
    """LangGraph's serializer, which says what will not come back, and where it is.

    Upstream stores many values that do not come back as they went in, and raises for none of
    them; and where it raises, it names the outermost object only. This one looks at each
    value before it is stored, and raises `StateNotSerializableError` with the path of the culprit.
    What it stores is what upstream stores, byte for byte.

    A serializer is asked only for what goes into blobs and pending writes. A channel's own str,
    int, float or bool stands in the checkpoint itself: `HardenedAsyncPostgresSaver` asks this
    serializer about those, too; with another checkpointer, `checked(builder)` looks at them.

    Args:
        mode: "raise"; "warn" logs to `lghard.state`, each rule at each path once; "off" does
            nothing.
        fail_on: from which severity on "raise" raises. What is less bad is logged.
        postgres: also look for what only Postgres does to a channel's own str, int, float or bool.
        on_nul: "strip" removes NUL characters from a channel's own str instead of raising.
        roundtrip: also write, read and compare each value.
        graph: a graph or state schema, all of whose classes may be read back, and no others: strict
            mode, with the complete allowlist.
        pickle_fallback: as upstream's.
        allowed_json_modules: as upstream's.
        allowed_msgpack_modules: as upstream's.
        **unpack: as upstream's: `__unpack_ext_hook__`.

    Raises:
        ValueError: there is no such mode or severity.

    Example:
        >>> async with open_checkpointer(serde=CheckedSerializer()) as checkpointer:
        ...     graph = builder.compile(checkpointer=checkpointer)
    """

    def __init__(
        self,
        *,
        mode: Mode = "raise",
        fail_on: Severity | str = "data-loss",
        postgres: bool = True,
        on_nul: OnNul = "raise",
        roundtrip: bool = False,
        graph: object = None,
        pickle_fallback: bool = False,
        allowed_json_modules: Iterable[tuple[str, ...]] | Literal[True] | None = None,
        allowed_msgpack_modules: "AllowedMsgpackModules | Literal[True] | None" = (
            _msgpack._SENTINEL
        ),
        **unpack: Callable[[int, bytes], Any] | None,
    ) -> None:
        if on_nul not in ("raise", "strip"):
            raise ValueError(f'no on_nul={on_nul!r}: it is "raise" or "strip"')
        if graph is not None:
            allowed_msgpack_modules = allowlist_of(graph)
        super().__init__(
            pickle_fallback=pickle_fallback,
            allowed_json_modules=allowed_json_modules,
            allowed_msgpack_modules=allowed_msgpack_modules,
            **unpack,
        )
        self._verdicts = Verdicts(mode, fail_on)
        self._postgres = postgres
        self._on_nul = on_nul
        self._roundtrip = roundtrip

    @override
    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        if self._verdicts.mode == "off":
            return super().dumps_typed(obj)
        obj = self._stripped(obj)
        if type(obj) is list or type(obj) is dict:
            packed = plain_bytes(obj) or self._certain(obj)
            if packed:
                return "msgpack", packed
        report = self._report(obj)
        stored = self._pickled(obj, report)
        if stored:
            return stored
        self._verdicts.on(report)
        try:
            return super().dumps_typed(obj)
        except Exception as error:  # a value's own code may raise anything
            known = report.at_least(Severity.ERROR)
            raise refusal(known if known.findings else _unexpected(obj, error)) from error

    def _pickled(self, obj: Any, report: Report) -> tuple[str, bytes] | None:
        """A value that has no encoding, if there is a fallback that takes it."""
        if not self.pickle_fallback or not report.at_least(Severity.ERROR).findings:
            return None
        try:
            stored = super().dumps_typed(obj)
        except Exception:  # whatever pickle says, the report says more
            return None
        kind = type(obj).__name__
        pickled = (finding("LGS312", "$", channel="the value", type=kind),)
        self._verdicts.on(Report(pickled, "value"))
        return stored

    def _certain(self, obj: Any) -> bytes | None:
        """What is written of something in which there is surely nothing to find."""
        if self._allowed_msgpack_modules is not True or not surely_clean(obj):
            return None
        return ormsgpack.packb(obj, default=_encoded, option=jsonplus._option)

    def _report(self, obj: Any) -> Report:
        upstream = JsonPlusSerializer(
            pickle_fallback=self.pickle_fallback, allowed_msgpack_modules=True
        )
        settings = Settings.of(self, postgres=self._postgres, profile=None)
        settings = settings._replace(serde=upstream)
        return Report(tuple(check_channel(ROOT, obj, settings, roundtrip=self._roundtrip)), "value")

    def check_inline(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Channels whose values Postgres keeps in the checkpoint itself, as they may be stored.

        Args:
            values: their own str, int, float, bool or None, by channel.

        Returns:
            The same, without NUL characters if `on_nul="strip"`.

        Raises:
            StateNotSerializableError: Postgres cannot store one of them.
        """
        stored = {channel: self._stripped(value) for channel, value in values.items()}
        if self._postgres and self._verdicts.mode != "off":
            found: list[Finding] = []
            for channel, value in stored.items():
                found += inline_findings(ROOT[channel], value)
            self._verdicts.on(Report(tuple(found), "checkpoint"))
        return stored

    def _stripped(self, value: Any) -> Any:
        if self._on_nul == "strip" and type(value) is str and "\0" in value:
            return value.replace("\0", "")
        return value


def _unexpected(obj: Any, error: Exception) -> Report:
    kind = type(obj).__name__
    return Report((finding("LGS111", "$", error=type(error).__name__, type=kind),), "value")


_NAMES = {kind: (kind.__module__, kind.__name__) for kind in MESSAGES}


def _encoded(value: Any) -> Any:
    """As upstream, but quicker for a message that has just been looked at.

    Its dump would be a copy of what it holds: there is nothing in it but plain data.
    """
    names = _NAMES.get(type(value))
    if names is None:
        return jsonplus._msgpack_default(value)
    held = (*names, value.__dict__, "model_validate_json")
    packed = ormsgpack.packb(held, default=_encoded, option=jsonplus._option)
    return ormsgpack.Ext(jsonplus.EXT_PYDANTIC_V2, packed)
