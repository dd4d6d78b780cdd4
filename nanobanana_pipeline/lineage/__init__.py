"""Where everything came from: events of each run, and the trace of each picture."""
