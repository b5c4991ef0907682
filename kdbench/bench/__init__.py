"""``kdbench bench``: how long a training step takes on this machine, beside a plain loop in the manner of peers."""
