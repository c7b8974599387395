"""Which indexes the package clients of this machine use, read from their own configuration. No registry's name stands here.

Where a client is not configured, its default is read from the client's own program files, as data: nothing of them is run. Configuration inside a project
(.npmrc, uv.toml, pyproject.toml, a virtual environment's pip.conf) is never read: a repository must not choose where its user's requests go.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import sys
import sysconfig
import tomllib
import zipfile
from typing import TYPE_CHECKING

from stockade.core import places
from stockade.core.frozen import frozen
from stockade.policy.paths import within

if TYPE_CHECKING:
    from stockade.policy.files import Watch


@frozen
class Index:
    """An index that a client uses. `url` may hold a password. `files_host` is where the client itself says that files lie, "" = unknown.

    `source` says where this was found, `default`: nobody configured it.
    """

    url: str
    source: str
    files_host: str = ""
    default: bool = False
    extra: bool = False


def _xdg() -> str:
    path = os.environ.get("XDG_CONFIG_HOME", "")
    return path if path.startswith("/") else f"{places.home()}/.config"


def pip(watch: Watch) -> list[Index]:
    """Indexes of pip and uv, the main one first. pip: User Guide, "Configuration"; uv: "Configuration files", "Package indexes"."""
    main: dict[str, str] = {}
    extra: dict[str, str] = {}
    own = watch.env("PIP_CONFIG_FILE")
    shared = [f"{base}/pip/pip.conf" for base in (watch.env("XDG_CONFIG_DIRS") or "/etc/xdg").split(":") if base.startswith("/")]
    files = [] if own == os.devnull else [*shared, "/etc/pip.conf", f"{places.home()}/.pip/pip.conf", f"{_xdg()}/pip/pip.conf", own]
    found, without = "", False
    for path in files:
        if path.startswith("/"):
            options = _pip_options(watch.text(path))
            found = options.get("index-url", found)
            main = {found: path} if "index-url" in options else main
            extra |= dict.fromkeys(options.get("extra-index-url", "").split(), path)
            without = options.get("no-index", str(without)).lower() in ("1", "true", "yes", "on")
    if url := watch.env("PIP_INDEX_URL"):
        main = {url: "PIP_INDEX_URL"}
    without = without or watch.env("PIP_NO_INDEX").lower() in ("1", "true", "yes", "on")
    for name in ("PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL"):
        extra |= dict.fromkeys(watch.env(name).split(), name)
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if url := watch.env(name):
            main[url.rpartition("=")[2] if "=" in url.partition("://")[0] else url] = name
    extra |= {url.rpartition("=")[2] if "=" in url.partition("://")[0] else url: "UV_INDEX" for url in watch.env("UV_INDEX").split()}
    for path in ("/etc/uv/uv.toml", f"{_xdg()}/uv/uv.toml", watch.env("UV_CONFIG_FILE")):
        if path.startswith("/"):
            for url, chosen in _uv_indexes(watch.text(path)):
                (main if chosen else extra).setdefault(url, path)
    defaults = [] if main or without else _pip_default(watch)
    return (
        [Index(url, source) for url, source in main.items()] + defaults + [Index(url, source, extra=True) for url, source in extra.items()]
    )


def _pip_options(text: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(text)
    except configparser.Error:
        return {}
    options: dict[str, str] = {}
    for section in ("global", "download", "install"):
        if parser.has_section(section):
            options |= {name.replace("_", "-"): value for name, value in parser.items(section)}
    return options


def _uv_indexes(text: str) -> list[tuple[str, bool]]:
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError):
        return []
    found: list[tuple[object, bool]] = []
    for table in (values, values.get("pip")):
        if isinstance(table, dict):
            found.append((table.get("index-url"), True))
            listed = table.get("extra-index-url")
            found += [(url, False) for url in listed] if isinstance(listed, list) else []
            indexes = table.get("index")
            if isinstance(indexes, list):
                found += [(item.get("url"), item.get("default") is True) for item in indexes if isinstance(item, dict)]
    return [(url, chosen) for url, chosen in found if isinstance(url, str) and url]


def _pip_default(watch: Watch) -> list[Index]:
    """pip's built-in index: the constant `PyPI` of pip/_internal/models/index.py, with the host of its files."""
    inner = "pip/_internal/models/index.py"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    libraries = dict.fromkeys(
        [sysconfig.get_paths()["purelib"], f"{sys.base_prefix}/lib/{version}/site-packages", "/usr/lib/python3/dist-packages"]
    )
    for library in libraries:
        path = f"{library}/{inner}"
        if (source := watch.program(path)) and (index := _pip_constant(source, path)):
            return [index]
    for folder in (f"{sysconfig.get_paths()['stdlib']}/ensurepip/_bundled", "/usr/share/python-wheels"):
        for name in watch.names(folder):
            if name.startswith("pip-") and name.endswith(".whl"):
                watch.note("stat", f"{folder}/{name}")
                try:
                    with zipfile.ZipFile(f"{folder}/{name}") as wheel:
                        source = wheel.read(inner).decode("utf-8", "replace")
                except (OSError, KeyError, zipfile.BadZipFile):
                    continue
                if index := _pip_constant(source, f"{folder}/{name}"):
                    return [index]
    return []


def _pip_constant(source: str, path: str) -> Index | None:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and [ast.unparse(name) for name in node.targets] == ["PyPI"]:
            given = [*node.value.args, *(word.value for word in node.value.keywords)]
            texts = [item.value for item in given if isinstance(item, ast.Constant) and isinstance(item.value, str)]
            if len(texts) == 2:
                return Index(f"{texts[0]}simple/", path, files_host=texts[1], default=True)
    return None


def npm(watch: Watch, cwd: str) -> list[Index]:
    """Registries of npm, also those of scopes. docs.npmjs.com: "npmrc", "config". `cwd`: programs below it are not the user's own."""
    found: dict[str, Index] = {}
    package = _npm_package(watch, cwd)
    prefix = os.path.dirname(os.path.dirname(os.path.dirname(package))) if package else "/usr"
    user = _env_npm(watch, "userconfig") or f"{places.home()}/.npmrc"
    shared = _env_npm(watch, "globalconfig") or f"{prefix}/etc/npmrc"
    for path in (f"{package}/npmrc" if package else "", shared, user):
        if path.startswith("/"):
            for line in watch.text(path).splitlines():
                name, equals, value = line.partition("=")
                name, value = name.strip(), value.strip().strip("\"'")
                if equals and "${" not in value and (name == "registry" or re.fullmatch(r"@[^:]+:registry", name)):
                    found[name] = Index(value, path, extra=name != "registry")
    if url := _env_npm(watch, "registry"):
        found["registry"] = Index(url, "npm_config_registry")
    if "registry" not in found and package and (index := _npm_default(watch, package)):
        found["registry"] = index
    return list(found.values())


def _env_npm(watch: Watch, name: str) -> str:
    return watch.env(f"npm_config_{name}") or watch.env(f"NPM_CONFIG_{name.upper()}")


def _npm_package(watch: Watch, cwd: str) -> str:
    """The folder of the npm that the user's PATH finds, "" if there is none."""
    here = os.path.realpath(cwd)
    for folder in watch.env("PATH").split(":"):
        program = os.path.realpath(f"{folder}/npm")
        if folder.startswith("/") and not within(program, here) and watch.note("real", f"{folder}/npm"):
            return os.path.dirname(os.path.dirname(program))
    return ""


def _npm_default(watch: Watch, package: str) -> Index | None:
    inner = "@npmcli/config/lib/definitions/definitions.js"
    for path in (f"{package}/node_modules/{inner}", f"{os.path.dirname(package)}/{inner}"):
        if match := re.search(r"""['"]registry['"],\s*\{\s*default:\s*['"]([^'"]+)['"]""", watch.program(path)):
            return Index(match[1], path, default=True)
    return None


def apt(watch: Watch, folder: str = "/etc/apt") -> list[tuple[str, str]]:
    """(URL, file) of apt's sources, in both formats. sources.list(5)."""
    found: dict[str, str] = {}
    paths = [f"{folder}/sources.list", *(f"{folder}/sources.list.d/{name}" for name in watch.names(f"{folder}/sources.list.d"))]
    for path in paths:
        if path.endswith(".sources"):
            urls = _deb822(watch.text(path))
        elif path.endswith(".list"):
            urls = _one_line(watch.text(path))
        else:
            continue
        for url in urls:
            found.setdefault(url, path)
    return list(found.items())


def _one_line(text: str) -> list[str]:
    urls = []
    for line in text.splitlines():
        words = re.sub(r"\[[^\]]*\]", " ", line.partition("#")[0]).split()
        if len(words) >= 3 and words[0] in ("deb", "deb-src"):
            urls.append(words[1])
    return urls


def _deb822(text: str) -> list[str]:
    urls: list[str] = []
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        last = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t"):
                fields[last] = fields.get(last, "") + " " + line.strip()
            elif ":" in line:
                last, _, value = line.partition(":")
                last = last.strip().lower()
                fields[last] = value.strip()
        if fields.get("enabled", "yes").lower() not in ("no", "false", "0", "off", "disable") and "types" in fields:
            urls += fields.get("uris", "").split()
    return urls
