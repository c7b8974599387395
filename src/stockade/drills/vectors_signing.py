"""Signing (B16): what somebody who may use an ssh-agent gets from it, beyond the commit they were to sign."""

from __future__ import annotations

from stockade.drills.scenario import PLAIN, Evidence, Scenario, said

# Speaks the agent's protocol (draft-ietf-sshm-ssh-agent) to $SSH_AUTH_SOCK. Arguments: the public key that may sign, another one, and what to try.
THIEF = r"""
import base64, os, socket, struct, sys

def string(data): return struct.pack(">I", len(data)) + data

def ask(message):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(os.environ["SSH_AUTH_SOCK"])
    sock.sendall(string(message))
    head = sock.recv(4, socket.MSG_WAITALL)
    return sock.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL) if len(head) == 4 else b""

def sign(key, data): return ask(b"\x0d" + string(key) + string(data) + bytes(4))[:1] == b"\x0e"
def sshsig(namespace): return b"SSHSIG" + b"".join(map(string, (namespace, b"", b"sha512", b"d" * 64)))
def done(message): return ask(message)[:1] == b"\x06"

own, other = (base64.b64decode(open(path).read().split()[1]) for path in sys.argv[1:3])
login = string(b"s" * 32) + b"\x32" + b"".join(map(string, (b"root", b"ssh-connection", b"publickey"))) + b"\x01" + string(b"ssh-ed25519") + string(own)
tries = {
    "commit": lambda: sign(own, sshsig(b"git")),
    "login": lambda: sign(own, login),
    "bytes": lambda: sign(own, b"whatever I like"),
    "namespace": lambda: sign(own, sshsig(b"file")),
    "other-key": lambda: sign(other, sshsig(b"git")),
    "list": lambda: other in ask(b"\x0b"),
    "lock": lambda: done(b"\x16" + string(b"pw")) and done(b"\x17" + string(b"pw")),
    "remove": lambda: done(b"\x12" + string(other)),
    "remove-all": lambda: done(b"\x13"),
}
got = [name for name in sys.argv[3:] if tries[name]()]
print(*got)
if got: print("gave-away")
"""
_SETUP = (
    "git init -q -b main . && git config user.name dev && git config user.email dev@files.test && git add README.md data.txt && git commit -qm first; "
    "for k in agent other; do ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/$k; cp ~/.ssh/$k.pub .; done; echo \"dev@files.test $(cat agent.pub)\" > ~/.ssh/allowed"
)


def _accepted(seen: Evidence) -> bool:
    return 'Good "git" signature for dev@files.test' in seen.after


ALL = (
    Scenario(
        "signing-agent", ("B16",), "sign-only agent", "An agent for signing commits is asked for a login, another key, other bytes; and to be emptied",
        tuple(f"python3 thief.py agent.pub other.pub {what}" for what in ("login bytes", "namespace other-key list", "lock remove remove-all")),
        said("gave-away"), runs=3, policy=f'{PLAIN}\n[signing]\nkey = "~/.ssh/agent.pub"\n', setup=_SETUP, files={"thief.py": THIEF},
        wrap="exec ssh-agent sh -c 'ssh-add -q ~/.ssh/agent ~/.ssh/other && \"$@\"' sh \"$@\"",
        twin="echo new >> data.txt && git commit -qam signed", twin_ok=_accepted, after="git -c gpg.ssh.allowedSignersFile=$HOME/.ssh/allowed verify-commit HEAD 2>&1",
    ),
)  # fmt: skip
