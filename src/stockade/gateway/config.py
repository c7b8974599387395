"""Envoy's bootstrap as a pure function (Envoy 1.40 API reference, v3). Nothing in it is secret and nothing in it depends on grants.

Listeners on Unix sockets, one for each way in (`proxy.sock`, `http.sock`, `https.sock`), take PROXY v2 from the doorman. A CONNECT tunnel re-enters
through the internal listener `tunnel`. Every request asks the brain over `brain.sock` (leaves come over `certificates.sock`), and over `reader.sock` a second time where the
brain wants to read the body first. Upstream there are only two
clusters, and both go to the one address that the brain returned for that request (ORIGINAL_DST with a metadata key).
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

# Facts that the brain needs and a client must not be able to say.
# INVARIANT: every one is overwritten before the brain is asked, and removed before anything goes upstream.
FACTS = {
    "x-stockade-session": "%FILTER_STATE(stockade.session:PLAIN)%",
    "x-stockade-connect": "%FILTER_STATE(stockade.connect:PLAIN)%",
    "x-stockade-sni": "%REQUESTED_SERVER_NAME%",
    "x-stockade-destination": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "x-stockade-length": "%REQ(content-length)%",
    "x-stockade-scheme": "%REQ(:SCHEME)%",
    "x-stockade-method": "%REQ(:METHOD)%",
    "x-stockade-way": "",  # which listener, filled in by each
}
UPSTREAM = "x-stockade-upstream"  # the brain's answer: the address to connect to
READ = "x-stockade-read"  # the brain's answer: read the body, then ask again
NOWHERE = "0.0.0.0:1"
MAX_BUFFERED = 32 << 20  # bytes of a body that the brain reads; more is refused with 413
MAX_HEADERS_KIB = 64
IDLE = "1800s"  # a model may think for minutes before its first byte
_T = "type.googleapis.com/envoy."
_EXT_AUTHZ = "envoy.filters.http.ext_authz"  # the name also names the metadata that the filter writes
_WHOLE = {"max_request_bytes": MAX_BUFFERED, "allow_partial_message": False, "pack_as_bytes": True}
# Small bodies come with the first question: it saves the second, and a client that has sent everything reads a refusal in peace (over HTTP/2 an answer
# to half a request comes with a reset, and curl before 8.0 then shows nothing else).
_SMALL = {"max_request_bytes": 64 << 10, "allow_partial_message": True, "pack_as_bytes": True}


def _typed(name: str, kind: str, **fields: Any) -> Json:
    return {"name": name, "typed_config": {"@type": _T + kind, **fields}}


def bootstrap(*, directory: str, upstream_ca: str, injected: tuple[str, ...]) -> Json:
    """The whole configuration.

    `directory` holds the Unix sockets; `upstream_ca` is a PEM file of trusted roots; `injected` are the names of headers that the brain may set.
    """
    ways = {
        "proxy": [_chain(_manager("proxy", [_connect_route(), *_routes("plain")], injected, proxy=True))],
        "http": [_chain(_manager("http", _routes("plain"), injected))],
        "https": [_chain(_manager("https", _routes("tls"), injected), tls=True)],
    }
    listeners = [_listener(way, directory, chains, inspect_tls=way == "https") for way, chains in ways.items()]
    listeners.append(_tunnel(injected))
    return {
        "node": {"id": "gate", "cluster": "gate"},
        "static_resources": {
            "listeners": listeners,
            "clusters": [*_brains(directory), _tunnel_cluster(), _origin("plain"), _origin("tls", upstream_ca)],
        },
        "bootstrap_extensions": [_typed("envoy.bootstrap.internal_listener", "extensions.bootstrap.internal_listener.v3.InternalListener")],
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {"re2.max_program_size.error_level": 1000}}]},
        "stats_config": {"stats_matcher": {"reject_all": True}},
    }


def _listener(way: str, directory: str, chains: list[Json], *, inspect_tls: bool) -> Json:
    proxy_protocol = _typed(
        "envoy.filters.listener.proxy_protocol",
        "extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        tlv_location="FILTER_STATE",
        rules=[{"tlv_type": 0xE0, "on_tlv_present": {"key": "session"}}],
    )
    filters = [proxy_protocol, _tls_inspector()] if inspect_tls else [proxy_protocol]
    return {
        "name": way,
        "address": {"pipe": {"path": f"{directory}/{way}.sock", "mode": 0o600}},
        "listener_filters": filters,
        "listener_filters_timeout": "15s",
        "filter_chains": chains,
    }


def _tunnel(injected: tuple[str, ...]) -> Json:
    """What comes out of a CONNECT tunnel: TLS, or plain HTTP for clients that tunnel it; anything else matches no chain and is closed."""
    plain = _chain(_manager("tunnel-plain", _routes("plain"), injected, inner=True))
    plain["filter_chain_match"] = {"transport_protocol": "raw_buffer", "application_protocols": ["http/1.1"]}
    return {
        "name": "tunnel",
        "internal_listener": {},
        "listener_filters": [
            _tls_inspector(),
            _typed("envoy.filters.listener.http_inspector", "extensions.filters.listener.http_inspector.v3.HttpInspector"),
        ],
        "listener_filters_timeout": "15s",
        "filter_chains": [_chain(_manager("tunnel", _routes("tls"), injected, inner=True), tls=True), plain],
    }


def _tls_inspector() -> Json:
    return _typed("envoy.filters.listener.tls_inspector", "extensions.filters.listener.tls_inspector.v3.TlsInspector")


def _chain(manager: Json, *, tls: bool = False) -> Json:
    chain: Json = {"filters": [manager]}
    if tls:
        chain["filter_chain_match"] = {"transport_protocol": "tls"}
        chain["transport_socket"] = _leaves()
        chain["transport_socket_connect_timeout"] = "15s"
    return chain


def _leaves() -> Json:
    """TLS towards the sandbox: the brain mints a leaf for the name asked for (SDS over REST), and a leaf for no name at all where nothing is granted."""
    selector = _typed(
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
        certificate_mapper=_typed("sni", "extensions.transport_sockets.tls.cert_mappers.sni.v3.SNI", default_value="*"),
    )
    return _typed(
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


def _manager(name: str, routes: list[Json], injected: tuple[str, ...], *, proxy: bool = False, inner: bool = False) -> Json:
    filters = [] if inner else [_identity(proxy)]
    filters += [
        _facts(name),
        *([_ask_connect()] if proxy else []),
        _authorise("brain", injected),
        _authorise("reader", injected),
        _strip(),
        _typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router", suppress_envoy_headers=True),
    ]
    return _typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
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
        route_config={"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": routes}]},
    )


def _identity(proxy: bool) -> Json:
    """Who is calling: which socket it came in on, as the doorman said. Handed on to what comes out of a tunnel."""
    states = {"stockade.session": "%FILTER_STATE(envoy.network.proxy_protocol.tlv:FIELD:session)%"}
    if proxy:
        states["stockade.connect"] = "%REQ(:METHOD)% %REQ(:AUTHORITY)%"
    objects = [
        {
            "object_key": key,
            # INVARIANT: hashable. Connections to the tunnel are pooled by these values; with plain strings the second tunnel would inherit the
            # first one's session and target.
            "factory_key": "envoy.hashable_string",
            "format_string": {"text_format_source": {"inline_string": text}},
            "shared_with_upstream": "ONCE",
        }
        for key, text in states.items()
    ]
    return _typed("identity", "extensions.filters.http.set_filter_state.v3.Config", on_request_headers=objects)


def _facts(way: str) -> Json:
    mutations: list[Json] = [{"remove": name} for name in ("x-forwarded-proto", *FACTS)]  # an empty value is not written, so remove first
    mutations.append({"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}})
    mutations += [_overwrite(name, value or way) for name, value in FACTS.items()]
    return _typed("facts", "extensions.filters.http.header_mutation.v3.HeaderMutation", mutations={"request_mutations": mutations})


def _strip() -> Json:
    removals = [{"remove": name} for name in (*FACTS, UPSTREAM)]
    return _typed("strip", "extensions.filters.http.header_mutation.v3.HeaderMutation", mutations={"request_mutations": removals})


def _authorise(who: str, injected: tuple[str, ...]) -> Json:
    """Ask the brain; the `reader` only where the first answer wanted that, and with the whole body. Both write the same metadata, so the last one counts."""
    only_if_wanted = {
        "filter_enabled_metadata": {"filter": _EXT_AUTHZ, "path": [{"key": READ}], "value": {"string_match": {"exact": "1"}}},
        "with_request_body": _WHOLE,
    }
    first = {"with_request_body": _SMALL}
    return _typed(
        _EXT_AUTHZ,
        "extensions.filters.http.ext_authz.v3.ExtAuthz",
        **(only_if_wanted if who == "reader" else first),
        transport_api_version="V3",
        failure_mode_allow=False,
        status_on_error={"code": "ServiceUnavailable"},
        allowed_headers={"patterns": [{"safe_regex": {"regex": ".*"}}]},
        http_service={
            "server_uri": {"uri": f"http://{who}", "cluster": who, "timeout": "20s"},
            "authorization_response": {
                # Envoy refuses an empty list; without credentials there is nothing to inject, and this name is never sent.
                "allowed_upstream_headers": {
                    "patterns": [{"exact": name.lower()} for name in sorted(set(injected)) or ["x-stockade-none"]]
                },
                "allowed_client_headers": {"patterns": [{"exact": "content-type"}, {"exact": "x-stockade-rule"}]},
                "dynamic_metadata_from_headers": {"patterns": [{"exact": UPSTREAM}, {"exact": READ}]},
            },
        },
    )


def _connect_route() -> Json:
    kind = _T + "extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"
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
    return _typed("envoy.filters.http.lua", "extensions.filters.http.lua.v3.Lua", default_source_code=source)


def _overwrite(name: str, value: str) -> Json:
    return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def _routes(origin: str) -> list[Json]:
    """Bodies whose length nobody announced are read before the first question; others stream, but for their beginning, unless the brain wants them."""
    action = {"cluster": f"origin-{origin}", "timeout": "0s"}
    kind = _T + "extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"
    no_length = {"prefix": "/", "headers": [{"name": "content-length", "present_match": False}]}
    read = {_EXT_AUTHZ: {"@type": kind, "check_settings": {"with_request_body": _WHOLE}}}
    return [{"match": no_length, "route": action, "typed_per_filter_config": read}, {"match": {"prefix": "/"}, "route": action}]


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
    limits = {"thresholds": [{"max_connections": 256, "max_pending_requests": 4096, "max_requests": 4096}]}
    return [
        _cluster(name, {"pipe": {"path": f"{directory}/{name}.sock"}}, circuit_breakers=limits)
        for name in ("brain", "reader", "certificates")
    ]


def _tunnel_cluster() -> Json:
    raw = _typed("envoy.transport_sockets.raw_buffer", "extensions.transport_sockets.raw_buffer.v3.RawBuffer")
    socket = _typed(
        "envoy.transport_sockets.internal_upstream",
        "extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        transport_socket=raw,
    )
    return _cluster("tunnel", {"envoy_internal_address": {"server_listener_name": "tunnel"}}, transport_socket=socket)


def _origin(kind: str, upstream_ca: str = "") -> Json:
    """The way out: the address comes with each decision; TLS is verified against the name that was granted (auto SNI and SAN from the authority)."""
    options: Json = {
        "@type": _T + "extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": "60s"},
    }
    cluster: Json = {
        "name": f"origin-{kind}",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "original_dst_lb_config": {"metadata_key": {"key": _EXT_AUTHZ, "path": [{"key": UPSTREAM}]}},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }
    if upstream_ca:
        options["upstream_http_protocol_options"] = {"auto_sni": True, "auto_san_validation": True}
        cluster["transport_socket"] = _typed(
            "envoy.transport_sockets.tls",
            "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            common_tls_context={
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                "validation_context": {"trusted_ca": {"filename": upstream_ca}},
            },
        )
    return cluster
