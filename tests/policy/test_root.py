"""[root] in the layers: one image or folder, by its digest, within what higher layers allow."""

from __future__ import annotations

import pytest

from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.core.values import Root
from stockade.policy.problems import each
from stockade.policy.visible import explain_path

DIGEST = "sha256:" + "0f" * 32
IMAGE = f"registry.example.com:5000/team/tools@{DIGEST}"


def test_without_it_the_root_is_the_hosts_and_read_only(places: Places) -> None:
    assert places.compile().policy.root == Root() and Root().usual
    places.write(user='[root]\nwritable = "disk"\n[limits]\nscratch = "7 MiB"')
    root = places.compile().policy.root
    assert (root.image, root.path, root.writable, root.size, root.usual) == ("", "", "disk", 7 << 20, False)
    assert places.load() == places.load() == places.compile().policy  # the second from the cache


def test_the_last_layer_that_names_one_decides(places: Places) -> None:
    (places.work / "tree").mkdir()
    places.write(managed=f'[root]\nimage = "{IMAGE}"\nsize = "1 GiB"', user='[root]\npath = "tree"', project='[root]\nwritable = "none"')
    root = places.compile().policy.root
    assert (root.image, root.path, root.writable, root.size) == ("", str(places.work / "tree"), "none", 0)
    again = places.compile(("root.image", IMAGE), ("root.writable", "memory"))
    assert (again.policy.root.image, again.policy.root.path, again.policy.root.size) == (IMAGE, "", 1 << 30)
    assert dict(again.origins)["root.size"].file == str(places.managed) and again.policy.root.origin.file == "command line"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'image = "{IMAGE}"\npath = "."', "an image or a folder, not both"),
        ('image = "registry.example.com/team/tools:1.2"', "does not name an image by its digest"),
        (f'image = "tools@{DIGEST}"', "does not name an image by its digest"),
        (f'image = "registry.example.com/../x@{DIGEST}"', "does not name an image by its digest"),
        (f'image = "--authfile/x@{DIGEST}"', "does not name an image by its digest"),
        ('path = "/"', "cannot be a root: it is the whole file system"),
        ('path = "~"', "it holds your whole home"),
        ('path = "nowhere"', "does not exist"),
        ('path = "project.toml"', "it is not a folder"),
        ('writable = "yes"', "writable"),
        ('writable = "memory"\nsize = "1 kB"', "too little"),
    ],
)
def test_what_is_no_root_is_refused(places: Places, text: str, message: str) -> None:
    places.write(project=f"[root]\n{text}")
    with pytest.raises(PolicyError) as caught:
        places.compile()
    assert message in "\n".join(str(error) for error in each(caught.value))


def test_a_tag_is_refused_with_the_command_that_resolves_it(places: Places) -> None:
    places.write(project='[root]\nimage = "registry.example.com/tools:1.2"')
    with pytest.raises(PolicyError) as caught:
        places.compile()
    assert "stockade image pull registry.example.com/tools:1.2" in each(caught.value)[0].hint


@pytest.mark.parametrize(
    ("cap", "fits"),
    [
        ('images = ["registry.example.com:5000/team/tools"]', True),
        (f'images = ["{IMAGE}"]', True),
        ('images = ["registry.example.com:5000/**"]', True),
        ('images = ["registry.example.com:5000/team"]', False),
        ('images = ["registry.example.com:5000/team/tool/**"]', False),
        (f'images = ["registry.example.com:5000/team/tools@sha256:{"1e" * 32}"]', False),
        ("images = []", False),
    ],
)
def test_images_are_capped_by_name_and_by_digest(places: Places, cap: str, fits: bool) -> None:
    places.write(managed=f"[caps]\n{cap}", project=f'[root]\nimage = "{IMAGE}"')
    if fits:
        assert places.compile().policy.root.image == IMAGE
        return
    with pytest.raises(PolicyError) as caught:
        places.compile()
    assert caught.value.code == "policy.capped" and "caps.images" in str(caught.value)


def test_folders_and_room_are_capped_with_mounts_and_scratch(places: Places) -> None:
    (places.root / "tree").mkdir()
    places.write(managed='[caps]\nmounts = ["~", "."]', project=f'[root]\npath = "{places.root}/tree"')
    with pytest.raises(PolicyError, match=r"caps\.mounts"):
        places.compile()
    places.write(managed='[caps.limits]\nscratch = "1 GiB"', project='[root]\nwritable = "memory"')
    assert places.compile().policy.root.size == 1 << 30
    places.write(project='[root]\nwritable = "memory"\nsize = "2 GiB"')
    with pytest.raises(PolicyError, match=r"caps\.limits\.scratch"):
        places.compile()
    places.write(project='[root]\nwritable = "memory"\nsize = "none"')
    with pytest.raises(PolicyError, match=r"caps\.limits\.scratch"):
        places.compile()


def test_with_another_root_the_hosts_system_is_not_visible(places: Places) -> None:
    assert explain_path("read", "/usr/bin/env", places.compile().policy, str(places.work))[0].effect == "allow"
    verdict, _ = explain_path("read", "/usr/bin/env", places.compile(("root.image", IMAGE)).policy, str(places.work))
    assert verdict.effect == "deny" and IMAGE in verdict.reasons[0]
