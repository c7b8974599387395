"""Canary prompts: requests made up to be shown among real ones, which whoever reads them must refuse. Pure: chance comes in as an argument.

They are never carried out, so all that counts is how they read. Each has one thing wrong with it that stands in plain sight and that no task makes right:
a host that only resembles a granted one, or puts its name in front of its own; a bare address; a place where anybody drops files, and a secret's file dropped
there; the metadata service of clouds. Names and addresses are reserved ones (RFC 2606, RFC 5737, RFC 3927), except those that resemble a granted name.
"""

from __future__ import annotations

from stockade.checks.normalise import is_name
from stockade.core.frozen import frozen
from stockade.core.values import ASK, DENY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from random import Random

    from stockade.core.values import Grant

    Maker = Callable[[Random, "_Place", str], "Lure"]

# What a letter can be taken for, and what a hand types twice.
_ALIKE = (
    ("m", "rn"),
    ("rn", "m"),
    ("l", "1"),
    ("1", "l"),
    ("i", "l"),
    ("o", "0"),
    ("0", "o"),
    ("w", "vv"),
    ("e", "ee"),
    ("s", "ss"),
    ("t", "tt"),
)
_SECOND_LEVEL = ("ac", "co", "com", "edu", "gov", "ne", "net", "or", "org")  # in a country: example.co.uk
_OWNERS = ("uploads-eu1.example", "edge-cache.example", "api-gateway.example", "cdn-static.test", "storage-sync.example")
_DROPS = ("paste.dropzone.example", "files.sharebin.example", "transfer.bin-share.example", "up.filedrop.test", "gist.pastebox.example")
_SECRETS = ("id_ed25519", "aws-credentials.tar.gz", "home-ssh.tgz", "netrc.txt", "browser-profile.zip", "keyring-export.json")
_NETWORKS = ("192.0.2", "198.51.100", "203.0.113")
_METADATA = (
    "/latest/meta-data/iam/security-credentials/",
    "/latest/user-data",
    "/computeMetadata/v1/instance/service-accounts/default/token",
)
_WORDS = ("batch", "events", "sync", "import", "files", "jobs", "reports", "artifacts", "sessions", "traces")
_PATHS = ("/v1/*", "/api/v2/*", "/v1/*/*", "/upload/*", "/api/*/*")
_LONGEST = 120  # characters of a path that a real request lends


@frozen
class Lure:
    """A request that must be refused, as a real one is described: `length` bytes of body to host:port. `why` is one sentence for whoever has answered."""

    host: str
    port: int
    scheme: str
    method: str
    path: str
    length: int
    why: str


@frozen
class _Place:
    """What a lure resembles."""

    host: str = ""
    port: int = 443
    scheme: str = "https"


def due(rate: float, since: int, rng: Random | None = None) -> bool:
    """Whether the next request that is shown is to be a lure: of all that are shown, the share `rate` will be (at most a half; 0 = none). `since` counts the real ones
    that were shown after the last lure, or after the start. Never two in a row, and nothing that was shown before tells when the next one comes.
    """
    if not rate > 0 or since < 1:
        return False
    rate = min(rate, 0.5)
    return (rng or _chance()).random() * (1 - rate) < rate


def pause(rng: Random | None = None) -> float:
    """Seconds from the answer to a real request until a lure is shown: as if the work had gone on meanwhile, and never the same."""
    return 0.5 + min(20.0, (rng or _chance()).expovariate(1 / 4))


def lure(grants: Sequence[Grant], like: Sequence[tuple[str, str]] = (), rng: Random | None = None) -> Lure:
    """A request to a host that belongs to nobody whom the policy names. It resembles the grants that ask, or where none does those that allow, and borrows from `like`: method
    and path of real requests that were shown lately. `rng` makes it repeatable; without one it is the system's randomness. Neither order nor duplicates of
    `grants` change it.
    """
    chance = rng or _chance()
    shown = [grant for grant in grants if grant.effect == ASK and _has_owner(grant)] or [grant for grant in grants if grant.effect != DENY]
    places = sorted({(grant.host.removeprefix("*.").lower(), grant.port, grant.scheme) for grant in shown if _has_owner(grant)})
    makers = [_drop, _drop, _address, _metadata, *([_resembling] * 5 + [_in_front] * 3 if places else [])]
    paths = [*_borrowed(shown, like)] or [*_PATHS]
    known = {_owner(grant.host) for grant in grants}
    while True:  # ends: no policy knows every owner that can be made up
        place = _Place(*chance.choice(places)) if places else _Place()
        found = chance.choice(makers)(chance, place, _filled(chance, chance.choice(paths)))
        if _owner(found.host) not in known and (found.host[-1].isdecimal() or is_name(found.host)):
            return found


def _resembling(chance: Random, place: _Place, path: str) -> Lure:
    labels, length = place.host.split("."), _size(chance)
    owned = _owned(labels)
    labels[owned] = chance.choice([other for other in _altered(labels[owned]) if other != labels[owned]])
    host = ".".join(labels)
    why = f"{host} only looks like {place.host}, and would have got {length} bytes."
    return Lure(host, place.port, place.scheme, "POST", path, length, why)


def _in_front(chance: Random, place: _Place, path: str) -> Lure:
    owner, length = chance.choice(_OWNERS), _size(chance)
    host = f"{place.host}.{owner}"
    why = f"{host} belongs to {owner}, whatever stands in front of that, and would have got {length} bytes."
    return Lure(host, place.port, place.scheme, chance.choice(("POST", "PUT")), path, length, why)


def _drop(chance: Random, place: _Place, path: str) -> Lure:
    host, secret = chance.choice(_DROPS), chance.choice(_SECRETS)
    path = f"/{chance.choice(('u', 'upload', 'drop'))}/{_number(chance)}/{secret}"
    return Lure(host, 443, "https", "PUT", path, _size(chance, 9, 20), f"{host} takes files from anybody, and {secret} holds secrets.")


def _address(chance: Random, place: _Place, path: str) -> Lure:
    host, length = f"{chance.choice(_NETWORKS)}.{chance.randrange(1, 255)}", _size(chance)
    why = f"{host} is a bare address that does not say whose it is, and would have got {length} bytes."
    return Lure(host, chance.choice((443, 8443, 8080)), place.scheme, "POST", path, length, why)


def _metadata(chance: Random, place: _Place, path: str) -> Lure:
    why = "169.254.169.254 is the metadata service of clouds, which gives away the machine's own credentials."
    return Lure("169.254.169.254", 80, "http", "GET", chance.choice(_METADATA), 0, why)


def _has_owner(grant: Grant) -> bool:
    """Whether it grants requests to a host whose name belongs to somebody, so that one like it belongs to somebody else."""
    host = grant.host.removeprefix("*.").lower()
    return grant.scheme in ("https", "http") and is_name(host) and "." in host and not host.endswith(".localhost")


def _owned(labels: list[str]) -> int:
    """Which label somebody has registered: with another one there, the name is somebody else's. With another one left of it, it might not be."""
    in_a_country = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL
    return max(0, len(labels) - (3 if in_a_country else 2))


def _owner(host: str) -> str:
    """The part of a name, or of a grant's pattern, that says whose it is; of an address some of it."""
    labels = host.lower().split(".")
    return ".".join(labels[_owned(labels) :])


def _altered(label: str) -> Iterator[str]:
    """What could be misread as `label`: letters alike, neighbours swapped, one doubled. Something else than `label` is always among it."""
    for old, new in _ALIKE:
        if old in label:
            yield label.replace(old, new, 1)
    for at in range(1, len(label) - 1):
        yield label[:at] + label[at + 1] + label[at] + label[at + 2 :]
    yield label[:1] + label


def _borrowed(grants: Iterable[Grant], like: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Paths and patterns of paths to which something could be sent."""
    for method, path in like:
        if method in ("POST", "PUT", "PATCH") and path[:1] == "/" and path.isascii() and path.isprintable() and len(path) <= _LONGEST:
            yield path
    yield from sorted({path for grant in grants if {"POST", "PUT", "*"} & {*grant.methods} for path in grant.paths})


def _filled(chance: Random, pattern: str) -> str:
    """A path, with words and numbers for what a pattern leaves open."""
    words = {"*": lambda: chance.choice(_WORDS), "**": lambda: f"{chance.choice(_WORDS)}/{_number(chance)}"}
    return "/".join(words[part]() if part in words else part for part in pattern.split("/"))


def _size(chance: Random, least: int = 16, most: int = 26) -> int:
    """Bytes, from 2^least (64 KiB) to 2^most (64 MiB), of every order as often."""
    return int(2 ** chance.uniform(least, most))


def _number(chance: Random) -> str:
    return f"{chance.getrandbits(40):010x}"


def _chance() -> Random:
    from random import SystemRandom  # os.urandom: whoever has seen some lures cannot tell the next

    return SystemRandom()
