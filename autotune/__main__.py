"""`python -m autotune`."""

import sys

from autotune.system.interrupts import interruptible

with interruptible():
    try:
        from autotune.cli import main
    except KeyboardInterrupt:
        # Interrupted while the imports ran: there is nothing to keep yet.
        sys.exit(130)

    main()
