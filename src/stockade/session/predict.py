"""What the gate would say to a request, said beforehand: the gate's own judge and flow, asked without an engine, a network or a name server.

Nothing here decides: the answer is `Flow.examine`'s, over a judge made from the same configuration as the gate's. What only happens later is not
foreseen: whether the name resolves to an address that may be used, what the session has used by then, and whether the request holds one of the broker's
own secrets.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from stockade.checks import fields, protected, tools
from stockade.checks.usage import counted
from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen, plain, replace
from stockade.core.values import ALLOW, ASK, DENY, PLACEHOLDER, Credential, Grant, Origin, Policy, Verdict
from stockade.gatehouse import Judge
from stockade.gateway import broker, sigv4
from stockade.gateway.asking import Sent, Unasked, connect, questions
from stockade.gateway.config import MAX_BUFFERED
from stockade.gateway.flow import Flow, Outcome, Synthetic
from stockade.gateway.hooks import Call, Change

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade.checks.grants import Refusal
    from stockade.core.tools import FileRule, MountRule, ToolRule
    from stockade.gateway.hooks import Showing

UNDECIDED = "undecided"
_SESSION = "foreseen"
_UNREAD_RAW = "nothing of what passes, but for strings that must never leave"
_UNREAD = "stockade-unread-"  # stands for a secret that nobody has to read for this


@frozen
class Rules:
    """What a gate is configured with. `placeholders` are the session's stand-ins by credential; `revoked` are places in the policy's grants.
    `tainted`: the session has opened a secret mount. `session`, `token_key` and `revoked_tokens`: what its tokens are judged by (checks/tokens.py)."""

    policy: Policy
    placeholders: Mapping[str, str]
    learning: bool = False
    revoked: tuple[int, ...] = ()
    tainted: bool = False
    session: str = ""
    token_key: str = ""
    revoked_tokens: tuple[str, ...] = ()


@frozen
class Prediction:
    """`effect` is "allow", "ask" (refused unless a person approves it), "deny", or "undecided": the body has to be read, and is not known.

    `event` is what the ledger would hold if nobody approves, {} if the engine refuses by itself. `origin` is where the deciding rule stands, None for what is built in.
    `weighed`: the grants that name the host, the deciding one first, and why each does not cover the request (None: it does). `read` says what would be
    looked at of the body, in words; `notes` what this cannot foresee.
    """

    effect: str
    verdict: Verdict
    event: dict[str, object]
    origin: Origin | None
    credential: str
    named: bool
    read: str
    weighed: tuple[tuple[Grant, Refusal | None], ...] = ()
    notes: tuple[str, ...] = ()


def rules_for(policy: Policy) -> Rules:
    """The rules of a session that has not begun: its placeholders have names, but are nobody's yet."""
    return Rules(policy, {one.name: f"{PLACEHOLDER}{one.name}" for one in policy.credentials})


def rules_of(directory: str) -> Rules:
    """The rules of the running session in `directory`, without what was taken back. Raises StockadeError (`session.silent`)."""
    from stockade.gateway.desk import ask

    said = ask(directory, {"do": "rules"})
    return Rules(
        Policy.from_plain(said["policy"]),
        said["placeholders"],
        bool(said["learning"]),
        tuple(said["revoked"]),
        bool(said["tainted"]),
        said["session"],
        said["token_key"],
        tuple(said["revoked_tokens"]),
    )


def unavailable(policy: Policy, environment: Mapping[str, str]) -> StockadeError | None:
    """Why a gate with this policy would not start here: a credential that has no value. Sources that would run a program are not tried."""
    for one in policy.credentials:
        try:
            if one.services:
                sigv4.require()
            if not _runs(one):
                (broker.resolve_keys if one.services else broker.resolve)(one, environment)
        except StockadeError as error:
            return error
    return None


def predict(rules: Rules, sent: Sent) -> Prediction:
    """What the gate would say to `sent`. Raises nothing for anything the request holds, and CannotEnforce where a gate with these rules could not start."""
    judge = _Witness(_config(rules))
    judge.revoke(list(rules.revoked), [])
    flow = Flow(_SESSION, judge, Synthetic(lambda _address, _name: None))
    if sent.scheme == "tcp":
        return _raw(rules, judge, flow, sent)
    tunnel = flow.examine(connect(sent, _SESSION)) if sent.scheme == "https" else None
    read, undecided = "nothing", ""
    try:
        first, again = questions(sent, _SESSION)
    except Unasked as error:
        if tunnel is None or tunnel.verdict.effect == ALLOW:
            return _by_engine(judge, tunnel, error.status, f"{error}")
        first, outcome = connect(sent, _SESSION), tunnel
    else:
        outcome = flow.examine(first)
        read = _read(judge, rules, outcome, first.target, sent)
        undecided = _undecided(outcome, sent)
        if outcome.read and not undecided:
            if sent.length > MAX_BUFFERED:
                return _by_engine(judge, tunnel, 413, f"the body would have to be read, and is larger than {MAX_BUFFERED} bytes")
            outcome = flow.examine(again)
    weighed, policy = judge.weigh(**judge.asked) if judge.asked else (), rules.policy
    suggested = outcome.verdict.grant
    if tunnel is not None and tunnel.verdict.effect != ALLOW:
        outcome, undecided = tunnel, ""
        suggested = suggested or tunnel.verdict.grant
    verdict = replace(outcome.verdict, grant=suggested if outcome.verdict.effect == DENY else "")
    host = outcome.host or sent.authority
    chosen = outcome.grant or (weighed[0][0] if undecided else None)
    return Prediction(
        UNDECIDED if undecided else verdict.effect,
        replace(verdict, reasons=(undecided,)) if undecided else verdict,
        {} if undecided else _event(outcome),
        _origin(verdict, weighed) if outcome.inside is None else _inside(outcome.inside, policy),
        chosen.credential if chosen else "",
        judge.name(host),
        read,
        weighed,
        _notes(rules, sent, verdict, chosen, weighed),
    )


def predict_call(policy: Policy, name: str, arguments: Mapping[str, str]) -> tuple[Verdict, Origin]:
    """What an agent would be answered that asks whether it may call this tool with these arguments. Raises StockadeError (`policy.question`) for what is no name of one."""
    said = {"hook_event_name": "PreToolUse", "tool_name": name, "tool_input": dict(arguments)}
    try:
        verdict, rule = tools.decide(tools.read(json.dumps(said).encode()), policy.tools)
    except ValueError as error:
        hint = 'Write its name as the agent does: "tool Bash command=git push".'
        raise StockadeError(f"{name!a} is no name of a tool: {error}", code="policy.question", hint=hint) from None
    return verdict, rule.origin if rule is not None else Origin()


def predict_change(policy: Policy, path: str) -> tuple[Verdict, Origin]:
    """Whether anybody would be asked about a change to this file of the workspace."""
    verdict, rule = protected.decide(path, policy.files)
    return verdict, rule.origin if rule is not None else Origin()


def closed(found: Prediction, rule: str, reason: str) -> Prediction:
    """The prediction for a gate that is not there: nothing leaves then, and nothing is decided. What would be refused anyway keeps its reason."""
    if found.effect == DENY:
        return replace(found, notes=(reason, *found.notes))
    return replace(found, effect=DENY, verdict=Verdict(DENY, rule, (reason,)), event={}, origin=None, credential="")


def _raw(rules: Rules, judge: Judge, flow: Flow, sent: Sent) -> Prediction:
    """Raw TCP: asked about once, by the name that an address was given out for. Nobody asks where there is no address, or no listener on the port."""
    try:
        host, port = judge.authority(sent.authority, 0)
    except ValueError as error:
        return Prediction(DENY, Verdict(DENY, str(getattr(error, "rule", "bad-host")), (f"{error}.",)), {}, None, "", False, _UNREAD_RAW)
    outcome, named = flow.raw(host, port), judge.name(host)
    heard = named and any(grant.scheme == "tcp" and grant.port == port for grant in rules.policy.grants)
    origin = outcome.grant.origin if outcome.grant else None
    notes = _notes(rules, sent, outcome.verdict, outcome.grant, ((outcome.grant, None),) if outcome.grant else ())
    return Prediction(
        outcome.verdict.effect, outcome.verdict, _event(outcome) if heard else {}, origin, "", named, _UNREAD_RAW, notes=notes
    )


class _Witness(Judge):
    """The gate's judge, which remembers what it was asked about the request itself."""

    asked: dict[str, Any] | None = None

    def request(self, **asked: Any) -> tuple[Verdict, Grant | None]:
        self.asked = asked
        return super().request(**asked)


def _config(rules: Rules) -> dict[str, Any]:
    """A gate's configuration (docs/gate.md), as far as its judge looks at it, with made-up secrets."""
    policy = rules.policy
    secret = dict.fromkeys(("UNREAD", "UNREAD_ACCESS_KEY_ID", "UNREAD_SECRET_ACCESS_KEY"), _UNREAD + os.urandom(12).hex())
    credentials = tuple(replace(one, source="env:UNREAD_ACCESS_KEY_ID" if one.services else "env:UNREAD") for one in policy.credentials)
    return {
        "grants": [plain(grant) for grant in policy.grants],
        "canaries": dict(policy.canaries),
        "tools": [plain(rule) for rule in policy.tools],
        "files": [plain(rule) for rule in policy.files],
        "offers": [plain(rule) for rule in policy.offers],
        "learning": rules.learning,
        "tainted": rules.tainted,
        "credentials": broker.for_gate(credentials, rules.placeholders, secret),
        "session": rules.session,
        "token_key": rules.token_key,
        "revoked_tokens": list(rules.revoked_tokens),
    }


def _event(outcome: Outcome) -> dict[str, object]:
    event = {name: value for name, value in outcome.event.items() if name != "session"}
    if outcome.verdict.effect == ASK:
        event.pop("credential", None)
        event["effect"] = DENY
    return event


def _by_engine(judge: Judge, tunnel: Outcome | None, status: int, reason: str) -> Prediction:
    text = f"{reason}: the engine answers {status} itself, and the ledger does not hear of it"
    verdict = Verdict(DENY, "malformed", (f"{text}.",))
    return Prediction(DENY, verdict, {}, None, "", tunnel is None or judge.name(tunnel.host), "nothing")


def _undecided(outcome: Outcome, sent: Sent) -> str:
    """Why the answer is not known before the body is, "" if it is."""
    grant = outcome.grant
    if sent.body is None and outcome.verdict.effect == ALLOW and (outcome.read or (grant is not None and grant.refs)):
        return "Everything else is granted, but what the body holds decides, and it is not given."
    return ""


def _read(judge: _Witness, rules: Rules, outcome: Outcome, target: str, sent: Sent) -> str:
    """What would be looked at of the body, in words."""
    if outcome.grant is not None and outcome.grant.grpc:
        return "nothing: what passes is counted, and not read"
    if not sent.length:
        return "nothing: there is no body"
    asked, grant, path = judge.asked, outcome.grant, target.partition("?")[0]
    if asked is None or outcome.verdict.effect != ALLOW:
        return "its beginning, which comes with the question, for strings that must never leave"
    if grant is None:  # only its size was shown so far
        grant = next(one for one, refusal in judge.weigh(**asked) if refusal is None)
    searched = judge.searches(grant, asked["headers"], asked["start"])
    if not judge.reads(path, grant) and not searched:
        return (
            "its beginning, for strings that must never leave"
            + (" and for the refs of a push" if grant.refs else "")
            + "; the rest streams"
        )
    why = ["the rule says what it must hold"] * bool(grant.body)
    why += ["this is the path of a model API"] * fields.inspected(path)
    why += ["strings are planted that must never leave"] * bool(rules.policy.canaries)
    signed = any(one.services for one in rules.policy.credentials if one.name == grant.credential)
    why += ["it is part of what is signed" if signed else "somebody else's credential might be among its fields"] * searched
    return f"all of it, before anything moves: {', and '.join(why)}"


def _origin(verdict: Verdict, weighed: tuple[tuple[Grant, Refusal | None], ...]) -> Origin | None:
    """Where the rule stands that decided. Only a grant's own word counts: what is refused whatever is granted stands nowhere."""
    if not weighed:
        return None
    grant, refusal = weighed[0]
    if refusal is None:
        own = verdict.effect == grant.effect and verdict.rule in (f"grant {grant.origin}", "approval-needed", "denied-by-rule")
    else:
        own = refusal.depth > 0 and verdict.rule == refusal.rule
    return grant.origin if own else None


def _inside(about: Call | Change | Showing, policy: Policy) -> Origin | None:
    """Where the rule stands that decides about what is asked of the gate itself."""
    rules: Sequence[ToolRule | FileRule | MountRule] = policy.files if isinstance(about, Change) else policy.offers
    rules = policy.tools if isinstance(about, Call) else rules
    return rules[about.place].origin if about.place >= 0 else None


def _notes(
    rules: Rules, sent: Sent, verdict: Verdict, grant: Grant | None, weighed: tuple[tuple[Grant, Refusal | None], ...]
) -> tuple[str, ...]:
    notes = []
    if grant is not None:
        kind = "an address that may be private" if grant.private else "a public address"
        notes.append(
            f"The gate resolves {grant.host if grant.host[:1] != '*' else 'the name'} only when it is asked; it must then have {kind}."
        )
    policy = rules.policy
    secret = not rules.tainted and (any(one.secret for one in policy.grants) or any(one.secret for one in policy.mounts))
    if any(counted(one) or one.after_secret for one, _ in weighed) or (weighed and secret):
        notes.append("Uses, rates, budgets and what something secret changes are told as for a session that has just begun.")
    if grant is not None and sent.body is None:
        notes.append("The body was not given: what it holds, such as somebody's credential, may still refuse it.")
    sources = [one.name for one in rules.policy.credentials if _runs(one) and (grant is None or one.name == grant.credential)]
    if verdict.effect == ALLOW and sources:
        notes.append(f"The credential {', '.join(sources)} is fetched when the gate starts; whether that works was not tried.")
    if grant is not None and rules.policy.credentials:
        notes.append("Whether it carries a real secret itself, which is refused, was not looked at.")
    return tuple(notes)


def _runs(credential: Credential) -> bool:
    return credential.source.partition(":")[0] not in ("env", "file")
