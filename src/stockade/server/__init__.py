"""What listens on this machine for the user's own browser. It decides nothing: answers go to the session that asked, and count there or not."""
