"""The vm wall: a machine of its own under QEMU, from an image that is built here."""
