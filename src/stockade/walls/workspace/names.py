"""Files that somebody's host executes later: which, why, how bad, and which of them are protected at the top of the workspace.

Protected are those that tools read without asking and that people hardly ever edit during a task; the rest is reported with a diff.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Risk = Literal["high", "medium", "low"]

# At the top of the workspace, when they exist: read-only inside. (path, what runs it)
PROTECTED: tuple[tuple[str, str], ...] = (
    (".envrc", "direnv runs it on entering the folder"),
    (".claude/settings.json", "holds hooks and permissions of Claude Code"),
    (".claude/settings.local.json", "holds hooks and permissions of Claude Code"),
    (".mcp.json", "names programs that agents start"),
    (".cursor/mcp.json", "names programs that agents start"),
    (".cursor/hooks.json", "names programs that agents start"),
    (".codex/config.toml", "names programs that agents start"),
    (".gemini/settings.json", "names programs that agents start"),
    (".vscode/tasks.json", "tasks can run when the folder is opened"),
    (".vscode/settings.json", "names interpreters and tools that the editor starts"),
    (".vscode/launch.json", "names programs that the editor starts"),
    (".vscode/mcp.json", "names programs that agents start"),
    (".idea", "holds run configurations and startup tasks"),
    (".husky", "git hooks of the host"),
    (".devcontainer", "commands run on the host when the container starts"),
    (".devcontainer.json", "commands run on the host when the container starts"),
    (".bashrc", "the shell runs it"),
    (".bash_profile", "the shell runs it"),
    (".profile", "the shell runs it"),
    (".zshrc", "the shell runs it"),
    (".zshenv", "the shell runs it"),
    (".gitconfig", "git of the host obeys it"),
    (".npmrc", "says where packages come from and holds tokens"),
    (".yarnrc.yml", "names a program that yarn runs"),
)

_SHELL = ".bashrc .bash_profile .bash_login .bash_logout .profile .zshrc .zshenv .zprofile .zlogin .kshrc .inputrc".split()
_EXACT: dict[str, tuple[Risk, str]] = {
    "stockade.toml": ("high", "sets rules of the sandbox where you trust the folder"),
    **dict.fromkeys(_SHELL, ("high", "the shell runs it")),
    ".envrc": ("high", "direnv runs it on entering the folder"),
    ".mcp.json": ("high", "names programs that agents start"),
    "mcp.json": ("high", "names programs that agents start"),
    ".gitconfig": ("high", "git of the host obeys it"),
    ".lldbinit": ("high", "the debugger runs it"),
    ".gdbinit": ("high", "the debugger runs it"),
    ".vimrc": ("high", "the editor runs it"),
    ".exrc": ("high", "the editor runs it"),
    ".nvim.lua": ("high", "the editor runs it"),
    ".dir-locals.el": ("medium", "the editor evaluates it"),
    ".tool-versions": ("medium", "chooses the programs that run"),
    ".mise.toml": ("high", "runs commands on entering the folder"),
    "mise.toml": ("high", "runs commands on entering the folder"),
    ".devcontainer.json": ("high", "commands run on the host when the container starts"),
    "sitecustomize.py": ("high", "every Python start imports it"),
    "usercustomize.py": ("high", "every Python start imports it"),
    "conftest.py": ("high", "pytest imports it"),
    ".pre-commit-config.yaml": ("medium", "names programs that run on commit"),
    ".gitattributes": ("medium", "chooses among filters that the host's git knows"),
    ".gitmodules": ("medium", "names repositories that git fetches"),
    ".npmrc": ("high", "says where packages come from"),
    ".yarnrc": ("high", "says where packages come from"),
    ".yarnrc.yml": ("high", "names a program that yarn runs"),
    ".pnpmfile.cjs": ("high", "pnpm runs it"),
    "pip.conf": ("high", "says where packages come from"),
    "pip.ini": ("high", "says where packages come from"),
    "uv.toml": ("medium", "says where packages come from"),
    "package.json": ("medium", "its scripts run on install and by name"),
    "pyproject.toml": ("medium", "its build and tool settings run programs"),
    "setup.py": ("medium", "runs on install"),
    "setup.cfg": ("medium", "its build and tool settings run programs"),
    "tox.ini": ("medium", "names commands"),
    "noxfile.py": ("medium", "runs by name"),
    "tasks.py": ("medium", "runs by name"),
    "build.rs": ("medium", "runs on every build"),
    "build.gradle": ("medium", "runs on every build"),
    "build.gradle.kts": ("medium", "runs on every build"),
    "gradlew": ("medium", "runs on every build"),
    "pom.xml": ("medium", "names programs of the build"),
    "CMakeLists.txt": ("medium", "runs on every build"),
    "configure": ("medium", "runs on every build"),
    "Rakefile": ("medium", "runs by name"),
    "Gemfile": ("medium", "is a program that the bundler runs"),
    "Vagrantfile": ("medium", "is a program"),
    "Jenkinsfile": ("medium", "runs in CI"),
    ".gitlab-ci.yml": ("medium", "runs in CI"),
    ".travis.yml": ("medium", "runs in CI"),
    "azure-pipelines.yml": ("medium", "runs in CI"),
    "Dockerfile": ("medium", "runs on build"),
    "Containerfile": ("medium", "runs on build"),
    "Procfile": ("medium", "names commands"),
    "Taskfile.yml": ("medium", "names commands"),
    **dict.fromkeys((".pdbrc", ".Rprofile", ".ghci", ".irbrc", ".pryrc", ".octaverc"), ("high", "the interpreter runs it when it is started here")),
    **dict.fromkeys((".nvimrc", "_vimrc", ".ycm_extra_conf.py"), ("high", "the editor runs it")),
    **dict.fromkeys((".mise.local.toml", "mise.local.toml"), ("high", "runs commands on entering the folder")),
    **dict.fromkeys(("opencode.json", "opencode.jsonc", ".aider.conf.yml"), ("high", "names programs that agents start")),
    **dict.fromkeys(("lefthook.yml", ".lefthook.yml", "lefthook-local.yml"), ("medium", "names programs that run on commit")),
    **dict.fromkeys((".pylintrc", "pylintrc", ".luacheckrc", ".rspec", ".rubocop.yml", "mypy.ini", ".flake8"), ("medium", "names code that the tool loads")),
    **dict.fromkeys(("bunfig.toml", "composer.json", "deno.json", "deno.jsonc"), ("medium", "its scripts run on install and by name")),
    **dict.fromkeys(
        (
            "Cargo.toml", "meson.build", "SConstruct", "SConscript", "build.xml", "build.sbt", "settings.gradle", "settings.gradle.kts", "gradle.properties", "WORKSPACE", "WORKSPACE.bazel",
            "MODULE.bazel", "BUILD", "BUILD.bazel", ".bazelrc", "mvnw", "flake.nix", "shell.nix", "default.nix",
        ),
        ("medium", "runs on every build"),
    ),
    **dict.fromkeys(("bitbucket-pipelines.yml", ".drone.yml", ".woodpecker.yml", "appveyor.yml", ".appveyor.yml"), ("medium", "runs in CI")),
}  # fmt: skip
_CASELESS: dict[str, tuple[Risk, str]] = {
    "makefile": ("medium", "make runs it"),
    "gnumakefile": ("medium", "make runs it"),
    "justfile": ("medium", "just runs it"),
    ".justfile": ("medium", "just runs it"),
}
_FOLDERS: dict[str, tuple[Risk, str]] = {
    ".husky": ("high", "git hooks of the host"),
    ".githooks": ("high", "git hooks of the host"),
    ".idea": ("high", "holds run configurations and startup tasks"),
    ".vscode": ("high", "tasks can run when the folder is opened"),
    ".claude": ("high", "holds hooks, commands and permissions of an agent"),
    ".cursor": ("high", "holds hooks, commands and permissions of an agent"),
    ".codex": ("high", "holds hooks, commands and permissions of an agent"),
    ".gemini": ("high", "holds hooks, commands and permissions of an agent"),
    ".devcontainer": ("high", "commands run on the host when the container starts"),
    ".cargo": ("high", "names programs that cargo runs"),
    ".mvn": ("high", "holds options and extensions of every build"),
    ".yarn": ("medium", "holds programs that yarn runs"),
    ".hg": ("high", "Mercurial runs what its hgrc names"),
    ".jj": ("high", "Jujutsu runs what its config names"),
    ".mise": ("high", "runs commands on entering the folder"),
    **dict.fromkeys((".zed", ".helix"), ("high", "names programs that the editor starts")),
    **dict.fromkeys((".opencode", ".windsurf", ".kiro", ".roo"), ("high", "holds hooks, commands and permissions of an agent")),
    **dict.fromkeys((".buildkite", ".woodpecker"), ("medium", "runs in CI")),
    ".circleci": ("medium", "runs in CI"),
}
_ENDINGS: tuple[tuple[str, Risk, str], ...] = (
    (".code-workspace", "high", "names tasks and tools that the editor starts"),
    (".pth", "high", "every Python start evaluates it"),
    (".mk", "medium", "make includes it"),
    *((f".config.{kind}", "medium", "a tool of the project runs it") for kind in ("js", "cjs", "mjs", "ts", "cts", "mts")),
    (".gemspec", "medium", "runs on install"),
    (".sublime-project", "high", "names tasks and tools that the editor starts"),
    (".desktop", "medium", "a click runs it"),
    (".service", "medium", "systemd runs it"),
)


def judge(rel: str, mode: int = 0) -> tuple[Risk, str] | None:
    """(risk, reason) when the file at the relative path `rel` is one that tools run or obey later, or by its `mode` (inode(7); 0 = not asked) a program, else None."""
    *folders, name = rel.split("/")
    found = _EXACT.get(name) or _CASELESS.get(name.lower())
    if found:
        return found
    if mode & 0o170000 == 0o120000:  # a link may stand for a folder, whatever that one is called itself
        folders.append(name)
        if name in (".github", ".forgejo", ".gitea"):
            return "medium", "runs in CI"
    for folder in reversed(folders):
        if folder in _FOLDERS:
            return _FOLDERS[folder]
    if len(folders) >= 2 and folders[-2:] in (
        ([".github", "workflows"]),
        ([".github", "actions"]),
        ([".forgejo", "workflows"]),
        ([".gitea", "workflows"]),
    ):
        return "medium", "runs in CI"
    low = name.lower()
    if low.startswith(("dockerfile.", "containerfile.")) or (
        low.startswith(("docker-compose", "compose.")) and low.endswith((".yml", ".yaml"))
    ):
        return "medium", "runs on build or start"
    for ending, risk, why in _ENDINGS:
        if low.endswith(ending):
            return risk, why
    return EXECUTABLE if mode & 0o170000 == 0o100000 and mode & 0o111 else None


def in_git(rel: str) -> bool:
    """Whether it lies in a folder named `.git`."""
    return "/.git/" in f"/{rel}"


EXECUTABLE: tuple[Risk, str] = ("low", "is executable")

# What a project brings: everything at its top that tools obey on entering or opening the folder, or on the next git command there, without being asked for it
# by name. (path, what obeys it) A folder stands for everything in it. Left out is what runs by name (Makefile, package.json) and what is only text for a
# model (CLAUDE.md, AGENTS.md): people and agents change both in every task, and a model reads the rest of the project just as well.
BROUGHT: tuple[tuple[str, str], ...] = (
    ("stockade.toml", _EXACT["stockade.toml"][1]),
    *PROTECTED,
    (".claude/hooks", "hooks of Claude Code"),
    *(
        (name, _EXACT[name][1])
        for name in ".mise.toml mise.toml .tool-versions .vimrc .exrc .nvim.lua .dir-locals.el .lldbinit .gdbinit .gitattributes .gitmodules "
        ".pre-commit-config.yaml".split()
    ),
    (".githooks", "git hooks of the host"),
    (".git", "says where git looks for this repository"),
    (".git/commondir", "sends git to a config of somebody's choice"),
    (".git/config", "git of the host obeys it"),
    (".git/config.worktree", "git of the host obeys it"),
    (".git/info/attributes", "chooses among filters that the host's git knows"),
    (".git/objects/info/alternates", "objects come from there"),
    (".git/hooks", "git hooks of the host"),
)
RESTLESS = (".idea/workspace.xml",)  # the editor writes it all the time, and asks by itself whether a project is trusted


def why(rel: str) -> str:
    """What obeys the file at `rel`, which a project brings."""
    return next(
        (reason for path, reason in BROUGHT if rel == path or rel.startswith(f"{path}/") and path != ".git"),
        "is on the way to a file that tools obey",
    )
