"""``python -m pccheck``: converts checkpoints; every other command is the Swift program's."""

import sys

from ._cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
