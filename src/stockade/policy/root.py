"""What the layers say about the root directory of a guest: an image by its digest, a folder, or the host's /usr; and what may be written to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.core.values import Limits, Origin, Root

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stockade.core.errors import PolicyError
    from stockade.policy.caps import Caps
    from stockade.policy.read import Document

LEAST = 1 << 20  # bytes of room


def merge_root(
    documents: Sequence[Document],
    caps: Mapping[int, Caps],
    errors: list[PolicyError],
    origins: dict[str, Origin],
    limits: Limits,
    judged: Callable[[str, str, str, Document, tuple[str | int, ...]], str],
) -> Root:
    """The root that the layers agree on. A later layer's image or folder takes the place of an earlier one's. `judged` resolves and judges a host path."""
    image, path, writable, size = "", "", "", -1
    origin = Origin()
    for one in documents:
        table = one.tables.root
        if table is None:
            continue
        if table.image is not None and table.path is not None:
            hint = "Keep one of the two."
            errors.append(one.error("a root is an image or a folder, not both", "root", "path", code="policy.root", hint=hint))
            continue
        if table.image is not None:
            caps[id(one)].image(table.image, one)
            image, path, origin = table.image, "", one.origin("root", "image")
            origins["root.image"] = origin
        if table.path is not None:
            image, path, origin = "", judged(table.path, "root", "ro", one, ("root", "path")), one.origin("root", "path")
            origins["root.path"] = origin
        if table.writable is not None:
            writable, origins["root.writable"] = table.writable, one.origin("root", "writable")
            origin = origin if image or path else origins["root.writable"]
        if table.size is not None:
            if 0 < table.size < LEAST:
                message, hint = f"root.size = {table.size} is too little to be of use", 'Sizes take a unit, such as "2 GiB".'
                errors.append(one.error(message, "root", "size", code="policy.bad-value", hint=hint))
            caps[id(one)].room(table.size, one)
            size, origins["root.size"] = table.size, one.origin("root", "size")
    writable = writable or ("memory" if image or path else "none")
    room = 0 if writable == "none" else limits.scratch if size < 0 else size
    return Root(image, path, writable, room, origin)  # type: ignore[arg-type]  # the model allows nothing else
