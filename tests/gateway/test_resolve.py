"""Which addresses the gate may connect to, and that it connects to what it checked."""

from __future__ import annotations

import asyncio

import pytest

from stockade.gateway.resolve import AT_ONCE, Resolver, Unreachable, objection

NEVER = [
    "0.0.0.0", "0.1.2.3", "::", "169.254.169.254", "169.254.1.1", "fe80::1", "fe80::1%eth0", "fec0::1", "fd00:ec2::254", "100.100.100.200", "::ffff:127.0.0.1",
    "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::1", "198.18.0.1", "198.19.255.255", "224.0.0.1", "239.1.1.1",
    "ff02::1", "255.255.255.255", "x", "", "127.1", "168.63.129.16", "192.0.0.192",
]  # fmt: skip
PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "::1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "fd00::1",
    "fc00::1",
    "192.0.2.1",
    "240.0.0.1",
    "2001:db8::1",
]
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "172.32.0.1", "100.128.0.1"]


@pytest.mark.parametrize("address", NEVER)
def test_never(address: str) -> None:
    assert objection(address, private=False) and objection(address, private=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_only_with_leave(address: str) -> None:
    assert objection(address, private=False) and not objection(address, private=True)


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert not objection(address, private=False)


def resolve(answers: list[list[str]], private: bool = False, times: int = 1, host: str = "h.example.com") -> list[str]:
    asked: list[str] = []

    async def lookup(name: str, port: int) -> list[str]:
        asked.append(name)
        return answers[min(len(asked), len(answers)) - 1]

    async def run() -> list[str]:
        resolver = Resolver(lookup)
        return [await resolver.address(host, 443, private) for _ in range(times)]

    return asyncio.run(run())


def test_the_first_that_passes_is_used() -> None:
    assert resolve([["10.0.0.1", "64:ff9b::a00:1", "93.184.216.34", "8.8.8.8"]]) == ["93.184.216.34:443"]
    assert resolve([["2606:2800:220:1::1"]]) == ["[2606:2800:220:1::1]:443"]


def test_none_passes() -> None:
    with pytest.raises(Unreachable, match="loopback") as caught:
        resolve([["127.0.0.1"]])
    assert caught.value.rule == "address-not-public"
    with pytest.raises(Unreachable):
        resolve([[]])


def test_a_rebinding_answer_is_never_dialled() -> None:
    assert resolve([["93.184.216.34"], ["127.0.0.1"]], times=2) == ["93.184.216.34:443"] * 2


def test_localhost_names_are_loopback_and_nobody_is_asked() -> None:
    assert resolve([["93.184.216.34"]], private=True, host="api.localhost") == ["127.0.0.1:443"]
    with pytest.raises(Unreachable):
        resolve([["93.184.216.34"]], host="api.localhost")


def test_failing_lookups_are_refusals() -> None:
    async def failing(name: str, port: int) -> list[str]:
        raise TimeoutError

    with pytest.raises(Unreachable, match="could not be resolved"):
        asyncio.run(Resolver(failing).address("h.example.com", 443, False))


def test_lookups_that_nobody_waits_for_any_more_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose servers do not answer keeps its thread; one session may keep so many, and no more."""
    monkeypatch.setattr("stockade.gateway.resolve._PATIENCE", 0.05)
    begun: list[str] = []

    async def main() -> None:
        slow = asyncio.Event()

        async def lookup(name: str, port: int) -> list[str]:
            begun.append(name)
            await slow.wait()
            return ["8.8.8.8"]

        resolver = Resolver(lookup)

        async def ask(name: str) -> str:
            return await resolver.address(name, 443, False)

        for _ in range(2):
            results = await asyncio.gather(*(ask(f"h{number}.example.com") for number in range(20)), return_exceptions=True)
            assert all(isinstance(result, Unreachable) and result.rule == "name-not-resolved" for result in results)
        assert len(begun) == AT_ONCE
        slow.set()
        assert await ask("last.example.com") == "8.8.8.8:443"

    asyncio.run(main())
