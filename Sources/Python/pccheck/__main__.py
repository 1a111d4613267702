"""``python -m pccheck``: converts checkpoints; every other command is the Swift program's."""

import sys

from pccheck_program import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
