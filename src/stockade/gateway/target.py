"""Writes the path and query that the brain answered over the request's own, where a credential goes into the query.

Nothing else of Envoy's does that from an answer of ext_authz over HTTP: header mutations may not touch `:path`, and a route's `path_rewrite` appends the old
query. Were this skipped, the placeholder would go out, never the secret.
"""

from __future__ import annotations

from stockade.gateway.envoy import Json, typed

TARGET = "x-stockade-target"  # the brain's answer: the path and query to send
_SCRIPT = """
function envoy_on_request(handle)
  local answer = handle:streamInfo():dynamicMetadata():get("METADATA")
  local target = answer and answer["TARGET"]
  if target then handle:headers():replace(":path", target) end
end
"""


def retarget(metadata: str) -> Json:
    """The filter; `metadata` is where the answer stands. The route is chosen before, and stays."""
    source = {"inline_string": _SCRIPT.replace("METADATA", metadata).replace("TARGET", TARGET)}
    return typed("retarget", "extensions.filters.http.lua.v3.Lua", default_source_code=source, clear_route_cache=False)
