"""May this request leave? One pure function over the request, the grants, the names of the credentials, and what the session has used.

Laws (tests/checks/test_grants.py): nothing is allowed without a grant; a deny grant beats every allow; order and duplicates never matter; adding an
allow grant never turns an allow into a deny; having used more never turns a deny into an allow; a suggested grant covers the host, port, method,
path and query that it was suggested for.
Request headers are an allowlist: a list of bad credential headers always misses one.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Literal

from stockade.checks import bodies, push, sigv4, streams
from stockade.checks.constraints import body_refused, content_type_refused, parameter_refused, unlisted_value
from stockade.checks.credentials import CREDENTIAL_HEADERS, CREDENTIAL_PARAMETERS, CredentialInUse, strayed, token_refused, without_own
from stockade.checks.normalise import Ambiguous, normalise_host, normalise_path, query_names, without_parameters
from stockade.checks.patterns import ANY, host_matches, path_matches
from stockade.checks.tokens import FOREIGN, REVOKED
from stockade.checks.usage import FRESH, State, spent
from stockade.core.frozen import frozen
from stockade.core.values import ALLOW, ASK, DENY, Grant, Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Headers that any granted request may carry: they describe the client or the message, and no server that we know acts elsewhere because of them.
COMMON_HEADERS = frozenset(
    """accept accept-charset accept-encoding accept-language cache-control connection content-encoding content-language content-length content-type
    date dnt expect host if-match if-modified-since if-none-match if-range if-unmodified-since keep-alive origin pragma priority proxy-connection range
    referer sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user te transfer-encoding
    upgrade-insecure-requests user-agent x-request-id x-client-request-id x-requested-with idempotency-key git-protocol
    npm-auth-type npm-command npm-scope npm-session pacote-integrity pacote-pkg-id pacote-req-type pacote-version
    anthropic-version x-app x-stainless-arch x-stainless-async x-stainless-custom-poll-interval x-stainless-helper x-stainless-helper-method
    x-stainless-lang x-stainless-os x-stainless-package-version x-stainless-poll-helper x-stainless-read-timeout x-stainless-retry-count
    x-stainless-runtime x-stainless-runtime-version x-stainless-timeout""".split()
)


@frozen
class HttpRequest:
    """A request as it would be sent. `host` has no port; `target` is the path with its query; header names are in any case, duplicates kept.

    `length` is the body's size in bytes; -1 = not known before it has been sent, which only grants for gRPC allow. `body` is the body where it has been read
    (None = not yet; what grants say of it then counts as kept, and whoever asks reads it and asks again before anything moves); `start` is as much of it
    as has come so far.
    """

    method: str
    host: str
    target: str = "/"
    scheme: Literal["https", "http"] = "https"
    port: int = 443
    headers: tuple[tuple[str, str], ...] = ()
    length: int = 0
    body: bytes | None = None
    start: bytes = b""


@frozen
class Refusal:
    """Why one grant does not cover a request. `depth` orders: the further a request got, the more helpful the reason. `grant`: the narrowest that would."""

    depth: int
    rule: str
    reason: str
    grant: str = ""


_OTHER = Refusal(0, "other-request", "this denial is for other requests")


def decide(request: HttpRequest, grants: tuple[Grant, ...], credentials: tuple[CredentialInUse, ...] = (), state: State = FRESH) -> Verdict:
    """May `request` leave? Never raises for anything the request holds."""
    return choose(request, grants, credentials, state)[0]


def choose(
    request: HttpRequest, grants: tuple[Grant, ...], credentials: tuple[CredentialInUse, ...] = (), state: State = FRESH
) -> tuple[Verdict, Grant | None]:
    """The verdict, and unless it is a denial the grant that gave it: the one to count the request under. Its credential is the one to inject, its `private`
    says where it may connect."""
    try:
        settled = host, path, _ = _settle(request, credentials)
    except Ambiguous as error:
        return Verdict(DENY, error.rule, (f"{error}.",)), None
    accepted: list[Grant] = []
    refusals: list[Refusal] = []
    for grant, refusal in _each(request, settled, grants, credentials, state):
        if grant.effect == DENY:
            if refusal is None:
                return Verdict(DENY, "denied-by-rule", (f"{request.method} {host}{path} is denied by {where(grant)}.",)), None
        elif refusal is None:
            accepted.append(grant)
        else:
            refusals.append(refusal)
    if not accepted:
        worst = max(refusals, key=lambda refusal: refusal.depth, default=None)
        if worst is None or worst.depth == 0:
            worst = Refusal(
                0, "host-not-granted", f"no grant covers {request.scheme}://{host}:{request.port}", _snippet(request, host, path)
            )
        return Verdict(DENY, worst.rule, (f"{worst.reason}.",), worst.grant), None
    best = accepted[0] if len(accepted) == 1 else min(counting(accepted), key=_best)
    if best.effect == ASK:
        return Verdict(ASK, "approval-needed", (f"{request.method} {host}{path} needs a person's approval ({where(best)}).",)), best
    return Verdict(ALLOW, f"grant {best.origin}"), best


def weigh(
    request: HttpRequest, grants: tuple[Grant, ...], credentials: tuple[CredentialInUse, ...] = (), state: State = FRESH
) -> tuple[tuple[Grant, Refusal | None], ...]:
    """Each grant that names the request's host, and why it does not cover the request (None: it does). The first is the one by which `choose` decides:
    denials that cover it, grants that do, then the nearest misses. () where the request cannot be read in one way."""
    try:
        settled = _settle(request, credentials)
    except Ambiguous:
        return ()

    each = tuple(_each(request, settled, grants, credentials, state))
    count = counting([grant for grant, refusal in each if refusal is None and grant.effect != DENY])

    def order(item: tuple[Grant, Refusal | None]) -> tuple[object, ...]:
        grant, refusal = item
        if refusal is None:
            return (0,) if grant.effect == DENY else (1, grant not in count, *_best(grant))
        return (3,) if grant.effect == DENY else (2, -refusal.depth)

    return tuple(sorted(each, key=order))


def decide_connect(host: str, port: int, grants: tuple[Grant, ...]) -> Verdict:
    """May a tunnel to host:port be opened at all? The requests in it are decided one by one; anything that is not HTTP is closed."""
    try:
        name = normalise_host(host)
    except Ambiguous as error:
        return Verdict(DENY, error.rule, (f"{error}.",))
    for grant in sorted(set(about(name, grants)), key=sort_key):
        if grant.effect != DENY and grant.scheme != "tcp" and grant.port == port:
            return Verdict(ALLOW, f"grant {grant.origin}")
    snippet = (
        f'[[egress]]\nhost = "{name}"\n'
        + (f"port = {port}\n" if port != 443 else "")
        + 'methods = ["GET"]\npaths = ["/only/what/is/needed"]\n'
    )
    return Verdict(DENY, "host-not-granted", (f"no grant covers {name}:{port}.",), snippet)


def granted_name(host: str, grants: tuple[Grant, ...]) -> bool:
    """Does any grant reach this name? Only such names get an address and a certificate. `host` in any spelling; a bad one is False."""
    try:
        name = normalise_host(host)
    except Ambiguous:
        return False
    return any(grant.effect != DENY for grant in about(name, grants))


def about(host: str, grants: tuple[Grant, ...]) -> list[Grant]:
    """The grants for a host. One for any host can only ask, about requests, and only about hosts that no other names: whoever wrote that one was precise."""
    found = [grant for grant in grants if host_matches(grant.host, host)]
    if any(grant.host == ANY for grant in found):
        asks = not any(grant.host != ANY and grant.effect != DENY for grant in found)
        found = [
            grant
            for grant in found
            if grant.host != ANY or grant.effect == DENY or (grant.effect == ASK and grant.scheme != "tcp" and asks)
        ]
    return found


def _settle(request: HttpRequest, credentials: tuple[CredentialInUse, ...]) -> tuple[str, str, str | None]:
    """(host, path, query or None), each read in the one way there is. Parameters that some credential goes into are looked at grant by grant. Raises Ambiguous."""
    path, mark, query = request.target.partition("?")
    host = normalise_host(request.host)
    if host != request.host.lower():
        raise Ambiguous("bad-host", f"{host} is written with a trailing dot")
    settled = normalise_path(path)
    if mark:
        own = {name for credential in credentials if credential.query for name in query_names(credential.query)}
        for name in query_names(query):
            if name in CREDENTIAL_PARAMETERS and name not in own:
                raise Ambiguous(
                    "credential-in-query", f"the query parameter {name!r} looks like a credential, and only the gate adds credentials"
                )
    if strayed(path) or strayed(host):
        raise Ambiguous("foreign-credential", "the address holds a placeholder, which stands for a credential and has no place there")
    if not request.method.isascii() or not request.method.isalpha() or not request.method.isupper():
        raise Ambiguous("bad-method", "the method is not a word of capital letters")
    return host, settled, query if mark else None


def _each(
    request: HttpRequest,
    settled: tuple[str, str, str | None],
    grants: tuple[Grant, ...],
    credentials: tuple[CredentialInUse, ...],
    state: State,
) -> Iterator[tuple[Grant, Refusal | None]]:
    """The grants that name the host, in one order whatever theirs was, and why each does not cover the request. A denial covers it or not."""
    host, path, query = settled
    in_use = {credential.name: credential for credential in credentials}
    found = about(host, grants)
    if len(found) > 1:  # this runs for every request, and to hash a grant takes longer than to see that it covers one
        found = sorted({*found}, key=sort_key)
    for grant in found:
        if grant.effect == DENY:
            yield grant, None if _covers(grant, request, host, path, folded=True) else _OTHER
        else:
            yield grant, _refuse(grant, request, host, path, query, in_use, state)


def counting(accepted: list[Grant]) -> list[Grant]:
    """Of the grants that cover a request those among which one counts. A rule that asks is overruled by one of the same file that allows, since whoever wrote it
    has decided; what another file says lifts no question, neither a wider one nor a narrower one. Nor does it widen who may answer: of rules that ask those count
    that leave it to the fewest."""
    decided = {grant.origin.file for grant in accepted if grant.effect == ALLOW}
    asks = [grant for grant in accepted if grant.effect == ASK and grant.origin.file not in decided]
    asks = [grant for grant in asks if grant.people] or [grant for grant in asks if grant.unreviewed] or asks
    return asks or [grant for grant in accepted if grant.effect == ALLOW]


def _best(grant: Grant) -> tuple[object, ...]:
    """Orders the grants among which one counts: the first does. Of what is bounded only later, while it passes, the widest: so one more grant never narrows."""
    return (
        not grant.credential,
        -(grant.max_download or float("inf")),
        -grant.max_upload * grant.grpc,
        sort_key(grant),
    )


def _refuse(
    grant: Grant, request: HttpRequest, host: str, path: str, query: str | None, in_use: dict[str, CredentialInUse], state: State
) -> Refusal | None:
    if not (host_matches(grant.host, host) and grant.port == request.port and grant.scheme == request.scheme):
        return Refusal(0, "host-not-granted", f"this is granted for {grant.scheme} on port {grant.port} ({where(grant)})")
    if not _covers(grant, request, host, path):
        method_known = request.method in grant.methods or "*" in grant.methods
        rule, what = ("path-not-granted", f"path {path}") if method_known else ("method-not-granted", f"method {request.method}")
        if not method_known and not path_matches(grant.paths, path):
            rule, what = "path-not-granted", f"{request.method} {path}"
        return Refusal(
            1 + (rule == "method-not-granted"),
            rule,
            f"{what} is not granted on {host} ({where(grant)})",
            _snippet(request, host, path, grant),
        )
    rule, reason, wider = streams.refused(grant, request.method, request.headers, request.length)
    if rule:
        return Refusal(2, rule, f"{reason} ({where(grant)})", wider and _snippet(request, host, path, grant) + wider)
    query, stray = without_own(query, in_use.get(grant.credential))
    if stray:
        return Refusal(7, "credential-in-query", f"{stray} ({where(grant)})")
    if query is not None and grant.query == "none":
        return Refusal(
            3, "query-not-granted", f"a query is not granted on this path ({where(grant)})", _snippet(request, host, path, grant)
        )
    if query and grant.query == "listed" and (name := parameter_refused(query, grant)) is not None:
        return Refusal(3, "parameter-not-granted", f"the query parameter {name!r} is not granted on this path ({where(grant)})")
    if request.length > grant.max_upload or (request.length < 0 and not (grant.grpc and grant.max_upload)):
        size = f"{request.length} bytes" if request.length >= 0 else "unknown size"
        wider = _snippet(request, host, path, grant) if request.length >= 0 or streams.called(request.method, path, request.headers) else ""
        return Refusal(4, "upload-too-large", f"a body of {size} is more than the granted {grant.max_upload} bytes ({where(grant)})", wider)
    if reason := content_type_refused(request.headers, request.length, grant):
        return Refusal(4, "content-type-not-granted", f"{reason} ({where(grant)})")
    if refusal := _refuse_headers(grant, request, host, path, query, in_use, state):
        return refusal
    if request.body is not None and (reason := body_refused(request.headers, request.body, grant)):
        return Refusal(8, "body-not-granted", f"{reason} ({where(grant)})")
    signs = grant.credential in in_use and in_use[grant.credential].services  # what is signed with our key is nobody else's
    if not signs and (reason := bodies.refused(request.headers, request.length, request.start, request.body, grant.credential_fields)):
        return Refusal(8, "credential-in-body", f"{reason}; where it is none, a rule says so with credential_fields ({where(grant)})")
    if grant.refs and (request.start or request.body is not None):
        if reason := push.refused(
            request.headers, request.start, lambda ref: path_matches(tuple(f"/{one}" for one in grant.refs), f"/{ref}")
        ):
            return Refusal(8, "ref-not-granted", f"{reason} ({where(grant)})")
    rule, reason = spent(grant, request.length, state)
    return Refusal(9, rule, f"{reason} ({where(grant)})") if rule else None


def _refuse_headers(
    grant: Grant, request: HttpRequest, host: str, path: str, query: str | None, in_use: dict[str, CredentialInUse], state: State
) -> Refusal | None:
    own = in_use.get(grant.credential)
    if grant.credential and own is None:
        return Refusal(5, "credential-missing", f"the credential {grant.credential!r} of {where(grant)} is not available")
    if own is not None and own.taken_back:  # also where the request leaves the credential out, for the gate to add
        return Refusal(7, REVOKED, f"this session's token for {own.name!r} has been taken back ({where(grant)})")
    listed = {entry.partition(":")[0].strip().lower() for entry in grant.headers}
    if own is not None and own.services:
        try:
            sigv4.check(request.headers, request.scheme, request.body, own)
        except sigv4.Refused as error:
            return Refusal(7, error.rule, f"{error} ({where(grant)})")
    seen_own = False
    for raw_name, value in request.headers:
        name = raw_name.lower()
        if own is not None and name == own.header.lower():
            facts: dict[str, str | int] = {
                "method": request.method,
                "scheme": request.scheme,
                "host": host,
                "port": request.port,
                "path": path,
                "query": query or "",
                "length": request.length,
            }
            rule, reason = (FOREIGN, "") if seen_own else ("", "") if own.services else token_refused(value, own, facts, state.now)
            if rule == FOREIGN:
                reason = f"the header {name} does not hold this session's placeholder exactly once{reason and f' ({reason})'}"
                reason += "; the gate adds the real credential itself"
            if rule:
                return Refusal(7, rule, reason)
            seen_own = True
        elif strayed(value):
            return Refusal(
                7, "foreign-credential", f"the header {ascii(name)[1:-1]} holds a placeholder outside its place ({where(grant)})"
            )
        elif name in listed:
            if unnamed := unlisted_value(name, value, grant):
                return Refusal(
                    6, "header-value-not-granted", f"{name}: {unnamed} makes the server act elsewhere and is not granted ({where(grant)})"
                )
        elif name in CREDENTIAL_HEADERS:
            return Refusal(
                7, "foreign-credential", f"the header {name} carries a credential, and only the gate adds credentials ({where(grant)})"
            )
        elif name == "sec-websocket-protocol" and grant.websocket and (odd := streams.doubtful(value)):
            why = "may carry a credential, and only the gate adds credentials; where it does not, a rule lists it by its value"
            return Refusal(7, "foreign-credential", f"the subprotocol {odd} {why} ({where(grant)})")
        elif (
            name not in COMMON_HEADERS
            and name not in streams.own_headers(grant)
            and not (own is not None and own.services and name in sigv4.HEADERS)
        ):
            shown = name if name.replace("-", "").isalnum() and name.isascii() else ""
            wider = _snippet(request, host, path, grant, header=shown) if shown else ""
            return Refusal(6, "header-not-granted", f"the header {ascii(name)[1:-1]} is not granted on {host} ({where(grant)})", wider)
    return None


def _covers(grant: Grant, request: HttpRequest, host: str, path: str, folded: bool = False) -> bool:
    """Host, port, scheme, method and path. `folded`: also without the path's case and parameters, for denials, since some servers read it so."""
    return (
        host_matches(grant.host, host)
        and grant.port == request.port
        and grant.scheme == request.scheme
        and (request.method in grant.methods or "*" in grant.methods)
        and (path_matches(grant.paths, path, folded) or (folded and path_matches(grant.paths, without_parameters(path), folded)))
    )


def where(grant: Grant) -> str:
    """File and line without directories: a reason may be read inside the sandbox, which must not learn the host's paths."""
    file, line = grant.origin.file.rpartition("/")[2], grant.origin.line
    return f"{file}:{line}" if line else file


@lru_cache(4096)
def sort_key(grant: Grant) -> tuple[object, ...]:
    """Orders grants in one way, whatever order they came in."""
    return (
        grant.host, grant.port, grant.scheme, grant.methods, grant.paths, grant.query, grant.headers, grant.credential, grant.max_upload,
        grant.effect, grant.private, str(grant.origin), grant.origin.preset, repr(grant),
    )  # fmt: skip


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a basic string of TOML, for text without control characters, which no policy holds


def _snippet(request: HttpRequest, host: str, path: str, near: Grant | None = None, header: str = "") -> str:
    """The narrowest `[[egress]]` table that would cover this request; "" where a pattern cannot say it. `near` lends credential and headers."""
    if any(segment in ("*", "**") for segment in path.split("/")):
        return ""
    lines = ["[[egress]]", f'host = "{host}"']
    if request.scheme != "https":
        lines.append(f'scheme = "{request.scheme}"')
    if request.port != 443:
        lines.append(f"port = {request.port}")
    call = streams.called(request.method, path, request.headers)
    if call and "?" not in request.target:
        lines.append(f'grpc = ["{call}"]')
    else:
        lines += [f'methods = ["{request.method}"]', f'paths = ["{path}"]']
    headers = (*(near.headers if near else ()), *([header] if header else ()))
    if headers:
        lines.append("headers = [" + ", ".join(_quoted(entry) for entry in headers) + "]")
    if near and near.credential:
        lines.append(f"credential = {_quoted(near.credential)}")
    if request.length > Grant.max_upload:
        lines.append(f"max_upload = {request.length}")
    if near and near.private:
        lines.append("private = true")
    return "\n".join(lines) + "\n"
