"""The keys of a rule that bound a request's query, its body, and what passes over time."""

from __future__ import annotations

import pytest

from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.core.frozen import plain
from stockade.core.values import BodyRule, Grant, Policy
from stockade.policy.compile import MOST_PORTS
from stockade.policy.problems import each

RULE = '[[egress]]\nhost = "api.example.com"\npaths = ["/x"]\n'


def grant(places: Places, text: str) -> Grant:
    return places.write(user=RULE + text).compile().policy.grants[0]


def test_every_key_arrives_and_survives_the_cache(places: Places) -> None:
    found = grant(
        places,
        """parameters = ["page", "sort=asc"]
content_types = ["Application/JSON"]
body = [{ pointer = "/m", values = ["a", 1, true] }, { pointer = "/n", most = 5 }, { pointer = "/t", absent = true }, { pointer = "" }]
upload_budget = "1 MiB"
uses = 3
rate = "5 per 10 s"
not_before = 2026-01-01T00:00:00Z
not_after = "2027-01-01T01:00:00+01:00"
secret = true
after_secret = true
max_download = "3 MiB"
""",
    )
    assert (found.query, found.parameters, found.content_types) == ("listed", ("page", "sort=asc"), ("application/json",))
    assert found.body == (BodyRule("/m", ('"a"', "1", "true")), BodyRule("/n", most=5), BodyRule("/t", absent=True), BodyRule(""))
    assert (found.upload_budget, found.uses, found.rate, found.rate_seconds) == (1 << 20, 3, 5, 10)
    assert (found.not_before, found.not_after, found.secret, found.after_secret) == (1767225600, 1798761600, True, True)
    assert found.max_download == 3 << 20
    policy = places.compile().policy
    assert Policy.from_plain(plain(policy)) == policy == places.load() == places.load()


def test_bounds_over_time_go_with_a_preset(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    text = '[[egress]]\npreset = "anthropic"\nupload_budget = "9 MiB"\nrate = "60 per min"\nafter_secret = true\n'
    (found,) = places.write(user=text).compile().policy.grants
    assert (found.upload_budget, found.rate, found.rate_seconds, found.after_secret) == (9 << 20, 60, 60, True)


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ('rate = "fast"', "rate", "is not a rate"),
        ('rate = "0 per min"', "rate", "a rate is of 1 to"),
        ("rate = 5", "rate", "is not a rate"),
        ("not_after = 2027-01-01T00:00:00", "not_after", "with an offset"),
        ("not_after = 2027-01-01", "not_after", "with an offset"),
        ('not_before = "soon"', "not_before", "with an offset"),
        ("not_before = 2027-01-01T00:00:00Z\nnot_after = 2026-01-01T00:00:00Z", "not_after", "ends before it begins"),
        ('content_types = ["json"]', "content_types[0]", "not the type of a body"),
        ('body = [{ pointer = "model" }]', "body[0].pointer", "not a JSON Pointer"),
        ('body = [{ pointer = "/a~2" }]', "body[0].pointer", "not a JSON Pointer"),
        ('body = [{ pointer = "/a", values = [] }]', "body[0]", "more than one thing"),
        ('body = [{ pointer = "/a", absent = true, most = 3 }]', "body[0]", "more than one thing"),
        ('body = [{ pointer = "/a", values = [[1]] }]', "body[0].values[0]", "cannot stand among the values"),
        ('parameters = ["a"]\nquery = "any"', "parameters", "contradict"),
        ('websocket = true\nmax_upload = "1 MiB"', "max_upload", "means nothing for a WebSocket"),
        ('websocket = true\nmethods = ["POST"]', "methods", "means nothing for a WebSocket"),
        ('websocket = true\nmax_download = "1 MiB"', "max_download", "means nothing for a WebSocket"),
        ('effect = "deny"\nmax_download = 3', "max_download", "means nothing in a denial"),
        ('effect = "deny"\nuses = 3', "uses", "means nothing in a denial"),
        ('effect = "deny"\nbody = [{ pointer = "" }]', "body", "means nothing in a denial"),
    ],
)
def test_what_cannot_be_meant(places: Places, text: str, key: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        grant(places, text)
    assert [(error.key, says in error.message) for error in each(caught.value)] == [(f"egress[0].{key}", True)]


GIT = '[[egress]]\nhost = "git.example.com"\n'


def test_git_is_the_requests_of_its_protocol(places: Places) -> None:
    text = 'git = "push"\nrepositories = ["o/r", "g/*"]\nrefs = ["refs/heads/agent/**"]\nuses = 9\ncredential = "forge"\n'
    credential = '[credential.forge]\nsource = "env:TOKEN"\nuser = "me"\n'
    policy = places.write(user=GIT + text + credential).compile().policy
    rows = [(one.methods, one.paths, one.query, one.parameters, one.content_types, one.refs) for one in policy.grants]
    lists = ("/o/r/info/refs", "/o/r.git/info/refs", "/g/*/info/refs")
    assert rows == [
        (("GET",), lists, "listed", ("service=git-upload-pack",), (), ()),
        (
            ("POST",),
            tuple(one.replace("info/refs", "git-upload-pack") for one in lists),
            "none",
            (),
            ("application/x-git-upload-pack-request",),
            (),
        ),
        (("GET",), lists, "listed", ("service=git-receive-pack",), (), ()),
        (
            ("POST",),
            tuple(one.replace("info/refs", "git-receive-pack") for one in lists),
            "none",
            (),
            ("application/x-git-receive-pack-request",),
            ("refs/heads/agent/**",),
        ),
    ]
    assert all(one.uses == 9 and one.credential == "forge" for one in policy.grants)
    assert (policy.credentials[0].header, policy.credentials[0].template, policy.credentials[0].user) == ("authorization", "Basic {}", "me")
    assert Policy.from_plain(plain(policy)) == policy
    fetch = places.write(user=GIT + 'git = "fetch"\nrepositories = ["o/r"]\n').compile().policy.grants
    assert len(fetch) == 2 and not any("receive" in str(one) for one in fetch)


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ('git = "push"\nrepositories = ["o/r"]', "git", "belong together"),
        ('git = "fetch"\nrepositories = ["o/r"]\nrefs = ["refs/heads/x"]', "git", "belong together"),
        ('git = "fetch"', "", "names no repositories"),
        ('git = "fetch"\nrepositories = ["o/r"]\npaths = ["/x"]', "paths", "cannot stand with git"),
        ('git = "fetch"\nrepositories = ["r"]', "repositories[0]", "is not a repository"),
        ('git = "fetch"\nrepositories = ["o/**"]', "repositories[0]", "is not a repository"),
        ('git = "fetch"\nrepositories = ["o/r.git"]', "repositories[0]", "is not a repository"),
        ('git = "fetch"\nrepositories = ["o/../x"]', "repositories[0]", "dot segment"),
        ('git = "push"\nrepositories = ["o/r"]\nrefs = ["main"]', "refs[0]", "is not the name of a ref"),
        ('paths = ["/x"]\nrefs = ["refs/heads/x"]', "", "need git"),
    ],
)
def test_git_rules_that_cannot_be_meant(places: Places, text: str, key: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        places.write(user=GIT + text + "\n").compile()
    assert [(error.key, says in error.message) for error in each(caught.value)] == [(f"egress[0].{key}".rstrip("."), True)]


@pytest.mark.parametrize("more", ['header = "x-key"', 'template = "{}"'])
def test_a_user_of_http_basic_goes_alone(places: Places, more: str) -> None:
    with pytest.raises(PolicyError, match=r"user cannot stand with (header|template)"):
        grant(places, f'credential = "c"\n[credential.c]\nsource = "env:X"\nuser = "me"\n{more}\n')


def test_canaries_of_all_layers_add_up_and_survive_the_cache(places: Places) -> None:
    places.write(user='[canary.aws]\nvalue = "planted-0123456789"\n', project='[canary.ssh]\nvalue = "planted-9876543210"\n')
    wanted = (("aws", "planted-0123456789"), ("ssh", "planted-9876543210"))
    assert places.compile().policy.canaries == places.load().canaries == places.load().canaries == wanted


def test_a_canary_that_would_turn_up_by_chance(places: Places) -> None:
    with pytest.raises(PolicyError, match="too short"):
        places.write(user='[canary.aws]\nvalue = "AKIA"\n').compile()


def test_no_listed_parameter_means_no_query(places: Places) -> None:
    assert grant(places, "parameters = []").query == "none"


def test_raw_tcp_is_a_name_a_port_and_bounds(places: Places) -> None:
    text = '[[egress]]\nhost = "db.example.com"\nscheme = "tcp"\nport = 5432\n'
    (found,) = places.write(user=text + 'max_upload = "5 MiB"\nuses = 2\nprivate = true\n').compile().policy.grants
    assert (found.scheme, found.port, found.max_upload, found.uses, found.private) == ("tcp", 5432, 5 << 20, 2, True)
    for more, says in (
        ('paths = ["/x"]\n', "paths cannot stand"),
        ('credential = "k"\n', "credential cannot stand"),
        ("websocket = true\n", "websocket cannot stand"),
    ):
        with pytest.raises(PolicyError, match=says):
            places.write(user=text + more).compile()
    for port in ("port = 443\n", "port = 3128\n", ""):
        with pytest.raises(PolicyError, match="raw TCP needs a port of its own"):
            places.write(user='[[egress]]\nhost = "db.example.com"\nscheme = "tcp"\n' + port).compile()
    with pytest.raises(PolicyError, match="raw TCP is wider than"):
        places.write(managed='[caps]\negress_methods = ["GET"]\n', user=text).compile()


def test_raw_tcp_has_room_for_so_many_ports(places: Places) -> None:
    def ports(count: int) -> str:
        return "".join(
            f'[[egress]]\nhost = "{name}.example.com"\nscheme = "tcp"\nport = {5000 + n}\n' for n in range(count) for name in "ab"
        )

    assert len(places.write(user=ports(MOST_PORTS)).compile().policy.grants) == 2 * MOST_PORTS
    with pytest.raises(PolicyError, match=f"{MOST_PORTS + 1} different ports"):
        places.write(user=ports(MOST_PORTS + 1)).compile()


GRPC = '[[egress]]\nhost = "api.example.com"\n'


def test_grpc_is_posts_to_its_methods(places: Places) -> None:
    text = GRPC + 'grpc = ["a.b.Svc/Get", "Other/*"]\nheaders = ["x-trace-bin"]\nmax_upload = "2 MiB"\nmax_download = 5\nuses = 3\n'
    policy = places.write(user=text).compile().policy
    (found,) = policy.grants
    assert (found.methods, found.paths, found.query, found.grpc) == (("POST",), ("/a.b.Svc/Get", "/Other/*"), "none", True)
    assert (found.headers, found.max_upload, found.max_download, found.uses) == (("x-trace-bin",), 2 << 20, 5, 3)
    assert Policy.from_plain(plain(policy)) == policy == places.load() == places.load()


def test_a_method_of_grpc_can_be_denied(places: Places) -> None:
    (found,) = places.write(user=GRPC + 'grpc = ["a.Svc/Delete"]\neffect = "deny"\n').compile().policy.grants
    assert (found.effect, found.methods, found.paths, found.grpc) == ("deny", ("*",), ("/a.Svc/Delete",), False)


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("grpc = []", "grpc", "names no method"),
        ('grpc = ["Svc"]', "grpc[0]", "not a gRPC method"),
        ('grpc = ["/a.Svc/Get"]', "grpc[0]", "not a gRPC method"),
        ('grpc = ["a.*/Get"]', "grpc[0]", "not a gRPC method"),
        ('grpc = ["a.Svc/Get/x"]', "grpc[0]", "not a gRPC method"),
        ('grpc = ["*"]', "grpc[0]", "not a gRPC method"),
        ('grpc = ["a..Svc/Get"]', "grpc[0]", "not a gRPC method"),
        ('grpc = ["a.Svc/Get"]\npaths = ["/x"]', "paths", "cannot stand with grpc"),
        ('grpc = ["a.Svc/Get"]\nmethods = ["GET"]', "methods", "cannot stand with grpc"),
        ('grpc = ["a.Svc/Get"]\nbody = [{ pointer = "" }]', "body", "cannot stand with grpc"),
        ('grpc = ["a.Svc/Get"]\nwebsocket = true', "websocket", "cannot stand with grpc"),
        ('grpc = ["a.Svc/Get"]\nupload_budget = "1 MiB"', "upload_budget", "cannot stand with grpc"),
        ('grpc = ["a.Svc/Get"]\nmax_upload = 0', "max_upload", "grants no call"),
        ('grpc = ["a.Svc/Get"]\nheaders = ["authorization"]', "headers[0]", "would let any key pass"),
        ('git = "fetch"\nrepositories = ["a/b"]\ngrpc = ["a.Svc/Get"]', "grpc", "cannot stand with git"),
    ],
)
def test_what_grpc_cannot_mean(places: Places, text: str, key: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        places.write(user=GRPC + text).compile()
    assert [(error.key, says in error.message) for error in each(caught.value)] == [(f"egress[0].{key}", True)]


def test_canaries_cannot_be_looked_for_in_grpc(places: Places) -> None:
    """A rule that cannot be kept stops the start, whichever file it stands in."""
    with pytest.raises(PolicyError, match="whose bodies cannot be read") as caught:
        places.write(user=GRPC + 'grpc = ["a.Svc/Get"]\n', managed='[canary.one]\nvalue = "planted-string-1"\n').compile()
    assert caught.value.key == "egress[0]"
