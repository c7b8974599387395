"""May raw TCP go to a named host and port? Pure, and by the same laws as `grants.decide`; of such a connection nothing else is known."""

from __future__ import annotations

from stockade.checks.grants import about, counting, sort_key, where
from stockade.checks.normalise import Ambiguous, normalise_host
from stockade.checks.usage import FRESH, State, spent
from stockade.core.values import ALLOW, ASK, DENY, Grant, Verdict


def decide_raw(host: str, port: int, grants: tuple[Grant, ...], state: State = FRESH) -> tuple[Verdict, Grant | None]:
    """May raw TCP go to host:port? Only by a grant with the scheme "tcp"; the verdict and the grant as in `choose`. The laws are those of `decide`."""
    try:
        name = normalise_host(host)
    except Ambiguous as error:
        return Verdict(DENY, error.rule, (f"{error}.",)), None
    matching = [grant for grant in about(name, grants) if grant.scheme == "tcp" and grant.port == port]
    for grant in sorted(set(matching), key=sort_key):
        if grant.effect == DENY:
            return Verdict(DENY, "denied-by-rule", (f"{name}:{port} is denied by {where(grant)}.",)), None
    refused = ("host-not-granted", f"no grant covers raw TCP to {name}:{port}")
    accepted = []
    for grant in sorted(set(matching), key=sort_key):
        rule, reason = spent(grant, 0, state)
        if rule:
            refused = (rule, f"{reason} ({where(grant)})")
        else:
            accepted.append(grant)
    if accepted:
        best = counting(accepted)[0]
        if best.effect == ASK:
            return Verdict(ASK, "approval-needed", (f"raw TCP to {name}:{port} needs a person's approval ({where(best)}).",)), best
        return Verdict(ALLOW, f"grant {best.origin}"), best
    return Verdict(DENY, refused[0], (f"{refused[1]}.",), f'[[egress]]\nhost = "{name}"\nscheme = "tcp"\nport = {port}\n'), None
