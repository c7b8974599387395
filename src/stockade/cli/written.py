"""A compiled policy written down again as a policy file, for `stockade policy show`."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from stockade.core import frozen
from stockade.core.values import ALLOW, Origin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from stockade.core.reviews import Reviewer
    from stockade.core.tools import ToolRule
    from stockade.core.values import Grant, Signing
    from stockade.policy.compile import Compiled


def shown(found: Compiled) -> list[tuple[str, Origin | None]]:
    """Lines of the merged policy with the origin of each."""

    from stockade.policy.caps import shown as size

    policy, written, built_in = found.policy, dict(found.origins), Origin()
    lines: list[tuple[str, Origin | None]] = []

    def single(key: str, text: str) -> None:
        lines.append((f"{key.rpartition('.')[2]} = {text}", written.get(key, built_in)))

    if policy.agent is not None:
        kept = "kept for this workspace" if policy.agent.kept else "gone afterwards"
        lines.append((f"# agent {policy.agent.name}, its state in {policy.agent.home}: private, {kept}", None))
        lines.append((f"# started as: {shlex.join(policy.agent.argv)}\n", None))
    single("wall", _quote(policy.wall))
    single("oversight", _quote(policy.oversight))
    single("gate", _quote(policy.gate))
    lines.append(("\n[workspace]", None))
    for name in ("path", "mode", "git", "scan"):
        single(f"workspace.{name}", _quote(getattr(policy.workspace, name)))
    for mount in policy.mounts:
        at = f"\nat = {_quote(mount.target)}" if mount.target != mount.source else ""
        lines.append((f"\n[[mount]]\npath = {_quote(mount.source)}{at}\nmode = {_quote(mount.mode)}", mount.origin))
    lines.append(("\n[limits]", None))
    for name, value in frozen.plain(policy.limits).items():
        text = size(name, value)
        single(f"limits.{name}", text if text.isdigit() else _quote(text))
    if not policy.root.usual:
        lines.append(("\n[root]", None))
        for name in ("image", "path", "writable", "size"):
            value = getattr(policy.root, name)
            if value:
                single(f"root.{name}", _quote(size("size", value) if name == "size" else value))
    lines.append(("\n[environment]", None))
    lines.append((f"pass = {_list(policy.environment.pass_names)}", None))
    for name, value in policy.environment.set_values:
        lines.append((f"set.{name} = {_quote(value)}", written.get(f"environment.set.{name}", built_in)))
    for grant in policy.grants:
        lines.append((_grant(grant), grant.origin))
    for one in policy.credentials:
        text = f"\n[credential.{one.name}]\nsource = {_quote(one.source)}"
        if one.services:
            profile = f", profile = {_quote(one.profile)}" if one.profile else ""
            text += f"\nsigv4 = {{ services = {_list(one.services)}, regions = {_list(one.regions)}{profile} }}"
        elif one.query:
            text += f"\nquery = {_quote(one.query)}"
        elif one.user:
            text += f"\nuser = {_quote(one.user)}"
        else:
            text += f"\nheader = {_quote(one.header)}\ntemplate = {_quote(one.template)}"
        lines.append((f"{text}\nenv = {_quote(one.env)}", one.origin))
    if policy.signing is not None:
        lines.append((_signing(policy.signing), policy.signing.origin))
    if policy.reviewer is not None:
        lines.append((_reviewer(policy.reviewer), policy.reviewer.origin))
    for name, text in policy.canaries:
        lines.append((f"\n[canary.{name}]\nvalue = {_quote(text)}", None))
    for rule in policy.tools:
        lines.append((_tool(rule), rule.origin))
    for offer in policy.offers:
        lines.append((f'\n[[mount]]\npath = {_quote(offer.source)}\nat = {_quote(offer.target)}\neffect = "ask"', offer.origin))
    for held in policy.files:
        lines.append((f"\n[[file]]\npath = {_quote(held.path)}\neffect = {_quote(held.effect)}", held.origin))
    if not policy.grants:
        lines.append(("\n# no egress: nothing leaves the sandbox", None))
    return lines


def _tool(rule: ToolRule) -> str:
    match = ", ".join(f"{_quote(name)} = {_quote(pattern)}" for name, pattern in rule.match)
    text = f"\n[[tool]]\nname = {_quote(rule.name)}" + (f"\nmatch = {{ {match} }}" if match else "") + f"\neffect = {_quote(rule.effect)}"
    return text + ("\npeople = true" if rule.people else "")


def _signing(signing: Signing) -> str:
    from stockade.policy.units import show_duration

    text = f"\n[signing]\nkey = {_quote(signing.file)}\nnamespaces = {_list(signing.namespaces)}"
    text += f"\nuses = {signing.uses}" if signing.uses else ""
    return text + (f"\nrate = {_quote(f'{signing.rate} per {show_duration(signing.rate_seconds)}')}" if signing.rate else "")


def _reviewer(found: Reviewer) -> str:
    from stockade.policy.units import show_duration

    text = "\n[reviewer]" + ("" if found.approves else "\napproves = false")
    if model := found.model:
        text += f"\nurl = {_quote(model.url)}\napi = {_quote(model.api)}\nmodel = {_quote(model.name)}"
        text += (
            f"\ncredential = {_quote(model.credential.name)}" if model.credential else ""
        ) + f"\ntimeout = {_quote(show_duration(model.timeout))}"
    for name, rules in (("allow", found.allow), ("deny", found.deny)):
        for rule in rules:
            said = [f"{key} = {_list(getattr(rule, key))}" for key in ("methods", "hosts", "risk") if getattr(rule, key)]
            said += [f"{key} = true" for key in ("reversible", "tainted") if getattr(rule, key)]
            said += [f"max_size = {rule.max_size}"] if rule.max_size >= 0 else []
            text += f"\n{name} = {{ {', '.join(said)} }}"
    return text


def _grant(grant: Grant) -> str:
    from stockade.policy.units import show_duration, show_size

    text = f"\n[[egress]]\nhost = {_quote(grant.host)}\nport = {grant.port}\nscheme = {_quote(grant.scheme)}"
    text += f"\ngrpc = {_list([path[1:] for path in grant.paths])}" if grant.grpc else ""
    http = grant.scheme != "tcp" and not grant.grpc
    text += f"\nmethods = {_list(grant.methods)}\npaths = {_list(grant.paths)}" if http else ""
    if grant.effect != ALLOW:
        return f'{text}\neffect = "{grant.effect}"'
    if http:
        text += f"\nparameters = {_list(grant.parameters)}" if grant.query == "listed" else f"\nquery = {_quote(grant.query)}"
    if grant.headers:
        text += f"\nheaders = {_list(grant.headers)}"
    if grant.credential:
        text += f"\ncredential = {_quote(grant.credential)}"
    if grant.private:
        text += "\nprivate = true"
    if grant.content_types:
        text += f"\ncontent_types = {_list(grant.content_types)}"
    for rule in grant.body:
        said = f", values = [{', '.join(rule.values)}]" if rule.values else ", absent = true" if rule.absent else ""
        said += f", most = {rule.most}" if rule.most >= 0 else ""
        text += f"\nbody = {{ pointer = {_quote(rule.pointer)}{said} }}"
    if grant.credential_fields and not grant.grpc:
        text += f"\ncredential_fields = {_list(grant.credential_fields)}"
    if grant.websocket:
        text += "\nwebsocket = true"
    if grant.refs:
        text += f"\nrefs = {_list(grant.refs)}"
    if grant.uses:
        text += f"\nuses = {grant.uses}"
    if grant.rate:
        text += f"\nrate = {_quote(f'{grant.rate} per {show_duration(grant.rate_seconds)}')}"
    for name in ("not_before", "not_after"):
        if moment := getattr(grant, name):
            text += f"\n{name} = {datetime.fromtimestamp(moment, UTC).isoformat()}"
    for name in ("secret", "after_secret"):
        if getattr(grant, name):
            text += f"\n{name} = true"
    if grant.max_download:
        text += f"\nmax_download = {_quote(show_size(grant.max_download))}"
    if grant.upload_budget:
        text += f"\nupload_budget = {_quote(show_size(grant.upload_budget))}"
    return f"{text}\nmax_upload = {_quote(show_size(grant.max_upload))}"


def _quote(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(_quote(value) for value in values) + "]"
