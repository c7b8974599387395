"""Envoy's bootstrap as a pure function (Envoy 1.40 API reference, v3). Nothing in it is secret, and nothing depends on grants or sessions: one serves any number.

Listeners on Unix sockets, one for each way in (`proxy.sock`, `http.sock`, `https.sock`), take PROXY v2 from the doorman. A CONNECT tunnel re-enters through the
internal listener `tunnel`, and all TLS is ended in the internal listener `tls`, which is reached only by connections whose SNI is the name that they may ask for:
that of the tunnel, or the one for which the address they went to was given out. Every request asks the brain over `brain.sock` (leaves come over
`certificates.sock`), and over `reader.sock` a second time where the brain wants to read the body first. Where a grant bounds what passes, it is counted
(meter.py). The clusters that lead upstream (origins.py) go to the one address that the brain returned for that request.
"""

from __future__ import annotations

import re
from typing import Any

from stockade.gateway import meter, origins, rooms
from stockade.gateway.envoy import BEFORE, CONNECTION, HERE, SESSION, Json, T, remember, typed
from stockade.gateway.proxy_protocol import CONNECTION_TLV, NAME_TLV, SESSION_TLV
from stockade.gateway.sni import check_sni
from stockade.gateway.target import TARGET, retarget

# Facts that the brain needs and a client must not be able to say.
# INVARIANT: every one is overwritten before the brain is asked, and removed before anything goes upstream.
SESSION_FACT, CONNECTION_FACT = "x-stockade-session", "x-stockade-connection"
FACTS = {
    SESSION_FACT: "%FILTER_STATE(stockade.session:PLAIN)%",
    "x-stockade-connect": "%FILTER_STATE(stockade.connect:PLAIN)%",
    "x-stockade-sni": "%REQUESTED_SERVER_NAME%",
    CONNECTION_FACT: "",  # what the doorman calls it, and what is spoken on it and in it, filled in by each listener
    "x-stockade-destination": "",  # where the connection went, filled in by each listener
    "x-stockade-length": "%REQ(content-length)%",
    "x-stockade-scheme": "%REQ(:SCHEME)%",
    "x-stockade-method": "%REQ(:METHOD)%",
    "x-stockade-way": "",  # how it came in, filled in by each listener
    "x-stockade-body": "shown",  # "unread" where the question holds nothing of a body, filled in by the route
}
UPSTREAM = "x-stockade-upstream"  # the brain's answer: the address to connect to
READ = "x-stockade-read"  # the brain's answer: read the body, then ask again; and the name of the room that it takes (rooms.py)
SEAT = "x-stockade-seat"  # the brain's answer: the name of the seat that the request takes (rooms.py)
NOWHERE = "0.0.0.0:1"
ENGINE_HEADERS = (":", "content-", "x-envoy-", "x-stockade-")  # beginnings of headers in answers to questions that are not for upstream
MAX_BUFFERED = 32 << 20  # bytes of a body that the brain reads; more is refused with 413
SHOWN_FIRST = 64 << 10  # bytes of a body that come with the first question: if fewer came, they are all of it
MAX_HEADERS_KIB = 64
ANSWER = "660s"  # the second question may wait for a person, who has ten minutes at most; the first one is never asked of anybody
IDLE = "1800s"  # a model may think for minutes before its first byte
_TLVS = ((SESSION_TLV, "session"), (NAME_TLV, "name"), (CONNECTION_TLV, "connection"))
_RUNTIME = {
    "re2.max_program_size.error_level": 1000,
    # An internal listener that closes after its answer (Connection: close) would look like a reset to the one before it, which then drops the answer.
    "envoy.reloadable_features.enable_send_rst_on_user_space_socket": False,
}
_EXT_AUTHZ = "envoy.filters.http.ext_authz"  # the name also names the metadata that the filter writes
_WHOLE = {"max_request_bytes": MAX_BUFFERED, "allow_partial_message": False, "pack_as_bytes": True}
# Small bodies come with the first question: it saves the second, and a client that has sent everything reads a refusal in peace (over HTTP/2 an answer
# to half a request comes with a reset, and curl before 8.0 then shows nothing else).
_SMALL = {"max_request_bytes": SHOWN_FIRST, "allow_partial_message": True, "pack_as_bytes": True}


def bootstrap(*, directory: str, upstream_ca: str) -> Json:
    """The whole configuration. `directory` holds the Unix sockets; `upstream_ca` is a PEM file of trusted roots."""
    proxy = _chain(_manager("proxy", HERE, [_connect_route(), *_routes("plain")], proxy=True))
    http = _chain(_manager("http", HERE, _routes("plain")))
    listeners = [
        _listener("proxy", directory, proxy),
        _listener("http", directory, http),
        _listener("https", directory, *check_sni("https")),
    ]
    listeners += [_tunnel(), _tls()]
    return {
        "node": {"id": "gate", "cluster": "gate"},
        "static_resources": {
            "listeners": listeners,
            "clusters": [*_brains(directory), _internal("tunnel"), _internal("tls"), *origins.clusters(upstream_ca, _EXT_AUTHZ, UPSTREAM)],
        },
        "bootstrap_extensions": [typed("envoy.bootstrap.internal_listener", "extensions.bootstrap.internal_listener.v3.InternalListener")],
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _RUNTIME}]},
        "overload_manager": rooms.overload(),
        "stats_config": {"stats_matcher": {"reject_all": True}},
    }


def _listener(way: str, directory: str, chain: Json, log: Json | None = None) -> Json:
    proxy_protocol = typed(
        "envoy.filters.listener.proxy_protocol",
        "extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        tlv_location="FILTER_STATE",
        rules=[{"tlv_type": tlv, "on_tlv_present": {"key": key}} for tlv, key in _TLVS],
    )
    filters = [proxy_protocol, _tls_inspector()] if "filter_chain_match" in chain else [proxy_protocol]
    return {
        "name": way,
        "address": {"pipe": {"path": f"{directory}/{way}.sock", "mode": 0o600}},
        "listener_filters": filters,
        "listener_filters_timeout": "15s",
        "filter_chains": [chain],
        **(log or {}),
    }


def _tunnel() -> Json:
    """What comes out of a CONNECT tunnel: TLS, or plain HTTP for clients that tunnel it; anything else matches no chain and is closed."""
    plain = _chain(_manager("tunnel-plain", BEFORE, _routes("plain"), inner=True))
    plain["filter_chain_match"] = {"transport_protocol": "raw_buffer", "application_protocols": ["http/1.1", "h2c"]}
    checked, log = check_sni("tunnel")
    return {
        "name": "tunnel",
        "internal_listener": {},
        "listener_filters": [
            _tls_inspector(),
            typed("envoy.filters.listener.http_inspector", "extensions.filters.listener.http_inspector.v3.HttpInspector"),
        ],
        "listener_filters_timeout": "15s",
        "filter_chains": [checked, plain],
        **log,
    }


def _tls() -> Json:
    """Where TLS ends, whichever way it came."""
    chain = _chain(_manager("%FILTER_STATE(stockade.way:PLAIN)%", BEFORE, _routes("tls"), inner=True))
    return {
        "name": "tls",
        "internal_listener": {},
        "listener_filters": [_tls_inspector()],
        "listener_filters_timeout": "15s",
        "filter_chains": [
            {
                **chain,
                "filter_chain_match": {"transport_protocol": "tls"},
                "transport_socket": _leaves(),
                "transport_socket_connect_timeout": "15s",
            }
        ],
    }


def _tls_inspector() -> Json:
    return typed("envoy.filters.listener.tls_inspector", "extensions.filters.listener.tls_inspector.v3.TlsInspector")


def _chain(manager: Json) -> Json:
    return {"filters": [manager]}


def _leaves() -> Json:
    """TLS towards the sandbox: the brain mints a leaf for the name asked for (SDS over REST)."""
    selector = typed(
        "envoy.tls.certificate_selectors.on_demand_secret",
        "extensions.transport_sockets.tls.cert_selectors.on_demand_secret.v3.Config",
        config_source={
            "resource_api_version": "V3",
            "initial_fetch_timeout": "5s",
            "api_config_source": {
                "api_type": "REST",
                "transport_api_version": "V3",
                "cluster_names": ["certificates"],
                "refresh_delay": "86400s",
                "request_timeout": "5s",
            },
        },
        certificate_mapper=typed("sni", "extensions.transport_sockets.tls.cert_mappers.sni.v3.SNI", default_value="*"),
    )
    return typed(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        disable_stateless_session_resumption=True,  # required by on_demand_secret
        disable_stateful_session_resumption=True,
        common_tls_context={
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "custom_tls_certificate_selector": selector,
        },
    )


def _manager(way: str, destination: str, routes: list[Json], *, proxy: bool = False, inner: bool = False) -> Json:
    filters = [] if inner else [_identity(proxy)]
    connection = "%FILTER_STATE(stockade.connection:PLAIN)%" if inner else CONNECTION
    filters += [
        _facts({"x-stockade-way": way, "x-stockade-destination": destination, CONNECTION_FACT: f"{connection} %PROTOCOL%"}),
        *([_ask_connect()] if proxy else []),
        _authorise("brain"),
        _authorise("reader"),
        *meter.filters(_EXT_AUTHZ, tuple(FACTS)),
        retarget(_EXT_AUTHZ),
        _strip(),
        typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router", suppress_envoy_headers=True),
    ]
    return typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="gate",
        codec_type="AUTO",
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        strip_trailing_host_dot=True,
        server_header_transformation="PASS_THROUGH",
        generate_request_id=False,
        skip_xff_append=True,
        max_request_headers_kb=MAX_HEADERS_KIB,
        stream_idle_timeout=IDLE,
        request_headers_timeout="30s",
        common_http_protocol_options={"idle_timeout": IDLE, "max_headers_count": 100, "headers_with_underscores_action": "DROP_HEADER"},
        # Python before 3.12 sends CONNECT with HTTP/1.0. Only the explicit proxy takes it; what it asks for is judged like everything else.
        http_protocol_options={"allow_chunked_length": False, "accept_http_10": proxy},
        http2_protocol_options={
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 1 << 20,
            "initial_connection_window_size": 4 << 20,
        },
        # An upgrade that no grant is for is refused before it gets here; without this Envoy would answer 403 itself.
        upgrade_configs=[{"upgrade_type": "websocket"}],
        http_filters=filters,
        access_log=[rooms.ended(_EXT_AUTHZ, READ, "room"), rooms.ended(_EXT_AUTHZ, SEAT, "seat")],
        route_config={"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": routes}]},
    )


def _identity(proxy: bool) -> Json:
    """Who is calling: which socket it came in on, as the doorman said. Handed on to what comes out of a tunnel."""
    session, states = remember({"stockade.session": SESSION}, "TRANSITIVE"), {}
    if proxy:
        states["stockade.connect"] = "%REQ(:METHOD)% %REQ(:AUTHORITY)%"
        states["stockade.destination"] = HERE
        states["stockade.connection"] = f"{CONNECTION} %PROTOCOL%"
    return typed("identity", "extensions.filters.http.set_filter_state.v3.Config", on_request_headers=[*session, *remember(states)])


def _facts(own: dict[str, str]) -> Json:
    mutations: list[Json] = [{"remove": name} for name in ("x-forwarded-proto", *FACTS)]  # an empty value is not written, so remove first
    mutations.append({"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}})
    mutations += [_overwrite(name, value) for name, value in (FACTS | own).items()]
    return typed("facts", "extensions.filters.http.header_mutation.v3.HeaderMutation", mutations={"request_mutations": mutations})


def _strip() -> Json:
    """Nothing of ours goes upstream, and no trailers of a request: nobody has judged them."""
    mutations = {
        "request_mutations": [{"remove": name} for name in (*FACTS, UPSTREAM, READ, SEAT, TARGET)],
        "request_trailers_mutations": [{"remove_on_match": {"key_matcher": {"safe_regex": {"regex": ".*"}}}}],
    }
    return typed("strip", "extensions.filters.http.header_mutation.v3.HeaderMutation", mutations=mutations)


def _authorise(who: str) -> Json:
    """Ask the brain; the `reader` only where the first answer wanted that, and with the whole body. Both write the same metadata, so the last one counts."""
    only_if_wanted = {
        "filter_enabled_metadata": {"filter": _EXT_AUTHZ, "path": [{"key": READ}], "value": {"present_match": True}},
        "with_request_body": _WHOLE,
    }
    first = {"with_request_body": _SMALL}
    return typed(
        _EXT_AUTHZ,
        "extensions.filters.http.ext_authz.v3.ExtAuthz",
        **(only_if_wanted if who == "reader" else first),
        transport_api_version="V3",
        failure_mode_allow=False,
        status_on_error={"code": "ServiceUnavailable"},
        allowed_headers={"patterns": [{"safe_regex": {"regex": ".*"}}]},
        http_service={
            "server_uri": {"uri": f"http://{who}", "cluster": who, "timeout": ANSWER if who == "reader" else "20s"},
            "authorization_response": {
                # What the brain adds to an allow are credentials' headers, whatever their names; the rest of its answer is for the engine.
                "allowed_upstream_headers": {"patterns": [{"safe_regex": {"regex": _unless(*ENGINE_HEADERS)}}]},
                "allowed_client_headers": {"patterns": [{"exact": "content-type"}, {"exact": "x-stockade-rule"}]},
                "dynamic_metadata_from_headers": {"patterns": [{"exact": name} for name in (UPSTREAM, READ, SEAT, TARGET, meter.BOUNDS)]},
            },
        },
    )


def _unless(*prefixes: str) -> str:
    """A regular expression (RE2, whole match) of every text that begins with none of these."""
    found = []
    for place in range(max(map(len, prefixes))):
        for start in sorted({prefix[:place] for prefix in prefixes if len(prefix) > place}):
            if not any(start.startswith(prefix) for prefix in prefixes):
                after = "".join(sorted({prefix[place] for prefix in prefixes if prefix.startswith(start) and len(prefix) > place}))
                found.append(f"{re.escape(start)}([^{re.escape(after)}].*)?")
    return "|".join(found)


def _connect_route() -> Json:
    kind = T + "extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"
    return {
        "match": {"connect_matcher": {}},
        "route": {"cluster": "tunnel", "timeout": "0s", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
        "typed_per_filter_config": {_EXT_AUTHZ: {"@type": kind, "disabled": True}},
    }


# Envoy's HTTP client cannot ask a question with the method CONNECT, so a script asks it as a GET. This only refuses early and in words: were it skipped, the tunnel
# would still lead nowhere but to the internal listener, where every request is asked about.
_ASK_CONNECT = """
function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":method") ~= "CONNECT" then return end
  local question = {[":method"] = "GET", [":path"] = "/", [":authority"] = headers:get(":authority")}
  for _, name in ipairs({FACTS}) do question[name] = headers:get(name) end
  local answer, body = handle:httpCall("brain", question, "", 20000)
  if answer[":status"] ~= "200" then
    local status = answer[":status"] == "403" and "403" or "503"
    handle:respond({[":status"] = status, ["content-type"] = "text/plain", ["x-stockade-rule"] = answer["x-stockade-rule"]}, body)
  end
end
"""


def _ask_connect() -> Json:
    names = ", ".join(f'"{name}"' for name in FACTS)
    source = {"inline_string": _ASK_CONNECT.replace("FACTS", names)}
    return typed("envoy.filters.http.lua", "extensions.filters.http.lua.v3.Lua", default_source_code=source)


def _overwrite(name: str, value: str) -> Json:
    return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def _routes(origin: str) -> list[Json]:
    """The beginning of a body comes with the first question, and the rest streams unless the brain wants to read it.

    Not so with gRPC calls that announce no length: they stream from their first byte, since a client may wait for an answer before it sends more.
    """
    authz = T + "extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"
    facts = T + "extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute"
    unread = {
        _EXT_AUTHZ: {"@type": authz, "check_settings": {"disable_request_body_buffering": True}},
        "facts": {"@type": facts, "mutations": {"request_mutations": [_overwrite("x-stockade-body", "unread")]}},
    }

    def route(cluster: str, settings: Json | None = None, **match: Any) -> Json:
        found: Json = {"match": {"prefix": "/", **match}, "route": {"cluster": cluster, "timeout": "0s"}}
        return {**found, "typed_per_filter_config": settings} if settings else found

    upgrade = {"name": "upgrade", "present_match": True}
    no_length = {"name": "content-length", "present_match": False}
    one, two = ("origin-plain", "origin-plain-2") if origin == "plain" else ("origin-tls-1", "origin-tls")
    usual = "origin-plain" if origin == "plain" else "origin-tls"
    return [
        route(two, unread, headers=[no_length], grpc={}),
        route(two, grpc={}),
        route(one, headers=[no_length, upgrade]),
        route(usual),
    ]


def _cluster(name: str, address: Json, **fields: Any) -> Json:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        **fields,
    }


def _brains(directory: str) -> list[Json]:
    """A socket each, so that nothing a client writes into a question can make it look like another kind of question."""
    # A question that waits for somebody keeps its connection meanwhile.
    limits = {"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096}
    # INVARIANT: a question of the meter is never turned away at once: the script that asks it would ask again, and again.
    waiting = {"max_connections": 64, "max_pending_requests": 1 << 30, "max_requests": 1 << 30}
    each = {"brain": limits, "reader": limits, "meter": waiting, "certificates": limits}
    return [
        _cluster(name, {"pipe": {"path": f"{directory}/{name}.sock"}}, circuit_breakers={"thresholds": [bounds]})
        for name, bounds in each.items()
    ]


def _internal(listener: str) -> Json:
    raw = typed("envoy.transport_sockets.raw_buffer", "extensions.transport_sockets.raw_buffer.v3.RawBuffer")
    socket = typed(
        "envoy.transport_sockets.internal_upstream",
        "extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        transport_socket=raw,
    )
    return _cluster(listener, {"envoy_internal_address": {"server_listener_name": listener}}, transport_socket=socket)
