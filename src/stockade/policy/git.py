"""Git over HTTPS as grants: the requests of its protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockade.core.values import Grant

if TYPE_CHECKING:
    from stockade.core.values import Origin
    from stockade.policy.model import EgressTable

_GIT_UPLOAD = {"git-upload-pack": 4 << 20, "git-receive-pack": 256 << 20}  # bytes of one request, where nobody says otherwise


def git_grants(table: EgressTable, origin: Origin, over_time: dict[str, Any]) -> tuple[Grant, ...]:
    """The requests of git's smart HTTP protocol (gitprotocol-http(5)): what it lists, and what it transfers."""
    places = [
        f"/{repository}{end}" for repository in table.repositories or () for end in (("",) if repository.endswith("*") else ("", ".git"))
    ]
    services = ["git-upload-pack"] + (["git-receive-pack"] if table.git == "push" else [])
    common = {
        "port": table.port or 443,
        "credential": table.credential or "",
        "private": bool(table.private),
        "origin": origin,
        "max_download": table.max_download or 0,
        **over_time,
    }
    found = []
    for service in services:
        lists = tuple(f"{place}/info/refs" for place in places)
        found.append(
            Grant(
                table.host or "", methods=("GET",), paths=lists, query="listed", parameters=(f"service={service}",), max_upload=0, **common
            )
        )
        found.append(
            Grant(
                table.host or "",
                methods=("POST",),
                paths=tuple(f"{place}/{service}" for place in places),
                query="none",
                content_types=(f"application/x-{service}-request",),
                max_upload=_GIT_UPLOAD[service] if table.max_upload is None else table.max_upload,
                refs=(table.refs or ()) if service == "git-receive-pack" else (),
                **common,
            )
        )
    return tuple(found)
