"""Counting what passes (Envoy's Lua filter), for grants that bound an answer, or the body of a request that nobody announced the length of.

The brain says with its answer how much may pass. A script cannot reset a stream, but it can hold it: not a byte more passes, in either direction, while the brain has
the connection cut. So a client never takes a part for the whole. An answer that announces too much never begins: another stands in its place.
"""

from __future__ import annotations

from stockade.gateway.envoy import Json, typed

# The brain's answer: "UP DOWN", the most bytes of the request's body and of the answer's; 0 = not to be counted.
BOUNDS = "x-stockade-bounds"
PASSED = "x-stockade-passed"  # the engine's question: which of the two has been passed, "upload" or "download"
ANNOUNCED = "x-stockade-announced"  # the engine's question: the length of an answer that has not begun
_MARK = "x-stockade-too-large"  # on such an answer, inside the engine
_METER = "stockade.meter"  # metadata: what the script keeps of a request until its answer comes

_TEXT = """\
stockade refused this answer: download-too-large
It is larger than what was granted (max_download), and nothing of it has passed.
"""
# The loop in `count` ends with the stream. A chunk that was too much, and what comes after it, waits in the engine, which stops reading when its buffer is full.
_SCRIPT = """
local function count(handle, most, question)
  local seen = 0
  for chunk in handle:bodyChunks() do
    seen = seen + chunk:length()
    while seen > most do handle:httpCall("meter", question, "", 60000) end
  end
end

function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local said = (metadata:get("ANSWERS") or {})["BOUNDS"]
  if not said then return end
  local up, down = string.match(said, "^(%d+) (%d+)$")
  local headers = handle:headers()
  local question = {[":method"] = "GET", [":path"] = headers:get(":path"), [":authority"] = headers:get(":authority")}
  for _, name in ipairs({FACTS}) do question[name] = headers:get(name) end
  question["PASSED"] = "download"
  metadata:set("METER", "question", question)
  metadata:set("METER", "down", down)
  question["PASSED"] = "upload"
  if up ~= "0" then count(handle, tonumber(up), question) end
end

function envoy_on_response(handle)
  local kept = handle:streamInfo():dynamicMetadata():get("METER")
  if not kept or kept["down"] == "0" then return end
  local question, down = kept["question"], tonumber(kept["down"])
  local headers = handle:headers()
  local announced = headers:get("content-length")
  local bodiless = question["x-stockade-method"] == "HEAD" or headers:get(":status") == "304"
  if announced and not bodiless and (tonumber(announced) or math.huge) > down then
    question["ANNOUNCED"] = announced
    handle:httpCall("meter", question, "", 20000)
    handle:headers():add("MARK", announced)
  else
    count(handle, down, question)
  end
end
"""


def filters(answers: str, facts: tuple[str, ...]) -> list[Json]:
    """The two filters: they stand between the questions to the brain and the router. `answers` names the metadata that the brain's answers become, `facts` are
    the headers that say whose request it is and how it came."""
    return [_instead(), _counting(answers, facts)]


def _counting(answers: str, facts: tuple[str, ...]) -> Json:
    script = _SCRIPT.replace("FACTS", ", ".join(f'"{name}"' for name in facts))
    words = {"ANSWERS": answers, "BOUNDS": BOUNDS, "PASSED": PASSED, "ANNOUNCED": ANNOUNCED, "MARK": _MARK, "METER": _METER}
    for word, text in words.items():
        script = script.replace(word, text)
    return typed("meter", "extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": script}, clear_route_cache=False)


def _instead() -> Json:
    """What stands in the place of an answer that announces too much. Answers come here after they have been through the filter that marks them."""
    local = typed(
        "instead",
        "extensions.http.custom_response.local_response_policy.v3.LocalResponsePolicy",
        status_code=502,
        body_format={"text_format_source": {"inline_string": _TEXT}},
        response_headers_to_add=[{"header": {"key": "x-stockade-rule", "value": "download-too-large"}}],
    )
    mark = typed("mark", "type.matcher.v3.HttpResponseHeaderMatchInput", header_name=_MARK)
    marked = {"single_predicate": {"input": mark, "value_match": {"safe_regex": {"google_re2": {}, "regex": ".+"}}}}
    matcher = {"matcher_list": {"matchers": [{"predicate": marked, "on_match": {"action": local}}]}}
    return typed("instead", "extensions.filters.http.custom_response.v3.CustomResponse", custom_response_matcher=matcher)
