"""Forms in which a secret goes into requests: the keys of `[credential.NAME]`, what they mean together, and what cannot be meant."""

from __future__ import annotations

import pytest

from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.core.values import Credential, Policy
from stockade.policy.problems import each

HEAD = '[[egress]]\nhost = "api.example.com"\npaths = ["/x"]\ncredential = "c"\n\n[credential.c]\n'
SIGV4 = 'sigv4 = { services = ["s3", "dynamodb"], regions = ["eu-central-1"] }\n'


def compiled(places: Places, text: str) -> Policy:
    return places.write(user=HEAD + text).compile().policy


def one(places: Places, text: str) -> Credential:
    (credential,) = compiled(places, text).credentials
    return credential


def test_a_query_parameter(places: Places) -> None:
    credential = one(places, 'source = "env:MAPS_KEY"\nquery = "key"\n')
    assert (credential.query, credential.header, credential.template, credential.variables) == ("key", "", "", ("MAPS_KEY",))


def test_a_key_of_aws(places: Places) -> None:
    credential = one(places, 'source = "file:~/.aws/credentials"\n' + SIGV4.replace(" }", ', profile = "work" }'))
    assert (credential.services, credential.regions, credential.profile) == (("s3", "dynamodb"), ("eu-central-1",), "work")
    assert credential.header == "authorization" and credential.variables == ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert one(places, 'source = "env:AWS_ACCESS_KEY_ID"\nenv = "AGENT"\n' + SIGV4).variables == (
        "AGENT_ACCESS_KEY_ID",
        "AGENT_SECRET_ACCESS_KEY",
    )
    assert one(places, 'source = "env:AWS_ACCESS_KEY_ID"\nenv = ""\n' + SIGV4).variables == ()


def test_they_survive_the_cache(places: Places) -> None:
    places.write(user=HEAD + 'source = "env:AWS_ACCESS_KEY_ID"\n' + SIGV4)
    assert places.compile().policy.credentials == places.load().credentials == places.load().credentials
    assert places.load().credentials[0].services == ("s3", "dynamodb")


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ('source = "env:X"\nquery = "key"\nheader = "x-key"\n', "query", "cannot stand with header"),
        ('source = "env:X"\nquery = "key"\nuser = "me"\n', "user", "cannot stand with query"),
        ('source = "env:X"\nquery = "a key"\n', "query", "is not the name of a query parameter"),
        ('source = "env:X"\nquery = "k%65y"\n', "query", "is not the name of a query parameter"),
        ('source = "env:X"\nquery = "-"\n', "query", "is not the name of a query parameter"),
        ('source = "env:AWS_ACCESS_KEY_ID"\ntemplate = "{}"\n' + SIGV4, "sigv4", "cannot stand with template"),
        ('source = "env:AWS_ACCESS_KEY_ID"\nquery = "key"\n' + SIGV4, "query", "cannot stand with sigv4"),
        ('source = "env:AWS_SECRET"\n' + SIGV4, "source", "is not the variable of an access key's id"),
        ('source = "command:x"\nsigv4 = { services = ["s3"], regions = [] }\n', "sigv4.regions", "signs for no regions"),
        ('source = "command:x"\nsigv4 = { services = [], regions = ["x"] }\n', "sigv4.services", "signs for no services"),
        ('source = "command:x"\nsigv4 = { services = ["s3"] }\n', "sigv4.regions", "is missing"),
        ('source = "command:x"\nsigv4 = { services = ["*"], regions = ["x"] }\n', "sigv4.services[0]", "is not a service or region"),
        ('source = "command:x"\nsigv4 = { services = ["s3"], regions = ["EU"] }\n', "sigv4.regions[0]", "is not a service or region"),
        ('source = "command:x"\nsigv4 = { services = ["s3"], regions = ["x"], profile = "a" }\n', "sigv4.profile", "needs a file: source"),
        ('source = "command:x"\nsigv4 = { service = ["s3"], services = ["s3"], regions = ["x"] }\n', "sigv4.service", "unknown key"),
    ],
)
def test_what_cannot_be_meant(places: Places, text: str, key: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        compiled(places, text)
    assert [(error.key, says in error.message) for error in each(caught.value)] == [(f"credential.c.{key}", True)]
    assert each(caught.value)[0].hint


def test_two_keys_of_aws_want_the_same_variables(places: Places) -> None:
    more = '\n[[egress]]\nhost = "b.example.com"\npaths = ["/x"]\ncredential = "d"\n\n[credential.d]\nsource = "command:x"\n'
    with pytest.raises(PolicyError, match="both want the variable AWS_ACCESS_KEY_ID"):
        compiled(places, 'source = "command:x"\n' + SIGV4 + more + SIGV4)
    assert len(compiled(places, 'source = "command:x"\n' + SIGV4 + more + 'env = "OTHER"\n' + SIGV4).credentials) == 2


def test_a_signature_goes_below_a_domain_without_a_warning(places: Places) -> None:
    """It is worth nothing to another name, so buckets may be granted as `*.s3...`; a key in a header or query is, and gets one."""
    wide = HEAD.replace("api.example.com", "*.s3.example.com")
    for text, warned in (('source = "command:x"\n' + SIGV4, False), ('source = "command:x"\nquery = "key"\n', True)):
        found = places.write(user=wide + text).compile()
        assert any(warning.code == "policy.wide-credential" for warning in found.warnings) is warned


@pytest.mark.parametrize("more", ['effect = "deny"', 'git = "fetch"\nrepositories = ["o/r"]', "websocket = true"])
def test_fields_that_are_no_credentials(places: Places, more: str) -> None:
    head = '[[egress]]\nhost = "api.example.com"\ncredential_fields = ["token"]\n'
    assert places.write(user=head + 'paths = ["/x"]\n').compile().policy.grants[0].credential_fields == ("token",)
    with pytest.raises(PolicyError, match="credential_fields"):
        places.write(user=head + ("" if "git" in more else 'paths = ["/x"]\n') + more + "\n").compile()
