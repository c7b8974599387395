"""AWS's own clients inside, a server outside that knows only the real key: what the gate signs anew holds there, and nothing else gets there at all."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.aws import Aws, objection, signature
from gateway.harness import CREDENTIAL, Gate, running
from stockade.core.errors import CannotEnforce, StockadeError
from stockade.core.values import PLACEHOLDER, Credential, Grant
from stockade.gateway import broker, sigv4
from stockade.gateway.flow import Leaving

STAND_IN = f"{PLACEHOLDER}aws-0011223344556677"
ID, SECRET, TOKEN = "AKIAREALREALREAL0001", "real/Secret+key/of/AWS/0123456789abcdef", "real-session-token//=="
REGION = "eu-central-1"
HOSTS = ("localhost", "s3.localhost", "dynamodb.localhost", "bedrock.localhost")
AWS = {"id": ID, "token": TOKEN, "expires": 0, "services": ["s3", "dynamodb", "bedrock"], "regions": [REGION]}
ITEM = {"header": "authorization", "template": "Bearer {}", "user": "", "secret": SECRET, "placeholder": STAND_IN, "aws": AWS}


# ---- the verifier itself, by AWS's examples -----------------------------------------------------------------------------------------

EXAMPLE = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
NOTHING = hashlib.sha256(b"").hexdigest()
BUCKET = {"host": "examplebucket.s3.amazonaws.com", "x-amz-content-sha256": NOTHING, "x-amz-date": "20130524T000000Z"}


@pytest.mark.parametrize(
    ("target", "headers", "signed", "expected"),
    [
        ("/test.txt", {"range": "bytes=0-9"}, "host;range;x-amz-content-sha256;x-amz-date", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
        ("/?lifecycle", {}, "host;x-amz-content-sha256;x-amz-date", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("/?max-keys=2&prefix=J", {}, "host;x-amz-content-sha256;x-amz-date", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)  # fmt: skip
def test_the_examples_of_s3(target: str, headers: dict[str, str], signed: str, expected: str) -> None:
    """Amazon S3 API Reference, "Examples: Signature Calculations"."""
    scope = "20130524/us-east-1/s3/aws4_request"
    assert signature("GET", target, {**BUCKET, **headers}, signed.split(";"), NOTHING, EXAMPLE[1], scope, "20130524T000000Z") == expected


def test_the_example_of_iam() -> None:
    """IAM User Guide, "Create a signed AWS API request"."""
    headers = {
        "content-type": "application/x-www-form-urlencoded; charset=utf-8",
        "host": "iam.amazonaws.com",
        "x-amz-date": "20150830T123600Z",
    }
    found = signature(
        "GET",
        "/?Action=ListUsers&Version=2010-05-08",
        headers,
        list(headers),
        NOTHING,
        EXAMPLE[0],
        "20150830/us-east-1/iam/aws4_request",
        "20150830T123600Z",
    )
    assert found == "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"


# ---- signing, without a gate --------------------------------------------------------------------------------------------------------


def signed(leaving: Leaving, item: dict[str, Any] = ITEM) -> tuple[tuple[str, str], ...]:
    """The headers as they leave: what the gate writes replaces what was there."""
    written = dict(sigv4.signer(item)(leaving))
    return (*((name, value) for name, value in leaving.headers if name not in written), *written.items())


def authorization(service: str, region: str = REGION, key: str = STAND_IN) -> str:
    return f"AWS4-HMAC-SHA256 Credential={key}/20270102/{region}/{service}/aws4_request, SignedHeaders=host, Signature={'0' * 64}"


PATHS = st.lists(st.sampled_from(["a", "b.c", "%20", "%2B", "~", "%C3%A9", "(x)", "a:b", "=", "%3A"]), min_size=1, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)
QUERIES = st.lists(
    st.sampled_from(["a=1", "b", "prefix=a/b", "prefix=a%2Fb", "x=%C3%A9", "b=2", "B=1", "c=a:b", "list-type=2"]), max_size=4
).map("&".join)
OTHERS = st.dictionaries(
    st.sampled_from(["content-type", "content-md5", "x-amz-meta-a", "x-amz-date", "user-agent", "range"]),
    st.sampled_from(["a", "b  c", "x/y; z"]),
)


@settings(deadline=None)
@given(st.sampled_from(["s3", "dynamodb", "bedrock"]), PATHS, QUERIES, OTHERS, st.binary(max_size=20), st.booleans())
def test_what_is_signed_is_what_leaves(service: str, path: str, query: str, others: dict[str, str], body: bytes, hashed: bool) -> None:
    if hashed:
        others = {**others, "x-amz-content-sha256": hashlib.sha256(body).hexdigest()}
    headers = (("host", "x.localhost:1234"), ("authorization", authorization(service)), *others.items())
    target = f"{path}?{query}" if query else path
    leaving = Leaving("POST", "https", target, headers, body)
    assert objection("POST", target, signed(leaving), body, ID, SECRET, TOKEN) == ""
    assert objection("POST", target, signed(leaving), body + b"x", ID, SECRET, TOKEN)
    assert objection("PUT", target, signed(leaving), body, ID, SECRET, TOKEN)
    assert objection("POST", target + "x", signed(leaving), body, ID, SECRET, TOKEN)
    assert SECRET not in str(signed(leaving)) and STAND_IN not in str(signed(leaving))


def test_nothing_is_signed_beyond_the_policy() -> None:
    for service, region in (("iam", REGION), ("s3", "us-east-1")):
        with pytest.raises(ValueError, match="not granted"):
            signed(Leaving("GET", "https", "/", (("host", "x"), ("authorization", authorization(service, region))), b""))
    with pytest.raises(ValueError, match="not granted"):
        signed(Leaving("GET", "https", "/", (("host", "x"),), b""))  # it could be for any of three


def test_a_key_that_has_expired_signs_nothing() -> None:
    leaving = Leaving("GET", "https", "/", (("host", "x"), ("authorization", authorization("s3"))), b"")
    with pytest.raises(sigv4.Expired):
        signed(leaving, {**ITEM, "aws": {**AWS, "expires": int(time.time()) - 1}})
    assert signed(leaving, {**ITEM, "aws": {**AWS, "expires": int(time.time()) + 60}})


# ---- where a key comes from ---------------------------------------------------------------------------------------------------------


def keys(source: str, environment: dict[str, str] | None = None, profile: str = "") -> sigv4.Keys:
    return broker.resolve_keys(Credential("aws", source, services=("s3",), regions=(REGION,), profile=profile), environment or {})


PROCESS = {"Version": 1, "AccessKeyId": ID, "SecretAccessKey": SECRET, "SessionToken": TOKEN, "Expiration": "2099-01-02T03:04:05+00:00"}
FILE = f"[default]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = other\n\n[work]\naws_access_key_id={ID}\naws_secret_access_key={SECRET}\naws_session_token={TOKEN}\n"


def test_sources(tmp_path: Path) -> None:
    (tmp_path / "process.json").write_text(json.dumps(PROCESS))
    (tmp_path / "credentials").write_text(FILE)
    expected = sigv4.Keys(ID, SECRET, TOKEN, 4071006245)
    assert keys(f"command:cat {tmp_path}/process.json") == keys(f"file:{tmp_path}/process.json") == expected
    variables = {"AGENT_ACCESS_KEY_ID": ID, "AGENT_SECRET_ACCESS_KEY": SECRET}
    assert keys("env:AGENT_ACCESS_KEY_ID", variables) == sigv4.Keys(ID, SECRET)
    assert keys("env:AGENT_ACCESS_KEY_ID", {**variables, "AGENT_SESSION_TOKEN": TOKEN}) == sigv4.Keys(ID, SECRET, TOKEN)
    assert keys(f"file:{tmp_path}/credentials", profile="work") == sigv4.Keys(ID, SECRET, TOKEN)
    assert keys(f"file:{tmp_path}/credentials").id == "AKIAOTHER"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"Version":2}', json.dumps({**PROCESS, "Version": 2}), json.dumps({**PROCESS, "SecretAccessKey": ""}), json.dumps({**PROCESS, "SecretAccessKey": 1}),
     json.dumps({**PROCESS, "SecretAccessKey": "a\nb"}), json.dumps({**PROCESS, "AccessKeyId": None}), json.dumps({**PROCESS, "Expiration": "tomorrow"}),
     json.dumps({**PROCESS, "Expiration": "2099-01-02T03:04:05"}), "[other]\naws_access_key_id=a\n", "[default]\naws_access_key_id=a\n", f"{ID}:{SECRET}", FILE + " " * 20_000],
)  # fmt: skip
def test_what_is_no_key(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(StockadeError) as caught:
        keys(f"file:{tmp_path}/file")
    assert caught.value.code == "credential.unavailable" and caught.value.hint
    assert not any(one in caught.value.message for one in (SECRET, TOKEN, ID))
    with pytest.raises(StockadeError):
        keys("env:X_ACCESS_KEY_ID", {"X_ACCESS_KEY_ID": ID})


def test_without_the_signer_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    credential = Credential("aws", "env:AWS_ACCESS_KEY_ID", services=("s3",), regions=(REGION,))
    with pytest.raises(CannotEnforce) as caught:
        broker.mint("s-one", (credential,))  # before anything else of a session begins
    assert "stockade[aws]" in caught.value.hint


def test_the_signer_is_imported_only_where_it_is_needed() -> None:
    code = "import sys, stockade.gatehouse, stockade.gateway.brain; from stockade.gateway import broker; broker.writer(eval(sys.argv[1])); "
    code += "sys.exit('botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, repr(CREDENTIAL)], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", code, repr(ITEM)], check=False).returncode == 1


def test_for_a_gate_and_inside() -> None:
    credential = Credential("aws", "env:AWS_ACCESS_KEY_ID", env="AWS", services=("s3",), regions=(REGION,))
    found = broker.for_gate((credential,), {"aws": STAND_IN}, {"AWS_ACCESS_KEY_ID": ID, "AWS_SECRET_ACCESS_KEY": SECRET})["aws"]
    assert found["secret"] == SECRET and found["aws"] == {"id": ID, "token": "", "expires": 0, "services": ("s3",), "regions": (REGION,)}
    assert broker.variables(credential, STAND_IN) == {
        "AWS_ACCESS_KEY_ID": STAND_IN, "AWS_SECRET_ACCESS_KEY": STAND_IN, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION,
    }  # fmt: skip
    assert broker.variables(Credential("aws", "env:X_ACCESS_KEY_ID", env="", services=("s3",), regions=(REGION,)), STAND_IN) == {}


# ---- real clients through a real gate -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    served = Aws(tmp_path_factory.mktemp("aws"), HOSTS, ID, SECRET, TOKEN)
    yield served
    served.close()


@pytest.fixture(scope="module")
def gate(engine_binary: str, aws: Aws, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    common: dict[str, Any] = {"port": aws.port, "private": True, "credential": "aws", "max_upload": 64 << 20}
    grants = (
        Grant(
            "s3.localhost",
            methods=("GET", "PUT", "POST", "HEAD", "DELETE"),
            paths=("/bucket", "/bucket/**"),
            headers=("x-amz-meta-a",),
            **common,
        ),
        Grant("dynamodb.localhost", methods=("POST",), paths=("/",), headers=("x-amz-target: DynamoDB_20120810.GetItem",), **common),
        Grant("bedrock.localhost", methods=("POST",), paths=("/model/*/invoke",), headers=("x-amzn-bedrock-accept",), **common),
    )
    with running(tmp_path_factory.mktemp("gate"), aws, grants, credentials={"aws": ITEM}) as started:  # type: ignore[arg-type]
        yield started


@pytest.fixture
def quiet(aws: Aws) -> Aws:
    aws.got.clear()
    return aws


def client(service: str, gate: Gate, aws: Aws, key: str = STAND_IN, region: str = REGION, token: str | None = None, **config: Any) -> Any:
    """A client as it runs inside: the placeholder for both halves of the key, the proxy, the gate's CA."""
    name = {"bedrock-runtime": "bedrock"}.get(service, service)
    settings = {
        "proxies": {"https": f"http://127.0.0.1:{gate.ports['http-proxy']}"} if gate else None,
        "retries": {"max_attempts": 1},
        "connect_timeout": 5,
        "read_timeout": 10,
        **({"s3": {"addressing_style": "path"}} if service == "s3" else {}),
        **config,
    }
    return boto3.client(
        service, endpoint_url=f"https://{name}.localhost:{aws.port}" if gate else f"https://localhost:{aws.port}", aws_access_key_id=key, aws_secret_access_key=key, aws_session_token=token,
        region_name=region, verify=str(gate.ca_file if gate else aws.ca), config=Config(**settings),
    )  # fmt: skip


@pytest.mark.wall
@pytest.mark.parametrize(
    "config", [{}, {"request_checksum_calculation": "when_required"}, {"s3": {"addressing_style": "path", "payload_signing_enabled": True}}]
)
def test_s3(gate: Gate, quiet: Aws, config: dict[str, Any]) -> None:
    s3 = client("s3", gate, quiet, **config)
    s3.put_object(Bucket="bucket", Key="a (1)/é+~.txt", Body=b"hello")
    s3.put_object(Bucket="bucket", Key="large", Body=io.BytesIO(b"x" * 300_000), ContentType="application/json", Metadata={"a": "b  c"})
    assert s3.get_object(Bucket="bucket", Key="a (1)/é+~.txt")["Body"].read() == b"stored"
    s3.head_object(Bucket="bucket", Key="large")
    assert [got.wrong for got in quiet.got] == [""] * 4, quiet.got
    assert {got.header("x-amz-security-token") for got in quiet.got} == {TOKEN}
    if "request_checksum_calculation" not in config and "s3" not in config:
        assert quiet.got[1].header("x-amz-content-sha256") == "STREAMING-UNSIGNED-PAYLOAD-TRAILER"  # as boto3 does it by itself


@pytest.mark.wall
def test_dynamodb_and_its_operation(gate: Gate, quiet: Aws) -> None:
    table = client("dynamodb", gate, quiet)
    table.get_item(TableName="jobs", Key={"token": {"S": "x"}})
    with pytest.raises(ClientError, match="403"):
        table.delete_table(TableName="jobs")
    assert [(got.header("x-amz-target"), got.wrong) for got in quiet.got] == [("DynamoDB_20120810.GetItem", "")]


@pytest.mark.wall
def test_bedrock(gate: Gate, quiet: Aws) -> None:
    model = client("bedrock-runtime", gate, quiet)
    model.invoke_model(modelId="vendor.model-v1:0", body=json.dumps({"messages": [{"role": "user", "content": "x" * 200_000}]}))
    assert [(got.target, got.wrong) for got in quiet.got] == [("/model/vendor.model-v1%3A0/invoke", "")]


@pytest.mark.wall
def test_the_placeholder_is_worth_nothing_without_the_gate(quiet: Aws) -> None:
    """The control of all of these: the same client, straight to the same server, is refused by it."""
    with pytest.raises(ClientError):
        client("s3", None, quiet).get_object(Bucket="bucket", Key="x")  # type: ignore[arg-type]
    assert [got.wrong for got in quiet.got] == [f"the key {STAND_IN} does not exist"]


@pytest.mark.wall
@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"key": "AKIAATTACKER00000000"}, "foreign-credential"),
        ({"key": f"{PLACEHOLDER}aws-ffeeddccbbaa9988"}, "foreign-credential"),
        ({"token": "attackers-session"}, "foreign-credential"),
        ({"region": "us-east-1"}, "signature-not-granted"),
        ({"signature_version": "s3"}, "foreign-credential"),
        ({"signature_version": "s3v4-query"}, "credential-in-query"),
    ],
)
def test_other_keys_and_scopes(gate: Gate, quiet: Aws, changes: dict[str, Any], rule: str) -> None:
    seen = len(gate.events)
    with pytest.raises(ClientError, match="403"):
        client("s3", gate, quiet, **changes).list_objects_v2(Bucket="bucket")
    assert not quiet.got and gate.events[-1]["rule"] == rule and len(gate.events) > seen


@pytest.mark.wall
def test_a_signature_for_many_regions(gate: Gate, quiet: Aws) -> None:
    """As AWS's clients send it where they have awscrt."""
    signed = authorization("s3").replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256").replace(f"/{REGION}", "")
    done = gate.curl(f"https://s3.localhost:{quiet.port}/bucket/x", "-H", f"authorization: {signed}", "-H", "x-amz-region-set: *")
    assert done.stdout.endswith("[403]") and "SigV4A" in done.stdout and not quiet.got


@pytest.mark.wall
def test_a_presigned_url(gate: Gate, quiet: Aws) -> None:
    for key in (STAND_IN, "AKIAATTACKER00000000"):
        for version in ("s3v4", "s3"):
            url = client("s3", gate, quiet, key=key, signature_version=version).generate_presigned_url(
                "get_object", {"Bucket": "bucket", "Key": "x"}
            )
            done = gate.curl(url)
            assert done.stdout.endswith("[403]") and "credential-in-query" in done.stdout
    assert not quiet.got


@pytest.mark.wall
def test_a_body_other_than_its_hash_and_chunks_with_signatures(gate: Gate, quiet: Aws, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"y" * 200_000)
    url = f"https://s3.localhost:{quiet.port}/bucket/x"
    for said in (NOTHING, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "nonsense"):
        for data in ("short", f"@{tmp_path}/large"):
            done = gate.curl(
                url,
                "--http1.1",
                "-X",
                "PUT",
                "-H",
                f"authorization: {authorization('s3')}",
                "-H",
                f"x-amz-content-sha256: {said}",
                "--data-binary",
                data,
            )
            assert done.stdout.endswith("[403]") and "signature-not-granted" in done.stdout, done
    assert not quiet.got
    done = gate.curl(url, "--http1.1", "-X", "PUT", "-H", f"authorization: {authorization('s3')}", "--data-binary", f"@{tmp_path}/large")
    assert done.stdout.endswith("[200]") and [got.wrong for got in quiet.got] == [""]


@pytest.mark.wall
def test_the_real_key_is_in_no_event_and_no_answer(gate: Gate, quiet: Aws, capfd: pytest.CaptureFixture[str]) -> None:
    client("s3", gate, quiet).get_object(Bucket="bucket", Key="x")
    done = gate.curl(f"https://s3.localhost:{quiet.port}/elsewhere", "-H", f"authorization: {authorization('s3')}")
    told = json.dumps(gate.events) + done.stdout + "".join(capfd.readouterr())
    assert gate.events and not any(secret in told for secret in (SECRET, TOKEN, ID))
