"""Words of Envoy's configuration that more than one part of it uses."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

SESSION = "%FILTER_STATE(envoy.network.proxy_protocol.tlv:FIELD:session)%"
NAME = "%FILTER_STATE(envoy.network.proxy_protocol.tlv:FIELD:name)%"
CONNECTION = "%FILTER_STATE(envoy.network.proxy_protocol.tlv:FIELD:connection)%"
HERE = "%DOWNSTREAM_LOCAL_ADDRESS%"
BEFORE = "%FILTER_STATE(stockade.destination:PLAIN)%"  # as the listener before this one saw it
T = "type.googleapis.com/envoy."


def typed(name: str, kind: str, **fields: Any) -> Json:
    """An extension's configuration; `kind` is the type's name after "envoy."."""
    return {"name": name, "typed_config": {"@type": T + kind, **fields}}


def remember(states: dict[str, str], sharing: str = "ONCE") -> list[Json]:
    """Filter state, as format strings by key, that goes along into the next internal listener ("ONCE"), into all and upstream ("TRANSITIVE"), or nowhere ("NONE").

    Connections to servers are kept by what goes upstream (`objectsSharedWithUpstreamConnection` in Envoy)."""
    return [
        {
            "object_key": key,
            # INVARIANT: hashable. Connections to an internal listener are pooled by these values; with plain strings the second tunnel would inherit
            # the first one's session and target.
            "factory_key": "envoy.hashable_string",
            "format_string": {"text_format_source": {"inline_string": text}},
            "shared_with_upstream": sharing,
        }
        for key, text in states.items()
    ]
