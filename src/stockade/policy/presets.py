"""Ready sets of egress rules. Registries are whatever this machine's clients are configured for (clients.py); reads only, no query."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stockade.core.errors import PolicyError
from stockade.core.frozen import frozen, replace
from stockade.core.values import Credential, Grant
from stockade.policy import clients
from stockade.policy.kinds import usable

if TYPE_CHECKING:
    from typing import Literal

    from stockade.core.values import Origin
    from stockade.policy.files import Watch
    from stockade.policy.model import EgressTable

READ = ("GET", "HEAD")
_MODEL_UPLOAD = 8 << 20


@frozen
class Expansion:
    """What a preset stands for: grants, the credentials they need unless the policy has them, variables for the clients inside, and warnings."""

    grants: tuple[Grant, ...]
    credentials: tuple[Credential, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def expand(rule: EgressTable, origin: Origin, watch: Watch, cwd: str) -> Expansion:
    """The rules that `rule.preset` stands for here. Raises PolicyError `policy.preset` if this machine's configuration names nothing usable."""
    build = {"pypi": _pypi, "npm": _npm, "debian": _debian}.get(rule.preset or "")
    found = build(rule, origin, watch, cwd) if build else _fixed(rule.preset or "", origin)
    changes: dict[str, object] = {}
    if rule.max_upload is not None:
        changes["max_upload"] = rule.max_upload
    if rule.max_download is not None:
        changes["max_download"] = rule.max_download
    if rule.private is not None:
        changes["private"] = rule.private
    if rule.credential is not None:
        changes["credential"] = rule.credential
    return replace(found, grants=tuple(replace(grant, **changes) for grant in found.grants))


def _fixed(name: str, origin: Origin) -> Expansion:
    if name == "github-read":
        return _github(origin)
    if name == "anthropic":
        grant = Grant(
            "api.anthropic.com",
            methods=("POST",),
            paths=("/v1/messages", "/v1/messages/count_tokens"),
            headers=("anthropic-beta", "anthropic-dangerous-direct-browser-access", "x-app", "x-claude-code-session-id"),
            credential=name,
            max_upload=_MODEL_UPLOAD,
            origin=origin,
        )
        return Expansion((grant,), (Credential(name, "env:ANTHROPIC_API_KEY", "x-api-key", "{}", "ANTHROPIC_API_KEY", origin),))
    if name == "gemini":
        grant = Grant(
            "generativelanguage.googleapis.com",
            methods=("POST",),
            paths=("/v1beta/models/*",),  # the method stands in the last segment: gemini-x:streamGenerateContent
            query="listed",
            parameters=("alt",),
            headers=("x-goog-api-client", "x-gemini-api-privileged-user-id"),
            credential=name,
            max_upload=_MODEL_UPLOAD,
            origin=origin,
        )
        return Expansion((grant,), (Credential(name, "env:GEMINI_API_KEY", "x-goog-api-key", "{}", "GEMINI_API_KEY", origin),))
    grant = Grant(
        "api.openai.com",
        methods=("POST",),
        paths=("/v1/responses", "/v1/responses/compact", "/v1/chat/completions"),
        headers=(
            *("openai-beta", "originator", "session_id", "session-id", "conversation_id", "thread-id", "version"),
            *("x-codex-beta-features", "x-codex-turn-metadata", "x-codex-window-id"),
            "x-openai-internal-codex-responses-lite",
        ),
        credential=name,
        max_upload=_MODEL_UPLOAD,
        origin=origin,
    )
    return Expansion((grant,), (Credential(name, "env:OPENAI_API_KEY", env="OPENAI_API_KEY", origin=origin),))


def _github(origin: Origin) -> Expansion:
    """Clone, fetch, archives, raw files and the API, without an account. Git over HTTP: git-scm.com, "http-protocol"."""

    def grant(host: str, *paths: str, methods: tuple[str, ...] = READ, query: Literal["any", "none"] = "none") -> Grant:
        return Grant(host, methods=methods, paths=paths, query=query, origin=origin)

    api = Grant("api.github.com", methods=READ, query="any", headers=("x-github-api-version",), origin=origin)
    return Expansion(
        (
            grant("github.com", "/**"),
            grant("github.com", "/*/*/info/refs", query="any"),  # ?service=git-upload-pack
            grant("github.com", "/*/*/git-upload-pack", methods=("POST",)),
            api,
            grant("codeload.github.com", "/**"),
            grant("raw.githubusercontent.com", "/**"),
        )
    )


def _pypi(rule: EgressTable, origin: Origin, watch: Watch, cwd: str) -> Expansion:
    grants: list[Grant] = []
    warnings: list[str] = []
    extra: list[str] = []
    main = ""
    for index in clients.pip(watch):
        place = _place(index.url, index.source, warnings)
        if place is None:
            continue
        scheme, host, port, path, clean = place
        # PEP 503 and mirrors: a project's page lies below .../simple/, files beside it (.../packages/, .../+f/), unless the client says where.
        parent, _, last = path.rstrip("/").rpartition("/")
        base = path.rstrip("/") if index.files_host or not last.endswith("simple") else parent
        grants.append(_read(host, port, scheme, base, origin))
        for other in dict.fromkeys([index.files_host, rule.files_host or ""]):
            if other and other != host:
                grants.append(_read(other, port, scheme, "", origin))
        if index.extra:
            extra.append(clean)
        else:
            main = main or ("" if index.default else clean)
    if not grants:
        raise _nothing("pip", "pip config set global.index-url URL", origin, warnings)
    variables = [(name, main) for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX") if main]
    variables += [(name, " ".join(extra)) for name in ("PIP_EXTRA_INDEX_URL", "UV_INDEX") if extra]
    return Expansion(tuple(grants), variables=tuple(variables), warnings=tuple(warnings))


def _npm(rule: EgressTable, origin: Origin, watch: Watch, cwd: str) -> Expansion:
    grants: list[Grant] = []
    warnings: list[str] = []
    variables: list[tuple[str, str]] = []
    for index in clients.npm(watch, cwd):
        place = _place(index.url, index.source, warnings)
        if place is None:
            continue
        scheme, host, port, path, clean = place
        grants.append(_read(host, port, scheme, path.rstrip("/"), origin))
        if rule.files_host and rule.files_host != host:
            grants.append(_read(rule.files_host, port, scheme, "", origin))
        if not index.default and not index.extra:
            variables.append(("npm_config_registry", clean))
    if not grants:
        raise _nothing("npm", "npm config set registry URL", origin, warnings)
    return Expansion(tuple(grants), variables=tuple(variables), warnings=tuple(warnings))


def _debian(rule: EgressTable, origin: Origin, watch: Watch, cwd: str) -> Expansion:
    warnings: list[str] = []
    grants = []
    for url, source in clients.apt(watch):
        if place := _place(url, source, warnings):
            scheme, host, port, path, _ = place
            grants.append(_read(host, port, scheme, path.rstrip("/"), origin))
    if not grants:
        raise _nothing("apt", "write a source to /etc/apt/sources.list.d/", origin, warnings)
    return Expansion(tuple(dict.fromkeys(grants)), warnings=tuple(warnings))


def _read(host: str, port: int, scheme: Literal["https", "http"], base: str, origin: Origin) -> Grant:
    return Grant(host, port, scheme, READ, (f"{base}/**",), "none", max_upload=0, origin=origin)


def _place(url: str, source: str, warnings: list[str]) -> tuple[Literal["https", "http"], str, int, str, str] | None:
    """(scheme, host, port, path, URL without user and password); None, perhaps with a warning, for what needs no network or cannot be granted."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        warnings.append(f"{source}: an index there is not a URL that can be read; it is skipped")
        return None
    if parts.scheme in ("", "file", "cdrom", "copy"):
        return None
    if parts.scheme not in ("https", "http"):
        warnings.append(f"{source}: {parts.scheme}: cannot go through the gate; that source is skipped")
        return None
    if not usable(host, parts.path.rstrip("/")):
        warnings.append(f"{source}: {host or 'an index'} is not a host name and path that a rule can name; it is skipped")
        return None
    if parts.username or parts.password:
        warnings.append(
            f"{source}: the URL holds a user or password, which does not enter; write a [credential.NAME] and name it in this rule"
        )
    scheme: Literal["https", "http"] = "https" if parts.scheme == "https" else "http"
    standard = 443 if scheme == "https" else 80
    clean = f"{scheme}://{host}{f':{port}' if port else ''}{parts.path}"
    return scheme, host, port or standard, parts.path, clean


def _nothing(client: str, command: str, origin: Origin, warnings: list[str]) -> PolicyError:
    why = f" ({'; '.join(warnings)})" if warnings else ""
    return PolicyError(
        f"the preset {origin.preset} has nothing to grant: {client} is not configured here or not installed{why}",
        code="policy.preset",
        file=origin.file,
        line=origin.line,
        key=origin.key,
        hint=f"Configure the client ({command}), or write the host in a rule of your own.",
    )
