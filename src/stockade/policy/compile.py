"""From layers to one policy: managed > user > a trusted project's own > the file that the command line named > the command line itself.

A later layer's single values replace an earlier one's, lists add up, denials always count, and caps bind every layer below (caps.py).
Relative paths start where stockade is started, whatever file they stand in.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from stockade.core import places
from stockade.core.errors import PolicyError
from stockade.core.frozen import frozen, replace
from stockade.core.tools import MountRule
from stockade.core.values import DENY, Agent, Credential, Environment, Grant, Limits, Mount, Origin, Policy, Workspace
from stockade.policy import agents, defaults, files, paths
from stockade.policy import overrides as command_line
from stockade.policy.approvals import merge_approvals
from stockade.policy.caps import Caps
from stockade.policy.egress import Rules
from stockade.policy.model import keys_of
from stockade.policy.problems import each, raise_all
from stockade.policy.project import LAYER, judge, judge_grants
from stockade.policy.read import Document, parse, validate
from stockade.policy.reviewer import merge_reviewer, unreviewed
from stockade.policy.root import merge_root
from stockade.policy.signing import SigningRules
from stockade.policy.tools import asked_mounts, merge_files, merge_tools, offer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal

    from stockade.policy.files import Watch
    from stockade.policy.model import Wall

MOST_PORTS = 32  # of raw TCP; a door hands out at most 64 sockets, and has some of its own
_HARMLESS = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PAGER")
_SECRET_NAME = re.compile(
    r"(^|_)(API)?KEYS?($|_)|KEY$|TOKEN|SECRET|PASSW|CREDENTIAL|(^|_)(AUTH|PAT|PWD)$|^AWS_|PRIVATE|COOKIE|_DSN$|^SSH_AUTH_SOCK$"
)
_SECRET_VALUE = re.compile(
    r"sk-[A-Za-z0-9_-]{16}|gh[opsu]_[A-Za-z0-9]{20}|github_pat_|glpat-|xox[abpr]-|A[KS]IA[A-Z0-9]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|eyJ[\w-]{8,}\.eyJ"
)
_OURS = ("PATH", "HOME", "PWD")
_LEAST = {"memory": 16 << 20, "file_size": 4096, "scratch": 1 << 20, "processes": 2, "open_files": 16}


@frozen
class Compiled:
    """A merged policy with what people want to know about it.

    `warnings` are not raised; `origins` says where single values came from (dotted key, origin); `witnesses` is everything that was read for it.
    """

    policy: Policy
    warnings: tuple[PolicyError, ...] = ()
    origins: tuple[tuple[str, Origin], ...] = ()
    witnesses: tuple[tuple[str, str, str], ...] = ()


def looks_secret(name: str) -> bool:
    """Does a variable of this name usually hold a credential?"""
    return name not in _HARMLESS and name.upper() != "PWD" and _SECRET_NAME.search(name.upper()) is not None


def compile_policy(
    cwd: str,
    *,
    policy_file: str | None = None,
    overrides: tuple[tuple[str, str], ...] = (),
    project: tuple[str, bytes] | None = None,
    managed: str = "",
    managed_owner: int = 0,
) -> Compiled:
    """Read and merge all layers for a start in `cwd`. Raises PolicyError; several errors come together as problems.PolicyErrors.

    `project` is the name and the content of the file of a project that its user trusts; it is not read here.
    `managed` and `managed_owner` (a uid) are for tests: the managed file has one place and belongs to root.
    """
    cwd = os.path.realpath(cwd)
    watch = files.Watch()
    wanted = [
        ("managed", managed or places.MANAGED_POLICY, f"owned:{managed_owner}"),
        ("user", places.config("policy.toml"), f"owned:{os.geteuid()}"),
    ]
    if policy_file is not None:
        wanted.append(("file", paths.expand(policy_file, cwd), "file"))
    if project is not None:
        wanted.insert(2, (LAYER, project[0], ""))
    documents: list[Document] = []
    sources: list[tuple[str, str]] = []
    errors: list[PolicyError] = []
    for layer, path, kind in wanted:
        kind, _, owner = kind.partition(":")
        if project is not None and layer == LAYER:
            data: bytes | None = files.bounded(project[1], path)
        else:
            data = files.read(path, owner=int(owner) if owner else None)
            watch.seen[(f"{kind}:{owner}" if owner else kind, path)] = "" if data is None else files.digest(data)
        if data is None and layer == "file":
            raise PolicyError(f"there is no file {path}", code="policy.no-file", hint="Name a policy file, or leave --policy out.")
        if data is not None:
            sources.append((path, files.digest(data)))
            try:
                documents.append(parse(data, layer=layer, name=path))
            except PolicyError as error:
                errors += each(error)
    raise_all(errors)
    if overrides:
        documents.append(command_line.document(overrides))
    name = dict(overrides).get("agent", "")
    base, agent = agents.layer(name, documents, watch) if name else (None, None)
    merge = _Merge(documents, cwd, watch, ("egress", "none") in overrides, base, agent)
    policy = replace(merge.run(), sources=tuple(sources))
    return Compiled(policy, tuple(merge.warnings), tuple(sorted(merge.origins.items())), watch.witnesses())


class _Merge:
    """One merge. Collects errors, so that people see all of them."""

    def __init__(
        self, documents: Sequence[Document], cwd: str, watch: Watch, no_egress: bool, base: Document | None, agent: Agent | None
    ) -> None:
        self.documents, self.cwd, self.watch, self.no_egress = [*([base] if base else ()), *documents], cwd, watch, no_egress
        self.agent = agent
        self.offers: dict[str, MountRule] = {}  # mounts that are asked for, by their targets
        self.builtin = validate({"version": 1}, layer="built-in", name="built-in", lines={})
        self.errors: list[PolicyError] = []
        self.warnings: list[PolicyError] = []
        self.origins: dict[str, Origin] = {}
        # What binds each layer: the caps of the layers above it. The built-in layer and an agent's are bound by all.
        self.caps = {id(one): Caps(documents[:index], cwd) for index, one in enumerate(documents)}
        self.all_caps = Caps(documents, cwd)
        self.caps[id(self.builtin)] = self.all_caps
        if base is not None:
            self.caps[id(base)] = self.all_caps

    def run(self) -> Policy:
        for document in self.documents:
            self._check_caps_table(document)
        wall, oversight = self._wall(), self._oversight()
        gate = self._gate()
        workspace, limits, mounts = self._workspace(), self._limits(), self._mounts()
        rules = Rules(self.watch, self.cwd, self.caps, self.errors, self.warnings)
        grants, credentials, variables = rules.merge(self.documents)
        canaries = dict.fromkeys((name, table.value) for one in self.documents for name, table in one.tables.canary.items())
        self.errors += judge(self.documents, self.cwd, workspace.path)
        self.errors += judge_grants(self.documents, grants)
        self._unread(grants, canaries)
        self._ports(grants)
        if self.no_egress:
            grants, variables = (), ()
        environment = self._environment(variables)
        shown = (*mounts, Mount(workspace.path, workspace.path, workspace.mode, workspace.origin))
        reviewer = merge_reviewer(self.documents, self.caps, rules, self.errors)
        lent = (reviewer.model.credential,) if reviewer and reviewer.model and reviewer.model.credential else ()
        self._credential_files((*credentials, *lent), shown)
        signing = SigningRules(self.watch, self.cwd, self.caps, self.errors, self.warnings, shown).merge(self.documents)
        self._own_writable(workspace, mounts)
        root = merge_root(self.documents, self.caps, self.errors, self.origins, limits, self._shown)
        approvals = merge_approvals(self.documents, grants, oversight, self.errors)
        tools = merge_tools(self.documents, oversight, self.errors)
        offers = asked_mounts(self.offers, oversight, self.errors)
        held = merge_files(self.documents, oversight, self.caps, workspace.mode, self.errors)
        if approvals.webhook_secret:
            written = next(one for one in self.documents if one.tables.approvals is not None and one.tables.approvals.webhook)
            at = written.origin("approvals", "webhook_secret")
            self._credential_files((Credential("webhook", approvals.webhook_secret, origin=at),), shown)
        if reviewer is not None:
            grants, tools = unreviewed(grants, self.documents), unreviewed(tools, self.documents)
        for caps in self.caps.values():
            self.errors += caps.errors
        raise_all(self.errors)
        policy = Policy(wall, oversight, workspace, mounts, environment, limits, grants, credentials)
        policy = replace(policy, canaries=tuple(canaries), signing=signing, gate=gate, root=root)
        return replace(policy, approvals=approvals, agent=self._kept(), reviewer=reviewer, tools=tools, files=held, offers=offers)

    def _kept(self) -> Agent | None:
        """Its state stays on the host's disk where caps let anything be written there at all."""
        return replace(self.agent, kept=self.all_caps.default_mode("rw") == "rw") if self.agent is not None else None

    def _unread(self, grants: tuple[Grant, ...], canaries: Mapping[tuple[str, str], None]) -> None:
        """With a canary all bodies are read before they leave, and those of gRPC calls cannot be."""
        for at in {grant.origin for grant in grants if grant.grpc and canaries}:
            names = ", ".join(name for name, _ in canaries)
            message = f"this rule is for gRPC, whose bodies cannot be read, and canaries are looked for in every body ({names})"
            hint = "Leave out this rule, or the canaries."
            self.errors.append(PolicyError(message, code="policy.grpc", file=at.file, line=at.line, key=at.key, hint=hint))

    def _ports(self, grants: tuple[Grant, ...]) -> None:
        """Raw TCP takes a socket of the door for each port."""
        first = {grant.port: grant.origin for grant in reversed(grants) if grant.scheme == "tcp" and grant.effect != DENY}
        if len(first) > MOST_PORTS:
            at = next(iter(first.values()))
            message = f"raw TCP is granted to {len(first)} different ports, and a sandbox has room for {MOST_PORTS}"
            hint = "Leave some out, or reach several services through one port."
            self.errors.append(PolicyError(message, code="policy.tcp", file=at.file, line=at.line, key=at.key, hint=hint))

    def _check_caps_table(self, document: Document) -> None:
        if document.tables.serial is not None and document.layer != "managed":
            hint = "It counts editions of the administrator's policy; leave it out here."
            self.errors.append(document.error("serial has no meaning in this file", "serial", code="policy.serial-here", hint=hint))
        if document.tables.caps is not None and document.layer not in ("managed", "user"):
            hint = "Caps bind the layers below; they stand in the managed or in your own policy."
            self.errors.append(document.error("a [caps] table has no effect in this file", "caps", code="policy.caps-here", hint=hint))

    def _wall(self) -> Wall:
        chosen: Wall | None = None
        for one in self.documents:
            if one.tables.wall is not None:
                self.caps[id(one)].wall(one.tables.wall, one)
                chosen, self.origins["wall"] = one.tables.wall, one.origin("wall")
        if chosen is None and (chosen := self.all_caps.default_wall()) is None:
            by = next(by for by, cap in self.all_caps.all if cap.walls is not None)
            self.errors.append(by.error("the caps leave no wall to choose", "caps", "walls", code="policy.capped"))
        return chosen or "auto"

    def _oversight(self) -> Literal["developer", "none"]:
        chosen: Literal["developer", "none"] = "developer"
        for one in self.documents:
            if one.tables.oversight is not None:
                chosen, self.origins["oversight"] = one.tables.oversight, one.origin("oversight")
        return chosen

    def _gate(self) -> Literal["own", "shared"]:
        """Sharing is the wider choice: where a layer says "own", no lower one can undo it."""
        chosen: Literal["own", "shared"] = "own"
        by: Document | None = None
        for one in self.documents:
            if one.tables.gate == "shared" and by is not None:
                where = f"{by.origin('gate').file}:{by.origin('gate').line}"
                hint = f"Only the owner of {by.origin('gate').file} can widen it."
                self.errors.append(one.error(f"a shared gate is wider than {where} allows (gate)", "gate", code="policy.capped", hint=hint))
            if one.tables.gate is not None:
                chosen, self.origins["gate"] = one.tables.gate, one.origin("gate")
                by = one if chosen == "own" else by
        return chosen

    def _workspace(self) -> Workspace:
        found: dict[str, Any] = {}
        holders: dict[str, Document] = {}
        for one in self.documents:
            for name in keys_of("workspace"):
                value = getattr(one.tables.workspace, name, None)
                if value is not None:
                    found[name], holders[name] = value, one
                    self.origins[f"workspace.{name}"] = one.origin("workspace", name)
                    if name == "mode":
                        self.caps[id(one)].mode(value, one, ("workspace", "mode"))
        mode = found.get("mode") or self.all_caps.default_mode("rw")
        holder = holders.get("path", self.builtin)
        origin = holder.origin("workspace", "path")
        real = self._shown(found.get("path", "."), "workspace", mode, holder, ("workspace", "path"))
        return Workspace(real, mode, found.get("git", "private"), found.get("scan", "behind"), origin)

    def _shown(self, written: str, what: str, mode: str, holder: Document, key: tuple[str | int, ...]) -> str:
        """Resolve and judge a host path. What is judged is what gets mounted: the resolved path."""
        path = paths.expand(written, self.cwd)
        self.watch.note("real", path)
        try:
            real = os.path.realpath(path)
        except OSError:  # a link that we may not read, such as another process's root
            real = path
        try:
            paths.judge(real, what=what, mode=mode, origin=holder.origin(*key), named=path if written == "." else written)
        except PolicyError as error:
            self.errors.append(error)
        self.caps[id(holder)].path(real, written if written != "." else real, holder, key)
        return real

    def _mounts(self) -> tuple[Mount, ...]:
        merged: dict[str, Mount] = {}
        for one in self.documents:
            own: set[str] = set()
            for index, table in enumerate(one.tables.mount):
                key = ("mount", index)
                mode = table.mode or self.caps[id(one)].default_mode("ro")
                if table.mode is not None:
                    self.caps[id(one)].mode(mode, one, (*key, "mode"))
                real = self._shown(table.path, "mount", mode, one, (*key, "path"))
                target = table.at or paths.expand(table.path, self.cwd)
                if target in own:
                    self.errors.append(
                        one.error(f"{target} is mounted twice", *key, code="policy.mounted-twice", hint="Keep one of the two.")
                    )
                own.add(target)
                if offer(table, one, key, MountRule(real, target, table.path, one.origin(*key)), self.offers, self.errors):
                    if target in merged and merged.pop(target).secret:  # INVARIANT: as below
                        message, hint = (
                            f"{target} is secret in another layer, and that stays",
                            "Leave this out, or give it a place of its own.",
                        )
                        self.errors.append(one.error(message, *key, code="policy.capped", hint=hint))
                    continue
                # INVARIANT: a later layer shows something else at a place, and never lifts the mark from it.
                secret = bool(table.secret) or (target in merged and merged[target].secret)
                merged[target] = Mount(real, target, mode, one.origin(*key), secret)
        return tuple(merged.values())

    def _limits(self) -> Limits:
        limits, written = Limits(), set()
        for one in self.documents:
            for name in keys_of("limits"):
                value = getattr(one.tables.limits, name, None)
                if value is None:
                    continue
                if 0 < value < _LEAST.get(name, 0):
                    hint = f'At least {_LEAST[name]}; sizes take a unit, such as "8 GiB".'
                    message = f"limits.{name} = {value} is too little for any command"
                    self.errors.append(one.error(message, "limits", name, code="policy.bad-value", hint=hint))
                self.caps[id(one)].limit(name, value, one)
                limits = replace(limits, **{name: value})
                written.add(name)
                self.origins[f"limits.{name}"] = one.origin("limits", name)
        return self.all_caps.narrow_limits(limits, written)

    def _environment(self, variables: tuple[tuple[str, str], ...]) -> Environment:
        names = dict.fromkeys(defaults.PASS_NAMES)
        values = dict(variables)
        for one in self.documents:
            table = one.tables.environment
            if table is None:
                continue
            for index, name in enumerate(table.pass_):
                self._passed(name, one, index)
                names |= dict.fromkeys(defaults.LOCALE_NAMES if name == "LC_*" else (name,))
                self.origins[f"environment.pass.{name}"] = one.origin("environment", "pass")
            for name, value in table.set.items():
                self._set(name, value, one)
                values[name] = value
                self.origins[f"environment.set.{name}"] = one.origin("environment", "set", name)
        return Environment(tuple(name for name in names if name not in values), tuple(values.items()))

    def _passed(self, name: str, one: Document, index: int) -> None:
        key = ("environment", "pass", index)
        if name in _OURS:
            hint = f'{name} is made for the sandbox. If you must: set = {{ {name} = "..." }}.'
            self.errors.append(one.error(f"{name} is not taken from outside", *key, code="policy.not-passed", hint=hint))
        elif looks_secret(name):
            short = name.lower().split("_")[0]
            hint = (
                f"A credential inside can be stolen; let the gate add it outside:\n"
                f'    [credential.{short}]\n    source = "env:{name}"\n\n'
                f'    [[egress]]\n    host = "api.example.com"\n    methods = ["POST"]\n    paths = ["/v1/..."]\n    credential = "{short}"\n'
                f"  Inside, {name} then holds a stand-in that is worth nothing elsewhere."
            )
            if name == "SSH_AUTH_SOCK":
                hint = 'With it everything inside could log in as you. For signed commits: [signing] with key = "~/.ssh/id_ed25519.pub".'
            self.errors.append(one.error(f"{name} looks like a credential and may not enter", *key, code="policy.secret-passed", hint=hint))

    def _set(self, name: str, value: str, one: Document) -> None:
        key = ("environment", "set", name)
        if name == "SSH_AUTH_SOCK" and any(document.tables.signing for document in self.documents):
            self.errors.append(
                one.error("SSH_AUTH_SOCK is set by [signing]", *key, code="policy.set-twice", hint="Leave one of the two out.")
            )
            return
        if _SECRET_VALUE.search(value):
            hint = f'Keep it outside: [credential.NAME] with source = "env:{name}" and an [[egress]] rule that uses it.'
            self.errors.append(one.error(f"the value of {name} is a credential", *key, code="policy.secret-set", hint=hint))
        elif looks_secret(name):
            hint = 'A [credential.NAME] with env = "' + name + '" puts a stand-in there by itself.'
            self.warnings.append(
                one.error(f"{name} looks like a credential; is its value harmless?", *key, code="policy.secret-set", hint=hint)
            )

    def _credential_files(self, credentials: tuple[Credential, ...], shown: tuple[Mount, ...]) -> None:
        for credential in credentials:
            kind, _, rest = credential.source.partition(":")
            if kind != "file":
                continue
            real = os.path.realpath(paths.expand(rest, self.cwd))
            for mount in shown:
                if paths.within(real, mount.source):
                    self.errors.append(
                        PolicyError(
                            f"the file of the credential {credential.name} lies in {mount.source}, which the sandbox sees",
                            code="policy.secret-mounted",
                            hint="Keep the file elsewhere, or mount less.",
                            file=credential.origin.file,
                            line=credential.origin.line,
                            key=credential.origin.key,
                        )
                    )

    def _own_writable(self, workspace: Workspace, mounts: tuple[Mount, ...]) -> None:
        open_places = [mount.source for mount in mounts if mount.mode != "ro"] + ([workspace.path] if workspace.mode != "ro" else [])
        for one in self.documents:
            if one.layer == "file" and any(paths.within(os.path.realpath(one.name), place) for place in open_places):
                hint = "Read it again before the next start, or keep it outside the workspace."
                self.warnings.append(one.error("the agent can change this policy file", code="policy.writable", hint=hint))
