"""Tables, plots and pages from certificate files, ours and the reference implementations'."""
