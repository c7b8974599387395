"""The check that comes before TLS is ended: may this connection ask for the name that its greeting names? A part of Envoy's configuration, pure."""

from __future__ import annotations

from stockade.gateway.envoy import CONNECTION, HERE, NAME, SESSION, Json, remember, typed


def check_sni(way: str) -> tuple[Json, Json]:
    """A chain that hands TLS on as it is, to the listener that ends it, if its SNI is the name that this connection may ask for; and its listener's log.

    Each name that reaches that listener costs the engine 0.2 MB for as long as it runs: so nobody may make names up.
    """
    expected = "connect %REQUESTED_SERVER_NAME%:" if way == "tunnel" else NAME
    states = {"stockade.way": way}
    if way == "https":
        session = remember({"stockade.session": SESSION}, "TRANSITIVE")
        states |= {"stockade.destination": HERE, "stockade.connection": CONNECTION, "stockade.connect": "-"}
        condition = _call("_==_", _select("connection", "requested_server_name"), _state("stockade.expected"))
    else:
        session = []
        states |= {key: f"%FILTER_STATE({key}:PLAIN)%" for key in ("stockade.destination", "stockade.connection", "stockade.connect")}
        connect = _call("lowerAscii", target=_state("stockade.connect"))  # the SNI comes in lower case
        condition = _call("startsWith", _state("stockade.expected"), target=connect)
    anyone: Json = {"permissions": [{"any": True}], "principals": [{"any": True}], "condition": condition}
    anyone["cel_config"] = {"enable_string_functions": True, "enable_string_conversion": True}
    filters = [
        typed(
            "expected",
            "extensions.filters.network.set_filter_state.v3.Config",
            on_new_connection=[*remember({"stockade.expected": expected}, "NONE"), *session, *remember(states)],
        ),
        typed(
            "envoy.filters.network.rbac",
            "extensions.filters.network.rbac.v3.RBAC",
            stat_prefix=way,
            rules={"action": "ALLOW", "policies": {"the-name-it-may-ask-for": anyone}},
        ),
        typed("envoy.filters.network.tcp_proxy", "extensions.filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=way, cluster="tls"),
    ]
    return {"filters": filters, "filter_chain_match": {"transport_protocol": "tls"}}, {"access_log": [_refused_names()]}


def _refused_names() -> Json:
    """A line on standard output for each connection that was closed because of its SNI: for the ledger."""
    line = {"session": "%FILTER_STATE(stockade.session:PLAIN)%", "name": "%REQUESTED_SERVER_NAME%"}
    return {
        **typed("envoy.access_loggers.stdout", "extensions.access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": line}),
        "filter": {
            "extension_filter": typed(
                "envoy.access_loggers.extension_filters.cel",
                "extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                expression="has(connection.termination_details)",
            )
        },
    }


def _call(function: str, *arguments: Json, target: Json | None = None) -> Json:
    """A node of a CEL expression, as a tree (google/api/expr/v1alpha1/syntax.proto)."""
    return {"call_expr": {"function": function, "args": list(arguments), **({"target": target} if target else {})}}


def _select(name: str, field: str) -> Json:
    return {"select_expr": {"operand": {"ident_expr": {"name": name}}, "field": field}}


def _state(key: str) -> Json:
    """A value of the filter state, which comes as bytes, as text."""
    return _call("string", _call("_[_]", {"ident_expr": {"name": "filter_state"}}, {"const_expr": {"string_value": key}}))
