"""Golden cases, a module for each folder of `methods`: how our code makes what a reference implementation returned."""
