"""The ways out: Envoy's clusters that lead upstream (ORIGINAL_DST with a metadata key).

INVARIANT: each takes its address from the brain's answer, and from nowhere else. Connections that are open go on to serve requests to the same address and
name, of the same session only: its name is part of what they are kept by (filter state that is shared upstream, envoy.py).
"""

from __future__ import annotations

from stockade.gateway.envoy import Json, T, typed
from stockade.gateway.rooms import SEATS


def clusters(upstream_ca: str, answers: str, key: str) -> list[Json]:
    """All of them. `upstream_ca` is a PEM file of trusted roots; the address stands under `key` in the metadata that the brain's `answers` become.

    TLS speaks what the server prefers (ALPN), but HTTP/1.1 where a connection is to be upgraded; plain HTTP/2 is for gRPC.
    """
    one: Json = {"http_protocol_options": {}}
    # The windows are what a server may send ahead of a client that does not read: room for a far one to be fast, and a bound of the engine's memory.
    # INVARIANT: a connection has room for the windows of all its streams twice, so that clients that do not read hold up no other that shares it: the engine
    # gives room back when half of a window has been read, and what the others hold must leave that much.
    streams, window = 4, 4 << 20
    two: Json = {
        "http2_protocol_options": {
            "max_concurrent_streams": streams,
            "initial_stream_window_size": window,
            "initial_connection_window_size": 2 * streams * window,
        }
    }
    address = {"key": answers, "path": [{"key": key}]}
    return [
        _cluster("origin-plain", {"explicit_http_config": one}, address),
        _cluster("origin-plain-2", {"explicit_http_config": two}, address),
        _cluster("origin-tls", {"auto_config": {**one, **two}}, address, upstream_ca),
        _cluster("origin-tls-1", {"explicit_http_config": one}, address, upstream_ca),
    ]


def _cluster(name: str, protocol: Json, address: Json, upstream_ca: str = "") -> Json:
    """TLS is verified against the name that was granted (auto SNI and SAN from the authority)."""
    options: Json = {
        "@type": T + "extensions.upstreams.http.v3.HttpProtocolOptions",
        **protocol,
        "common_http_protocol_options": {"idle_timeout": "60s"},
    }
    cluster: Json = {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        # INVARIANT: there are never more requests than seats, so that nobody's are turned away here because of somebody else's. Of connections that
        # are kept there may be more.
        "circuit_breakers": {"thresholds": [{"max_connections": SEATS, "max_pending_requests": 1 << 30, "max_requests": 1 << 30}]},
        "original_dst_lb_config": {"metadata_key": address},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }
    if upstream_ca:
        options["upstream_http_protocol_options"] = {"auto_sni": True, "auto_san_validation": True}
        tls = {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "validation_context": {"trusted_ca": {"filename": upstream_ca}},
        }
        kind = "extensions.transport_sockets.tls.v3.UpstreamTlsContext"
        cluster["transport_socket"] = typed("envoy.transport_sockets.tls", kind, common_tls_context=tls)
    return cluster
