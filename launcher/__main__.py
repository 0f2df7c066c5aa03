"""`python -m launcher` is the `shardtune` command."""

import sys

from launcher.cli import main

sys.exit(main())
