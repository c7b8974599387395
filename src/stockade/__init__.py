"""Hard containment for AI agents: one policy, three walls, one gate, one ledger, and drills that prove they hold."""

__version__ = "0.1.0"
