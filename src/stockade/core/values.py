"""The values that rooms exchange. All frozen, all plain data; nothing here does I/O."""

from __future__ import annotations

from stockade.core.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, Never, Self

    from stockade.core.reviews import Reviewer
    from stockade.core.tools import FileRule, MountRule, ToolRule

    Effect = Literal["allow", "ask", "deny"]
    MountMode = Literal["ro", "review", "rw-no-delete", "rw"]

ALLOW: Effect = "allow"
ASK: Effect = "ask"
DENY: Effect = "deny"
STRICTNESS: dict[str, int] = {ALLOW: 0, ASK: 1, DENY: 2}
S3 = frozenset({"s3", "s3-object-lambda", "s3-outposts"})  # services of AWS that sign as S3 does: path and body in ways of their own
GATE = "stockade.internal"  # the name by which the gate itself is asked from inside; it is never looked up, and nothing goes there
PLACEHOLDER = "stockade-placeholder-"  # how every stand-in for a credential begins, so that one in a wrong place is recognised


@frozen
class Origin:
    """Where a rule was written: file, 1-based line (0 = built in), dotted key, and the preset it came through, if any."""

    file: str = "built-in"
    line: int = 0
    key: str = ""
    preset: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where} ({self.key})" if self.key else where


@frozen
class Verdict:
    """What a check says. `rule` names the deciding rule, `reasons` are sentences for people, `grant` the narrowest rule that would allow it."""

    effect: Effect
    rule: str
    reasons: tuple[str, ...] = ()
    grant: str = ""

    def __bool__(self) -> Never:
        raise TypeError("a Verdict has no truth value: compare verdict.effect")


@frozen
class Request:
    """Something that a subject wants to do: `action` on `resource`, with what is known about it."""

    subject: str
    action: str
    resource: str
    context: tuple[tuple[str, str], ...] = ()


@frozen
class Mount:
    """A host path made visible inside. `source` and `target` are absolute; `source` is resolved before it is judged.

    `secret`: once anything of it was opened, only grants with `secret` or `after_secret` hold for the session.
    """

    source: str
    target: str
    mode: MountMode = "ro"
    origin: Origin = Origin()
    secret: bool = False


@frozen
class Overlay:
    """A host directory shown at `target` through a private layer: reads see `lower`, writes land in `upper` (`work` is overlayfs scratch beside it).

    `lower`, `upper` and `work` are absolute host directories, `upper` and `work` on one file system (kernel: Documentation/filesystems/overlayfs.rst).
    """

    lower: str
    upper: str
    work: str
    target: str
    origin: Origin = Origin()


@frozen
class Limits:
    """What a sandbox may use. Sizes in bytes, times in seconds, 0 = no limit of that kind."""

    processes: int = 1024
    memory: int = 8 << 30
    cpu_time: int = 0
    file_size: int = 16 << 30
    open_files: int = 65536
    output: int = 0
    wall_time: int = 0
    scratch: int = 4 << 30  # private home and /tmp, each


@frozen
class Root:
    """What the root directory of a guest with a kernel of its own is. `image` ("registry/name@sha256:...") or `path` (a directory of the host) says where its
    files come from; neither: the host's /usr. `writable` says where what is written to it is kept, and `size` how much that may be (bytes).
    """

    image: str = ""
    path: str = ""
    writable: Literal["none", "memory", "disk"] = "none"
    size: int = 0
    origin: Origin = Origin()

    @property
    def usual(self) -> bool:
        """Whether it is the one that nobody has to ask for."""
        return not self.image and not self.path and self.writable == "none"


@frozen
class Environment:
    """What the sandbox's environment holds: names passed through from the caller, and values set."""

    pass_names: tuple[str, ...] = ()
    set_values: tuple[tuple[str, str], ...] = ()


@frozen
class Confinement:
    """What one sandbox may see and use. The default holds nothing: no mounts, no network, an empty environment.

    `held` are paths inside, "rw:PATH" for one that can be neither renamed nor removed, "ro:PATH" for one in which nothing can be written either;
    absolute, without symbolic links, parents before children. They cost far less than mounts.
    `network` is "none" (a namespace with nothing listening) or "door" (listeners of the door, no route).
    `sockets` are Unix sockets that have to answer inside: targets of mounts or, on walls that lend (`Box.lend`), paths of none. Others in mounts may or may not, as the wall says.
    `events` is the path of a socket on the host to which a sandbox's own kernel says what happens in it ("" = nowhere); nothing inside sees it.
    `image` is a directory on the host that holds a checkpoint ("" = none): the sandbox goes on from there instead of starting anew.
    Of a `root` with files of its own `tree` says how they are put together, its `target` where on the host (walls/root.py), and `layer` where one is that is writable on disk.
    """

    mounts: tuple[Mount, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    held: tuple[str, ...] = ()  # as in a Plan
    network: Literal["none", "door"] = "none"
    limits: Limits = Limits()
    environment: tuple[tuple[str, str], ...] = ()
    cwd: str = "/"
    home: str = "/home/user"
    workspace: str = ""  # the target of the mount that is the workspace, "" = none
    sockets: tuple[str, ...] = ()
    events: str = ""
    image: str = ""
    root: Root = Root()
    tree: Overlay | None = None
    layer: str = ""


@frozen
class BodyRule:
    """What must stand at a place of a JSON body. `pointer` is a JSON Pointer (RFC 6901); `values` are JSON texts of which one must stand there.

    Without `values` nothing may stand there (`absent`), or a number of at most `most` (-1 = anything, as long as it is there).
    """

    pointer: str
    values: tuple[str, ...] = ()
    absent: bool = False
    most: int = -1


@frozen
class Grant:
    """One egress rule: these methods on these paths of this host, with this credential and none other.

    `host` is exact ("api.example.com"), a suffix ("*.example.com") or, in a grant that asks, any that no other allows or asks about ("*");
    `paths` are patterns of whole segments ("/v1/messages", "/simple/*/", "/files/**").
    `headers` are request headers allowed beyond the common ones; `credential` names a `Credential` ("" = the request must carry none).
    With `query` "listed" only `parameters` may stand in the query: "name", or "name=value" for that value only. `content_types` bound what a body
    may say it is (() = anything), `body` what it holds as JSON. Sizes in bytes; zeros mean no bound. The bounds over time (`uses`, `rate` requests
    in `rate_seconds`, `upload_budget`) count for one session; `not_before` and `not_after` are Unix seconds.
    With the scheme "tcp" it is raw TCP to host:port: of the rest only sizes and bounds over time mean something, and `max_upload` is of one connection.
    With `refs` the body is a git push, and changes only refs that match one of these patterns (whole segments, as in `paths`).
    `websocket`: what is granted is a WebSocket (RFC 6455) and nothing else; what passes in it is not read.
    `grpc`: what is granted are gRPC calls and nothing else; `max_upload` bounds all that a call sends, which is counted as it passes and not read.
    `max_download`: the most bytes of one answer's body, as it comes (perhaps compressed).
    `secret`: what it brings in is secret, and from then on only grants with `secret` or `after_secret` hold for the session.
    `credential_fields` are fields of a body that may stand there though their names say credential ("*" = bodies are not searched for such fields).
    """

    host: str
    port: int = 443
    scheme: Literal["https", "http", "tcp"] = "https"
    methods: tuple[str, ...] = ("GET", "HEAD")
    paths: tuple[str, ...] = ("/**",)
    query: Literal["any", "none", "listed"] = "any"
    headers: tuple[str, ...] = ()
    credential: str = ""
    max_upload: int = 1 << 20
    effect: Effect = ALLOW
    private: bool = False  # the operator vouches that this name may resolve to a private or loopback address
    origin: Origin = Origin()
    parameters: tuple[str, ...] = ()
    content_types: tuple[str, ...] = ()
    body: tuple[BodyRule, ...] = ()
    uses: int = 0
    rate: int = 0
    rate_seconds: int = 0
    upload_budget: int = 0
    not_before: int = 0
    not_after: int = 0
    secret: bool = False
    after_secret: bool = False
    refs: tuple[str, ...] = ()
    websocket: bool = False
    credential_fields: tuple[str, ...] = ()
    grpc: bool = False
    max_download: int = 0
    people: bool = False  # with the effect "ask": no reviewer may answer, only a person
    unreviewed: bool = False  # with the effect "ask": no reviewer may approve, since none was brought by whoever wrote the rule

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        """Rebuild a grant from `frozen.plain(grant)`. Only for data that we validated and wrote ourselves."""
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        rules = tuple(BodyRule(**{**rule, "values": tuple(rule["values"])}) for rule in data["body"])
        return cls(**{**data, **lists, "body": rules, "origin": Origin(**data["origin"])})


@frozen
class Credential:
    """A secret that stays outside. `source` is "env:NAME", "file:PATH", "command:ARGV" or "keyring:SERVICE/USER".

    `header` and `template` say how the gate writes it ("x-api-key", "{}"; "authorization", "Bearer {}"). With `user` it is the password of HTTP Basic
    (RFC 7617), and `template` is "Basic {}". `env` is the variable that holds the placeholder inside, if any.
    With `query` it goes into the query instead, as this parameter. With `services` it is an AWS key that signs (Signature Version 4) for these services
    in these `regions` only; `profile` is the section of a file of such keys, and `env` how the variables begin ("AWS": AWS_ACCESS_KEY_ID, ...).
    """

    name: str
    source: str
    header: str = "authorization"
    template: str = "Bearer {}"
    env: str = ""
    origin: Origin = Origin()
    user: str = ""
    query: str = ""
    services: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    profile: str = ""

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables that hold the placeholder inside."""
        if self.services and self.env:
            return (f"{self.env}_ACCESS_KEY_ID", f"{self.env}_SECRET_ACCESS_KEY")
        return (self.env,) if self.env else ()


@frozen
class Workspace:
    """The folder the agent works in. `git` says how its .git appears; `scan` whether hard links are looked for before the start or behind it."""

    path: str = "."
    mode: MountMode = "rw"
    git: Literal["private", "ro"] = "private"
    scan: Literal["behind", "before"] = "behind"
    origin: Origin = Origin()


@frozen
class Signing:
    """A key that may sign for the sandbox without being there. `key` is the public key ("ssh-ed25519 AAAA..."), `file` where it was read.

    `namespaces` are those of OpenSSH's PROTOCOL.sshsig ("git" for commits and tags). `uses` and `rate` in `rate_seconds` count for one session, 0 = no bound.
    """

    key: str
    file: str = ""
    namespaces: tuple[str, ...] = ("git",)
    uses: int = 0
    rate: int = 0
    rate_seconds: int = 0
    origin: Origin = Origin()


@frozen
class Asking:
    """How approvals are asked for. A question waits `timeout` seconds; at most `pending` wait at once, and `per_minute` are asked in a minute: more are denied.

    After `refusals` in a row the session is paused (0 = never). Of 100 questions about `canaries` are followed by one that must be refused.
    `webhook` is where what is asked and answered is told ("" = nowhere), signed with what the source `webhook_secret` gives; `notify`: the user's desktop shows it.
    """

    timeout: int = 120
    pending: int = 8
    per_minute: int = 20
    refusals: int = 3
    canaries: int = 0
    webhook: str = ""
    webhook_secret: str = ""
    notify: bool = False


@frozen
class Agent:
    """A known agent (policy/agents.py). `argv` begins its command line: its program on the host, with what turns off its own questions and sandbox.

    `home` is where its state lies inside; `kept`: the next session in the same workspace finds it there. `seeds` are the files (name, text) of a new one.
    """

    name: str
    argv: tuple[str, ...]
    home: str
    kept: bool = True
    seeds: tuple[tuple[str, str], ...] = ()


@frozen
class Policy:
    """Everything the layers decided, merged and validated. `sources` are the (path, sha256) pairs it was compiled from; `canaries` are (name, text).

    `gate`: whether the session has a gate to itself, or uses the one that all of this user's sessions may share.
    """

    wall: Literal["auto", "bubblewrap", "gvisor", "vm"] = "auto"
    oversight: Literal["developer", "none"] = "developer"
    workspace: Workspace = Workspace()
    mounts: tuple[Mount, ...] = ()
    environment: Environment = Environment()
    limits: Limits = Limits()
    grants: tuple[Grant, ...] = ()
    credentials: tuple[Credential, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    canaries: tuple[tuple[str, str], ...] = ()
    gate: Literal["own", "shared"] = "own"
    signing: Signing | None = None
    root: Root = Root()
    approvals: Asking = Asking()
    agent: Agent | None = None
    reviewer: Reviewer | None = None
    tools: tuple[ToolRule, ...] = ()
    files: tuple[FileRule, ...] = ()
    offers: tuple[MountRule, ...] = ()

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        """Rebuild a policy from `frozen.plain(policy)`. Only for data that we validated and wrote ourselves."""

        def origin(item: dict[str, Any]) -> dict[str, Any]:
            lists = {key: tuple(value) for key, value in item.items() if isinstance(value, list)}
            return {**item, **lists, "origin": Origin(**item["origin"])}

        reviewer = None
        if data["reviewer"]:
            from stockade.core.reviews import Reviewer

            reviewer = Reviewer.from_plain(data["reviewer"])
        inside: dict[str, Any] = {}
        if data["tools"] or data["files"] or data["offers"]:
            from stockade.core.tools import rules_inside

            inside = rules_inside(data)
        environment = data["environment"]
        return cls(
            wall=data["wall"],
            oversight=data["oversight"],
            workspace=Workspace(**origin(data["workspace"])),
            mounts=tuple(Mount(**origin(item)) for item in data["mounts"]),
            environment=Environment(tuple(environment["pass_names"]), tuple((name, value) for name, value in environment["set_values"])),
            limits=Limits(**data["limits"]),
            grants=tuple(Grant.from_plain(item) for item in data["grants"]),
            credentials=tuple(Credential(**origin(item)) for item in data["credentials"]),
            sources=tuple((path, digest) for path, digest in data["sources"]),
            canaries=tuple((name, text) for name, text in data["canaries"]),
            gate=data["gate"],
            signing=Signing(**origin(data["signing"])) if data["signing"] else None,
            root=Root(**origin(data["root"])),
            approvals=Asking(**data["approvals"]),
            agent=Agent(**{name: _tuples(value) for name, value in data["agent"].items()}) if data["agent"] else None,
            reviewer=reviewer,
            **inside,
        )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@frozen
class Enforced:
    """One line of a receipt: what was asked, which mechanism holds it, and any detail worth knowing."""

    rule: str
    mechanism: str
    detail: str = ""
