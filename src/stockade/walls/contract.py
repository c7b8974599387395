"""What a wall is: a module, or any object, with these names. `conformance` checks that it also does what they promise."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    from stockade.core.values import Confinement, Enforced
    from stockade.walls.box import Box
    from stockade.walls.door import Door
    from stockade.walls.launching import Launch

    class Plan(Launch, Protocol):
        """Everything that `open_box` will do, as plain data. `enforced` are the receipt's lines: each rule, and the mechanism that holds it."""

        @property
        def enforced(self) -> tuple[Enforced, ...]: ...

    class Wall(Protocol):
        """One kind of sandbox. A method raises CannotEnforce for what cannot be made true here, and WallFailed when the machine fails; then nothing runs."""

        @property
        def NAME(self) -> str:
            """How policies call it."""

        @property
        def ADDRESS(self) -> str:
            """Where the door's listeners answer inside."""

        @property
        def OWN_KERNEL(self) -> bool:
            """Whether what runs inside has a kernel of its own: the door is at the end of a wire then (walls/door.py), and limits are held in there first."""

        @property
        def USER(self) -> int:
            """The user's number inside; -1: the same as outside."""

        def look(self, home: str) -> Any:
            """What `plan` has to know about this machine; `home` is the private home's path inside."""

        def plan(self, wanted: Confinement, host: Any, *, stage: str = "") -> Any:
            """A pure function. `stage` is an existing directory in which overlays are put together."""

        def make_door(self, ports: tuple[int, ...]) -> Door:
            """A door with listeners on these TCP ports, and DNS."""

        def open_box(self, plan: Any, door: Door | None = None, cgroups: Sequence[int] = ()) -> Box:
            """Start the sandbox and return without waiting for it. `door` is given exactly when the plan's network is "door"."""
