"""The kinds of values in a policy file: what each may look like, and in which words it is refused (pydantic's annotated types)."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from stockade.core import oci
from stockade.core.tools import wholesome
from stockade.core.values import GATE
from stockade.policy import units

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, section 5.6.2
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+")  # RFC 6838, section 4.2
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # an identifier of protocol buffers
_IMAGES = re.compile(rf"{oci.REGISTRY}{oci.PART}*(?:/\*\*|@{oci.DIGEST})?")
_SEGMENTS = re.compile(r"(?:/[A-Za-z0-9._~!$&'()+,;=:@%*-]*)+")  # RFC 3986, section 3.3


def wrong(message: str, hint: str = "") -> PydanticCustomError:
    """An error that carries a hint. Never formats `message`, which may hold braces of the user's."""
    return PydanticCustomError("stockade", "{message}", {"message": message, "hint": hint})


def _text(value: str) -> str:
    if not value.strip():
        raise wrong("must not be empty")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise wrong("holds a control character")
    return value


def _value(value: str) -> str:
    if "\0" in value:
        raise wrong("holds a zero character, which no variable can")
    return value


def _unit(parse: Any) -> BeforeValidator:
    def convert(value: object) -> int:
        try:
            return int(parse(value))
        except ValueError as error:
            raise wrong(str(error)) from None

    return BeforeValidator(convert)


def _no_glob(value: str) -> str:
    if any(letter in value for letter in "*?[") and not value.startswith("/proc"):
        raise wrong(f"{value!r} holds a wildcard, and paths are taken as written", "Name each folder in a [[mount]] of its own.")
    if value.startswith("~") and value != "~" and not value.startswith("~/"):
        raise wrong(f"{value!r}: only your own home can be written as ~", "Write the whole path.")
    if "$" in value:
        raise wrong(f"{value!r}: variables are not replaced in paths", "Write the path itself; ~ stands for your home.")
    return value


def _tool(value: str) -> str:
    if not re.fullmatch(r"[!-~]{1,200}", value):
        raise wrong(f"{value!r} is no name of a tool", 'As the agent writes it: "Bash", "WebFetch", "mcp__github__*"; * is any text.')
    return value


def _held(value: str) -> str:
    hint = 'Relative to the workspace: ".envrc", ".claude/settings.json", or all of a folder: ".github/workflows/*.yml".'
    folder, _, name = value.rpartition("/")
    if not re.fullmatch(r"[ -\[\]-~]{1,1000}", value) or not wholesome(value) or value.startswith("~"):
        raise wrong(f"{value!a} is no path of a file in the workspace that may be changed; what git obeys never may", hint)
    if "*" in folder or ("*" in name and not folder):
        raise wrong(f"{value!r}: a * stands in the last segment only, and below a folder, which is held as a whole", hint)
    return value


def _target(value: str) -> str:
    if not value.startswith("/") or "//" in value or any(part in (".", "..") for part in value.split("/")):
        raise wrong(f"{value!r} must be an absolute path without . and ..")
    if value == "/" or value.split("/")[1] in ("proc", "sys", "dev"):
        raise wrong(f"nothing can be mounted at {value}")
    return value.rstrip("/")


def _host(value: str) -> str:
    hint = 'Write host = "api.example.com", or "*.example.com" for every name below it.'
    if "://" in value or "/" in value:
        raise wrong(f"{value!r} is a URL; the host alone goes here", f"{hint} Paths go into paths, the scheme into scheme.")
    name = value.lower()
    if name == GATE:
        raise wrong(
            f"{GATE} is the gate's own name, and nothing goes there", "What agents ask about their tools is answered there: [[tool]]."
        )
    if ":" in name and not name.startswith("[") and name.count(":") == 1:
        raise wrong(f"{value!r} holds a port", f"Write host = {name.split(':')[0]!r} and port = {name.split(':')[1]}.".replace("'", '"'))
    labels = name.removeprefix("*.").split(".")
    if ":" in name or re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        raise wrong(
            f"{value!r} is an address; grants are for names",
            "Give it a name (/etc/hosts will do) and set private = true if it is not public.",
        )
    if not name.isascii():
        raise wrong(f"{value!r} is not written in ASCII", "Write the xn-- form of an international name.")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise wrong(f"{value!r} is not a host name", hint)
    if name.startswith("*.") and len(labels) < 2:
        raise wrong(f"{value!r} covers a whole top-level domain", hint)
    return name


def _host_or_any(value: str) -> str:
    return value if value == "*" else _host(value)


def _method(value: str) -> str:
    if not value.isascii() or not (value.isalpha() or value == "*"):
        raise wrong(f"{value!r} is not an HTTP method", 'Write methods = ["GET", "HEAD"].')
    if value.upper() in ("CONNECT", "TRACE"):
        raise wrong(f"{value.upper()} cannot be granted", "The gate opens tunnels by itself; requests inside them are judged one by one.")
    return value.upper()


def _pattern(value: str) -> str:
    hint = 'Write whole segments: "/v1/messages", "/users/*/keys" (one segment), "/files/**" (everything below).'
    if not value.startswith("/"):
        raise wrong(f"the path {value!r} does not start with /", hint)
    if "?" in value or "#" in value:
        raise wrong(f"the path {value!r} holds a query or fragment", 'Write query = "any" or "none" for the rule.')
    if not _SEGMENTS.fullmatch(value) or len(value) > 2000:
        raise wrong(f"the path {value!r} holds a character that may not stand in a path", "Escape it as in a URL (%20 for a space).")
    segments = value.split("/")[1:]
    if any("*" in part and part not in ("*", "**") for part in segments):
        raise wrong(f"the path {value!r} has a * inside a segment", hint)
    if "**" in segments[:-1]:
        raise wrong(f"the path {value!r} has ** before its end", hint)
    if "" in segments[:-1] or any(part.split(";")[0] in (".", "..") for part in segments):
        raise wrong(f"the path {value!r} holds an empty or a dot segment", hint)
    return value


def _header(value: str) -> str:
    if not _TOKEN.fullmatch(value.partition(":")[0].strip()):
        raise wrong(f"{value!r} is not a header", 'Write its name, or "name: value" to allow that value only.')
    return value


def split_url(value: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path of a URL that was taken."""
    scheme, _, rest = value.partition("://")
    where, slash, path = rest.partition("/")
    host, _, port = where.partition(":")
    return scheme, host.lower(), int(port or (443 if scheme == "https" else 80)), slash + path


def _url(value: str) -> str:
    hint = 'Write the whole address that answers: "https://api.example.com/v1/messages", without a query.'
    if not re.fullmatch(r"https?://[^/:?#@*\[\]]+(:[0-9]{1,5})?/[^?#*]*", value):
        raise wrong(f"{value[:200]!r} is not such a URL", hint)
    _, host, port, path = split_url(value)
    if not 0 < port < 65536:
        raise wrong(f"{value[:200]!r} names no port", hint)
    _host(host)
    _pattern(path)
    return value


def _content_type(value: str) -> str:
    if not _MEDIA_TYPE.fullmatch(value):
        raise wrong(f"{value!r} is not the type of a body", 'Write it without parameters: "application/json".')
    return value.lower()


def _pointer(value: str) -> str:
    if (value and not value.startswith("/")) or re.search(r"~(?![01])", value):
        raise wrong(
            f"{value!r} is not a JSON Pointer", 'Write "/model", "/messages/0/role", or "" for the whole body (RFC 6901: ~1 is /, ~0 is ~).'
        )
    return value


def image(value: str) -> str:
    """An image by its digest."""
    if not re.fullmatch(f"{oci.REGISTRY}{oci.PART}+@{oci.DIGEST}", value) or len(value) > 400:
        hint = f"`stockade image pull {value}` prints the line to write." if re.fullmatch(r"[\w.:/@-]{1,300}", value) else ""
        raise wrong(f"{value!r} does not name an image by its digest (registry/name@sha256:...)", hint)
    return value


def _images(value: str) -> str:
    if not _IMAGES.fullmatch(value) or len(value) > 400:
        raise wrong(f"{value!r} names no images", 'Write "registry/name", "registry/name@sha256:..." or "registry/**" for all below.')
    return value


def _rate(value: object) -> tuple[int, int]:
    try:
        return units.rate(value)
    except ValueError as error:
        raise wrong(str(error)) from None


def _moment(value: object) -> int:
    """Unix seconds of a date and time with its offset, as TOML or as text."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(found, datetime) and found.tzinfo is not None:
            return int(found.timestamp())
    except (ValueError, OverflowError):
        pass
    raise wrong(f"{str(value)[:40]!r} is not a date and time with an offset", "Write not_after = 2027-01-31T18:00:00Z.")


def _scalar(value: object) -> str:
    """A value of a body as JSON text."""
    if not isinstance(value, str | int | float | bool):
        raise wrong(f"{str(value)[:40]!r} cannot stand among the values", "Write strings, numbers, true or false.")
    return json.dumps(value)


def _variable(value: str) -> str:
    if value != "LC_*" and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        hint = "Name each variable: a pattern could match a secret that you set next year." if "*" in value else ""
        raise wrong(f"{value!r} is not the name of an environment variable", hint)
    return value


def _source(value: str) -> str:
    kind, colon, rest = value.partition(":")
    hint = "Write env:NAME, file:/path, command:program argument ..., or keyring:service/user."
    if not colon or kind not in ("env", "file", "command", "keyring"):
        raise wrong("this does not say where the credential comes from; a secret itself never stands in a policy", hint)
    if not rest.strip():
        raise wrong(f"nothing follows {kind}:", hint)
    if kind == "env" and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", rest):
        raise wrong("env: must be followed by the name of a variable", hint)
    if kind == "file" and not rest.startswith(("/", "~/")):
        raise wrong("file: must be followed by an absolute path or one below ~", hint)
    if kind == "keyring" and not all(rest.partition("/")[::2]):
        raise wrong("keyring: must be followed by service/user", hint)
    return value


def _webhook(value: str) -> str:
    """Where something is told. In the clear only on this machine; a name and password in it would be in every message of an error (RFC 3986, section 3.2.1)."""
    try:
        parts = urlsplit(value)
        fine = bool(parts.hostname) and (parts.port or 443) > 0
    except ValueError:
        fine = False
    if not fine or not value.isascii() or not value.isprintable() or " " in value:
        raise wrong(f"{value[:100]!r} is not an address", 'Write "https://host/path".')
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        raise wrong("a webhook is told over https, or over http on this machine", 'Write "https://host/path".')
    if parts.username is not None or parts.fragment:
        raise wrong("holds a name, a password or a fragment", "Who is told knows the sender by the signature: webhook_secret.")
    return value


def _template(value: str) -> str:
    if value.count("{}") != 1:
        raise wrong(f"{value[:40]!r} must hold {{}} once, where the credential goes", 'Write template = "Bearer {}" or "{}".')
    return value


def _repository(value: str) -> str:
    hint = 'Write "owner/name", as in its address; "owner/*" is every repository of that owner.'
    if value.startswith("/") or value.endswith(("/", ".git")) or "/" not in value or "**" in value.split("/"):
        raise wrong(f"{value!r} is not a repository", hint)
    _pattern(f"/{value}")
    return value


def _ref(value: str) -> str:
    hint = 'Write the whole name: "refs/heads/main", "refs/heads/agent/**" (everything below), "refs/tags/*".'
    if not value.startswith("refs/") or value.count("/") < 2:
        raise wrong(f"{value!r} is not the name of a ref", hint)
    _pattern(f"/{value}")
    return value


def _call(value: str) -> str:
    service, slash, method = value.partition("/")
    if not slash or not all(_WORD.fullmatch(word) for word in service.split(".")) or not (method == "*" or _WORD.fullmatch(method)):
        raise wrong(f"{value!r} is not a gRPC method", 'Write "package.Service/Method", or "package.Service/*" for all of a service.')
    return value


def _user(value: str) -> str:
    if ":" in value or not value.isascii():
        raise wrong(f"{value!r} cannot be a user name of HTTP Basic", "It holds no colon (RFC 7617).")
    return value


def _namespace(value: str) -> str:
    if not value.isascii() or " " in value or len(value) > 64:
        raise wrong(f"{value[:70]!r} is not a namespace of signatures", 'Write "git" for commits and tags, "file" for files.')
    return value


def _parameter(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._~-]{1,64}", value) or not re.search(r"[A-Za-z0-9]", value):
        raise wrong(
            f"{value!r} is not the name of a query parameter", 'Write query = "key": letters, digits and . _ ~ - (RFC 3986, "unreserved").'
        )
    return value


def _scope(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", value):
        hint = 'Write each as AWS writes it in a signature: services = ["s3"], regions = ["eu-central-1"]. There are no patterns.'
        raise wrong(f"{value!r} is not a service or region of AWS", hint)
    return value


def _canary(value: str) -> str:
    if len(value.encode()) < 12:
        raise wrong("is too short: it would turn up by chance", "Take at least 12 characters that occur nowhere else.")
    return value


def _version(value: object) -> object:
    if isinstance(value, bool | float):  # Python holds them equal to 1
        raise wrong("must be a whole number", "Write version = 1.")
    return value


def usable(host: str, path: str) -> bool:
    """Could a rule name this host and everything below this path (without a last /)?"""
    try:
        return bool(_host(host)) and not host.startswith("*") and (path == "" or bool(_pattern(f"{path}/**")))
    except PydanticCustomError:
        return False


def is_call(text: str) -> bool:
    """Could a rule name this gRPC method?"""
    try:
        return bool(_call(text))
    except PydanticCustomError:
        return False


def is_pattern(path: str) -> bool:
    """Could a rule name this path?"""
    try:
        return bool(_pattern(path))
    except PydanticCustomError:
        return False


_UNIT_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]}
Text = Annotated[str, AfterValidator(_text)]
Path = Annotated[Text, AfterValidator(_no_glob)]
Tool = Annotated[Text, AfterValidator(_tool)]
Held = Annotated[Text, AfterValidator(_held)]
Target = Annotated[Text, AfterValidator(_target)]
Host = Annotated[Text, AfterValidator(_host)]
HostOrAny = Annotated[Text, AfterValidator(_host_or_any)]
Method = Annotated[Text, AfterValidator(_method)]
Pattern = Annotated[Text, AfterValidator(_pattern)]
Header = Annotated[Text, AfterValidator(_header)]
Variable = Annotated[Text, AfterValidator(_variable)]
Size = Annotated[int, _unit(units.size), WithJsonSchema(_UNIT_SCHEMA)]
Duration = Annotated[int, _unit(units.duration), WithJsonSchema(_UNIT_SCHEMA)]
Count = Annotated[int, Field(ge=0, le=1 << 30)]
Percent = Annotated[int, Field(ge=0, le=50)]
Repository = Annotated[Text, AfterValidator(_repository)]
Call = Annotated[Text, AfterValidator(_call)]
Image = Annotated[Text, AfterValidator(image)]
Images = Annotated[Text, AfterValidator(_images)]
Ref = Annotated[Text, AfterValidator(_ref)]
ContentType = Annotated[Text, AfterValidator(_content_type)]
Pointer = Annotated[str, AfterValidator(_pointer)]
Rate = Annotated[tuple[int, int], BeforeValidator(_rate), WithJsonSchema({"type": "string", "examples": ["60 per min"]})]
Moment = Annotated[int, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
Scalar = Annotated[str, BeforeValidator(_scalar), WithJsonSchema({"type": ["string", "number", "boolean"]})]
Value = Annotated[str, AfterValidator(_value)]
Source = Annotated[Text, AfterValidator(_source)]
Url = Annotated[Text, AfterValidator(_url)]
Webhook = Annotated[Text, AfterValidator(_webhook)]
Template = Annotated[Text, AfterValidator(_template)]
User = Annotated[Text, AfterValidator(_user)]
Namespace = Annotated[Text, AfterValidator(_namespace)]
Parameter = Annotated[Text, AfterValidator(_parameter)]
Scope = Annotated[Text, AfterValidator(_scope)]
CanaryText = Annotated[Text, AfterValidator(_canary)]
Version = Annotated[Literal[1], BeforeValidator(_version)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
