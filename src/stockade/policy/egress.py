"""Egress rules and credentials of all layers, merged and checked together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockade.core.errors import PolicyError
from stockade.core.frozen import replace
from stockade.core.values import BodyRule, Credential, Grant
from stockade.policy.approvals import anywhere, asks
from stockade.policy.git import git_grants
from stockade.policy.presets import expand
from stockade.policy.problems import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade.policy.caps import Caps
    from stockade.policy.files import Watch
    from stockade.policy.model import CredentialTable, EgressTable
    from stockade.policy.read import Document

# Listing one of these under `headers` would let any key pass, an attacker's too: the gate alone writes credentials.
_KEY_HEADERS = frozenset(
    """authorization proxy-authorization cookie x-api-key api-key apikey x-goog-api-key x-auth-token x-access-token x-amz-security-token
    private-token job-token x-gitlab-token x-github-token x-vault-token x-functions-key ocp-apim-subscription-key""".split()
)
_OVER_TIME = ("upload_budget", "uses", "rate", "not_before", "not_after", "secret", "after_secret")
_WITH_PRESET = ("preset", "credential", "max_upload", "max_download", "private", "files_host", *_OVER_TIME)
_WITH_TCP = ("host", "scheme", "port", "effect", "people", "private", "max_upload", *_OVER_TIME)
_OF_THE_DOOR = (53, 80, 443, 3128)
_NOT_WITH_GIT = (
    "methods",
    "paths",
    "query",
    "parameters",
    "headers",
    "content_types",
    "body",
    "scheme",
    "effect",
    "people",
    "websocket",
    "credential_fields",
    "grpc",
)
_NOT_WITH_GRPC = (
    "methods",
    "paths",
    "query",
    "parameters",
    "content_types",
    "body",
    "websocket",
    "repositories",
    "refs",
    "upload_budget",
    "credential_fields",
)
_NOT_IN_A_DENIAL = (
    "query",
    "parameters",
    "headers",
    "credential",
    "max_upload",
    "max_download",
    "private",
    "content_types",
    "body",
    "websocket",
    "credential_fields",
    "people",
    *_OVER_TIME,
)
_LOCAL = ("localhost", "ip6-localhost")


class Rules:
    """Merges the `[[egress]]` and `[credential.*]` tables. Appends to `errors` and `warnings`."""

    def __init__(self, watch: Watch, cwd: str, caps: Mapping[int, Caps], errors: list[PolicyError], warnings: list[PolicyError]) -> None:
        self.watch, self.cwd, self.caps, self.errors, self.warnings = watch, cwd, caps, errors, warnings
        self.written: dict[str, tuple[Credential, Document]] = {}  # every credential that a file has, and which file
        self.known: dict[str, Credential] = {}  # and those that presets bring

    def merge(self, documents: Sequence[Document]) -> tuple[tuple[Grant, ...], tuple[Credential, ...], tuple[tuple[str, str], ...]]:
        """(grants, the credentials they use, variables for clients inside)."""
        written = self.written = self._credentials(documents)
        credentials = {name: credential for name, (credential, _) in written.items()}
        grants: list[Grant] = []
        variables: dict[str, str] = {}
        for one in documents:
            for index, table in enumerate(one.tables.egress):
                key = ("egress", index)
                if table.preset is not None:
                    found, more = self._preset(table, one, key, credentials)
                    variables |= more
                else:
                    found = self._rule(table, one, key)
                for grant in found:
                    self._owned(grant, one, (*key, "files_host" if grant.host == table.files_host else "host"))
                    grant = self.caps[id(one)].grant(grant, one, key, upload_written=table.max_upload is not None)
                    self.use(grant, one, key, credentials, written)
                    grants.append(asks(grant, table, one, key, self.errors))
        used = {grant.credential for grant in grants}
        reviewers = {one.tables.reviewer.credential for one in documents if one.tables.reviewer is not None}
        for name, (_, one) in written.items():
            if name not in used and name not in reviewers:
                hint = f'Name it in a rule: credential = "{name}". Until then it does nothing.'
                self.warnings.append(
                    one.error(f"no rule uses the credential {name}", "credential", name, code="policy.unused-credential", hint=hint)
                )
        self.known = credentials
        kept = tuple(credential for name, credential in credentials.items() if name in used)
        self._stand_ins(kept)
        return tuple(dict.fromkeys(grants)), kept, tuple(variables.items())

    def _credentials(self, documents: Sequence[Document]) -> dict[str, tuple[Credential, Document]]:
        found: dict[str, tuple[Credential, Document]] = {}
        for one in documents:
            for name, table in one.tables.credential.items():
                if name in found and found[name][1].layer == "managed":
                    rule = found[name][0].origin
                    message, hint = f"the credential {name} is set by {rule.file}:{rule.line}", "Choose another name."
                    self.errors.append(one.error(message, "credential", name, code="policy.capped", hint=hint))
                    continue
                self._form(name, table, one)
                found[name] = (_credential(name, table, one), one)
        return found

    def _form(self, name: str, table: CredentialTable, one: Document) -> None:
        """A secret goes into requests in one form: a header with its template, HTTP Basic, a query parameter, or a signature."""

        def wrong(message: str, key: tuple[str, ...], code: str, hint: str) -> None:
            self.errors.append(one.error(message, "credential", name, *key, code=code, hint=hint))

        forms = [form for form in ("user", "query", "sigv4") if getattr(table, form) is not None]
        if forms and (len(forms) > 1 or table.header is not None or table.template is not None):
            others = ", ".join([*forms[1:], *(key for key in ("header", "template") if getattr(table, key) is not None)])
            hint = "A secret goes into requests in one form: header and template, user (HTTP Basic), query, or sigv4."
            wrong(f"{forms[0]} cannot stand with {others}", (forms[0],), "policy.form", hint)
        if table.sigv4 is None:
            return
        kind, _, rest = table.source.partition(":")
        for key in ("services", "regions"):
            if not getattr(table.sigv4, key):
                hint = 'Write sigv4 = { services = ["s3"], regions = ["eu-central-1"] }.'
                wrong(f"this key signs for no {key}, so it does nothing", ("sigv4", key), "policy.grants-nothing", hint)
        if kind == "env" and not rest.endswith("ACCESS_KEY_ID"):
            hint = 'Write source = "env:AWS_ACCESS_KEY_ID": the secret and the session token are in the variables beside it.'
            wrong(f"{rest} is not the variable of an access key's id", ("source",), "policy.sigv4", hint)
        if table.sigv4.profile is not None and kind != "file":
            wrong("profile needs a file: source", ("sigv4", "profile"), "policy.sigv4", 'Write source = "file:~/.aws/credentials".')

    def _preset(
        self, table: EgressTable, one: Document, key: tuple[str | int, ...], credentials: dict[str, Credential]
    ) -> tuple[tuple[Grant, ...], dict[str, str]]:
        name = table.preset or ""
        for other in sorted(table.model_fields_set - set(_WITH_PRESET)):
            hint = f"A preset may stand with {', '.join(_WITH_PRESET[1:])}; for anything else write a rule with host, methods and paths."
            self.errors.append(one.error(f"{other} cannot stand with a preset", *key, other, code="policy.preset", hint=hint))
        if table.files_host is not None and name not in ("pypi", "npm"):
            self.errors.append(one.error(f"files_host means nothing to the preset {name}", *key, "files_host", code="policy.preset"))
        try:
            found = expand(table, one.origin(*key, "preset", preset=name), self.watch, self.cwd)
        except PolicyError as error:
            self.errors.append(error)
            return (), {}
        for text in found.warnings:
            self.warnings.append(one.error(text, *key, "preset", code="policy.preset"))
        if table.credential is None:
            for credential in found.credentials:
                credentials.setdefault(credential.name, credential)
        bounds = _over_time(table)
        return tuple(replace(grant, **bounds) for grant in found.grants), dict(found.variables)

    def _git(self, table: EgressTable, one: Document, key: tuple[str | int, ...]) -> tuple[Grant, ...]:
        for name in sorted(table.model_fields_set & set(_NOT_WITH_GIT)):
            hint = "git says which requests these are; name repositories, and refs for a push."
            self.errors.append(one.error(f"{name} cannot stand with git", *key, name, code="policy.git", hint=hint))
        if not table.repositories:
            hint = 'Name them: repositories = ["owner/name"].'
            self.errors.append(
                one.error("this rule names no repositories, so it grants nothing", *key, code="policy.grants-nothing", hint=hint)
            )
        if (table.git == "push") != bool(table.refs):
            hint = 'Name what may be pushed to, such as refs = ["refs/heads/agent/**"], and with git = "push" only.'
            self.errors.append(one.error('git = "push" and refs belong together', *key, "git", code="policy.git", hint=hint))
        return git_grants(table, one.origin(*key), _over_time(table))

    def _grpc(self, table: EgressTable, one: Document, key: tuple[str | int, ...]) -> None:
        for name in sorted(table.model_fields_set & set(_NOT_WITH_GRPC)):
            hint = "grpc says which requests these are: it names services and methods."
            if name == "upload_budget":
                hint = "Calls are counted one by one. Write max_upload for the most of each, and uses for their number."
            self.errors.append(one.error(f"{name} cannot stand with grpc", *key, name, code="policy.grpc", hint=hint))
        if not table.grpc:
            hint = 'Name them: grpc = ["package.Service/Method"].'
            self.errors.append(one.error("this rule names no method", *key, "grpc", code="policy.grants-nothing", hint=hint))
        if table.max_upload == 0:
            hint = "Even a call without arguments has a body of five bytes."
            self.errors.append(one.error("this rule grants no call", *key, "max_upload", code="policy.grants-nothing", hint=hint))

    def _tcp(self, table: EgressTable, one: Document, key: tuple[str | int, ...]) -> tuple[Grant, ...]:
        for name in sorted(table.model_fields_set - set(_WITH_TCP)):
            hint = f"Raw TCP is not read; it may stand with {', '.join(_WITH_TCP[2:])}."
            self.errors.append(one.error(f'{name} cannot stand with scheme = "tcp"', *key, name, code="policy.tcp", hint=hint))
        if table.port is None or table.port in _OF_THE_DOOR:
            hint = f"Name the one that the service listens on; {', '.join(map(str, _OF_THE_DOOR))} are the gate's own and take HTTP or DNS."
            where = () if table.port is None else ("port",)
            self.errors.append(one.error("raw TCP needs a port of its own", *key, *where, code="policy.tcp", hint=hint))
        upload = Grant.max_upload if table.max_upload is None else table.max_upload
        grant = Grant(table.host or "", table.port or 0, "tcp", (), (), max_upload=upload, effect=table.effect or "allow")
        return (replace(grant, private=bool(table.private), origin=one.origin(*key), **_over_time(table)),)

    def _rule(self, table: EgressTable, one: Document, key: tuple[str | int, ...]) -> tuple[Grant, ...]:
        deny = table.effect == "deny"
        if table.host is None:
            hint = 'Write host = "api.example.com" with methods and paths, or preset = "..." alone.'
            self.errors.append(one.error("this rule names neither a host nor a preset", *key, code="policy.missing-key", hint=hint))
            return ()
        anywhere(table, one, key, self.errors)
        if table.git is not None:
            return self._git(table, one, key)
        if table.scheme == "tcp":
            return self._tcp(table, one, key)
        if table.files_host is not None:
            self.errors.append(one.error("files_host needs a preset", *key, "files_host", code="policy.preset"))
        if table.grpc is not None:
            self._grpc(table, one, key)
        paths = table.paths if table.grpc is None else tuple(f"/{call}" for call in table.grpc) or ("/",)
        methods = table.methods if table.grpc is None or deny else ("POST",)  # "gRPC over HTTP2", Requests
        for name, value in (("paths", paths), ("methods", methods)):
            if value == () or (name == "paths" and value is None and not deny):
                hint = 'Name what is needed, such as paths = ["/v1/messages"]; ["/**"] is every path of the host.'
                hint = hint if name == "paths" else 'Name what is needed, such as methods = ["GET", "HEAD"].'
                message = f"this rule has no {name}, so it {'denies' if deny else 'grants'} nothing"
                self.errors.append(one.error(message, *key, *([name] if value == () else []), code="policy.grants-nothing", hint=hint))
        for index, header in enumerate(table.headers or ()):
            name = header.partition(":")[0].strip().lower()
            if name in _KEY_HEADERS:
                hint = "Write a [credential.NAME] with this header and name it in the rule: then only your own key passes."
                message = f"listing the header {name} would let any key pass, an attacker's too"
                self.errors.append(one.error(message, *key, "headers", index, code="policy.key-header", hint=hint))
        if deny:
            for name in sorted(table.model_fields_set & set(_NOT_IN_A_DENIAL)):
                hint = "A denial is host, port, scheme, methods and paths; it covers every request to them."
                self.errors.append(one.error(f"{name} means nothing in a denial", *key, name, code="policy.denial", hint=hint))
        if table.parameters is not None and table.query is not None:
            hint = 'parameters says it all: with none listed, write query = "none".'
            self.errors.append(one.error("query and parameters contradict each other", *key, "parameters", code="policy.query", hint=hint))
        if table.not_before and table.not_after and table.not_before >= table.not_after:
            self.errors.append(
                one.error("this rule ends before it begins, so it grants nothing", *key, "not_after", code="policy.grants-nothing")
            )
        for index, rule in enumerate(table.body or ()):
            if sum((rule.values is not None, bool(rule.absent), rule.most is not None)) > 1 or rule.values == ():
                hint = "Write values with at least one, or absent, or most; or the pointer alone for anything."
                self.errors.append(
                    one.error("this says more than one thing of a place, or nothing", *key, "body", index, code="policy.body", hint=hint)
                )
        if table.repositories is not None or table.refs is not None:
            hint = 'Write git = "fetch" or "push".'
            self.errors.append(one.error("repositories and refs need git", *key, code="policy.git", hint=hint))
        if table.websocket:
            for name in sorted(
                table.model_fields_set & {"content_types", "body", "max_upload", "max_download", "credential_fields"}
                | ({"methods"} if table.methods not in (None, ("GET",)) else set())
            ):
                hint = "A WebSocket begins as a GET without a body, and what passes in it is not read."
                self.errors.append(one.error(f"{name} means nothing for a WebSocket", *key, name, code="policy.websocket", hint=hint))
        scheme = table.scheme or "https"
        grpc = table.grpc is not None and not deny
        fallback = Grant(table.host)
        return (
            Grant(
                table.host,
                table.port or (443 if scheme == "https" else 80),
                scheme,
                methods or (("*",) if deny else fallback.methods),
                paths or ("/**",),
                "listed" if table.parameters else "none" if table.parameters == () or grpc else table.query or fallback.query,
                table.headers or (),
                table.credential or "",
                fallback.max_upload if table.max_upload is None else table.max_upload,
                table.effect or fallback.effect,
                bool(table.private),
                one.origin(*key),
                parameters=table.parameters or (),
                content_types=table.content_types or (),
                body=tuple(
                    BodyRule(rule.pointer, rule.values or (), bool(rule.absent), -1 if rule.most is None else rule.most)
                    for rule in table.body or ()
                ),
                websocket=bool(table.websocket),
                credential_fields=("*",) if grpc else table.credential_fields or (),  # what is not read cannot be searched either
                grpc=grpc,
                max_download=table.max_download or 0,
                **_over_time(table),
            ),
        )

    def _owned(self, grant: Grant, one: Document, key: tuple[str | int, ...]) -> None:
        """INVARIANT: no grant reaches a name that anyone could register below a public suffix. A denial may: it only takes away."""
        if not grant.host.startswith("*.") or grant.effect == "deny":
            return
        from stockade.policy.suffixes import shared

        name = grant.host[2:]
        if suffix := shared(name, self.watch):
            message = f"{grant.host} covers names of everybody: anyone can register one below {suffix}"
            hint = f'Name the domain of the one you mean, "*.their-name.{name}", or the host itself.'
            self.errors.append(
                one.error(
                    message,
                    *key,
                    code="policy.public-suffix",
                    hint=hint if suffix == name else f"Name each host below {name} that is needed.",
                )
            )

    def use(
        self,
        grant: Grant,
        one: Document,
        key: tuple[str | int, ...],
        credentials: dict[str, Credential],
        written: dict[str, tuple[Credential, Document]],
    ) -> None:
        """Judge where a rule's credential goes."""
        if grant.host in _LOCAL and not grant.private and grant.effect != "deny":
            hint = "Write private = true to say that this is meant."
            self.warnings.append(
                one.error(f"{grant.host} is not a public address, so the gate refuses it", *key, code="policy.private", hint=hint)
            )
        if not grant.credential:
            return
        if grant.credential not in credentials:
            near = nearest(grant.credential, list(credentials))
            hint = f"Did you mean {near}?" if near else f'Write it: [credential.{grant.credential}] with source = "env:NAME".'
            message = f"there is no credential {grant.credential}"
            self.errors.append(one.error(message, *key, "credential", code="policy.no-credential", hint=hint))
            return
        if grant.scheme == "http" and not grant.private:
            hint = "Use https; http with a credential is only for private names (private = true)."
            message = f"the credential {grant.credential} would go to {grant.host} unencrypted"
            self.errors.append(one.error(message, *key, "credential", code="policy.cleartext", hint=hint))
        if grant.host.startswith("*.") and not credentials[grant.credential].services:  # a signature is worth nothing to another name
            hint = "Name each host: whoever owns one name below it would get the key."
            message = f"the credential {grant.credential} goes to every name below {grant.host[2:]}"
            self.warnings.append(one.error(message, *key, "credential", code="policy.wide-credential", hint=hint))
        if one.layer == "file" and grant.credential in written and written[grant.credential][1].layer in ("managed", "user"):
            hint = "Make sure that this host is the one the key is for."
            message = f"this file sends your credential {grant.credential} to {grant.host}"
            self.warnings.append(one.error(message, *key, "credential", code="policy.lent-credential", hint=hint))

    def _stand_ins(self, credentials: tuple[Credential, ...]) -> None:
        taken: dict[str, Credential] = {}
        for credential in credentials:
            for variable in credential.variables:
                other = taken.setdefault(variable, credential)
                if other == credential:
                    continue
                at = credential.origin
                message = f"the credentials {other.name} and {credential.name} both want the variable {variable}"
                hint = 'Give one of them another env, or env = "".'
                self.errors.append(PolicyError(message, code="policy.bad-value", file=at.file, line=at.line, key=at.key, hint=hint))


def _over_time(table: EgressTable) -> dict[str, Any]:
    """What a rule bounds over time, as fields of a grant."""
    rate, seconds = table.rate or (0, 0)
    written = {name: getattr(table, name) for name in _OVER_TIME if name != "rate"}
    return {"rate": rate, "rate_seconds": seconds, **{name: value or 0 for name, value in written.items() if name[-6:] != "secret"},
            "secret": bool(table.secret), "after_secret": bool(table.after_secret)}  # fmt: skip


def _credential(name: str, table: CredentialTable, one: Document) -> Credential:
    if table.sigv4 is not None:
        signing, inside = table.sigv4, "AWS" if table.env is None else table.env
        origin, profile = one.origin("credential", name), signing.profile or ""
        return Credential(
            name, table.source, env=inside, origin=origin, services=signing.services, regions=signing.regions, profile=profile
        )
    header = (table.header or "authorization").lower()
    template = table.template or ("Basic {}" if table.user else "Bearer {}" if header == "authorization" else "{}")
    kind, _, rest = table.source.partition(":")
    inside = table.env if table.env is not None else rest if kind == "env" else ""
    header, template = ("", "") if table.query else (header, template)
    return Credential(name, table.source, header, template, inside, one.origin("credential", name), table.user or "", table.query or "")
