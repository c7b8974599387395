"""Make "no" true: the walls, and the door that is a sandbox's only way out."""
