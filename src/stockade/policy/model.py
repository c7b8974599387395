"""The shape of a policy file (pydantic, frozen, unknown keys refused). What several keys mean together is judged in compile.py, where lines are known."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from stockade.policy.kinds import (
    Call,
    CanaryText,
    ContentType,
    Count,
    Duration,
    Header,
    Held,
    Host,
    HostOrAny,
    Image,
    Images,
    Method,
    Moment,
    Name,
    Namespace,
    Parameter,
    Path,
    Pattern,
    Percent,
    Pointer,
    Rate,
    Ref,
    Repository,
    Scalar,
    Scope,
    Size,
    Source,
    Target,
    Template,
    Text,
    Tool,
    Url,
    User,
    Value,
    Variable,
    Version,
    Webhook,
)  # fmt: skip

Mode = Literal["ro", "review", "rw-no-delete", "rw"]
Risk = Literal["low", "medium", "high"]
Wall = Literal["auto", "bubblewrap", "gvisor", "vm"]
MODES: tuple[Mode, ...] = ("ro", "review", "rw-no-delete", "rw")  # from the narrowest to the widest
PRESETS = ("anthropic", "debian", "gemini", "github-read", "npm", "openai", "pypi")


class Table(BaseModel):
    """Any table of the file: frozen, strict types, unknown keys refused. None = not written."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=False)


class WorkspaceTable(Table):
    """The folder the agent works in."""

    path: Path | None = Field(
        None, description="The folder. Relative paths start where stockade is started; ~ is your home. Default: there."
    )
    mode: Mode | None = Field(
        None,
        description="ro, review (what is written waits until you apply it), rw-no-delete (nothing that existed before is lost) or rw. Default: rw.",
    )
    git: Literal["private", "ro"] | None = Field(
        None, description="How .git appears: a private copy (commits come back as data) or read-only."
    )
    scan: Literal["behind", "before"] | None = Field(
        None, description="Look for hard links to files outside behind the start, or before it."
    )


class MountTable(Table):
    """One more folder or file that is visible inside."""

    path: Path = Field(description="The host's folder or file.")
    at: Target | None = Field(None, description="Where it appears inside. Default: the same path.")
    mode: Mode | None = Field(None, description="ro, rw or rw-no-delete. Default: ro.")
    secret: bool | None = Field(
        None, description="Once anything of it was opened, only egress rules with secret or after_secret hold for the session."
    )
    effect: Literal["allow", "ask"] | None = Field(
        None, description="ask: it is not visible until somebody asks for it from inside and a person approves; ro only. Default: allow."
    )


class EnvironmentTable(Table):
    """Variables that the sandbox gets. Nothing else of the caller's environment enters."""

    pass_: tuple[Variable, ...] = Field(
        (), alias="pass", description="Names of the caller's variables that enter, on top of TERM, LANG and the like."
    )
    set: dict[Variable, Value] = Field(default_factory=dict, description="Variables with fixed values.")


class LimitsTable(Table):
    """What a sandbox may use. "none" or 0: no limit of that kind."""

    processes: Count | None = Field(None, description="Processes and threads at once.")
    memory: Size | None = Field(None, description='Memory of all processes together, such as "8 GiB".')
    cpu_time: Duration | None = Field(None, description='CPU time of one process, such as "30 min".')
    file_size: Size | None = Field(None, description="The largest file that may be written.")
    open_files: Count | None = Field(None, description="Open files of one process.")
    output: Size | None = Field(None, description="What the command may print.")
    wall_time: Duration | None = Field(None, description='How long the command may run, such as "2 h".')
    scratch: Size | None = Field(None, description="Room in the private home and in /tmp, each.")


class RootTable(Table):
    """The guest's root directory (gVisor and vm walls). Without image and path it is the host's /usr, or the machine's own image."""

    image: Image | None = Field(None, description='An OCI image by its digest: "registry/name@sha256:...". It has to be pulled before.')
    path: Path | None = Field(None, description="A folder of the host that holds a whole system. In place of image.")
    writable: Literal["none", "memory", "disk"] | None = Field(
        None, description="Where what is written to it is kept until the end. Default: memory with image or path, else none."
    )
    size: Size | None = Field(None, description="How much that may be. Default: as scratch.")


class BodyTable(Table):
    """What must stand at one place of a JSON body: one of values, at most a number, nothing at all; by default anything."""

    pointer: Pointer = Field(description='A JSON Pointer: "/model". "" is the whole body.')
    values: tuple[Scalar, ...] | None = Field(None, description="One of these must stand there.")
    absent: bool | None = Field(None, description="true: nothing may stand there.")
    most: Count | None = Field(None, description="A number of at most this must stand there.")


class EgressTable(Table):
    """One rule about requests that leave: either a preset, or host with methods and paths."""

    preset: Literal["anthropic", "debian", "gemini", "github-read", "npm", "openai", "pypi"] | None = Field(
        None, description="A ready set of rules."
    )
    files_host: Host | None = Field(None, description="With the presets pypi and npm: the host that the index sends clients to for files.")
    host: HostOrAny | None = Field(
        None, description='A name, or *.name for every name below it. With effect = "ask" also "*": any that no other rule names.'
    )
    port: int | None = Field(None, ge=1, le=65535, description="Default: 443, for http 80.")
    scheme: Literal["https", "http", "tcp"] | None = Field(None, description="Default: https. tcp: raw TCP to a port, which must be named.")
    methods: tuple[Method, ...] | None = Field(None, description="Default: GET and HEAD; for a denial all.")
    paths: tuple[Pattern, ...] | None = Field(None, description="Whole segments; * is one segment, a last ** everything below.")
    query: Literal["any", "none"] | None = Field(None, description="May the URL have a query? Default: any.")
    parameters: tuple[Text, ...] | None = Field(
        None, description='The only parameters that the query may have: a name, or "name=value" for that value only.'
    )
    headers: tuple[Header, ...] | None = Field(None, description='Request headers beyond the common ones: a name, or "name: value".')
    git: Literal["fetch", "push"] | None = Field(
        None, description="Git over HTTPS, instead of methods and paths: clone and fetch, or push as well."
    )
    repositories: tuple[Repository, ...] | None = Field(None, description='With git: "owner/name"; * is one segment.')
    refs: tuple[Ref, ...] | None = Field(
        None, description='With git = "push": the refs that may be created or moved, "refs/heads/agent/**". Deleting is never granted.'
    )
    credential: Text | None = Field(None, description="The [credential.NAME] that the gate adds. Without it a request carries none.")
    max_upload: Size | None = Field(None, description="The largest body of one request. Default: 1 MiB.")
    content_types: tuple[ContentType, ...] | None = Field(None, description='What a body may be: "application/json". Default: anything.')
    body: tuple[BodyTable, ...] | None = Field(None, description="What must stand in a JSON body. The gate then reads bodies whole.")
    credential_fields: tuple[Text, ...] | None = Field(
        None, description='Fields of a body that may be named like a credential: ["token"]. ["*"]: bodies are not searched for such fields.'
    )
    websocket: bool | None = Field(None, description="true: WebSockets, and nothing else. What passes in one is not read.")
    grpc: tuple[Call, ...] | None = Field(
        None, description='gRPC calls, instead of methods and paths: "package.Service/Method", "package.Service/*".'
    )
    max_download: Size | None = Field(None, description="The largest body of one answer. Default: no bound.")
    upload_budget: Size | None = Field(None, description="All bodies of a session together. Default: no bound.")
    uses: Count | None = Field(None, description="How many requests a session may make by this rule. Default: no bound.")
    rate: Rate | None = Field(None, description='How fast: "60 per min". Default: no bound.')
    not_before: Moment | None = Field(None, description="From when on the rule holds.")
    not_after: Moment | None = Field(None, description="Until when the rule holds.")
    secret: bool | None = Field(
        None, description="What comes in by this rule is secret: afterwards only rules with secret or after_secret hold for the session."
    )
    after_secret: bool | None = Field(None, description="The rule still holds after something secret has come in.")
    effect: Literal["allow", "ask", "deny"] | None = Field(
        None, description="A denial beats every allow of any file; ask: each request waits until somebody approves it. Default: allow."
    )
    people: bool | None = Field(None, description='With effect = "ask": only a person may approve, once at a time.')
    private: bool | None = Field(None, description="The name may resolve to a private or loopback address.")


class AwsTable(Table):
    """What a key of AWS may sign (Signature Version 4)."""

    services: tuple[Scope, ...] = Field(description='The services, by their names in a signature: ["s3"].')
    regions: tuple[Scope, ...] = Field(description='The regions: ["eu-central-1"].')
    profile: Text | None = Field(None, description="The section of a file: source in the format of ~/.aws/credentials. Default: default.")


class CredentialTable(Table):
    """A secret that stays outside; the gate writes it into requests."""

    source: Source = Field(description="env:NAME, file:/path, command:program argument ..., keyring:service/user.")
    header: Header | None = Field(None, description="The header it goes into. Default: authorization.")
    template: Template | None = Field(None, description='The value; {} is the secret. Default: "Bearer {}" for authorization, else "{}".')
    user: User | None = Field(
        None, description="The user name of HTTP Basic, with the credential as password. Then without header and template."
    )
    query: Parameter | None = Field(None, description="The query parameter it goes into. In place of header and template.")
    sigv4: AwsTable | None = Field(
        None, description="It is a key of AWS: the gate signs requests anew with it. In place of header and template."
    )
    env: str | None = Field(
        None,
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description='The variable inside that holds a placeholder; "" = none. Default: the name of an env: source. '
        "With sigv4 how its two variables begin; default: AWS.",
    )


class SigningTable(Table):
    """A key that signs commits for the sandbox and never enters it."""

    key: Path | None = Field(None, description="The file of the public key. The private one stays in your ssh-agent.")
    namespaces: tuple[Namespace, ...] | None = Field(None, description='What may be signed (ssh-keygen -Y sign -n). Default: "git".')
    uses: Count | None = Field(None, description="How many signatures a session may have. Default: no bound.")
    rate: Rate | None = Field(None, description='How fast: "60 per min". Default: no bound.')


class ApprovalsTable(Table):
    """How approvals are asked for. What a layer above wrote can only be tightened."""

    timeout: Duration | None = Field(None, description="How long a request waits for an answer. Default: 2 min.")
    pending: Count | None = Field(None, description="How many may wait at once; more are refused. Default: 8.")
    per_minute: Count | None = Field(None, description="How many are asked in a minute; more are refused. Default: 20.")
    refusals: Count | None = Field(None, description="After so many refusals in a row the session is paused; 0 = never. Default: 3.")
    canaries: Percent | None = Field(
        None, description="After so many of 100 questions comes one that must be refused, to measure whether answers still mean anything."
    )
    webhook: Webhook | None = Field(None, description="Where what is asked and answered is told: https, or http on this machine.")
    webhook_secret: Source | None = Field(
        None, description='What signs it, as a credential\'s source: "whsec_" and base64 of 24 to 64 bytes.'
    )
    notify: bool | None = Field(None, description="true: what is asked is shown on your desktop, by notify-send. Default: false.")


class ReviewAllowTable(Table):
    """Questions that the reviewer approves: those for which all of this holds."""

    methods: tuple[Method, ...] | None = Field(None, description='Methods: ["GET"].')
    hosts: tuple[Host, ...] | None = Field(None, description='Hosts: "api.example.com", "*.example.com".')
    risk: tuple[Risk, ...] | None = Field(None, description='How much could go wrong: ["low", "medium"].')
    reversible: bool | None = Field(None, description="true: only what can be undone, which is reading without a body.")
    max_size: Size | None = Field(None, description="Only what announces at most so many bytes.")


class ReviewDenyTable(Table):
    """Questions that the reviewer refuses: those for which all of this holds."""

    methods: tuple[Method, ...] | None = Field(None, description='Methods: ["DELETE"].')
    hosts: tuple[Host, ...] | None = Field(None, description='Hosts: "api.example.com", "*.example.com".')
    risk: tuple[Risk, ...] | None = Field(None, description='How much could go wrong: ["high"].')
    tainted: bool | None = Field(None, description="true: only after something secret was opened.")


class ReviewerTable(Table):
    """What answers in a person's place. Never where people = true, and it approves nothing after something secret was opened."""

    allow: tuple[ReviewAllowTable, ...] | None = Field(None, description="What is approved without asking a person.")
    deny: tuple[ReviewDenyTable, ...] | None = Field(None, description="What is refused without asking a person; beats every allow.")
    url: Url | None = Field(None, description="A model that is asked about the rest: the whole URL that it answers at.")
    api: Literal["anthropic", "openai"] | None = Field(
        None, description="How it is asked: Anthropic's Messages, or OpenAI's Chat Completions."
    )
    model: Text | None = Field(None, description="The model's name there.")
    credential: Text | None = Field(None, description="The [credential.NAME] that the gate adds. Default: none.")
    timeout: Duration | None = Field(None, description="How long it may take, and at most half of the question's time. Default: 20 s.")
    private: bool | None = Field(None, description="The URL's name may resolve to a private or loopback address.")
    approves: bool | None = Field(None, description="false: it may only refuse. Default: true.")


class ToolTable(Table):
    """One rule about what an agent's tools may be called for, where the agent asks (docs/agents.md). No wall: the agent can leave the question out."""

    name: Tool = Field(description='The tool\'s name as the agent writes it: "Bash", "mcp__github__*"; * is any text.')
    match: dict[Text, Text] = Field(
        default_factory=dict,
        description='Arguments of the call and how each must read, as a whole: { command = "git push *" }; * is any text.',
    )
    effect: Literal["allow", "ask", "deny"] = Field(
        description="A denial beats every other rule; ask: the call waits until somebody approves it; allow lifts a question of the same file."
    )
    people: bool | None = Field(None, description='With effect = "ask": only a person may approve, once at a time.')


class FileTable(Table):
    """Files of the workspace that are read-only inside, and may be changed only as a person approves."""

    path: Held = Field(
        description='Relative to the workspace: ".envrc"; or ".github/workflows/*.yml", by which all of that folder is held. * is any text.'
    )
    effect: Literal["ask", "deny"] = Field(
        description="ask: from inside a change can be asked for, and a person approves exactly that one, once; deny: nobody is asked, whoever else says ask."
    )


class CanaryTable(Table):
    """A string that is planted where only a thief looks, and must never leave."""

    value: CanaryText = Field(description="The string, of at least 12 bytes.")


class CapsTable(Table):
    """What no lower layer can exceed. A cap that is not written does not bind."""

    walls: tuple[Wall, ...] | None = Field(None, description="Walls that may be chosen; the first is taken where nobody chose.")
    modes: tuple[Mode, ...] | None = Field(None, description="Modes of workspace and mounts.")
    mounts: tuple[Path, ...] | None = Field(None, description="Workspace and mounts must lie below one of these.")
    images: tuple[Images, ...] | None = Field(
        None, description='Images that may be chosen: "registry/name", "registry/name@sha256:...", "registry/**"; [] = none.'
    )
    egress_hosts: tuple[Host, ...] | None = Field(None, description="Hosts that may be granted; [] = none.")
    egress_methods: tuple[Method, ...] | None = Field(None, description="Methods that may be granted.")
    private: bool | None = Field(None, description="false: no rule may vouch for private addresses.")
    signing: bool | None = Field(None, description="false: nothing may be signed.")
    reviewer: bool | None = Field(None, description="false: no reviewer may approve anything.")
    files: bool | None = Field(None, description="false: nobody is asked about a change to a file.")
    max_upload: Size | None = Field(None, description="The most that a rule may let a request carry.")
    limits: LimitsTable | None = Field(None, description="The most of each limit.")


class PolicyFile(Table):
    """A policy of stockade."""

    version: Version = Field(description="The version of this format.")
    serial: Count | None = Field(
        None,
        description="The number of this edition of an administrator's policy; one that is fetched never has a smaller one than before.",
    )
    wall: Wall | None = Field(None, description="Which wall holds the command; auto follows oversight.")
    oversight: Literal["developer", "none"] | None = Field(None, description="Who is able to judge what the agent asks for.")
    gate: Literal["own", "shared"] | None = Field(None, description="A gate for each session, or one that your sessions share.")
    workspace: WorkspaceTable | None = None
    mount: tuple[MountTable, ...] = ()
    environment: EnvironmentTable | None = None
    limits: LimitsTable | None = None
    root: RootTable | None = None
    egress: tuple[EgressTable, ...] = ()
    credential: dict[Name, CredentialTable] = Field(default_factory=dict)
    canary: dict[Name, CanaryTable] = Field(default_factory=dict)
    signing: SigningTable | None = None
    approvals: ApprovalsTable | None = None
    reviewer: ReviewerTable | None = None
    tool: tuple[ToolTable, ...] = ()
    file: tuple[FileTable, ...] = ()
    caps: CapsTable | None = None


TABLES: dict[str, type[Table]] = {
    "": PolicyFile, "workspace": WorkspaceTable, "mount": MountTable, "environment": EnvironmentTable, "limits": LimitsTable,
    "root": RootTable,
    "egress": EgressTable, "egress.body": BodyTable, "credential": CredentialTable, "credential.sigv4": AwsTable,
    "canary": CanaryTable, "signing": SigningTable, "approvals": ApprovalsTable, "tool": ToolTable,
    "file": FileTable,
    "reviewer": ReviewerTable, "reviewer.allow": ReviewAllowTable, "reviewer.deny": ReviewDenyTable,
    "caps": CapsTable, "caps.limits": LimitsTable,
}  # fmt: skip


def keys_of(table: str) -> tuple[str, ...]:
    """The keys of a table, as a file writes them."""
    return tuple(field.alias or name for name, field in TABLES[table].model_fields.items())
