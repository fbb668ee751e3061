"""``python -m perfconv``: the command without its script."""

import sys

from perfconv.cli import main

sys.exit(main())
