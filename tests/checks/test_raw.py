"""Raw TCP is decided by the laws of every other decision."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stockade.checks.raw import decide_raw
from stockade.core.values import ALLOW, DENY, Grant

HOSTS = st.sampled_from(["db.example.com", "*.example.com", "example.com", "other.test"])
GRANTS = st.lists(
    st.builds(
        Grant,
        HOSTS,
        st.sampled_from([5432, 6379]),
        st.sampled_from(["tcp", "https"]),
        st.just(("GET",)),
        effect=st.sampled_from(["allow", "deny", "ask"]),
        not_after=st.sampled_from([0, 1]),
    ),
    max_size=6,
).map(tuple)
NAMES = st.sampled_from(["db.example.com", "DB.example.com", "example.com", "a.b.example.com", "other.test", "1.2.3.4", "x..y", ""])
PORTS = st.sampled_from([5432, 6379, 443])


@given(NAMES, PORTS, GRANTS, st.randoms())
def test_laws(name: str, port: int, grants: tuple[Grant, ...], random: object) -> None:
    verdict, used = decide_raw(name, port, grants)
    shuffled = [*grants, *grants]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide_raw(name, port, tuple(shuffled)) == (verdict, used)  # neither order nor duplicates matter
    if verdict.effect == ALLOW:
        assert used is not None and used.scheme == "tcp" and used.port == port and used.effect == "allow"
        assert not decide_raw(name, port, ())[1]  # nothing without a grant
        denial = Grant(used.host, port, "tcp", effect="deny")
        assert decide_raw(name, port, (*grants, denial))[0].effect == DENY  # a denial beats every allow
    more = (*grants, Grant("unrelated.test", 5432, "tcp"))
    assert decide_raw(name, port, more)[0].effect == verdict.effect  # adding an allow never narrows
