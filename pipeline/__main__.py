"""`python -m pipeline`."""

import gc
import sys

# Imports make some hundred thousand objects that stay; looking through them again
# and again for cycles takes 7 % of a short job (docs/decisions.md).
gc.set_threshold(100_000)

try:
    from pipeline.command.main import main
except KeyboardInterrupt:  # Ctrl-C before there is anything to stop
    sys.exit(130)

if __name__ == "__main__":
    main()
