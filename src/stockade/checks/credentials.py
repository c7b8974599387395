"""The session's own credential in its one place, and everything else that looks like a credential.

Inside there are only placeholders, which are worth nothing. One may stand where its credential goes, and nowhere else: in a wrong place it is a
mistake, or somebody else's.
"""

from __future__ import annotations

import base64
from urllib.parse import unquote_plus

from stockade.checks.normalise import query_names
from stockade.checks.tokens import FOREIGN, Tokens
from stockade.core.frozen import frozen
from stockade.core.values import PLACEHOLDER

# Query parameters that carry credentials, as letters and digits only.
CREDENTIAL_PARAMETERS = frozenset(
    """key apikey accesskey accesskeyid accesstoken token apitoken authtoken authkey auth authorization bearer sig signature sas secret clientsecret
    password passwd passphrase pwd credential credentials jwt idtoken refreshtoken privatetoken privatekey personalaccesstoken oauthtoken sessiontoken
    sessionid securitytoken subscriptionkey clientassertion xamzsignature xamzcredential xamzsecuritytoken xgoogsignature xgoogcredential awsaccesskeyid
    googleaccessid jobtoken deploytoken usertoken bottoken xapikey xauthtoken xaccesstoken apisecret appsecret secretkey secretaccesskey
    awssecretaccesskey consumersecret appkey applicationkey""".split()
)
CREDENTIAL_HEADERS = frozenset(
    """authorization proxy-authorization cookie x-api-key api-key apikey x-goog-api-key x-auth-token x-access-token x-amz-security-token private-token
    job-token x-gitlab-token x-github-token x-vault-token x-functions-key ocp-apim-subscription-key""".split()
)


@frozen
class CredentialInUse:
    """A credential as far as a decision needs it: the header it goes into, how it is written there, and the stand-in that the sandbox holds.

    `basic`: it is the password of HTTP Basic, beside whatever user name the client gives. `query`: it goes into this parameter, and `header` is "".
    `services` and `regions`: it is a key of AWS that signs for these only (checks/sigv4.py). `tokens`: what stand-ins that were narrowed are judged by.
    """

    name: str
    header: str
    template: str = "{}"
    placeholder: str = ""
    basic: bool = False
    query: str = ""
    services: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    tokens: Tokens | None = None

    @property
    def taken_back(self) -> bool:
        """Whether the stand-in itself has been taken back, and with it everything that stands for this credential."""
        return self.tokens is not None and self.tokens.taken_back(self.placeholder, self.name)


def token_refused(value: str, own: CredentialInUse, facts: dict[str, str | int], now: float) -> tuple[str, str]:
    """(rule, reason) why this value of the credential's header may not leave, ("", "") if it may: it is the stand-in and nothing else, or a token made from it."""
    held = _held(value, own)
    if not own.placeholder or not held:
        return FOREIGN, ""
    if held == own.placeholder:
        return "", ""
    return own.tokens.refused(held, own.name, facts, now) if own.tokens is not None else (FOREIGN, "")


def _held(value: str, own: CredentialInUse) -> str:
    """What stands where the credential goes, "" if the value is not written so."""
    if own.basic:
        scheme, _, token = value.partition(" ")
        return _password(token) if scheme.lower() == "basic" else ""
    before, _, after = own.template.partition("{}")
    scheme, space, rest = before.partition(" ")
    given, _, given_rest = value[: len(before)].partition(" ")
    same = (
        given.lower() == scheme.lower() and given_rest == rest if space else value.startswith(before)
    )  # RFC 9110, 11.1: schemes ignore case
    return value[len(before) : len(value) - len(after)] if same and value.endswith(after) else ""


def _password(token: str) -> str:
    """The password of HTTP Basic credentials (RFC 7617, section 2), "" if they cannot be read in one way."""
    try:
        return base64.b64decode(token, validate=True).decode("utf-8").partition(":")[2]
    except ValueError:
        return ""


def strayed(text: str) -> bool:
    """Whether a placeholder, of whatever session, stands in this text, also percent-encoded."""
    return PLACEHOLDER in text.lower() or ("%" in text and PLACEHOLDER in unquote_plus(text, errors="replace").lower())


def without_own(query: str | None, own: CredentialInUse | None) -> tuple[str | None, str]:
    """(the query without the parameter of `own` that holds its placeholder; why the query may not leave, "" if it may).

    None in place of a query is none at all. The parameter may stand there once, spelled as in the policy, with the placeholder as it was given out, or be
    absent. Whatever else some reader could take for a credential is refused. `query` holds what `query_names` can read.
    """
    if not query:
        return query, ""
    parts = query.split("&")
    mine = f"{own.query}={own.placeholder}" if own is not None and own.query and own.placeholder else ""
    kept = [part for part in parts if part != mine]
    names = query_names("&".join(kept))
    spelled = query_names(own.query)[0] if own is not None and own.query else ""
    if len(parts) - len(kept) > 1 or (spelled and spelled in names):
        return (
            query,
            f"the query parameter {spelled!r} does not hold this session's placeholder exactly once; the gate adds the real credential itself",
        )
    for name in names:
        if name in CREDENTIAL_PARAMETERS:
            return query, f"the query parameter {name!r} looks like a credential, and only the gate adds credentials"
    if strayed("&".join(kept)):
        return query, "the query holds a placeholder outside its place"
    return ("&".join(kept) if kept else None), ""
