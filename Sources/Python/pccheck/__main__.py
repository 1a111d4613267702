"""``python -m pccheck``: list, verify, export and convert checkpoints."""

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
