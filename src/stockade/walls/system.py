"""What a sandbox sees of the host besides what the policy mounts: /usr, and an /etc of our own with only harmless, needed files.

The private /etc is copied into the cache, once for each user and home that are in it, and made again when one of its sources changes, so that a start costs one bind instead
of thirty.
"""

from __future__ import annotations

import os
import stat

from stockade.core import places
from stockade.core.errors import WallFailed

TOP_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # merged-usr symlinks, recreated as on the host
# From /etc: what dynamic linking, name services, time zones, shells and language runtimes read; nothing that holds a secret.
COPIED = (
    "alternatives", "bash.bashrc", "debian_version", "gai.conf", "host.conf", "inputrc", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias",
    "localtime", "lsb-release", "magic", "mime.types", "networks", "os-release", "perl", "profile", "protocols", "python3", "python3.11", "python3.12",
    "python3.13", "rpc", "services", "shells", "terminfo", "timezone", "xattr.conf", "ssl/openssl.cnf",
)  # fmt: skip
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# Other places where clients look for the system's certificates: links to the one bundle.
CA_LINKS = ("ssl/cert.pem", "pki/tls/certs/ca-bundle.crt")
HOSTNAME = "stockade"


def links() -> tuple[tuple[str, str], ...]:
    """(target, path) of the top-level symlinks into /usr, and (path, path) for those that are real directories on this host."""
    found = []
    for name in TOP_LINKS:
        path = f"/{name}"
        try:
            found.append((os.readlink(path), path))
        except FileNotFoundError:
            continue
        except OSError:  # EINVAL: a directory, on hosts without merged /usr
            found.append((path, path))
    return tuple(found)


def etc(home: str, guest: str = "") -> str:
    """A directory to show as /etc, made again only when a source changed. For a guest with a kernel of its own `guest` is the door's address there, and root
    its user. Raises WallFailed (`system.etc`) when it cannot be made.
    """
    uid, gid = (0, 0) if guest else (os.getuid(), os.getgid())
    stamp = [f"1 {uid} {gid} {home}"]
    for name in COPIED:
        try:
            found = os.lstat(f"/etc/{name}")
        except OSError:
            continue
        stamp.append(f"{name} {found.st_mode} {found.st_ino} {found.st_mtime_ns} {found.st_size}")
    text = "\n".join(stamp).encode()
    directory = places.cache("etc-guest" if guest else "etc")
    # The session and its gate are at home in different places: each has its stamp. Homes that share one (long ones) only make it anew more often.
    stamped = f"{directory}/stamp-{uid}-{gid}-{home.replace('/', '%')[-50:]}"
    try:
        with open(stamped, "rb", buffering=0) as file:
            current = file.read()
        if current.startswith(text + b"\n="):
            return f"{directory}/{current[len(text) + 2 :].decode()}"
    except (OSError, UnicodeDecodeError):
        pass
    try:
        return _make(places.private(directory), stamped, text, home, uid, gid, guest or "127.0.0.1")
    except OSError as error:
        raise WallFailed(
            f"cannot prepare the sandbox's /etc in {directory}: {error}", code="system.etc", hint="Free some space there; nothing was run."
        ) from error


def _make(directory: str, stamped: str, stamp: bytes, home: str, uid: int, gid: int, server: str) -> str:
    # Earlier versions stay until the cache is cleared: a sandbox that is running may have one mounted.
    name = f"v{os.getpid()}.{os.urandom(4).hex()}"
    root = f"{directory}/{name}"
    os.makedirs(f"{root}/ssl/certs")
    os.makedirs(f"{root}/pki/tls/certs")
    for entry in COPIED:
        _copy(f"/etc/{entry}", f"{root}/{entry}")
    user = "root" if uid == 0 else "user"
    lines = {
        "passwd": f"{user}:x:{uid}:{gid}:{user}:{home}:/bin/bash\n"
        + ("root:x:0:0:root:/root:/bin/bash\n" if uid else "")
        + "nobody:x:65534:65534:nobody:/:/bin/false\n",
        "group": f"{user}:x:{gid}:\n" + ("root:x:0:\n" if gid else "") + "nogroup:x:65534:\n",
        "hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost ip6-localhost ip6-loopback\n",
        "hostname": f"{HOSTNAME}\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
        "resolv.conf": f"nameserver {server}\noptions timeout:5 attempts:1\n",
        "ssl/certs/ca-certificates.crt": "",  # the gate's own certificate is mounted over it
    }
    for entry, content in lines.items():
        with open(f"{root}/{entry}", "w") as file:
            file.write(content)
    for entry in CA_LINKS:
        os.symlink(CA_BUNDLE, f"{root}/{entry}")
    temporary = f"{directory}/new.{name}"
    with open(temporary, "wb") as file:
        file.write(stamp + b"\n=" + name.encode())
    os.rename(temporary, stamped)
    return root


def _copy(source: str, target: str) -> None:
    """Links and what the world may read, whoever we are; no times, owners or attributes, which nobody needs there and which cost most."""
    try:
        status = os.lstat(source)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        leads = os.readlink(source)
        if "/man/man" not in leads:  # most of /etc/alternatives: other names of manual pages, which are there by their own
            os.symlink(leads, target)
    elif stat.S_ISDIR(status.st_mode) and status.st_mode & 0o005 == 0o005:
        os.mkdir(target)
        os.chmod(target, status.st_mode & 0o755)
        for name in os.listdir(source):
            _copy(f"{source}/{name}", f"{target}/{name}")
    elif stat.S_ISREG(status.st_mode) and status.st_mode & 0o004:
        with open(source, "rb") as old, open(target, "xb") as new:
            while piece := old.read(1 << 20):
                new.write(piece)
        os.chmod(target, status.st_mode & 0o755)
