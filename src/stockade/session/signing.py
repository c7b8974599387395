"""Signing for a sandbox with a key that never enters it: an agent's socket inside, the user's own ssh-agent outside, and the decision between them.

Only sessions whose policy has [signing] load this. Every signature is in the ledger before it is asked for (no receipt, no effect).
"""

from __future__ import annotations

import os
import time

from stockade.checks import signing as checks
from stockade.core.errors import CannotEnforce
from stockade.core.frozen import plain, replace
from stockade.core.loop import Loop
from stockade.core.ssh import read_key
from stockade.core.values import Enforced, Grant, Mount
from stockade.gateway.agent import Agent, Asking
from stockade.session.confine import AGENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stockade.core.values import Confinement, Signing
    from stockade.gateway.agent import Reply
    from stockade.session import Session

NAME = "agent"  # and in the session's directory
START = 5.0  # seconds in which the real agent has to list its keys
ANSWER = 60.0  # and to sign: it may have to ask a person first (ssh-add -c, a key to touch)
SAMPLE = 20  # refusals of each kind that are recorded one by one; then the 32nd, the 64th, ...


class Signer:
    """Signs for one session. Made before its sandbox, since the socket has to be there; answers from `listen` on.

    Raises CannotEnforce when the real agent is not there (`signing.no-agent`), does not answer (`signing.silent`), does not hold the key
    (`signing.no-key`), or when its socket would be visible inside (`signing.agent-visible`).
    """

    def __init__(self, wanted: Signing, session: Session) -> None:
        self._wanted, self._session = wanted, session
        self._key = read_key(wanted.key)
        self._agent = os.environ.get("SSH_AUTH_SOCK", "")
        self._check()
        self._spent = _Spent(wanted) if wanted.uses or wanted.rate else None
        self._queue: list[tuple[checks.Wish, Reply]] = []
        self._asking: Asking | None = None
        self._loop: Loop | None = None
        self._say: Callable[[str], None] = lambda _: None
        self._refused: dict[str, int] = {}
        self._unrecorded = 0
        self.revoked = False
        self._socket = Agent(session.lock, NAME, checks.LONGEST)

    def _check(self) -> None:
        """The real agent is there and holds the key."""
        wanted = self._wanted
        once = f"ssh-agent sh -c 'ssh-add {wanted.file.removesuffix('.pub')} && stockade run ...'"
        if not self._agent:
            raise CannotEnforce(
                f"[signing] needs your ssh-agent, and SSH_AUTH_SOCK is not set ({wanted.origin})",
                code="signing.no-agent",
                hint=f"Start one for this run alone: {once}",
            )
        loop = Loop()
        found: list[tuple[bytes, str]] = []
        Asking(loop, self._agent, bytes((checks.LIST,)), START, lambda answer, why: found.append((answer, why)))
        while not found:
            loop.turn()
        ((answer, why),) = found
        if why:
            raise CannotEnforce(
                f"[signing] cannot reach your ssh-agent at {self._agent}: {why} ({wanted.origin})",
                code="signing.silent" if "did not answer" in why else "signing.no-agent",
                hint=f"Look at it with ssh-add -l, or start one for this run alone: {once}",
            )
        try:
            there = checks.holds(answer, self._key)
        except ValueError:
            there = False
        if not there:
            raise CannotEnforce(
                f"your ssh-agent does not hold the key of [signing], {self._key.fingerprint} ({wanted.origin})",
                code="signing.no-key",
                hint=f"Add it: ssh-add {wanted.file.removesuffix('.pub')} (and unlock the agent if it is locked: ssh-add -X)",
            )

    def shown(self, wanted: Confinement) -> Confinement:
        """The confinement with the socket in it, and git told to use it. Raises CannotEnforce (`signing.*`)."""
        real = os.path.realpath(self._agent)
        for source in (*(mount.source for mount in wanted.mounts), *(overlay.lower for overlay in wanted.overlays)):
            if real.startswith(f"{source}/") or real == source:
                raise CannotEnforce(
                    f"your ssh-agent's socket {real} lies in {source}, which the sandbox sees: it could be asked for anything there",
                    code="signing.agent-visible",
                    hint="Start the agent with a socket elsewhere (ssh-agent -a PATH), or mount less.",
                )
        environment = dict(wanted.environment)
        folders = environment["PATH"].split(":")
        lends = self._session.wall.LENDS  # its root is none of the host's, and what is installed there is seen there
        if not lends and not any(os.access(f"{folder}/ssh-keygen", os.X_OK) for folder in folders):
            raise CannotEnforce(
                "[signing] needs ssh-keygen, which git calls inside to sign, and it is not installed",
                code="signing.no-ssh-keygen",
                hint="Debian: sudo apt install openssh-client",
            )
        environment["SSH_AUTH_SOCK"] = AGENT
        if "git" in self._wanted.namespaces:
            settings = {"gpg.format": "ssh", "user.signingKey": f"key::{self._key}", "commit.gpgSign": "true", "tag.gpgSign": "true"}
            _configure(environment, settings)
        variables = tuple(environment.items())
        if lends:
            return replace(wanted, environment=variables)
        mount = Mount(f"{self._session.directory}/{NAME}", AGENT, "ro", self._wanted.origin)
        return replace(wanted, mounts=(*wanted.mounts, mount), environment=variables)

    def enforced(self) -> Enforced:
        """The receipt's line."""
        return Enforced("signing", "agent that signs only", f"{self._key.fingerprint} for {', '.join(self._wanted.namespaces)}")

    def plain(self) -> dict[str, Any]:
        """What may be signed, for the user's eyes."""
        return {
            "revoked": self.revoked,
            "from": str(self._wanted.origin),
            "signing": {**plain(self._wanted), "fingerprint": self._key.fingerprint},
        }

    def listen(self, loop: Loop, say: Callable[[str], None] = lambda _: None) -> None:
        """Begin to answer."""
        self._loop, self._say = loop, say
        self._socket.serve(loop, self._answer)
        if self._session.wall.LENDS:
            self._socket.lend(self._session.box.lend)

    def revoke(self) -> bool:
        """Sign nothing any more, not even what was asked for already. Whether that is new. Raises StockadeError (`ledger.*`): nothing is changed then."""
        if self.revoked:
            return False
        self._session.record("session.revoke", rules=[], signing=self._key.fingerprint)
        self.revoked = True
        return True

    def close(self) -> None:
        """Answer nobody any more. May be called twice."""
        self._socket.close()
        if self._asking is not None:
            self._asking.give_up()
            self._asking = None
        self._queue.clear()
        unrecorded, self._unrecorded = self._unrecorded, 0
        if unrecorded:
            self._session.record("sign", effect="deny", rule="more", refused=sum(self._refused.values()), unrecorded=unrecorded)

    def _answer(self, message: bytes, reply: Reply) -> None:
        try:
            if self.revoked:
                raise checks.Refused("revoked")
            wish = checks.decide(message, self._key, self._wanted.namespaces)
        except checks.Refused as no:
            self._refuse(reply, no.reason, no.detail)
            return
        if wish is None:
            reply(checks.listing(self._key))
            return
        self._queue.append((wish, reply))  # no longer than there are clients: each waits for its answer
        self._next()

    def _next(self) -> None:
        """Ask for the next signature, one at a time."""
        while self._queue and self._asking is None and self._loop is not None:
            wish, reply = self._queue.pop(0)
            now = time.time()
            rule = "revoked" if self.revoked else self._spent.rule(now) if self._spent else ""
            if rule:
                self._refuse(reply, rule)
                continue
            try:
                self._session.record(
                    "sign",
                    effect="allow",
                    rule="signing",
                    namespace=wish.namespace,
                    digest=f"{wish.algorithm}:{wish.digest.hex()}",
                    key=self._key.fingerprint,
                )
            except BaseException:
                reply(checks.FAILURE)
                raise
            if self._spent:
                self._spent.spend(now)
            self._ask(wish, reply)

    def _ask(self, wish: checks.Wish, reply: Reply) -> None:
        assert self._loop is not None
        early: list[tuple[bytes, str]] = []

        def done(answer: bytes, why: str) -> None:
            if self._asking is None:  # it failed at once
                early.append((answer, why))
            else:
                self._asking = None
                self._given(wish, reply, answer, why)
                self._next()

        asking = Asking(self._loop, self._agent, checks.request(wish, self._key), ANSWER, done)
        if early:
            self._given(wish, reply, *early[0])
        else:
            self._asking = asking

    def _given(self, wish: checks.Wish, reply: Reply, answer: bytes, why: str) -> None:
        try:
            if self.revoked:
                raise checks.Refused("revoked")
            if why:
                raise checks.Refused("agent", why[:64])
            try:
                signature = checks.given(answer, wish, self._key)
            except ValueError as error:
                raise checks.Refused("agent", str(error)) from None
        except checks.Refused as no:
            if self._spent:
                self._spent.give_back()
            self._refuse(reply, no.reason, no.detail)
            return
        reply(signature)

    def _refuse(self, reply: Reply, reason: str, detail: str = "") -> None:
        """Say no, and write it down: what a sandbox can repeat without end must not fill the ledger."""
        count = self._refused[reason] = self._refused.get(reason, 0) + 1
        try:
            if count <= SAMPLE or not count & (count - 1):
                self._session.record("sign", effect="deny", rule=reason, **({"detail": detail} if detail else {}), refused=count)
            else:
                self._unrecorded += 1
            if count == 1:
                self._say(f"a signature was refused: {reason}{f' ({detail})' if detail else ''}")
        finally:
            reply(checks.FAILURE)


class _Spent:
    """How much of its bounds a session has used: counted as those of a grant are."""

    def __init__(self, wanted: Signing) -> None:
        from stockade.checks import usage

        self._usage, self._judge, self._last = usage.Usage(), usage.spent, 0.0
        self._bounds = Grant("signing", uses=wanted.uses, rate=wanted.rate, rate_seconds=wanted.rate_seconds)

    def rule(self, now: float) -> str:
        """The bound that is used up, "" for none."""
        return self._judge(self._bounds, 0, self._usage.state(now, (self._bounds,)))[0]

    def spend(self, now: float) -> None:
        self._usage.spend(self._bounds, 0, now)
        self._last = now  # the only one under way

    def give_back(self) -> None:
        self._usage.give_back(self._bounds, 0, self._last)


def _configure(environment: dict[str, str], settings: dict[str, str]) -> None:
    """Add settings of git's after those that the environment has (git-config(1), GIT_CONFIG_COUNT). Raises CannotEnforce (`signing.environment`)."""
    before = environment.get("GIT_CONFIG_COUNT", "0")
    if not (before.isascii() and before.isdecimal() and len(before) < 5):
        raise CannotEnforce(
            f"[environment] sets GIT_CONFIG_COUNT to {before!r}, and [signing] has to add to it",
            code="signing.environment",
            hint="It is a number: that of the GIT_CONFIG_KEY_n that are set.",
        )
    for number, (name, value) in enumerate(settings.items(), int(before)):
        environment[f"GIT_CONFIG_KEY_{number}"], environment[f"GIT_CONFIG_VALUE_{number}"] = name, value
    environment["GIT_CONFIG_COUNT"] = str(int(before) + len(settings))
