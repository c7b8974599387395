"""What happened, so that it can be proved: the ledger, its signed checkpoints, receipts. Imports only core."""
