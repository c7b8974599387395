"""May this happen? Pure decisions without I/O: grants on requests that leave, and what a request means once its spelling is settled."""
