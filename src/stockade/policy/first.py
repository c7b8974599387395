"""The first policy that `stockade policy init` writes. A test proves that it is valid and changes nothing until somebody uncomments a line."""

TEXT = """\
# Your policy for stockade: what an AI agent may see, change and reach. Reference: docs/policy.md
# Everything that is commented out shows a default or an example. Check it with: stockade policy check
version = 1

# [workspace]
# path = "."               # where stockade is started
# mode = "rw"              # ro, rw, or rw-no-delete (nothing that existed before is lost)

# More folders that are visible. Your home is not, unless you name a folder of it here.
# [[mount]]
# path = "~/datasets"
# mode = "ro"

# [limits]
# memory = "8 GiB"
# wall_time = "2 h"

# The network is closed. Each rule opens these methods on these paths of one host, and nothing else.
# [[egress]]
# preset = "anthropic"     # the model's API, with your key from ANTHROPIC_API_KEY added outside; also openai
#
# [[egress]]
# preset = "pypi"          # reads from the index that pip is configured for; also npm, debian, github-read
#
# [[egress]]
# host = "api.example.com"
# methods = ["GET"]
# paths = ["/v1/items/**"]
# credential = "example"
#
# [credential.example]     # the agent never sees it: the gate writes it into the request
# source = "keyring:example/me"   # or env:NAME, file:/path, command:program argument
# header = "authorization"
"""
