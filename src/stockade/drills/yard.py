"""The yard: a throwaway machine in namespaces, with an internet of its own, where attacks run both loose and confined.

Two layers. Outside: fresh user, network, mount and PID namespaces, in which `hand` plays every host of the internet; no interface leads out, so no
test traffic can leave the machine. Inside: for every command a bubblewrap layout that looks like a developer's machine, with a home full of planted
secrets. `stockade run` works in there like anywhere, since nested user namespaces are allowed. Needs no privileges.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stockade.core.errors import WallFailed
from stockade.drills import machines, pki
from stockade.drills.internet import EVIL6, HOSTS, PATH_SOCKET

HOME = "/home/dev"
WORKSPACE = f"{HOME}/work/project"
CA = "/etc/ssl/certs/ca-certificates.crt"
USER_ID = 1000
_ETC = (
    "alternatives bash.bashrc ca-certificates.conf debian_version environment gitconfig host.conf inputrc java ld.so.cache ld.so.conf ld.so.conf.d "
    "localtime login.defs mime.types os-release pki profile protocols python3 python3.11 python3.12 python3.13 services shells terminfo "
    "ssl/openssl.cnf crypto-policies"
).split()


def _no_program(_: str, names: list[str]) -> list[str]:
    """Of /etc/alternatives: manual pages and the like, most of it. Every fresh home has a copy of what is left."""
    return [name for name in names if not any(os.path.lexists(f"/usr/{where}/{name}") for where in ("bin", "sbin"))]


@dataclass(frozen=True)
class Record:
    """Something the outside saw. `kind`: model, tcp, tls, udp, dns, icmp, raw, frame, abstract, unix. `headers` as sent; `name` of a DNS query."""

    kind: str
    dest: str
    port: int
    data: bytes
    method: str = ""
    path: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    name: str = ""
    note: str = ""

    def everything(self) -> bytes:
        """All that the sender chose, in one piece."""
        fields = "\n".join(f"{key}: {value}" for key, value in self.headers)
        return f"{self.method} {self.path}\n{fields}\n".encode() + self.data


@dataclass(frozen=True)
class Result:
    """How a command in the yard ended. `code` is negative for a signal, as subprocess has it."""

    code: int
    stdout: str
    stderr: str
    timed_out: bool
    output_bytes: int


@dataclass(frozen=True)
class Case:
    """One fresh home. `home` and `workspace` are its host paths; `secrets` the planted strings by name."""

    home: Path
    tmp: Path
    secrets: Mapping[str, str]

    @property
    def workspace(self) -> Path:
        return self.home / "work/project"


@dataclass
class Yard:
    """Open with `with Yard() as yard:`. `keep` are host directories that must be visible inside, read-only (tools, agents). `machines`: its machine has the
    image for virtual machines that this one has, and all its homes the same snapshots of them.

    Raises WallFailed (`drill.yard`) when this machine cannot make one.
    """

    keep: Sequence[str] = ()
    machines: bool = False
    _scratch: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="stockade-yard-")))
    _cases: int = 0
    _hand: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        for tool in ("unshare", "bwrap"):
            if not shutil.which(tool):
                raise WallFailed(
                    f"the yard needs {tool}, which is not installed", code="drill.yard", hint="apt-get install bubblewrap util-linux"
                )
        self._furnish()
        (self._scratch / "run").mkdir(mode=0o755)
        self._start()
        return self

    def _start(self) -> None:
        """Bring up the namespaces and the internet in them."""
        run = self._scratch / "run"
        for old in run.iterdir():
            old.unlink()
        namespaces = "--user --map-root-user --net --pid --fork --kill-child --mount-proc --ipc --uts".split()
        hand = [sys.executable, "-P", "-m", "stockade.drills.hand", str(self._scratch / "leaf.pem"), str(run / Path(PATH_SOCKET).name)]
        self._hand = subprocess.Popen(["unshare", *namespaces, "--", *hand], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self._answer()
        except WallFailed:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _stop(self) -> None:
        if self._hand:
            assert self._hand.stdin and self._hand.stdout
            self._hand.stdin.close()
            try:
                self._hand.wait(5)
            except subprocess.TimeoutExpired:
                self._hand.kill()
                self._hand.wait()
            self._hand.stdout.close()
            self._hand = None

    def _answer(self) -> dict[str, Any]:
        assert self._hand and self._hand.stdout
        line = self._hand.stdout.readline()
        if not line:
            raise WallFailed(
                "the yard could not be made: user and network namespaces are needed",
                code="drill.yard",
                hint="Allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone), or see `stockade doctor`.",
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._hand and self._hand.stdin, "the yard is not open"
        self._hand.stdin.write(json.dumps(request) + "\n")
        self._hand.stdin.flush()
        return self._answer()

    def _furnish(self) -> None:
        """Make the parts that every case shares: certificates and /etc."""
        if self.machines:
            machines.copy(self._scratch)
        names = [name for host in HOSTS for name in (host, f"*.{host}")]
        root, leaf = pki.make(names, [*HOSTS.values(), EVIL6])
        (self._scratch / "leaf.pem").write_bytes(leaf)
        etc = self._scratch / "etc"
        for name in _ETC:
            source = Path("/etc") / name
            if not source.exists():
                continue
            (etc / name).parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                skip = _no_program if name == "alternatives" else None
                shutil.copytree(source, etc / name, symlinks=True, ignore_dangling_symlinks=True, ignore=skip)
            else:
                shutil.copy(source, etc / name, follow_symlinks=True)
        bundle = etc / "ssl/certs/ca-certificates.crt"
        bundle.parent.mkdir(parents=True, exist_ok=True)
        bundle.write_bytes(root)
        (etc / "ssl/cert.pem").symlink_to("certs/ca-certificates.crt")
        (etc / "hosts").write_text(
            "127.0.0.1 localhost\n::1 localhost\n" + "".join(f"{address} {name}\n" for name, address in HOSTS.items())
        )
        (etc / "resolv.conf").write_text("nameserver 9.9.9.9\noptions timeout:1 attempts:1\n")
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
        (etc / "passwd").write_text(
            f"root:x:0:0::{HOME}:/bin/bash\ndev:x:{USER_ID}:{USER_ID}::{HOME}:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n"
        )
        (etc / "group").write_text(f"root:x:0:\ndev:x:{USER_ID}:\nnogroup:x:65534:\n")
        (etc / "hostname").write_text("yard\n")

    def case(self) -> Case:
        """A fresh home, workspace and /tmp, with secrets of its own planted in the usual places."""
        self._cases += 1
        base = self._scratch / f"case-{self._cases}"
        home, tmp = base / "home", base / "tmp"
        tmp.mkdir(parents=True)
        tmp.chmod(0o1777)
        token = os.urandom(9).hex()
        secrets = {name: f"{name}-canary-{token}" for name in ("aws", "ssh", "netrc", "env", "browser", "other", "keyring", "sentinel")}
        planted = {
            ".aws/credentials": f"[default]\naws_access_key_id = AKIADRILL\naws_secret_access_key = {secrets['aws']}\n",
            ".ssh/id_ed25519": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{secrets['ssh']}\n-----END OPENSSH PRIVATE KEY-----\n",
            ".netrc": f"machine evil.test login dev password {secrets['netrc']}\n",
            ".config/google-chrome/Default/Cookies": secrets["browser"],
            ".mozilla/firefox/drill.default/logins.json": secrets["browser"],
            ".bashrc": "# a clean shell\n",
            "work/other/secret.txt": secrets["other"],
            "sentinel": secrets["sentinel"],
            "work/project/README.md": "# A project\n",
            "work/project/data.txt": "some data\n",
        }
        for name, text in planted.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(text)
        for name in (".aws/credentials", ".ssh/id_ed25519", ".netrc"):
            (home / name).chmod(0o600)
        (home / ".ssh").chmod(0o700)
        (tmp / "sentinel").write_text(secrets["sentinel"])
        if self.machines:
            machines.move_in(self._scratch, home)
        return Case(home, tmp, secrets)

    def clear(self) -> None:
        """Remove the homes of all cases so far."""
        for base in self._scratch.glob("case-*"):
            shutil.rmtree(base, ignore_errors=True)

    def environment(self, case: Case) -> dict[str, str]:
        """What a developer's shell has, a secret among it."""
        return {
            "PATH": os.pathsep.join(
                dict.fromkeys(["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin", *os.environ.get("PATH", "").split(os.pathsep)])
            ),
            "HOME": HOME,
            "USER": "dev",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "SSL_CERT_FILE": CA,
            "NODE_EXTRA_CA_CERTS": CA,
            "REQUESTS_CA_BUNDLE": CA,
            "AWS_SECRET_ACCESS_KEY": case.secrets["env"],
            "SECRET_KEYRING": case.secrets["keyring"],
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def layout(self, case: Case, *, root: bool = False) -> list[str]:
        """The bubblewrap command line of a developer's machine around one case; with `root`, the caller is root there."""
        # /proc comes from unshare and not from bubblewrap, which covers parts of it for root: sandboxes within could then not mount theirs.
        argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"]
        argv += ["bwrap", "--die-with-parent", "--unshare-ipc", "--unshare-uts"]
        if not root:
            argv += ["--unshare-user", "--uid", str(USER_ID), "--gid", str(USER_ID)]
        for name in sorted(os.listdir("/")):
            path = f"/{name}"
            if os.path.islink(path):
                argv += ["--symlink", os.readlink(path), path]
            elif name in ("usr", "opt", "nix", "gnu", "sys") or name.startswith(("bin", "sbin", "lib")) and os.path.isdir(path):
                argv += ["--ro-bind", path, path]
        if root:  # it may spoil its own /etc, not the next one's
            own = case.home.parent / "etc"
            if not own.exists():
                shutil.copytree(self._scratch / "etc", own, symlinks=True)
            argv += ["--bind", str(own), "/etc"]
        else:
            argv += ["--ro-bind", str(self._scratch / "etc"), "/etc"]
        argv += ["--bind", "/proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--tmpfs", "/var", "--dir", "/var/tmp", "--tmpfs", "/srv"]
        argv += [
            "--bind",
            str(case.tmp),
            "/tmp",
            "--bind",
            str(case.home),
            HOME,
            "--bind",
            str(self._scratch / "run"),
            str(Path(PATH_SOCKET).parent),
        ]
        if self.machines:
            argv += machines.shown(self._scratch, HOME)
        here = Path(__file__).resolve().parents[2]
        for path in dict.fromkeys([sys.base_prefix, sys.prefix, str(here), *self.keep]):
            if not path.startswith(("/usr/", "/opt/")) and path != "/usr":
                argv += ["--ro-bind", path, path]
        return [*argv, "--chdir", WORKSPACE, "--"]

    def run(
        self, case: Case, argv: Sequence[str], *, root: bool = False, timeout: float = 30, env: Mapping[str, str] | None = None
    ) -> Result:
        """Run a command on the yard's machine, unconfined by anything but the yard."""
        environment = {**self.environment(case), **(env or {})}
        answer = self._ask(op="run", argv=[*self.layout(case, root=root), *argv], env=environment, timeout=timeout)
        stdout, stderr = (base64.b64decode(answer[name]) for name in ("stdout", "stderr"))
        size = len(stdout) + len(stderr) + answer["lost"]
        return Result(answer["code"], stdout.decode(errors="replace"), stderr.decode(errors="replace"), answer["timed_out"], size)

    def take(self) -> list[Record]:
        """What the outside saw since the last call."""
        found = []
        for item in self._ask(op="take")["records"]:
            headers = tuple((str(key), str(value)) for key, value in item.get("headers", ()))
            rest = {key: item[key] for key in ("method", "path", "name", "note") if key in item}
            found.append(Record(item["kind"], item["dest"], item["port"], base64.b64decode(item["data"]), headers=headers, **rest))
        return found

    def renew(self) -> None:
        """Start over with fresh namespaces, after an attack that had root on the yard's machine. Homes stay."""
        self._stop()
        self._start()
