"""What a wall is: a module, or any object, with these names. `walls/conformance` checks that one also does what is promised here.

Whoever makes a wall writes it against this page and runs `stockade doctor --conformance package.module`. Nothing of it exists at run time.

Errors: CannotEnforce for what cannot be made true on this machine, WallFailed for a machine or a sandbox that fails; in both cases nothing runs, nothing
is left behind, and the error carries a closed code and says what to do next. Sizes are bytes, times seconds, descriptors those of this process.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Protocol

    from stockade.core.values import Confinement, Enforced
    from stockade.walls import bubblewrap, gvisor
    from stockade.walls.box import Child
    from stockade.walls.door import Door
    from stockade.walls.vm import wall as vm

    class Plan(Protocol):
        """Everything that `open_box` will do, as plain data; what else is in it is the wall's own business."""

        @property
        def enforced(self) -> tuple[Enforced, ...]:
            """The receipt: a line for "processes", "files", "network", "environment", "descriptors" and "mount TARGET" for each mount, with the mechanism
            that holds it. A limit that the wall holds in a way of its own has a line "limit NAME"; for the others the session says how it holds
            them (walls/limits.py). No line may claim what is not so."""

        @property
        def network(self) -> str:
            """ "none" or "door", as it was asked for."""

        @property
        def stages(self) -> tuple[str, ...]:
            """Directories below `stage`, one for each overlay, which must exist before `open_box`."""

    class Box(Protocol):
        """A live sandbox, as `walls/box.py` has it. Not thread-safe. Whatever was given to `spawn` stays the caller's to close."""

        pid: int
        """The host's number of the process below which every process of the sandbox is; 0 once it is closed."""
        ready: bool
        """Whether the sandbox stands; may be seen after any `step`."""
        dead: bool
        """Whether it is known to have ended."""
        paused: bool
        """Whether it stands still, since `pause`."""
        landlock: int
        """The ABI of Landlock that its first process has applied, 0 for none."""

        def fileno(self) -> int:
            """Readable for poll(2) when `step` has news."""

        def spawn(
            self,
            argv: Sequence[str],
            *,
            env: Mapping[str, str],
            cwd: str = "/",
            stdin: int = -1,
            stdout: int = -1,
            stderr: int = -1,
            fds: Sequence[int] = (),
            tty: bool = False,
        ) -> Child:
            """Ask for a command; does not wait for it, and any number may run at once.

            Strings are bytes by os.fsencode: any but NUL arrives exactly, and the environment is `env` and nothing else. `stdin`, `stdout` and `stderr`
            (-1 = /dev/null) are ends of pipes, whole and separate however much passes; `fds` become 3, 4, ...; nothing else is inherited. With `tty` the
            box makes a terminal, and `child.terminal` is its master once the command runs. The program is looked for along the sandbox's own path; the
            command leads a session and process group of its own.
            Raises WallFailed when the box is gone, ValueError for an empty argv, a NUL or a paused box; then nothing was started, and the box goes on.
            """

        def signal(self, child: Child, number: int) -> None:
            """Send a signal to the command's whole process group, grandchildren too; nothing happens if it ended."""

        def lend(self, fd: int) -> None:
            """For walls that lend (`LENDS`), no others: whoever inside connects next to the one of `Confinement.sockets` is at the other end of this connected stream socket.

            It stays the caller's to close. Each serves for one connection, in any order; who finds none waits. Does not wait, and raises nothing for a box that is gone.
            """

        def resize(self, child: Child, source: int, *, fewer: int = 0) -> None:
            """Give the command's terminal the window size of the terminal `source`; nothing happens if either is none, or the command has ended."""

        def pause(self) -> None:
            """Stop every process of the sandbox until `resume`; nothing happens if it is paused.

            What runs inside cannot keep itself from it, and has no part in it. `close`, the death of the process that holds the box, and SIGKILL for a
            command (at `resume`, at the latest) end what is paused, too; SIGCONT by `signal` ends no pause. Time goes on meanwhile.
            Raises WallFailed when it cannot be done; all goes on then.
            """

        def resume(self) -> None:
            """Let go on what `pause` has stopped; what stood still before stays as it was. Nothing happens if the box is not paused."""

        def step(self, flags: int = 0) -> Child | None:
            """Take one piece of news; the command that it is about, if any. With MSG_DONTWAIT (0x40) BlockingIOError when there is none.

            News of a command are: that it runs (`pid`), that it could not be executed (`error`, an errno; negative when it was the working directory) or
            that it ended (`status`, as of waitpid(2)); `exit_code` counts as the shells do. Raises WallFailed when the box has ended or broke.
            """

        def wait(self, child: Child) -> int:
            """Take news until `child` ended; its exit code. Processes that it leaves behind are not waited for."""

        def close(self) -> int:
            """End everything inside, whatever it ignores; every process is gone when this returns, within a second or two. May be called twice.

            The same happens by itself when the process that holds the box is killed. A timeout is `signal` with SIGKILL for one command, `close` for all.
            """

    class Wall(Protocol):
        """One kind of sandbox. What `look` and `plan` give is its own: nobody but it looks into them further than above."""

        @property
        def NAME(self) -> str:
            """How policies call it."""

        @property
        def ADDRESS(self) -> str:
            """The IPv4 address at which the door's listeners answer inside."""

        @property
        def OWN_KERNEL(self) -> bool:
            """Whether what runs inside has a kernel of its own: the door is at the end of a wire then (walls/door.py), and limits are held in there first."""

        @property
        def REPORTS(self) -> bool:
            """Whether that kernel says what happens in it, beyond the guest's reach (walls/sink.py)."""

        @property
        def LENDS(self) -> bool:
            """Whether no socket of the host's can be mounted to answer, and its boxes lend connections to one that they make instead (`Box.lend`)."""

        @property
        def WIRE(self) -> str:
            """What leads from a sandbox to the door (walls/door.py): "" = it sits in the door's namespace, "veth" or "tap"."""

        @property
        def OVERHEAD(self) -> int:
            """Bytes of memory that the wall itself may take for a sandbox, on top of what the policy allows."""

        @property
        def USER(self) -> int:
            """The user's number inside; -1: the same as outside."""

        def look(self, home: str) -> Any:
            """What `plan` has to know about this machine; `home` is the path of the private home inside. Raises CannotEnforce when something is missing."""

        def plan(self, wanted: Confinement, host: Any, *, stage: str = "") -> Plan:
            """A pure function, without I/O: what `open_box` will do. `stage` is an existing directory in which overlays are put together.

            Raises CannotEnforce for whatever of `wanted` cannot be held: an unknown network, a mode of a mount, a target that belongs to the wall.
            """

        def make_door(self, ports: tuple[int, ...]) -> Door:
            """A door with listeners on these TCP ports, and DNS: whatever connects to `ADDRESS` at one of them arrives there, and at no other listener.

            Raises WallFailed; CannotEnforce for a wall that has no door, ever.
            """

        def waits(self, plan: Any) -> str:
            """What `open_box` will do first that takes seconds, as a sentence for whoever waits, or ""."""

        def open_box(self, plan: Any, door: Door | None = None, cgroups: Sequence[int] = ()) -> Box:
            """Start the sandbox and return without waiting for it; the first `step` tells whether it stands.

            `door` is given exactly when the plan's network is "door". `cgroups` are descriptors of member lists (cgroup.procs, tasks) which every process of
            the sandbox joins. Each mount's source is opened as it was judged: one that is not there, or is reached through a symbolic link, is
            refused. Raises CannotEnforce, WallFailed.
            """

    WALLS: tuple[Wall, ...] = (bubblewrap, gvisor, vm)  # that each wall of ours is one is checked here, by mypy
