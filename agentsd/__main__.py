"""`python -m agentsd`: the command `agentsd`."""

import sys

from agentsd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
