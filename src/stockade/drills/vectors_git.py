"""What the host runs later because of what was left in the workspace: B1 (git) and B5."""

from __future__ import annotations

from stockade.drills.scenario import PLAIN, Evidence, Scenario, marked

_REPOSITORY = "git init -q -b main . && git config user.name dev && git config user.email dev@files.test && git add README.md data.txt && git commit -qm first"
_EVIL = "touch /home/dev/pwned"
_LATER = "git status; git diff | cat; git add -A; git commit -qm later; git log -1 | cat; git checkout -q -b other; git checkout -q main; git fetch -q . main; true"
_TWIN = (
    "echo new >> data.txt && git add data.txt && git -c user.name=a -c user.email=a@files.test commit -qm work && git checkout -q -b feature && git status -s "
    "&& git log --oneline | grep work"
)
_FOR_LATER = (
    "echo 'touch ~/pwned' > .envrc; printf 'all:\\n\\ttouch ~/pwned\\n' > Makefile; echo '{}' > package.json; mkdir -p .vscode .claude .husky "
    ".github/workflows; echo '{}' > .vscode/tasks.json; echo '{}' > .claude/settings.json; echo x > .husky/pre-commit; echo x > conftest.py; "
    "echo x > .github/workflows/ci.yml"
)


def _git(name: str, about: str, *attack: str, after: str = _LATER, setup: str = _REPOSITORY, twin: str = _TWIN) -> Scenario:
    return Scenario(
        name, ("B1",), "git rule", about, attack, marked(), setup=setup, after=after, twin=twin, policy=PLAIN, runs=len(attack), timeout=30
    )


def _script(path: str, text: str = _EVIL) -> str:
    return f"mkdir -p $(dirname {path}); printf '#!/bin/sh\\n{text}\\n' > {path}; chmod +x {path}; "


ALL = (
    _git(
        "git-hooks", "Hooks that the host's next commit or checkout runs",
        "".join(_script(f".git/hooks/{name}") for name in ("pre-commit", "post-commit", "post-checkout", "post-index-change", "prepare-commit-msg")),
        _script("tools/post-checkout") + _script("tools/pre-commit") + "git config core.hooksPath tools",
        "rm -rf .git/hooks; mkdir h; ln -s ../h .git/hooks; " + _script("h/pre-commit"),
        "mv .git/hooks .git/hooks.old; mkdir .git/hooks; " + _script(".git/hooks/pre-commit"),
    ),
    _git(
        "git-config", "Config keys that name commands: fsmonitor, pager, filters, diff drivers, aliases, includes",
        f"git config core.fsmonitor '{_EVIL}; true'",
        f"printf '[core]\\n\\tfsmonitor = \"{_EVIL}; true\"\\n' >> .git/config",
        f"printf '[core]\\n\\tfsmonitor = \"{_EVIL}; true\"\\n' > evil.cfg; git config include.path ../evil.cfg",
        f"git config filter.x.clean '{_EVIL}; cat'; mkdir -p .git/info; echo '* filter=x' > .git/info/attributes; echo more >> data.txt",
        f"git config diff.x.textconv '{_EVIL}; cat'; echo '* diff=x' > .gitattributes; echo more >> data.txt",
        f"git config extensions.worktreeConfig true; printf '[core]\\n\\tfsmonitor = \"{_EVIL}; true\"\\n' > .git/config.worktree",
        f"cp .git/config c; printf '[core]\\n\\tfsmonitor = \"{_EVIL}; true\"\\n' >> c; mv c .git/config",
    ),
    _git(
        "git-commondir", "A new .git/commondir sends the host's git to another directory for its config",
        f"cp -r .git evil; printf '[core]\\n\\tfsmonitor = \"{_EVIL}; true\"\\n' >> evil/config; echo ../evil > .git/commondir",
        f"cp -r .git evil; printf '[core]\\n\\tfsmonitor = \"{_EVIL}; true\"\\n' >> evil/config; mv .git old; ln -s evil .git",
        f"cp -r .git evil; printf '[core]\\n\\tfsmonitor = \"{_EVIL}; true\"\\n' >> evil/config; mv .git old; echo 'gitdir: evil' > .git",
        f"cp -r .git evil; printf '[core]\\n\\tfsmonitor = \"{_EVIL}; true\"\\n' >> evil/config; rm -rf .git; mv evil .git",
    ),
    _git(
        "git-alternates", "Alternates make the host's git read objects from a place that the attacker can still change",
        "mkdir -p evil; echo ../../evil > .git/objects/info/alternates; test -s .git/objects/info/alternates && mkdir -p .git/objects/info && "
        "echo /home/dev/work/project/evil > .git/objects/info/alternates",
        after="grep -q evil .git/objects/info/alternates && touch ~/pwned; true",
    ),
    _git(
        "git-nested", "Repositories inside the workspace, old and new, and submodules",
        f"git -C sub config core.fsmonitor '{_EVIL}; true'",
        "".join(_script(f"sub/.git/hooks/{name}") for name in ("pre-commit", "post-checkout", "post-index-change")),
        f"git init -q fresh; git -C fresh config core.fsmonitor '{_EVIL}; true'; cp data.txt fresh/",
        "git init -q --bare bare; cd bare; mkdir w; cp ../data.txt w/; git config core.bare false; git config core.worktree w; "
        f"git config core.fsmonitor '{_EVIL}; true'",
        setup=_REPOSITORY + "; git init -q sub && cp data.txt sub/ && git -C sub add data.txt && "
        "git -C sub -c user.name=a -c user.email=a@files.test commit -qm sub",
        after="for d in sub fresh bare; do (cd $d 2>/dev/null && git status && git add -A && git commit -qm later); done; git status; true",
    ),
    _git(
        "git-worktree", "A linked worktree's own pointers and config",
        f"cd .git/worktrees/* && printf '[core]\\n\\tfsmonitor = \"{_EVIL}; true\"\\n' > config.worktree; git -C ../../.. config extensions.worktreeConfig true; cd ../../..",
        f"cp -r .git evil; printf '[core]\\n\\tfsmonitor = \"{_EVIL}; true\"\\n' >> evil/config; echo /home/dev/work/project/evil > $(ls -d .git/worktrees/*)/commondir",
        setup=_REPOSITORY + "; git worktree add -q ../tree",
        after=_LATER + "; cd ../tree && git status; true",
    ),
    Scenario(
        "runs-later", ("B5",), "workspace report", "Files that the host runs later are changed: they must be protected, or reported after the run",
        (_FOR_LATER, f"{_FOR_LATER}; sleep 1"),  # quicker than the first look, and there when it comes
        lambda seen: bool(_unreported(seen)), policy=PLAIN, twin="echo text > notes.txt", runs=2,
        # A busy machine may be told later, in the ledger: when nothing is left of the session, everything is there.
        after="for i in $(seq 40); do ls ~/.local/state/stockade/sessions 2>/dev/null | grep -q . || break; sleep 0.5; done; "
        "cat ~/.local/state/stockade/ledger/*.jsonl 2>/dev/null; true",
    ),
)  # fmt: skip

_PENDING = "still being looked at"  # what the user is told then (cli/aftermath.py)
_LATER_FILES = (
    ".envrc", "Makefile", "package.json", ".vscode/tasks.json", ".claude/settings.json", ".husky/pre-commit", "conftest.py", ".github/workflows/ci.yml",
)  # fmt: skip


def _unreported(seen: Evidence) -> list[str]:
    """Files that are there now and that nobody mentioned. In the ledger only a report counts: the command itself names them, too."""
    later = [line for line in seen.after.splitlines() if '"workspace.report"' in line] if _PENDING in seen.stderr else []
    return [name for name in _LATER_FILES if (seen.workspace / name).exists() and name not in "\n".join([seen.stderr, *later])]
