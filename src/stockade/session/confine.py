"""From a policy to a confinement: paths resolved first and judged then, the environment spelled out, secrets replaced by placeholders."""

from __future__ import annotations

import os

from stockade.core import places
from stockade.core.errors import CannotEnforce, StockadeError
from stockade.core.frozen import replace
from stockade.core.values import Confinement, Mount
from stockade.policy.paths import judge, within
from stockade.walls import door
from stockade.walls.system import CA_BUNDLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.core.values import Policy
    from stockade.walls.contract import Wall
    from stockade.walls.workspace import View

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
# How clients are told of the gate's certificate; each of these is read by at least one common program.
CA_VARIABLES = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "PIP_CERT", "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO",
    "DENO_CERT", "NIX_SSL_CERT_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "HTTPLIB2_CA_CERTS", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "npm_config_cafile",  # an npmrc of the machine may name another, which beats NODE_EXTRA_CA_CERTS
)  # fmt: skip
AGENT = "/run/stockade/agent"  # where the socket of what signs is, inside
NO_PROXY = "localhost,127.0.0.1,::1"


def resolve(path: str, cwd: str, rule: str) -> str:
    """The real, existing path that `path` means. Raises StockadeError (`path.missing`) if there is none, `rule` says what wanted it."""
    wanted = os.path.join(cwd, path.replace("~", places.home(), 1) if path == "~" or path.startswith("~/") else path)
    try:
        return os.path.realpath(wanted, strict=True)
    except OSError as error:
        raise StockadeError(
            f"{rule}: {wanted}: {error.strerror}",
            code="path.missing",
            hint="Create it, or change the rule; stockade does not make up an empty one.",
        ) from error


def workspace_of(policy: Policy, cwd: str) -> str:
    """The workspace's real path, judged anew at each start. Raises StockadeError or PolicyError when it is missing, no folder, or shows too much."""
    path = resolve(policy.workspace.path, cwd, "workspace")
    judge(path, what="workspace", mode=policy.workspace.mode, origin=policy.workspace.origin)
    return path


def confinement(policy: Policy, cwd: str, view: View, session: str, placeholders: dict[str, str], bundle: str, wall: Wall) -> Confinement:
    """What the sandbox of `policy` may see and use; `view` is its workspace, `bundle` the host file to show as the CA bundle."""
    workspace = str(view.facts["target"])
    mounts: list[Mount] = []
    held: list[str] = []
    for mount in policy.mounts:
        source = resolve(mount.source, cwd, f"mount {mount.source}")
        judge(source, what="mount", mode=mount.mode, origin=mount.origin)
        mounts.append(replace(mount, source=source, target=mount.target or source))
        if mount.mode == "rw":
            _not_beside_itself(mounts[-1], str(view.facts["top"]), workspace)
            held += _repository(mounts[-1])
    # What a mount below the workspace covers is not there inside: a repository's layer has no place then, and nothing of it can be held.
    below = [mount for mount in mounts if mount.target.startswith(f"{workspace}/")]
    covers = tuple(f"{mount.target}/" for mount in below if mount.source != view.facts["top"] + mount.target[len(workspace) :])
    view.facts["covered"] = [
        mount.target[len(workspace) + 1 :] for mount in below
    ]  # places for them are made, and nothing is written there
    _straight(mounts, view)
    mounts = [*(one for one in view.mounts if not f"{one.target}/".startswith(covers)), *mounts, Mount(bundle, CA_BUNDLE, "ro")]
    overlays = tuple(one for one in view.overlays if not f"{one.target}/".startswith(covers))
    if policy.offers:
        mounts += _offered(policy, mounts, [one.target for one in overlays], str(view.facts["session"]))
    if any(mount.secret for mount in mounts):
        from stockade.walls import watch

        top = str(view.facts["top"])
        watch.check(mounts, overlays, top)
        view.facts["secrets"] = [mount.source[len(top) + 1 :] for mount in mounts if mount.secret and mount.source.startswith(f"{top}/")]
    if policy.agent is not None and all(mount.target != policy.agent.home for mount in mounts):
        from stockade.session import agents

        mounts.append(agents.home(policy.agent, str(view.facts["top"]), session))
    environment = base_environment(session, wall)
    for name in policy.environment.pass_names:
        for found in matching(name):
            environment[found] = os.environ[found]
    environment.update(policy.environment.set_values)
    environment.update(placeholders)
    return replace(
        bare(policy),
        mounts=tuple(mounts),
        overlays=overlays,
        held=(*(one for one in view.held if not f"{one[3:]}/".startswith(covers)), *held),
        environment=tuple(environment.items()),
        cwd=workspace,
        workspace=workspace,
    )


def _straight(mounts: list[Mount], view: View) -> None:
    """Raises CannotEnforce (`mount.target`) when the place of a mount lies behind a symbolic link in another one, which somebody inside may have put there: the place
    is made from outside, and would be made where the link leads.
    """
    around = [*((one.target, one.lower) for one in view.overlays), *((one.target, one.source) for one in (*view.mounts, *mounts))]
    for mount in mounts:
        above = [(target, source) for target, source in around if mount.target.startswith(f"{target}/")]
        if not above:
            continue
        target, path = max(above, key=lambda each: len(each[0]))
        for name in mount.target[len(target) + 1 :].split("/"):
            path = f"{path}/{name}"
            if os.path.islink(path):
                raise CannotEnforce(
                    f"{mount.target} cannot be a mount: {path} is a symbolic link ({mount.origin})",
                    code="mount.target",
                    hint="Remove the link, or mount it somewhere else with `at`, for example /mnt/data.",
                )


def can_offer(policy: Policy, wall: Wall) -> None:
    """Raises CannotEnforce (`mount.ask`) where nothing can be mounted any more once the sandbox stands."""
    if policy.offers and wall.OWN_KERNEL:
        raise CannotEnforce(
            f"on the {wall.NAME} wall nothing can be mounted later: its guest gives up the right to ({policy.offers[0].origin})",
            code="mount.ask",
            hint='Mount it from the start (without effect = "ask"), or choose wall = "bubblewrap".',
        )


def _offered(policy: Policy, mounts: list[Mount], overlays: list[str], session: str) -> list[Mount]:
    """For each mount that has to be asked for an empty folder in its place, which nobody can move away or write to.

    Raises CannotEnforce (`mount.ask`) for one that lies in, or over, another mount; for one that shows something secret a second time; and what `judge` raises.
    """
    empty = f"{session}/offered"
    os.mkdir(empty, 0o755)
    taken = [*overlays, *(mount.target for mount in mounts), *(rule.target for rule in policy.offers)]
    for rule in policy.offers:
        judge(rule.source, what="mount", mode="ro", origin=rule.origin)
        if not os.path.isdir(rule.source):
            raise CannotEnforce(f"{rule.source} is no folder ({rule.origin})", code="mount.ask", hint="Only a folder can be asked for.")
        near = [one for one in taken if one != rule.target and (within(rule.target, one) or within(one, rule.target))]
        secret = [one.source for one in mounts if one.secret and (within(rule.source, one.source) or within(one.source, rule.source))]
        if near or taken.count(rule.target) > 1 or secret:
            where = (near or secret or [rule.target])[0]
            raise CannotEnforce(
                f"{rule.target} cannot be asked for: {where} {'is secret' if secret and not near else 'is mounted as well'} ({rule.origin})",
                code="mount.ask",
                hint="Give it a place of its own, beside all other mounts: at = ...",
            )
    return [Mount(empty, rule.target, "ro", rule.origin) for rule in policy.offers]


def bare(policy: Policy) -> Confinement:
    """What every sandbox of `policy` is, whatever it is for: no mounts, no environment, but its root. A guest that stands ready is started so."""
    sockets = (AGENT,) if policy.signing is not None else ()
    return Confinement(network="door", limits=policy.limits, home=places.inside(), sockets=sockets, root=policy.root)


def _not_beside_itself(mount: Mount, top: str, workspace: str) -> None:
    """Raises CannotEnforce (`mount.overlap`) when a writable mount shows the workspace, or a part of it, a second time at another place: what protects
    it in the first would not be there in the second.
    """
    if mount.source == top or mount.source.startswith(f"{top}/"):
        same = mount.target == workspace + mount.source[len(top) :]
    elif top.startswith(f"{mount.source}/"):
        same = mount.target + top[len(mount.source) :] == workspace
    else:
        return
    if not same:
        raise CannotEnforce(
            f"the mount {mount.target} shows {'a part of' if mount.source != top else ''} the workspace {top} again, writable ({mount.origin})",
            code="mount.overlap",
            hint='Mount it "ro", or at its own path.',
        )


def _repository(mount: Mount) -> list[str]:
    """What to hold of a folder that is mounted writable: the git directory at its top, which git on the host obeys.

    Raises CannotEnforce (`mount.git`) for a git directory itself.
    """
    if all(os.path.lexists(f"{mount.source}/{name}") for name in ("HEAD", "objects", "refs")):
        raise CannotEnforce(
            f"{mount.source} is a git directory: its config and hooks would be writable inside, and the host's git executes them ({mount.origin})",
            code="mount.git",
            hint='Mount it "ro", or make its working tree the workspace: then the agent can commit.',
        )
    dotgit = f"{mount.source}/.git"
    return [f"ro:{mount.target}/.git"] if os.path.lexists(dotgit) and not os.path.islink(dotgit) else []


def base_environment(session: str, wall: Wall) -> dict[str, str]:
    """What every sandbox's environment holds."""
    user = "root" if (os.getuid() if wall.USER < 0 else wall.USER) == 0 else "user"
    proxy = f"http://{wall.ADDRESS}:{door.PROXY}"
    values = {
        "PATH": PATH,
        "HOME": places.inside(),
        "USER": user,
        "LOGNAME": user,
        "SHELL": "/bin/bash",
        "STOCKADE_SESSION": session,
        "NO_PROXY": NO_PROXY,
    }
    values |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy)
    values |= dict.fromkeys(CA_VARIABLES, CA_BUNDLE)
    values["no_proxy"] = NO_PROXY
    return values


def matching(name: str) -> list[str]:
    """The caller's variables that a pass rule means: one name, or a prefix ending in `*`."""
    if name.endswith("*"):
        return [found for found in os.environ if found.startswith(name[:-1])]
    return [name] if name in os.environ else []


def stand_ins(policy: Policy, placeholders: dict[str, str]) -> dict[str, str]:
    """The variables that credentials have inside. A region that the policy sets itself stays."""
    if not policy.credentials:
        return {}
    from stockade.gateway.broker import variables

    given, found = dict(policy.environment.set_values), {}
    for credential in policy.credentials:
        for name, value in variables(credential, placeholders[credential.name]).items():
            found[name] = value if name in credential.variables else given.get(name, value)
    return found


def placeholders(policy: Policy, session: str) -> tuple[dict[str, str], str]:
    """For each credential its placeholder: what the sandbox holds instead of the secret, unguessable and worthless elsewhere; and the key that they are
    verified by ("" = none).

    Raises CannotEnforce (`credential.missing`) for a variable or file that is plainly not there: better now than at the first request.
    """
    if not policy.credentials:
        return {}, ""
    from stockade.gateway.broker import mint

    for credential in policy.credentials:
        kind, _, name = credential.source.partition(":")
        if (kind == "env" and not os.environ.get(name)) or (kind == "file" and not os.access(os.path.expanduser(name), os.R_OK)):
            raise CannotEnforce(
                f"credential {credential.name}: there is no {'variable' if kind == 'env' else 'readable file'} {name} ({credential.origin})",
                code="credential.missing",
                hint=f"Set it where stockade runs (it never enters the sandbox): export {name}=..."
                if kind == "env"
                else "Correct the path.",
            )
    return mint(session, policy.credentials)


def raw_ports(policy: Policy) -> tuple[int, ...]:
    """The ports on which raw TCP is granted: the door listens there too."""
    return tuple(sorted({grant.port for grant in policy.grants if grant.scheme == "tcp"}))


def wall_of(policy: Policy) -> Wall:
    """The wall that the policy means."""
    wanted = policy.wall
    if wanted == "auto":
        wanted = "vm" if policy.oversight == "none" else "bubblewrap"
    if wanted == "bubblewrap":
        from stockade.walls import bubblewrap

        return bubblewrap
    if wanted == "gvisor":
        from stockade.walls import gvisor

        return gvisor
    from stockade.walls.vm import wall as vm

    return vm
