"""What answers others on this machine: the user's own browser, and an agent loop that wants tools. It decides nothing: answers and commands go to a session, and count there or not."""
