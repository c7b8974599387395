"""Fetches the real credentials. Runs in the supervisor, outside every sandbox, when a gate starts; a value goes to that gate and nowhere else.

Sources: `env:NAME`, `file:PATH`, `command:ARGV` (split as a shell would, run without one), `keyring:SERVICE/USER`.
"""

from __future__ import annotations

import os

from stockade.core.errors import CannotEnforce, StockadeError
from stockade.core.values import PLACEHOLDER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from stockade.core.values import Credential
    from stockade.gateway.flow import Leaving
    from stockade.gateway.sigv4 import Keys

_LONGEST = 16384  # bytes of a secret
_COMMAND_TIMEOUT = 30.0  # seconds: it may ask for a touch of a key


def resolve(credential: Credential, environment: Mapping[str, str]) -> str:
    """The secret of `credential`. `environment` is the supervisor's own.

    Raises StockadeError (`credential.*`) if there is none or it could not stand in a header, CannotEnforce if the source's tool is missing. The message
    names the source and never the value.
    """
    return _checked(credential, _fetched(credential, environment))


def resolve_keys(credential: Credential, environment: Mapping[str, str]) -> Keys:
    """The key of AWS of a `credential` with `services`: three variables beside one another, the JSON of a credential_process, or a section of a file.

    Raises as `resolve`.
    """
    from stockade.gateway import sigv4

    kind, _, rest = credential.source.partition(":")
    if kind == "env":
        before = rest.removesuffix("ACCESS_KEY_ID")
        secret = _from_environment(credential, f"{before}SECRET_ACCESS_KEY", environment)
        keys = sigv4.Keys(_from_environment(credential, rest, environment), secret, environment.get(f"{before}SESSION_TOKEN", ""))
    else:
        text = _fetched(credential, environment)
        if len(text) > _LONGEST:
            raise _failed(credential, f"is longer than {_LONGEST} bytes", "Give a source that holds this key alone.")
        try:
            keys = sigv4.parse(text, credential.profile or "default")
        except ValueError as error:
            hint = "aws configure export-credentials --format process prints what is expected."
            raise _failed(credential, str(error), hint) from None
    for value in (keys.id, keys.secret, *([keys.token] if keys.token else [])):
        _checked(credential, value)
    return keys


def _fetched(credential: Credential, environment: Mapping[str, str]) -> str:
    kind, _, rest = credential.source.partition(":")
    match kind:
        case "env":
            return _from_environment(credential, rest, environment)
        case "file":
            return _from_file(credential, rest)
        case "command":
            return _from_command(credential, rest)
        case "keyring":
            return _from_keyring(credential, rest)
        case _:
            raise _failed(credential, "has a source of no known kind", "Use env:NAME, file:PATH, command:ARGV or keyring:SERVICE/USER.")


def mint(session: str, credentials: tuple[Credential, ...]) -> tuple[dict[str, str], str]:
    """For each of these credentials its stand-in for the sandbox: recognisable, and worthless outside of `session`. And the public key, as `ed25519/...`, by
    which the gate recognises what its holder makes of one by narrowing it (checks/tokens.py). The private key is gone when this returns.

    Keys of AWS have random stand-ins, since some clients judge the look of a key; so has everything where biscuit-python is not installed, and the key is "".
    Raises CannotEnforce for a credential that nothing here can write into requests.
    """
    made = {one.name: f"{PLACEHOLDER}{one.name}-{os.urandom(12).hex()}" for one in credentials}
    if any(one.services for one in credentials):
        from stockade.gateway import sigv4

        sigv4.require()
    plain = [one.name for one in credentials if not one.services]
    try:
        from biscuit_auth import BiscuitBuilder, KeyPair
    except ImportError:
        return made, ""
    pair = KeyPair()
    for name in plain:
        token = BiscuitBuilder("session({session}); credential({name});", {"session": session, "name": name}).build(pair.private_key)
        made[name] = f"{PLACEHOLDER}{name}-{token.to_base64().rstrip('=')}"
    return made, repr(pair.public_key)


def variables(credential: Credential, placeholder: str) -> dict[str, str]:
    """What the sandbox's environment gets for a credential: its placeholder, and the region of a key of AWS that has only one."""
    found = dict.fromkeys(credential.variables, placeholder)
    if found and credential.services and credential.env == "AWS" and len(credential.regions) == 1:
        found |= dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), credential.regions[0])
    return found


def for_gate(
    credentials: tuple[Credential, ...], placeholders: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The `credentials` of a gate's configuration. Raises as `resolve`."""
    return {credential.name: _item(credential, placeholders[credential.name], environment) for credential in credentials}


def _item(credential: Credential, placeholder: str, environment: Mapping[str, str]) -> dict[str, Any]:
    item: dict[str, Any] = {
        "header": credential.header,
        "template": credential.template,
        "user": credential.user,
        "placeholder": placeholder,
    }
    if credential.services:
        keys = resolve_keys(credential, environment)
        scope = {"services": credential.services, "regions": credential.regions}
        return {**item, "secret": keys.secret, "aws": {"id": keys.id, "token": keys.token, "expires": keys.expires, **scope}}
    return {**item, "secret": resolve(credential, environment), **({"query": credential.query} if credential.query else {})}


def writer(item: Mapping[str, Any]) -> Callable[[Leaving], list[tuple[str, str]]]:
    """What writes one credential of a gate's configuration into a request: gives parts of the answer to the engine (gateway/config.py)."""
    if "aws" in item:
        from stockade.gateway.sigv4 import signer

        return signer(item)
    if "query" in item:
        from stockade.gateway.target import TARGET

        return lambda leaving: [(TARGET, in_query(leaving.target, item))]
    fixed = [(item["header"].lower(), written(item))]
    return lambda leaving: fixed


def in_query(target: str, item: Mapping[str, str]) -> str:
    """`target` with the secret in place of the placeholder, or at the end of the query. It has been decided that the parameter is there once, or not."""
    from urllib.parse import quote

    path, _, query = target.partition("?")
    parts = query.split("&") if query else []
    secret, stand_in = f"{item['query']}={quote(item['secret'], safe='')}", f"{item['query']}={item['placeholder']}"
    if stand_in in parts:
        parts[parts.index(stand_in)] = secret
    else:
        parts.append(secret)
    return f"{path}?{'&'.join(parts)}"


def written(item: Mapping[str, str]) -> str:
    """The header's value for one credential of a gate's configuration."""
    secret = item["secret"]
    if item["user"]:
        from base64 import b64encode

        secret = b64encode(f"{item['user']}:{secret}".encode()).decode()
    return item["template"].replace("{}", secret)


def _from_environment(credential: Credential, name: str, environment: Mapping[str, str]) -> str:
    if name not in environment:
        raise _failed(credential, f"is not set: the variable {name} does not exist", f"Set it where stockade runs: export {name}=...")
    return environment[name]


def _from_file(credential: Credential, path: str) -> str:
    full = os.path.expanduser(path)
    try:
        with open(full, "rb") as file:
            data = file.read(_LONGEST + 2)
    except OSError as error:
        raise _failed(credential, f"cannot be read from {full}: {error.strerror}", "Check the path and its permissions.") from None
    return _text(credential, data)


def _from_command(credential: Credential, line: str) -> str:
    import shlex
    import subprocess

    try:
        argv = shlex.split(line)
    except ValueError as error:
        raise _failed(credential, f"has a command that cannot be split: {error}", "Check its quotes.") from None
    if not argv:
        raise _failed(credential, "has an empty command", "Write command:PROGRAM ARGUMENTS.")
    return _run(credential, argv, subprocess.DEVNULL)


def _run(credential: Credential, argv: list[str], stdin: int) -> str:
    import subprocess

    try:
        # Not in the project: many programs obey what lies where they are started (`python -m` imports it, git reads its settings). Its errors go to our stderr.
        done = subprocess.run(argv, stdin=stdin, stdout=subprocess.PIPE, timeout=_COMMAND_TIMEOUT, check=False, cwd="/")
    except FileNotFoundError:
        raise _failed(credential, f"needs the program {argv[0]}, which is not there", "Install it, or write its full path.") from None
    except subprocess.TimeoutExpired:
        raise _failed(credential, f"was not given within {_COMMAND_TIMEOUT:.0f} s by {argv[0]}", "Run the command by hand.") from None
    except OSError as error:
        raise _failed(credential, f"cannot be fetched with {argv[0]}: {error.strerror}", "Run the command by hand.") from None
    if done.returncode:
        raise _failed(credential, f"was refused: {argv[0]} ended with status {done.returncode}", "Run the command by hand.")
    return _text(credential, done.stdout)


def _from_keyring(credential: Credential, rest: str) -> str:
    import importlib.util
    import shutil
    import subprocess

    service, slash, user = rest.partition("/")
    if not (service and slash and user):
        raise _failed(credential, "has a keyring source that is not SERVICE/USER", "Write keyring:SERVICE/USER.")
    if importlib.util.find_spec("keyring"):
        import keyring

        try:
            value = keyring.get_password(service, user)
        except Exception as error:  # backends raise what they like
            raise _failed(credential, f"cannot be read from the keyring ({type(error).__name__})", "Unlock the keyring.") from None
        if value is None:
            raise _failed(credential, f"is not in the keyring under {service}/{user}", f"Store it: keyring set {service} {user}")
        return str(value)
    if tool := shutil.which("secret-tool"):
        return _run(credential, [tool, "lookup", "service", service, "username", user], subprocess.DEVNULL)
    raise CannotEnforce(
        f"the credential {credential.name!r} comes from a keyring, and nothing here can read one",
        code="credential.no-keyring",
        hint="Install one: pip install 'stockade[keyring]', or on Debian: apt install libsecret-tools",
    )


def _text(credential: Credential, data: bytes) -> str:
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise _failed(credential, "holds bytes that are not ASCII", "A header cannot carry it.") from None


def _checked(credential: Credential, value: str) -> str:
    """Without one final newline. What else is not visible ASCII could add headers to a request (RFC 9110, section 5.5)."""
    value = value.removesuffix("\n").removesuffix("\r")
    if not value:
        raise _failed(credential, "is empty", "An empty secret would be sent as no secret.")
    if len(value) > _LONGEST:
        raise _failed(credential, f"is longer than {_LONGEST} bytes", "A header cannot carry it.")
    if not all(" " <= letter <= "~" for letter in value) or value != value.strip():
        raise _failed(credential, "holds a line break, a control character or surrounding space", "Give exactly one line of visible ASCII.")
    return value


def _failed(credential: Credential, what: str, hint: str) -> StockadeError:
    return StockadeError(f"the credential {credential.name!r} ({credential.origin}) {what}", code="credential.unavailable", hint=hint)
